"""Nuclei parted along the valleys of a predicted distance map, for decoders with the head ``distance``.

The map is 1 in the middle of every nucleus and 0 on its outline, also where two nuclei touch, whatever their size. Its
peaks, no two nearer to each other than the least distance between nuclei, seed a flood that falls with the distance.
Peaks are those of a smoother map than the one that is flooded: a grain on top of a nucleus is not to seed twice, but
two nuclei meet where the valley is.

All filters run on whole numbers and look no farther than a window's context, so that a pixel gets the same value in
every window.

Source: a distance map as target and its peaks as markers are those of Naylor et al., Segmentation of nuclei in
histopathology images by deep regression of the distance map, IEEE Transactions on Medical Imaging 38 (2019); the choice
of peaks is that of :mod:`slideloom.instances.distance_watershed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from slideloom.config.model import InstancesConfig
from slideloom.instances.distance_watershed import HEIGHT, peaks
from slideloom.instances.method import Landscape
from slideloom.instances.threshold import Foreground

__all__ = ["DistanceMapWatershed"]

_MOST = 255
#: Half the width of the box filters, as a share of the least distance between nuclei; measured on crowds of ellipses.
_PEAK_SHARE, _LEVEL_SHARE = 0.35, 0.2
#: Sums of the filter stay far below 2**53.
_MOST_HALF_PX = 30
_PASSES = 3


@dataclass(frozen=True)
class DistanceMapWatershed:
    """The watershed's sizes in pixels of one slide.

    Attributes
    ----------
    front : Foreground
        Threshold and sizes of the foreground.
    apart_px : float
        Peaks that are nearer to each other count as one.
    peak_px, level_px : int
        Sides of the square, odd, whose mean is taken three times before peaks are looked for, and before it is flooded.
    """

    front: Foreground
    apart_px: float
    peak_px: int
    level_px: int
    reads: ClassVar[tuple[str, ...]] = ("distance",)

    @classmethod
    def from_config(cls, config: InstancesConfig, mpp_um: float) -> DistanceMapWatershed:
        """Scale the config's physical sizes to a slide's pixels."""
        apart = max(1.0, config.seed_distance_um / mpp_um)
        peak, level = (2 * int(min(share * apart + 1e-9, _MOST_HALF_PX)) + 1 for share in (_PEAK_SHARE, _LEVEL_SHARE))
        return cls(Foreground.from_config(config, mpp_um), apart, peak, level)

    @property
    def context_px(self) -> int:
        """How far beyond a pixel its level and its marker look: one step of the chain after another."""
        return self.front.context_px + _PASSES * (self.peak_px // 2) + int(self.apart_px)

    def landscape(self, mask: NDArray[np.uint8], maps: Mapping[str, NDArray[Any]]) -> Landscape:
        """What is flooded, and from where.

        Parameters
        ----------
        mask : (H, W) uint8 array
            The foreground, 0 or 1.
        maps : mapping of str to array
            ``distance`` (H, W) uint8, 255 times the distance to the nucleus' outline as a share of its greatest.

        Returns
        -------
        Landscape
            Right where the arrays reach :attr:`context_px` further, or to the slide's border. Background counts as
            distance 0.
        """
        distance = (maps["distance"] * mask).astype(np.float64)
        seeds = peaks(_height(distance, self.peak_px), mask, self.apart_px)
        return Landscape(HEIGHT + 1 - _height(distance, self.level_px), seeds)


def _height(distance: NDArray[np.float64], side_px: int) -> NDArray[np.int32]:
    """Mean of a square, of that, and again: 0 … HEIGHT where all is 255. Exact until it is rounded."""
    box = np.ones(side_px)
    weights = np.convolve(np.convolve(box, box), box)
    smooth = np.asarray(cv2.sepFilter2D(distance, cv2.CV_64F, weights, weights), dtype=np.float64)
    smooth *= HEIGHT / (_MOST * weights.sum() ** 2)
    np.rint(smooth, out=smooth)
    return smooth.astype(np.int32)
