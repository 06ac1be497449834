"""Foreground of a nucleus map, and instances as its connected components.

Everything here is local: whether a pixel is foreground depends on pixels at most ``hole_px`` away, so a window that is
read with that much context gives the same foreground as the whole slide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from slideloom.config.model import InstancesConfig

__all__ = ["Foreground", "Threshold", "area_px", "compact", "components", "foreground", "threshold_instances"]

#: Holes larger than this are never filled: it bounds the context that a window needs.
_MAX_HOLE_PX = 256


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
    hole_px : int
        Holes of fewer pixels are filled.
    min_area_px : int
        Instances of fewer pixels are dropped.
    """

    level: int
    hole_px: int
    min_area_px: int

    @classmethod
    def from_config(cls, config: InstancesConfig, mpp_um: float) -> Foreground:
        """Scale the config's physical sizes to a slide's pixels. Holes are bounded by ``min_area_um2`` and 256 px."""
        smallest = area_px(config.min_area_um2, mpp_um)
        return cls(math.ceil(255 * config.nucleus_threshold - 1e-9), min(smallest, _MAX_HOLE_PX), smallest)

    @property
    def context_px(self) -> int:
        """How far the foreground of a pixel looks."""
        return self.hole_px

    def mask(self, nucleus: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Foreground of a map; see :func:`foreground`."""
        return foreground(nucleus, self.level, self.hole_px)


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

    @classmethod
    def from_config(cls, config: InstancesConfig, mpp_um: float) -> Threshold:
        """Scale the config's physical sizes to a slide's pixels."""
        return cls(Foreground.from_config(config, mpp_um))

    @property
    def context_px(self) -> int:
        """How far beyond a component its making looks."""
        return self.front.context_px + 1


def components(mask: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Label 4-connected components.

    Parameters
    ----------
    mask : (H, W) uint8 array
        0 is background.

    Returns
    -------
    labels : (H, W) int32 array
        0 background, 1 … n.
    stats : (n + 1, 5) int32 array
        x, y, width, height, area of each label; row 0 is background.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4, ltype=cv2.CV_32S)
    return np.asarray(labels, dtype=np.int32), np.asarray(stats, dtype=np.int32)


def foreground(nucleus: NDArray[np.uint8], level: int, hole_px: int) -> NDArray[np.uint8]:
    """Threshold a nucleus map and fill its small holes.

    Parameters
    ----------
    nucleus : (H, W) uint8 array
        255 times the probability.
    level : int
        Lowest foreground value.
    hole_px : int
        4-connected background pieces of fewer pixels are filled, unless they touch the border of the array: a bay that
        runs out of the slide is no hole.

    Returns
    -------
    (H, W) uint8 array
        0 or 1.
    """
    mask = (nucleus >= level).view(np.uint8)
    if hole_px <= 1 or not mask.any():
        return mask
    labels, stats = components(1 - mask)
    height, width = mask.shape
    x, y, wide, high, area = stats.T
    fill = (area < hole_px) & (x > 0) & (y > 0) & (x + wide < width) & (y + high < height)
    fill[0] = False
    if fill.any():
        mask = mask | fill[labels].view(np.uint8)
    return mask


def threshold_instances(nucleus: NDArray[np.uint8], settings: Foreground) -> NDArray[np.int32]:
    """Instances as 4-connected components of the foreground, for one map as a whole.

    Parameters
    ----------
    nucleus : (H, W) uint8 array
        255 times the probability.
    settings : Foreground
        Threshold and sizes.

    Returns
    -------
    (H, W) int32 array
        0 background; ids 1 … n, small components dropped.
    """
    labels, stats = components(settings.mask(nucleus))
    return compact(labels, stats[:, 4] >= settings.min_area_px)


def compact(labels: NDArray[np.int32], keep: NDArray[np.bool_] | NDArray[Any]) -> NDArray[np.int32]:
    """Renumber the labels to keep 1 … n, in their order; the others become 0."""
    kept = np.asarray(keep, bool).copy()
    kept[0] = False
    lut = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    renumbered: NDArray[np.int32] = lut[labels]
    return renumbered
