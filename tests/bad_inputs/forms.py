"""H&E images in every form that samples, tiles and compressions take; those that are no H&E image among them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tests.bad_inputs.kinds import Answer, Cells, Kind
from tests.bad_inputs.raw_tiff import picture, tiff, tile_page

__all__ = ["FORMS"]

Array = NDArray[Any]
Write = Callable[[Path], object]


def _kind(
    name: str,
    what: str,
    write: Write,
    answer: Answer = "accepted",
    code: str = "",
    says: str = "",
    *,
    file: str = "scan.tif",
    stage: str = "facts",
) -> Kind:
    def make(folder: Path) -> Cells:
        write(folder / file)
        return {"he": file, "mpp_um": "0.5"}

    return Kind(f"he_{name}", "slide", what, make, answer, code, stage, says)


def _tiff(pixels: Callable[[], Array], **options: Any) -> Write:
    """A TIFF file of some samples."""
    outer = {key: options.pop(key) for key in ("bigtiff", "byteorder") if key in options}

    def write(place: Path) -> None:
        with tifffile.TiffWriter(place, **outer) as file:
            file.write(pixels(), **{"photometric": "rgb", "metadata": None, **options})

    return write


def _retagged(tag: int, value: int, **options: Any) -> Write:
    """A TIFF file with one number changed afterwards."""

    def write(place: Path) -> None:
        _tiff(picture, **options)(place)
        with tifffile.TiffFile(place, mode="r+") as file:
            file.pages.first.tags[tag].overwrite(value)

    return write


def _pillow(pixels: Callable[[], Array], mode: str) -> Write:
    return lambda place: Image.fromarray(pixels(), mode).save(place)


def _with_fourth(value: int = 255) -> Array:
    """A fourth sample: full, but for a corner that is empty."""
    fourth = np.full((96, 96, 1), value, np.uint8)
    fourth[:16, :16] = 0
    return np.concatenate([picture(), fourth], axis=2)


def _wide() -> Array:
    return picture().astype(np.uint16) * 257


def _grey() -> Array:
    return picture()[..., 0].copy()


def _table() -> Array:
    return np.stack([np.arange(256), np.arange(256) // 2, 255 - np.arange(256)]).astype(np.uint16) * 257


def _sound() -> tuple[Kind, ...]:
    planar = np.ascontiguousarray(picture().transpose(2, 0, 1))
    return (
        _kind("alpha", "RGB and transparency, PNG", _pillow(_with_fourth, "RGBA"), file="scan.png"),
        _kind("palette", "colours by a table, TIFF", _tiff(_grey, photometric="palette", colormap=_table())),
        _kind("planar", "red, green and blue one after the other", _tiff(lambda: planar, planarconfig="separate")),
        _kind("no_pyramid", "one resolution", _tiff(lambda: picture(520, 640), compression="zlib")),
        _kind("one_strip", "the whole image in one strip", _tiff(picture, rowsperstrip=96, compression="zlib")),
        _kind("row_strips", "a strip a row", _tiff(picture, rowsperstrip=1, compression="lzw")),
        _kind("tile_16", "tiles of 16 px", _tiff(picture, tile=(16, 16), compression="lzw", predictor=True)),
        _kind("tile_48", "tiles of 48 px", _tiff(picture, tile=(48, 48), compression="zstd")),
        _kind("tile_1", "tiles of one pixel", lambda place: place.write_bytes(tiff([tile_page(picture(32, 32), 1)]))),
        _kind("tile_wider", "one tile much wider than the image", _tiff(picture, tile=(512, 512), compression="zlib")),
        _kind("jpeg_2000", "JPEG 2000 tiles in TIFF", _tiff(picture, tile=(48, 48), compression="jpeg2000")),
        _kind("bigtiff", "BigTIFF", _tiff(picture, bigtiff=True, tile=(48, 48))),
        _kind("big_endian", "most significant byte first", _tiff(picture, byteorder=">", tile=(48, 48))),
    )


def _doubtful() -> tuple[Kind, ...]:
    loose = _tiff(_with_fourth, extrasamples=["unspecified"])
    grey = _tiff(_grey, photometric="minisblack")
    return (
        _kind("fourth_sample", "a fourth sample of no stated meaning", loose, "warned", says="4th sample"),
        _kind("grey", "one grey channel", grey, "failed", "no_tissue", "no part has more colour", stage="tissue"),
    )


def _refused() -> tuple[Kind, ...]:
    deep, dtype = "unsupported_dtype", "expected uint8"
    five = [lambda: np.concatenate([picture(), picture()[..., :2]], axis=2)]
    codec = r"compressed by method 60123"
    jp2 = lambda place: place.write_bytes(imagecodecs.jpeg2k_encode(picture()))  # noqa: E731
    png = lambda place: place.write_bytes(imagecodecs.png_encode(_wide()))  # noqa: E731
    bits = lambda place: Image.fromarray(_grey() > 120).save(place)  # noqa: E731
    made = (
        ("cmyk", "printing inks, TIFF", _tiff(_with_fourth, photometric="separated"), "not_rgb", "CMYK", "scan.tif"),
        ("cmyk_jpeg", "printing inks, JPEG", _pillow(_with_fourth, "CMYK"), "not_rgb", "CMYK", "scan.jpg"),
        (
            "five_samples",
            "five samples a pixel",
            _tiff(five[0], extrasamples=[0, 0]),
            "not_rgb",
            "5 channels",
            "scan.tif",
        ),
        ("16_bit", "RGB of 16 bits, TIFF", _tiff(_wide), deep, "uint16.*" + dtype, "scan.tif"),
        ("16_bit_png", "RGB of 16 bits, PNG", png, deep, "uint16.*" + dtype, "scan.png"),
        ("float", "RGB of floats", _tiff(lambda: picture() / np.float32(255)), deep, "float32.*" + dtype, "scan.tif"),
        ("one_bit", "black and white, one bit a pixel", bits, deep, "bool.*" + dtype, "scan.png"),
        (
            "luma",
            "luma and chroma, not compressed",
            _tiff(picture, photometric="ycbcr"),
            "unsupported_layout",
            "interpretation 6",
            "scan.tif",
        ),
        (
            "lab",
            "CIE L*a*b*",
            _tiff(picture, photometric="cielab"),
            "unsupported_layout",
            "interpretation 8",
            "scan.tif",
        ),
        (
            "codec",
            "a compression nobody knows",
            _retagged(259, 60123, compression="lzw"),
            "unsupported_format",
            codec,
            "scan.tif",
        ),
        ("jp2", "a bare JPEG 2000 file", jp2, "unsupported_format", "", "scan.jp2"),
        ("bmp", "a bitmap", _pillow(picture, "RGB"), "unsupported_format", "", "scan.bmp"),
    )
    return tuple(
        _kind(name, what, write, "failed", code, says, file=file) for name, what, write, code, says, file in made
    )


FORMS: tuple[Kind, ...] = (*_sound(), *_doubtful(), *_refused())
