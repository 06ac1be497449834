"""Small tables that people write by hand: tabs or commas, from any editor or spreadsheet, every fault with its line."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slideloom.errors import Problem

__all__ = ["Table", "TableRow", "nearest", "read_table"]

_NEAR = 0.8


def nearest(word: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """The known word most like ``word``, or an empty text; letter case does not count.

    Examples
    --------
    >>> nearest("Tile_PX", ["tile_px", "stride_px"])
    'tile_px'
    >>> nearest("banana", ["tile_px", "stride_px"])
    ''
    """
    folded = {name.casefold(): name for name in reversed(known)}
    found = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=cutoff)
    return folded[found[0]] if found else ""


@dataclass(frozen=True)
class TableRow:
    """One row: the line it stands on, counted from 1, and its cells by column, stripped of spaces."""

    line: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Table:
    """A hand-written table.

    Attributes
    ----------
    path : Path
        Where it lies.
    columns : tuple of str
        In the order of the file.
    rows : tuple of TableRow
        Blank rows and rows that start with ``#`` are left out.
    """

    path: Path
    columns: tuple[str, ...] = ()
    rows: tuple[TableRow, ...] = ()
    problems: list[Problem] = field(default_factory=list)

    def place(self, row: TableRow, column: str = "") -> str:
        """Where a row stands, for a message: ``file:line`` or ``file:line: column``."""
        return f"{self.path}:{row.line}: {column}" if column else f"{self.path}:{row.line}"


def read_table(
    path: Path, known: Sequence[str], required: Sequence[str], mistaken: Mapping[str, str] | None = None
) -> Table:
    """Read a table with a header line.

    Tabs, commas or semicolons are told by the header; UTF-8 with or without byte order mark, Unix or Windows line ends,
    cells in double quotes. Blank rows and rows that start with ``#`` are skipped.

    Parameters
    ----------
    path : Path
        The file.
    known : sequence of str
        Columns that have a meaning. Other columns are kept, unless they look like a misspelt known one.
    required : sequence of str
        Columns that must be there.
    mistaken : mapping of str to str, optional
        Column names that people write, and the known column they mean by it.

    Returns
    -------
    Table
        With every fault in ``problems``. It has no rows when the file or its header could not be read.
    """
    table = Table(path)
    problems = table.problems
    text = _text(path, problems)
    if text is None:
        return table
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
    columns: tuple[str, ...] = ()
    rows: list[TableRow] = []
    first = 1
    try:
        for values in reader:
            line, first = first, reader.line_num + 1
            cells = [value.strip() for value in values]
            if not any(cells) or cells[0].startswith("#"):
                continue
            if not columns:
                columns = tuple(_without_empty_tail(cells))
                problems += _header_problems(path, line, columns, known, required, mistaken or {})
                continue
            row = TableRow(line, dict(zip(columns, [*cells, *[""] * len(columns)], strict=False)))
            surplus = _without_empty_tail(cells[len(columns) :])
            if surplus:
                what = f"has {len(columns) + len(surplus)} cells, but the header has {len(columns)} columns"
                problems.append(Problem(table.place(row), what, f"Look at the surplus cell {surplus[0]!r}"))
            rows.append(row)
    except csv.Error as error:
        problems.append(Problem(f"{path}:{reader.line_num}", f"cannot be read as a table: {error}"))
    if not columns:
        problems.append(Problem(str(path), "is empty", f"It needs a header line with {', '.join(required)}"))
    usable = len(set(columns)) == len(columns) and not set(required) - set(columns)
    return Table(path, columns, tuple(rows) if usable else (), problems)


def _text(path: Path, problems: list[Problem]) -> str | None:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        problems.append(Problem(str(path), "this file does not exist"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        hint = "Save it as UTF-8 text (in a spreadsheet: 'CSV UTF-8')"
        problems.append(Problem(f"{path}:{line}", "is not UTF-8 text", hint))
    except OSError as error:
        problems.append(Problem(str(path), f"cannot be read: {error.strerror or error}"))
    return None


def _delimiter(text: str) -> str:
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            return next((mark for mark in "\t,;" if mark in line), "\t")
    return "\t"


def _without_empty_tail(cells: Sequence[str]) -> list[str]:
    kept = list(cells)
    while kept and not kept[-1]:
        kept.pop()
    return kept


def _header_problems(
    path: Path,
    line: int,
    columns: Sequence[str],
    known: Sequence[str],
    required: Sequence[str],
    mistaken: Mapping[str, str],
) -> list[Problem]:
    place = f"{path}:{line}"
    problems: list[Problem] = []
    absent = [name for name in known if name not in columns]
    meant: set[str] = set()
    for name in dict.fromkeys(columns):
        if not name:
            problems.append(Problem(place, "a column of the header has no name"))
        elif columns.count(name) > 1:
            problems.append(Problem(place, f"the column {name!r} stands in the header {columns.count(name)} times"))
        elif name not in known:
            guess = mistaken.get(name.casefold(), "") or nearest(name, absent, cutoff=_NEAR)
            if guess in absent:
                meant.add(guess)
                hint = f"Did you mean {guess!r}? A column of your own needs a name less like it"
                problems.append(Problem(place, f"unknown column {name!r}", hint))
    for name in required:
        if name not in columns and name not in meant:
            has = ", ".join(column for column in columns if column)
            problems.append(Problem(place, f"the column {name!r} is missing", f"The header has: {has}"))
    return problems
