"""Any window of an image at any resolution, in the grid frame.

Grid pixel ``i`` covers the level-0 interval ``[i * scale, (i + 1) * scale)``. Going down, a grid pixel is the average
of the image over the square it covers, pixels on its edge counted by the share that lies inside (a box
filter: no light is lost); going up, it is interpolated linearly between the nearest pixel centres. At scale 1 pixels
are copied.

Positions and weights come from the pixel's place on the slide alone, and for integer samples all sums are exact
(weights are whole multiples of 2^-16), so that a pixel has one value whatever window it is asked for in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.slides.grid import grid_size
from slideloom.slides.image import SlideImage

__all__ = ["choose_level", "read_region"]

_UNIT = 65536.0
_SAME = 1e-6  # relative; 0.1 px over a slide of 100 000 px
_LEVEL_TOLERANCE = 0.01
_BLOCK_BYTES = 48 * 1024 * 1024
_BAND_PX = 512
_CACHED_SUMS = 64 * 1024


def choose_level(image: SlideImage, scale: float) -> int:
    """Index of the smallest level that is still at least as fine as a scale, to within 1 %."""
    levels = image.levels
    fine = [index for index, level in enumerate(levels) if level.downsample <= scale * (1 + _LEVEL_TOLERANCE)]
    return max(fine, key=lambda index: levels[index].downsample, default=0)


def read_region(
    image: SlideImage, y_px: int, x_px: int, height: int, width: int, scale: float = 1.0, fill: int = 0
) -> NDArray[Any]:
    """Read a window of the grid frame.

    Parameters
    ----------
    image : SlideImage
        Open image.
    y_px, x_px : int
        First row and column, grid pixels; may lie outside the slide.
    height, width : int
        Size, grid pixels; may reach out of the slide.
    scale : float
        Level-0 pixels per grid pixel; above 0.
    fill : int
        Value outside the slide, which is ``grid_size(height_px, width_px, scale)`` large.

    Returns
    -------
    ndarray
        (c, height, width), freshly made, the image's dtype. Integers are rounded to nearest, halves to even. The
        value of a pixel does not depend on the window. Beside the result, about 50 MB of stored pixels are held at a
        time, and what the reader keeps.

    Raises
    ------
    SlideError
        ``corrupt_data``: part of the image cannot be decoded.
    ValueError
        ``height``, ``width`` or ``scale`` is not above 0.
    """
    if height < 1 or width < 1 or not 0 < scale < math.inf:
        raise ValueError(f"a window of {height} x {width} px at scale {scale}")
    rows, columns = grid_size(image.height_px, image.width_px, scale)
    y0, y1 = max(0, y_px), min(rows, y_px + height)
    x0, x1 = max(0, x_px), min(columns, x_px + width)
    if y0 >= y1 or x0 >= x1:
        return np.full((image.n_channels, height, width), fill, image.dtype)
    inside = _inside(image, y0, y1, x0, x1, scale)
    if inside.shape[1:] == (height, width):
        return inside
    out = np.full((image.n_channels, height, width), fill, image.dtype)
    out[:, y0 - y_px : y1 - y_px, x0 - x_px : x1 - x_px] = inside
    return out


def _inside(image: SlideImage, y0: int, y1: int, x0: int, x1: int, scale: float) -> NDArray[Any]:
    """Read a window that lies wholly on the slide."""
    index = choose_level(image, scale)
    level = image.levels[index]
    step = scale / level.downsample
    if abs(step - 1) < _SAME and y1 <= level.height_px and x1 <= level.width_px:
        return image.read(index, y0, x0, y1 - y0, x1 - x0)
    exact = np.issubdtype(image.dtype, np.integer)
    down = _taps(y0, y1, step, level.height_px, exact)
    across = _taps(x0, x1, step, level.width_px, exact)
    out = np.empty((image.n_channels, y1 - y0, x1 - x0), image.dtype)
    for rows, columns in _blocks(image, down, across):
        block_down, block_across = down.part(rows), across.part(columns)
        stored = image.read(index, block_down.first, block_across.first, block_down.span, block_across.span)
        out[:, rows, columns] = _resample(stored, block_down, block_across, exact)
    return out


@dataclass(frozen=True)
class _Taps:
    """Which stored pixels make each grid pixel along one axis, and by how much; (n, k), padded with weight 0."""

    source: NDArray[np.intp]
    weight: NDArray[np.float64]

    @property
    def first(self) -> int:
        return int(self.source[0].min())

    @property
    def span(self) -> int:
        return int(self.source[-1].max()) + 1 - self.first

    def part(self, place: slice) -> _Taps:
        return _Taps(self.source[place], self.weight[place])


def _taps(start: int, stop: int, step: float, size: int, exact: bool) -> _Taps:
    """Weights of grid pixels ``start`` to ``stop`` over a level's ``size`` pixels, ``step`` of them to a grid pixel."""
    grid = np.arange(start, stop, dtype=np.float64)
    if step < 1 - _SAME:
        centre = (grid + 0.5) * step - 0.5
        low = np.floor(centre)
        above = centre - low
        source = np.stack([low, low + 1], 1).astype(np.intp)
        weight = np.stack([1 - above, above], 1)
    else:
        begin, end = np.minimum(grid * step, size), np.minimum((grid + 1) * step, size)
        low = np.floor(begin)
        reach = max(1, int((np.ceil(end) - low).max()))
        places = low[:, None] + np.arange(reach)
        weight = np.clip(np.minimum(end[:, None], places + 1) - np.maximum(begin[:, None], places), 0, None)
        # Levels made by halving may be a pixel short of the slide: the last one then stands for what is missing.
        weight[weight.sum(1) <= _SAME, 0] = 1
        source = places.astype(np.intp)
    weight /= weight.sum(1, keepdims=True)
    if exact:
        # Differences of rounded sums: whole numbers that add up to the unit exactly.
        sums = np.rint(np.cumsum(weight, 1) * _UNIT)
        sums[:, -1] = _UNIT
        weight = np.diff(sums, axis=1, prepend=0.0)
    # Padding points at a pixel that counts anyway, so that a NaN elsewhere does not come in by 0 * NaN.
    used = weight > 0
    last = used.shape[1] - 1 - np.argmax(used[:, ::-1], axis=1)
    least = np.argmax(used, axis=1)
    rows = np.arange(len(source))
    source = np.clip(source, source[rows, least][:, None], source[rows, last][:, None])
    return _Taps(np.clip(source, 0, size - 1), weight)


def _blocks(image: SlideImage, down: _Taps, across: _Taps) -> list[tuple[slice, slice]]:
    """Cut a window into bands, and those into blocks if need be: the stored pixels of one stay within bounds."""
    n_rows, n_columns = len(down.source), len(across.source)
    budget_px = _BLOCK_BYTES / (image.n_channels * image.dtype.itemsize)
    stored_rows = min(down.span, _BAND_PX)
    columns = max(1, min(n_columns, int(n_columns * budget_px / (stored_rows * across.span))))
    rows = max(1, min(n_rows, int(n_rows * budget_px / (down.span * across.span * columns / n_columns))))
    return [
        (slice(row, min(row + rows, n_rows)), slice(column, min(column + columns, n_columns)))
        for row in range(0, n_rows, rows)
        for column in range(0, n_columns, columns)
    ]


def _resample(stored: NDArray[Any], down: _Taps, across: _Taps, exact: bool) -> NDArray[Any]:
    """Weigh rows, then columns. Sums go tap by tap in a fixed order, so that floats too do not depend on the window."""
    n_rows, n_columns = len(down.source), len(across.source)
    out = np.empty((len(stored), n_rows, n_columns), stored.dtype)
    # 255 * 2^16 fits the 24 bits of a float32.
    kind = np.float32 if stored.dtype == np.uint8 else np.float64
    step = max(1, _CACHED_SUMS // stored.shape[2])  # a few rows at a time: the sums stay in the processor's cache
    for row in range(0, n_rows, step):
        rows = slice(row, min(row + step, n_rows))
        some = down.part(rows)
        for plane, done in zip(stored, out, strict=True):
            sums = _weigh_rows(plane[some.first - down.first :], some, kind)
            sums = _weigh_rows(np.ascontiguousarray(sums.T), across, np.float64)
            if exact:
                sums *= 1 / (_UNIT * _UNIT)
                np.rint(sums, out=sums)
            done[rows] = sums.T
    return out


def _weigh_rows(plane: NDArray[Any], taps: _Taps, kind: type[np.floating[Any]]) -> NDArray[Any]:
    places = taps.source - taps.first
    weights = taps.weight.astype(kind)
    total = plane[places[:, 0]] * weights[:, :1]
    for tap in range(1, places.shape[1]):
        total += plane[places[:, tap]] * weights[:, tap : tap + 1]
    return total
