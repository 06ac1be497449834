"""NumPy arrays from files of other programs, read without running what they hold and within bounds of memory.

A ``.npy`` file may hold Python objects, which are pickled: reading them runs whatever the file says. Such files are
refused.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from slideloom.config.texts import shortened
from slideloom.errors import SlideError

__all__ = ["UNPICKLE", "map_npy", "read_npz"]

#: How objects are turned into plain arrays by someone who trusts the file.
UNPICKLE = (
    "Reading Python objects runs what the file says. Where you trust where it came from, save plain arrays yourself: "
)
#: NumPy itself refuses headers of more than 10 000 bytes.
_HEADER_BYTES = 65_536
_AGAIN = "Copy it again from where it was made"
#: Bytes that an array may unpack to: a map of 8192 x 8192 doubles, twice.
_MOST_BYTES = 1 << 30


def map_npy(path: Path, n_axes: int, kinds: str, what: str, plain: str) -> NDArray[Any]:
    """Map an array of an ``.npy`` file from disk.

    Parameters
    ----------
    path : Path
        The file.
    n_axes : int
        Axes that it must have.
    kinds : str
        Kinds of NumPy types that it may have, such as ``"uif"``.
    what : str
        What it holds, for messages.
    plain : str
        Python that turns a file of objects into one of plain values, for the hint.

    Returns
    -------
    array
        Not writable; read where it is indexed.

    Raises
    ------
    SlideError
        ``pickled``: it holds objects; ``unreadable``, ``unsupported_layout``.
    """
    try:
        with path.open("rb") as file:
            shape, dtype = _header(file.read(_HEADER_BYTES))
        if dtype.hasobject:
            raise SlideError(
                f"it holds Python objects, of shape {shape}",
                where=path.name,
                expected=what,
                hint=f"{UNPICKLE}{plain}",
                code="pickled",
            )
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (SlideError, MemoryError):
        raise
    except Exception as error:  # a damaged header is code, of which everything may be wrong
        raise _unreadable(path, error, what) from error
    if array.ndim != n_axes or array.dtype.kind not in kinds:
        told = f"an array of shape {array.shape} {shortened(str(array.dtype))}"
        raise SlideError(told, where=path.name, expected=what, hint="Is it the right file?", code="unsupported_layout")
    return array


def read_npz(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read arrays of an ``.npz`` file; ones that it lacks are left out.

    Parameters
    ----------
    path : Path
        The file.
    names : sequence of str
        Arrays that are asked for.

    Raises
    ------
    SlideError
        ``unreadable``; ``too_large``: an array unpacks to more than 1 GiB; ``pickled``.
    """
    found: dict[str, NDArray[Any]] = {}
    expected = f"arrays {', '.join(names)}"
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            for name in names:
                if f"{name}.npy" in sizes:
                    with archive.open(f"{name}.npy") as member:
                        _check_member(path, name, member.read(_HEADER_BYTES), sizes[f"{name}.npy"])
        with np.load(path, allow_pickle=False) as arrays:
            found.update({name: arrays[name] for name in names if name in arrays.files})
    except (SlideError, MemoryError):
        raise
    except Exception as error:
        raise _unreadable(path, error, expected) from error
    return found


def _header(held: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type that the beginning of an ``.npy`` file gives."""
    # From memory: NumPy would make room for as many bytes as the header says that it has.
    head = io.BytesIO(held)
    version = npy_format.read_magic(head)
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, _, dtype = read(head)
    return shape, dtype


def _check_member(path: Path, name: str, held: bytes, size: int) -> None:
    """Refuse an array of objects, one that is too large, and one that announces more than it holds."""
    shape, dtype = _header(held)
    if dtype.hasobject:
        what, hint = f"its array {name!r} holds Python objects", UNPICKLE.partition(" Where")[0]
        raise SlideError(what, where=path.name, expected="plain numbers", hint=hint, code="pickled")
    announced = math.prod(shape) * dtype.itemsize
    if announced > _MOST_BYTES:
        what = f"its array {name!r} unpacks to more than {_MOST_BYTES >> 20} MiB"
        hint = "Is it the right file?"
        raise SlideError(what, where=path.name, expected="maps of one picture", hint=hint, code="too_large")
    if announced > size:
        raise ValueError(f"{shape} {dtype} in {size} bytes")


def _unreadable(path: Path, error: Exception, expected: str) -> SlideError:
    why = shortened(str(error).partition("\n")[0] or type(error).__name__, 200)
    return SlideError(f"cannot be read: {why}", where=path.name, expected=expected, hint=_AGAIN, code="unreadable")
