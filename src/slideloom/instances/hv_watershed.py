"""HoVer-Net's HV watershed on fixed scales: a window's extremes never decide what a pixel becomes.

The HV map rises from -1 to 1 across every nucleus, so it falls where one nucleus ends and the next begins. A smoothed
derivative finds the falls; what is left of the foreground seeds a watershed.

The original scales each derivative by the minimum and maximum of the tile. Here its scale is the filter's own: with
weights ``k``, no map within [-1, 1] can answer with more than ``sum |k|``, and a step from +1 to -1, two nuclei that
touch, answers with exactly that. The derivative ``g`` over that bound lies in [-1, 1] for every width and resolution:

=====  ==================================================  ======
g      what                                                energy
=====  ==================================================  ======
-1     the step between two nuclei that touch              1
-0.5   the step from a nucleus's rim to background         2/3
0      a flat map: no evidence of a border                 1/3
0.5    a rise as steep as that step, and anything steeper  0
=====  ==================================================  ======

``energy = (0.5 - g) / 1.5``, clipped to [0, 1], the larger of the two directions. The rise of 0.5 mirrors the rim's
fall; ``benchmarks/bench_instances.py`` shows what the choice costs and gains against the original's.

All filters run on whole numbers below 2**53, so they are exact, and the same wherever a window begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from slideloom.config.model import InstancesConfig
from slideloom.instances.method import Landscape, large_pieces
from slideloom.instances.threshold import Foreground, area_px, enclosed

__all__ = ["ENERGY", "HVWatershed", "hv_energy", "kernel_px", "relief"]

#: Integer code of energy 1.
ENERGY = 1 << 16
_STEEPEST_RISE = 0.5
_HV_SCALE = 127
#: Weights of long filters are rounded so that they add up to about this, and sums stay exact.
_WEIGHT_SUM = 1 << 20
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def kernel_px(gradient_um: float, mpp_um: float) -> int:
    """Width of the derivative filter in pixels: odd, at least 3.

    Examples
    --------
    >>> kernel_px(5.0, 0.25), kernel_px(5.0, 0.5), kernel_px(5.0, 4.0)
    (21, 11, 3)
    """
    return max(3, 2 * int(gradient_um / mpp_um / 2 + 1e-9) + 1)


@lru_cache(maxsize=8)
def _filters(width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sobel's binomial filters, whole numbers: the derivative, positive on a rise, and the smoothing."""
    smooth = np.array([comb(width - 1, k) for k in range(width)], np.float64)
    inner = np.array([0, *(comb(width - 2, k) for k in range(width - 1)), 0], np.float64)
    derive = inner[:-1] - inner[1:]
    if smooth.sum() > _WEIGHT_SUM:
        smooth = np.rint(smooth * (_WEIGHT_SUM / smooth.sum()))
        derive = np.rint(derive * (_WEIGHT_SUM / np.abs(derive).sum()))
    return derive, smooth


def hv_energy(hv: NDArray[np.int8], width: int) -> NDArray[np.int32]:
    """Evidence of a border at every pixel.

    Parameters
    ----------
    hv : (2, H, W) int8 array
        127 times the HV map, x then y.
    width : int
        Of the derivative filter; see :func:`kernel_px`. It looks ``width // 2`` pixels far and mirrors the map at the
        border of the array.

    Returns
    -------
    (H, W) int32 array
        0 … :data:`ENERGY`.
    """
    derive, smooth = _filters(width)
    bound = _HV_SCALE * np.abs(derive).sum() * smooth.sum()
    planes = hv.astype(np.float64)
    slope = np.asarray(cv2.sepFilter2D(planes[0], cv2.CV_64F, derive, smooth), dtype=np.float64)
    np.minimum(slope, cv2.sepFilter2D(planes[1], cv2.CV_64F, smooth, derive), out=slope)
    slope /= bound
    np.subtract(_STEEPEST_RISE, slope, out=slope)
    slope *= ENERGY / (1 + _STEEPEST_RISE)
    np.rint(slope, out=slope)
    np.clip(slope, 0, ENERGY, out=slope)
    return slope.astype(np.int32)


@dataclass(frozen=True)
class HVWatershed:
    """The watershed's sizes in pixels of one slide.

    Attributes
    ----------
    front : Foreground
        Threshold and sizes of the foreground.
    width_px : int
        Of the derivative filter.
    separates : int
        Energy from which a pixel belongs to no marker, 0 … :data:`ENERGY`.
    opening_px : int
        Diameter of the disc that a marker must hold somewhere: 5 px, as in the original; 3 px where the filter is 7 px
        or narrower, for there a small nucleus would lose its marker.
    min_marker_px : int
        Smaller markers are dropped.
    """

    front: Foreground
    width_px: int
    separates: int
    opening_px: int
    min_marker_px: int
    reads: ClassVar[tuple[str, ...]] = ("hv",)

    @classmethod
    def from_config(cls, config: InstancesConfig, mpp_um: float) -> HVWatershed:
        """Scale the config's physical sizes to a slide's pixels."""
        width = kernel_px(config.gradient_um, mpp_um)
        return cls(
            front=Foreground.from_config(config, mpp_um),
            width_px=width,
            separates=round(config.energy_threshold * ENERGY),
            opening_px=5 if width > 7 else 3,
            min_marker_px=area_px(config.min_marker_um2, mpp_um),
        )

    @property
    def ridge_side_px(self) -> int:
        """Energy peaks inside a marker are filled if they are neither wider nor higher: twice the filter."""
        return 2 * self.width_px

    @property
    def context_px(self) -> int:
        """How far beyond a pixel its level and its marker look: one step of the chain after another."""
        energy = max(self.front.context_px, self.width_px // 2) + 1
        return energy + self.ridge_side_px + 1 + 2 * (self.opening_px // 2) + self.min_marker_px

    def landscape(self, mask: NDArray[np.uint8], maps: Mapping[str, NDArray[Any]]) -> Landscape:
        """What is flooded, and from where.

        Parameters
        ----------
        mask : (H, W) uint8 array
            The foreground, 0 or 1.
        maps : mapping of str to array
            ``hv`` (2, H, W) int8, 127 times the HV map, x then y.

        Returns
        -------
        Landscape
            Right where the arrays reach :attr:`context_px` further, or to the slide's border.
        """
        energy = hv_energy(maps["hv"], self.width_px)
        seeds = large_pieces(self.markers(mask, energy), self.min_marker_px)
        return Landscape(relief(energy, mask), seeds)

    def markers(self, mask: NDArray[np.uint8], energy: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Pixels that may seed the flood.

        Parameters
        ----------
        mask : (H, W) uint8 array
            The foreground, 0 or 1.
        energy : (H, W) int32 array
            Of :func:`hv_energy`.

        Returns
        -------
        (H, W) uint8 array
            0 or 1: low energy, small energy peaks that it encloses filled, thin parts removed. Holes of a component
            are not filled, so no component ever matters to another.
        """
        inner = mask & (energy < self.separates).view(np.uint8)
        outside = np.pad(1 - mask, 1, constant_values=1)
        rim = np.asarray(cv2.dilate(outside, _CROSS), dtype=np.uint8)[1:-1, 1:-1]
        inner |= enclosed(mask - inner, None, self.ridge_side_px, rim).view(np.uint8)
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (self.opening_px, self.opening_px))
        return np.asarray(cv2.morphologyEx(inner, cv2.MORPH_OPEN, disc), dtype=np.uint8)


def relief(energy: NDArray[np.int32], mask: NDArray[np.uint8]) -> NDArray[np.int32]:
    """What is flooded: from the calm of the foreground, smoothed over 3×3 pixels, up to energy; whole numbers.

    Parameters
    ----------
    energy : (H, W) int32 array
        Of :func:`hv_energy`.
    mask : (H, W) uint8 array
        The foreground, 0 or 1.

    Returns
    -------
    (H, W) int32 array
        1 … 16 · :data:`ENERGY` + 1.
    """
    calm = ((ENERGY - energy) * mask).astype(np.float32)
    kernel = np.array([1.0, 2.0, 1.0], np.float32)
    smooth = np.asarray(cv2.sepFilter2D(calm, cv2.CV_32F, kernel, kernel), dtype=np.float32)
    level: NDArray[np.int32] = (16 * ENERGY + 1 - smooth).astype(np.int32)
    return level
