"""Reading tiles in bands, so that each pixel of a slide is decoded about once and memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.slides.facts import ImageFacts
from slideloom.slides.grid import TileGrid
from slideloom.slides.image import SlideImage
from slideloom.slides.region import read_region

__all__ = ["read_bands"]

#: Bytes of level-0 pixels that one reading may ask for.
_READ_BYTES = 128 << 20


def read_bands(
    opened: SlideImage, image: ImageFacts, tiles: TileGrid, scale: float, keep: NDArray[np.intp], fill: int
) -> Iterator[NDArray[Any]]:
    """Cut patches out of a slide, some rows of tiles at a time; one row in parts where a row is too wide.

    Parameters
    ----------
    opened : SlideImage
        The open image.
    image : ImageFacts
        Its facts.
    tiles : TileGrid
        Where tiles lie, at equal steps or not.
    scale : float
        Level-0 pixels per grid pixel.
    keep : (n,) integer array
        Tiles wanted, ascending.
    fill : int
        Value of the padding.

    Yields
    ------
    (k, c, p, p) array
        Patches, in the order of ``keep``.
    """
    pixel_bytes = image.n_channels * np.dtype(image.dtype).itemsize * max(1.0, scale) ** 2
    most_px = max(tiles.tile_px**2, int(_READ_BYTES / pixel_bytes))
    height_px = most_px // tiles.width_px
    rows = tiles.rows[keep]
    starts = tiles.row_starts_px.astype(np.int64)
    row = 0
    while row < tiles.n_rows:
        first, top = row, int(starts[row])
        row = max(first + 1, int(np.searchsorted(starts, top + height_px - tiles.tile_px, side="right")))
        band = keep[(rows >= first) & (rows < row)]
        if not band.size:
            continue
        widest = max(tiles.tile_px, most_px // min(tiles.tile_px, tiles.height_px - top))
        if row - first > 1 or widest >= tiles.width_px:
            patches = np.full((band.size, image.n_channels, tiles.tile_px, tiles.tile_px), fill, image.dtype)
            for members in _runs(tiles, band, tiles.width_px):
                _fill(opened, tiles, scale, band[members], members, patches, fill)
            yield patches
        else:
            for members in _runs(tiles, band, widest):
                patches = np.full((members.size, image.n_channels, tiles.tile_px, tiles.tile_px), fill, image.dtype)
                _fill(opened, tiles, scale, band[members], np.arange(members.size), patches, fill)
                yield patches


def _runs(tiles: TileGrid, band: NDArray[np.intp], widest_px: int) -> Iterator[NDArray[np.intp]]:
    """Places in ``band`` of tiles that are read together: neighbours in x without a gap, at most so wide."""
    left = tiles.x_px[band].astype(np.int64)
    order = np.argsort(left, kind="stable")
    start = 0
    for end in range(1, order.size + 1):
        if end < order.size:
            before, here = left[order[end - 1]], left[order[end]]
            gap = here - before > tiles.tile_px
            wide = min(here + tiles.tile_px, tiles.width_px) - left[order[start]] > widest_px
            if not gap and not wide:
                continue
        yield order[start:end]
        start = end


def _fill(
    opened: SlideImage,
    tiles: TileGrid,
    scale: float,
    run: NDArray[np.intp],
    slots: NDArray[np.intp],
    patches: NDArray[Any],
    fill: int,
) -> None:
    y, x = int(tiles.y_px[run].min()), int(tiles.x_px[run].min())
    bottom = int((tiles.y_px[run] + tiles.height_valid[run]).max())
    right = int((tiles.x_px[run] + tiles.width_valid[run]).max())
    window = read_region(opened, y, x, bottom - y, right - x, scale, fill)
    for tile, slot in zip(run, slots, strict=True):
        top, left = int(tiles.y_px[tile]) - y, int(tiles.x_px[tile]) - x
        height, width = int(tiles.height_valid[tile]), int(tiles.width_valid[tile])
        patches[slot, :, :height, :width] = window[:, top : top + height, left : left + width]
