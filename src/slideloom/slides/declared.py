"""What a file declares, against what it stores: a kilobyte that announces a terabyte is refused before it is believed.

Two things can be too much. What is decoded in one piece (a strip, a tile, a chunk, a picture, a member of an archive)
is held in memory whole. And an image that is read tile by tile still takes time for every pixel that it declares.
Blank slides and sparse labels shrink a great deal; the limits leave room for them.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from pathlib import Path
from typing import BinaryIO, cast

from numpy.lib import format as npy_format

from slideloom.errors import SlideError
from slideloom.slides.image import Header
from slideloom.slides.source import split_index
from slideloom.slides.zarr_layout import read_layout

__all__ = ["FREE_PIECE_BYTES", "refuse_hollow", "refuse_hollow_piece"]

_MIB = 1 << 20
#: A piece up to here is held without further question ...
FREE_PIECE_BYTES = 256 * _MIB
#: ... up to here if it is backed by what is stored (deflate shrinks zeros to a thousandth) ...
_LARGEST_PIECE_BYTES, _PIECE_SHRINKS = 2048 * _MIB, 500
#: ... and an image up to here, or backed. Tiles left out of a sparse image cost 16 bytes each.
_IMAGE_BYTES, _IMAGE_SHRINKS = 1024 * _MIB, 100_000
_IN_ONE_PIECE = ("pillow/", "imagecodecs/")
#: Vendors whose slides lie in more files than the one that the sheet names.
_IN_MANY_FILES = ("openslide/mirax", "openslide/hamamatsu", "openslide/dicom")


def refuse_hollow_piece(declared: int, stored: int, where: str, what: str, *, bounded: bool = True) -> None:
    """Refuse something that is decoded in one piece and would take much more memory than its file gives reason for.

    Parameters
    ----------
    declared : int
        Its size when decoded, bytes.
    stored : int
        Its size in the file, bytes.
    where : str
        The file, for messages.
    what : str
        What it is: ``a strip``, ``a chunk`` …
    bounded : bool
        Whether more than 2 GiB are refused in any case.

    Raises
    ------
    SlideError
        ``too_large``.
    """
    hollow = declared > FREE_PIECE_BYTES and declared > _PIECE_SHRINKS * stored
    if hollow or (bounded and declared > _LARGEST_PIECE_BYTES):
        raise _too_large(f"{what} of {_size(declared)} is declared, {_size(stored)} are stored for it", where)


def refuse_hollow(header: Header) -> None:
    """Refuse an image that declares far more than its file holds.

    Parameters
    ----------
    header : Header
        Of the open image.

    Raises
    ------
    SlideError
        ``too_large``.
    """
    path, where = header.source.path, str(header.source)
    level = header.levels[0]
    declared = level.height_px * level.width_px * header.n_channels * header.dtype.itemsize
    if path.is_dir():
        for array in read_layout(header.source).arrays:
            chunk = _chunk_samples(array) * header.dtype.itemsize
            if chunk > FREE_PIECE_BYTES:
                refuse_hollow_piece(chunk, _stored(array, chunk // _PIECE_SHRINKS + 1), where, "a chunk")
        if declared > _IMAGE_BYTES:
            _refuse_hollow_image(declared, _stored(path, declared // _IMAGE_SHRINKS + 1), where)
        return
    stored = path.stat().st_size
    if header.reader.startswith(_IN_ONE_PIECE):
        refuse_hollow_piece(declared, stored, where, "a picture")
    elif header.reader == "numpy/npz":
        declared = max(declared, _refuse_hollow_member(header))
    if header.reader not in _IN_MANY_FILES:
        _refuse_hollow_image(declared, stored, where)


def _refuse_hollow_image(declared: int, stored: int, where: str) -> None:
    if declared > _IMAGE_BYTES and declared > _IMAGE_SHRINKS * stored:
        raise _too_large(f"an image of {_size(declared)} is declared, {_size(stored)} are stored", where)


def _refuse_hollow_member(header: Header) -> int:
    """Judge the array of an archive that will be expanded whole; bytes that its own header declares."""
    name, _ = split_index(header.source)
    with zipfile.ZipFile(header.source.path) as archive:
        names = [entry for entry in archive.namelist() if entry.endswith(".npy")]
        entry = archive.getinfo(f"{name}.npy" if name else names[0])
        with archive.open(entry) as file:
            stream = cast(BinaryIO, file)
            first = npy_format.read_magic(stream) == (1, 0)
            read = npy_format.read_array_header_1_0 if first else npy_format.read_array_header_2_0
            shape, _, dtype = read(stream)
    declared = math.prod(shape) * dtype.itemsize
    refuse_hollow_piece(declared, entry.compress_size, str(header.source), "an array", bounded=False)
    return declared


def _chunk_samples(array: Path) -> int:
    """Samples of what is read at once from a Zarr array: a chunk, or an inner chunk of a shard."""
    try:
        if (array / "zarr.json").is_file():
            body = json.loads((array / "zarr.json").read_text())
            shape = body["chunk_grid"]["configuration"]["chunk_shape"]
            for codec in body["codecs"]:
                if codec["name"] == "sharding_indexed":
                    shape = codec["configuration"]["chunk_shape"]
        else:
            shape = json.loads((array / ".zarray").read_text())["chunks"]
        return math.prod(int(size) for size in shape)
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # whoever opened it read it otherwise


def _stored(folder: Path, enough: int) -> int:
    """Bytes in the files of a folder; no more are looked at once there are enough."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            total += (Path(place) / name).stat(follow_symlinks=False).st_size
            if total >= enough:
                return total
    return total


def _size(n_bytes: int) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.3g} {unit}"
    return f"{n_bytes} bytes"


def _too_large(what: str, where: str) -> SlideError:
    return SlideError(
        what,
        where=where,
        expected="a file that holds about what it declares",
        hint="If the image is sound, save it as a tiled, compressed TIFF; else copy it again from where it was made",
        code="too_large",
    )
