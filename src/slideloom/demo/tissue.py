"""The lie of the land of one synthetic slide: glass, tumour nests with lumens, vessels, fibres, immune clusters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from slideloom.demo.noise import blur, draw_points, smooth_noise

__all__ = ["DENSITY_CELL_PX", "Tissue", "Vessel", "grow_tissue"]

DENSITY_CELL_PX = 4
"""Side of a cell of the density maps that positions are drawn from."""

_NEST_PACKING = 0.41  # share of a nest's area that nuclei fill
_VESSEL_SPACING_PX = 21.0  # arc length per endothelial nucleus
_COARSE = 4  # the search for the nests' level works on every fourth pixel

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Vessel:
    """A blood vessel cut across: an ellipse whose rim carries endothelium.

    Attributes
    ----------
    y_px, x_px : float
        Centre.
    major_px, minor_px : float
        Semi-axes of the lumen.
    angle : float
        Direction of the long axis, radians from x towards y.
    muscle_px : float
        Thickness of the smooth-muscle coat, 0 for a capillary.
    filled : float
        Share of the lumen taken by red blood cells.
    """

    y_px: float
    x_px: float
    major_px: float
    minor_px: float
    angle: float
    muscle_px: float
    filled: float


@dataclass(frozen=True)
class Tissue:
    """Maps of one slide, all (h, w).

    Attributes
    ----------
    glass : ndarray of bool
        No tissue: the slide's border and holes.
    nest : ndarray of bool
        Tumour epithelium, lumens left out.
    lumen : ndarray of bool
        Gland lumens inside nests.
    nest_depth_px : ndarray of float32
        Distance to the nests' outline, positive inside, negative outside.
    cos, sin : ndarray of float32
        x and y part of the fibre direction.
    vessels : tuple of Vessel
        Vessels, all in stroma.
    vessel_rim_px : ndarray of float32
        Distance to the nearest vessel's lumen edge, negative inside the lumen; large where there is none.
    muscle : ndarray of float32
        Smooth-muscle coats, 0 to 1.
    vessel_filled : ndarray of float32
        Share of red blood cells in the lumen a pixel belongs to.
    cluster : ndarray of float32
        Lymphocyte clusters, 0 to 1.
    """

    glass: Mask
    nest: Mask
    lumen: Mask
    nest_depth_px: Image
    cos: Image
    sin: Image
    vessels: tuple[Vessel, ...]
    vessel_rim_px: Image
    muscle: Image
    vessel_filled: Image
    cluster: Image

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.glass.shape[0], self.glass.shape[1]

    @property
    def hollow(self) -> Mask:
        """Where no nucleus may lie: glass, gland lumens, vessel lumens."""
        return self.glass | self.lumen | (self.vessel_rim_px < 0)


def _distance(mask: Mask) -> Image:
    """Distance of every pixel of the mask to the nearest pixel outside, px, to about 2 %.

    Not OpenCV's exact transform: its last bits depend on where the arrays lie in memory, and slides must be equal
    to the byte.
    """
    far, _ = cv2.distanceTransformWithLabels(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    return np.asarray(far, np.float32)


def _glass(rng: np.random.Generator, shape: tuple[int, int]) -> Mask:
    """Lay a torn border along one side and a few holes."""
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    side = rng.uniform(0, 2 * math.pi)
    reach = columns * np.float32(math.cos(side)) + rows * np.float32(math.sin(side))
    edge = reach + 26 * smooth_noise(rng, shape, 45) + 7 * smooth_noise(rng, shape, 10)
    border = edge < np.quantile(edge, rng.uniform(0.065, 0.11))
    holes = smooth_noise(rng, shape, 32) + 0.25 * smooth_noise(rng, shape, 7)
    torn = holes > np.quantile(holes, 1 - rng.uniform(0.004, 0.016))
    return np.asarray(border | torn, np.bool_)


def _carve(field: Image, level: float, gland: Image, wall_px: float, px: int) -> tuple[Mask, Mask, Image]:
    """Nests above a level of the field, the lumens of the glandular ones, and the depth in nests."""
    nest = np.asarray(field > level, np.bool_)
    inside = _distance(nest) * px
    # The blur rounds the corners that the distance map's ridges would give a lumen.
    lumen = np.asarray((blur(inside, 9 / px) > wall_px + 9 * (1 - gland)) & (gland > 0), np.bool_)
    depth = np.where(nest, inside, -_distance(~nest) * px).astype(np.float32)
    return nest & ~lumen, lumen, depth


def _nests(rng: np.random.Generator, glass: Mask, area_px: float, glandular: float) -> tuple[Mask, Mask, Image]:
    """Tumour nests whose epithelium covers ``area_px`` pixels."""
    shape = (glass.shape[0], glass.shape[1])
    field = smooth_noise(rng, shape, 44) + 0.38 * smooth_noise(rng, shape, 17) + 0.07 * smooth_noise(rng, shape, 6)
    gland = np.clip(smooth_noise(rng, shape, 70) + np.float32(2.4 * glandular - 1.2), -1, 1)
    # Bridges of solid epithelium keep a wide nest from becoming one big hole.
    gland = np.minimum(gland, 1.4 * smooth_noise(rng, shape, 28) + np.float32(0.55))
    wall_px = rng.uniform(30, 38)
    # Nests keep clear of the glass: the field sinks over the last 15 µm.
    field = np.asarray(field - 4 * np.exp(-_distance(~glass) / 12), np.float32)
    coarse, coarse_gland = field[::_COARSE, ::_COARSE], gland[::_COARSE, ::_COARSE]
    low, high = float(coarse.min()), float(coarse.max())
    for _ in range(18):
        level = (low + high) / 2
        area = int(_carve(coarse, level, coarse_gland, wall_px, _COARSE)[0].sum()) * _COARSE**2
        low, high = (level, high) if area > area_px else (low, level)
    pieces, names, sizes, _ = cv2.connectedComponentsWithStats((field > high).astype(np.uint8), connectivity=4)
    crumbs = [piece for piece in range(1, pieces) if sizes[piece, cv2.CC_STAT_AREA] < 900]
    field[np.isin(names, crumbs)] = high - 1
    return _carve(field, high, gland, wall_px, 1)


def _vessels(rng: np.random.Generator, free: Image, room_px: Image, nuclei: int, angle: Image) -> tuple[Vessel, ...]:
    """Vessels with room for ``nuclei`` endothelial nuclei, in free stroma and apart from one another."""
    found: list[Vessel] = []
    slots = 0.0
    for y_px, x_px in draw_points(rng, free, 60 + 12 * nuclei, DENSITY_CELL_PX) if free.any() else ():
        if slots >= nuclei:
            break
        y_px, x_px = min(int(y_px), room_px.shape[0] - 1), min(int(x_px), room_px.shape[1] - 1)
        major = 5.0 + rng.gamma(1.8, 6.0)
        minor = major * rng.uniform(0.45, 0.95)
        muscle = rng.uniform(4, 11) if major > 15 and rng.random() < 0.7 else 0.0
        # Capillaries may hug a nest; a vessel with a coat needs room for it.
        if major > 36 or room_px[y_px, x_px] < major + muscle + 9:
            continue
        reach = major + muscle + 24
        if any(math.hypot(v.y_px - y_px, v.x_px - x_px) < v.major_px + v.muscle_px + reach for v in found):
            continue
        turn = float(angle[y_px, x_px]) + rng.normal(0, 0.3)
        found.append(Vessel(y_px, x_px, major, minor, turn, muscle, float(rng.choice([0, 0, 0.3, 0.75]))))
        slots += math.pi * (major + minor + 6) / _VESSEL_SPACING_PX
    return tuple(found)


def _vessel_maps(vessels: tuple[Vessel, ...], shape: tuple[int, int]) -> tuple[Image, Image, Image]:
    """Distance to the nearest lumen edge, muscle coats, and how full each lumen is of blood."""
    rim = np.full(shape, 1e3, np.float32)
    muscle = np.zeros(shape, np.float32)
    filled = np.zeros(shape, np.float32)
    for vessel in vessels:
        reach = math.ceil(vessel.major_px + vessel.muscle_px + 40)
        top, left = max(0, int(vessel.y_px) - reach), max(0, int(vessel.x_px) - reach)
        window = np.s_[top : int(vessel.y_px) + reach + 1, left : int(vessel.x_px) + reach + 1]
        rows, columns = np.indices(rim[window].shape, dtype=np.float32)
        dy, dx = rows + (top - vessel.y_px), columns + (left - vessel.x_px)
        along = dx * math.cos(vessel.angle) + dy * math.sin(vessel.angle)
        across = dy * math.cos(vessel.angle) - dx * math.sin(vessel.angle)
        around = np.arctan2(across, along)
        wobble = 1 + 0.06 * np.cos(3 * around + vessel.x_px) + 0.04 * np.cos(5 * around + vessel.y_px)
        radius = np.hypot(along, across)
        edge = wobble / np.sqrt((np.cos(around) / vessel.major_px) ** 2 + (np.sin(around) / vessel.minor_px) ** 2)
        away = (radius - edge).astype(np.float32)
        nearer = away < rim[window]
        rim[window] = np.where(nearer, away, rim[window])
        filled[window] = np.where(nearer, vessel.filled, filled[window])
        if vessel.muscle_px:
            coat = 1 / (1 + np.exp((away - vessel.muscle_px - 4) / 1.5))
            muscle[window] = np.maximum(muscle[window], np.where(away > 0, coat, 0))
    return rim, muscle, filled


def _clusters(rng: np.random.Generator, home: Image, count: int, shape: tuple[int, int]) -> Image:
    """Ragged round patches, 0 to 1, with centres drawn from ``home``."""
    bump = np.zeros(shape, np.float32)
    for y_px, x_px in draw_points(rng, home, count, DENSITY_CELL_PX) if home.any() else ():
        size = rng.uniform(20, 42)
        reach = math.ceil(4 * size)
        top, left = max(0, int(y_px) - reach), max(0, int(x_px) - reach)
        window = np.s_[top : int(y_px) + reach, left : int(x_px) + reach]
        rows, columns = np.indices(bump[window].shape, dtype=np.float32)
        square = (rows + np.float32(top - y_px)) ** 2 + (columns + np.float32(left - x_px)) ** 2
        bump[window] = np.maximum(bump[window], np.exp(-square / np.float32(2 * size**2)))
    ragged = bump * np.exp(0.35 * smooth_noise(rng, shape, 14))
    return np.asarray(np.clip(ragged * 1.6 - 0.3, 0, 1), np.float32)


def grow_tissue(
    rng: np.random.Generator,
    shape: tuple[int, int],
    *,
    tumour_px: float,
    endothelial_nuclei: int,
    lymphocyte_px: float,
    glandular: float,
) -> Tissue:
    """Lay out one slide.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    shape : tuple of int
        Height and width in pixels.
    tumour_px : float
        Pixels that tumour nuclei are to cover; the nests get the area for it.
    endothelial_nuclei : int
        How many nuclei the vessel walls are to carry.
    lymphocyte_px : float
        Pixels that lymphocyte nuclei are to cover; sets the number of clusters.
    glandular : float
        0 for solid nests, 1 for glands with lumens.

    Returns
    -------
    Tissue
        The slide's maps.
    """
    glass = _glass(rng, shape)
    nest, lumen, depth = _nests(rng, glass, tumour_px / _NEST_PACKING, glandular)
    stroma = ~glass & ~nest & ~lumen

    # Fibres run along the level lines of a potential that rises towards the nests, so they wrap around them.
    # The ramp gives the slide a grain; without it the noise would curl into whorls.
    drift = rng.uniform(0, 2 * math.pi)
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    potential = 34 * smooth_noise(rng, shape, 70) + blur(np.clip(depth, -45, 12), 9)
    potential += np.float32(0.75 * math.cos(drift)) * columns + np.float32(0.75 * math.sin(drift)) * rows

    def direction(field: Image) -> tuple[Image, Image]:
        slope_y, slope_x = np.gradient(blur(field, 4))
        length = np.maximum(np.hypot(slope_y, slope_x), np.float32(1e-6))
        return np.asarray(-slope_y / length, np.float32), np.asarray(slope_x / length, np.float32)

    cos, sin = direction(potential)
    room = np.minimum(-depth, _distance(~glass))
    coarse = np.s_[::DENSITY_CELL_PX, ::DENSITY_CELL_PX]
    free = (stroma & (room > 14))[coarse].astype(np.float32)
    vessels = _vessels(rng, free, room, endothelial_nuclei, np.arctan2(sin, cos))
    rim, muscle, filled = _vessel_maps(vessels, shape)
    cos, sin = direction(np.asarray(potential + 26 * np.exp(-np.clip(rim, 0, None) / 14), np.float32))

    # Clusters sit in stroma, most of them at the tumour's front.
    front = np.exp(-np.abs(depth + 30) / 45) * stroma * (rim > 6)
    count = max(1, round(0.7 * lymphocyte_px / 4200))
    cluster = _clusters(rng, np.asarray(front[coarse] + 0.05 * free, np.float32), count, shape)
    return Tissue(glass, nest, lumen, depth, cos, sin, vessels, rim, muscle, filled, cluster)
