"""Foreground of a nucleus map, and instances as its connected components.

Everything here is local: whether a pixel is foreground depends on pixels at most ``Foreground.context_px`` away, so a
window that is read with that much context gives the same foreground as the whole slide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from slideloom.config.model import InstancesConfig
from slideloom.instances.windows import Box, LabelTable, label_table

__all__ = ["Foreground", "Threshold", "area_px", "chosen", "components", "enclosed", "foreground"]


def area_px(area_um2: float, mpp_um: float) -> int:
    """Smallest whole number of pixels that covers an area, at least 1."""
    return max(1, math.ceil(area_um2 / mpp_um**2 - 1e-9))


@dataclass(frozen=True)
class Foreground:
    """What counts as foreground.

    Attributes
    ----------
    level : int
        Lowest foreground value of the uint8 nucleus map.
    min_area_px : int
        Instances of fewer pixels are dropped.
    hole_px : int
        Holes of fewer pixels are filled.
    hole_side_px : int
        Unless they are wider or higher than this: it bounds the context that a window needs.
    """

    level: int
    min_area_px: int
    hole_px: int
    hole_side_px: int

    @classmethod
    def from_config(cls, config: InstancesConfig, mpp_um: float) -> Foreground:
        """Scale the config's physical sizes to a slide's pixels.

        Holes smaller than ``min_area_um2`` are filled, if a square of four times that area holds them.
        """
        smallest = area_px(config.min_area_um2, mpp_um)
        level = math.ceil(255 * config.nucleus_threshold - 1e-9)
        return cls(level, smallest, smallest, 2 * math.isqrt(smallest) + 1)

    @property
    def context_px(self) -> int:
        """How far the foreground of a pixel looks."""
        return self.hole_side_px + 1

    def mask(self, nucleus: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Foreground of a map; see :func:`foreground`."""
        return foreground(nucleus, self.level, self.hole_px, self.hole_side_px)


@dataclass(frozen=True)
class Threshold:
    """The method ``threshold``: a component of the foreground is an instance.

    Source: the stain-agnostic report's post-processing (threshold, holes and small objects removed, components).

    Attributes
    ----------
    front : Foreground
        Threshold and sizes.
    """

    front: Foreground
    reads: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_config(cls, config: InstancesConfig, mpp_um: float) -> Threshold:
        """Scale the config's physical sizes to a slide's pixels."""
        return cls(Foreground.from_config(config, mpp_um))

    @property
    def context_px(self) -> int:
        """How far the foreground looks."""
        return self.front.context_px

    def landscape(self, mask: NDArray[np.uint8], maps: Mapping[str, NDArray[Any]]) -> None:
        """Nothing parts a component."""
        return


def components(mask: NDArray[np.uint8]) -> tuple[NDArray[np.int32], LabelTable]:
    """Label 4-connected components.

    Parameters
    ----------
    mask : (H, W) uint8 array
        0 is background.

    Returns
    -------
    labels : (H, W) int32 array
        0 background, 1 … n.
    table : LabelTable
        Area and box of each label in the array.
    """
    count, found = cv2.connectedComponents(mask, connectivity=4, ltype=cv2.CV_32S)
    labels = np.asarray(found, dtype=np.int32)
    height, width = mask.shape
    return labels, label_table(labels, count - 1, Box(0, 0, height, width), width)


def enclosed(
    pieces: NDArray[np.uint8], least_px: int | None, side_px: int, forbidden: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Small pieces that something encloses.

    Parameters
    ----------
    pieces : (H, W) uint8 array
        0 or 1; its 4-connected pieces are judged.
    least_px : int, optional
        Pieces of as many pixels or more are not small.
    side_px : int
        Nor are those that are wider or higher.
    forbidden : (H, W) uint8 array, optional
        0 or 1; a piece with a pixel where this is 1 is not enclosed.

    Returns
    -------
    (H, W) uint8 array
        1 where they lie. A piece that touches the border of the array is not enclosed: a bay that runs out of the slide
        is no hole. A pixel's answer depends on pixels at most ``side_px + 1`` away.
    """
    labels, table = components(pieces)
    height, width = pieces.shape
    top, left, bottom, right = table.box.T
    fill = (left > 0) & (top > 0) & (right < width) & (bottom < height)
    fill &= (right - left <= side_px) & (bottom - top <= side_px)
    if least_px is not None:
        fill &= table.area < least_px
    if forbidden is not None:
        fill[labels[(pieces & forbidden) > 0]] = False
    fill[0] = False
    if not fill.any():
        return np.zeros_like(pieces)
    return chosen(labels, fill)


def chosen(labels: NDArray[np.int32], which: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pixels of some labels: 1 where ``which[labels]``, else 0."""
    found: NDArray[np.uint8] = _chosen(labels, which)
    return found


@numba.njit(nogil=True, cache=True)
def _chosen(labels: Any, which: Any) -> Any:
    # Several times faster than indexing.
    height, width = labels.shape
    found = np.empty((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            found[y, x] = which[labels[y, x]]
    return found


def foreground(nucleus: NDArray[np.uint8], level: int, hole_px: int, hole_side_px: int) -> NDArray[np.uint8]:
    """Threshold a nucleus map and fill its small holes.

    Parameters
    ----------
    nucleus : (H, W) uint8 array
        255 times the probability.
    level : int
        Lowest foreground value.
    hole_px, hole_side_px : int
        4-connected background pieces of fewer than ``hole_px`` pixels that are neither wider nor higher than
        ``hole_side_px`` are filled, unless they touch the border of the array.

    Returns
    -------
    (H, W) uint8 array
        0 or 1.
    """
    mask = (nucleus >= level).view(np.uint8)
    if hole_px <= 1 or not mask.any():
        return mask
    return mask | enclosed(1 - mask, hole_px, hole_side_px)
