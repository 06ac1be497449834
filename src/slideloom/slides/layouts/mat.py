"""Arrays of numbers from MATLAB files of version 5 (``save -v6``, ``-v7``), within bounds of memory.

Written from MathWorks' "MAT-File Format", level 5. Only what maps of pictures need: full arrays of real numbers. Cells,
structs, objects and the rest are passed over, or refused when they are asked for. No more is unpacked of a variable
than its announced size can take. SciPy's reader is not used: damaged files make it read where nothing is, which ends
the process.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from slideloom.config.texts import quoted
from slideloom.errors import SlideError

__all__ = ["MOST_NUMBERS", "read_mat"]

#: Numbers of a variable that is believed: those of a map of 8192 x 8192 px.
MOST_NUMBERS = 1 << 26
_Order = Literal["little", "big"]
_ORDERS: Mapping[bytes, _Order] = {b"IM": "little", b"MI": "big"}
_HEADER_BYTES, _VERSION = 128, 0x0100
_MATRIX, _PACKED = 14, 15
#: How numbers are stored, by the type of their element.
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
#: What they are in MATLAB, by the class of the array; they may be stored as something smaller.
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_OTHERS = {1: "cell", 2: "struct", 3: "object", 4: "text", 5: "sparse array", 16: "function", 17: "object"}
_COMPLEX = 0x0800
#: The beginning of a variable, which holds its class, size and name.
_HEAD_BYTES = 4096
_MOST_AXES = 8
_PIECE = 1 << 20
_AGAIN = "Copy it again from where it was made"
_SAVE = "Save it again in MATLAB, with save('name.mat', '-v7')"


class _DamagedError(ValueError):
    """What is wrong with a file, in words."""


@dataclass(frozen=True)
class _Variable:
    """A variable's beginning, and where the rest lies."""

    name: str
    kind: int
    is_complex: bool
    shape: tuple[int, ...]
    #: Of the element with the numbers, from the beginning of the variable.
    at: int
    packed: bool
    start: int
    size: int


def read_mat(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read arrays of numbers.

    Parameters
    ----------
    path : Path
        The file.
    names : sequence of str
        Variables that are asked for; others are passed over.

    Returns
    -------
    dict of str to array
        By name, in MATLAB's shape (vectors have two axes); variables that the file lacks are left out.

    Raises
    ------
    SlideError
        ``unreadable``: no such file, damaged, or of another version; ``too_large``; ``unsupported_layout``: a variable
        that is asked for is no array of real numbers.
    """
    found: dict[str, NDArray[Any]] = {}
    try:
        with path.open("rb") as file:
            order = _order(file, path)
            for one in _variables(file, path.stat().st_size, order):
                if one.name in names and one.name not in found:
                    found[one.name] = _numbers(file, one, order, path)
    except (_DamagedError, OSError, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        expected = "a MATLAB file of version 5"
        what = f"cannot be read: {why}"
        raise SlideError(what, where=path.name, expected=expected, hint=_AGAIN, code="unreadable") from error
    return found


def _order(file: BinaryIO, path: Path) -> _Order:
    head = file.read(_HEADER_BYTES)
    order = _ORDERS.get(head[126:])
    if order is None or int.from_bytes(head[124:126], order) != _VERSION:
        what, expected = "it has not the header of a MATLAB file of version 5", "a file as save -v7 writes it"
        raise SlideError(what, where=path.name, expected=expected, hint=_SAVE, code="unreadable")
    return order


def _variables(file: BinaryIO, end: int, order: _Order) -> Iterator[_Variable]:
    """Variables in the order of the file; those whose beginning is of another form are passed over."""
    at = _HEADER_BYTES
    while at + 8 <= end:
        file.seek(at)
        tag = file.read(8)
        kind, size = (int.from_bytes(tag[part : part + 4], order) for part in (0, 4))
        start = at + 8
        if kind not in (_MATRIX, _PACKED) or start + size > end:
            raise _DamagedError(f"an element of type {kind} and {size} bytes at byte {at} of {end}")
        try:
            found = _begin(_content(file, start, size, kind == _PACKED, _HEAD_BYTES), order)
            name, matrix_class, is_complex, shape, behind = found
        except _DamagedError:
            pass
        else:
            yield _Variable(name, matrix_class, is_complex, shape, behind, kind == _PACKED, start, size)
        at = start + size


def _begin(head: bytes, order: _Order) -> tuple[str, int, bool, tuple[int, ...], int]:
    """Name, class, whether complex, shape, and where the numbers begin."""
    kind, start, size, at = _element(head, 0, order)
    if kind != 6 or size != 8:
        raise _DamagedError("a variable without a class")
    flags = int.from_bytes(head[start : start + 4], order)
    kind, start, size, at = _element(head, at, order)
    if kind != 5 or size % 4 or not 8 <= size <= 4 * _MOST_AXES:
        raise _DamagedError("a variable without a size")
    shape = tuple(int.from_bytes(head[place : place + 4], order) for place in range(start, start + size, 4))
    kind, start, size, at = _element(head, at, order)
    if kind != 1:
        raise _DamagedError("a variable without a name")
    return head[start : start + size].decode("latin-1"), flags & 0xFF, bool(flags & _COMPLEX), shape, at


def _element(held: bytes, at: int, order: _Order) -> tuple[int, int, int, int]:
    """Type of an element, where its data begin, their number of bytes, and where the next element begins."""
    if at + 8 > len(held):
        raise _DamagedError("a variable that ends too early")
    first = int.from_bytes(held[at : at + 4], order)
    if first >> 16:  # four bytes at most, in the tag itself
        kind, size, start, behind = first & 0xFFFF, first >> 16, at + 4, at + 8
        if size > 4:
            raise _DamagedError("an element that is no small one")
    else:
        kind, size, start = first, int.from_bytes(held[at + 4 : at + 8], order), at + 8
        behind = start + size + -size % 8
    if start + size > len(held):
        raise _DamagedError("an element that ends too early")
    return kind, start, size, behind


def _numbers(file: BinaryIO, one: _Variable, order: _Order, path: Path) -> NDArray[Any]:
    if one.kind not in _CLASSES or one.is_complex:
        word = "complex array" if one.is_complex else _OTHERS.get(one.kind, f"thing of class {one.kind}")
        what = f"its variable {quoted(one.name)} is a {word}"
        expected = "an array of real numbers"
        raise SlideError(what, where=path.name, expected=expected, code="unsupported_layout")
    count = math.prod(one.shape)
    if count > MOST_NUMBERS:
        what = f"its variable {quoted(one.name)} has {' x '.join(map(str, one.shape))} numbers"
        expected = f"a map of {MOST_NUMBERS} pixels at most"
        raise SlideError(what, where=path.name, expected=expected, hint="Is it the right file?", code="too_large")
    held = _content(file, one.start, one.size, one.packed, one.at + 8 * count + 16)
    kind, start, size, _ = _element(held, one.at, order)
    if kind not in _STORED or size != count * np.dtype(_STORED[kind]).itemsize:
        raise _DamagedError(f"{size} bytes of type {kind} for {count} numbers of {quoted(one.name)}")
    stored = np.dtype(_STORED[kind]).newbyteorder("<" if order == "little" else ">")
    values = np.frombuffer(held, stored, count, start).astype(_CLASSES[one.kind])
    return values.reshape(one.shape, order="F")


def _content(file: BinaryIO, start: int, size: int, packed: bool, most: int) -> bytes:
    """The first bytes of a variable, behind its tag; no more than are asked for."""
    file.seek(start)
    if not packed:
        return file.read(min(size, most))
    packer, held, end = zlib.decompressobj(), bytearray(), start + size
    wanted = most + 8
    while len(held) < wanted and not packer.eof:
        piece = packer.unconsumed_tail or file.read(min(_PIECE, end - file.tell()))
        if not piece:
            break
        held += packer.decompress(piece, wanted - len(held))
    return bytes(held[8:])  # without the tag of the matrix
