"""PNG and JPEG pictures, read whole at the first window: they hold one small image, without a pyramid.

How much memory that will take is judged by the size that the header declares, before anything is decoded.

Pillow decodes them, but for PNG with 16 bits a colour sample, which it would cut to 8 bits without a word; imagecodecs
takes those.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from slideloom.config.texts import shortened
from slideloom.errors import SlideError
from slideloom.slides.image import Colour, Header, make_levels
from slideloom.slides.modality import flatten_alpha
from slideloom.slides.pixel_size import plausible_mpp
from slideloom.slides.source import Source

__all__ = ["PictureImage", "is_picture", "open_picture"]

_PNG = b"\x89PNG\r\n\x1a\n"
_LARGEST_DPI_MPP_UM = 10.0
#: What decoding holds at once: the decoder's samples and ours. With all else, a process stays below 500 MB.
_MOST_BYTES = 320 << 20
#: Pillow's own bytes a pixel; colours take four.
_PILLOW_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2}
#: A progressive JPEG is decoded from all its coefficients, two bytes a sample.
_COEFFICIENT_BYTES = 2
#: Samples are copied from Pillow in bands, since it makes two copies of what it hands out.
_BAND_BYTES = 4 << 20
_MODES: dict[str, tuple[Colour, int, str]] = {
    "1": ("grey", 1, "bool"),
    "L": ("grey", 1, "uint8"),
    "LA": ("grey_alpha", 2, "uint8"),
    "P": ("palette", 1, "uint8"),
    "RGB": ("rgb", 3, "uint8"),
    "RGBA": ("rgba", 4, "uint8"),
    "CMYK": ("cmyk", 4, "uint8"),
    "I;16": ("grey", 1, "uint16"),
    "I": ("grey", 1, "int32"),
}
#: Colour types of the PNG header (PNG 1.2, section 4.1.1) that Pillow cuts to 8 bits.
_PNG_DEEP: dict[int, tuple[Colour, int]] = {2: ("rgb", 3), 4: ("grey_alpha", 2), 6: ("rgba", 4)}


def is_picture(head: bytes) -> bool:
    """Whether a file that begins with these bytes is PNG or JPEG."""
    return head.startswith((_PNG, b"\xff\xd8\xff"))


def open_picture(source: Source) -> PictureImage:
    """Open a PNG or JPEG file; only its header is read.

    Raises
    ------
    SlideError
        ``too_large``: it would take too much memory, as 48 million pixels of RGB do; ``unreadable``: no sound header;
        ``unsupported_layout``.
    """
    where = str(source)
    with source.path.open("rb") as file:
        head = file.read(26)
    deep = len(head) == 26 and head.startswith(_PNG) and head[24] == 16 and head[25] in _PNG_DEEP
    try:
        with _pillow(source.path) as picture:
            mode = picture.mode
            if mode not in _MODES and not deep:
                raise SlideError(
                    f"a picture of mode {mode}",
                    where=where,
                    expected=", ".join(_MODES),
                    hint="Save it as RGB with 8 bits a channel",
                    code="unsupported_layout",
                )
            colour, samples, dtype = (*_PNG_DEEP[head[25]], "uint16") if deep else _MODES[mode]
            width, height = picture.size
            held = samples * np.dtype(dtype).itemsize
            if not deep:
                coefficients = _COEFFICIENT_BYTES * samples if picture.info.get("progressive") else 0
                held = _PILLOW_BYTES.get(mode, 4) + max(held, coefficients)
            _refuse_large(width, height, held, source.path.stat().st_size if deep else 0, where)
            dpi = picture.info.get("dpi")
            # For PNG both of these decode the pixels: only JPEG's orientation is looked at, and colour tables are rare.
            turned = picture.format == "JPEG" and picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
            if mode == "P":  # asking for its colours decodes it
                _refuse_cut_png(source.path, where)
            table = _palette(picture) if mode == "P" else None
    except (OSError, SyntaxError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise SlideError(
            f"the picture cannot be opened: {shortened(str(error), 200)}",
            where=where,
            hint="Copy it again from where it was made",
            code="unreadable",
        ) from error
    warnings: list[str] = []
    if turned:
        warnings.append("the camera's orientation tag is left aside: the pixels are read as stored")
    if head.startswith(_PNG) and head[24] in (2, 4) and head[25] == 0:
        warnings.append(f"its {head[24]}-bit samples are spread over 8 bits by the decoder")
    mpp_um = None
    if dpi and min(dpi) > 0:
        mpp_um, why = plausible_mpp(25_400 / dpi[1], 25_400 / dpi[0], "the picture's dpi", _LARGEST_DPI_MPP_UM)
        warnings.extend(why)
    header = Header(
        source=source,
        reader="imagecodecs/png" if deep else f"pillow/{'png' if head.startswith(_PNG) else 'jpeg'}",
        levels=make_levels([(height, width)]),
        n_channels=samples,
        dtype=np.dtype(dtype),
        colour=colour,
        mpp_um=mpp_um,
        palette=table,
        warnings=tuple(warnings),
    )
    return PictureImage(header)


def _pillow(path: Path) -> PngImageFile | JpegImageFile:
    """Open a picture by its own class: ``Image.open`` has bounds of its own, and warns on the screen."""
    with path.open("rb") as file:
        return (PngImageFile if file.read(len(_PNG)) == _PNG else JpegImageFile)(path)


def _refuse_large(width: int, height: int, pixel_bytes: int, more_bytes: int, where: str) -> None:
    """Refuse a picture that would take too much memory: so many bytes for each pixel, and as many more."""
    needed = width * height * pixel_bytes + more_bytes
    if needed > _MOST_BYTES:
        raise SlideError(
            f"a picture of {width} x {height} px, which can only be decoded whole, would take {needed / 1e6:.0f} MB",
            where=where,
            expected=f"at most {_MOST_BYTES / 1e6:.0f} MB, or an image of tiles",
            hint="Convert it to a tiled, pyramidal TIFF, such as with QuPath, bfconvert or vips",
            code="too_large",
        )


def _palette(picture: Image.Image) -> NDArray[np.uint8]:
    """Colour table, (256, 3), transparent colours laid on white."""
    picture.apply_transparency()
    table = np.zeros((256, 4), np.uint8)
    table[:, 3] = 255
    stored = np.asarray(picture.getpalette("RGBA"), np.uint8).reshape(-1, 4)[:256]
    table[: len(stored)] = stored
    shown = flatten_alpha(table[:, :3].T[..., np.newaxis], table[:, 3:], premultiplied=False)
    return np.ascontiguousarray(shown[..., 0].T)


def _refuse_cut_png(path: Path, where: str) -> None:
    """Refuse a PNG whose chunks lead out of it; Pillow would make room for as many bytes as a chunk declares."""
    with path.open("rb") as file:
        size, at, kind = os.fstat(file.fileno()).st_size, len(_PNG), b""
        while at < size and kind != b"IEND":
            file.seek(at)
            head = file.read(8)
            kind, at = head[4:], at + 12 + int.from_bytes(head[:4], "big")
    if at > size:
        raise SlideError(
            f"the picture ends too early, after {size} bytes: a chunk that it announces lies behind its end",
            where=where,
            hint="Copy it again from where it was made",
            code="truncated",
        )


class PictureImage:
    """An open picture; a :class:`~slideloom.slides.image.RawImage`.

    Parameters
    ----------
    header : Header
        What the file says.
    """

    def __init__(self, header: Header) -> None:
        self.header = header
        self._samples: NDArray[Any] | None = None
        self._closed = False
        self._lock = threading.Lock()

    def read(self, level: int, y: int, x: int, height: int, width: int) -> NDArray[Any]:
        """Read a window, (c, height, width), samples as stored."""
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.header.source} is closed")
            if self._samples is None:
                self._samples = self._decode()
            samples = self._samples
        # Always a copy: of one channel, the samples themselves would be handed out.
        return np.array(samples[y : y + height, x : x + width].transpose(2, 0, 1), order="C")

    def close(self) -> None:
        """Forget the samples."""
        with self._lock:
            self._closed = True
            self._samples = None

    def _decode(self) -> NDArray[Any]:
        """Decode the whole picture, (h, w, c)."""
        path = self.header.source.path
        if self.header.reader != "pillow/jpeg":
            _refuse_cut_png(path, str(self.header.source))
        try:
            if self.header.reader == "imagecodecs/png":
                import imagecodecs

                samples: NDArray[Any] = imagecodecs.png_decode(path.read_bytes())
            else:
                samples = self._decode_by_pillow(path)
        except MemoryError:
            raise
        except Exception as error:
            if getattr(error, "errno", None) is not None:
                raise
            raise SlideError(
                f"the picture cannot be decoded: {error}",
                where=str(self.header.source),
                hint="Copy it again from where it was made",
                code="truncated" if "truncated" in str(error).lower() else "corrupt_data",
            ) from error
        level = self.header.levels[0]
        return samples.reshape(level.height_px, level.width_px, self.header.n_channels)

    def _decode_by_pillow(self, path: Path) -> NDArray[Any]:
        height, width = self.header.levels[0].height_px, self.header.levels[0].width_px
        samples = np.empty((height, width, self.header.n_channels), self.header.dtype)
        band = max(1, _BAND_BYTES // (width * samples.itemsize * self.header.n_channels))
        with _pillow(path) as picture:
            for y in range(0, height, band):
                rows = min(band, height - y)
                part = np.asarray(picture.crop((0, y, width, y + rows)))
                samples[y : y + rows] = part.reshape(rows, width, self.header.n_channels)
        return samples
