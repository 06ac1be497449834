"""The skeleton of a TIFF file: is it whole, and how many pages has it?

tifffile and OpenSlide drop what they cannot reach, with a line in a log at most; a slide cut short in copying then
looks like a smaller one. So the chain of directories is walked here first. Layout: TIFF 6.0, section 2, and BigTIFF.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from slideloom.errors import SlideError

__all__ = ["count_pages", "is_tiff", "refuse_truncated_pages"]

_NDPI_TAG = 65420


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins with these bytes says that it is TIFF or BigTIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def count_pages(path: Path, where: str) -> int:
    """Walk the chain of directories.

    Parameters
    ----------
    path : Path
        A file for which :func:`is_tiff` holds.
    where : str
        Its name for messages.

    Returns
    -------
    int
        Number of pages of the main chain. 1 for NDPI, whose 64-bit offsets are its own affair.

    Raises
    ------
    SlideError
        ``truncated``: the chain leads out of the file.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        big = head[2:4] in (b"+\0", b"\0+")
        count_form, offset_form, entry_bytes = (f"{order}Q", f"{order}Q", 20) if big else (f"{order}H", f"{order}I", 12)
        width = struct.calcsize(offset_form)
        first = 8 if big else 4
        if len(head) < first + width:
            raise _truncated(size, where)
        offset = struct.unpack_from(offset_form, head, first)[0]
        seen: set[int] = set()
        while offset and offset not in seen:
            seen.add(offset)
            entries = _read(file, offset, struct.calcsize(count_form), size, where)
            number = struct.unpack(count_form, entries)[0]
            start = offset + len(entries)
            body = _read(file, start, number * entry_bytes + width, size, where)
            tags = {struct.unpack_from(f"{order}H", body, entry * entry_bytes)[0] for entry in range(number)}
            if _NDPI_TAG in tags:
                return 1
            offset = struct.unpack_from(offset_form, body, number * entry_bytes)[0]
        if not seen:
            raise _truncated(size, where)
        return len(seen)


def refuse_truncated_pages(pages: Iterable[Any], size_bytes: int, where: str) -> None:
    """Check that the samples of pages, and their sub-resolutions, lie inside the file.

    Parameters
    ----------
    pages : iterable of tifffile.TiffPage or TiffFrame
        Pages whose samples will be read.
    size_bytes : int
        Size of the file.
    where : str
        Its name for messages.

    Raises
    ------
    SlideError
        ``truncated``.
    """
    for page in pages:
        ends = (offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False) if count)
        if max(ends, default=0) > size_bytes or max(getattr(page, "subifds", None) or (), default=0) >= size_bytes:
            raise _truncated(size_bytes, where)


def _read(file: BinaryIO, offset: int, count: int, size: int, where: str) -> bytes:
    if offset + count > size:
        raise _truncated(size, where)
    file.seek(offset)
    return file.read(count)


def _truncated(size: int, where: str) -> SlideError:
    return SlideError(
        f"the file ends too early, after {size} bytes: parts that it announces lie behind its end",
        where=where,
        hint="copy it again from where it was made",
        code="truncated",
    )
