"""Polygons to pixels: which pixel centres lie inside, exactly, compiled.

A pixel belongs to a polygon when its centre lies inside by the even-odd rule over all rings. A centre on the outline
belongs to the polygon to its right; where the outline is level, to the one below. So polygons that share an outline
share no pixel and leave none out, and a polygon along the edges of pixels is exactly these pixels. Of a centre and an
edge, the side is settled in twice the precision of the coordinates wherever rounding could decide.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["paint_polygons"]

#: Bound of the rounding error of a 2 x 2 determinant of differences, (3 + 16 u) u for u = 2**-53: Shewchuk, "Adaptive
#: precision floating-point arithmetic", 1997, section 4.2.
_BOUND = 3.3306690738754716e-16
#: 2**27 + 1 halves a double's digits.
_SPLITTER = 134217729.0


def paint_polygons(
    corners: NDArray[np.float64],
    rings: NDArray[np.int64],
    polygons: NDArray[np.int64],
    order: NDArray[np.int64],
    at_y: NDArray[np.float64],
    at_x: NDArray[np.float64],
    out: NDArray[np.int32],
) -> None:
    """Paint polygons into a label image, later ones over earlier ones.

    Parameters
    ----------
    corners : (v, 2) float64 array
        (x, y) of all corners, ring by ring; whether a ring's last corner repeats its first does not matter.
    rings : (r + 1,) int64 array
        Where each ring's corners begin, and where the last one's end.
    polygons : (n + 1,) int64 array
        Where each polygon's rings begin, and where the last one's end; holes and further parts are rings like others.
    order : (k,) int64 array
        Polygons to paint, in this order; polygon i gets the value i + 1.
    at_y, at_x : (h,), (w,) float64 arrays
        Rising places of the pixel centres.
    out : (h, w) int32 array
        Painted into; C-contiguous or a window of such an array.
    """
    if order.size and at_y.size and at_x.size:
        _paint(corners, rings, polygons, order, at_y, at_x, out)


@numba.njit(nogil=True, cache=True)
def _paint(corners: Any, rings: Any, polygons: Any, order: Any, at_y: Any, at_x: Any, out: Any) -> None:
    turns = np.zeros(1024, np.uint8)
    for polygon in order:
        first, stop = rings[polygons[polygon]], rings[polygons[polygon + 1]]
        if first == stop:
            continue
        low_x = high_x = corners[first, 0]
        low_y = high_y = corners[first, 1]
        for corner in range(first + 1, stop):
            low_x, high_x = min(low_x, corners[corner, 0]), max(high_x, corners[corner, 0])
            low_y, high_y = min(low_y, corners[corner, 1]), max(high_y, corners[corner, 1])
        top, bottom = np.searchsorted(at_y, low_y), np.searchsorted(at_y, high_y)
        left, right = np.searchsorted(at_x, low_x), np.searchsorted(at_x, high_x)
        height, width = bottom - top, right - left
        if height <= 0 or width <= 0:
            continue
        # Place k of a row: whether the outline is crossed between pixels k - 1 and k.
        wide = width + 1
        if turns.size < height * wide:
            turns = np.zeros(max(height * wide, 2 * turns.size), np.uint8)
        turns[: height * wide] = 0
        for ring in range(polygons[polygon], polygons[polygon + 1]):
            _cross(corners, rings[ring], rings[ring + 1], at_y, at_x, top, left, right, turns, wide)
        for row in range(height):
            inside = np.uint8(0)
            for column in range(width):
                inside ^= turns[row * wide + column]
                if inside:
                    out[top + row, left + column] = polygon + 1


@numba.njit(nogil=True, cache=True)
def _cross(
    corners: Any, first: int, stop: int, at_y: Any, at_x: Any, top: int, left: int, right: int, turns: Any, wide: int
) -> None:
    """Mark where a ring crosses the rows of pixel centres."""
    before = stop - 1
    for corner in range(first, stop):
        x0, y0, x1, y1 = corners[before, 0], corners[before, 1], corners[corner, 0], corners[corner, 1]
        before = corner
        if y0 == y1:
            continue
        if y0 > y1:  # an edge that two polygons share gives both the same crossings
            x0, y0, x1, y1 = x1, y1, x0, y0
        for row in range(np.searchsorted(at_y, y0), np.searchsorted(at_y, y1)):
            y = at_y[row]
            guess = x0 + (x1 - x0) * ((y - y0) / (y1 - y0))
            column = min(max(np.searchsorted(at_x, guess), left), right)
            while column > left and _side(x0, y0, x1, y1, at_x[column - 1], y) <= 0:
                column -= 1
            while column < right and _side(x0, y0, x1, y1, at_x[column], y) > 0:
                column += 1
            turns[(row - top) * wide + column - left] ^= 1


@numba.njit(nogil=True, cache=True)
def _side(x0: float, y0: float, x1: float, y1: float, x: float, y: float) -> float:
    """Positive left of an edge that runs to larger y, 0 on it, negative right of it."""
    one, two = (x1 - x0) * (y - y0), (y1 - y0) * (x - x0)
    difference = one - two
    if abs(difference) > _BOUND * (abs(one) + abs(two)):
        return difference
    one_high, one_low = _product(x1, x0, y, y0)
    two_high, two_low = _product(y1, y0, x, x0)
    if one_high != two_high:
        high = one_high - two_high
        # The leading digits that agree cancel exactly, and what remains is of the order of the trailing ones.
        return high + (one_low - two_low)
    return one_low - two_low


@numba.njit(nogil=True, cache=True)
def _product(a: float, b: float, c: float, d: float) -> tuple[float, float]:
    """The product (a - b)(c - d) as an unevaluated sum of two doubles."""
    first, first_tail = _difference(a, b)
    second, second_tail = _difference(c, d)
    high = first * second
    part = _SPLITTER * first
    first_high = part - (part - first)
    first_low = first - first_high
    part = _SPLITTER * second
    second_high = part - (part - second)
    second_low = second - second_high
    low = first_low * second_low - (
        ((high - first_high * second_high) - first_low * second_high) - first_high * second_low
    )
    low += first * second_tail + first_tail * second
    total = high + low
    return total, low - (total - high)


@numba.njit(nogil=True, cache=True)
def _difference(a: float, b: float) -> tuple[float, float]:
    """The difference of two doubles as an unevaluated sum of two."""
    difference = a - b
    virtual = a - difference
    around = difference + virtual
    return difference, (a - around) + (virtual - b)
