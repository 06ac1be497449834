"""Directories of a TIFF file, walked one after the other: TIFF 6.0, section 2, and BigTIFF.

Nothing is read that lies outside the file, no more is walked than a slide can need, and a chain that leads back into
itself is refused: other programs follow such chains for minutes, or without end.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from slideloom.errors import SlideError

__all__ = ["Directory", "DirectoryWalk", "ends_too_early"]

_NDPI_TAG, _SUB_TAG = 65420, 330
#: What pixels and their meaning hang on: description, strips, tiles, colours, sub-directories, JPEG tables.
_NEEDED = {270, 273, 279, 320, 324, 325, _SUB_TAG, 347}
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_PLACE_FORMS = {4: "I", 13: "I", 16: "Q", 18: "Q"}
#: Multiplexed stacks with their pyramids have hundreds of directories, of 20 entries each.
_MOST_DIRECTORIES, _MOST_ENTRIES = 10_000, 1_000_000
#: Small values, such as JPEG tables, may lie in one place for many directories.
_SHARED_BYTES = 16 << 20


@dataclass(frozen=True)
class Directory:
    """What leads on from a directory.

    Attributes
    ----------
    following : int
        Place of the next one; 0 after the last.
    children : tuple of int
        Places of its sub-directories.
    is_ndpi : bool
        Whether it is Hamamatsu's, whose places are written otherwise.
    """

    following: int
    children: tuple[int, ...]
    is_ndpi: bool


class DirectoryWalk:
    """Reads directories, and keeps count of them.

    Parameters
    ----------
    file : BinaryIO
        Open; begins with the mark of TIFF or BigTIFF.
    where : str
        Its name for messages.
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file, self._where = file, where
        self._size = os.fstat(file.fileno()).st_size
        head = file.read(4)
        order, self._big = ("<" if head[:2] == b"II" else ">"), b"+" in head
        self._order = order
        self._count_form, self._entry_form, self._word_form = (
            (f"{order}Q", f"{order}HHQ", f"{order}Q") if self._big else (f"{order}H", f"{order}HHI", f"{order}I")
        )
        self._word = struct.calcsize(self._word_form)
        self._step = struct.calcsize(self._entry_form) + self._word
        self._directories = self._entries = self._value_bytes = 0

    def pages(self) -> int:
        """Walk the main chain, and all sub-directories.

        Returns
        -------
        int
            Number of directories of the main chain; 1 for NDPI, of which only the first is looked at.

        Raises
        ------
        SlideError
            As :func:`~slideloom.slides.tiff_file.count_pages`.
        """
        offset = self._place(8 if self._big else 4)
        chain: set[int] = set()
        while offset:
            if offset in chain:
                raise self._circle(offset)
            chain.add(offset)
            self._count(1, 0)
            directory = self.read(offset)
            if directory.is_ndpi:
                return 1
            self._descend(directory.children, {offset})
            offset = directory.following
        if not chain:
            raise ends_too_early(self._size, self._where)
        return len(chain)

    def read(self, offset: int) -> Directory:
        """Read the directory at a place of the file; its sub-directories are counted, not read."""
        counted = self._bytes(offset, struct.calcsize(self._count_form))
        number = struct.unpack(self._count_form, counted)[0]
        start = offset + len(counted)
        if start + number * self._step + self._word > self._size:
            raise ends_too_early(self._size, self._where)
        self._count(0, number)
        body = self._bytes(start, number * self._step + self._word)
        children: tuple[int, ...] = ()
        is_ndpi = False
        for at in range(0, number * self._step, self._step):
            tag, kind, count = struct.unpack_from(self._entry_form, body, at)
            if tag in _NEEDED and kind in _TYPE_BYTES:
                value_at, n_bytes = start + at + self._step - self._word, _TYPE_BYTES[kind] * count
                if n_bytes > self._word:
                    value_at = self._place(value_at)
                    if value_at + n_bytes > self._size:
                        raise ends_too_early(self._size, self._where)
                    self._count_value(n_bytes)
                if tag == _SUB_TAG and kind in _PLACE_FORMS:
                    self._count(count, 0)
                    form = f"{self._order}{count}{_PLACE_FORMS[kind]}"
                    children = struct.unpack(form, self._bytes(value_at, n_bytes))
            is_ndpi |= tag == _NDPI_TAG
        following: int = struct.unpack_from(self._word_form, body, number * self._step)[0]
        return Directory(following, children, is_ndpi)

    def _descend(self, children: Iterable[int], above: set[int]) -> None:
        waiting = [(child, above) for child in children]
        while waiting:
            offset, above = waiting.pop()
            if offset in above:
                raise self._circle(offset)
            if offset:
                below = above | {offset}
                waiting += [(child, below) for child in self.read(offset).children]

    def _count(self, directories: int, entries: int) -> None:
        self._directories += directories
        self._entries += entries
        if self._directories > _MOST_DIRECTORIES or self._entries > _MOST_ENTRIES:
            raise SlideError(
                f"it has {self._directories} directories or more, with {self._entries} entries",
                where=self._where,
                expected=f"at most {_MOST_DIRECTORIES} directories with {_MOST_ENTRIES} entries",
                hint="Export a single image, with one page a channel",
                code="too_large",
            )

    def _count_value(self, n_bytes: int) -> None:
        """Values that many directories share are read for each of them."""
        self._value_bytes += n_bytes
        if self._value_bytes > self._size + _SHARED_BYTES:
            raise SlideError(
                f"its directories name {self._value_bytes} bytes of values or more, the file has {self._size}",
                where=self._where,
                expected="values of its own for each page",
                hint="Write the file again with a sound program",
                code="too_large",
            )

    def _place(self, offset: int) -> int:
        place: int = struct.unpack(self._word_form, self._bytes(offset, self._word))[0]
        return place

    def _bytes(self, offset: int, count: int) -> bytes:
        if offset + count > self._size:
            raise ends_too_early(self._size, self._where)
        self._file.seek(offset)
        return self._file.read(count)

    def _circle(self, offset: int) -> SlideError:
        return SlideError(
            f"its directories lead in a circle: one leads back to byte {offset}, which was read before",
            where=self._where,
            expected="a chain of pages that ends",
            hint="The file is damaged: copy it again from where it was made, or export it anew",
            code="unreadable",
        )


def ends_too_early(size: int, where: str) -> SlideError:
    """``truncated``: of a file of so many bytes."""
    return SlideError(
        f"the file ends too early, after {size} bytes: parts that it announces lie behind its end",
        where=where,
        expected="a whole file",
        hint="Copy it again from where it was made",
        code="truncated",
    )
