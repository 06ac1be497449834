"""Class tables of annotations: a row a nucleus, or a row a point on a nucleus, that says which class it is."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, TextIO

import numpy as np

from slideloom.config.texts import shortened
from slideloom.errors import SlideError
from slideloom.slides.annotation_file import annotation_file, listed
from slideloom.slides.source import Source
from slideloom.slides.tables import ClassTable

__all__ = [
    "CLASS_FIELDS",
    "ID_FIELDS",
    "ClassRows",
    "is_class_table",
    "read_class_rows",
    "refuse_words",
    "settle_classes",
]

#: Column names looked for, the first found counts.
ID_FIELDS = ("instance_id", "label_id", "id", "label")
CLASS_FIELDS = ("class", "class_id", "class_name", "type")
_TEXT = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_PARQUET = {".parquet", ".pq"}
_EMPTY = {"", "nan", "none", "null", "na", "<na>"}
_LARGEST = 2**31 - 1
_HINT = "Give a UTF-8 CSV or TSV with a header line, or Parquet"
#: Parquet may say much in few bytes. A table of ids needs more than a sixteenth of a byte for a row, and what it says
#: of itself must not be larger than this many bytes beyond 64 times its size.
_ROWS_FREE, _ROWS_PER_BYTE = 1_000_000, 16
_BYTES_FREE, _BYTES_PER_BYTE = 1 << 26, 64
_BATCH_ROWS = 1 << 16
_LINE_CHARACTERS = 1 << 20
_Row = tuple[str, ...]


class _Unfit(ValueError):
    """What is wrong with a table, in words."""


@dataclass(frozen=True)
class ClassRows:
    """Rows of a class table, one for each line that names an instance and a class.

    Attributes
    ----------
    ids : tuple of int
        Instance ids, 1 to 2**31 - 1.
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
        whose column ``image`` equals it. Rows with the id 0 (on no instance) or without a class are passed over. Where
        the header of a text has not the mark of its suffix, tabs, commas or semicolons are taken.

    Returns
    -------
    ClassRows
        In the order of the table. Only these are held, not the table.

    Raises
    ------
    SlideError
        ``annotation_missing``, ``annotation_unreadable``, ``annotation_columns``, ``annotation_ids`` (an id is no whole
        number, negative or above 2**31 - 1).
    """
    where = shortened(f"{source.path.name}::{source.member}" if source.member else source.path.name, 160)
    kept_ids: list[int] = []
    kept_words: list[str] = []
    once: dict[str, str] = {}
    with annotation_file(source.path, "the class table"):
        try:
            for number, (text, word, *image) in enumerate(_rows(source, where), 1):
                if image and image[0] != source.member:
                    continue
                if text.lower() in _EMPTY or word.lower() in _EMPTY:
                    continue
                value = _whole(text)
                if value is None or not 0 <= value <= _LARGEST:
                    raise SlideError(
                        f"row {number} has the instance id {shortened(repr(text))}",
                        where=where,
                        expected=f"a whole number from 0 to {_LARGEST}",
                        hint="Give the number that the nucleus has in the instance map; 0 stands for none",
                        code="annotation_ids",
                    )
                if value > 0:
                    kept_ids.append(value)
                    if word not in once:
                        once[word] = str(whole) if (whole := _whole(word)) is not None else word
                    kept_words.append(once[word])
        except (SlideError, MemoryError):
            raise
        except OSError as error:
            if error.errno is not None:
                raise
            raise _unreadable(error, where) from error
        except Exception as error:
            raise _unreadable(error, where) from error
    return ClassRows(tuple(kept_ids), tuple(kept_words))


def _unreadable(error: Exception, where: str) -> SlideError:
    if isinstance(error, UnicodeDecodeError):
        why = "it is no UTF-8 text"
    elif isinstance(error, csv.Error) and "unexpected end" in str(error):
        why = "a quote is opened and never closed"
    else:
        why = str(error) if isinstance(error, _Unfit) else f"{type(error).__name__}: {error}"
    what = f"the class table cannot be read: {shortened(why, 300)}"
    return SlideError(
        what, where=where, expected="a table of instance ids and classes", hint=_HINT, code="annotation_unreadable"
    )


def _rows(source: Source, where: str) -> Iterator[_Row]:
    """Instance id, class and, where the source has a member, image of every row, as text without outer blanks."""
    groups = (ID_FIELDS, CLASS_FIELDS, ("image",)) if source.member else (ID_FIELDS, CLASS_FIELDS)
    if source.path.suffix.lower() in _PARQUET:
        with source.path.open("rb") as file:
            yield from _parquet_rows(file, source.path.stat().st_size, groups, where)
        return
    with source.path.open(encoding="utf-8-sig", newline="") as text:
        each = _lines(text)
        first = next((line for line in each if line.strip()), "")
        usual = _TEXT[source.path.suffix.lower()]
        mark = next((mark for mark in (usual, "\t", ",", ";") if mark in first), usual)
        lines = csv.reader(chain([first], each), delimiter=mark, strict=True)
        header = [name.strip() for name in next(lines, [])]
        at = _find(header, groups, where)
        number = 0
        for line in lines:
            if not any(cell.strip() for cell in line):
                continue
            number += 1
            if len(line) != len(header):
                raise _Unfit(f"row {number} has {len(line)} cells, the header {len(header)}")
            yield tuple(line[column].strip() for column in at)


def _lines(text: TextIO) -> Iterator[str]:
    while line := text.readline(_LINE_CHARACTERS):
        if len(line) == _LINE_CHARACTERS and not line.endswith(("\n", "\r")):
            raise _Unfit(f"a line is longer than {_LINE_CHARACTERS} characters")
        yield line


def _parquet_rows(file: BinaryIO, size: int, groups: Sequence[Sequence[str]], where: str) -> Iterator[_Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # A file and not its path, from which folder names such as slide_id=… would be taken for partition columns.
    schema = pq.ParquetFile(file).schema_arrow
    wanted = [schema.names[place] for place in _find(schema.names, groups, where)]
    if any(pa.types.is_nested(schema.field(name).type) for name in wanted):
        raise _Unfit(f"one of its columns {listed(wanted)} holds several values a row")
    table = pq.ParquetFile(file, read_dictionary=wanted)
    found = table.metadata
    if found.num_rows > _ROWS_FREE + _ROWS_PER_BYTE * size:
        raise _Unfit(f"{found.num_rows} rows in a file of {size} bytes are not believed")
    unpacked = 0
    for group in range(found.num_row_groups):
        parts = (found.row_group(group).column(column) for column in range(found.num_columns))
        unpacked += sum(part.total_uncompressed_size for part in parts if part.path_in_schema in wanted)
    if unpacked > _BYTES_FREE + _BYTES_PER_BYTE * size:
        raise _Unfit(f"its {size} bytes unpack to {unpacked}, which is not believed")
    for batch in table.iter_batches(_BATCH_ROWS, columns=list(dict.fromkeys(wanted))):
        yield from zip(*(_texts(batch.column(batch.schema.get_field_index(name))) for name in wanted), strict=True)


def _texts(column: Any) -> list[str]:
    """Values of a column; of repeated texts only one copy."""
    if hasattr(column, "dictionary"):
        words = [*_texts(column.dictionary), ""]
        return [words[-1 if place is None else place] for place in column.indices.to_pylist()]
    return ["" if value is None else str(value).strip() for value in column.to_pylist()]


def _whole(text: str) -> int | None:
    """The whole number that a text such as ``3`` or ``3.0`` is; pandas writes the latter where a column has gaps."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def _find(columns: Sequence[str], groups: Iterable[Sequence[str]], where: str) -> list[int]:
    """Places of the columns that are asked for: of each group of names, the first that is there."""
    folded = {name.casefold(): place for place, name in enumerate(columns)}
    found = [next((folded[name] for name in names if name in folded), None) for names in groups]
    for names, place in zip(groups, found, strict=True):
        if place is None:
            raise SlideError(
                f"the class table has no column {' or '.join(names)}",
                where=where,
                expected=f"such a column among {listed(columns)}" if columns else "a header line; the table is empty",
                hint="Name the columns in the table's first line",
                code="annotation_columns",
            )
    return [place for place in found if place is not None]


def refuse_words(words: Sequence[str], classes: ClassTable, where: str) -> SlideError:
    """Error of words that no class is named by.

    Parameters
    ----------
    words : sequence of str
        As the annotation has them.
    classes : ClassTable
        The study's classes.
    where : str
        The file.

    Returns
    -------
    SlideError
        ``unknown_class``; to be raised.
    """
    return SlideError(
        f"no class is named {listed(words)}",
        where=where,
        expected=f"one of {listed(classes.names)}, or an alias",
        hint="Add it to a class's aliases in the classes table",
        code="unknown_class",
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
    known = {word: number for word, number in meaning.items() if number is not None}
    if len(known) < len(meaning):
        raise refuse_words([word for word in meaning if word not in known], classes, where)
    voted = np.array([known[word] for word in rows.words], np.int64)
    # Class ids are below 256.
    pairs, count = np.unique(np.array(rows.ids, np.int64) << 8 | voted, return_counts=True)
    instance, number = pairs >> 8, pairs & 255
    best = np.lexsort((number, -count, instance))
    starts = np.flatnonzero(np.diff(instance, prepend=-1))
    chosen = best[starts]
    settled = dict(zip(instance[chosen].tolist(), number[chosen].tolist(), strict=True))
    split = instance[starts][np.diff(starts, append=instance.size) > 1].tolist()
    if not split:
        return settled, ()
    shown = ", ".join(map(str, split[:10])) + (", …" if len(split) > 10 else "")
    return settled, (
        f"{where}: rows disagree on the class of {len(split)} instances ({shown}); the majority counts, "
        "and on a tie the lowest id",
    )
