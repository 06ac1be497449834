"""A little study whose images are empty files, since checking a study opens none, and ways to spoil it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.bad_inputs.kinds import Answer, Cells, Kind

__all__ = ["CONFIG", "SHEET", "cell", "of_config", "of_sheet", "sparse", "swap", "ten_thousand", "write_study"]

CONFIG = """study: little
slides: slides.tsv
markers: markers.tsv
classes: classes.tsv
results: results
grids:
  sp120: {image: sp, tile_px: 120}
encoders:
  mm: {model: mean_marker, grid: sp120, normalisation: {scope: slide}}
splits:
  holdout: {scheme: column}
experiments:
  sp: {encoder: mm, split: holdout}
"""
_HEADER = ("slide_id", "patient_id", "platform", "he", "sp", "instances", "classes", "mpp_um", "split")
_ROWS = (
    ("a", "P1", "codex", "a.svs", "a.tif", "a_labels.tif", "a.csv", "0.5", "train"),
    ("b", "P2", "codex", "b.svs", "b.tif", "b_labels.tif", "b.csv", "0.5", "val"),
    ("c", "P3", "codex", "c.svs", "c.tif", "c_labels.tif", "c.csv", "0.5", "test"),
)
#: Files of many images.
_STACKS = ("he.npz", "sp.npz", "labels.npz")
_MARKERS = "channel\tmarker\tuniprot\tnuclear\nDAPI\tDNA\t\tyes\nCD3\tCD3e\tP07766\tno\n"
_CLASSES = "id\tname\tcolour\n1\ttumour\t#ff0000\n2\tstroma\t#00ff00\n"
SHEET = "\n".join("\t".join(row) for row in (_HEADER, *_ROWS)) + "\n"
_Edit = Callable[[str], str | bytes]


def write_study(folder: Path, sheet: str | bytes = SHEET, config: str | bytes = CONFIG) -> Cells:
    for name, value in {
        "slides.tsv": sheet,
        "config.yaml": config,
        "markers.tsv": _MARKERS,
        "classes.tsv": _CLASSES,
    }.items():
        (folder / name).write_bytes(value.encode() if isinstance(value, str) else value)
    for name in (*_STACKS, *(name for row in _ROWS for name in row[3:7])):
        (folder / name).touch()
    return {"config": "config.yaml"}


def of_sheet(name: str, what: str, edit: _Edit, answer: Answer = "refused", says: str = "") -> Kind:
    return Kind(name, "sheet", what, lambda folder: write_study(folder, sheet=edit(SHEET)), answer, says=says)


def of_config(name: str, what: str, edit: _Edit, answer: Answer = "refused", says: str = "") -> Kind:
    return Kind(name, "config", what, lambda folder: write_study(folder, config=edit(CONFIG)), answer, says=says)


def cell(column: str, value: str, row: int = 0, *more: tuple[str, str, int]) -> _Edit:
    """The sheet with other text in some cells."""

    def edit(_: str) -> str:
        rows = [list(one) for one in _ROWS]
        for its_column, its_value, its_row in ((column, value, row), *more):
            rows[its_row][_HEADER.index(its_column)] = its_value
        return "\n".join("\t".join(one) for one in (_HEADER, *rows)) + "\n"

    return edit


def swap(old: str, new: str) -> _Edit:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return edit


def sparse(name: str, size: int) -> Callable[[Path], Cells]:
    """A file of that many bytes, all of them zero, which takes no room."""

    def make(folder: Path) -> Cells:
        cells = write_study(folder)
        with (folder / name).open("r+b") as file:
            file.truncate(size)
        return cells

    return make


def ten_thousand(_: str) -> str:
    rows = [("slide_id", "patient_id", "he", "sp", "instances", "classes", "split")]
    roles = ("train", "train", "train", "val", "test")
    for k in range(10_000):
        files = (f"{name}.npz::images[{k}]" for name in ("he", "sp", "labels"))
        rows.append((f"s{k:05d}", f"P{k}", *files, "a.csv", roles[k % 5]))
    return "\n".join("\t".join(row) for row in rows) + "\n"
