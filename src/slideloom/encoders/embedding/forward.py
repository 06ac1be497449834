"""One batch through the encoder: preprocessed slide by slide, computed together, checked, brought back as float16.

Where the tokens of flipped and turned tiles are wanted, too, the preprocessed batch is flipped and turned, and computed
once more for each.

A batch always has the same number of rows: what is missing in the last one is filled up with its first row. Kernels are
chosen by shape, and other kernels round differently; in one shape the bits of a tile's tokens depend neither on its
place in the batch nor on its neighbours, so that a slide's tokens are the same whatever job it is in.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideloom.encoders.base import Encoder
from slideloom.encoders.dihedral import transform
from slideloom.encoders.embedding.batches import Batch, Part
from slideloom.encoders.embedding.store import TokenArray
from slideloom.errors import SlideError, SlideloomError

__all__ = ["Computed", "Encoded", "Forward"]

_HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Encoded:
    """Tokens of some parts of a batch, on the CPU.

    Attributes
    ----------
    parts : sequence of Part
        Whose; their tiles follow each other in the arrays.
    tokens : dict of TokenArray to Tensor
        By array, (k, h, w, width) float16.
    largest : dict of TokenArray to Tensor
        By array, the largest magnitude of each tile, (k,) float32; NaN where a token is not a number.
    """

    parts: Sequence[Part]
    tokens: dict[TokenArray, Tensor] = field(default_factory=dict)
    largest: dict[TokenArray, Tensor] = field(default_factory=dict)

    def rows(self) -> list[tuple[Part, dict[TokenArray, NDArray[np.float16]]]]:
        """Tokens of each part that holds nothing float16 cannot; slides with other parts fail."""
        found = []
        start = 0
        for part in self.parts:
            rows = slice(start, start + len(part.pixels))
            start = rows.stop
            for which, largest in self.largest.items():
                try:
                    _check(part, which, largest[rows])
                except Exception as error:
                    part.slide.fail(error)
                so_far = part.slide.largest.get(which, 0.0)
                part.slide.largest[which] = max(so_far, float(largest[rows].max()))
            found.append((part, {which: values[rows].numpy() for which, values in self.tokens.items()}))
        return [(part, tokens) for part, tokens in found if part.slide.error is None]


@dataclass
class Computed:
    """What became of a batch; on a GPU it may still be computing.

    Attributes
    ----------
    batch : Batch
        The batch.
    encoded : list of Encoded
        Its tokens: in one piece, unless a slide among them made the encoder stumble.
    n_tiles, n_padding : int
        Tiles computed, and rows beside them that only fill up.
    seconds : dict of str to float
        By the parts of an account; complete after :meth:`wait`.
    since : float
        On a CPU: when the part began that is being worked at.
    marks : list of (str, Event)
        On a GPU: the end of the batch before, its own start, then the end of each part, with the part's name.
    done : Event, optional
        On a GPU: the tokens have arrived.
    """

    batch: Batch
    encoded: list[Encoded] = field(default_factory=list)
    n_tiles: int = 0
    n_padding: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    since: float = 0.0
    marks: list[tuple[str, torch.cuda.Event]] = field(default_factory=list)
    done: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Until the tokens are there."""
        if self.done is None:
            return
        self.done.synchronize()
        (_, before), (_, start), *_ = self.marks
        spent: dict[str, float] = {}
        for (_, begun), (name, ended) in pairwise(self.marks[1:]):
            spent[name] = spent.get(name, 0.0) + begun.elapsed_time(ended) / 1e3
        # A GPU that has work queued does not mind its feeder waiting: only the gap in its work is lost time.
        gap = before.elapsed_time(start) / 1e3
        waits = sum(self.seconds.values())
        scale = min(1.0, gap / waits) if waits > 0 else 0.0
        self.seconds = {name: value * scale for name, value in self.seconds.items()} | spent


class Forward:
    """Takes batches through an encoder.

    Parameters
    ----------
    encoder : Encoder
        On the device.
    arrays : sequence of TokenArray
        What is computed.
    size : int
        Rows of every pass.
    device : str
        Such as ``cpu`` or ``cuda``.
    precision : {"fp32", "bf16"}
        Arithmetic of the encoder.
    """

    def __init__(
        self,
        encoder: Encoder,
        arrays: Sequence[TokenArray],
        size: int,
        device: str,
        precision: Literal["fp32", "bf16"],
    ) -> None:
        self.size = size
        self._encoder = encoder
        # A pass for each symmetry, through the deepest block that it misses.
        self._passes = [
            (symmetry, _narrowed(encoder, tuple(one.block for one in arrays if one.symmetry == symmetry)))
            for symmetry in sorted({one.symmetry for one in arrays})
        ]
        self._device = torch.device(device)
        self._half = precision == "bf16"
        self._on_gpu = self._device.type == "cuda"
        if self._on_gpu:
            self._up = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._down = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._before: tuple[str, torch.cuda.Event] | None = None

    def __call__(self, batch: Batch, waited: Mapping[str, float]) -> Computed:
        """Compute a batch. On CPU several threads may do so at once; on a GPU this returns before it is done.

        Parameters
        ----------
        batch : Batch
            At most ``size`` tiles.
        waited : mapping of str to float
            Seconds that the caller waited for it, by the parts of an account.

        Raises
        ------
        MemoryError
            The batch does not fit.
        """
        computed = Computed(batch, seconds=dict(waited))
        self._mark(computed)
        try:
            with torch.inference_mode():
                parts, images = self._preprocess(batch)
                self._mark(computed, "preprocess_s")
                computed.encoded = self._encode(parts, images, computed) if parts else []
                self._finish(computed)
        except torch.OutOfMemoryError as error:
            raise MemoryError(f"{self._encoder.spec.name}: batches of {self.size} tiles do not fit: {error}") from error
        return computed

    def _preprocess(self, batch: Batch) -> tuple[list[Part], list[Tensor]]:
        parts, images = [], []
        for part in batch.parts:
            if not len(part.pixels) or part.slide.error is not None:
                continue
            try:
                images.append(self._encoder.preprocess(self._upload(part.pixels), part.slide.statistics))
                parts.append(part)
            except Exception as error:
                _raise_if_broken(error)
                part.slide.fail(error)
        return parts, images

    def _encode(self, parts: list[Part], images: list[Tensor], computed: Computed) -> list[Encoded]:
        """Tokens of all parts together; where that fails, of each alone, so that only the guilty slide fails."""
        encoded = Encoded(parts)
        try:
            joined = images[0].contiguous() if len(images) == 1 else torch.cat(images)
            missing = self.size - len(joined)
            if missing > 0:
                joined = torch.cat([joined, joined[:1].expand(missing, *joined.shape[1:])])
            for symmetry, encoder in self._passes:
                with torch.autocast(self._device.type, torch.bfloat16, self._half):
                    tokens = encoder.encode(transform(joined, symmetry).contiguous())
                self._mark(computed, "forward_s")
                _check_blocks(tokens, encoder)
                self._bring_back(tokens, symmetry, encoded)
                self._mark(computed, "copy_s")
        except Exception as error:
            _raise_if_broken(error)
            if len(parts) == 1:
                parts[0].slide.fail(error)
                return []
            alone = zip(parts, images, strict=True)
            return [one for part, image in alone for one in self._encode([part], [image], computed)]
        computed.n_tiles += self.size - missing
        computed.n_padding += missing
        return [encoded]

    def _bring_back(self, tokens: dict[int, Tensor], symmetry: int, encoded: Encoded) -> None:
        count = sum(len(part.pixels) for part in encoded.parts)
        half, largest = {}, {}
        for block, value in sorted(tokens.items()):
            which, rows = TokenArray(block, symmetry), value[:count]
            flat = rows.flatten(1)
            largest[which] = torch.maximum(flat.amax(1), -flat.amin(1)).float()  # NaN survives both
            half[which] = rows.to(torch.float16).contiguous()
        encoded.tokens.update(self._download(half) if self._on_gpu else half)
        encoded.largest.update(self._download(largest) if self._on_gpu else largest)

    # ---- on a GPU: copies on streams of their own, and marks in the stream that computes ---------------------------

    def _upload(self, pixels: Tensor) -> Tensor:
        if not self._on_gpu:
            return pixels
        with torch.cuda.stream(self._up):
            moved = pixels.to(self._device, non_blocking=True)
        stream = torch.cuda.current_stream(self._device)
        stream.wait_stream(self._up)
        moved.record_stream(stream)
        return moved

    def _download(self, values: dict[TokenArray, Tensor]) -> dict[TokenArray, Tensor]:
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        found = {}
        with torch.cuda.stream(self._down):
            for which, value in values.items():
                found[which] = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
                found[which].copy_(value, non_blocking=True)
                value.record_stream(self._down)
        return found

    def _mark(self, computed: Computed, name: str = "") -> None:
        """Add the seconds since the last mark to a part; on a GPU, put a mark into its work."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            computed.marks.append((name, event))
            return
        now = time.perf_counter()
        if name:
            computed.seconds[name] = computed.seconds.get(name, 0.0) + now - computed.since
        computed.since = now

    def _finish(self, computed: Computed) -> None:
        if not self._on_gpu:
            return
        computed.marks.insert(0, self._before or computed.marks[0])
        self._before = computed.marks[-1]
        computed.done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        computed.done.record(self._down)


def _raise_if_broken(error: Exception) -> None:
    """A machine that is out of memory or out of order is nobody's fault, and an encoder's mistake not a slide's."""
    broken = isinstance(error, MemoryError | torch.OutOfMemoryError | torch.AcceleratorError)
    if broken or (isinstance(error, SlideloomError) and error.code == "internal"):
        raise error


def _narrowed(encoder: Encoder, blocks: tuple[int, ...]) -> Encoder:
    """The same encoder, which hands out some blocks only."""
    narrow = copy.copy(encoder)
    narrow.blocks = blocks
    return narrow


def _check_blocks(tokens: Mapping[int, Tensor], encoder: Encoder) -> None:
    if set(tokens) != set(encoder.blocks):
        raise SlideloomError(
            f"blocks {sorted(tokens)}",
            where=encoder.spec.name,
            expected=f"{list(encoder.blocks)}, the encoder's own",
            code="internal",
        )


def _check(part: Part, which: TokenArray, largest: Tensor) -> None:
    """Refuse what float16 cannot hold."""
    fits = largest <= _HALF_MAX  # NaN compares false
    if bool(fits.all()):
        return
    spot = int(torch.nonzero(~fits)[0])
    patches, tile = part.slide.patches, part.first + spot
    raise SlideError(
        f"block {which.block} gives {float(largest[spot]):g} in tile {tile} (row {patches.row[tile]}, column"
        f" {patches.col[tile]}){f', turned by symmetry {which.symmetry}' if which.symmetry else ''}",
        where=patches.slide_id,
        expected=f"finite numbers up to {_HALF_MAX:g}",
        hint="Look at the tile's pixels, and at the checkpoint",
        code="non_finite_embedding",
    )
