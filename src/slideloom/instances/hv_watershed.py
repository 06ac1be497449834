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
import numba
import numpy as np
from numpy.typing import NDArray

from slideloom.config.model import InstancesConfig
from slideloom.instances.method import Landscape, flood_level, large_pieces, opened
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
def _filters(width: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Sobel's binomial filters, whole numbers: the derivative, positive on a rise, and the smoothing."""
    smooth = np.array([comb(width - 1, k) for k in range(width)], np.float64)
    inner = np.array([0, *(comb(width - 2, k) for k in range(width - 1)), 0], np.float64)
    derive = inner[:-1] - inner[1:]
    if smooth.sum() > _WEIGHT_SUM:
        smooth = np.rint(smooth * (_WEIGHT_SUM / smooth.sum()))
        derive = np.rint(derive * (_WEIGHT_SUM / np.abs(derive).sum()))
    return derive.astype(np.int32), smooth.astype(np.int32)


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
    bound = float(_HV_SCALE * np.abs(derive).sum() * smooth.sum())
    energy: NDArray[np.int32] = _energy(np.ascontiguousarray(hv), derive, smooth, bound)
    return energy


@numba.njit(nogil=True, cache=True)
def _energy(hv: Any, derive: Any, smooth: Any, bound: float) -> Any:
    """Both filters over both planes, row by row: sums along rows fit 32 bits, those down the columns 53."""
    _, height, width = hv.shape
    taps = derive.size
    reach = taps // 2
    padded = np.empty(width + 2 * reach, np.int32)
    along = np.empty(width, np.int32)
    rows = np.empty((2, taps, width), np.float64)
    down = np.empty((2, width), np.float64)
    energy = np.empty((height, width), np.int32)
    for y in range(-reach, height + reach):
        source = _mirrored(y, height)
        for plane in range(2):
            weights = smooth if plane else derive
            for index in range(padded.size):
                padded[index] = hv[plane, source, _mirrored(index - reach, width)]
            for x in range(width):
                along[x] = 0
            for tap in range(taps):
                for x in range(width):
                    along[x] += weights[tap] * padded[x + tap]
            for x in range(width):
                rows[plane, (y + reach) % taps, x] = along[x]
        if y < reach:
            continue
        for plane in range(2):
            weights = derive if plane else smooth
            for x in range(width):
                down[plane, x] = 0
            for tap in range(taps):
                source = (y - reach + tap) % taps
                for x in range(width):
                    down[plane, x] += weights[tap] * rows[plane, source, x]
        for x in range(width):
            share = min(down[0, x], down[1, x]) / bound
            value = np.rint((_STEEPEST_RISE - share) * (ENERGY / (1 + _STEEPEST_RISE)))
            energy[y - reach, x] = min(max(value, 0.0), ENERGY)
    return energy


@numba.njit(nogil=True, cache=True)
def _mirrored(place: int, size: int) -> int:
    """Place inside a row of some size, mirrored at its first and last pixel, which are not doubled."""
    while size > 1 and (place < 0 or place >= size):
        place = -place if place < 0 else 2 * (size - 1) - place
    return place if size > 1 else 0


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
        """Energy peaks inside a marker are filled if they are neither wider nor higher: the filter's width."""
        return self.width_px

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
        inner |= enclosed(mask - inner, None, self.ridge_side_px, rim)
        return opened(inner, self.opening_px)


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
    return flood_level(((ENERGY - energy) * mask).astype(np.float32), ENERGY, (1, 2, 1))
