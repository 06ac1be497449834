"""Clusters of one instance's pixels, in compiled code; every loop runs in one fixed order.

Coordinates are counted from the instance's box, so that nothing depends on where on a slide it lies.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["best_parts", "pointed_at", "whole_parts"]

_ROUNDS = 30
#: A further cluster must make the silhouette better by this much.
_MARGIN = 0.02


@numba.njit(nogil=True, cache=True)
def pointed_at(mask: Any, hv: Any, lag: int) -> tuple[Any, Any, Any]:
    """Where the HV maps of an instance's pixels say that their nucleus has its centre.

    HV runs from -127 to 127 across a nucleus, so its slope tells how large the nucleus is, merged with others or not.
    Between nuclei it falls; the slope is the median of the rising steps.

    Parameters
    ----------
    mask : (h, w) bool array
        The instance.
    hv : (2, h, w) int8 array
        x, then y.
    lag : int
        Pixels apart that values are compared.

    Returns
    -------
    points : (n, 2) float64 array
        x, y of each pixel's centre; pixels in raster order.
    x_slope, y_slope : float
        Of HV, codes a pixel; 0 where nothing rises, and then no points are meant.
    """
    height, width = mask.shape
    slopes = np.zeros(2)
    for axis in range(2):
        counts, total = np.zeros(256, np.int64), 0
        y_lag, x_lag = (0, lag) if axis == 0 else (lag, 0)
        for y in range(height - y_lag):
            for x in range(width - x_lag):
                if mask[y, x] and mask[y + y_lag, x + x_lag]:
                    rise = np.int64(hv[axis, y + y_lag, x + x_lag]) - np.int64(hv[axis, y, x])
                    if rise > 0:
                        counts[rise] += 1
                        total += 1
        seen, middle = 0, 0
        while total and 2 * seen < total:
            middle += 1
            seen += counts[middle]
        slopes[axis] = middle / lag
    points = np.zeros((mask.sum(), 2))
    at = 0
    for y in range(height):
        for x in range(width):
            if mask[y, x]:
                points[at, 0], points[at, 1] = x, y
                if slopes[0] > 0 and slopes[1] > 0:
                    points[at, 0] -= hv[0, y, x] / slopes[0]
                    points[at, 1] -= hv[1, y, x] / slopes[1]
                at += 1
    return points, slopes[0], slopes[1]


@numba.njit(nogil=True, cache=True)
def best_parts(points: Any, mask: Any, most: int, least: float, apart: float, least_px: int) -> Any:
    """Divide an instance into as many parts as its points fall into clusters.

    For k = 2 … ``most``, k-means from points far from each other. A k counts by the silhouette of its worst cluster:
    the mean of 1 - a / b, of the distances a to a pixel's own centre and b to the nearest other one. It is taken if
    this reaches ``least`` and is better than a smaller k's by a margin, its centres lie ``apart``, and every part, made
    whole, has ``least_px`` pixels.

    Parameters
    ----------
    points : (n, d) float64 array
        A point a pixel, in raster order; the first two columns are pixels.
    mask : (h, w) bool array
        The instance, n pixels.
    most : int
        Parts at most, at least 2.
    least : float
        Silhouette of the worst cluster.
    apart : float
        Distance of two centres, pixels, all columns counted.
    least_px : int
        Pixels of a part.

    Returns
    -------
    (h, w) uint8 array
        1 … k in the instance, all 1 where it is not divided.
    """
    kept = mask.astype(np.uint8)
    before = least
    for k in range(2, most + 1):
        centres = _starts(points, k)
        which = _means(points, centres)
        if _nearest_pair(centres) < apart:
            continue
        quality = _silhouette(points, centres, which)
        if quality < before:
            continue
        parts = whole_parts(mask, which, k)
        sizes = np.zeros(k + 1, np.int64)
        for value in parts.ravel():
            sizes[value] += 1
        if sizes[1:].min() < least_px:
            continue
        kept = parts
        before = quality + _MARGIN
    return kept


@numba.njit(nogil=True, cache=True)
def _distance(points: Any, at: int, centres: Any, of: int) -> Any:
    total = 0.0
    for column in range(points.shape[1]):
        total += (points[at, column] - centres[of, column]) ** 2
    return np.sqrt(total)


@numba.njit(nogil=True, cache=True)
def _starts(points: Any, k: int) -> Any:
    """First centres: a point far from the mean, then ever one far from the centres that there are.

    Not the very farthest, which is an outlier, but the one beyond which a twentieth of the points lie.
    """
    count, depth = points.shape
    centres = np.zeros((k, depth))
    for column in range(depth):
        for at in range(count):
            centres[0, column] += points[at, column] / count
    far = np.full(count, np.inf)
    for at in range(count):
        far[at] = _distance(points, at, centres, 0)
    for number in range(k):
        wanted = _ranked(far.copy(), count - 1 - count // 20)
        chosen = 0
        while far[chosen] != wanted:  # the first in raster order that is as far
            chosen += 1
        for column in range(depth):
            centres[number, column] = points[chosen, column]
        for at in range(count):
            away = _distance(points, at, centres, number)
            far[at] = away if number == 0 else min(far[at], away)
    return centres


@numba.njit(nogil=True, cache=True)
def _ranked(values: Any, rank: int) -> Any:
    """The value with so many smaller or equal ones before it (quickselect, which compiles faster than a sort)."""
    low, high = 0, values.size - 1
    while low < high:
        pivot = values[(low + high) // 2]
        left, right = low, high
        while left <= right:
            while values[left] < pivot:
                left += 1
            while values[right] > pivot:
                right -= 1
            if left <= right:
                values[left], values[right] = values[right], values[left]
                left += 1
                right -= 1
        if rank <= right:
            high = right
        elif rank >= left:
            low = left
        else:
            break
    return values[rank]


@numba.njit(nogil=True, cache=True)
def _means(points: Any, centres: Any) -> Any:
    """Lloyd's k-means; moves the centres, returns each point's. A cluster that loses all points stays where it was."""
    count, depth = points.shape
    k = len(centres)
    which = np.full(count, -1, np.int64)
    for _ in range(_ROUNDS):
        changed = False
        sums, sizes = np.zeros((k, depth)), np.zeros(k, np.int64)
        for at in range(count):
            best, nearest = 0, np.inf
            for number in range(k):
                away = _distance(points, at, centres, number)
                if away < nearest:
                    best, nearest = number, away
            changed |= which[at] != best
            which[at] = best
            sizes[best] += 1
            for column in range(depth):
                sums[best, column] += points[at, column]
        for number in range(k):
            for column in range(depth):
                if sizes[number]:
                    centres[number, column] = sums[number, column] / sizes[number]
        if not changed:
            break
    return which


@numba.njit(nogil=True, cache=True)
def _nearest_pair(centres: Any) -> float:
    nearest = np.inf
    for one in range(len(centres)):
        for other in range(one):
            nearest = min(nearest, _distance(centres, one, centres, other))
    return nearest


@numba.njit(nogil=True, cache=True)
def _silhouette(points: Any, centres: Any, which: Any) -> float:
    """Of the worst cluster: the mean of 1 - own / nearest other, by distance to centres."""
    k = len(centres)
    total, sizes = np.zeros(k), np.zeros(k, np.int64)
    for at in range(len(points)):
        own, other = _distance(points, at, centres, which[at]), np.inf
        for number in range(k):
            if number != which[at]:
                other = min(other, _distance(points, at, centres, number))
        sizes[which[at]] += 1
        total[which[at]] += 1 - own / other if other > 0 else 0.0
    least = 1.0
    for number in range(k):
        least = min(least, total[number] / sizes[number] if sizes[number] else 0.0)
    return least


@numba.njit(nogil=True, cache=True)
def whole_parts(mask: Any, which: Any, k: int) -> Any:
    """Make each part one piece: its largest 4-connected piece keeps it, and from these pieces the rest is filled.

    Parameters
    ----------
    mask : (h, w) bool array
        The instance.
    which : (n,) int64 array
        Part of each of its pixels, 0 … k - 1.
    k : int
        Parts.

    Returns
    -------
    (h, w) uint8 array
        1 … k in every pixel of the instance. Where the instance itself lies in several pieces, those that hold no part
        keep what ``which`` says.
    """
    height, width = mask.shape
    wanted = np.zeros((height, width), np.uint8)
    at = 0
    for y in range(height):
        for x in range(width):
            if mask[y, x]:
                wanted[y, x] = which[at] + 1
                at += 1
    queue = np.empty((at, 2), np.int64)
    piece = np.zeros((height, width), np.int64)
    largest, chosen = np.zeros(k + 1, np.int64), np.zeros(k + 1, np.int64)
    count = 0
    for y in range(height):
        for x in range(width):
            if wanted[y, x] == 0 or piece[y, x] != 0:
                continue
            count += 1
            piece[y, x] = count
            queue[0, 0], queue[0, 1] = y, x
            head, size = 0, 1
            while head < size:
                for side in range(4):
                    ny = queue[head, 0] + (side == 3) - (side == 0)
                    nx = queue[head, 1] + (side == 2) - (side == 1)
                    inside = 0 <= ny < height and 0 <= nx < width
                    if inside and piece[ny, nx] == 0 and wanted[ny, nx] == wanted[y, x]:
                        piece[ny, nx] = count
                        queue[size, 0], queue[size, 1] = ny, nx
                        size += 1
                head += 1
            if size > largest[wanted[y, x]]:
                largest[wanted[y, x]], chosen[wanted[y, x]] = size, count
    parts = np.zeros((height, width), np.uint8)
    size = 0
    for y in range(height):
        for x in range(width):
            if wanted[y, x] and piece[y, x] == chosen[wanted[y, x]]:
                parts[y, x] = wanted[y, x]
                queue[size, 0], queue[size, 1] = y, x
                size += 1
    head = 0
    while head < size:
        y, x = queue[head, 0], queue[head, 1]
        for side in range(4):
            ny, nx = y + (side == 3) - (side == 0), x + (side == 2) - (side == 1)
            if 0 <= ny < height and 0 <= nx < width and mask[ny, nx] and parts[ny, nx] == 0:
                parts[ny, nx] = parts[y, x]
                queue[size, 0], queue[size, 1] = ny, nx
                size += 1
        head += 1
    for y in range(height):
        for x in range(width):
            if mask[y, x] and parts[y, x] == 0:
                parts[y, x] = wanted[y, x]
    return parts
