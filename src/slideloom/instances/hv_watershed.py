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

from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from slideloom.config.model import InstancesConfig
from slideloom.instances.flooding import flood
from slideloom.instances.parity import parity_watershed
from slideloom.instances.threshold import Foreground, area_px, compact, components

__all__ = ["ENERGY", "HVWatershed", "hv_energy", "hv_watershed", "kernel_px"]

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
    def context_px(self) -> int:
        """How far beyond a component its split looks: the foreground beside it, and the gradient beside it."""
        return max(self.front.context_px + 1, self.width_px // 2 + 2, self.opening_px)

    def markers(self, inside: NDArray[np.bool_], energy: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Pixels that seed the flood.

        Parameters
        ----------
        inside : (H, W) bool array
            Whole 4-connected components.
        energy : (H, W) int32 array
            Of :func:`hv_energy`.

        Returns
        -------
        (H, W) uint8 array
            0 or 1: low energy, energy peaks that it encloses filled, thin parts removed. Holes of a component are not
            filled, so no component ever matters to another.
        """
        inner = inside & (energy < self.separates)
        ridges, stats = components((inside & ~inner).view(np.uint8))
        if len(stats) > 1:
            outside = np.pad((~inside).view(np.uint8), 1, constant_values=1)
            rim = cv2.dilate(outside, _CROSS)[1:-1, 1:-1]
            enclosed = np.ones(len(stats), bool)
            enclosed[ridges[rim > 0]] = False
            enclosed[0] = False
            inner |= enclosed[ridges]
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (self.opening_px, self.opening_px))
        return np.asarray(cv2.morphologyEx(inner.view(np.uint8), cv2.MORPH_OPEN, disc), dtype=np.uint8)

    def split(self, parts: NDArray[np.int32], mask: NDArray[np.uint8], hv: NDArray[np.int8]) -> NDArray[np.int32]:
        """Split components into nuclei.

        Parameters
        ----------
        parts : (H, W) int32 array
            The components to split, 1 … n, each whole and, but for the slide's own border, at least
            :attr:`context_px` away from the border of the array.
        mask : (H, W) uint8 array
            The foreground, with other components, too.
        hv : (2, H, W) int8 array
            127 times the HV map, x then y.

        Returns
        -------
        (H, W) int32 array
            Ids 1 … m; a component with at most one marker stays whole.
        """
        energy = hv_energy(hv, self.width_px)
        inside = parts > 0
        seeds, stats = components(self.markers(inside, energy))
        seeds = compact(seeds, stats[:, 4] >= self.min_marker_px)
        n_seeds, n_parts = int(seeds.max()), int(parts.max())
        owner = np.zeros(n_seeds + 1, np.int32)
        seeded = np.flatnonzero(seeds)
        owner[seeds.reshape(-1)[seeded]] = parts.reshape(-1)[seeded]
        count = np.bincount(owner[1:], minlength=n_parts + 1)
        many = np.flatnonzero(count > 1)
        # Components that stay whole are numbered after the seeds of those that do not.
        whole = n_seeds + np.arange(n_parts + 1, dtype=np.int32)
        whole[0] = whole[many] = 0
        instances: NDArray[np.int32] = whole[parts]
        boxes = _boxes(parts, many)
        for part, box in zip(many.tolist(), boxes, strict=True):
            flooded, here = self._flood(part, box, parts, mask, energy, seeds)
            instances[box][here] = flooded[here]
        return instances

    def _flood(
        self,
        part: int,
        box: tuple[slice, slice],
        parts: NDArray[np.int32],
        mask: NDArray[np.uint8],
        energy: NDArray[np.int32],
        seeds: NDArray[np.int32],
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Flood one component inside its bounding box, so that the flood's queue holds nothing else."""
        here = parts[box] == part
        return flood(relief(energy, mask, box), np.where(here, seeds[box], 0), here), here


def relief(energy: NDArray[np.int32], mask: NDArray[np.uint8], box: tuple[slice, slice]) -> NDArray[np.float32]:
    """What is flooded inside a box: minus the calm of the foreground, smoothed over 3×3 pixels; whole numbers."""
    rows, columns = box
    top, left = max(rows.start - 1, 0), max(columns.start - 1, 0)
    wide = (slice(top, rows.stop + 1), slice(left, columns.stop + 1))
    calm = ((ENERGY - energy[wide]) * mask[wide]).astype(np.float32)
    kernel = np.array([1.0, 2.0, 1.0], np.float32)
    smooth = np.asarray(cv2.sepFilter2D(calm, cv2.CV_32F, kernel, kernel), dtype=np.float32)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    return -smooth[rows.start - top :, columns.start - left :][:height, :width]


def _boxes(labels: NDArray[np.int32], wanted: NDArray[np.intp]) -> list[tuple[slice, slice]]:
    """Bounding boxes of some labels."""
    if not wanted.size:
        return []
    lut = np.zeros(int(labels.max()) + 1, np.int32)
    lut[wanted] = np.arange(1, len(wanted) + 1)
    y, x = np.nonzero(labels)
    number = lut[labels[y, x]]
    y, x, number = y[number > 0], x[number > 0], number[number > 0] - 1
    low = np.full((2, len(wanted)), np.iinfo(np.int64).max)
    high = np.full((2, len(wanted)), -1)
    for axis, position in enumerate((y, x)):
        np.minimum.at(low[axis], number, position)
        np.maximum.at(high[axis], number, position)
    return [
        (slice(top, bottom + 1), slice(left, right + 1))
        for top, left, bottom, right in zip(*low.tolist(), *high.tolist(), strict=True)
    ]


def hv_watershed(
    nucleus: NDArray[Any],
    hv: NDArray[Any],
    *,
    config: InstancesConfig | None = None,
    mpp_um: float = 0.25,
    parity: bool = False,
    magnification: Literal[20, 40] = 40,
) -> NDArray[np.int32]:
    """Instances of one map that fits in memory.

    Parameters
    ----------
    nucleus : (H, W) array
        uint8, 255 times the nucleus probability; or floating point, the probability itself.
    hv : (2, H, W) array
        int8, 127 times the HV map, x then y; or floating point, the HV map itself.
    config : InstancesConfig, optional
        Thresholds and physical sizes; the defaults when left out.
    mpp_um : float
        Pixel size, µm.
    parity : bool
        Compute exactly what CellViT computes (:func:`slideloom.instances.parity.parity_watershed`): extremes of the
        map as scales, sizes in pixels, ids not contiguous. ``config`` and ``mpp_um`` then play no part.
    magnification : {40, 20}
        For ``parity``.

    Returns
    -------
    (H, W) int32 array
        0 background.
    """
    codes = nucleus if nucleus.dtype == np.uint8 else np.rint(np.clip(nucleus, 0, 1) * 255).astype(np.uint8)
    if parity:
        values = hv.astype(np.float32) / np.float32(_HV_SCALE if hv.dtype == np.int8 else 1)
        return parity_watershed(codes >= 128, values, magnification=magnification).instances
    slopes = hv if hv.dtype == np.int8 else np.rint(np.clip(hv, -1, 1) * _HV_SCALE).astype(np.int8)
    settings = HVWatershed.from_config(config or InstancesConfig(), mpp_um)
    mask = settings.front.mask(codes)
    parts, stats = components(mask)
    parts = compact(parts, stats[:, 4] >= settings.front.min_area_px)
    instances = settings.split(parts, mask, slopes)
    return compact(instances, np.bincount(instances.reshape(-1)) >= settings.front.min_area_px)
