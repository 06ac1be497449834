"""Files of a data set: which there are, what their folders say of them, and tables among them."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from slideloom.config.texts import read_text, shortened
from slideloom.errors import Problem, SlideError

__all__ = ["MADE", "files_below", "read_rows", "role_of"]

#: Folder below the sheet's for what is made; a set that lies there is not taken for its own source.
MADE = "imported"
#: Folders below the top that are looked into.
_DEEPEST = 6
_ROLES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_WORDS = re.compile(r"[^a-z]+")
#: Of a table.
_MOST_BYTES = 64 << 20


def files_below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Files whose names end so, in the order of folders and names.

    Hidden ones, Zarr folders and what was made here are passed over.

    Parameters
    ----------
    folder : Path
        The top; six folders below each other are looked into.
    suffixes : tuple of str
        In lower case; the names' case does not count.
    """
    for place, folders, names in os.walk(folder):
        here = Path(place)
        deep = len(here.relative_to(folder).parts) >= _DEEPEST
        open_to = (one for one in folders if one[0] != "." and one != MADE and not one.endswith(".zarr"))
        folders[:] = [] if deep else sorted(open_to)
        yield from (here / one for one in sorted(names) if one[0] != "." and one.lower().endswith(suffixes))


def role_of(path: Path, folder: Path) -> str | None:
    """Role that a folder's name above a file gives it: ``train``, ``val`` or ``test``; None where none does."""
    for part in reversed(path.relative_to(folder).parts[:-1]):
        for word in (part.lower(), *_WORDS.split(part.lower())):
            if word in _ROLES:
                return _ROLES[word]
            joined = re.match(r"(?:monuseg)?(train|test)(?:ing)?data", word)
            if joined:
                return joined[1]
    return None


def read_rows(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of a CSV table with a header, each cell by its column, without outer blanks.

    Parameters
    ----------
    path : Path
        UTF-8, of 64 MiB at most.
    columns : sequence of str
        Columns that it must have.

    Raises
    ------
    SlideError
        ``unreadable``; ``annotation_columns``: a column is missing.
    """
    problems: list[Problem] = []
    text = read_text(path, _MOST_BYTES, "a table", "Save it as CSV, in UTF-8", problems)
    if text is None:
        first = problems[0]
        raise SlideError(first.what, where=path.name, expected="a CSV table", hint=first.hint, code="unreadable")
    try:
        lines = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise SlideError(
            f"cannot be read: {error}", where=path.name, expected="a CSV table", code="unreadable"
        ) from error
    header = [cell.strip() for cell in lines[0]] if lines else []
    if missing := [name for name in columns if name not in header]:
        raise SlideError(
            f"no column {missing[0]!r}",
            where=path.name,
            expected=", ".join(columns),
            hint=f"Its columns are {shortened(', '.join(header), 300)}",
            code="annotation_columns",
        )
    return [dict(zip(header, (cell.strip() for cell in line), strict=False)) for line in lines[1:] if any(line)]
