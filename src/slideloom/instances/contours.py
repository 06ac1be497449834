"""Where instances end: the pixel sides that part them from everything else, and OpenCV's contour for parity.

Sides are found window by window, each window as if nothing lay beyond it. Where an instance goes on in the next
window, both windows then have a side along the seam that is none; :meth:`Sides.join` takes such pairs out and lets the
walk run on from the one window into the other. So a window is read without context, and an instance may be of any
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["Sides", "find_sides", "position", "reference_contour"]

#: The four sides of a pixel, clockwise on the screen: top, right, bottom, left; steps to the neighbour beyond, and to
#: the neighbour ahead, where the walk along the side (instance on the right hand) leads.
_Y_BEYOND, _X_BEYOND = np.array([-1, 0, 1, 0]), np.array([0, 1, 0, -1])
_Y_AHEAD, _X_AHEAD = np.array([0, 1, 0, -1]), np.array([1, 0, -1, 0])


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
    def gather(cls, pieces: Sequence[Sides]) -> Sides:
        """The sides of several windows, as they are."""
        key, follows, label = (
            np.concatenate([getattr(piece, name) for piece in pieces] or [np.zeros(0, np.int64)])
            for name in ("key", "follows", "label")
        )
        order = np.argsort(key)
        return cls(key[order], follows[order], label[order])

    @classmethod
    def join(cls, pieces: Sequence[Sides], slide_width_px: int) -> Sides:
        """The sides of instances from all windows that they reach, those along the seams taken out."""
        every = cls.gather(pieces)
        kept, follows = _mend(every.key, every.follows, every.label, slide_width_px)
        return cls(every.key, follows, every.label).of(kept)


def find_sides(labels: NDArray[np.integer[Any]], y_px: int, x_px: int, slide_width_px: int) -> Sides:
    """Find the outer sides of every pixel of a window.

    Parameters
    ----------
    labels : (H, W) integer array
        Instance ids below 2**32; 0 is background.
    y_px, x_px : int
        Place of the window on the slide.
    slide_width_px : int
        Width of the slide.

    Returns
    -------
    Sides
        As if background lay beyond the window. At a corner where an instance meets itself diagonally, the walk stays
        with its pixel: instances are 4-connected.
    """
    return Sides(*_find(np.ascontiguousarray(labels, np.uint32), y_px, x_px, slide_width_px))


@numba.njit(nogil=True, cache=True)
def _at(labels: Any, y: int, x: int) -> Any:
    """Label of a pixel; 0 beyond the window."""
    if y < 0 or x < 0 or y >= labels.shape[0] or x >= labels.shape[1]:
        return np.uint32(0)
    return labels[y, x]


@numba.njit(nogil=True, cache=True)
def _find(labels: Any, y_px: int, x_px: int, slide_width_px: int) -> tuple[Any, Any, Any]:
    """Two passes in raster order: how many sides, then the sides."""
    height, width = labels.shape
    count = 0
    for y in range(height):
        for x in range(width):
            own = labels[y, x]
            if own != 0:
                for side in range(4):
                    if _at(labels, y + _Y_BEYOND[side], x + _X_BEYOND[side]) != own:
                        count += 1
    key, follows, label = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.int64)
    count = 0
    for y in range(height):
        for x in range(width):
            own = labels[y, x]
            if own == 0:
                continue
            for side in range(4):
                back_y, back_x = _Y_BEYOND[side], _X_BEYOND[side]
                if _at(labels, y + back_y, x + back_x) == own:
                    continue
                next_y, next_x, next_side = y, x, (side + 1) % 4
                ahead_y, ahead_x = y + _Y_AHEAD[side], x + _X_AHEAD[side]
                if _at(labels, ahead_y, ahead_x) == own:
                    next_y, next_x, next_side = ahead_y, ahead_x, side
                    if _at(labels, ahead_y + back_y, ahead_x + back_x) == own:
                        next_y, next_x, next_side = ahead_y + back_y, ahead_x + back_x, (side + 3) % 4
                key[count] = 4 * ((y + y_px) * slide_width_px + x + x_px) + side
                follows[count] = 4 * ((next_y + y_px) * slide_width_px + next_x + x_px) + next_side
                label[count] = own
                count += 1
    return key, follows, label


@numba.njit(nogil=True, cache=True)
def position(key: Any, wanted: int) -> int:
    """Where a key stands among rising keys; -1 if it does not."""
    low, high = 0, key.size
    while low < high:
        middle = (low + high) // 2
        if key[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < key.size and key[low] == wanted else -1


@numba.njit(nogil=True, cache=True)
def _mend(key: Any, follows: Any, label: Any, slide_width_px: int) -> tuple[Any, Any]:
    """Which sides are real, and what follows on each.

    A side along a seam is none if the pixel beyond has the same label: then that pixel has a side along the seam, too.
    What would have run into the one follows on the other: the two windows' outlines become one, as two faces of a
    drawing do when the edge between them is rubbed out.
    """
    twin = np.full(key.size, -1, np.int64)
    for index in range(key.size):
        pixel, side = key[index] // 4, key[index] % 4
        x = pixel % slide_width_px
        if (side == 1 and x == slide_width_px - 1) or (side == 3 and x == 0):
            continue
        beyond = pixel + _Y_BEYOND[side] * slide_width_px + _X_BEYOND[side]
        other = position(key, 4 * beyond + (side + 2) % 4)
        if other >= 0 and label[other] == label[index]:
            twin[index] = other
    mended = follows.copy()
    for index in range(key.size):
        if twin[index] < 0:
            at = position(key, mended[index])
            while twin[at] >= 0:
                mended[index] = follows[twin[at]]
                at = position(key, mended[index])
    return twin < 0, mended


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
