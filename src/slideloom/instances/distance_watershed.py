"""Nuclei parted at the necks of the foreground, for decoders that give a nucleus map alone.

The distance to the background is greatest in the middle of a nucleus and small where two nuclei touch. Its peaks, no
two nearer to each other than the least distance between nuclei, seed a flood that falls with the distance.

Distances are squared whole numbers, searched for up to a bound that every window's context covers, and smoothed by a
filter of whole numbers; so a pixel gets the same value in every window. Beyond the bound all is one height: nuclei
wider than twice the bound are not parted by it.

Source: Beucher and Lantuéjoul, Use of watersheds in contour detection, International workshop on image processing
(1979); the choice of peaks is that of non-maximum suppression.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import Any, ClassVar

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from slideloom.config.model import InstancesConfig
from slideloom.instances.method import Landscape
from slideloom.instances.threshold import Foreground

__all__ = ["HEIGHT", "DistanceWatershed", "peaks", "squared_distance"]

#: Whole number of the greatest smoothed distance.
HEIGHT = 1 << 20
_BOUND_UM = 12.0
_MOST_BOUND_PX = 256
#: Distances are rounded to this share of a pixel before they are smoothed; sums stay below 2**53.
_FINE = 16
_MOST_SMOOTHING_PX = 10


@dataclass(frozen=True)
class DistanceWatershed:
    """The watershed's sizes in pixels of one slide.

    Attributes
    ----------
    front : Foreground
        Threshold and sizes of the foreground.
    bound_px : int
        Distances are not told apart beyond it: 12 µm, at most 256 px.
    apart_px : float
        Peaks that are nearer to each other count as one.
    smoothing_px : int
        Reach of the filter that smooths the distance: ``apart_px``, at most 10 px.
    """

    front: Foreground
    bound_px: int
    apart_px: float
    smoothing_px: int
    reads: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_config(cls, config: InstancesConfig, mpp_um: float) -> DistanceWatershed:
        """Scale the config's physical sizes to a slide's pixels."""
        apart = max(1.0, config.seed_distance_um / mpp_um)
        return cls(
            front=Foreground.from_config(config, mpp_um),
            bound_px=int(min(max(_BOUND_UM / mpp_um, 2), _MOST_BOUND_PX)),
            apart_px=apart,
            smoothing_px=int(min(apart, _MOST_SMOOTHING_PX)),
        )

    @property
    def context_px(self) -> int:
        """How far beyond a pixel its level and its marker look: one step of the chain after another."""
        return self.front.context_px + self.bound_px + self.smoothing_px + int(self.apart_px)

    def landscape(self, mask: NDArray[np.uint8], maps: Mapping[str, NDArray[Any]]) -> Landscape:
        """What is flooded, and from where.

        Parameters
        ----------
        mask : (H, W) uint8 array
            The foreground, 0 or 1.
        maps : mapping of str to array
            Nothing is read.

        Returns
        -------
        Landscape
            Right where the arrays reach :attr:`context_px` further, or to the slide's border.
        """
        height = self.height(mask)
        return Landscape(HEIGHT + 1 - height, peaks(height, mask, self.apart_px))

    def height(self, mask: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Smoothed distance to the background, 0 … :data:`HEIGHT` at the bound."""
        steps = _fine_roots(self.bound_px)[squared_distance(mask, self.bound_px)]
        width = 2 * self.smoothing_px + 1
        weights = np.array([comb(width - 1, k) for k in range(width)], np.float64)
        smooth = np.asarray(cv2.sepFilter2D(steps, cv2.CV_64F, weights, weights), dtype=np.float64)
        smooth *= HEIGHT / (_FINE * self.bound_px * weights.sum() ** 2)
        np.rint(smooth, out=smooth)
        return smooth.astype(np.int32)


@lru_cache(maxsize=8)
def _fine_roots(bound_px: int) -> NDArray[np.float64]:
    """Root of every squared distance up to a bound, in sixteenths of a pixel; whole numbers."""
    roots: NDArray[np.float64] = np.rint(_FINE * np.sqrt(np.arange(bound_px**2 + 1, dtype=np.float64)))
    return roots


@numba.njit(nogil=True, cache=True)
def squared_distance(mask: Any, bound: int) -> Any:
    """Squared distance of every pixel to the nearest background pixel.

    Parameters
    ----------
    mask : (H, W) uint8 array
        0 is background. What lies beyond the array is not.
    bound : int
        Greater distances are taken for this one.

    Returns
    -------
    (H, W) int32 array
        0 in the background, ``bound**2`` at most. Exact.
    """
    height, width = mask.shape
    up = np.empty((height, width), np.int32)
    for y in range(height):
        for x in range(width):
            if mask[y, x] == 0:
                up[y, x] = 0
            else:
                up[y, x] = min(up[y - 1, x] + 1, bound) if y else bound
    for y in range(height - 2, -1, -1):
        for x in range(width):
            up[y, x] = min(up[y, x], up[y + 1, x] + 1)
    squared = np.empty((height, width), np.int32)
    for y in range(height):
        for x in range(width):
            best = up[y, x] * up[y, x]
            aside = 1
            while aside * aside < best:
                if x >= aside:
                    best = min(best, aside * aside + up[y, x - aside] * up[y, x - aside])
                if x + aside < width:
                    best = min(best, aside * aside + up[y, x + aside] * up[y, x + aside])
                aside += 1
            squared[y, x] = best
    return squared


def peaks(height: NDArray[np.int32], mask: NDArray[np.uint8], apart_px: float) -> NDArray[np.uint8]:
    """The highest pixel within a distance, and all at the greatest height.

    Parameters
    ----------
    height : (H, W) int32 array
        0 … :data:`HEIGHT`.
    mask : (H, W) uint8 array
        The foreground, 0 or 1.
    apart_px : float
        A pixel with a higher one at most as far away is no peak; of equal ones the first in raster order is. Whether
        the two belong to one component is not asked.

    Returns
    -------
    (H, W) uint8 array
        1 at peaks: single pixels, more than ``apart_px`` from each other, and plateaus at :data:`HEIGHT`, whole.
    """
    reach = int(apart_px)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    squared = y * y + x * x
    # Near ones first: most pixels have a higher one beside them.
    order = np.argsort(squared, kind="stable")[1 : np.count_nonzero(squared <= apart_px**2)]
    found: NDArray[np.uint8] = _peaks(height, mask, y[order], x[order])
    return found


@numba.njit(nogil=True, cache=True)
def _peaks(level: Any, mask: Any, down: Any, right: Any) -> Any:
    height, width = level.shape
    found = np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            if mask[y, x] == 0:
                continue
            own = level[y, x]
            peak = True
            if own < HEIGHT:
                for index in range(down.size):
                    other_y, other_x = y + down[index], x + right[index]
                    if (
                        other_y < 0
                        or other_x < 0
                        or other_y >= height
                        or other_x >= width
                        or not mask[other_y, other_x]
                    ):
                        continue
                    earlier = down[index] < 0 or (down[index] == 0 and right[index] < 0)
                    other = level[other_y, other_x]
                    if other > own or (other == own and earlier):
                        peak = False
                        break
            found[y, x] = peak
    return found
