"""The size that a coded picture states in its header: JPEG, JPEG 2000, JPEG XL, JPEG XR, PNG and WebP.

Decoders make room for that size before they look at the rest, whatever the tile around it says.
"""

from __future__ import annotations

import struct

__all__ = ["coded_size"]

_PNG, _JPEG_2000, _JPEG_XL = b"\x89PNG\r\n\x1a\n", b"\xff\x4f\xff\x51", b"\xff\x0a"
#: First boxes of JPEG 2000 and JPEG XL files.
_JP2_BOX, _JXL_BOX = b"\0\0\0\x0cjP  ", b"\0\0\0\x0cJXL "
_WEBP_BYTES = 30
_JPEG_XR, _XR_WIDTH, _XR_HEIGHT, _XR_PLACE = b"II\xbc", 0xBC80, 0xBC81, 0xBCC0
#: Markers that begin a frame (ITU-T T.81, table B.1): all of C0 to CF but for tables and arithmetic conditioning.
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xD9)}


def coded_size(data: bytes) -> tuple[int, int] | None:
    r"""Size of a coded picture.

    Parameters
    ----------
    data : bytes
        Whole, or from its beginning.

    Returns
    -------
    tuple of int or None
        Height and width, pixels; None when it is none of these, or cannot be read that far.

    Examples
    --------
    >>> coded_size(b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + b"\0\0\0\x08" + b"\0\0\0\x07")
    (7, 8)
    >>> coded_size(b"II*") is None
    True
    """
    try:
        return _size(data)
    except (struct.error, IndexError, KeyError, OverflowError):
        return None


def _size(data: bytes) -> tuple[int, int] | None:
    if data[:2] == b"\xff\xd8":
        return _jpeg(data)
    if data[:8] in (_JP2_BOX, _JXL_BOX):
        data = _in_box(data)
    if data[:4] == _JPEG_2000:
        right, bottom, left, top = struct.unpack_from(">4I", data, 8)
        return bottom - top, right - left
    if data[:2] == _JPEG_XL:
        return _jpeg_xl(data[2:18])
    if data[:8] == _PNG:
        width, height = struct.unpack_from(">2I", data, 16)
        return height, width
    if data[:3] == _JPEG_XR:
        return _jpeg_xr(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= _WEBP_BYTES:
        return _webp(data)
    return None


def _in_box(data: bytes) -> bytes:
    """Beginning of the codestream in a file of boxes (ISO base media)."""
    at = 0
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 16 if length == 1 else 8
        if length == 1:
            length = struct.unpack_from(">Q", data, at + 8)[0]
        if kind in (b"jp2c", b"jxlc", b"jxlp"):
            start = at + head + (4 if kind == b"jxlp" else 0)
            return data[start : start + 64]
        if length < head:
            return b""
        at += length


def _jpeg(data: bytes) -> tuple[int, int] | None:
    at = 2
    while True:
        # Decoders pass over bytes between markers, and so does this.
        if data[at] != 0xFF or data[at + 1] in (0x00, 0xFF):
            at += 1
            continue
        marker = data[at + 1]
        if marker in _FRAMES:
            height, width = struct.unpack_from(">2H", data, at + 5)
            return height, width
        if marker in (0xD9, 0xDA):
            return None
        at += 2 if marker in _ALONE else 2 + struct.unpack_from(">H", data, at + 2)[0]


def _webp(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return height, width
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack_from("<2H", data, 26)
    return height & 0x3FFF, width & 0x3FFF


def _jpeg_xr(data: bytes) -> tuple[int, int]:
    """ITU-T T.832: the container's tags, and the image header of the codestream; the larger, where they differ."""
    at = struct.unpack_from("<I", data, 4)[0]
    tags = {}
    for entry in range(struct.unpack_from("<H", data, at)[0]):
        tag, kind = struct.unpack_from("<2H", data, at + 2 + 12 * entry)
        tags[tag] = struct.unpack_from("<H" if kind == 3 else "<I", data, at + 10 + 12 * entry)[0]
    place = tags[_XR_PLACE]
    short = data[place + 10] & 0x80
    width, height = struct.unpack_from(">2H" if short else ">2I", data, place + 12)
    return max(height + 1, tags[_XR_HEIGHT]), max(width + 1, tags[_XR_WIDTH])


def _jpeg_xl(data: bytes) -> tuple[int, int]:
    """ISO/IEC 18181-1, SizeHeader: bits from the lowest of each byte."""
    bits, left = int.from_bytes(data, "little"), 8 * len(data)

    def take(count: int) -> int:
        nonlocal bits, left
        left -= count
        if left < 0:
            raise IndexError(count)
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    def side(small: int) -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    small = take(1)
    height = side(small)
    ratio = take(3)
    up, down = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio]
    return height, side(small) if ratio == 0 else height * up // down
