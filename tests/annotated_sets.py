"""What tests of importers share: pictures to write, and a way to look at a slide as a study sees it."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slideloom.slides.annotations import AnnotationMaps, read_annotations
from slideloom.slides.headers import read_facts
from slideloom.slides.layouts.imported import Imported, write_tables
from slideloom.slides.open import open_image
from slideloom.slides.sheet import SlideRow, read_sheet
from slideloom.slides.source import parse_source
from slideloom.slides.tables import ClassTable, MarkerTable, read_classes


def rgb(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """A picture of noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a picture, and the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


class Study:
    """A data set after its tables were written and read back.

    Parameters
    ----------
    found : Imported
        What an importer gave.
    out : Path
        Folder of the sheet.
    """

    def __init__(self, found: Imported, out: Path) -> None:
        sheet = out / "slides.tsv"
        write_tables(found, sheet)
        rows, problems = read_sheet(sheet)
        assert problems == []
        assert tuple(rows) == found.rows
        self.rows = {row.slide_id: row for row in rows}
        self.classes = ClassTable()
        if len(found.classes):
            self.classes, problems = read_classes(out / "classes.tsv")
            assert problems == []
        self.notes = "\n".join(found.notes)
        self._out = out

    def picture(self, name: str) -> NDArray[np.uint8]:
        """The H&E of a slide, (height, width, 3)."""
        with open_image(parse_source(self.rows[name].he or "", self._out), "he") as image:
            pixels = image.read(0, y=0, x=0, height=image.height_px, width=image.width_px)
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))

    def maps(self, name: str, modality: str = "he") -> AnnotationMaps:
        """Nuclei and classes of a slide as training sees them."""
        row: SlideRow = self.rows[name]
        facts = read_facts(row, self._out, MarkerTable())
        found = read_annotations(row, self._out, facts, modality, 1.0, self.classes)
        assert found is not None
        return found[0]

    def file_list(self, folder: Path) -> set[str]:
        """Paths of the list of files, whose sizes and sums are checked."""
        with (self._out / "files.tsv").open(newline="") as text:
            rows = list(csv.DictReader(text, delimiter="\t"))
        assert rows == sorted(rows, key=lambda row: row["path"])
        for row in rows:
            held = (folder / row["path"]).read_bytes()
            assert (int(row["size"]), row["sha256"]) == (len(held), hashlib.sha256(held).hexdigest())
        return {row["path"] for row in rows}
