"""TIFF files written byte by byte, so that every number in them can be wrong (TIFF 6.0, section 2, and BigTIFF)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Page", "picture", "strip_page", "tiff", "tile_page"]

_ASCII, _SHORT, _LONG, _RATIONAL, _LONG8 = 2, 3, 4, 5, 16
_FORMS = {_ASCII: "B", _SHORT: "H", _LONG: "I", _RATIONAL: "I", 13: "I", _LONG8: "Q", 18: "Q"}
_DEFLATE = 8
_OFFSETS = {True: (324, 325), False: (273, 279)}
Value = tuple[int, Sequence[int]]


@dataclass(frozen=True)
class Page:
    """A directory and its samples.

    Attributes
    ----------
    tags : mapping of int to (type, numbers)
        All but the place and size of the segments.
    segments : sequence of bytes
        Tiles or strips, as stored.
    tiled : bool
        Which of the two.
    offset, count : int, optional
        Where every segment is said to lie, and how long it is said to be, in place of the truth.
    """

    tags: Mapping[int, Value]
    segments: Sequence[bytes] = ()
    tiled: bool = False
    offset: int | None = None
    count: int | None = None
    entries: int | None = field(default=None)


def picture(height: int = 96, width: int = 96) -> NDArray[np.uint8]:
    """Round dark blots on a pink ground, (h, w, 3): tissue enough."""
    y, x = np.mgrid[:height, :width]
    nuclei = (y % 24 - 12) ** 2 + (x % 24 - 12) ** 2 < 40
    planes = [np.where(nuclei, dark, pale) for dark, pale in ((90, 225), (50, 150), (140, 200))]
    grain = (7 * y + 13 * x + (y * x) % 11) % 17
    return (np.stack(planes, -1) + grain[..., None]).astype(np.uint8)


def _common(height: int, width: int, samples: int, compression: int) -> dict[int, Value]:
    return {
        256: (_LONG, [width]),
        257: (_LONG, [height]),
        258: (_SHORT, [8] * samples),
        259: (_SHORT, [compression]),
        262: (_SHORT, [2 if samples == 3 else 1]),
        277: (_SHORT, [samples]),
        284: (_SHORT, [1]),
    }


def tile_page(pixels: NDArray[np.uint8], side: int = 48, description: str = "") -> Page:
    """A page of deflated tiles."""
    height, width, samples = pixels.shape
    segments = []
    for top in range(0, height, side):
        for left in range(0, width, side):
            tile = np.zeros((side, side, samples), np.uint8)
            part = pixels[top : top + side, left : left + side]
            tile[: part.shape[0], : part.shape[1]] = part
            segments.append(zlib.compress(tile.tobytes()))
    tags = {**_common(height, width, samples, _DEFLATE), 322: (_LONG, [side]), 323: (_LONG, [side])}
    if description:
        tags[270] = (_ASCII, [*description.encode(), 0])
    return Page(tags, segments, tiled=True)


def strip_page(height: int, width: int, strip: bytes, *, samples: int = 3, compression: int = _DEFLATE) -> Page:
    """A page that says it is one strip of a size, whatever the strip holds."""
    return Page({**_common(height, width, samples, compression), 278: (_LONG, [height])}, [strip])


def tiff(pages: Sequence[Page], *, big: bool = False, last_leads_to: int | None = None, ahead: bytes = b"") -> bytes:
    """A little-endian file of pages: samples first, then their directory.

    Parameters
    ----------
    pages : sequence of Page
        In order.
    big : bool
        BigTIFF.
    last_leads_to : int, optional
        Page that the last directory names as the next: a loop.
    ahead : bytes
        Put behind the header, which is 8 or 16 bytes long.
    """
    word, count_form, entry_form = ("Q", "Q", "<HHQ") if big else ("I", "H", "<HHI")
    room = struct.calcsize(f"<{word}")
    out = bytearray(b"II+\0\x08\0\0\0" if big else b"II*\0")
    link = len(out)
    out += struct.pack(f"<{word}", 0) + ahead
    starts: list[int] = []
    for page in pages:
        offsets = []
        for segment in page.segments:
            offsets.append(len(out) if page.offset is None else page.offset)
            out += segment
        counts = [len(segment) if page.count is None else page.count for segment in page.segments]
        tags = dict(page.tags)
        if page.segments:
            kind = _LONG8 if big else _LONG
            tags.update(zip(_OFFSETS[page.tiled], ((kind, offsets), (kind, counts)), strict=True))
        entries = []
        for code, (kind, numbers) in sorted(tags.items()):
            body = struct.pack(f"<{len(numbers)}{_FORMS[kind]}", *numbers)
            number = len(numbers) // (2 if kind == _RATIONAL else 1)
            if len(body) > room:
                body, where = struct.pack(f"<{word}", len(out) + len(out) % 2), body
                out += b"\0" * (len(out) % 2) + where
            entries.append(struct.pack(entry_form, code, kind, number) + body.ljust(room, b"\0"))
        start = len(out)
        starts.append(start)
        struct.pack_into(f"<{word}", out, link, start)
        out += struct.pack(f"<{count_form}", page.entries or len(entries)) + b"".join(entries)
        link = len(out)
        out += struct.pack(f"<{word}", 0)
    if last_leads_to is not None:
        struct.pack_into(f"<{word}", out, link, starts[last_leads_to])
    return bytes(out)
