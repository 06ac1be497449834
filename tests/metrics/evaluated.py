"""A slide to evaluate: truth and prediction in memory, written to disk and scored on demand."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from slideloom.artefacts.tables import read_table
from slideloom.artefacts.zarrio import create_group, write_array
from slideloom.config.model import EvaluationConfig
from slideloom.metrics.detail_schemas import CONFUSION, SCORES, TILES
from slideloom.metrics.evaluate import evaluate_slide
from slideloom.metrics.schemas import CLASS_METRICS, SLIDE_METRICS
from slideloom.slides.facts import ImageFacts, SlideFacts
from slideloom.slides.image import Level
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import ClassTable

CLASSES = ClassTable((1, 2, 3), ("tumour", "stroma", "rare"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)), ((), (), ()))
TABLES = {
    "slide": SLIDE_METRICS,
    "classes": CLASS_METRICS,
    "confusion": CONFUSION,
    "scores": SCORES,
    "tiles": TILES,
}

Tables = dict[str, list[dict[str, Any]]]


@dataclass
class Slide:
    """Truth and prediction of one slide, and where they lie."""

    folder: Path
    gt: np.ndarray
    gt_class: np.ndarray
    labels: np.ndarray
    arrays: dict[str, np.ndarray]
    row: SlideRow = field(default_factory=lambda: SlideRow("s1", instances="gt.npy", classes="classes.npy"))
    seam_change: dict[str, Any] | None = None
    mpp_um: float = 0.5
    tile_px: int | None = None

    def tables(self, **evaluation: Any) -> Tables | None:
        """Write everything, evaluate, read the tables back."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        np.save(self.folder / "gt.npy", self.gt)
        np.save(self.folder / "classes.npy", self.gt_class)
        maps, labels, out = (self.folder / name for name in ("maps.zarr", "labels.ome.zarr", "metrics"))
        create_group(maps, {"mpp_um": self.mpp_um, "scale": 1.0, "encoder_weights": "random:1"})
        for name, data in self.arrays.items():
            write_array(maps / name, np.ascontiguousarray(data))
        level = {"datasets": [{"path": "0"}]}
        about = {} if self.seam_change is None else {"slideloom": {"seam_change": self.seam_change}}
        create_group(labels, {"ome": {"version": "0.5", "multiscales": [level]}, **about})
        write_array(labels / "0", np.ascontiguousarray(self.labels.astype(np.uint32)))
        size = self.gt.shape
        levels = (Level(*size, 1.0),)
        image = ImageFacts("he.npy", "numpy", *size, 3, "uint8", self.mpp_um, "sheet", levels, (), True)
        facts = SlideFacts("s1", {"he": image})
        config = EvaluationConfig(**evaluation)
        patches: Any = None if self.tile_px is None else SimpleNamespace(tile_px=self.tile_px, n=7)
        row, root = self.row, self.folder
        if not evaluate_slide(maps, labels, row, root, facts, "he", 1.0, CLASSES, config, patches, out):
            assert not out.exists()
            return None
        assert sorted(path.stem for path in out.iterdir()) == sorted(TABLES)
        return {name: read_table(schema, out / f"{name}.parquet").to_pylist() for name, schema in TABLES.items()}

    def evaluate(self, **evaluation: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The slide's row and those of its classes."""
        tables = self.tables(**evaluation)
        assert tables is not None
        return tables["slide"][0], tables["classes"]


def square(labels: np.ndarray, y: int, x: int, value: int, side: int = 10) -> None:
    """Draw a square."""
    labels[y : y + side, x : x + side] = value
