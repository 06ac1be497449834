"""Reading, computing and writing at the same time: slides on their way through one encoder.

A thread reads batches ahead, workers compute them, a thread takes the tokens apart by slide and writes them in order.
On CPU there is a worker for each core and each computes on one core: the bits of a slide's tokens then do not depend on
the number of cores, and cores do not wait for each other inside a batch. On a GPU one worker queues work; the GPU
fetches pixels and hands tokens back while it computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray

from slideloom.encoders.embedding.account import Account
from slideloom.encoders.embedding.batches import Batch, Part, SlideWork, read_batches
from slideloom.encoders.embedding.forward import Computed, Forward
from slideloom.encoders.embedding.handoff import Handoff, Stopped
from slideloom.encoders.embedding.store import TokenArray
from slideloom.encoders.embedding.token_writer import SlideWriter

__all__ = ["Lane"]

#: Batches that wait between two threads, beyond one for each worker.
_AHEAD = 2


class Lane:
    """Takes slides of one panel through one encoder, once.

    Parameters
    ----------
    forward : Forward
        The encoder.
    workers : int
        Threads that compute at the same time.
    pin : bool
        Read pixels into page-locked memory.
    prepare : callable
        See :func:`~slideloom.encoders.embedding.batches.read_batches`.
    open_writer, finish : callable
        Make the writer of a slide's store; put the store in its place.

    Attributes
    ----------
    account : Account
        Of all its slides; complete once :meth:`run` has ended.
    """

    def __init__(
        self,
        forward: Forward,
        workers: int,
        pin: bool,
        prepare: Callable[[SlideWork], None],
        open_writer: Callable[[SlideWork], SlideWriter],
        finish: Callable[[SlideWork, SlideWriter], None],
    ) -> None:
        self.account = Account()
        self._forward, self._workers, self._pin = forward, workers, pin
        self._prepare, self._open_writer, self._finish = prepare, open_writer, finish
        self._batches: Handoff[Batch] = Handoff(workers + _AHEAD)
        self._computed: Handoff[Computed] = Handoff(workers + _AHEAD)
        self._told: SimpleQueue[SlideWork | BaseException | None] = SimpleQueue()
        self._writers: dict[SlideWork, SlideWriter] = {}
        self._ended: set[SlideWork] = set()

    def run(self, slides: Sequence[SlideWork]) -> Iterator[SlideWork]:
        """Take slides through; gives each when its store is in its place, or when it has failed (``error``).

        Raises
        ------
        Exception
            Whatever is no single slide's fault.
        """
        start = time.perf_counter()

        def read() -> None:
            count = 0
            for batch in read_batches(slides, self._prepare, self._forward.size, pin=self._pin):
                self._batches.put(count, batch)
                count += 1
            self._batches.end(count)
            self._computed.end(count)

        def write() -> None:
            try:
                for _, computed in self._computed:
                    self._take_apart(computed)
            finally:
                for writer in self._writers.values():
                    writer.abandon()
            self.account.seconds = time.perf_counter() - start
            self._told.put(None)

        steps = [read, write, *[self._work] * self._workers]
        with ThreadPoolExecutor(len(steps), thread_name_prefix="embed") as pool:
            try:
                for step in steps:
                    pool.submit(self._guard, step)
                while (told := self._told.get()) is not None:
                    if isinstance(told, BaseException):
                        raise told
                    yield told
            finally:
                self._batches.stop()
                self._computed.stop()

    def _guard(self, step: Callable[[], None]) -> None:
        torch.get_num_threads()  # until it has asked, a new thread's convolutions take every core
        try:
            step()
        except Stopped:
            pass
        except BaseException as error:  # the caller raises it
            self._told.put(error)

    def _work(self) -> None:
        blocked = 0.0
        while True:
            start = time.perf_counter()
            got = self._batches.get()
            if got is None:
                return
            number, batch = got
            computed = self._forward(batch, {"read_s": time.perf_counter() - start, "write_s": blocked})
            start = time.perf_counter()
            self._computed.put(number, computed)
            blocked = time.perf_counter() - start

    def _take_apart(self, computed: Computed) -> None:
        computed.wait()
        tokens = [rows for encoded in computed.encoded for rows in encoded.rows()]
        self._account(computed, [part for part, _ in tokens])
        found = {id(part): rows for part, rows in tokens}
        for part in computed.batch.parts:
            self._write_part(part, found.get(id(part)))

    def _account(self, computed: Computed, parts: Sequence[Part]) -> None:
        spent = {name: seconds / self._workers for name, seconds in computed.seconds.items()}
        self.account.add(spent)
        self.account.n_tiles += computed.n_tiles
        self.account.n_padding += computed.n_padding
        for part in parts:
            account = part.slide.account
            account.n_tiles += len(part.pixels)
            account.add(spent, len(part.pixels) / computed.n_tiles)
            account.seconds = account.total()

    def _write_part(self, part: Part, rows: Mapping[TokenArray, NDArray[np.float16]] | None) -> None:
        slide = part.slide
        if slide in self._ended:
            return
        try:
            if slide.error is None:
                if slide not in self._writers:
                    self._writers[slide] = self._open_writer(slide)
                if rows is not None:
                    self._writers[slide].add(rows)
                if not part.is_last:
                    return
                self._finish(slide, self._writers[slide])
        except Exception as error:
            slide.fail(error)
        writer = self._writers.pop(slide, None)
        if writer is not None and slide.error is not None:
            writer.abandon()
        self._ended.add(slide)
        self._told.put(slide)
