"""Classes of cells from a spora data set's table of cells."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slideloom.artefacts.files import publish
from slideloom.errors import SlideloomError
from slideloom.slides.classlist import CLASS_FIELDS, ID_FIELDS
from slideloom.slides.layouts.imported import Remarks
from slideloom.slides.tables import ClassTable

__all__ = ["SporaCells", "read_cells"]

_IDS = (*ID_FIELDS, "cell_id")
_CLASSES = (*CLASS_FIELDS, "cell_type", "phenotype")
_NOTHING = {"", "nan", "none", "null", "background"}
#: Highest number of classes of a study.
_MOST = 254
#: Turns of the hue from one class to the next: neighbours differ, and no two are alike.
_GOLDEN = 0.618034


@dataclass(frozen=True)
class SporaCells:
    """Classes of the cells of every tissue.

    Attributes
    ----------
    classes : ClassTable
        By name.
    cells : mapping of str to list of (int, str)
        By tissue: label and class of each cell.
    """

    classes: ClassTable = field(default_factory=ClassTable)
    cells: Mapping[str, list[tuple[int, str]]] = field(default_factory=dict)

    def write(self, tissue: str, out: Path) -> Path | None:
        """Write the class table of one tissue below a folder; None where it has none."""
        rows = self.cells.get(tissue)
        if not rows:
            return None
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({"instance_id": [label for label, _ in rows], "class": [word for _, word in rows]})
        place = out / "cells" / f"{tissue.replace('/', '_')}.parquet"
        with publish(place) as draft:
            pq.write_table(table, draft)
        return place


def read_cells(path: Path, remarks: Remarks) -> SporaCells:
    """Read ``cells.parquet``: a label and a class of each cell, under the names that class tables may use.

    Parameters
    ----------
    path : Path
        The table; there may be none.
    remarks : Remarks
        Told what keeps the classes from being used.
    """
    if not path.is_file():
        return SporaCells()
    import pyarrow as pa
    import pyarrow.parquet as pq

    shown = f"{path.parent.name}/{path.name}"
    try:
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file)
            names = parquet.schema_arrow.names
            columns = [
                next((name for name in known if name in names), "") for known in (("tissue_id",), _IDS, _CLASSES)
            ]
            if not all(columns):
                remarks.tell(
                    f"{shown}: classes left out, no column for {_lacking(columns)}; its columns are {', '.join(names)}"
                )
                return SporaCells()
            values = parquet.read(columns=columns).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise SlideloomError(f"cannot be read: {error}", where=str(path), expected="Parquet") from error
    cells: dict[str, list[tuple[int, str]]] = {}
    spelt: dict[str, str] = {}
    strange = 0
    for tissue, label, word in zip(*(values[name] for name in columns), strict=True):
        whole = isinstance(word, float) and word.is_integer()
        text = "" if word is None else str(int(word) if whole else word).strip()
        try:
            number = int(label)
        except (TypeError, ValueError):
            strange += 1
            continue
        if text.casefold() not in _NOTHING and number > 0:
            cells.setdefault(str(tissue), []).append((number, spelt.setdefault(text.casefold(), text)))
    if strange:
        remarks.tell(f"{shown}: {strange} rows whose {columns[1]!r} is no number of a label, left out")
    found = sorted(spelt.values())
    if not found or len(found) > _MOST:
        remarks.tell(f"{shown}: classes left out, the column {columns[2]!r} names {len(found)}")
        return SporaCells()
    remarks.tell(f"{shown}: labels are taken from its column {columns[1]!r}, classes from {columns[2]!r}")
    colours = tuple(_colour(index) for index in range(len(found)))
    return SporaCells(ClassTable(tuple(range(1, len(found) + 1)), tuple(found), colours, ((),) * len(found)), cells)


def _lacking(columns: list[str]) -> str:
    words = ("the tissue", "the label", "the class")
    return " and ".join(word for word, column in zip(words, columns, strict=True) if not column)


def _colour(index: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN % 1, 0.65, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)
