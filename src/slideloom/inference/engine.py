"""Reading, computing and writing at the same time: many slides on their way through one decoder.

A thread reads tiles ahead, of the next slide, too; one feeds the networks; one takes finished rows to the disk. What
waits between two of them is bounded. Batches run over the borders of slides and are always full (the last is filled
up), so that neither the neighbours of a slide nor a band of its rows change a value.

A GPU normalises, blends and quantises as well: tiles travel there as they are stored and come back as bytes, on streams
of their own while it computes. On a CPU the reader normalises, and a thread of its own blends.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

import torch
from torch import Tensor

from slideloom.encoders.embedding.handoff import Handoff, Stopped
from slideloom.errors import SlideError, SlideloomError
from slideloom.inference.account import Timing, is_gpu, new_account
from slideloom.inference.blend import FinishedRows, RowBlender
from slideloom.inference.forward import BatchSize, Networks, is_out_of_memory
from slideloom.inference.tiles import TileSource, joined, normalised
from slideloom.inference.work import End, Layer, Part, Rows, SlideWork, Spent, Writing, in_chunks, split

__all__ = ["Engine"]

#: A batch's tiles and ends, those of the tiles that were predicted, their values, the time they took.
_Predicted = tuple[list[Part | End], list[Part], Tensor | None, Timing | None]

#: Tiles that are read together: bytes and number.
_PIECE_BYTES, _PIECE_TILES = 32 << 20, 32
#: Pieces that wait for the device, and messages that wait for the disk.
_PIECES_AHEAD, _ROWS_AHEAD = 8, 4
#: On a CPU: predicted batches that wait to be blended.
_BATCHES_AHEAD = 2
#: Batches that a GPU has queued at most.
_QUEUED = 2


class Engine:
    """Takes slides through the networks, once.

    Parameters
    ----------
    networks : Networks
        Encoder and decoder.
    size : BatchSize
        Tiles a batch.
    device : device
        Where they run.

    Attributes
    ----------
    account : MapsAccount
        Of all slides; complete once :meth:`run` has ended.
    """

    def __init__(self, networks: Networks, size: BatchSize, device: torch.device) -> None:
        self.account = new_account(device)
        self._networks, self._size, self._device = networks, size, device
        self._on_gpu = is_gpu(device)
        self._pieces: Handoff[Part | End] = Handoff(_PIECES_AHEAD)
        self._predicted: Handoff[_Predicted] = Handoff(_BATCHES_AHEAD)
        self._finished: Handoff[Rows | Spent | End] = Handoff(_ROWS_AHEAD)
        self._n_predicted = 0
        self._n_finished = 0
        self._told: SimpleQueue[SlideWork | BaseException | None] = SimpleQueue()
        self._queued: deque[Timing] = deque()
        self._waited: dict[str, float] = {}
        if self._on_gpu:
            self._up = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._down = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, slides: Iterable[SlideWork]) -> Iterator[SlideWork]:
        """Take slides through; gives each when its store is in its place, or when it has failed (``error``).

        Raises
        ------
        Exception
            Whatever is no single slide's fault.
        """
        start = time.perf_counter()
        steps: list[Callable[[], None]] = [lambda: self._read(slides), self._compute, self._write]
        steps += [] if self._on_gpu else [self._lay_all]
        with ThreadPoolExecutor(len(steps), thread_name_prefix="maps") as pool:
            try:
                for step in steps:
                    pool.submit(self._guard, step)
                while (told := self._told.get()) is not None:
                    if isinstance(told, BaseException):
                        raise told
                    yield told
            finally:
                for line in (self._pieces, self._predicted, self._finished):
                    line.stop()
        self.account.seconds += time.perf_counter() - start

    def _guard(self, step: Callable[[], None]) -> None:
        torch.get_num_threads()  # until it has asked, a new thread's convolutions take every core
        try:
            with torch.inference_mode():
                step()
        except Stopped:
            pass
        except BaseException as error:  # the caller raises it
            self._told.put(error)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def _read(self, slides: Iterable[SlideWork]) -> None:
        number = 0
        with ThreadPoolExecutor(1, thread_name_prefix="open") as opener:
            for work, opened in _one_ahead(slides, opener):
                for item in self._items(work, opened):
                    self._pieces.put(number, item)
                    number += 1
        self._pieces.end(number)

    def _items(self, work: SlideWork, opened: Future[list[Layer]]) -> Iterator[Part | End]:
        """Tiles of a slide, and where they end; errors end the slide."""
        try:
            for layer in opened.result():
                bytes_each = max(1, layer.tiles.bytes_each(self._networks.poses))
                count = max(1, min(_PIECE_TILES, _PIECE_BYTES // bytes_each))
                for raw in layer.tiles.read(count, self._networks.poses):
                    if work.error is not None:
                        break
                    yield Part(layer, raw.moved(Tensor.pin_memory) if self._on_gpu else normalised(layer.tiles, raw))
                yield End(work, layer)
        except Exception as error:  # whatever it is, it is this slide's alone
            work.fail(error)
        yield End(work)

    # ---- computing --------------------------------------------------------------------------------------------------

    def _compute(self) -> None:
        waiting: list[Part | End] = []
        n_waiting = 0
        while (item := self._next()) is not None:
            if isinstance(item, Part):
                kinds = {one.layer.tiles.kind for one in waiting if isinstance(one, Part)}
                if kinds and kinds != {item.layer.tiles.kind}:
                    self._batch(waiting)
                    waiting, n_waiting = [], 0
                n_waiting += len(item.raw)
            waiting.append(item)
            while n_waiting >= self._size.now or (waiting and not n_waiting):
                n_waiting -= min(n_waiting, self._size.now)
                batch, waiting = split(waiting, self._size.now)
                self._batch(batch)
                self._size.grow()
        self._batch(waiting)
        if self._on_gpu:
            self._finished.end(self._n_finished)
        else:
            self._predicted.end(self._n_predicted)

    def _next(self) -> Part | End | None:
        """The next tiles, on the device, or the end of a slide; None after the last."""
        while True:
            start = time.perf_counter()
            got = self._pieces.get()
            self._wait("read_s", start)
            if got is None or isinstance(got[1], End):
                return got and got[1]
            part = got[1]
            if part.work.error is not None:
                continue
            start = time.perf_counter()
            try:
                return self._uploaded(part)
            except Exception as error:
                _raise_if_broken(error)
                part.work.fail(_too_large(part.layer, error) if is_out_of_memory(error) else error)
            finally:
                self._wait("copy_s", start)

    def _batch(self, items: list[Part | End]) -> None:
        """Compute tiles and lay them down, in smaller batches where they do not fit."""
        chunks = deque([items])
        while chunks:
            chunk = chunks.popleft()
            parts = [one for one in chunk if isinstance(one, Part) and one.work.error is None]
            if sum(len(part.raw) for part in parts) > self._size.now:
                chunks.extendleft(reversed(in_chunks(chunk, self._size.now)))
                continue
            if not parts:
                self._predict((chunk, [], None, None))
                continue
            timing = Timing(self._device, self._waited, self._queued[-1] if self._queued else None)
            try:
                values = self._forward(parts, timing)
            except Exception as error:
                trouble = error.with_traceback(None)  # it would hold on to what filled the memory
            else:
                self._waited = {}
                self._predict((chunk, parts, values, timing))
                continue
            if is_out_of_memory(trouble):
                self._empty_cache()
                if not self._size.halve():
                    parts[0].work.fail(_too_large(parts[0].layer, trouble))
                chunks.appendleft(chunk)
                continue
            _raise_if_broken(trouble)
            if len({part.work for part in parts}) == 1:
                parts[0].work.fail(trouble)
                chunks.appendleft(chunk)
            else:  # each alone, so that only the guilty slide fails
                chunks.extendleft(reversed([[one] for one in chunk]))

    def _forward(self, parts: list[Part], timing: Timing) -> Tensor:
        self._size.begin()
        if self._on_gpu:
            torch.cuda.current_stream(self._device).wait_stream(self._up)
        inputs = joined([part.raw for part in parts], self._size.now)
        timing.mark("copy_s")
        values = self._networks(parts[0].layer.tiles, inputs)
        timing.mark("forward_s")
        self._size.end()
        return values

    def _predict(self, predicted: _Predicted) -> None:
        """Hand a batch on to be laid down; a GPU does that, too, as its next work."""
        if self._on_gpu:
            self._lay(*predicted)
            return
        start = time.perf_counter()
        self._predicted.put(self._n_predicted, predicted)
        self._n_predicted += 1
        self._wait("write_s", start)

    # ---- blending ---------------------------------------------------------------------------------------------------

    def _lay_all(self) -> None:
        for _, predicted in self._predicted:
            self._lay(*predicted)
        self._finished.end(self._n_finished)

    def _lay(self, items: list[Part | End], parts: list[Part], values: Tensor | None, timing: Timing | None) -> None:
        """Blend the predicted tiles among the items, and hand on the rows that are finished."""
        if timing is not None:
            timing.mark("")
        predicted = set(map(id, parts))
        start = 0
        for item in items:
            if isinstance(item, End):
                if item.layer is not None:
                    self._blend(item.layer, RowBlender.finish, timing)
                    item.layer.blender = None
            elif values is not None and id(item) in predicted:
                tiles = values[start : start + len(item.raw)]
                start += len(item.raw)
                y_px, x_px = item.raw.y_px.tolist(), item.raw.x_px.tolist()
                self._blend(item.layer, partial(RowBlender.add, y_px=y_px, x_px=x_px, tiles=tiles), timing)
        if timing is not None:
            timing.mark("blend_s")
            if self._on_gpu:
                self._queued.append(timing)
            self._send(Spent(timing, [(part.work, len(part.raw)) for part in parts]), None)
        for item in items:
            if isinstance(item, End) and item.layer is None:
                self._send(item, None)
        if len(self._queued) > _QUEUED:
            self._queued.popleft().wait()

    def _blend(
        self, layer: Layer, blend: Callable[[RowBlender], Iterator[FinishedRows]], timing: Timing | None
    ) -> None:
        """Blend, quantise, hand on; what goes wrong ends the slide."""
        if layer.work.error is not None:
            return
        try:
            if layer.blender is None:
                layer.blender = self._blender(layer.tiles)
            for n_rows, values, covered in blend(layer.blender):
                if values is None or covered is None:
                    rows = Rows(layer, n_rows, None)
                else:
                    rows = self._downloaded(layer, n_rows, self._networks.layout.quantise(values, covered))
                self._send(rows, timing)
        except Stopped:
            raise
        except Exception as error:
            _raise_if_broken(error)
            layer.work.fail(_too_large(layer, error) if is_out_of_memory(error) else error)

    def _blender(self, tiles: TileSource) -> RowBlender:
        shape, channels = (tiles.height_px, tiles.width_px), self._networks.layout.channels
        return RowBlender(*shape, channels, tiles.tile_px, tiles.stride_px, rows=tiles.rows, device=self._device)

    def _send(self, message: Rows | Spent | End, timing: Timing | None) -> None:
        """Hand something to the writer. A GPU that waits for it stands still, and that is written down."""
        if timing is not None:
            timing.mark("blend_s")
        start = time.perf_counter()
        self._finished.put(self._n_finished, message)
        self._n_finished += 1
        if timing is not None:
            timing.mark("write_s" if self._on_gpu else "")
        elif self._on_gpu:
            self._wait("write_s", start)

    def _wait(self, part: str, since: float) -> None:
        """Put time down to the next batch."""
        self._waited[part] = self._waited.get(part, 0.0) + time.perf_counter() - since

    # ---- on a GPU: copies on streams of their own -------------------------------------------------------------------

    def _uploaded(self, part: Part) -> Part:
        if not self._on_gpu:
            return part
        tiles = part.layer.tiles
        stream = torch.cuda.current_stream(self._device)
        # Normalised on the same stream: what it waits for by itself is the copies, not the networks.
        with torch.cuda.stream(self._up):
            raw = normalised(tiles, part.raw.moved(lambda values: values.to(self._device, non_blocking=True)))
            raw.moved(lambda values: _used_by(values, stream))
        return Part(part.layer, raw)

    def _downloaded(self, layer: Layer, count: int, maps: dict[str, Tensor]) -> Rows:
        if not self._on_gpu:
            return Rows(layer, count, maps)
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        found = {}
        with torch.cuda.stream(self._down):
            for name, values in maps.items():
                found[name] = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
                found[name].copy_(values, non_blocking=True)
                values.record_stream(self._down)
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record(self._down)
        return Rows(layer, count, found, done)

    def _empty_cache(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()

    # ---- writing ----------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        writing = Writing(self._networks.layout, self.account)
        try:
            for _, message in self._finished:
                if (ended := writing.take(message)) is not None:
                    self._told.put(ended)
        finally:
            writing.abandon()
        self._told.put(None)


def _used_by(values: Tensor, stream: torch.cuda.Stream) -> Tensor:
    values.record_stream(stream)
    return values


def _one_ahead(
    slides: Iterable[SlideWork], opener: ThreadPoolExecutor
) -> Iterator[tuple[SlideWork, Future[list[Layer]]]]:
    """Slides, each of them opened while the tiles of the one before are read."""
    before: tuple[SlideWork, Future[list[Layer]]] | None = None
    for work in slides:
        opening = opener.submit(work.open)
        if before is not None:
            yield before
        before = work, opening
    if before is not None:
        yield before


def _too_large(layer: Layer, error: Exception) -> SlideError:
    return SlideError(
        f"not even one tile of {layer.tiles.tile_px} px fits into memory: {error}".splitlines()[0],
        where=layer.work.slide_id,
        hint="Use a device with more memory, smaller tiles ('grids'), or 'inference.precision: bf16'",
        code="out_of_memory",
    )


def _raise_if_broken(error: Exception) -> None:
    """A machine that is out of order is nobody's fault, and the house's mistake no slide's."""
    broken = isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)
    if broken or (isinstance(error, SlideloomError) and error.code == "internal"):
        raise error
