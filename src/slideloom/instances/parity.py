"""HoVer-Net's and CellViT's post-processing to the bit, for comparison with the original programs.

A tile's own minimum and maximum scale its HV maps and gradients here, so the result for a nucleus depends on what else
the tile holds; Slideloom's own :mod:`slideloom.instances.hv_watershed` does without. Filters and sizes are in pixels
and fit 0.25 µm (magnification 40) or 0.5 µm (20).

Sources: Graham et al., HoVer-Net, Medical Image Analysis 58 (2019); Hörst et al., CellViT, Medical Image Analysis 94
(2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from slideloom.instances.contours import reference_contour
from slideloom.instances.flooding import flood

__all__ = ["ParityNucleus", "ParityResult", "describe_parity", "parity_watershed"]

_MIN_FOREGROUND_PX = 10
_SEPARATES = 0.4
#: Sobel width and smallest marker, by magnification.
_SIZES = {40: (21, 10), 20: (11, 3)}


@dataclass(frozen=True)
class ParityResult:
    """Every stage of the reference post-processing.

    Attributes
    ----------
    instances : (H, W) int32 array
        Ids are those of the markers: not contiguous.
    markers : (H, W) int32 array
        Seeds of the flood.
    foreground : (H, W) uint8 array
        0 or 1.
    relief : (H, W) float64 array
        What is flooded.
    """

    instances: NDArray[np.int32]
    markers: NDArray[np.int32]
    foreground: NDArray[np.uint8]
    relief: NDArray[np.float64]


@dataclass(frozen=True)
class ParityNucleus:
    """One nucleus as the original programs describe it.

    Attributes
    ----------
    bbox : ((int, int), (int, int))
        First and past-the-end row and column.
    centroid : (float, float)
        x, y of the mean pixel.
    contour : (n, 2) int32 array
        x, y.
    type : int
        Commonest class; background only where there is no other.
    type_share : float
        Share of its pixels with that class.
    """

    bbox: tuple[tuple[int, int], tuple[int, int]]
    centroid: tuple[float, float]
    contour: NDArray[np.int32]
    type: int
    type_share: float


def _unit(values: NDArray[Any]) -> NDArray[np.float32]:
    scaled = np.empty(values.shape, np.float32)
    return np.asarray(cv2.normalize(values, scaled, 0, 1, cv2.NORM_MINMAX, cv2.CV_32F), dtype=np.float32)


def _drop_small(labels: NDArray[np.int32], smallest_px: int) -> NDArray[np.int32]:
    keep = np.bincount(labels.reshape(-1)) >= smallest_px
    keep[0] = False
    return np.where(keep[labels], labels, 0).astype(np.int32)


def parity_watershed(
    binary: NDArray[Any], hv: NDArray[np.float32], *, magnification: Literal[20, 40] = 40
) -> ParityResult:
    """Instances of one tile, as CellViT computes them.

    Parameters
    ----------
    binary : (H, W) array
        Foreground by argmax of the two nucleus channels (a tie is background): 0 or 1, or bool.
    hv : (2, H, W) float32 array
        x then y, as the network gives them.
    magnification : {40, 20}
        Chooses the filter width and the smallest marker.

    Returns
    -------
    ParityResult
        A component without a marker vanishes; a constant HV map gives no instance at all, as in the original.
    """
    kernel, smallest = _SIZES[magnification]
    components = ndimage.label(np.asarray(binary) > 0)[0].astype(np.int32)
    front = (_drop_small(components, _MIN_FOREGROUND_PX) > 0).astype(np.int32)
    x_map, y_map = (_unit(np.ascontiguousarray(plane, dtype=np.float32)) for plane in hv)
    x_edge = 1 - _unit(cv2.Sobel(x_map, cv2.CV_64F, 1, 0, ksize=kernel))
    y_edge = 1 - _unit(cv2.Sobel(y_map, cv2.CV_64F, 0, 1, ksize=kernel))
    energy = np.maximum(np.maximum(x_edge, y_edge) - (1 - front), 0)
    relief = -np.asarray(cv2.GaussianBlur((1 - energy) * front, (3, 3), 0), dtype=np.float64)
    inner = (front > 0) & (energy < _SEPARATES)
    filled = ndimage.binary_fill_holes(inner).astype(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    seeds = ndimage.label(cv2.morphologyEx(filled, cv2.MORPH_OPEN, disc))[0].astype(np.int32)
    markers = _drop_small(seeds, smallest)
    flooded = flood(relief, markers, front > 0)
    return ParityResult(flooded, markers, front.astype(np.uint8), relief)


def describe_parity(instances: NDArray[np.int32], types: NDArray[np.integer[Any]]) -> dict[int, ParityNucleus]:
    """Box, contour, centroid and type of every instance, as the original programs give them.

    Parameters
    ----------
    instances : (H, W) int32 array
        Ids, in any order; 0 is background.
    types : (H, W) integer array
        Class of every pixel.

    Returns
    -------
    dict of int to ParityNucleus
        By id. An instance whose contour has fewer than three points is left out.
    """
    nuclei: dict[int, ParityNucleus] = {}
    for number, place in enumerate(ndimage.find_objects(instances), 1):
        if place is None:
            continue
        rows, columns = place
        mask = instances[place] == number
        contour = reference_contour(mask)
        if len(contour) < 3:
            continue
        moments = cv2.moments(mask.astype(np.uint8))
        centre = (moments["m10"] / moments["m00"] + columns.start, moments["m01"] / moments["m00"] + rows.start)
        votes = np.bincount(types[place][mask])
        winner = int(votes.argmax())
        if winner == 0 and votes[1:].any():
            winner = 1 + int(votes[1:].argmax())
        nuclei[number] = ParityNucleus(
            bbox=((rows.start, columns.start), (rows.stop, columns.stop)),
            centroid=centre,
            contour=contour + np.array([columns.start, rows.start], np.int32),
            type=winner,
            type_share=float(votes[winner] / (mask.sum() + 1e-6)),
        )
    return nuclei
