"""Synthetic nuclei, maps and tiles for the instances' tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from slideloom.artefacts.zarrio import create_group, write_array
from slideloom.patches.hv import boundary_map, hv_map
from slideloom.patches.store import PatchStore
from slideloom.slides.facts import ImageFacts, SlideFacts
from slideloom.slides.image import Level
from slideloom.slides.tables import Channel, ClassTable

Labels = NDArray[np.int32]


def discs(shape: tuple[int, int], centres: Sequence[tuple[float, float]], radius: float) -> Labels:
    """Discs, each pixel with the nearest centre: touching ones part along a straight line."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    distance = np.stack([np.hypot(y - cy, x - cx) for cy, cx in centres])
    return np.where(distance.min(axis=0) < radius, distance.argmin(axis=0) + 1, 0).astype(np.int32)


def crowd(seed: int, shape: tuple[int, int], count: int, radius: float) -> Labels:
    """Ellipses, many of them touching, each in one 4-connected piece."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    placed: list[tuple[float, float]] = []
    for number in range(1, count + 1):
        if placed and rng.random() < 0.6:
            cy, cx = placed[rng.integers(len(placed))]
            angle = rng.uniform(0, 2 * np.pi)
            cy, cx = cy + 2 * radius * np.sin(angle), cx + 2 * radius * np.cos(angle)
        else:
            cy, cx = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        stretch, turn = np.exp(rng.normal(0, 0.2)), rng.uniform(0, 180)
        axes = (max(2, round(radius * stretch)), max(2, round(radius / stretch)))
        reach = max(axes) + 1
        top, left = max(0, round(cy) - reach), max(0, round(cx) - reach)
        part = labels[top : round(cy) + reach + 1, left : round(cx) + reach + 1]
        mask = np.zeros(part.shape, np.uint8)
        if mask.size:
            cv2.ellipse(mask, (round(cx) - left, round(cy) - top), axes, turn, 0, 360, 1, -1)
        if mask.any() and (part[mask > 0] > 0).mean() < 0.3:
            part[(mask > 0) & (part == 0)] = number
            placed.append((cy, cx))
    clean = np.zeros_like(labels)
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        if place is not None:
            pieces, _ = ndimage.label(labels[place] == number)
            sizes = np.bincount(pieces.ravel())
            sizes[0] = 0
            clean[place][pieces == sizes.argmax()] = number
    return clean


@dataclass(frozen=True)
class Maps:
    """Maps as a decoder would give them, and what they were made from."""

    truth: Labels
    nucleus: NDArray[np.uint8]
    hv: NDArray[np.int8]


def predict(truth: Labels, *, blur: float = 0.0, noise: float = 0.0, seed: int = 0) -> Maps:
    """Maps of given nuclei, blurred and noisy."""
    rng = np.random.default_rng(seed)
    hv, probability = hv_map(truth), (truth > 0).astype(np.float32)
    if blur:
        hv = np.stack([cv2.GaussianBlur(plane, (0, 0), blur) for plane in hv])
        probability = cv2.GaussianBlur(probability, (0, 0), blur)
    if noise:
        grain = [cv2.GaussianBlur(rng.normal(size=truth.shape).astype(np.float32), (0, 0), 2) for _ in range(3)]
        hv = hv + noise * np.stack(grain[:2]) / np.std(grain[0])
        probability = probability + noise * grain[2] / np.std(grain[2])
    return Maps(
        truth,
        np.rint(np.clip(probability, 0, 1) * 255).astype(np.uint8),
        np.rint(np.clip(hv, -1, 1) * 127).astype(np.int8),
    )


def panoptic_quality(truth: NDArray[Any], found: NDArray[Any]) -> float:
    """Straight from the definition; an oracle that shares no code with the package."""
    _, truth = np.unique(np.append(truth.ravel(), 0), return_inverse=True)
    _, found = np.unique(np.append(found.ravel(), 0), return_inverse=True)
    both = np.zeros((truth.max() + 1, found.max() + 1), np.int64)
    np.add.at(both, (truth[:-1], found[:-1]), 1)
    common = both[1:, 1:]
    iou = common / np.maximum(both.sum(1)[1:, None] + both.sum(0)[None, 1:] - common, 1)
    matched = iou > 0.5
    return float(iou[matched].sum() / (0.5 * (common.shape[0] + common.shape[1])))


CLASSES = ClassTable((1, 2, 3), ("tumour", "stroma", "immune"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
CHANNELS = (Channel("DAPI-01", "DNA", "", True), Channel("CD3e", "CD3", "P07766"))


@dataclass(frozen=True)
class Slide:
    """A slide's maps and tiles on disk."""

    maps: Path
    patches: PatchStore
    facts: SlideFacts
    image: NDArray[np.uint16]
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)


def make_slide(
    folder: Path,
    made: Maps,
    *,
    scale: float = 2.0,
    mpp_um: float = 0.5,
    tile_px: int = 64,
    stride_px: int = 64,
    drop: Sequence[int] = (),
    heads: Sequence[str] = ("nucleus", "hv", "classes"),
    seed: int = 0,
    shifted: Maps | None = None,
) -> Slide:
    """Write a maps store and a patch store. ``mpp_um`` is the grid's."""
    rng = np.random.default_rng(seed)
    height, width = made.nucleus.shape
    class_of = np.concatenate([[0], rng.integers(1, 4, made.truth.max(initial=0))]).astype(np.uint8)
    class_id = class_of[made.truth]
    flip = rng.random(class_id.shape) < 0.1
    class_id[flip] = rng.integers(0, 4, int(flip.sum()))
    arrays: dict[str, NDArray[Any]] = {"nucleus": made.nucleus, "covered": np.ones_like(made.nucleus)}
    if "hv" in heads:
        arrays["hv"] = made.hv
    if "boundary" in heads:
        arrays["boundary"] = cv2.GaussianBlur(boundary_map(made.truth) * np.uint8(255), (0, 0), 0.6)
    if "classes" in heads:
        arrays["class_id"] = class_id
        arrays["class_probability"] = rng.integers(80, 256, class_id.shape).astype(np.uint8)
    frame = {"slide_id": "s1", "image": "sp", "scale": scale, "mpp_um": mpp_um, "height_px": height, "width_px": width}
    create_group(folder / "maps.zarr", {**frame, "schema": 1, "heads": list(heads), "encoder_weights": "random:1"})
    for name, values in arrays.items():
        write_array(folder / "maps.zarr" / name, values)
    if shifted is not None:
        create_group(folder / "maps.zarr" / "shifted", {})
        for name, values in (("nucleus", shifted.nucleus), ("hv", shifted.hv)):
            write_array(folder / "maps.zarr" / "shifted" / name, values)

    image = rng.integers(0, 5000, (len(CHANNELS), height, width)).astype(np.uint16)
    n_rows = 1 + max(0, -((tile_px - height) // stride_px))
    n_cols = 1 + max(0, -((tile_px - width) // stride_px))
    places = [(row, col) for row in range(n_rows) for col in range(n_cols)]
    places = [place for number, place in enumerate(places) if number not in drop]
    pixels = np.zeros((len(places), len(CHANNELS), tile_px, tile_px), np.uint16)
    for patch, (row, col) in zip(pixels, places, strict=True):
        part = image[:, row * stride_px : row * stride_px + tile_px, col * stride_px : col * stride_px + tile_px]
        patch[:, : part.shape[1], : part.shape[2]] = part
    row, col = np.array(places, np.int32).T
    columns = {
        "pixels": pixels,
        "row": row,
        "col": col,
        "y_px": row * np.int32(stride_px),
        "x_px": col * np.int32(stride_px),
        "tissue": np.ones(len(places), np.float32),
        "height_valid": np.minimum(tile_px, height - row * stride_px).astype(np.int32),
        "width_valid": np.minimum(tile_px, width - col * stride_px).astype(np.int32),
    }
    channels = [channel.as_dict() for channel in CHANNELS]
    tiles = {"tile_px": tile_px, "stride_px": stride_px, "is_rgb": False, "channels": channels}
    create_group(folder / "patches.zarr", {**frame, **tiles})
    for name, values in columns.items():
        write_array(folder / "patches.zarr" / name, values)
    lv0 = (round(height * scale), round(width * scale))
    image_facts = ImageFacts(
        source="s1.tif",
        reader="test",
        height_px=lv0[0],
        width_px=lv0[1],
        n_channels=len(CHANNELS),
        dtype="uint16",
        mpp_um=mpp_um / scale,
        mpp_source="sheet",
        levels=(Level(*lv0, 1.0),),
        channels=CHANNELS,
        is_rgb=False,
    )
    facts = SlideFacts("s1", {"sp": image_facts})
    return Slide(folder / "maps.zarr", PatchStore(folder / "patches.zarr"), facts, image, arrays)


@pytest.fixture(scope="session")
def make_discs() -> Callable[..., Labels]:
    return discs


@pytest.fixture(scope="session")
def make_crowd() -> Callable[..., Labels]:
    return crowd


@pytest.fixture(scope="session")
def make_maps() -> Callable[..., Maps]:
    return predict


@pytest.fixture(scope="session")
def pq() -> Callable[..., float]:
    return panoptic_quality


@pytest.fixture(scope="session")
def classes() -> ClassTable:
    return CLASSES


@pytest.fixture
def slide_of(tmp_path: Path) -> Callable[..., Slide]:
    return lambda made, **options: make_slide(tmp_path, made, **options)
