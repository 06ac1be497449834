"""Work on many windows at once, results in order, memory bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_order"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(work: Callable[[_Item], _Result], items: Iterable[_Item], workers: int = 1) -> Iterator[_Result]:
    """Results of some work, in the items' order.

    Parameters
    ----------
    work : callable
        Called in threads: what takes long in it should let other threads run, as OpenCV, compiled code and reading do.
    items : iterable
        Taken as they are needed.
    workers : int
        Threads. At most twice as many results as threads are in the making or waiting to be taken; with one, the
        caller does the work itself.

    Yields
    ------
    result
        Of each item. An error of ``work`` is raised in its place, and what has not begun is not done.
    """
    if workers <= 1:
        yield from map(work, items)
        return
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="windows") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
