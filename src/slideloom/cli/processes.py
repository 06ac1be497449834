"""Work shared out among processes that may die of it: what a damaged file ends is one result, not the whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

__all__ = ["in_processes"]

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
#: Tasks handed out at once, by process: enough that none waits, and few to suspect when a process dies.
_AHEAD = 2


def in_processes(
    work: Callable[[_Task], _Result], tasks: Iterable[_Task], count: int, lost: Callable[[_Task], _Result]
) -> Iterator[_Result]:
    """Share tasks out among processes.

    Parameters
    ----------
    work : callable
        Does a task; a function of a module, since it is sent to other processes.
    tasks : iterable
        What is to be done.
    count : int
        Processes.
    lost : callable
        Gives the result of a task that ends the process it is done in.

    Yields
    ------
    result
        One a task, in the order in which they are done. After a crash the few tasks that were in work are tried again,
        each in a process of its own, to find the culprit; the others go on in new processes.
    """
    waiting = deque(tasks)
    while waiting:
        suspects = yield from _until_a_crash(work, waiting, count)
        yield from _one_by_one(work, suspects, count, lost)


def _until_a_crash(
    work: Callable[[_Task], _Result], waiting: deque[_Task], count: int
) -> Generator[_Result, None, list[_Task]]:
    """Results until all is done or a process dies; returns the tasks that were in work then."""
    running: dict[Future[_Result], _Task] = {}
    with ProcessPoolExecutor(min(count, len(waiting)), mp_context=get_context("spawn")) as pool:
        while waiting or running:
            while waiting and len(running) < _AHEAD * count:
                try:
                    future = pool.submit(work, waiting[0])
                except BrokenProcessPool:
                    break
                running[future] = waiting.popleft()
            if not running:
                return []  # it broke before anything was in work: the next processes are new
            crashed = False
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                try:
                    result = future.result()
                except BrokenProcessPool:
                    crashed = True
                    continue
                del running[future]
                yield result
            if crashed:
                return list(running.values())
    return []


def _one_by_one(
    work: Callable[[_Task], _Result], tasks: Sequence[_Task], count: int, lost: Callable[[_Task], _Result]
) -> Iterator[_Result]:
    def alone(task: _Task) -> _Result:
        try:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                return pool.submit(work, task).result()
        except BrokenProcessPool:
            return lost(task)

    if tasks:
        with ThreadPoolExecutor(count) as threads:
            yield from threads.map(alone, tasks)
