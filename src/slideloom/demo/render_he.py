"""The H&E image of a synthetic slide, from amounts of haematoxylin and eosin in each pixel.

Light falls off with the amount of dye: ``intensity = glass * 10 ** -(H * h + E * e)`` for each of red, green and blue,
where ``h`` and ``e`` are the dyes' absorption colours (after Ruifrok and Johnston, 2001), a little different on every
slide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from slideloom.demo.noise import blur, normal_image, smooth_noise, smoothstep, streaks
from slideloom.demo.nuclei import Nuclei
from slideloom.demo.panel import CLASSES, class_id
from slideloom.demo.tissue import Tissue

__all__ = ["Stain", "cell_map", "draw_he", "draw_stain"]

Image = NDArray[np.float32]

_HAEMATOXYLIN = np.array([0.63, 0.70, 0.32])
_EOSIN = np.array([0.10, 0.88, 0.44])
_BLOOD = np.array([0.16, 0.80, 0.62])


@dataclass(frozen=True)
class Stain:
    """How one slide was stained and scanned.

    Attributes
    ----------
    haematoxylin, eosin : ndarray
        (3,) float64, absorption of one unit of each dye in red, green and blue.
    haematoxylin_gain, eosin_gain : float
        Strength of each dye.
    glass : ndarray
        (3,) float64, colour of empty glass, 0 to 255.
    blur_px : float
        Softness of the optics.
    """

    haematoxylin: NDArray[np.float64]
    eosin: NDArray[np.float64]
    haematoxylin_gain: float
    eosin_gain: float
    glass: NDArray[np.float64]
    blur_px: float


def draw_stain(rng: np.random.Generator) -> Stain:
    """Draw a slide's stain: the usual colours, each a little off."""

    def tint(colour: NDArray[np.float64]) -> NDArray[np.float64]:
        other = np.clip(colour + rng.normal(0, 0.03, 3), 0.03, None)
        return np.asarray(other / np.linalg.norm(other), np.float64)

    return Stain(
        haematoxylin=tint(_HAEMATOXYLIN),
        eosin=tint(_EOSIN),
        haematoxylin_gain=float(np.clip(rng.normal(1.0, 0.11), 0.75, 1.3)),
        eosin_gain=float(np.clip(rng.normal(1.0, 0.14), 0.7, 1.4)),
        glass=np.clip(rng.normal([243, 242, 244], 2.5), 232, 252),
        blur_px=float(rng.uniform(0.6, 0.85)),
    )


def cell_map(tissue: Tissue, nuclei: Nuclei) -> tuple[NDArray[np.int32], Image]:
    """Give every pixel to the nucleus nearest to it, as far as that nucleus's cell reaches.

    Returns
    -------
    cells : ndarray
        (h, w) int32, the nucleus whose cell a pixel belongs to (its own pixels included), 0 where no cell reaches.
    away_px : ndarray
        (h, w) float32, distance to the nearest nucleus.
    """
    outside = (nuclei.labels == 0).astype(np.uint8)
    if not len(nuclei):
        return np.zeros(tissue.shape, np.int32), np.full(tissue.shape, 1e3, np.float32)
    away, nearest = cv2.distanceTransformWithLabels(
        outside, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    name_of = np.zeros(int(nearest.max()) + 1, np.int32)
    within = outside == 0
    name_of[nearest[within]] = nuclei.labels[within]
    owner = name_of[nearest]
    reach = np.array([0.0] + [kind.cytoplasm_px for kind in CLASSES], np.float32)[nuclei.class_of]
    tumour = nuclei.class_of == class_id("Tumor")
    inside = away <= reach[owner]
    # Tumour cytoplasm stays in the nest and other cells stay out of it, except for a leucocyte's own rim.
    inside &= np.where(tumour[owner], tissue.nest, ~tissue.nest | (away <= 3))
    inside &= ~tissue.hollow | (away == 0)
    return np.where(inside, owner, 0).astype(np.int32), np.asarray(away, np.float32)


def _nucleoli(rng: np.random.Generator, nuclei: Nuclei, shape: tuple[int, int]) -> Image:
    """One or two dark dots in most tumour nuclei, 0 to about 1."""
    dots = np.zeros(shape, np.float32)
    axis = np.arange(-4, 5, dtype=np.float32)
    for name in np.flatnonzero(nuclei.class_of == class_id("Tumor")):
        for _ in range(int(rng.integers(0, 3))):
            turn, far, size = rng.uniform(0, 2 * math.pi), rng.uniform(0, 4.5), rng.uniform(1.0, 1.7)
            y, x = nuclei.y_px[name] + far * math.sin(turn), nuclei.x_px[name] + far * math.cos(turn)
            row, column = round(y), round(x)
            if not (4 <= row < shape[0] - 4 and 4 <= column < shape[1] - 4):
                continue
            dot = np.exp(-((axis[:, None] - (y - row)) ** 2 + (axis[None, :] - (x - column)) ** 2) / (2 * size**2))
            window = np.s_[row - 4 : row + 5, column - 4 : column + 5]
            dots[window] = np.maximum(dots[window], dot * (nuclei.labels[window] == name))
    return dots


def _chromatin(rng: np.random.Generator, nuclei: Nuclei, shape: tuple[int, int]) -> Image:
    """Haematoxylin in the nuclei."""

    def per_class(values: list[float]) -> NDArray[np.float32]:
        return np.array([0.0, *values], np.float32)[nuclei.class_of]

    own = np.exp(0.14 * rng.standard_normal(len(nuclei) + 1)).astype(np.float32)
    dense = per_class([kind.chromatin for kind in CLASSES]) * own
    clumping = per_class([kind.clumping for kind in CLASSES])
    rim = per_class([kind.rim for kind in CLASSES])
    # Clumps are a few tenths of a µm to a µm: noise of one pixel less its own two-pixel blur.
    grain = blur(normal_image(rng, shape), 1.0)
    grain = (grain - blur(grain, 2.8)) / np.float32(0.22)
    labels = nuclei.labels
    edge = smoothstep(nuclei.radius, 0.62, 0.93)
    body = dense[labels] * (0.88 + clumping[labels] * grain + rim[labels] * edge)
    body = np.maximum(body, 0.15 * dense[labels])
    body = body + 0.55 * dense[nuclei.beneath]
    body = body + 0.42 * _nucleoli(rng, nuclei, shape) * (labels > 0)
    return np.asarray(body, np.float32)


def _blood(rng: np.random.Generator, tissue: Tissue, away_px: Image) -> Image:
    """Red blood cells in the vessels that hold some, 0 to 1."""
    blood = np.zeros(tissue.shape, np.float32)
    room = tissue.vessel_rim_px < -4
    for vessel in tissue.vessels:
        if not vessel.filled:
            continue
        window_reach = math.ceil(vessel.major_px)
        count = round(vessel.filled * math.pi * vessel.major_px * vessel.minor_px / 110)
        for dy, dx in rng.uniform(-window_reach, window_reach, (3 * count, 2)):
            y, x = round(vessel.y_px + dy), round(vessel.x_px + dx)
            if 8 <= y < blood.shape[0] - 8 and 8 <= x < blood.shape[1] - 8 and room[y, x]:
                axis = np.arange(-8, 9, dtype=np.float32)
                far = np.hypot(axis[:, None], axis[None, :] * np.float32(rng.uniform(1, 1.3)))
                disc = smoothstep(-far, -6.8, -5.2) * (0.82 + 0.18 * smoothstep(far, 1, 4))
                window = np.s_[y - 8 : y + 9, x - 8 : x + 9]
                blood[window] = np.maximum(blood[window], disc)
    return np.asarray(blood * (tissue.vessel_rim_px < -1) * (away_px > 0), np.float32)


def draw_he(
    rng: np.random.Generator,
    tissue: Tissue,
    nuclei: Nuclei,
    cells: NDArray[np.int32],
    away_px: Image,
    stain: Stain,
) -> NDArray[np.uint8]:
    """Paint the slide as a bright-field scanner sees it.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    tissue : Tissue
        The slide's maps.
    nuclei : Nuclei
        Its nuclei.
    cells, away_px : ndarray
        What `cell_map` gives.
    stain : Stain
        How it was stained.

    Returns
    -------
    ndarray
        (h, w, 3) uint8 RGB.
    """
    shape = tissue.shape
    nucleus = nuclei.labels > 0
    # Collagen: streaked noise, in bundles that white clefts part.
    fine = streaks(normal_image(rng, shape), tissue.cos, tissue.sin, 5)
    fine = fine / np.float32(fine.std() + 1e-6)
    coarse = streaks(smooth_noise(rng, shape, 2.6), tissue.cos, tissue.sin, 6)
    coarse = coarse / np.float32(coarse.std() + 1e-6)
    loose = smooth_noise(rng, shape, 55)
    dense = np.clip(0.66 + 0.26 * loose - 0.45 * tissue.cluster, 0.12, 1)
    cleft = smoothstep(-coarse - 0.55 * loose, 1.0, 1.6) * (1 - 0.6 * tissue.cluster)
    fibre = np.clip(0.34 + 0.12 * coarse + 0.07 * fine, 0.05, None) * dense + 0.05
    stroma = ~(tissue.hollow | tissue.nest)
    eosin = np.where(stroma, fibre * (1 - 0.93 * cleft), 0).astype(np.float32)
    blue = np.where(stroma, (0.03 + 0.07 * tissue.cluster + 0.03 * np.clip(-loose, 0, 1)) * (1 - 0.9 * cleft), 0)
    muscle = tissue.muscle * stroma
    eosin += muscle * (0.16 + 0.05 * fine - 0.5 * eosin)

    # Cytoplasm: what each class adds around its nuclei; tumour nests are filled with it.
    kinds = nuclei.class_of[cells]
    body = np.array([(0.0, 0.0)] + [kind.body for kind in CLASSES], np.float32)[kinds]
    grain = blur(normal_image(rng, shape), 1.3) / np.float32(0.22)
    patchy = smooth_noise(rng, shape, 9)
    cytoplasm = 1 + 0.09 * grain + 0.14 * patchy
    in_cell = cells > 0
    membrane = np.zeros(shape, np.float32)
    membrane[:, 1:] += cells[:, 1:] != cells[:, :-1]
    membrane[1:] += cells[1:] != cells[:-1]
    membrane = blur(membrane * ~nucleus, 0.9)
    # How much of the ground's own colour a cell's body replaces: a fibroblast's none, a macrophage's most.
    cover = np.array([0.0] + [min(1.0, kind.cytoplasm_px / 9) - 0.3 for kind in CLASSES], np.float32).clip(0, 1)[kinds]
    share = np.where(tissue.nest, 0, cover).astype(np.float32)
    tone = np.exp(0.13 * rng.standard_normal((len(nuclei) + 1, 2))).astype(np.float32)[cells]
    body = body * tone
    eosin = eosin * (1 - share) + body[..., 1] * cytoplasm * in_cell
    blue = blue * (1 - share) + body[..., 0] * cytoplasm * in_cell
    gap = tissue.nest & ~in_cell  # nest too far from any nucleus: pale cytoplasm
    eosin = np.where(gap, 0.20 * cytoplasm, eosin)
    blue = np.where(gap, 0.07 * cytoplasm, blue)
    eosin = eosin + np.where(tissue.nest, 0.10 * membrane, 0)
    # Vacuoles and the shrinkage cleft along parts of a nest's border.
    vacuole = smoothstep(smooth_noise(rng, shape, 3.4), 1.75, 2.3) * (tissue.nest & ~nucleus)
    rift = np.exp(-((tissue.nest_depth_px + 1.5) ** 2) / 3.0) * smoothstep(smooth_noise(rng, shape, 24), 0.3, 1.3)
    clear = np.maximum(0.75 * vacuole, 0.8 * rift * ~nucleus).astype(np.float32)
    eosin, blue = eosin * (1 - clear), blue * (1 - clear)
    secretion = smoothstep(smooth_noise(rng, shape, 12), 0.2, 1.4) * tissue.lumen
    eosin = eosin + 0.10 * secretion
    # A thin dense line where tissue ends, at lumens and at the vessels' wall.
    solid = blur((~tissue.hollow).astype(np.float32), 1.6)
    eosin = eosin + 0.30 * np.clip(1 - np.abs(2 * solid - 1.3), 0, 1) * (~tissue.hollow) * ~tissue.glass

    chromatin = _chromatin(rng, nuclei, shape)
    eosin = np.where(nucleus, 0.32 * eosin + 0.06, eosin)
    blue = np.where(nucleus, 0.25 * blue, blue) + chromatin
    blood = _blood(rng, tissue, away_px)
    eosin, blue = eosin * (1 - blood), blue * (1 - blood)

    thickness = np.exp(0.07 * smooth_noise(rng, shape, 120))
    softness = stain.blur_px
    blue = blur(np.asarray(blue * thickness, np.float32), softness) * np.float32(stain.haematoxylin_gain)
    eosin = blur(np.asarray(eosin * thickness, np.float32), softness) * np.float32(stain.eosin_gain)
    blood = blur(blood, softness) * np.float32(0.5)
    dust = 1 + 0.006 * smooth_noise(rng, shape, 150)
    picture = np.empty((*shape, 3), np.uint8)
    for band in range(3):
        density = (
            blue * np.float32(stain.haematoxylin[band])
            + eosin * np.float32(stain.eosin[band])
            + blood * np.float32(_BLOOD[band])
        )
        light = np.float32(stain.glass[band]) * dust * np.exp(density * np.float32(-math.log(10)))
        light += np.float32(1.6) * normal_image(rng, shape)
        picture[..., band] = np.clip(np.rint(light), 0, 255).astype(np.uint8)
    return picture
