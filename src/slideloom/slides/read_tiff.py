"""TIFF images: OME-TIFF, ImageJ, QPTIFF, Aperio, and plain TIFF, pyramidal or not.

Pages of one size are channels, or one page holds interleaved or planar samples; at most one axis beside y and x may
be larger than 1, whatever it is called. Sub-resolutions are taken from SubIFDs or from smaller pages, as tifffile
finds them. Only the tiles or strips that a window touches are decoded; uncompressed images are mapped from disk. A
plane stored as one compressed strip can only be decoded whole; the segments used last are kept, up to 128 MiB an
image.

What an OME-TIFF announces must be what it holds; tifffile reads the pages there are and says so in a log, Slideloom
refuses.

JPEG tiles of Aperio slides are decoded here too, bit for bit like OpenSlide's and several times faster, and without the
sub-pixel shifts of OpenSlide's lower levels; Aperio slides with other compressions or missing tiles go to OpenSlide.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from slideloom.config.texts import shortened
from slideloom.errors import SlideError
from slideloom.slides.image import Header, fits_pyramid, make_levels
from slideloom.slides.ome_xml import OmeImage, parse_ome
from slideloom.slides.source import Source
from slideloom.slides.tiff_facts import JPEG, tiff_colour, tiff_names, tiff_palette, tiff_pixel_size
from slideloom.slides.tiff_file import count_pages, refuse_empty_pages, refuse_truncated_pages
from slideloom.slides.tiff_segments import MappedLevel, Plane, SegmentCache, SegmentedLevel

__all__ = ["TiffImage", "open_tiff", "tiff_flavour"]

_OME_WITHIN = 2000
_MOST_DESCRIBED = 16 << 20
#: Names, sizes and the like that a message lists at most.
_SHOWN = 5


class TiffImage:
    """An open TIFF file; a :class:`~slideloom.slides.image.RawImage`.

    Parameters
    ----------
    header : Header
        What the file says.
    levels : list of SegmentedLevel or MappedLevel
        How each level is read.
    descriptor : int
        File descriptor that the levels read from; closed with the image.
    """

    def __init__(self, header: Header, levels: list[SegmentedLevel | MappedLevel], descriptor: int) -> None:
        self.header = header
        self._levels = levels
        self._descriptor = descriptor
        self._cache = SegmentCache()
        self._lock = threading.Lock()

    def read(self, level: int, y: int, x: int, height: int, width: int) -> NDArray[Any]:
        """Read a window, (c, height, width), samples as stored."""
        if self._descriptor < 0:
            raise ValueError(f"{self.header.source} is closed")
        return self._levels[level].read(self._cache, y, x, height, width)

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
        self._cache.clear()
        for level in self._levels:
            if isinstance(level, MappedLevel):
                level.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def tiff_flavour(source: Source) -> str:
    """What kind of TIFF a file is: ``ome``, ``imagej``, ``qpi``, ``aperio`` (one that is read here) or ``tiff``.

    Raises
    ------
    SlideError
        ``truncated``: its directories, or the tiles of a page, lie behind its end; ``unreadable``: its first page, or
        the tiles of it, have no size.
    """
    count_pages(source.path, str(source))
    with tifffile.TiffFile(source.path) as file:
        _refuse_long_description(file.pages.first, str(source))
        refuse_empty_pages([file.pages.first], str(source))
        # tifffile wants the closing tag too, and would read OME-XML cut short as no OME-XML at all.
        if file.is_ome or "<OME" in file.pages.first.description[:_OME_WITHIN]:
            return "ome"
        if file.is_imagej:
            return "imagej"
        if file.is_qpi:
            return "qpi"
        if not file.is_ndpi:
            refuse_truncated_pages(file.pages, source.path.stat().st_size, str(source))
        if not file.is_svs or not file.pages.first.is_tiled:
            return "tiff"
        series = file.series[0]
        pages: list[Any] = [page for level in series.levels for page in level.pages]
        whole = all(page.keyframe.compression in JPEG and all(page.databytecounts) for page in pages)
        return "aperio" if whole and series.axes == "YXS" and series.shape[2] == 3 else "tiff"


def open_tiff(source: Source, flavour: str) -> TiffImage:
    """Open a TIFF file.

    Parameters
    ----------
    source : Source
        The file.
    flavour : str
        What :func:`tiff_flavour` said.

    Returns
    -------
    TiffImage
        Open; nothing is decoded yet.

    Raises
    ------
    SlideError
        ``metadata_mismatch``: an OME-TIFF that does not hold what it announces; ``multi_file``;
        ``unsupported_layout``: a stack of more than one axis, or samples that are no image; ``truncated``;
        ``unreadable``: pages or tiles without a size.
    """
    where = str(source)
    with tifffile.TiffFile(source.path) as file:
        warnings: list[str] = []
        image: OmeImage | None = None
        if flavour == "ome":
            image, series = _ome_series(file, where, warnings)
        else:
            series = _largest(_all_series(file, where), warnings)
        first = _one_stack(series, where)
        size_bytes = source.path.stat().st_size
        sizes: list[tuple[int, int]] = []
        stored: list[Any] = []
        for level in series.levels:
            height, width = level.shape[level.axes.index("Y")], level.shape[level.axes.index("X")]
            if level is not series and not _belongs(series, level, sizes[-1]):
                warnings.append(f"a sub-resolution of {width} x {height} px does not fit the image and is left aside")
                continue
            refuse_empty_pages(level.pages, where)
            refuse_truncated_pages(level.pages, size_bytes, where)
            sizes.append((height, width))
            stored.append(level)
        colour = tiff_colour(series, first, flavour, where)
        n_channels = int(np.prod(series.shape)) // (sizes[0][0] * sizes[0][1])
        header = Header(
            source=source,
            reader=f"tifffile/{flavour}",
            levels=make_levels(sizes),
            n_channels=n_channels,
            dtype=np.dtype(series.dtype).newbyteorder("="),
            colour=colour,
            channel_names=tiff_names(file, series, flavour, image, n_channels, warnings),
            mpp_um=tiff_pixel_size(file, first, flavour, image, warnings),
            palette=tiff_palette(first) if colour == "palette" else None,
            warnings=tuple(warnings),
        )
        descriptor = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            levels = [
                _stored_level(file, level, index, header, descriptor, size_bytes) for index, level in enumerate(stored)
            ]
        except BaseException:
            os.close(descriptor)
            raise
    return TiffImage(header, levels, descriptor)


def _ome_series(file: Any, where: str, warnings: list[str]) -> tuple[OmeImage, Any]:
    """Find the largest image that the OME-XML announces, and check that the file holds it."""
    images = parse_ome(file.pages.first.description, where)
    image = max(images, key=lambda one: one.size_x * one.size_y)
    if len(images) > 1:
        told = shortened(image.name) or image.index
        warnings.append(f"it holds {len(images)} images; the largest, {told!r}, is read")
    # Of every image: tifffile would open the files that any of them names, wherever they lie.
    foreign = sorted({name for one in images for name in one.foreign})
    if foreign:
        raise SlideError(
            f"planes of its image lie in other files: {', '.join(foreign[:_SHOWN])}",
            where=where,
            expected="an OME-TIFF that is whole in itself",
            hint="Save the image as one file",
            code="multi_file",
        )
    pages = file.pages
    matching = sum((page.imagelength, page.imagewidth) == (image.size_y, image.size_x) for page in pages)
    first = pages.first
    planes = -(-image.size_c // first.samplesperpixel) * image.size_z * image.size_t
    held = f"the file holds {len(pages)} pages, the first of {first.imagewidth} x {first.imagelength} px {first.dtype}"
    if image.n_placed < min(planes, image.n_planes):
        held = f"says where {image.n_placed} of its {image.n_planes} planes lie"
    elif image.last_page >= len(pages):
        held = f"names page {image.last_page} (the first is 0) of {len(pages)}"
    # Before tifffile's own reading of the OME-XML, which fills what is missing with zeros and a line in a log.
    elif matching and len(pages) >= planes:
        for series in _all_series(file, where):
            size = dict(zip(series.axes, series.shape, strict=True))
            fits = (size.get("Y"), size.get("X")) == (image.size_y, image.size_x) and series.kind == "ome"
            count = np.prod([n for axis, n in size.items() if axis not in "YX"], dtype=int)
            whole = all(page is not None for page in series.pages)
            if fits and whole and count == image.size_c * image.size_z * image.size_t:
                if np.dtype(series.dtype).name != image.dtype:
                    held = f"the file holds {series.dtype} samples"
                    break
                different = len({page.offset for page in series.pages})
                if different < len(series.pages):
                    held = f"shows {len(series.pages)} planes on {different} pages"
                    break
                warnings.extend(image.warnings)
                spare = matching - len(series.pages)
                if spare > 0 and len(images) == 1:
                    warnings.append(f"it holds {spare} more pages of that size, which its OME-XML does not mention")
                return image, series
    raise SlideError(
        f"its OME-XML announces {image.announced}, but {held}",
        where=where,
        hint="The file was cut or renamed by another program; export the image again",
        code="metadata_mismatch",
    )


def _all_series(file: Any, where: str) -> list[Any]:
    """Images of a file as tifffile makes them out."""
    try:
        found: list[Any] = file.series
    except (MemoryError, OSError):
        raise
    except Exception as error:
        raise SlideError(
            f"its pages and its metadata cannot be brought together ({type(error).__name__}: {error})",
            where=where,
            hint="The file may be damaged: copy it again, or write it again with a sound program",
            code="metadata_mismatch",
        ) from error
    return found


def _refuse_long_description(page: Any, where: str) -> None:
    """Before anything parses it."""
    characters = len(page.description)
    if characters > _MOST_DESCRIBED:
        raise SlideError(
            f"its description has {characters} characters",
            where=where,
            expected=f"at most {_MOST_DESCRIBED}",
            hint="Write the file again with a sound program",
            code="metadata_mismatch",
        )


def _largest(series: list[Any], warnings: list[str]) -> Any:
    """Choose among the images of a file that has no OME-XML."""

    def area(one: Any) -> int:
        size = dict(zip(one.axes, one.shape, strict=True))
        return int(size.get("Y", 0)) * int(size.get("X", 0))

    best = max(series, key=area)
    if len(series) > 1 and best.kind not in ("svs", "qpi"):
        others = ["x".join(map(str, one.shape)) for one in series if one is not best]
        more = ", …" if len(others) > _SHOWN else ""
        shapes = ", ".join(others[:_SHOWN]) + more
        warnings.append(f"it holds {len(series)} images; the largest is read, not those of shape {shapes}")
    return best


def _one_stack(series: Any, where: str) -> Any:
    """Return the first page of a series that has one axis beside y and x, at most."""
    # As a list: a file may have two unnamed axes of one letter.
    axes = [axis for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "YX" and size > 1]
    first = series.pages[0]
    deep = first is not None and first.keyframe.imagedepth > 1
    if len(axes) > 1 or "Y" not in series.axes or "X" not in series.axes or first is None or deep:
        raise SlideError(
            f"a stack of shape {' x '.join(map(str, series.shape))}, axes {series.axes}",
            where=where,
            expected="y, x, and one axis of channels",
            hint="Save one focal plane and time point",
            code="unsupported_layout",
        )
    return first.keyframe


def _refuse_unknown_compression(page: Any, where: str) -> None:
    """Otherwise its tiles would pass for damaged ones, one by one."""
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
        tifffile.TIFF.UNPREDICTORS[page.predictor]
    except KeyError as error:
        raise SlideError(
            f"its pixels are compressed by method {int(page.compression)}, predictor {int(page.predictor)}",
            where=where,
            expected="a method that can be read: none, LZW, deflate, zstd, JPEG, JPEG 2000, …",
            hint="Save it with LZW or JPEG compression",
            code="unsupported_format",
        ) from error


def _belongs(series: Any, level: Any, above: tuple[int, int]) -> bool:
    size = dict(zip(level.axes, level.shape, strict=True))
    full = dict(zip(series.axes, series.shape, strict=True))
    same = {a: n for a, n in size.items() if a not in "YX"} == {a: n for a, n in full.items() if a not in "YX"}
    fits = fits_pyramid((full["Y"], full["X"]), above, (size["Y"], size["X"]))
    return same and fits and bool(level.dtype == series.dtype)


def _stored_level(
    file: Any, level: Any, index: int, header: Header, descriptor: int, size_bytes: int
) -> SegmentedLevel | MappedLevel:
    where, source = str(header.source), header.source
    nbytes = int(np.prod(level.shape)) * header.dtype.itemsize
    if level.dataoffset is not None and not level.keyframe.is_tiled:
        if level.dataoffset + nbytes > size_bytes:
            raise SlideError(
                f"{nbytes} bytes of samples are announced, the file ends after {size_bytes}",
                where=where,
                hint="Copy it again from where it was made",
                code="truncated",
            )
        dtype = header.dtype.newbyteorder(file.byteorder)
        return MappedLevel(source.path, level.dataoffset, tuple(level.shape), dtype, level.axes)
    page = level.keyframe
    _refuse_unknown_compression(page, where)
    planes = []
    for number, one in enumerate(level.pages):
        arguments = {}
        if page.compression in JPEG:
            arguments = {"jpegtables": one.jpegtables, "jpegheader": page.jpegheader}
        planes.append(Plane(number, one.dataoffsets, one.databytecounts, page.decode, arguments))
    if len(planes) * page.samplesperpixel != header.n_channels:
        raise SlideError(
            f"{header.n_channels} channels are announced, the file holds {len(planes) * page.samplesperpixel}",
            where=where,
            hint="Export the image again",
            code="metadata_mismatch",
        )
    high, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    size = header.levels[index]
    parts = page.samplesperpixel if page.planarconfig == 2 else 1
    expected = -(-size.height_px // high) * -(-size.width_px // wide) * parts
    for plane in planes:
        if len(plane.offsets) != expected or len(plane.counts) != expected:
            raise SlideError(
                f"page {plane.page} lists {len(plane.offsets)} tiles or strips, its size makes {expected}",
                where=where,
                hint="The file is damaged: copy it again from where it was made",
                code="unreadable",
            )
    return SegmentedLevel(
        where=where,
        index=index,
        descriptor=descriptor,
        planes=tuple(planes),
        height_px=size.height_px,
        width_px=size.width_px,
        segment_height_px=high,
        segment_width_px=wide,
        tiled=page.is_tiled,
        samples=page.samplesperpixel,
        planar=page.planarconfig == 2,
        fill=255 if header.colour == "rgb" else 0,
        dtype=header.dtype,
    )
