"""Nuclei of one synthetic slide: shapes, where they lie, and the instance label image that they make."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage import measure

from slideloom.demo.noise import draw_points, smooth_noise
from slideloom.demo.panel import CLASSES, CellClass, class_id
from slideloom.demo.tissue import DENSITY_CELL_PX, Tissue

__all__ = ["MIN_AREA_PX", "Nuclei", "place_nuclei"]

MIN_AREA_PX = 20
"""Nuclei of which overlap or the slide's edge leaves less than this are taken out."""

_TRIES = 14  # places that one nucleus is offered before it is given up
_GIVE_UP = 60  # nuclei given up in a row after which a class counts as full
_LYMPHOCYTES = ("Helper T cell", "Cytotoxic T cell", "Treg", "B cells")
_ORDER = ("Endothelia", "Tumor", "Stroma", "Macrophage", "Other", *_LYMPHOCYTES)

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Nuclei:
    """The nuclei of a slide.

    Attributes
    ----------
    labels : ndarray
        (h, w) int32, 0 background, else the nucleus 1 to n; each is one 4-connected piece of at least ``MIN_AREA_PX``.
    radius : ndarray
        (h, w) float32, 0 at a nucleus's centre and 1 at its outline; 2 outside.
    beneath : ndarray
        (h, w) int32, the nucleus under the visible one where two overlap, else 0.
    class_of : ndarray
        (n + 1,) uint8, class id of each nucleus; entry 0 is background.
    y_px, x_px : ndarray
        (n + 1,) float64, centre of each nucleus; entry 0 is not used.
    """

    labels: NDArray[np.int32]
    radius: Image
    beneath: NDArray[np.int32]
    class_of: NDArray[np.uint8]
    y_px: NDArray[np.float64]
    x_px: NDArray[np.float64]

    @property
    def classes(self) -> NDArray[np.uint8]:
        """(h, w) uint8, the class id of every pixel."""
        return self.class_of[self.labels]

    def __len__(self) -> int:
        """How many nuclei there are."""
        return self.class_of.size - 1


@dataclass(frozen=True)
class _Shape:
    """A nucleus drawn in its own window, whose middle pixel is its anchor."""

    radius: Image
    inside: Mask
    area: int
    half: int


@dataclass(frozen=True)
class _Spot:
    """A place that a nucleus may take."""

    y_px: int
    x_px: int
    angle: float


def _draw(rng: np.random.Generator, kind: CellClass, angle: float, pleomorphism: float) -> _Shape:
    """One nucleus of a class, its long axis along ``angle``."""
    spread = kind.size_spread * pleomorphism
    size = max(0.6, 1 + spread * rng.standard_normal())
    slim = max(0.7, 1 + 0.7 * spread * rng.standard_normal())
    major, minor = kind.major_px * size * slim, kind.minor_px * size / slim
    bow = kind.bend * rng.uniform(-1, 1)
    half = math.ceil(max(major, minor) * 1.25) + 1
    axis = np.arange(-half, half + 1, dtype=np.float64)
    off_y, off_x = rng.uniform(-0.5, 0.5, 2)
    dy, dx = (axis - off_y)[:, None], (axis - off_x)[None, :]
    along = (dx * math.cos(angle) + dy * math.sin(angle)) / major
    across = (dy * math.cos(angle) - dx * math.sin(angle)) / minor
    # The bow shifts the middle line sideways by a parabola; across is in units of the short axis.
    across = across - bow * major / minor * (along * along - 1 / 3)
    # Powers of the unit vector's complex form give the outline's waves without a call of cos or atan2: fast, and the
    # same to the last bit wherever numbers are IEEE.
    point = along + 1j * across
    radius = np.abs(point)
    unit = point / np.maximum(radius, 1e-9)
    amounts = kind.waviness * pleomorphism * rng.standard_normal(4) * np.array([1.0, 2 / 3, 0.5, 0.4])
    amounts = amounts * np.exp(2j * math.pi * rng.random(4))
    amounts[2] += kind.taper / 2
    wave = amounts[3]
    for amount in (amounts[2], amounts[1], amounts[0]):
        wave = wave * unit + amount
    swell = 1 - kind.taper / 2 + (wave * (unit * unit)).real
    radius = (radius / np.maximum(swell, 0.4)).astype(np.float32)
    inside = radius < 1
    return _Shape(radius, inside, int(inside.sum()), half)


class _Canvas:
    """The label image while nuclei are laid on it, later ones on top."""

    def __init__(self, tissue: Tissue) -> None:
        shape = tissue.shape
        self.labels = np.zeros(shape, np.int32)
        self.radius = np.full(shape, 2, np.float32)
        self.beneath = np.zeros(shape, np.int32)
        self.kinds: list[int] = [0]
        self.centres: list[tuple[float, float]] = [(0.0, 0.0)]

    def is_free(self, spot: _Spot, barred: Mask) -> bool:
        """Whether a place's own pixel is on the slide, not barred and not taken: a cheap first look."""
        height, width = self.labels.shape
        if not (0 <= spot.y_px < height and 0 <= spot.x_px < width):
            return False
        return not (barred[spot.y_px, spot.x_px] or self.labels[spot.y_px, spot.x_px])

    def lay(self, shape: _Shape, spot: _Spot, kind: int, barred: Mask, overlap: float, spill: float) -> int:
        """Lay a nucleus down if it overlaps others and the barred area little enough; return the pixels it shows."""
        height, width = self.labels.shape
        top, left = spot.y_px - shape.half, spot.x_px - shape.half
        bottom, right = spot.y_px + shape.half + 1, spot.x_px + shape.half + 1
        window = np.s_[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        own = np.s_[
            max(-top, 0) : shape.inside.shape[0] - max(bottom - height, 0),
            max(-left, 0) : shape.inside.shape[1] - max(right - width, 0),
        ]
        inside = shape.inside[own]
        if not inside.size:
            return 0
        below = self.labels[window]
        shown = int(inside.sum())
        if shown < MIN_AREA_PX or np.count_nonzero(below[inside]) > overlap * shape.area:
            return 0
        if np.count_nonzero(barred[window][inside]) > spill * shape.area:
            return 0
        name = len(self.kinds)
        self.beneath[window][inside] = below[inside]
        self.radius[window][inside] = shape.radius[own][inside]
        below[inside] = name
        self.kinds.append(kind)
        self.centres.append((float(spot.y_px), float(spot.x_px)))
        return shown


def _ring_spots(rng: np.random.Generator, tissue: Tissue) -> Iterator[_Spot]:
    """Places around the vessels, one after another, each along its vessel's rim."""
    for vessel in tissue.vessels:
        around = math.pi * (vessel.major_px + vessel.minor_px + 6)
        slots = max(1, round(around / 21))
        start = rng.uniform(0, 2 * math.pi)
        for slot in range(slots):
            turn = start + 2 * math.pi * (slot + rng.normal(0, 0.16)) / slots
            wobble = 1 + 0.06 * math.cos(3 * turn + vessel.x_px) + 0.04 * math.cos(5 * turn + vessel.y_px)
            edge = wobble / math.hypot(math.cos(turn) / vessel.major_px, math.sin(turn) / vessel.minor_px) + 3.4
            along, across = edge * math.cos(turn), edge * math.sin(turn)
            c, s = math.cos(vessel.angle), math.sin(vessel.angle)
            tangent = math.atan2(vessel.minor_px * math.cos(turn), -vessel.major_px * math.sin(turn)) + vessel.angle
            y_px, x_px = vessel.y_px + along * s + across * c, vessel.x_px + along * c - across * s
            yield _Spot(round(y_px), round(x_px), tangent)


def _densities(rng: np.random.Generator, tissue: Tissue) -> dict[str, Image]:
    """How likely each class is at each cell of the coarse density grid."""
    coarse = np.s_[::DENSITY_CELL_PX, ::DENSITY_CELL_PX]
    depth, cluster = tissue.nest_depth_px[coarse], tissue.cluster[coarse]
    nest = tissue.nest[coarse] & (depth > 3)
    open_stroma = ~(tissue.hollow | tissue.nest)[coarse]
    shape = (depth.shape[0], depth.shape[1])

    def mottle(strength: float, sigma_px: float) -> Image:
        return np.asarray(np.exp(strength * smooth_noise(rng, shape, sigma_px / DENSITY_CELL_PX)), np.float32)

    margin = np.exp(-np.abs(depth + 12) / 22)
    bed = open_stroma * mottle(0.45, 36)
    calm = 1 - 0.93 * cluster
    cells = {
        "Tumor": nest * mottle(0.25, 28),
        "Stroma": bed * calm * (1 + 0.5 * margin),
        "Endothelia": bed * calm,
        "Macrophage": open_stroma * mottle(0.9, 26) * (0.5 + margin + 0.4 * cluster) + 0.05 * nest,
        "Other": open_stroma * mottle(0.9, 30) * (0.4 + cluster),
        "Helper T cell": open_stroma * (cluster + 0.02 + 0.02 * margin),
        "Cytotoxic T cell": open_stroma * (0.7 * cluster + 0.03 + 0.05 * margin) + 0.03 * nest,
        "Treg": open_stroma * (cluster + 0.03 + 0.05 * margin),
        "B cells": open_stroma * (cluster**2 + 0.002),
    }
    return {name: np.asarray(density, np.float32) for name, density in cells.items()}


def _spots(rng: np.random.Generator, density: Image, name: str, tissue: Tissue) -> Iterator[_Spot]:
    """Endless places for a class, drawn from its density, turned as its nuclei turn there."""
    height, width = tissue.shape
    slope_y, slope_x = map(np.asarray, np.gradient(tissue.nest_depth_px[::DENSITY_CELL_PX, ::DENSITY_CELL_PX]))
    while True:
        points = draw_points(rng, density, 512, DENSITY_CELL_PX)
        turns = rng.uniform(-math.pi, math.pi, 512)
        nudges = rng.standard_normal(512)
        for (y_px, x_px), turn, nudge in zip(points.tolist(), turns.tolist(), nudges.tolist(), strict=True):
            y, x = min(y_px, height - 1), min(x_px, width - 1)
            angle = turn
            if name in {"Stroma", "Endothelia"}:
                angle = math.atan2(float(tissue.sin[y, x]), float(tissue.cos[y, x])) + 0.22 * nudge
            elif name == "Tumor" and tissue.nest_depth_px[y, x] < 26:
                # The outer layer of a nest stands upright on its border.
                row, column = y // DENSITY_CELL_PX, x // DENSITY_CELL_PX
                angle = math.atan2(float(slope_y[row, column]), float(slope_x[row, column])) + 0.35 * nudge
            yield _Spot(y, x, angle)


def _fill(
    rng: np.random.Generator,
    canvas: _Canvas,
    spots: Iterator[_Spot],
    kind: int,
    target_px: float,
    barred: Mask,
    pleomorphism: float,
    tries: int,
) -> float:
    """Lay nuclei of one class until they show ``target_px`` pixels; return how many are still missing."""
    look = CLASSES[kind - 1]
    refused = 0
    while refused < _GIVE_UP:
        # Most nuclei only touch; some lie over a neighbour.
        overlap = 0.24 if rng.random() < 0.16 else 0.07
        shown = 0
        for _ in range(tries):
            spot = next(spots, None)
            if spot is None:
                return target_px
            if not canvas.is_free(spot, barred):
                continue
            shape = _draw(rng, look, spot.angle, pleomorphism)
            if target_px < shape.area / 2:
                return target_px
            # A nucleus that does not fit may fit a little aside, where its angle is still right.
            for dy, dx in ((0, 0), *rng.integers(-9, 10, (3, 2)).tolist()):
                aside = _Spot(spot.y_px + dy, spot.x_px + dx, spot.angle)
                shown = canvas.lay(shape, aside, kind, barred, overlap, 0.06)
                if shown or tries == 1:
                    break
            if shown:
                break
        target_px -= shown
        refused = 0 if shown else refused + 1
    return target_px


def _tidy(canvas: _Canvas) -> Nuclei:
    """Keep the largest piece of every nucleus, drop the crumbs, number what is left in raster order of first pixels."""
    labels = canvas.labels
    count = len(canvas.kinds)
    pieces = np.asarray(measure.label(labels, background=0, connectivity=1))  # type: ignore[no-untyped-call]
    sizes = np.bincount(pieces.ravel())
    owner = np.zeros(sizes.size, np.int64)
    owner[pieces] = labels
    # Of each nucleus's pieces in order of size, earlier pieces first among equals, the first one stays.
    order = np.lexsort((np.arange(sizes.size), -sizes, owner))
    stays = np.zeros(sizes.size, np.bool_)
    stays[order[np.flatnonzero(np.diff(owner[order], prepend=-1))]] = True
    stays &= (sizes >= MIN_AREA_PX) & (owner > 0)
    lost = (labels > 0) & ~stays[pieces]
    labels[lost] = 0
    canvas.radius[lost] = 2
    canvas.beneath[lost] = 0
    found, first = np.unique(labels, return_index=True)
    found, first = found[found > 0], first[found > 0]
    kept = found[np.argsort(first)]
    renumber = np.zeros(count, np.int32)
    renumber[kept] = np.arange(1, kept.size + 1, dtype=np.int32)
    sources = np.concatenate([[0], kept])
    centres = np.array(canvas.centres, np.float64)[sources]
    return Nuclei(
        labels=renumber[labels],
        radius=canvas.radius,
        beneath=renumber[canvas.beneath],
        class_of=np.array(canvas.kinds, np.uint8)[sources],
        y_px=centres[:, 0],
        x_px=centres[:, 1],
    )


def place_nuclei(
    rng: np.random.Generator, tissue: Tissue, target_px: NDArray[np.float64], pleomorphism: float = 1.0
) -> Nuclei:
    """Fill a slide with nuclei.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    tissue : Tissue
        Where what may lie.
    target_px : ndarray
        (n_classes,) float64, pixels that each class of ``CLASSES`` is to show.
    pleomorphism : float
        How unlike one another the tumour nuclei are, 1 being usual.

    Returns
    -------
    Nuclei
        Labels, classes and centres. A class with too little room gets fewer pixels than asked.
    """
    canvas = _Canvas(tissue)
    densities = _densities(rng, tissue)
    hollow = tissue.hollow
    outside_nest = ~tissue.nest
    in_epithelium = hollow | tissue.nest
    for name in _ORDER:
        kind = class_id(name)
        missing = float(target_px[kind - 1])
        if name == "Tumor":
            barred = outside_nest
        elif name in _LYMPHOCYTES or name == "Macrophage":
            barred = hollow
        else:
            barred = in_epithelium
        variety = pleomorphism if name == "Tumor" else 1.0
        if name == "Endothelia":
            missing = _fill(rng, canvas, _ring_spots(rng, tissue), kind, missing, barred, variety, 1)
        if densities[name].any():
            _fill(rng, canvas, _spots(rng, densities[name], name, tissue), kind, missing, barred, variety, _TRIES)
    return _tidy(canvas)
