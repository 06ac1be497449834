"""The skeleton of a TIFF file: is it whole, does it end, and how many pages has it?

tifffile and OpenSlide drop what they cannot reach, with a line in a log at most; a slide cut short in copying then
looks like a smaller one. So the directories are walked here first.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from slideloom.errors import SlideError
from slideloom.slides.declared import FREE_PIECE_BYTES, refuse_hollow_piece
from slideloom.slides.tiff_directories import DirectoryWalk, ends_too_early

__all__ = ["count_pages", "is_tiff", "refuse_empty_pages", "refuse_truncated_pages"]


_TILE_WIDTH = 322


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins with these bytes says that it is TIFF or BigTIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def count_pages(path: Path, where: str) -> int:
    """Walk the directories.

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
        ``truncated``: the chain, or what a tag holds that the pixels hang on, leads out of the file; ``unreadable``: it
        leads in a circle; ``too_large``: more than 10 000 directories, a million entries, or more values than the file
        can hold.
    """
    with path.open("rb") as file:
        return DirectoryWalk(file, where).pages()


def refuse_empty_pages(pages: Iterable[Any], where: str) -> None:
    """Check that pages, and what they are stored in, have a size.

    Parameters
    ----------
    pages : iterable of tifffile.TiffPage or TiffFrame
        Pages whose samples will be read.
    where : str
        Its name for messages.

    Raises
    ------
    SlideError
        ``unreadable``: a page, its tiles or its strips are 0 pixels high or wide.
    """
    for page in pages:
        first = page.keyframe
        sizes = {"height": first.imagelength, "width": first.imagewidth}
        if _TILE_WIDTH in first.tags:
            sizes |= {"height of its tiles": first.tilelength, "width of its tiles": first.tilewidth}
        else:
            sizes |= {"height of its strips": first.rowsperstrip}
        empty = [name for name, size in sizes.items() if size < 1]
        if empty:
            raise SlideError(
                f"page {page.index} says that the {empty[0]} is 0 pixels",
                where=where,
                expected="at least 1",
                hint="The file is damaged: copy it again from where it was made, or export it anew",
                code="unreadable",
            )


def refuse_truncated_pages(pages: Iterable[Any], size_bytes: int, where: str) -> None:
    """Check that the samples of pages, and their sub-resolutions, lie inside the file, and that no tile is a trap.

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
        ``truncated``; ``too_large``: a tile would take far more memory than is stored for it, whoever decodes it.
    """
    for page in pages:
        if page.keyframe.is_tiled:
            first = page.keyframe
            samples = 1 if first.planarconfig == 2 else first.samplesperpixel
            declared = first.tilelength * first.tilewidth * samples * getattr(first.dtype, "itemsize", 1)
            if declared > FREE_PIECE_BYTES:
                refuse_hollow_piece(declared, max(page.databytecounts, default=0), where, "a tile")
        ends = (offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False) if count)
        if max(ends, default=0) > size_bytes or max(getattr(page, "subifds", None) or (), default=0) >= size_bytes:
            raise ends_too_early(size_bytes, where)
