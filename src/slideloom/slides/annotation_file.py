"""Files of annotations as such: missing, no file at all, not to be opened; and messages that stay on a screen."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from slideloom.config.texts import shortened
from slideloom.errors import SlideError

__all__ = ["annotation_file", "listed"]

_MISSING = {errno.ENOENT, errno.ENOTDIR}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG}
_MEND = "Mend the path in the sheet, or leave the cell empty"
_MOST_WORDS = 10


@contextmanager
def annotation_file(path: Path, what: str) -> Iterator[None]:
    """Look at a file of an annotation, and tell of what keeps it from being opened.

    Parameters
    ----------
    path : Path
        The file.
    what : str
        What it is, such as "the class table".

    Raises
    ------
    SlideError
        On entry or from what the block does with the file. ``annotation_missing``: there is no such file.
        ``annotation_unreadable``: a folder, a device, or nothing that may be read. Trouble of the machine (such as a
        disk that fails) is left as it is.
    """
    where = shortened(path.name)
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise _refuse(f"{what} is a folder", where, _MEND)
        if not stat.S_ISREG(kind):
            raise _refuse(f"{what} is a device or a pipe", where, _MEND)
        yield
    except OSError as error:
        if error.errno in _MISSING:
            raise SlideError(f"{what} is not there", where=where, hint=_MEND, code="annotation_missing") from error
        if error.errno not in _REFUSED:
            raise
        hint = f"Look at the permissions of {where}, and at what its path leads through"
        raise _refuse(f"{what} cannot be opened ({error.strerror})", where, hint) from error
    except ValueError as error:
        if "\0" not in str(path):
            raise
        raise SlideError(f"{what} is not there", where=repr(where), hint=_MEND, code="annotation_missing") from error


def listed(words: Iterable[object]) -> str:
    """Some words from a file, for a message; control characters escaped, long lists and words cut.

    Examples
    --------
    >>> listed(["stroma", 3])
    "'stroma', 3"
    """
    shown = list(words)
    rest = ", …" if len(shown) > _MOST_WORDS else ""
    return ", ".join(shortened(repr(word)) for word in shown[:_MOST_WORDS]) + rest


def _refuse(what: str, where: str, hint: str) -> SlideError:
    return SlideError(what, where=where, expected="a file", hint=hint, code="annotation_unreadable")
