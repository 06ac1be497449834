"""Outlines of instances: vectorised polygons for the cell table, and OpenCV's contour for parity.

A polygon runs through the middles of the pixel sides that part an instance from everything else (marching squares at
half height), so it neither loses half a pixel all round, as a contour through pixel centres does, nor shows every
stair; its area is that of the pixels less half a pixel a ring. Instances that touch share their outline and never
overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

__all__ = ["Sides", "find_sides", "outlines", "reference_contour"]

#: The four sides of a pixel, clockwise on the screen: top, right, bottom, left; (y, x) of the neighbour beyond, and of
#: the neighbour ahead, where the walk along the side (instance on the right hand) leads.
_BEYOND = ((-1, 0), (0, 1), (1, 0), (0, -1))
_AHEAD = ((0, 1), (1, 0), (0, -1), (-1, 0))
#: Middle of each side, (x, y), from the pixel's upper left corner, in half pixels.
_MIDDLE = np.array([[1, 0], [2, 1], [1, 2], [0, 1]], np.int64)


@dataclass(frozen=True)
class Sides:
    """Pixel sides that part instances from everything else.

    Attributes
    ----------
    key : (n,) int64 array
        4 · (y · width of the slide + x) + side, rising.
    follows : (n,) int64 array
        Key of the side that follows on the walk round the instance, instance on the right hand.
    label : (n,) int64 array
        Instance.
    """

    key: NDArray[np.int64]
    follows: NDArray[np.int64]
    label: NDArray[np.int64]

    def of(self, chosen: NDArray[np.bool_]) -> Sides:
        """Some of the sides."""
        return Sides(self.key[chosen], self.follows[chosen], self.label[chosen])

    @classmethod
    def join(cls, pieces: list[Sides]) -> Sides:
        """Gather the sides of several windows."""
        key, follows, label = (
            np.concatenate([getattr(piece, name) for piece in pieces] or [np.zeros(0, np.int64)])
            for name in ("key", "follows", "label")
        )
        order = np.argsort(key)
        return cls(key[order], follows[order], label[order])


def find_sides(labels: NDArray[np.integer[Any]], y_px: int, x_px: int, slide_width_px: int) -> Sides:
    """Find the outer sides of every pixel of a window.

    Parameters
    ----------
    labels : (H + 2, W + 2) integer array
        Instance ids of a window with one pixel of context all round; 0 is background, and beyond the slide.
    y_px, x_px : int
        Place of the window (without its context) on the slide.
    slide_width_px : int
        Width of the slide.

    Returns
    -------
    Sides
        Of the window's own pixels. At a corner where an instance meets itself diagonally, the walk stays with its
        pixel: instances are 4-connected.
    """
    core = labels[1:-1, 1:-1]
    pieces = []
    for side in range(4):
        beyond = _shifted(labels, _BEYOND[side])
        y, x = np.nonzero((core != beyond) & (core != 0))
        own = core[y, x]
        ahead_y, ahead_x = _AHEAD[side]
        back_y, back_x = _BEYOND[side]
        straight = labels[y + 1 + ahead_y, x + 1 + ahead_x] == own
        turn = straight & (labels[y + 1 + ahead_y + back_y, x + 1 + ahead_x + back_x] == own)
        y_at, x_at = y.astype(np.int64) + y_px, x.astype(np.int64) + x_px
        next_y = y_at + ahead_y * straight + back_y * turn
        next_x = x_at + ahead_x * straight + back_x * turn
        next_side = np.where(turn, (side + 3) % 4, np.where(straight, side, (side + 1) % 4))
        pieces.append(
            Sides(
                4 * (y_at * slide_width_px + x_at) + side,
                4 * (next_y * slide_width_px + next_x) + next_side,
                own.astype(np.int64),
            )
        )
    return Sides.join(pieces)


def _shifted(labels: NDArray[Any], offset: tuple[int, int]) -> NDArray[Any]:
    height, width = labels.shape
    y, x = offset
    return labels[1 + y : height - 1 + y, 1 + x : width - 1 + x]


def outlines(sides: Sides, slide_width_px: int, scale: float = 1.0) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Chain sides to polygons.

    Parameters
    ----------
    sides : Sides
        All sides of some instances.
    slide_width_px : int
        As given to :func:`find_sides`.
    scale : float
        Factor of the coordinates: level-0 pixels per grid pixel.

    Returns
    -------
    labels : (n,) int64 array
        The instances, rising.
    polygons : (n,) object array
        A shapely polygon each, (x, y), shell counter-clockwise as numbers (clockwise on the screen), with holes; pixel
        i covers [i, i + 1] times ``scale``. A multipolygon for an instance in several pieces.
    """
    if not sides.key.size:
        return np.zeros(0, np.int64), np.zeros(0, object)
    follows = np.searchsorted(sides.key, sides.follows)
    ring, position = _rings(follows)
    order = np.lexsort((position, ring))
    ring, label = ring[order], sides.label[order]
    pixel, side = np.divmod(sides.key[order], 4)
    y, x = np.divmod(pixel, slide_width_px)
    points = 2 * np.stack([x, y], axis=1) + _MIDDLE[side]
    starts = np.flatnonzero(np.diff(ring, prepend=-1))
    doubled_area = _doubled_areas(points, starts)
    shell = doubled_area > 0
    corner = _corners(points, starts)
    number = np.cumsum(np.diff(ring, prepend=ring[0]) != 0)[corner]
    rings = shapely.linearrings(points[corner] * (scale / 2), indices=number)
    return _assemble(label[starts], rings, shell)


def _rings(follows: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Ring (its first side) and position on it of every side, by pointer doubling: log2 of the longest ring steps."""
    count = len(follows)
    head = np.arange(count)
    jump = follows
    while not np.array_equal(head, head[follows]):
        head = np.minimum(head, head[jump])
        jump = jump[jump]
    first = head == np.arange(count)
    # The walk from each side to its ring's first; the first stands still.
    to_head = np.where(first, 0, 1)
    jump = np.where(first, np.arange(count), follows)
    while not first[jump].all():
        to_head = to_head + to_head[jump]
        jump = jump[jump]
    length = np.bincount(head, minlength=count)
    return head, np.where(first, 0, length[head] - to_head)


def _doubled_areas(points: NDArray[np.int64], starts: NDArray[np.intp]) -> NDArray[np.int64]:
    """Twice the signed area of each ring, in quarter pixels."""
    after = _next_point(points, starts)
    cross = points[:, 0] * after[:, 1] - after[:, 0] * points[:, 1]
    total: NDArray[np.int64] = np.add.reduceat(cross, starts)
    return total


def _next_point(points: NDArray[np.int64], starts: NDArray[np.intp]) -> NDArray[np.int64]:
    after = np.roll(points, -1, axis=0)
    ends = np.append(starts[1:], len(points)) - 1
    after[ends] = points[starts]
    return after


def _corners(points: NDArray[np.int64], starts: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Points where a ring changes its direction; a ring never has fewer than three."""
    step = _next_point(points, starts) - points
    before = np.roll(step, 1, axis=0)
    ends = np.append(starts[1:], len(points)) - 1
    before[starts] = step[ends]
    changes: NDArray[np.bool_] = (step[:, 0] * before[:, 1] - step[:, 1] * before[:, 0]) != 0
    return changes


def _assemble(
    labels: NDArray[np.int64], rings: NDArray[Any], shell: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    found, shells = np.unique(labels[shell], return_counts=True)
    polygons = np.empty(len(found), object)
    single = found[shells == 1]
    if single.size:
        # The first ring of each index becomes the shell.
        order = np.lexsort((~shell, labels))
        order = order[np.isin(labels[order], single)]
        polygons[shells == 1] = shapely.polygons(rings[order], indices=np.searchsorted(single, labels[order]))
    for index in np.flatnonzero(shells > 1):
        mine = labels == found[index]
        pieces = shapely.union_all(shapely.polygons(rings[mine & shell]))
        holes = shapely.union_all(shapely.polygons(rings[mine & ~shell]))
        polygons[index] = shapely.difference(pieces, holes)
    return found, polygons


def reference_contour(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Contour of one instance through its border pixels, as HoVer-Net and CellViT take it.

    Parameters
    ----------
    mask : (h, w) bool array
        The instance inside its bounding box.

    Returns
    -------
    (n, 2) int32 array
        x, y in the box; the first contour that OpenCV finds, straight runs shortened to their ends.
    """
    found = cv2.findContours(mask.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    return found[0].reshape(-1, 2).astype(np.int32) if found else np.zeros((0, 2), np.int32)
