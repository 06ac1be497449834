"""Where an image lies: a file or folder, and the member inside it.

The text form stands in the sample sheet: ``scan.svs``, ``fields.npz::images[3]``, ``stack.npy::[3]``,
``store.zarr::labels/0``, ``nuclei.csv::train_01``. What a member means is the reader's affair.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from slideloom.errors import SlideError

__all__ = ["Source", "parse_source", "split_index"]

_SEPARATOR = "::"
_INDEXED = re.compile(r"^(?P<name>[^\[\]]*)(?:\[(?P<index>[^\[\]]*)\])?$")


@dataclass(frozen=True)
class Source:
    """A file or folder, and the member inside it.

    Attributes
    ----------
    path : Path
        File or folder.
    member : str
        What stands behind ``::``; empty for the whole file.
    label : str
        What messages call it, such as the slide and the file as the sheet names it; its path and member when empty.
    """

    path: Path
    member: str = ""
    label: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        if self.label:
            return self.label
        return f"{self.path}{_SEPARATOR}{self.member}" if self.member else str(self.path)


def parse_source(text: str, root: Path) -> Source:
    """Read the sheet's text form of a source.

    Parameters
    ----------
    text : str
        ``path`` or ``path::member``; blanks around either part are dropped, and a leading ``~`` is the home folder.
    root : Path
        Where relative paths start.

    Returns
    -------
    Source
        Whether the file exists is not checked.

    Raises
    ------
    SlideError
        ``bad_source``: no path, or ``::`` with nothing behind it.

    Examples
    --------
    >>> parse_source("fields.npz::images[3]", Path("/data"))
    Source(path=PosixPath('/data/fields.npz'), member='images[3]')
    """
    path, separator, member = (part.strip() for part in text.strip().partition(_SEPARATOR))
    if not path or (separator and not member):
        raise SlideError(
            f"{text!r} names no {'member' if path else 'file'}",
            expected="path or path::member",
            hint="Leave the cell empty if the slide has no such image",
            code="bad_source",
        )
    return Source(root / Path(path).expanduser() if path.startswith("~") else _below(root, path), member)


@lru_cache(maxsize=1024)
def _below(root: Path, path: str) -> Path:
    """A path below a folder; made once for all the members of a file, as sheets name them row after row."""
    return root / path


def split_index(source: Source) -> tuple[str, int | None]:
    """Split a member such as ``images[3]`` into its array name and its index on the first axis.

    Parameters
    ----------
    source : Source
        Its member is read.

    Returns
    -------
    name : str
        Empty when the member has none (``[3]``).
    index : int or None
        None when the member has none (``images``).

    Raises
    ------
    SlideError
        ``bad_member``: not of that form, or the index is not a whole number from 0.
    """
    match = _INDEXED.match(source.member)
    index = match["index"] if match else None
    if match is None or (index is not None and not index.strip().isdecimal()):
        raise SlideError(
            f"member {source.member!r} cannot be read",
            where=str(source.path),
            expected="name, name[3] or [3], counted from 0",
            hint="Mend what stands behind :: in the sheet",
            code="bad_member",
        )
    return match["name"].strip(), None if index is None else int(index)
