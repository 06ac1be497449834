"""Files of a data set: which there are, what their folders say of them, and tables among them."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from slideloom.config.texts import read_text, shortened
from slideloom.errors import Problem, SlideError

__all__ = ["MADE", "Listing", "files_below", "folders_in", "list_folder", "one_look", "read_rows", "role_of", "walk"]

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


@dataclass(frozen=True)
class Listing:
    """What lies in a folder, hidden entries, too, sorted by name.

    Attributes
    ----------
    folders : tuple of str
        Names of folders, and of links to folders.
    files : tuple of str
        Names of all others.
    links : frozenset of str
        Of the folders, those that are links.
    """

    folders: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    links: frozenset[str] = frozenset()


_known: ContextVar[dict[Path, Listing] | None] = ContextVar("_known", default=None)


@contextmanager
def one_look() -> Iterator[None]:
    """Within it, a folder is read from the disk once, however many ask what lies in it.

    For looking alone: what is written meanwhile is not seen.
    """
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def list_folder(folder: Path) -> Listing:
    """What lies in a folder; nothing where it does not exist, is none or may not be read."""
    known = _known.get()
    if known is not None and folder in known:
        return known[folder]
    folders: list[str] = []
    files: list[str] = []
    links: set[str] = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                inside = _is_folder(entry)
                (folders if inside else files).append(entry.name)
                if inside and entry.is_symlink():
                    links.add(entry.name)
    except OSError:
        pass
    found = Listing(tuple(sorted(folders)), tuple(sorted(files)), frozenset(links))
    if known is not None:
        known[folder] = found
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle
        return False


def folders_in(folder: Path) -> list[Path]:
    """Folders that lie in a folder, sorted by name, without hidden ones."""
    return [folder / one for one in list_folder(folder).folders if one[0] != "."]


def walk(folder: Path, enter: Callable[[Path], bool]) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """A folder and those below it, each with the names of its files, in the order of folders and names.

    Parameters
    ----------
    folder : Path
        The top.
    enter : callable
        Whether a folder below it is looked into. Hidden ones, Zarr folders and links never are.
    """
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        found = list_folder(here)
        yield here, found.files
        below = (here / one for one in found.folders if one[0] != "." and one not in found.links)
        waiting += reversed([one for one in below if not one.name.endswith(".zarr") and enter(one)])


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
    deepest = len(folder.parts) + _DEEPEST
    for here, names in walk(folder, lambda one: one.name != MADE and len(one.parts) <= deepest):
        yield from (here / one for one in names if one[0] != "." and one.lower().endswith(suffixes))


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
