"""Polygons of instances from their pixel sides, made as WKB for the cell table without an object a nucleus.

A polygon runs through the middles of the pixel sides that part an instance from everything else (marching squares at
half height), so it neither loses half a pixel all round, as a contour through pixel centres does, nor shows every
stair; its area is that of the pixels less half a pixel a ring. Instances that touch share their outline and never
overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import shapely
from numpy.typing import NDArray

from slideloom.instances.contours import Sides, position

__all__ = ["Outlines", "outlines"]

#: Middle of each side, from the pixel's upper left corner, in half pixels.
_X_MIDDLE, _Y_MIDDLE = np.array([1, 2, 1, 0]), np.array([0, 1, 2, 1])
#: WKB: byte order and type of a polygon, and how many rings; then for each ring how many points.
_HEAD, _COUNT, _POINT = 9, 4, 16
_POLYGON = 3


@dataclass(frozen=True)
class Outlines:
    """Polygons as little-endian WKB, one after the other.

    Attributes
    ----------
    label : (n,) int64 array
        The instances, rising.
    start : (n + 1,) int64 array
        Where each one's bytes begin, and where the last one's end.
    wkb : (bytes,) uint8 array
        (x, y), shell counter-clockwise as numbers (clockwise on the screen), with holes; pixel i covers [i, i + 1]
        times the scale. A multipolygon for an instance in several pieces.
    """

    label: NDArray[np.int64]
    start: NDArray[np.int64]
    wkb: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.label)

    def part(self, first: int, stop: int) -> Outlines:
        """The polygons of places ``first`` to ``stop`` - 1; nothing is copied."""
        start = self.start[first : stop + 1]
        return Outlines(self.label[first:stop], start - start[0], self.wkb[start[0] : start[-1]])

    @classmethod
    def join(cls, pieces: Sequence[Outlines]) -> Outlines:
        """Gather pieces that have no label in common."""
        label = np.concatenate([np.zeros(0, np.int64), *(piece.label for piece in pieces)])
        size = np.concatenate([np.zeros(0, np.int64), *(np.diff(piece.start) for piece in pieces)])
        wkb = np.concatenate([np.zeros(0, np.uint8), *(piece.wkb for piece in pieces)])
        order = np.argsort(label)
        begin = np.cumsum(size) - size
        start = _starts(size[order])
        return cls(label[order], start, _pick(wkb, begin[order], start))

    def kinds(self) -> set[int]:
        """WKB types that occur: 3 polygon, 6 multipolygon."""
        return set(np.unique(self.wkb[self.start[:-1] + 1]).tolist())

    def polygons(self) -> NDArray[Any]:
        """As shapely geometries, (n,) object array."""
        pieces = zip(self.start[:-1].tolist(), self.start[1:].tolist(), strict=True)
        made = np.empty(len(self), object)
        made[:] = shapely.from_wkb([self.wkb[first:stop].tobytes() for first, stop in pieces])
        return made


def outlines(sides: Sides, slide_width_px: int, scale: float = 1.0) -> Outlines:
    """Chain sides to polygons.

    Parameters
    ----------
    sides : Sides
        All sides of some instances.
    slide_width_px : int
        As given to :func:`~slideloom.instances.contours.find_sides`.
    scale : float
        Factor of the coordinates: level-0 pixels per grid pixel.

    Returns
    -------
    Outlines
        Rings begin at the corner after their first side in raster order; holes follow the shell in that order.
    """
    points, start, first, area = _rings(sides.key, sides.follows, slide_width_px)
    label = sides.label[first]
    order = np.argsort(label, kind="stable")
    names, at, rings = np.unique(label[order], return_index=True, return_counts=True)
    shells = np.add.reduceat((area[order] > 0).astype(np.int64), at) if len(names) else at
    ends = np.append(at, len(order))
    points_of = np.diff(start)
    size = _HEAD + rings * (_COUNT + _POINT)
    if len(names):
        size += _POINT * np.add.reduceat(points_of[order], at)
    several = {
        int(index): _several(points, start, order[ends[index] : ends[index + 1]], area, scale)
        for index in np.flatnonzero(shells != 1)
    }
    for index, raw in several.items():
        size[index] = len(raw)
    begin = _starts(size)
    wkb = np.empty(begin[-1], np.uint8)
    _write_polygons(points, start, order, ends, begin, shells, scale / 2, wkb)
    for index, raw in several.items():
        wkb[begin[index] : begin[index + 1]] = np.frombuffer(raw, np.uint8)
    return Outlines(names, begin, wkb)


def _starts(size: NDArray[np.int64]) -> NDArray[np.int64]:
    start = np.zeros(len(size) + 1, np.int64)
    np.cumsum(size, out=start[1:])
    return start


def _several(
    points: NDArray[np.int64], start: NDArray[np.int64], rings: NDArray[np.intp], area: NDArray[np.int64], scale: float
) -> bytes:
    """WKB of an instance in several pieces: a polygon each, in raster order of their first sides."""
    lines = {ring: points[start[ring] : start[ring + 1]] * (scale / 2) for ring in rings.tolist()}
    shells, holes = rings[area[rings] > 0], rings[area[rings] <= 0]
    x, y = points[start[holes]].T * (scale / 2)
    # A piece may lie in the hole of another: a hole is of the smallest shell around it.
    owner = np.empty(len(holes), np.intp)
    for ring in shells[np.argsort(-area[shells], kind="stable")].tolist():
        shell = shapely.Polygon(lines[ring])
        shapely.prepare(shell)
        owner[shapely.contains_xy(shell, x, y)] = ring
    pieces = [
        shapely.Polygon(lines[ring], [lines[hole] for hole in holes[owner == ring].tolist()])
        for ring in shells.tolist()
    ]
    raw: bytes = shapely.to_wkb(shapely.MultiPolygon(pieces), byte_order=1)
    return raw


@numba.njit(nogil=True, cache=True)
def _rings(key: Any, follows: Any, slide_width_px: int) -> tuple[Any, Any, Any, Any]:
    """Walk round every instance and every hole.

    Returns the corners in half pixels, (x, y); where each ring's begin; its first side in raster order; and twice its
    area, in quarter pixels, negative for a hole.
    """
    seen = np.zeros(key.size, np.bool_)
    points = np.empty((key.size, 2), np.int64)
    # No ring has fewer than four sides.
    most = key.size // 4
    start = np.zeros(most + 1, np.int64)
    first = np.empty(most, np.int64)
    area = np.zeros(most, np.int64)
    n_rings, n_points = 0, 0
    for head in range(key.size):
        if seen[head]:
            continue
        first[n_rings] = head
        at, x, y = head, np.int64(0), np.int64(0)
        head_x, head_y = np.int64(0), np.int64(0)
        x_step, y_step = np.int64(0), np.int64(0)
        head_x_step, head_y_step = np.int64(0), np.int64(0)
        sides = 0
        while True:
            pixel, side = key[at] // 4, key[at] % 4
            next_x = 2 * (pixel % slide_width_px) + _X_MIDDLE[side]
            next_y = 2 * (pixel // slide_width_px) + _Y_MIDDLE[side]
            if sides == 0:
                head_x, head_y = next_x, next_y
            else:
                area[n_rings] += x * next_y - next_x * y
                # A point is a corner if the way to it and the way from it differ.
                if sides > 1 and (next_x - x != x_step or next_y - y != y_step):
                    points[n_points, 0], points[n_points, 1] = x, y
                    n_points += 1
                if sides == 1:
                    head_x_step, head_y_step = next_x - x, next_y - y
                x_step, y_step = next_x - x, next_y - y
            x, y = next_x, next_y
            if seen[at]:
                break
            seen[at] = True
            sides += 1
            at = position(key, follows[at])
            if at < 0:
                raise ValueError("a side that follows is missing: an instance without all of its sides")
        # The walk has come back to its head, which is the last point if it is a corner.
        if x_step != head_x_step or y_step != head_y_step:
            points[n_points, 0], points[n_points, 1] = head_x, head_y
            n_points += 1
        n_rings += 1
        start[n_rings] = n_points
    return points[:n_points], start[: n_rings + 1], first[:n_rings], area[:n_rings]


@numba.njit(nogil=True, cache=True)
def _write_polygons(
    points: Any, start: Any, order: Any, ends: Any, begin: Any, shells: Any, scale: float, wkb: Any
) -> None:
    """Write the polygons of instances in one piece; the shell's first side comes before those of the holes."""
    pair = np.empty(2, np.float64)
    pair_bytes = pair.view(np.uint8)
    for index in range(shells.size):
        if shells[index] != 1:
            continue
        at = begin[index]
        wkb[at] = 1
        _write_count(wkb, at + 1, _POLYGON)
        _write_count(wkb, at + 5, ends[index + 1] - ends[index])
        at += _HEAD
        for place in range(ends[index], ends[index + 1]):
            ring = order[place]
            first, count = start[ring], start[ring + 1] - start[ring]
            _write_count(wkb, at, count + 1)
            at += _COUNT
            for point in range(count + 1):
                corner = first + point % count
                pair[0], pair[1] = points[corner, 0] * scale, points[corner, 1] * scale
                for byte in range(_POINT):
                    wkb[at + byte] = pair_bytes[byte]
                at += _POINT


@numba.njit(nogil=True, cache=True)
def _write_count(wkb: Any, at: int, value: int) -> None:
    for byte in range(4):
        wkb[at + byte] = (value >> (8 * byte)) & 255


@numba.njit(nogil=True, cache=True)
def _pick(wkb: Any, begin: Any, start: Any) -> Any:
    """Bytes from ``begin`` on, in a new order that ``start`` says."""
    picked = np.empty(start[-1], np.uint8)
    for index in range(begin.size):
        for byte in range(start[index + 1] - start[index]):
            picked[start[index] + byte] = wkb[begin[index] + byte]
    return picked
