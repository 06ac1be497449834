"""Slides in the vendors' formats that OpenSlide knows: Hamamatsu, Leica, MIRAX, Philips, Ventana, DICOM and others.

Three habits of OpenSlide are dealt with here. A handle that met a damaged tile answers every later request with that
same error: it is thrown away and the file opened anew. Pixels that the scanner left out are transparent: they are
laid on white. And below level 0 a window that starts between two pixels of the level is interpolated, so that its
values depend on where it starts: lower levels are read in blocks on a fixed lattice, so that a pixel has one value
whatever the window.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray

from slideloom.errors import SlideError
from slideloom.slides.image import Header, Level
from slideloom.slides.modality import flatten_alpha
from slideloom.slides.pixel_size import plausible_mpp
from slideloom.slides.source import Source
from slideloom.slides.tiff_segments import SegmentCache
from slideloom.slides.unknown_files import describe_unknown

__all__ = ["OpenSlideImage", "detect_vendor", "open_openslide"]

_BLOCK_PX = 1024
_SMALLEST_PLACE_PX = 256


def detect_vendor(source: Source) -> str | None:
    """OpenSlide's name of a file's format; None when it knows none."""
    vendor: str | None = openslide.OpenSlide.detect_format(source.path)
    return vendor


def open_openslide(source: Source) -> OpenSlideImage:
    """Open a slide with OpenSlide.

    Raises
    ------
    SlideError
        ``unsupported_format``: OpenSlide does not know it; ``unreadable``: it knows it and cannot open it.
    """
    try:
        handle = openslide.OpenSlide(source.path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        what, hint = describe_unknown(source.path)
        beside = source.path.with_suffix("")
        if source.path.suffix.lower() == ".mrxs" and not beside.is_dir():
            what = f"it is the index of a MIRAX slide; the folder {beside.name!r} with its pixels is not beside it"
            hint = "Copy the folder as well"
        raise SlideError(
            what,
            where=str(source),
            expected="a slide format that OpenSlide knows, TIFF, OME-Zarr, PNG, JPEG or NumPy",
            hint=hint,
            code="unsupported_format",
        ) from error
    except openslide.OpenSlideError as error:
        raise SlideError(
            f"OpenSlide cannot open it: {error}",
            where=str(source),
            hint="Copy it again from where it was made",
            code="unreadable",
        ) from error
    return OpenSlideImage(source, handle)


class OpenSlideImage:
    """An open slide; a :class:`~slideloom.slides.image.RawImage` that is always RGB uint8.

    Parameters
    ----------
    source : Source
        The file.
    handle : openslide.OpenSlide
        Open; closed with the image.
    """

    def __init__(self, source: Source, handle: openslide.OpenSlide) -> None:
        self._handle: openslide.OpenSlide | None = handle
        self._lock = threading.Lock()
        self._cache = SegmentCache()
        properties = handle.properties
        warnings: list[str] = []
        self.header = Header(
            source=source,
            reader=f"openslide/{properties.get('openslide.vendor', 'unknown')}",
            # OpenSlide's own downsamples: it places its windows by them.
            levels=tuple(
                Level(height, width, float(downsample))
                for (width, height), downsample in zip(handle.level_dimensions, handle.level_downsamples, strict=True)
            ),
            n_channels=3,
            dtype=np.dtype(np.uint8),
            colour="rgb",
            mpp_um=_pixel_size(properties, warnings),
            warnings=tuple(warnings),
        )

    def read(self, level: int, y: int, x: int, height: int, width: int) -> NDArray[Any]:
        """Read a window, (3, height, width) uint8."""
        if level == 0:
            return self._read(level, y, x, height, width)
        at = self.header.levels[level]
        out = np.empty((3, height, width), np.uint8)
        for row, column in product(_blocks(y, height), _blocks(x, width)):
            top, left = row * _BLOCK_PX, column * _BLOCK_PX
            rows, columns = min(_BLOCK_PX, at.height_px - top), min(_BLOCK_PX, at.width_px - left)
            block = self._cache.get((level, row, column), partial(self._read, level, top, left, rows, columns))
            y0, y1 = max(y, top), min(y + height, top + rows)
            x0, x1 = max(x, left), min(x + width, left + columns)
            out[:, y0 - y : y1 - y, x0 - x : x1 - x] = block[:, y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            # Another thread may be reading: the handle goes when the last reference does.
            self._handle = None
        self._cache.clear()

    def _read(self, level: int, y: int, x: int, height: int, width: int) -> NDArray[np.uint8]:
        handle = self._handle
        if handle is None:
            raise ValueError(f"{self.header.source} is closed")
        try:
            return self._window(handle, level, y, x, height, width)
        except openslide.OpenSlideError:
            with self._lock:
                if self._handle is handle:
                    self._handle = self._fresh()
        # The error may be an earlier one's of another thread; a handle of one's own tells.
        try:
            return self._window(self._fresh(), level, y, x, height, width)
        except openslide.OpenSlideError as error:
            raise self._corrupt(error, level, y, x, height, width) from error

    def _fresh(self) -> openslide.OpenSlide:
        return openslide.OpenSlide(self.header.source.path)

    def _window(
        self, handle: openslide.OpenSlide, level: int, y: int, x: int, height: int, width: int
    ) -> NDArray[np.uint8]:
        downsample = self.header.levels[level].downsample
        picture = handle.read_region((round(x * downsample), round(y * downsample)), level, (width, height))
        pixels = np.asarray(picture)
        planes = np.empty((4, height, width), np.uint8)
        for sample in range(4):  # several times faster than one transposed copy
            planes[sample] = pixels[..., sample]
        return flatten_alpha(planes[:3], planes[3], premultiplied=False)

    def _corrupt(self, error: Exception, level: int, y: int, x: int, height: int, width: int) -> SlideError:
        """Name the place: halve the window until it is about a tile, each time with a fresh handle."""
        while max(height, width) > _SMALLEST_PLACE_PX:
            for part in _halves(y, x, height, width):
                try:
                    self._window(self._fresh(), level, *part)
                except openslide.OpenSlideError:
                    y, x, height, width = part
                    break
            else:
                break
        return SlideError(
            f"it cannot be decoded: level {level}, y {y} to {y + height}, x {x} to {x + width} px ({error})",
            where=str(self.header.source),
            hint="The file is damaged there; copy it again from where it was made",
            code="corrupt_data",
        )


def _blocks(start: int, length: int) -> range:
    return range(start // _BLOCK_PX, -(-(start + length) // _BLOCK_PX))


def _halves(y: int, x: int, height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    if height >= width:
        half = height // 2
        return iter([(y, x, half, width), (y + half, x, height - half, width)])
    half = width // 2
    return iter([(y, x, height, half), (y, x + half, height, width - half)])


def _pixel_size(properties: Any, warnings: list[str]) -> tuple[float, float] | None:
    try:
        y_um, x_um = (float(properties[f"openslide.mpp-{axis}"]) for axis in "yx")
    except (KeyError, ValueError):
        return None
    mpp_um, why = plausible_mpp(y_um, x_um, "the slide's header")
    warnings.extend(why)
    return mpp_um
