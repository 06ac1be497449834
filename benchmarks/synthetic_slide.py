"""Maps of slides of any size, crowded and noisy, as a decoder would give them; for the benchmarks of the instances.

One patch of nuclei is drawn; the slide is laid out of it, each time turned, flipped and rolled another way. The patch's
side divides no window, so windows cut nuclei everywhere, and no two windows hold the same.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.artefacts.zarrio import create_array, create_group
from slideloom.patches.hv import boundary_map, hv_map
from slideloom.slides.facts import ImageFacts, SlideFacts
from slideloom.slides.image import Level
from slideloom.slides.tables import ClassTable

__all__ = ["CLASSES", "facts_of", "write_maps"]

MPP_UM = 0.25
PATCH_PX = 1900
BAND_PX = 1024
HEADS = ("nucleus", "hv", "classes", "boundary")
CLASSES = ClassTable(
    (1, 2, 3, 4, 5),
    ("tumour", "stroma", "immune", "dead", "other"),
    ((255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (200, 200, 0)),
)
Planes = dict[str, NDArray[Any]]


def write_maps(place: Path, height_px: int, width_px: int, *, nuclei_per_mpx: int = 450, seed: int = 0) -> None:
    """Write the maps store of a slide, laid out as the inference lays it out.

    Parameters
    ----------
    place : Path
        Group to create.
    height_px, width_px : int
        Size of the slide.
    nuclei_per_mpx : int
        Nuclei that are drawn; some are covered by others.
    seed : int
        Of everything drawn.
    """
    looks = [_turned(_patch(seed, nuclei_per_mpx), turn) for turn in range(8)]
    about = {"slide_id": "s1", "image": "he", "scale": 1.0, "mpp_um": MPP_UM, "heads": list(HEADS), "schema": 1}
    create_group(place, {**about, "height_px": height_px, "width_px": width_px})
    columns = -(-min(width_px, 8192) // 256) * 256
    arrays = {
        name: create_array(
            place / name,
            (*plane.shape[:-2], height_px, width_px),
            plane.dtype,
            chunk=(*(1 for _ in plane.shape[:-2]), 256, 256),
            shard=(*plane.shape[:-2], BAND_PX, columns),
            codec="labels",
        )
        for name, plane in looks[0].items()
    }
    for top in range(0, height_px, BAND_PX):
        bottom = min(top + BAND_PX, height_px)
        for name, array in arrays.items():
            band = np.zeros((*array.shape[:-2], bottom - top, width_px), array.dtype.numpy_dtype)
            for row in range(top // PATCH_PX, (bottom - 1) // PATCH_PX + 1):
                for col in range((width_px - 1) // PATCH_PX + 1):
                    rng = np.random.default_rng((seed, row, col))
                    plane = looks[rng.integers(8)][name]
                    roll_y, roll_x = rng.integers(PATCH_PX, size=2)
                    rolled = np.roll(plane, (-roll_y, -roll_x), (-2, -1))
                    first, last = max(top, row * PATCH_PX), min(bottom, (row + 1) * PATCH_PX)
                    left, right = col * PATCH_PX, min(width_px, (col + 1) * PATCH_PX)
                    part = rolled[..., first - row * PATCH_PX : last - row * PATCH_PX, : right - left]
                    band[..., first - top : last - top, left:right] = part
            array[..., top:bottom, :].write(band).result()


def facts_of(height_px: int, width_px: int) -> SlideFacts:
    """The slide of such maps."""
    image = ImageFacts(
        source="s1.tif",
        reader="synthetic",
        height_px=height_px,
        width_px=width_px,
        n_channels=3,
        dtype="uint8",
        mpp_um=MPP_UM,
        mpp_source="sheet",
        levels=(Level(height_px, width_px, 1.0),),
        channels=(),
        is_rgb=True,
    )
    return SlideFacts("s1", {"he": image})


def _patch(seed: int, nuclei_per_mpx: int) -> Planes:
    """Ellipses of 4 to 9 µm, most of them in clusters that touch, and noisy maps of them."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((PATCH_PX, PATCH_PX), np.int32)
    centres: list[NDArray[np.float64]] = []
    number = 0
    for _ in range(round(nuclei_per_mpx * PATCH_PX**2 / 1e6)):
        radius = rng.uniform(8, 18)
        if centres and rng.random() < 0.6:
            angle = rng.uniform(0, 2 * np.pi)
            centre = centres[rng.integers(len(centres))] + 24 * np.array([np.sin(angle), np.cos(angle)])
        else:
            centre = rng.uniform(0, PATCH_PX, 2)
        mask = np.zeros((49, 49), np.uint8)
        axes = (round(radius), round(radius * rng.uniform(0.6, 1)))
        cv2.ellipse(mask, (24, 24), axes, rng.uniform(0, 180), 0, 360, 1, -1)
        y, x = np.clip(centre.round().astype(int), 24, PATCH_PX - 25)
        under = truth[y - 24 : y + 25, x - 24 : x + 25]
        if (under[mask > 0] > 0).mean() < 0.2:
            number += 1
            under[(mask > 0) & (under == 0)] = number
            centres.append(np.array([y, x], np.float64))
    hv = np.stack([cv2.GaussianBlur(plane, (0, 0), 1.0) for plane in hv_map(truth)])
    hv += 0.15 * np.stack([_grain(rng), _grain(rng)])
    nucleus = cv2.GaussianBlur((truth > 0).astype(np.float32), (0, 0), 1.0) + 0.12 * _grain(rng)
    boundary = cv2.GaussianBlur(boundary_map(truth).astype(np.float32), (0, 0), 1.0) * 1.5 + 0.08 * _grain(rng)
    kind = np.concatenate([[0], rng.integers(1, 6, number)]).astype(np.uint8)[truth]
    patchy = _grain(rng) > 1.3
    kind[patchy] = rng.integers(0, 6, kind.shape).astype(np.uint8)[patchy]
    return {
        "nucleus": np.rint(np.clip(nucleus, 0, 1) * 255).astype(np.uint8),
        "hv": np.rint(np.clip(hv, -1, 1) * 127).astype(np.int8),
        "class_id": kind,
        "class_probability": np.rint(np.clip(0.7 + 0.1 * _grain(rng), 0, 1) * 255).astype(np.uint8),
        "boundary": np.rint(np.clip(boundary, 0, 1) * 255).astype(np.uint8),
    }


def _grain(rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth noise of variance 1."""
    grain = cv2.GaussianBlur(rng.normal(size=(PATCH_PX, PATCH_PX)).astype(np.float32), (0, 0), 2)
    return grain / grain.std()


def _turned(planes: Planes, turn: int) -> Planes:
    """One of the eight poses; HV changes its signs and axes with it."""
    planes = dict(planes)
    for axis in (-1, -2):
        if turn & -axis:
            planes = {name: np.flip(plane, axis) for name, plane in planes.items()}
            planes["hv"] = planes["hv"].copy()
            planes["hv"][-1 - axis] *= -1
    if turn & 4:
        planes = {name: np.swapaxes(plane, -1, -2) for name, plane in planes.items()}
        planes["hv"] = planes["hv"][::-1]
    return {name: np.ascontiguousarray(plane) for name, plane in planes.items()}
