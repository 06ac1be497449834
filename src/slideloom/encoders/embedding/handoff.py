"""What one thread hands another: numbered things, a bounded few, taken in order whatever order they come in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ["Handoff", "Stopped"]

T = TypeVar("T")


class Stopped(Exception):
    """The threads were told to end."""


class Handoff(Generic[T]):
    """A queue between threads that keeps the order of the numbers.

    Parameters
    ----------
    limit : int
        Things that may wait. Number ``k`` is let in once all below ``k - limit + 1`` have been taken, so the one that
        is due always gets in and nobody waits for ever.

    Examples
    --------
    >>> line = Handoff(3)
    >>> line.put(1, "b"), line.put(0, "a"), line.end(2)
    (None, None, None)
    >>> list(line)
    [(0, 'a'), (1, 'b')]
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: dict[int, T] = {}
        self._next = 0
        self._end: int | None = None
        self._stopped = False
        self._changed = threading.Condition()

    def put(self, number: int, thing: T) -> None:
        """Hand over; waits while too many others do.

        Raises
        ------
        Stopped
            The threads were told to end.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or number < self._next + self._limit)
            self._check()
            self._waiting[number] = thing
            self._changed.notify_all()

    def get(self) -> tuple[int, T] | None:
        """The next one and its number, None after the last.

        Raises
        ------
        Stopped
            The threads were told to end.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._next in self._waiting or self._next == self._end)
            self._check()
            if self._next == self._end:
                return None
            number = self._next
            self._next += 1
            self._changed.notify_all()
            return number, self._waiting.pop(number)

    def __iter__(self) -> Iterator[tuple[int, T]]:
        while (got := self.get()) is not None:
            yield got

    def end(self, count: int) -> None:
        """Say how many there are in all."""
        with self._changed:
            self._end = count
            self._changed.notify_all()

    def stop(self) -> None:
        """Wake everybody who waits, with :class:`Stopped`."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _check(self) -> None:
        if self._stopped:
            raise Stopped
