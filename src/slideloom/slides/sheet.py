"""The sample sheet: a row a slide."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from slideloom.artefacts.files import write_text
from slideloom.config.fields import unfit_for_paths
from slideloom.config.texts import quoted
from slideloom.errors import Problem
from slideloom.slides.delimited import Table, TableRow, read_table
from slideloom.slides.pixel_size import COARSEST_UM, FINEST_UM
from slideloom.slides.source import Source, parse_source

__all__ = ["COLUMNS", "ROLES", "SlideRow", "Source", "parse_source", "read_sheet", "sheet_text", "write_sheet"]

ROLES = ("train", "val", "test", "infer")
COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "slide_id": "The slide's name, in every path and table: letters, digits, `_`, `-` and `.`. Required.",
        "patient_id": "Slides of one patient never stand on both sides of a split. The slide's id when left out.",
        "platform": "Scanner or imaging platform, such as `codex`. `unknown` when left out.",
        "he": "H&E image. Each slide needs `he`, `sp` or both.",
        "sp": "Multiplexed (spatial proteomics) image.",
        "instances": "Label image of annotated nuclei: 0 background, one whole number a nucleus.",
        "classes": "Classes of the annotated nuclei: a label image, or a table with a row a nucleus.",
        "cells": "Label image of annotated whole cells, for the head `instanseg_cells`; in the forms of `instances`.",
        "mpp_um": "Pixel size of both images, µm per pixel. Needed where the file does not record it.",
        "he_mpp_um": "Pixel size of the H&E image, when the two differ.",
        "sp_mpp_um": "Pixel size of the multiplexed image, when the two differ.",
        "sp_channels": "Channel names in the order of the file, separated by `;`. Needed where the file has none.",
        "split": "`train`, `val`, `test` or `infer`, for splits with `scheme: column`.",
    }
)
_MISTAKEN = {
    "id": "slide_id",
    "slide": "slide_id",
    "sample": "slide_id",
    "sample_id": "slide_id",
    "patient": "patient_id",
    "h&e": "he",
    "mpp": "mpp_um",
    "he_mpp": "he_mpp_um",
    "sp_mpp": "sp_mpp_um",
    "labels": "instances",
    "class": "classes",
    "channels": "sp_channels",
    "slide_name": "slide_id",
    "pixel_size": "mpp_um",
    "pixel_size_um": "mpp_um",
}
#: Columns of published folds, as importers write them: as like ``split`` as they are, they are meant.
_FOLDS = re.compile(r"split_[0-9]+")
_LONGEST_ID = 128
#: Columns that name files: a name of a file may hold what it likes.
_FILES = frozenset({"he", "sp", "instances", "classes", "cells"})
#: Breaks of lines, and what is not seen: marks of direction, blanks of no width. Joiners are part of some scripts.
_UNSEEN = re.compile("[\\t\\n\\r\x85\xad\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


@dataclass(frozen=True)
class SlideRow:
    """One slide, as its row of the sheet says; paths are the sheet's own text, unresolved.

    Attributes
    ----------
    slide_id, patient_id, platform : str
        Who it is.
    he, sp, instances, classes, cells : str or None
        Images and annotations, for :func:`~slideloom.slides.source.parse_source`.
    he_mpp_um, sp_mpp_um : float or None
        Pixel size that the sheet gives, µm per pixel.
    sp_channels : tuple of str or None
        Channel names that the sheet gives.
    split : str or None
        The column ``split``.
    extra : dict of str to str
        Every other column that is filled in.
    line : int
        Line of the sheet, 0 when it came from elsewhere; for messages only, no part of the row's value.
    """

    slide_id: str
    patient_id: str = ""
    platform: str = "unknown"
    he: str | None = None
    sp: str | None = None
    instances: str | None = None
    classes: str | None = None
    cells: str | None = None
    he_mpp_um: float | None = None
    sp_mpp_um: float | None = None
    sp_channels: tuple[str, ...] | None = None
    split: str | None = None
    extra: dict[str, str] = field(default_factory=dict, hash=False)
    line: int = field(default=0, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.patient_id:
            object.__setattr__(self, "patient_id", self.slide_id)

    def column(self, name: str) -> str | None:
        """Text of a column that splits may be made by: ``split``, an extra one, or who the slide is."""
        if name in ("slide_id", "patient_id", "platform", "split"):
            value: str | None = getattr(self, name)
            return value
        return self.extra.get(name)

    def as_dict(self) -> dict[str, Any]:
        """JSON values of the columns that are filled in."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "line"}
        if self.sp_channels is not None:
            values["sp_channels"] = list(self.sp_channels)
        return {name: value for name, value in values.items() if value not in (None, {})}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> SlideRow:
        """Inverse of :meth:`as_dict`; columns that are left out are empty."""
        values = dict(value)
        if values.get("sp_channels") is not None:
            values["sp_channels"] = tuple(values["sp_channels"])
        return cls(**values)


def read_sheet(path: Path, named: Container[str] = ()) -> tuple[list[SlideRow], list[Problem]]:
    """Read the sample sheet.

    Parameters
    ----------
    path : Path
        Table with the columns of :data:`COLUMNS`; see :func:`~slideloom.slides.delimited.read_table` for its form.
    named : container of str, optional
        Columns that the config names: they are meant, however like a known one. So are ``split_1``, ``split_2``, ….

    Returns
    -------
    rows : list of SlideRow
        In the order of the sheet; of slides that stand there twice, the first.
    problems : list of Problem
        Every fault, each with its line. Whether the files exist is not looked at.
    """
    table = read_table(
        path, tuple(COLUMNS), ("slide_id",), _MISTAKEN, lambda name: name in named or bool(_FOLDS.fullmatch(name))
    )
    problems = list(table.problems)
    if table.rows and not {"he", "sp"} & set(table.columns):
        has = ", ".join(table.columns)
        hint = f"Call the column of H&E images 'he', that of multiplexed images 'sp'. The header has: {has}"
        problems.append(Problem(f"{path}:1", "has neither a column 'he' nor a column 'sp'", hint))
        return [], problems
    rows: dict[str, SlideRow] = {}
    folded: dict[str, SlideRow] = {}
    for row in table.rows:
        slide = _slide(table, row, problems)
        if slide is None:
            continue
        other = folded.setdefault(slide.slide_id.casefold(), slide)
        if slide.slide_id in rows:
            what = f"{slide.slide_id!r} is the id of line {rows[slide.slide_id].line} already"
            problems.append(Problem(table.place(row, "slide_id"), what, "Each slide has one row and an id of its own"))
        elif other is not slide:
            what = f"{slide.slide_id!r} differs from {other.slide_id!r} in line {other.line} by letter case only"
            hint = "They would share a path on file systems that ignore case"
            problems.append(Problem(table.place(row, "slide_id"), what, hint))
        rows.setdefault(slide.slide_id, slide)
    if table.columns and not rows and not problems:
        hint = "Write a row a slide, or let `slideloom sheet FOLDER` propose them"
        problems.append(Problem(str(path), "has no slides below its header", hint))
    return list(rows.values()), problems


def _slide(table: Table, row: TableRow, problems: list[Problem]) -> SlideRow | None:
    cells = row.cells
    slide_id = cells["slide_id"]
    if not slide_id:
        hint = "Give the slide a name of its own; a row that starts with # is skipped"
        problems.append(Problem(table.place(row, "slide_id"), "is empty", hint))
        return None
    if unfit := unfit_for_paths(slide_id, _LONGEST_ID):
        what = f"{quoted(slide_id)} cannot be a slide's id: it {unfit}"
        hint = f"Use letters, digits, '_', '-' and single '.', starting with a letter or digit, at most {_LONGEST_ID}"
        if len(slide_id.split()) > 1 and not any(text for name, text in cells.items() if name != "slide_id"):
            hint = "Separate cells by tabs or commas, as the header does, not by blanks"
        problems.append(Problem(table.place(row, "slide_id"), what, hint))
        return None
    for name, text in cells.items():
        if name not in _FILES and (unseen := _UNSEEN.search(text)):
            what = f"{quoted(text)} holds {unseen[0]!a}, which is not seen"
            hint = "Type the cell anew"
            if "\n" in text or "\r" in text:
                what, hint = f"{quoted(text)} is a cell of several lines", "A double quote is open, or closes too late"
            problems.append(Problem(table.place(row, name), what, hint))
    he, sp = cells.get("he") or None, cells.get("sp") or None
    if not he and not sp:
        what = f"slide {slide_id!r} names neither an H&E ('he') nor a multiplexed ('sp') image"
        hint = "Fill one of these cells, or remove the row"
        if any(cells.get(name) for name in ("instances", "classes", "cells")):
            hint = "An annotation needs the image it is of: fill 'he' or 'sp'"
        problems.append(Problem(table.place(row), what, hint))
    instances, classes = cells.get("instances") or None, cells.get("classes") or None
    if classes and not instances:
        hint = "Classes belong to annotated nuclei; name their label image in the column 'instances'"
        problems.append(Problem(table.place(row, "classes"), f"slide {slide_id!r} has classes but no instances", hint))
    if cells.get("cells") and not instances:
        what = f"slide {slide_id!r} has whole cells but no instances: it is no training slide"
        hint = "Name the label image of its nuclei in the column 'instances', or leave this cell empty"
        problems.append(Problem(table.place(row, "cells"), what, hint))
    mpp = {name: _mpp(table, row, name, problems) for name in ("mpp_um", "he_mpp_um", "sp_mpp_um")}
    channels = tuple(part.strip() for part in cells.get("sp_channels", "").strip(";").split(";"))
    if cells.get("sp_channels") and (not all(channels) or len(set(channels)) != len(channels)):
        what = "has an empty name" if not all(channels) else "names a channel twice"
        problems.append(Problem(table.place(row, "sp_channels"), what, "Channel names are separated by ';'"))
    if channels != ("",) and not sp:
        what, hint = f"slide {slide_id!r} has no sp image to name them in", "Empty this cell, or fill 'sp'"
        problems.append(Problem(table.place(row, "sp_channels"), what, hint))
    return SlideRow(
        slide_id=slide_id,
        patient_id=_composed(cells.get("patient_id")) or slide_id,
        platform=_composed(cells.get("platform")) or "unknown",
        he=he,
        sp=sp,
        instances=instances,
        classes=classes,
        cells=cells.get("cells") or None,
        he_mpp_um=(mpp["he_mpp_um"] or mpp["mpp_um"]) if he else None,
        sp_mpp_um=(mpp["sp_mpp_um"] or mpp["mpp_um"]) if sp else None,
        sp_channels=None if channels == ("",) else channels,
        split=cells.get("split") or None,
        extra={name: _composed(text) for name, text in cells.items() if name and name not in COLUMNS and text},
        line=row.line,
    )


def _composed(text: str | None) -> str:
    """Letters with their accents, however the editor wrote them: one patient has one name."""
    return unicodedata.normalize("NFC", text or "")


def _mpp(table: Table, row: TableRow, column: str, problems: list[Problem]) -> float | None:
    text = row.cells.get(column, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not FINEST_UM <= value <= COARSEST_UM:
        what = f"{quoted(text)} is not a pixel size in µm ({FINEST_UM:g} to {COARSEST_UM:g})"
        hint = "A 40x scan has about 0.25" + (": is this in nanometres?" if value > COARSEST_UM else "")
        if "," in text:
            hint = "Write a decimal point, not a comma"
        elif re.search(r"[a-zµμ]", text, re.IGNORECASE) and re.match(r"[\d.]+\s*\D", text):
            hint = "Write the number alone; the unit is µm per pixel"
        problems.append(Problem(table.place(row, column), what, hint))
        return None
    return value


def write_sheet(rows: Iterable[SlideRow], path: Path) -> None:
    """Write a tab-separated sheet that :func:`read_sheet` gives back; columns that no row fills in are left out.

    Parameters
    ----------
    rows : iterable of SlideRow
        The slides.
    path : Path
        Where it is written, whole or not at all.
    """
    write_text(path, sheet_text(rows))


def sheet_text(rows: Iterable[SlideRow]) -> str:
    """Text of a tab-separated sheet."""
    records = []
    for row in rows:
        record = {**row.as_dict(), **row.extra}
        record.pop("extra", None)
        record["sp_channels"] = ";".join(row.sp_channels or ())
        if row.patient_id == row.slide_id:
            record.pop("patient_id")
        if row.platform == "unknown":
            record.pop("platform")
        records.append({name: str(value) for name, value in record.items() if value != ""})
    extra = sorted({name for record in records for name in record} - set(COLUMNS))
    columns = [name for name in (*COLUMNS, *extra) if any(name in record for record in records)]
    lines = [columns, *([record.get(name, "") for name in columns] for record in records)]
    return "".join("\t".join(line) + "\n" for line in lines)
