"""Full batches of tiles, over the borders of slides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slideloom.artefacts.broken import BrokenArtefactError
from slideloom.encoders.embedding.account import Account
from slideloom.encoders.embedding.store import TokenArray
from slideloom.encoders.embedding.token_writer import OlderStore
from slideloom.errors import SlideError, SlideloomError
from slideloom.patches.statistics import ChannelStatistics
from slideloom.patches.store import PatchStore

__all__ = ["Batch", "Part", "SlideWork", "read_batches", "tiles_per_batch"]

_BLOCK_BYTES = 4 << 20
#: RGB pixels that a batch holds at most, or as many values of markers; and tiles. On a GPU a batch has to be large to
#: fill it; on CPU four tiles are as fast as forty, and the last batch has less to be filled up with.
_CPU_PX, _CPU_TILES = 4 * 256**2, 16
_GPU_PX, _GPU_TILES = 64 * 256**2, 256


def tiles_per_batch(tile_px: int, channels: int, device: str) -> int:
    """Tiles of a batch: depends on the tiles and the kind of device only, so that every job computes alike.

    A power of two, so that an encoder that takes a batch in pieces can take it in even ones.

    Examples
    --------
    >>> tiles_per_batch(256, 3, "cpu"), tiles_per_batch(120, 16, "cpu"), tiles_per_batch(1024, 3, "cpu")
    (4, 2, 1)
    """
    budget, most = (_CPU_PX, _CPU_TILES) if device == "cpu" else (_GPU_PX, _GPU_TILES)
    fitting = max(1, 3 * budget // (tile_px**2 * max(3, channels)))
    return int(min(most, 1 << (fitting.bit_length() - 1)))


@dataclass(eq=False)
class SlideWork:
    """One slide on its way through the encoder.

    Attributes
    ----------
    slide_id : str
        As the caller names it.
    patches : PatchStore
        Its tiles.
    place : Path
        Where its tokens go.
    base_key : mapping of str to str
        What they depend on, the choice of arrays apart.
    older : OlderStore, optional
        Tokens that need not be computed.
    chosen : list of int
        Channels that the encoder reads.
    statistics : ChannelStatistics, optional
        What they are normalised with.
    notes : tuple of str
        What a reader of the tokens must know of this slide.
    largest : dict of TokenArray to float
        Largest magnitude so far, by array.
    account : Account
        Its share of the time.
    error : Exception, optional
        Why it fails; set by the first thread that finds out, and nothing more is done for it.
    """

    slide_id: str
    patches: PatchStore
    place: Path
    base_key: Mapping[str, str] = field(default_factory=dict)
    older: OlderStore | None = None
    chosen: list[int] = field(default_factory=list)
    statistics: ChannelStatistics | None = None
    notes: tuple[str, ...] = ()
    largest: dict[TokenArray, float] = field(default_factory=dict)
    account: Account = field(default_factory=Account)
    error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Give the slide up; the first reason stands."""
        if self.error is None:
            self.error = SlideError.of(error) if isinstance(error, SlideloomError) else error


@dataclass(frozen=True)
class Part:
    """Neighbouring tiles of one slide in a batch.

    Attributes
    ----------
    slide : SlideWork
        Whose.
    first : int
        Index of the first tile.
    pixels : Tensor
        (k, c, h, w) in the source's dtype, on the CPU; k is 0 where there is only the end of a slide to be told.
    """

    slide: SlideWork
    first: int
    pixels: Tensor

    @property
    def is_last(self) -> bool:
        """Whether the slide ends here."""
        return self.first + len(self.pixels) >= self.slide.patches.n


@dataclass(frozen=True)
class Batch:
    """Tiles that go through the encoder together.

    Attributes
    ----------
    parts : tuple of Part
        In the order of the slides.
    """

    parts: tuple[Part, ...]


def read_batches(
    slides: Sequence[SlideWork], prepare: Callable[[SlideWork], None], size: int, *, pin: bool = False
) -> Iterator[Batch]:
    """Read the tiles of slides one after the other, ``size`` at a time; only the last batch is smaller.

    Every slide has a part in which it ends, also when it has no tile or fails.

    Parameters
    ----------
    slides : sequence of SlideWork
        One panel and tile side.
    prepare : callable
        Settles ``chosen`` and ``statistics`` of a slide, before its first tile.
    size : int
        Tiles a batch.
    pin : bool
        Put pixels into page-locked memory, from where a GPU fetches them by itself.
    """
    parts: list[Part] = []
    room = size
    for slide in slides:
        done = 0
        try:
            prepare(slide)
            for pixels in _blocks(slide, size):
                start = 0
                while start < len(pixels):
                    piece = pixels[start : start + room]
                    parts.append(Part(slide, done, piece.pin_memory() if pin else piece))
                    start, done, room = start + len(piece), done + len(piece), room - len(piece)
                    if not room:
                        yield Batch(tuple(parts))
                        parts, room = [], size
        except Exception as error:  # whatever it is, it is this slide's alone
            slide.fail(error)
        if slide.error is not None:
            room += sum(len(part.pixels) for part in parts if part.slide is slide)
            parts = [part for part in parts if part.slide is not slide]
        if slide.error is not None or not done:
            parts.append(Part(slide, done, torch.empty(0)))
    if parts:
        yield Batch(tuple(parts))


def _blocks(slide: SlideWork, size: int) -> Iterator[Tensor]:
    """The chosen channels of a slide's tiles, some megabytes at a time: stored chunks are read once, or nearly."""
    patches, chosen = slide.patches, slide.chosen
    every = chosen == list(range(len(patches.channels)))
    bytes_each = patches.tile_px**2 * len(patches.channels) * patches.dtype.itemsize
    step = size * max(1, _BLOCK_BYTES // (bytes_each * size))
    for first in range(0, patches.n, step):
        if slide.error is not None:
            return
        try:
            pixels = patches.pixels(slice(first, min(first + step, patches.n)))
        except ValueError as error:  # what tensorstore says of a damaged shard
            raise BrokenArtefactError(
                f"its patches cannot be read: {error}".splitlines()[0],
                place=patches.path,
                where=slide.slide_id,
                code="unreadable_patches",
            ) from error
        yield torch.from_numpy(np.ascontiguousarray(pixels if every else pixels[:, chosen]))
