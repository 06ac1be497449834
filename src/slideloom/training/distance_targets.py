"""How deep each pixel lies in its nucleus: the target of distance heads and of InstanSeg's seed map.

The exact Euclidean distance from a pixel's centre to the centre of the nearest pixel that is not of its instance, be
that background or a neighbour, divided by the instance's largest. A patch's border is no outline: beyond it the
nucleus may go on. All instances of a patch are worked in one pass over its rows and one over its columns (Felzenszwalb
& Huttenlocher, "Distance transforms of sampled functions", 2012), in whole numbers until the root, so that time is
linear in the pixels, however many nuclei there are.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["instance_distance"]


def instance_distance(instances: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Distance of every pixel to its instance's outline, divided by the instance's largest in the patch.

    Parameters
    ----------
    instances : (n, h, w) integer array
        Instance ids of n patches, in any order; 0 and less is background. Pieces with one id are one instance.

    Returns
    -------
    (n, h, w) float32 array
        Above 0 to 1 inside instances, 1 at the deepest pixel; 0 outside. 1 everywhere in a patch that one instance
        fills: no outline is in sight.

    Raises
    ------
    ValueError
        Not three axes.

    Examples
    --------
    >>> instance_distance(np.array([[[0, 3, 3, 3, 0, 7, 7, 7]]]))[0, 0].tolist()
    [0.0, 0.5, 1.0, 0.5, 0.0, 0.3333333432674408, 0.6666666865348816, 1.0]
    """
    if instances.ndim != 3:
        raise ValueError(f"instances of n patches have 3 axes, got shape {instances.shape}")
    ids = np.ascontiguousarray(instances)
    out = np.zeros(ids.shape, np.float32)
    if ids.size:
        _fill(ids, out)
    return out


@numba.njit(nogil=True, cache=True)
def _fill(ids: Any, out: Any) -> None:  # pragma: no cover - compiled
    count, height, width = ids.shape
    squares = np.empty((height, width), np.int64)
    # Parabolas of a run's lower envelope: where each stands, its height there, and where it begins to be the lowest.
    places = np.empty(height + 2, np.int64)
    heights = np.empty(height + 2, np.int64)
    begins = np.empty(height + 2, np.float64)
    for patch in range(count):
        _along_rows(ids[patch], squares)
        for x in range(width):
            _along_column(ids[patch, :, x], squares[:, x], places, heights, begins)
        _divide(ids[patch], squares, out[patch])


@numba.njit(nogil=True, cache=True)
def _along_rows(ids: Any, squares: Any) -> None:  # pragma: no cover - compiled
    """Square of the distance to the nearest pixel of another value in the row; -1 where there is none."""
    height, width = ids.shape
    for y in range(height):
        begin = 0
        while begin < width:
            end = begin + 1
            while end < width and ids[y, end] == ids[y, begin]:
                end += 1
            for x in range(begin, end):
                left = x - begin + 1 if begin > 0 else width
                right = end - x if end < width else width
                nearest = min(left, right)
                squares[y, x] = nearest * nearest if nearest < width else -1
            begin = end


@numba.njit(nogil=True, cache=True)
def _along_column(ids: Any, squares: Any, places: Any, heights: Any, begins: Any) -> None:  # pragma: no cover
    """From squares along rows to those in the plane, in place, run by run of one id.

    A pixel of another value at a run's end is nearer than anything beyond it, so that no run needs to look further.
    """
    height = ids.size
    begin = 0
    while begin < height:
        end = begin + 1
        while end < height and ids[end] == ids[begin]:
            end += 1
        if ids[begin] > 0:
            n = 0
            first = begin - 1 if begin > 0 else begin
            last = end if end < height else end - 1
            for y in range(first, last + 1):
                at = squares[y] if begin <= y < end else 0
                if at < 0:
                    continue
                since = -np.inf
                while n > 0:
                    other = places[n - 1]
                    since = ((at + y * y) - (heights[n - 1] + other * other)) / (2.0 * (y - other))
                    if since > begins[n - 1]:
                        break
                    n -= 1
                places[n], heights[n], begins[n] = y, at, since if n > 0 else -np.inf
                n += 1
            k = 0
            for y in range(begin, end):
                if n == 0:
                    squares[y] = -1
                    continue
                while k + 1 < n and begins[k + 1] <= y:
                    k += 1
                squares[y] = heights[k] + (y - places[k]) ** 2
        begin = end


@numba.njit(nogil=True, cache=True)
def _divide(ids: Any, squares: Any, out: Any) -> None:  # pragma: no cover - compiled
    """Roots, divided by the largest of each instance."""
    height, width = ids.shape
    begins = np.empty(ids.size, np.int64)  # runs along rows: their first pixel, counted through the patch
    n_runs = 0
    for y in range(height):
        for x in range(width):
            if ids[y, x] > 0 and (x == 0 or ids[y, x] != ids[y, x - 1]):
                begins[n_runs] = y * width + x
                n_runs += 1
    names = np.empty(n_runs, ids.dtype)
    for run in range(n_runs):
        names[run] = ids[begins[run] // width, begins[run] % width]
    known = np.unique(names)
    largest = np.zeros(known.size, np.int64)
    rows = np.searchsorted(known, names)
    for step in range(2):
        for run in range(n_runs):
            y, x = begins[run] // width, begins[run] % width
            name, row = names[run], rows[run]
            while x < width and ids[y, x] == name:
                if step == 0:
                    largest[row] = max(largest[row], squares[y, x])
                elif squares[y, x] < 0:
                    out[y, x] = 1
                else:
                    out[y, x] = np.sqrt(squares[y, x] / largest[row])
                x += 1
