"""Sizes in the first bytes of coded pictures, against what coders write."""

from __future__ import annotations

import io

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from slideloom.slides.coded_size import coded_size

PIXELS = np.random.default_rng(3).integers(0, 255, (70, 131, 3), dtype=np.uint8)


def progressive() -> bytes:
    place = io.BytesIO()
    Image.fromarray(PIXELS).save(place, "JPEG", progressive=True, comment=b"x" * 300)
    return place.getvalue()


CODED = {
    "jpeg": imagecodecs.jpeg_encode(PIXELS),
    "progressive jpeg": progressive(),
    "jpeg 2000 codestream": imagecodecs.jpeg2k_encode(PIXELS, codecformat="j2k"),
    "jp2": imagecodecs.jpeg2k_encode(PIXELS, codecformat="jp2"),
    "png": imagecodecs.png_encode(PIXELS),
    "webp lossy": imagecodecs.webp_encode(PIXELS, level=50, lossless=False),
    "webp lossless": imagecodecs.webp_encode(PIXELS, lossless=True),
    "webp alpha": imagecodecs.webp_encode(np.dstack([PIXELS, PIXELS[..., :1]]), level=50, lossless=False),
    "jpeg xr": imagecodecs.jpegxr_encode(PIXELS),
    "jpeg xl": imagecodecs.jpegxl_encode(PIXELS, usecontainer=False),
    "jpeg xl boxes": imagecodecs.jpegxl_encode(PIXELS, usecontainer=True),
}


@pytest.mark.parametrize("form", CODED)
def test_size(form: str) -> None:
    assert coded_size(CODED[form]) == (70, 131)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (70_000, 16)])
def test_sizes_of_jpeg_xr(size: tuple[int, int]) -> None:
    assert coded_size(imagecodecs.jpegxr_encode(np.zeros(size, np.uint8))) == size


@pytest.mark.parametrize("size", [(8, 8), (256, 256), (300, 400), (16, 5000), (70_000, 3)])
def test_sizes_of_jpeg_xl(size: tuple[int, int]) -> None:
    pixels = np.zeros(size, np.uint8)
    assert coded_size(imagecodecs.jpegxl_encode(pixels, usecontainer=False)) == size


@pytest.mark.parametrize("form", CODED)
def test_any_beginning_of_a_picture_is_survived(form: str) -> None:
    for length in range(0, min(400, len(CODED[form]))):
        assert coded_size(CODED[form][:length]) in (None, (70, 131)), length


def test_what_decoders_pass_over() -> None:
    whole = CODED["jpeg"]
    assert coded_size(whole[:2] + b"junk\xff\x00\xff\xff" + whole[2:]) == (70, 131)
    boxes = CODED["jp2"]
    # A codestream's mark inside another box is not the codestream.
    decoy = b"\xff\x4f\xff\x51" + bytes(40)
    other = (8 + len(decoy)).to_bytes(4, "big") + b"free" + decoy
    assert coded_size(boxes[:12] + other + boxes[12:]) == (70, 131)
    assert coded_size(boxes[:12] + bytes(8)) is None
    far = (1).to_bytes(4, "big") + b"free" + b"\xff" * 8
    assert coded_size(boxes[:12] + far + boxes[12:]) is None


def test_other_bytes() -> None:
    assert coded_size(b"") is None
    assert coded_size(bytes(1000)) is None
    assert coded_size(b"\xff\xd8" + b"\xff" * 1000) is None
    assert coded_size(b"\xff\xd8\xff\xd9") is None
