"""Outlines of nuclei to a label image, with what drawing them loses counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Drawn", "draw", "ellipse"]

#: Corners of an ellipse: none of its pixels' centres is then on the wrong side by a tenth of a pixel at 100 px across.
_CORNERS = 48


@dataclass(frozen=True)
class Drawn:
    """Outlines that were drawn.

    Attributes
    ----------
    labels : (H, W) int32 array
        Outline i is i + 1.
    nowhere : tuple of int
        Outlines that hold the centre of no pixel of the image: no area, too small, or outside of it.
    hidden : tuple of int
        Outlines of which other ones leave nothing.
    shared_px : int
        Pixels that lie in more than one outline.
    """

    labels: NDArray[np.int32]
    nowhere: tuple[int, ...]
    hidden: tuple[int, ...]
    shared_px: int


def draw(outlines: Sequence[NDArray[np.float64]], shape: tuple[int, int], *, first_counts: bool) -> Drawn:
    """Draw outlines into a label image.

    Parameters
    ----------
    outlines : sequence of (n, 2) float64 arrays
        Corners (x, y) of each, pixels from the upper left corner of the image; a pixel's centre lies at one half. The
        last corner is joined to the first.
    shape : (int, int)
        Height and width of the image.
    first_counts : bool
        Where outlines overlap, the earlier one counts; else the later one.

    Returns
    -------
    Drawn
        The label image, and what was lost.
    """
    from slideloom.slides.rasterise import paint_polygons  # compiles: only those who draw wait for it

    labels, layers = np.zeros(shape, np.int32), np.zeros(shape, np.uint16)
    at_y, at_x = (np.arange(size, dtype=np.float64) + np.float64(0.5) for size in shape)
    nowhere = []
    one_polygon, first = np.array([0, 1], np.int64), np.zeros(1, np.int64)
    for index, corners in enumerate(outlines):
        low, high = (corners.min(0), corners.max(0)) if len(corners) else (np.zeros(2), np.zeros(2))
        left, top = np.clip(np.floor(low), 0, shape[::-1]).astype(int).tolist()
        right, bottom = np.clip(np.ceil(high) + 1, 0, shape[::-1]).astype(int).tolist()
        window = np.zeros((max(0, bottom - top), max(0, right - left)), np.int32)
        if len(corners) > 2 and window.size:
            rings = np.array([0, len(corners)], np.int64)
            places = at_y[top:bottom], at_x[left:right]
            paint_polygons(np.ascontiguousarray(corners), rings, one_polygon, first, *places, window)
        inside = window > 0
        if not inside.any():
            nowhere.append(index)
            continue
        here = np.s_[top:bottom, left:right]
        layers[here] += inside
        labels[here][inside & (labels[here] == 0) if first_counts else inside] = index + 1
    seen = set(np.unique(labels).tolist())
    gone = {index for index in range(len(outlines)) if index + 1 not in seen} - set(nowhere)
    return Drawn(labels, tuple(nowhere), tuple(sorted(gone)), int(np.count_nonzero(layers > 1)))


def ellipse(x0: float, y0: float, x1: float, y1: float) -> NDArray[np.float64]:
    """Corners (x, y) of the ellipse that fits into a box, (48, 2)."""
    turn = np.arange(_CORNERS) * (2 * np.pi / _CORNERS)
    middle, half = np.array([x0 + x1, y0 + y1]) / 2, np.array([x1 - x0, y1 - y0]) / 2
    return np.asarray(middle + half * np.stack([np.cos(turn), np.sin(turn)], axis=1), np.float64)
