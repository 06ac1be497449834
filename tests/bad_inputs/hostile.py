"""Small files that would cost much memory or time if what they declare were taken at its word."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.bad_inputs.kinds import Cells, Kind
from tests.bad_inputs.one_file import MPP, Maker, encoded, npz, slide_kind, svs_page
from tests.bad_inputs.raw_tiff import Page, picture, strip_page, tiff, tile_page

__all__ = ["HOSTILE", "large_png", "npz_of_zeros"]

#: One more than are read.
_MANY_PAGES = 10_001
_BOMB_MB = 300
_SIDE = 1 << 20
_JPEG_2000, _PNG = 34712, 34933


@cache
def _zeros(n_mb: int, wrapped: str = "zlib") -> bytes:
    """So many MiB of zeros, deflated to about a thousandth; one block is made, and stands there again and again."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = squeeze.compress(bytes(1 << 20)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    raw = block * n_mb + squeeze.flush()
    if wrapped == "zlib":
        # Adler-32 of n zeros: sums 1 and n.
        return b"\x78\xda" + raw + struct.pack(">HH", (n_mb << 20) % 65521, 1)
    if wrapped == "gzip":
        return b"\x1f\x8b\x08" + bytes(7) + raw + struct.pack("<II", _crc_of_zeros(n_mb), n_mb << 20)
    return raw


@cache
def _crc_of_zeros(n_mb: int, crc: int = 0) -> int:
    block = bytes(1 << 20)
    for _ in range(n_mb):
        crc = zlib.crc32(block, crc)
    return crc


def npz_of_zeros(n_mb: int, shape: tuple[int, ...]) -> bytes:
    """A NumPy archive of one array of zeros, ``image``; its header stands in a stored block before them."""
    header = _npy_header(shape)
    start = b"\0" + struct.pack("<HH", len(header), 0xFFFF ^ len(header)) + header
    raw = start + _zeros(n_mb, "raw")
    name, size = b"image.npy", len(header) + (n_mb << 20)
    fields = struct.pack("<HHHIIIH", 8, 0, 0x21, _crc_of_zeros(n_mb, zlib.crc32(header)), len(raw), size, len(name))
    local = b"PK\3\4" + struct.pack("<HH", 20, 0) + fields + struct.pack("<H", 0) + name + raw
    central = b"PK\1\2" + struct.pack("<HHH", 20, 20, 0) + fields + bytes(16) + name
    return local + central + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)


def _large_jpeg(side: int = 65_500, frame: bytes = b"\xff\xc0", **options: Any) -> bytes:
    """A JPEG whose header says so many pixels a side."""
    raw = bytearray(encoded(picture(48, 48), "JPEG", subsampling=0, **options))
    struct.pack_into(">HH", raw, raw.index(frame) + 5, side, side)
    return bytes(raw)


def _large_jpeg_2000() -> bytes:
    """A JPEG 2000 codestream whose header says 1 048 576 x 1 048 576 px, in one tile."""
    raw = encoded(picture(48, 48), "JPEG2000", no_jp2=True)
    out = bytearray(raw)
    at = out.index(b"\xff\x4f\xff\x51") + 8
    struct.pack_into(">II", out, at, _SIDE, _SIDE)
    struct.pack_into(">II", out, at + 16, _SIDE, _SIDE)
    return bytes(out)


def large_png(side: int) -> bytes:
    """A PNG whose header says so many pixels a side."""
    raw = bytearray(encoded(picture(8, 8), "PNG"))
    struct.pack_into(">II", raw, 16, side, side)
    struct.pack_into(">I", raw, 29, zlib.crc32(raw[12:29]))
    return bytes(raw)


def _with_tile(page: Page, segment: bytes, compression: int = 0) -> bytes:
    """A page whose last tile is another, or all whose tiles are, and then of another compression."""
    if not compression:
        return tiff([replace(page, segments=[*page.segments[:-1], segment])])
    tags = {**page.tags, 259: (3, [compression])}
    return tiff([replace(page, tags=tags, segments=[segment] * len(page.segments))])


def _shared_tiles(height: int, width: int, tile: int, description: str = "") -> bytes:
    """An image of such a size, whose tiles all lie in one place of the file."""
    stored = zlib.compress(bytes(64))
    number, at = -(-height // tile) * -(-width // tile), 8
    page = tile_page(np.zeros((16, 16, 3), np.uint8), 16, description)
    tags = {**page.tags, 322: (4, [tile]), 323: (4, [tile]), 256: (4, [width]), 257: (4, [height])}
    tags |= {324: (4, [at] * number), 325: (4, [len(stored)] * number)}
    return tiff([Page(tags)], ahead=stored)


@cache
def _many_pages() -> bytes:
    return tiff([Page(strip_page(1, 1, b"").tags)] * _MANY_PAGES)


def _shared_description() -> bytes:
    """Pages whose descriptions lie in one place: each is read for itself."""
    text, mark = b"A" * 20_000, struct.pack("<HHI", 270, 2, 8)
    page = Page({**strip_page(1, 1, b"").tags, 270: (2, [65] * 8)})
    raw = tiff([page] * 1000, ahead=text)
    entry = mark[:4] + struct.pack("<II", len(text), 8)
    return re.sub(re.escape(mark) + b".{4}", entry.replace(b"\\", b"\\\\"), raw, flags=re.DOTALL)


def _avalanche() -> bytes:
    """Directories of 4 000 entries, each beginning four bytes behind the last: little to store, much to walk."""
    entries, number = 4_000, 6_000
    starts = range(8, 8 + 4 * number, 4)
    out = bytearray(starts.stop + 2 + 12 * entries + 4)
    out[:8] = b"II*\0" + struct.pack("<I", 8)
    for start in starts:
        struct.pack_into("<H", out, start, entries)
        following = start + 4 if start + 4 < starts.stop else 0
        struct.pack_into("<I", out, start + 2 + 12 * entries, following)
    return bytes(out)


def _huge_tag() -> bytes:
    """BigTIFF whose description is said to be 2^60 bytes long."""
    raw = bytearray(tiff([tile_page(picture(), description="x" * 64)], big=True))
    struct.pack_into("<Q", raw, raw.index(struct.pack("<HHQ", 270, 2, 65)) + 4, 1 << 60)
    return bytes(raw)


def _npy_header(shape: tuple[int, ...]) -> bytes:
    place = io.BytesIO()
    np.lib.format.write_array_header_1_0(place, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return place.getvalue()


def _zarr(shape: list[int], chunk: list[int], stored: Maker, folder: Path) -> Cells:
    place = folder / "scan.zarr"
    (place / "c" / "0" / "0").mkdir(parents=True)
    body = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 9}}],
        "attributes": {},
        "dimension_names": ["c", "y", "x"],
    }
    (place / "zarr.json").write_text(json.dumps(body))
    (place / "c" / "0" / "0" / "0").write_bytes(stored())
    return {"he": "scan.zarr", **MPP}


def _in_headers() -> Iterator[Kind]:
    """What the header alone gives away."""
    strip = zlib.compress(bytes(90_000))
    huge_npy = _npy_header((_SIDE, _SIDE, 3)) + bytes(512)
    size = "1 048 576 x 1 048 576 px"
    plain = replace(strip_page(_SIDE, _SIDE, bytes(512), compression=1), count=(1 << 32) - 1)
    for name, what, make, code, file in (
        (
            "tiff",
            f"TIFF of 1 KB: one compressed strip of {size}",
            lambda: tiff([strip_page(_SIDE, _SIDE, strip)]),
            "too_large",
            "scan.tif",
        ),
        (
            "bigtiff",
            f"BigTIFF of 1 KB: one compressed strip of {size}",
            lambda: tiff([strip_page(_SIDE, _SIDE, strip)], big=True),
            "too_large",
            "scan.tif",
        ),
        ("plain", f"TIFF of 1 KB: {size}, not compressed", lambda: tiff([plain]), "truncated", "scan.tif"),
        (
            "tiles",
            "TIFF of 3 TB whose tiles all lie in one place of it",
            lambda: _shared_tiles(_SIDE, _SIDE, 4096),
            "too_large",
            "scan.tif",
        ),
        (
            "aperio_tile",
            "Aperio slide of 1 KB, of a compression that only OpenSlide reads: a tile of 65 520 x 65 520 px",
            lambda: _shared_tiles(65_520, 65_520, 65_520, "Aperio Image Library v12|MPP = 0.5"),
            "too_large",
            "scan.svs",
        ),
        ("png", f"PNG of 1 KB: {size}", lambda: large_png(_SIDE), "too_large", "scan.png"),
        ("png_13k", "PNG of 1 KB: 13 000 x 13 000 px", lambda: large_png(13_000), "too_large", "scan.png"),
        ("png_7k", "PNG of 1 KB: 7 000 x 7 000 px", lambda: large_png(7_000), "too_large", "scan.png"),
        ("jpeg", "JPEG of 2 KB: 65 500 x 65 500 px", _large_jpeg, "too_large", "scan.jpg"),
        ("jpeg_7k", "JPEG of 2 KB: 7 000 x 7 000 px", partial(_large_jpeg, 7_000), "too_large", "scan.jpg"),
        (
            "progressive_6k",
            "progressive JPEG of 2 KB: 6 000 x 6 000 px",
            partial(_large_jpeg, 6_000, b"\xff\xc2", progressive=True),
            "too_large",
            "scan.jpg",
        ),
        ("npy", "NumPy array of 1 KB: 3 TB", lambda: huge_npy, "truncated", "scan.npy"),
        ("npz", "NumPy archive of 1 KB: 3 TB", lambda: npz(huge_npy), "too_large", "scan.npz"),
    ):
        yield slide_kind(f"declares_{name}", what, make, code, file=file)
    yield slide_kind(
        "declares_metres",
        "TIFF of 268 435 456 x 1 px, 134 m long",
        lambda: _shared_tiles(1, 1 << 28, 4096),
        "implausible_pixel_size",
    )
    zarr = partial(_zarr, [3, _SIDE, _SIDE], [3, 512, 512], lambda: _zeros(1, "gzip"))
    yield Kind("declares_zarr", "slide", "Zarr array of 3 TB with one small chunk", zarr, "failed", "too_large")


def _bombs() -> Iterator[Kind]:
    """What expands when it is decoded."""
    strip = lambda: tiff([strip_page(_BOMB_MB * 1024, 1024, _zeros(_BOMB_MB), samples=1)])  # noqa: E731
    yield slide_kind("bomb_strip", "TIFF strip of 300 KB that expands to 315 MB", strip, "too_large")
    archive = lambda: npz_of_zeros(_BOMB_MB, (_BOMB_MB * 1024, 1024))  # noqa: E731
    yield slide_kind(
        "bomb_npz", "NumPy archive of 300 KB that expands to 315 MB", archive, "too_large", file="scan.npz"
    )
    shape = [1, _BOMB_MB * 1024, 1024]
    zarr = partial(_zarr, shape, shape, lambda: _zeros(_BOMB_MB, "gzip"))
    yield Kind("bomb_zarr", "slide", "Zarr chunk of 300 KB that expands to 315 MB", zarr, "failed", "too_large")
    for name, what, make, file in (
        (
            "deflate",
            "tile of 48 x 48 px that expands to 315 MB",
            lambda: _with_tile(tile_page(picture()), _zeros(_BOMB_MB)),
            "scan.tif",
        ),
        (
            "jpeg",
            "JPEG tile whose header says 65 500 x 65 500 px",
            lambda: _with_tile(svs_page(), _large_jpeg()),
            "scan.svs",
        ),
        (
            "jpeg_2000",
            "JPEG 2000 tile whose header says a terabyte",
            lambda: _with_tile(tile_page(picture()), _large_jpeg_2000(), _JPEG_2000),
            "scan.tif",
        ),
        (
            "png",
            "PNG tile whose header says 65 500 x 65 500 px",
            lambda: _with_tile(tile_page(picture()), large_png(65_500), _PNG),
            "scan.tif",
        ),
    ):
        yield slide_kind(f"bomb_{name}_tile", what, make, "corrupt_data", file=file, stage="tissue")


def _directories() -> Iterator[Kind]:
    """TIFF directories that never end, or that ask for too much."""
    page, half = tile_page(picture()), tile_page(picture()[::2, ::2].copy())
    for name, what, make, code in (
        (
            "directory_loop",
            "TIFF whose second directory leads back to the first",
            lambda: tiff([page, half], last_leads_to=0),
            "unreadable",
        ),
        (
            "directory_self_loop",
            "TIFF whose directory leads to itself",
            lambda: tiff([page], last_leads_to=0),
            "unreadable",
        ),
        (
            "many_directories",
            f"TIFF of {_MANY_PAGES:,} pages".replace(",", " "),
            _many_pages,
            "too_large",
        ),
        (
            "many_entries",
            "TIFF directory that says it has 60 000 entries",
            lambda: tiff([replace(page, entries=60_000)]),
            "truncated",
        ),
        ("avalanche", "TIFF of 6 000 directories of 4 000 entries that lie on one another", _avalanche, "too_large"),
        (
            "shared_description",
            "TIFF of 1 000 pages that all name one description of 20 KB",
            _shared_description,
            "too_large",
        ),
        ("huge_tag", "BigTIFF whose description has 2^60 bytes", _huge_tag, "truncated"),
    ):
        yield slide_kind(name, what, make, code)


#: Each stays far below 500 MB and a few seconds.
HOSTILE: tuple[Kind, ...] = (*_in_headers(), *_bombs(), *_directories())
