"""A small annotated H&E field, which the kinds of bad annotations spoil."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.bad_inputs.kinds import Cells

__all__ = [
    "CLASS_NAMES",
    "MPP_UM",
    "SHAPE",
    "class_rows",
    "collection",
    "labels",
    "outlines",
    "picture",
    "square",
    "tell",
]

#: Height and width, px; the pixel size; the study's classes 1, 2, 3.
SHAPE, MPP_UM = (240, 256), 0.5
CLASS_NAMES = ("tumour", "stroma", "lymphocyte")
_APART_PX, _FRAME = 15, 24
Labels = NDArray[np.int32]


@lru_cache
def labels(seed: int = 0) -> Labels:
    """Label image of separate nuclei, (240, 256) int32, 1, 2, 3, …; not to be written to."""
    rng = np.random.default_rng(seed)
    found = np.zeros(SHAPE, np.int32)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    places: list[tuple[float, float]] = []
    for cy, cx in rng.uniform((_FRAME + 8,) * 2, (SHAPE[0] - _FRAME - 8, SHAPE[1] - _FRAME - 8), (300, 2)).tolist():
        if all((cy - other_y) ** 2 + (cx - other_x) ** 2 > _APART_PX**2 for other_y, other_x in places):
            places.append((cy, cx))
            tall, wide = rng.uniform(4, 7, 2)
            found[((y - cy) / tall) ** 2 + ((x - cx) / wide) ** 2 < 1] = len(places)
    found.flags.writeable = False
    return found


@lru_cache
def picture() -> NDArray[np.uint8]:
    """The field: violet nuclei on pink tissue in a white frame, (240, 256, 3)."""
    rng = np.random.default_rng(7)
    inside = np.zeros(SHAPE, bool)
    inside[_FRAME:-_FRAME, _FRAME:-_FRAME] = True
    colours = np.where(inside[..., None], (226, 168, 200), (250, 249, 250))
    colours = np.where(labels()[..., None] > 0, (112, 72, 150), colours)
    noise = rng.normal(0, 5, (*SHAPE, 3)) * inside[..., None]
    return np.clip(np.rint(colours + noise), 0, 255).astype(np.uint8)


def tell(folder: Path, instances: str | None, classes: str | None = None, **more: str) -> Cells:
    """Write the field, and name its annotation."""
    Image.fromarray(picture()).save(folder / "field.png")
    cells = {"he": "field.png", "mpp_um": str(MPP_UM), **more}
    named = {"instances": instances, "classes": classes}
    return cells | {column: text for column, text in named.items() if text is not None}


def class_rows(ids: Iterable[int], words: Iterable[str], mark: str = ",") -> str:
    """Text of a class table."""
    lines = [f"{number}{mark}{word}\n" for number, word in zip(ids, words, strict=True)]
    return f"instance_id{mark}class\n{''.join(lines)}"


@lru_cache
def outlines() -> tuple[tuple[tuple[float, float], ...], ...]:
    """Closed rings of (x, y) around the field's nuclei: rectangles, in the order of their numbers."""
    found = []
    for label in range(1, int(labels().max()) + 1):
        y, x = np.nonzero(labels() == label)
        found.append(square(float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)))
    return tuple(found)


def square(left: float, top: float, right: float, bottom: float) -> tuple[tuple[float, float], ...]:
    """Closed ring of (x, y) around a rectangle."""
    return ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))


def collection(polygons: Iterable[Any], word: str | None = "tumour", kind: str = "Polygon") -> str:
    """GeoJSON of nuclei, each the coordinates of a polygon."""
    properties: dict[str, Any] = {"objectType": "detection"}
    if word is not None:
        properties["classification"] = {"name": word}
    features = [
        {"type": "Feature", "properties": properties, "geometry": {"type": kind, "coordinates": polygon}}
        for polygon in polygons
    ]
    return json.dumps({"type": "FeatureCollection", "features": features})
