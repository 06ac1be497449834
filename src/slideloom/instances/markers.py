"""Mean intensity of every marker under every instance: a slide's tiles, each pixel once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideError
from slideloom.instances.contours import position
from slideloom.instances.measure import label_runs
from slideloom.instances.pool import in_order
from slideloom.patches.store import PatchStore

__all__ = ["check_frame", "marker_sums"]

#: Side of the blocks of tiles under which the labels are read at once, and how many tiles' pixels are.
_BLOCK_PX = 2048
_TILES_AT_ONCE = 64
_Earlier = Callable[[int], list[int]]


@dataclass(frozen=True)
class _Sums:
    """What a block adds."""

    labels: NDArray[np.uint32]
    sums: NDArray[np.float64]
    pixels: NDArray[np.int64]


def check_frame(patches: PatchStore, shape: tuple[int, int], slide_id: str, stage: str) -> None:
    """Refuse tiles that lie in another frame than a slide's labels.

    Parameters
    ----------
    patches : PatchStore
        The tiles.
    shape : (int, int)
        Height and width of the labels, grid pixels.
    slide_id : str
        The slide, for the message.
    stage : str
        The stage to run again.

    Raises
    ------
    SlideError
        ``maps_shape``.
    """
    if (patches.height_px, patches.width_px) != shape:
        raise SlideError(
            f"tiles of a frame of {patches.height_px} x {patches.width_px} px",
            where=slide_id,
            expected=f"{shape[0]} x {shape[1]} px, as the slide's labels",
            hint=f"Run the {stage} stage again",
            code="maps_shape",
        )


def marker_sums(
    labels: Any, patches: PatchStore, count: int, *, workers: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Add up every channel under every instance, each pixel of the slide once.

    Parameters
    ----------
    labels : (H, W) array of unsigned integers
        Ids below ``count``; NumPy array or open Zarr array.
    patches : PatchStore
        Tiles of the same grid frame; where they overlap, the first one counts.
    count : int
        Number of ids, 0 among them.
    workers : int
        Blocks of tiles in work at once, each in a thread; changes nothing.

    Returns
    -------
    sums : (count, c) float64 array
        Exact for integer pixels.
    pixels : (count,) int64 array
        Pixels that were added up: fewer than the instance's where tiles were left out.
    """
    sums = np.zeros((count, len(patches.channels)), np.float64)
    pixels = np.zeros(count, np.int64)
    earlier = _earlier_tiles(patches)
    # Read here, once: threads would each read them.
    _ = patches.n, patches.y_px, patches.x_px, patches.height_valid, patches.width_valid

    def work(tiles: NDArray[np.intp]) -> _Sums | None:
        return _block(labels, patches, tiles, earlier)

    for found in in_order(work, _blocks(patches), workers):
        if found is not None:
            sums[found.labels] += found.sums
            pixels[found.labels] += found.pixels
    return sums, pixels


def _blocks(patches: PatchStore) -> Iterator[NDArray[np.intp]]:
    """Tiles that lie together, in their order."""
    side = max(1, _BLOCK_PX // patches.stride_px)
    block = np.stack([patches.row // side, patches.col // side], axis=1)
    _, number = np.unique(block, axis=0, return_inverse=True)
    number = number.reshape(-1)
    order = np.argsort(number, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(number[order])) + 1) if len(order) else ()


def _block(labels: Any, patches: PatchStore, tiles: NDArray[np.intp], earlier: _Earlier) -> _Sums | None:
    """Sums of a block of tiles; None if no instance lies there."""
    top, left = int(patches.y_px[tiles].min()), int(patches.x_px[tiles].min())
    bottom = int((patches.y_px[tiles] + patches.height_valid[tiles]).max())
    right = int((patches.x_px[tiles] + patches.width_valid[tiles]).max())
    under = np.ascontiguousarray(labels[top:bottom, left:right], np.uint32)
    present = np.unique(label_runs(under))
    if not present.size:
        return None
    sums = np.zeros((len(present), len(patches.channels)), np.float64)
    pixels = np.zeros(len(present), np.int64)
    side = patches.tile_px
    for start in range(0, len(tiles), _TILES_AT_ONCE):
        chosen = tiles[start : start + _TILES_AT_ONCE]
        bands = []
        for tile in chosen.tolist():
            y_px, x_px = int(patches.y_px[tile]), int(patches.x_px[tile])
            high, wide = int(patches.height_valid[tile]), int(patches.width_valid[tile])
            band = under[y_px - top : y_px - top + high, x_px - left : x_px - left + wide].copy()
            for other in earlier(tile):
                dy, dx = int(patches.y_px[other]) - y_px, int(patches.x_px[other]) - x_px
                band[max(dy, 0) : max(dy + side, 0), max(dx, 0) : max(dx + side, 0)] = 0
            bands.append(band)
        if any(band.any() for band in bands):
            for band, values in zip(bands, patches.pixels(chosen), strict=True):
                _add_tile(band, values, present, sums, pixels)
    return _Sums(present, sums, pixels)


def _earlier_tiles(patches: PatchStore) -> _Earlier:
    """A function that lists the tiles before a tile that overlap it."""
    reach = -(-patches.tile_px // patches.stride_px) - 1
    if reach == 0:
        return lambda tile: []
    rows, columns = patches.row.tolist(), patches.col.tolist()
    at = {place: tile for tile, place in enumerate(zip(rows, columns, strict=True))}
    steps = [(dy, dx) for dy in range(-reach, 1) for dx in range(-reach, reach + 1) if dy < 0 or dx < 0]

    def earlier(tile: int) -> list[int]:
        places = ((rows[tile] + dy, columns[tile] + dx) for dy, dx in steps)
        return [at[place] for place in places if place in at]

    return earlier


@numba.njit(nogil=True, cache=True)
def _add_tile(band: Any, values: Any, present: Any, sums: Any, pixels: Any) -> None:
    """Add a tile, (c, p, p), under a band of labels, in place; channel by channel, in raster order."""
    height, width = band.shape
    row_of = np.full((height, width), -1, np.int32)
    for y in range(height):
        before, row = 0, 0
        for x in range(width):
            own = band[y, x]
            if own == 0:
                continue
            if own != before:
                row, before = position(present, own), own
            row_of[y, x] = row
            pixels[row] += 1
    for channel in range(values.shape[0]):
        for y in range(height):
            for x in range(width):
                row = row_of[y, x]
                if row >= 0:
                    sums[row, channel] += values[channel, y, x]
