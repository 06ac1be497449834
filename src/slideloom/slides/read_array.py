"""NumPy arrays: ``.npy`` files, mapped from disk, and members of ``.npz`` files, read one at a time.

An array is an image (h, w), or (c, h, w), or (h, w, c); a member index (``images[3]``) picks one image of a stack
along its first axis. Nothing in the file says which axis counts channels: the last does when it is the shortest, at
most 64 long, and shorter than the first; else the first does. (40, 512, 512) and (512, 512, 3) both come out right.
"""

from __future__ import annotations

import io
import lzma
import re
import threading
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from slideloom.config.texts import quoted, shortened
from slideloom.errors import SlideError
from slideloom.slides.image import Colour, Header, make_levels
from slideloom.slides.source import Source, split_index

__all__ = ["ArrayImage", "channel_axis", "open_npy", "open_npz"]

_MOST_TRAILING_CHANNELS = 64
#: NumPy itself refuses headers of more than 10 000 bytes.
_MOST_HEADER_BYTES = 65_536
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-f]+>")
#: Members that a message lists at most.
_SHOWN = 8
_Stamp = tuple[str, int, int, str]
_last_member: tuple[_Stamp, NDArray[Any]] | None = None
_last_member_lock = threading.Lock()


def channel_axis(shape: tuple[int, ...]) -> int:
    """Which axis of a three-axis array counts channels: 0 or 2."""
    first, middle, last = shape
    return 2 if last <= _MOST_TRAILING_CHANNELS and last < first and last < middle else 0


def open_npy(source: Source) -> ArrayImage:
    """Open an ``.npy`` file, mapped from disk.

    Raises
    ------
    SlideError
        ``truncated``, ``unreadable``, ``bad_member`` or ``unsupported_layout``.
    """
    name, _ = split_index(source)
    if name:
        raise _bad_member(source, f"an .npy file has no member named {name!r}", "[3], for one image of a stack")
    with source.path.open("rb") as file:
        shape, dtype = _npy_header(file, source)
        _refuse_objects(dtype, source)
        start, size = file.tell(), source.path.stat().st_size
    if size - start < int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise SlideError(
            f"an array of {' x '.join(map(str, shape))} {dtype} is announced, the file ends after {size} bytes",
            where=str(source),
            hint="Copy it again from where it was made",
            code="truncated",
        )
    return ArrayImage(_header(source, "numpy/npy", shape, dtype), member="")


def open_npz(source: Source) -> ArrayImage:
    """Open one array of an ``.npz`` file; only its header is read.

    Raises
    ------
    SlideError
        ``bad_member``: no such array, or none named where there are several; ``unreadable``; ``unsupported_layout``.
    """
    name, _ = split_index(source)
    try:
        with zipfile.ZipFile(source.path) as archive:
            members = [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]
            if not name and len(members) == 1:
                name = members[0]
            if name not in members:
                what = f"has no array {quoted(name)}" if name else f"holds {len(members)} arrays"
                raise _bad_member(source, f"the file {what}", _one_of(members))
            with archive.open(f"{name}.npy") as file:
                shape, dtype = _npy_header(cast(BinaryIO, file), source)
            _refuse_objects(dtype, source)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError) as error:
        # RuntimeError: encrypted, or compressed by a method that Python lacks.
        raise SlideError(
            f"the .npz file is damaged: {error}",
            where=str(source),
            hint="Copy it again from where it was made",
            code="unreadable",
        ) from error
    return ArrayImage(_header(source, "numpy/npz", shape, dtype), member=name)


class ArrayImage:
    """An open array; a :class:`~slideloom.slides.image.RawImage`.

    Parameters
    ----------
    header : Header
        What the file says.
    member : str
        Array of an ``.npz`` file; empty for ``.npy``.
    """

    def __init__(self, header: Header, member: str) -> None:
        self.header = header
        self._member = member
        self._index = split_index(header.source)[1]
        self._view: NDArray[Any] | None = None
        self._closed = False
        self._lock = threading.Lock()

    def read(self, level: int, y: int, x: int, height: int, width: int) -> NDArray[Any]:
        """Read a window, (c, height, width), in native byte order."""
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.header.source} is closed")
            if self._view is None:
                self._view = self._open()
            view = self._view
        return np.array(view[:, y : y + height, x : x + width], self.header.dtype, order="C")

    def close(self) -> None:
        """Let go of the array."""
        with self._lock:
            self._closed = True
            self._view = None

    def _open(self) -> NDArray[Any]:
        path = self.header.source.path
        stored: NDArray[Any] = _load_member(path, self._member) if self._member else np.load(path, mmap_mode="r")
        image = stored if self._index is None else stored[self._index]
        if image.ndim == 2:
            return image[np.newaxis]
        return image.transpose(2, 0, 1) if channel_axis(image.shape) == 2 else image


def _load_member(path: Path, member: str) -> NDArray[Any]:
    """Load one array of an ``.npz`` file; the last one is kept, for the next image of the same stack."""
    global _last_member
    state = path.stat()
    stamp = (str(path), state.st_mtime_ns, state.st_size, member)
    with _last_member_lock:
        if _last_member is not None and _last_member[0] == stamp:
            return _last_member[1]
        _last_member = None  # before loading, so that two are never held
        try:
            with np.load(path, allow_pickle=False) as archive:
                loaded: NDArray[Any] = archive[member]
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, ValueError, EOFError, RuntimeError) as error:
            raise SlideError(
                f"array {member!r} cannot be decoded: {error}",
                where=str(path),
                hint="Copy it again from where it was made",
                code="corrupt_data",
            ) from error
        _last_member = (stamp, loaded)
        return loaded


def _npy_header(file: BinaryIO, source: Source) -> tuple[tuple[int, ...], np.dtype[Any]]:
    start = file.tell()
    # From memory: NumPy would make room for as many bytes as the header says that it has.
    head = io.BytesIO(file.read(_MOST_HEADER_BYTES))
    try:
        version = npy_format.read_magic(head)
        read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, _, dtype = read(head)
        file.seek(start + head.tell())
    except (ValueError, EOFError) as error:
        # Of a header that is code, Python says where in memory it met it.
        why = _ADDRESS.sub("", str(error).partition("\n")[0])
        raise SlideError(
            f"no sound NumPy header: {shortened(why, 200)}",
            where=str(source),
            expected="a header as numpy.save writes it",
            hint="Copy it again from where it was made, or save it again",
            code="unreadable",
        ) from error
    return tuple(shape), dtype


def _refuse_objects(dtype: np.dtype[Any], source: Source) -> None:
    """Before its size is judged: a pickle has no size that its header could state."""
    if dtype.hasobject:
        raise SlideError(
            f"an array of Python objects ({shortened(str(dtype))}), which NumPy stores as a pickle",
            where=str(source),
            expected="an array of numbers",
            hint="Pickles may run code and are never read: save numbers, as in numpy.save(file, a.astype('uint16'))",
            code="unsupported_layout",
        )


def _header(source: Source, reader: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Header:
    _, index = split_index(source)
    image = shape
    if index is not None:
        if not shape or index >= shape[0]:
            raise _bad_member(
                source, f"index {index} of an array of shape {shape}", f"0 to {shape[0] - 1}" if shape else "an array"
            )
        image = shape[1:]
    if dtype.kind not in "biuf" or len(image) not in (2, 3) or min(image) < 1:
        hint = "Save one image as an array of numbers, with numpy.save"
        if len(image) == 4 and index is None:
            hint = "Pick one image of the stack, as in images[0]"
        told = shortened(" x ".join(map(str, image)))
        raise SlideError(
            f"an array of shape {told or '()'} {shortened(str(dtype))} is no image",
            where=str(source),
            expected="numbers of shape (h, w), (c, h, w) or (h, w, c)",
            hint=hint,
            code="unsupported_layout",
        )
    warnings: tuple[str, ...] = ()
    colour: Colour = "grey"
    channels, height, width = 1, *image[-2:]
    if len(image) == 3:
        trailing = channel_axis(image) == 2
        channels, height, width = (image[2], *image[:2]) if trailing else image
        colour = "rgb" if trailing and channels == 3 and dtype == np.uint8 else "channels"
        if trailing and channels > 4:
            warnings = (f"the last axis of its shape {image} is taken to count {channels} channels",)
    return Header(
        source=source,
        reader=reader,
        levels=make_levels([(height, width)]),
        n_channels=channels,
        dtype=dtype.newbyteorder("="),
        colour=colour,
        warnings=warnings,
    )


def _bad_member(source: Source, what: str, expected: str) -> SlideError:
    hint = "Name the array, and the image of a stack, behind '::', as in stack.npz::images[3]"
    return SlideError(what, where=str(source), expected=expected, hint=hint, code="bad_member")


def _one_of(members: Sequence[str]) -> str:
    if not members:
        return "an archive of .npy files"
    more = f", … ({len(members)} in all)" if len(members) > _SHOWN else ""
    return f"one of {', '.join(map(shortened, members[:_SHOWN]))}{more}"
