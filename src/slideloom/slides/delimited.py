"""Small tables that people write by hand: tabs or commas, from any editor or spreadsheet, every fault with its line."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slideloom.config.texts import quoted, read_text, shortened
from slideloom.errors import Problem

__all__ = ["Table", "TableRow", "nearest", "read_table"]

_NEAR = 0.8
# Fifty thousand slides are below.
_MOST_BYTES, _MOST_CELLS, _MOST_COLUMNS = 16 * 2**20, 1_000_000, 200
#: A spreadsheet may write all its rows, of which it has 2²⁰, the empty ones, too.
_MOST_LINES = 1_100_000
#: A row takes the memory of that many cells, however few it has.
_ROW_CELLS = 8
#: Not the white space that a quoted cell may hold.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_SAVE = "Save it as UTF-8 text (in a spreadsheet: 'CSV UTF-8')"


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


def _never(name: str) -> bool:
    return False


def read_table(
    path: Path,
    known: Sequence[str],
    required: Sequence[str],
    mistaken: Mapping[str, str] | None = None,
    own: Callable[[str], bool] = _never,
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
    own : callable, optional
        Whether a column of that name is meant as it stands, however like a known one.

    Returns
    -------
    Table
        With every fault in ``problems``. It has no rows when the file or its header could not be read.
    """
    table = Table(path)
    problems = table.problems
    text = read_text(path, _MOST_BYTES, "a table", _SAVE, problems)
    if text is None:
        return table
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    columns: tuple[str, ...] = ()
    rows: list[TableRow] = []
    first, count = 1, 0
    try:
        for values in reader:
            line, first = first, reader.line_num + 1
            if line > _MOST_LINES:
                what = f"the table has more than {_MOST_LINES} lines, empty ones among them"
                problems.append(Problem(f"{path}:{line}", what, "Delete the empty rows; or is it another file?"))
                break
            cells = [value.strip() for value in values]
            if not any(cells) or cells[0].startswith("#"):
                continue
            if not columns:
                columns = tuple(_without_empty_tail(cells))
                problems += _header_problems(path, line, columns, known, required, mistaken or {}, own)
                if len(columns) > _MOST_COLUMNS:
                    break
                continue
            if tuple(cells[: len(columns)]) == columns:
                problems.append(Problem(f"{path}:{line}", "the header stands here again", "Remove this line"))
                continue
            count += max(len(columns), _ROW_CELLS)
            if count > _MOST_CELLS:
                what = f"the table has more than {_MOST_CELLS} cells"
                problems.append(Problem(f"{path}:{line}", what, "Is it the right file?"))
                rows.clear()
                break
            if control := _CONTROL.search("".join(cells)):
                what = f"holds the control character {control[0]!r}"
                problems.append(Problem(f"{path}:{line}", what, "Type the line anew"))
                continue
            row = TableRow(line, dict(zip(columns, [*cells, *[""] * len(columns)], strict=False)))
            surplus = _without_empty_tail(cells[len(columns) :])
            if surplus:
                what = f"has {len(columns) + len(surplus)} cells, but the header has {len(columns)} columns"
                problems.append(Problem(table.place(row), what, f"Look at the surplus cell {quoted(surplus[0])}"))
            rows.append(row)
    except csv.Error as error:
        rows.clear()
        problems.append(_quotes(path, first, reader.line_num, error))
    if not columns and not problems:
        problems.append(Problem(str(path), "is empty", f"It needs a header line with {', '.join(required)}"))
    usable = len(set(columns)) == len(columns) and not set(required) - set(columns)
    return Table(path, columns, tuple(rows) if usable else (), problems)


def _quotes(path: Path, first: int, last: int, error: csv.Error) -> Problem:
    """What is wrong with quotes, which is all that a table can have wrong with its form."""
    place = f"{path}:{first}"
    if "expected after" in str(error):
        what = "a cell in double quotes goes on after the closing quote"
        return Problem(place, what, "Put the whole cell in quotes, and write a quote inside it twice")
    if "field larger" in str(error) and first == last:
        return Problem(place, f"a cell has more than {csv.field_size_limit()} characters", "Is it the right file?")
    what = f"a double quote opens a cell here and is not closed (looked up to line {last})"
    return Problem(place, what, 'Remove the ", or close it at the end of the cell')


def _delimiter(text: str) -> str:
    for match in re.finditer(r"[^\r\n]+", text):  # never all lines of a file that may be no table
        line = match[0]
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
    own: Callable[[str], bool],
) -> list[Problem]:
    place = f"{path}:{line}"
    problems: list[Problem] = []
    if len(columns) > _MOST_COLUMNS:
        hint = "A row is a line, and its first row names the columns: is it the right file?"
        return [Problem(place, f"the header has {len(columns)} columns, more than {_MOST_COLUMNS}", hint)]
    words = re.split(r"[\s|:]+", columns[0])
    if len(columns) == 1 < len(words) and not {*required} - {*words}:
        what = f"the header is one column, {quoted(columns[0])}"
        return [Problem(place, what, "Separate columns by tabs or commas, not by blanks")]
    absent = [name for name in known if name not in columns]
    meant: set[str] = set()
    for name in dict.fromkeys(columns):
        if not name:
            hint = "Name it, or remove the column"
            problems.append(Problem(place, "a column of the header has no name", hint))
        elif columns.count(name) > 1:
            what = f"the column {quoted(name)} stands in the header {columns.count(name)} times"
            problems.append(Problem(place, what, "Keep one of them, or rename the others"))
        elif name not in known and not own(name):
            guess = mistaken.get(name.casefold(), "") or nearest(name, absent, cutoff=_NEAR)
            if guess in absent:
                meant.add(guess)
                hint = f"Did you mean {guess!r}? A column of your own needs a name less like it"
                problems.append(Problem(place, f"unknown column {quoted(name)}", hint))
    for name in required:
        if name not in columns and name not in meant:
            has = shortened(", ".join(column for column in columns if column), 300)
            problems.append(Problem(place, f"the column {name!r} is missing", f"The header has: {has}"))
    return problems
