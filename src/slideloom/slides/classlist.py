"""Class tables of annotations: a row a nucleus, or a row a point on a nucleus, that says which class it is."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slideloom.errors import SlideError
from slideloom.slides.source import Source
from slideloom.slides.tables import ClassTable

__all__ = ["CLASS_FIELDS", "ID_FIELDS", "ClassRows", "is_class_table", "read_class_rows", "settle_classes"]

#: Column names looked for, the first found counts.
ID_FIELDS = ("instance_id", "label_id", "id", "label")
CLASS_FIELDS = ("class", "class_id", "class_name", "type")
_TEXT = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_PARQUET = {".parquet", ".pq"}
_EMPTY = {"", "nan", "none", "null", "na", "<na>"}


@dataclass(frozen=True)
class ClassRows:
    """Rows of a class table, one for each line that names an instance and a class.

    Attributes
    ----------
    ids : tuple of int
        Instance ids, all above 0.
    words : tuple of str
        What each line calls the class.
    """

    ids: tuple[int, ...]
    words: tuple[str, ...]


def is_class_table(source: Source) -> bool:
    """Whether a source of classes is a table; otherwise it is a label image."""
    return source.path.suffix.lower() in {*_TEXT, *_PARQUET}


def read_class_rows(source: Source) -> ClassRows:
    """Read a class table.

    Parameters
    ----------
    source : Source
        CSV, TSV or Parquet with a column of :data:`ID_FIELDS` and one of :data:`CLASS_FIELDS`. With a member, only rows
        whose column ``image`` equals it. Rows with the id 0 (on no instance) or without a class are passed over.

    Returns
    -------
    ClassRows
        In the order of the table.

    Raises
    ------
    SlideError
        ``annotation_missing``, ``annotation_unreadable``, ``annotation_columns``, ``annotation_ids`` (an id is no whole
        number, or negative).
    """
    where = f"{source.path.name}::{source.member}" if source.member else source.path.name
    if not source.path.is_file():
        hint = "Mend the path in the sheet, or leave the cell empty"
        raise SlideError("the class table is not there", where=where, hint=hint, code="annotation_missing")
    try:
        columns = _columns(source)
    except Exception as error:
        what = f"the class table cannot be read ({type(error).__name__}: {error})"
        hint = "Give a UTF-8 CSV or TSV with a header line, or Parquet"
        raise SlideError(what, where=where, hint=hint, code="annotation_unreadable") from error
    ids = _find(columns, ID_FIELDS, where)
    words = _find(columns, CLASS_FIELDS, where)
    images = _find(columns, ("image",), where) if source.member else None
    kept_ids, kept_words = [], []
    for row, (number, word) in enumerate(zip(ids, words, strict=True)):
        if (images is not None and images[row] != source.member) or number.lower() in _EMPTY or word.lower() in _EMPTY:
            continue
        value = _whole(number)
        if value is None or value < 0:
            what = f"row {row + 1} has the instance id {number!r}"
            raise SlideError(what, where=where, expected="a whole number from 0", code="annotation_ids")
        if value > 0:
            kept_ids.append(value)
            kept_words.append(str(whole) if (whole := _whole(word)) is not None else word)
    return ClassRows(tuple(kept_ids), tuple(kept_words))


def _columns(source: Source) -> dict[str, list[str]]:
    suffix = source.path.suffix.lower()
    if suffix in _PARQUET:
        import pyarrow.parquet as pq

        # read_table on a path would take folder names such as slide_id=… for partition columns.
        with source.path.open("rb") as handle:
            table = pq.ParquetFile(handle).read()
        return {name: [_text(value) for value in table.column(name).to_pylist()] for name in table.column_names}
    with source.path.open(encoding="utf-8-sig", newline="") as handle:
        lines = [line for line in csv.reader(handle, delimiter=_TEXT[suffix]) if any(cell.strip() for cell in line)]
    if not lines:
        return {}
    header = [name.strip() for name in lines[0]]
    ragged = next((number for number, line in enumerate(lines) if len(line) != len(header)), None)
    if ragged is not None:
        raise ValueError(f"row {ragged} has {len(lines[ragged])} cells, the header {len(header)}")
    return {name: [line[column].strip() for line in lines[1:]] for column, name in enumerate(header)}


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _whole(text: str) -> int | None:
    """The whole number that a text such as ``3`` or ``3.0`` is; pandas writes the latter where a column has gaps."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def _find(columns: dict[str, list[str]], names: Sequence[str], where: str) -> list[str]:
    folded = {name.casefold(): values for name, values in columns.items()}
    for name in names:
        if name in folded:
            return folded[name]
    raise SlideError(
        f"the class table has no column {' or '.join(names)}",
        where=where,
        expected=f"such a column among {', '.join(columns) or 'no columns at all'}",
        code="annotation_columns",
    )


def settle_classes(rows: ClassRows, classes: ClassTable, where: str) -> tuple[dict[int, int], tuple[str, ...]]:
    """One class for each instance.

    Parameters
    ----------
    rows : ClassRows
        Of a table.
    classes : ClassTable
        The study's classes; they say what each word means.
    where : str
        The table, for messages.

    Returns
    -------
    of_instance : dict of int to int
        Class id by instance id. Where rows disagree, the majority; a tie goes to the lowest class id.
    warnings : tuple of str
        What was settled so.

    Raises
    ------
    SlideError
        ``unknown_class``: a word that no class is named by.
    """
    meaning = {word: classes.id_of(word) for word in dict.fromkeys(rows.words)}
    unknown = [word for word, number in meaning.items() if number is None]
    if unknown:
        raise SlideError(
            f"no class is named {', '.join(map(repr, unknown[:10]))}{', …' if len(unknown) > 10 else ''}",
            where=where,
            expected=f"one of {', '.join(classes.names)}, or an alias",
            hint="Add it to a class's aliases in the classes table",
            code="unknown_class",
        )
    votes: dict[int, Counter[int]] = {}
    for instance, word in zip(rows.ids, rows.words, strict=True):
        number = meaning[word]
        if number is not None:
            votes.setdefault(instance, Counter())[number] += 1
    settled = {instance: min(counts, key=lambda one: (-counts[one], one)) for instance, counts in votes.items()}
    split = sorted(instance for instance, counts in votes.items() if len(counts) > 1)
    if not split:
        return settled, ()
    shown = ", ".join(map(str, split[:10])) + (", …" if len(split) > 10 else "")
    return settled, (
        f"{where}: rows disagree on the class of {len(split)} instances ({shown}); the majority counts, "
        "and on a tie the lowest id",
    )
