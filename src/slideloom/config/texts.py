"""Texts that people write: read whole and bounded, whatever lies there, and quoted in messages at a readable length."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from slideloom.errors import Problem

__all__ = ["absence", "quoted", "read_text", "shortened"]

_LONGEST = 80
#: First bytes of files that are taken for text, and what they are.
_NO_TEXT = {
    b"PK\x03\x04": "a spreadsheet workbook or a zip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "a gzip file",
    b"%PDF": "a PDF",
    b"II*\x00": "a TIFF image",
    b"MM\x00*": "a TIFF image",
    b"II+\x00": "a TIFF image",
    b"\x89PNG": "a PNG image",
    b"PAR1": "a Parquet table",
}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def shortened(text: str, longest: int = _LONGEST) -> str:
    """A text at a length that a message can hold, with its middle left out.

    Examples
    --------
    >>> shortened("abcdefghij", 5)
    'ab…ij'
    """
    if len(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def quoted(text: str) -> str:
    """A text in quotes, as Python writes it, so that what cannot be seen can be; shortened."""
    return repr(shortened(text))


def absence(path: Path) -> str:
    """Why nothing can be had from a path: that it does not exist, or what the system says; empty when it is there.

    Examples
    --------
    >>> absence(Path("/")), absence(Path("/no/such/file"))
    ('', 'does not exist')
    """
    try:
        path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            return f"is a link to {quoted(os.readlink(path))}, which does not exist"
        return "does not exist"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is a link that leads in a circle"
        return f"cannot be reached: {error.strerror or error}"
    except ValueError as error:  # a NUL in the name
        return f"cannot be a path: {error}"
    return ""


def read_text(path: Path, most_bytes: int, kind: str, hint: str, problems: list[Problem]) -> str | None:
    """Read a text file that a person wrote.

    Parameters
    ----------
    path : Path
        UTF-8, with or without byte order mark.
    most_bytes : int
        A larger file is refused unread.
    kind : str
        What it is taken for, such as ``a config``.
    hint : str
        How to save it as text.
    problems : list of Problem
        What is wrong is added here.

    Returns
    -------
    str or None
        None when it could not be read. Devices and pipes are refused, since they may never end.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            problems.append(Problem(str(path), f"is a folder, not {kind}", "Name the file itself"))
            return None
        if not stat.S_ISREG(status.st_mode):
            problems.append(Problem(str(path), "is no ordinary file", "Copy what it holds to a file, and name that"))
            return None
        if status.st_size > most_bytes:
            what = f"has {_size(status.st_size)}, more than {kind} may have ({_size(most_bytes)})"
            problems.append(Problem(str(path), what, "Is it the right file?"))
            return None
        with path.open("rb") as file:
            raw = file.read(most_bytes)
    except FileNotFoundError:
        problems.append(Problem(str(path), "this file does not exist", "Look at its name and at the current folder"))
        return None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or error
        problems.append(Problem(str(path), f"cannot be read: {reason}", "Look at its permissions, and at its folder's"))
        return None
    return _decoded(path, raw, hint, problems)


def _size(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count >= 1e7 else f"{count / 1e3:.0f} kB"


def _decoded(path: Path, raw: bytes, hint: str, problems: list[Problem]) -> str | None:
    found = next((what for start, what in _NO_TEXT.items() if raw.startswith(start)), "")
    if found:
        problems.append(Problem(str(path), f"is {found}, not text", hint))
        return None
    if raw.startswith(_UTF16):
        problems.append(Problem(str(path), "is not UTF-8 but UTF-16 text, as Windows saves 'Unicode'", hint))
        return None
    if b"\x00" in raw:
        line = raw[: raw.index(b"\x00")].count(b"\n") + 1
        problems.append(Problem(f"{path}:{line}", "holds NUL bytes: it is no text, or UTF-16", hint))
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        around = raw[max(0, error.start - 12) : error.start + 12].splitlines()
        word = next((part for part in around if raw[error.start : error.start + 1] in part), b"").decode("latin-1")
        what = f"is not UTF-8 text: it looks like Latin-1 at {word.strip()!r}"
        problems.append(Problem(f"{path}:{line}", what, hint))
        return None
