"""Windows of TIFF levels, decoded tile by tile or strip by strip, or mapped from disk where nothing is compressed.

tifffile parses the file once, at opening; after that only positioned reads and stateless decoders are used, so that any
number of threads may read at once, and a segment that fails leaves nothing behind. What a segment would take in memory
is looked at before it is decoded: at opening by the size of tiles and strips, at decoding by what JPEG and its like say
of themselves.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from slideloom.errors import SlideError
from slideloom.slides.coded_size import coded_size
from slideloom.slides.declared import FREE_PIECE_BYTES, refuse_hollow_piece

__all__ = ["MappedLevel", "Plane", "SegmentCache", "SegmentedLevel"]

_CACHE_BYTES = 128 * 1024 * 1024
#: A picture in a tile may be a little larger than the tile: coders round up to whole blocks.
_ROOM_PX = 64


class SegmentCache:
    """The segments decoded last, up to a number of bytes. Safe to use from several threads.

    Parameters
    ----------
    limit_bytes : int
        A segment larger than this is still kept, alone: a plane stored as one compressed strip is decoded once.
    """

    def __init__(self, limit_bytes: int = _CACHE_BYTES) -> None:
        self._limit = limit_bytes
        self._held = 0
        self._kept: OrderedDict[tuple[int, ...], NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, ...], make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return the segment of a key, made now if it is not kept."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                return kept
        made = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._held += made.nbytes
                while self._held > self._limit and len(self._kept) > 1:
                    self._held -= self._kept.popitem(last=False)[1].nbytes
        return made

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
            self._held = 0


@dataclass(frozen=True)
class Plane:
    """One page of a TIFF file, as far as decoding needs it.

    Attributes
    ----------
    page : int
        Its place among the pages of its level; for messages and the cache.
    offsets, counts : sequence of int
        Place and size of each segment in the file, bytes; a size of 0 is a segment left out.
    decode : callable
        tifffile's decoder of the page's keyframe.
    arguments : dict
        What the decoder needs beside the bytes.
    """

    page: int
    offsets: Sequence[int]
    counts: Sequence[int]
    decode: Callable[..., Any] = field(repr=False)
    arguments: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class SegmentedLevel:
    """A level stored as tiles or strips.

    Attributes
    ----------
    where : str
        The file; for messages.
    index : int
        Which level.
    descriptor : int
        Open file descriptor.
    planes : tuple of Plane
        All of one shape.
    height_px, width_px : int
        Size of the level.
    segment_height_px, segment_width_px : int
        Size of a tile or strip.
    tiled : bool
        Whether segments are tiles; for messages.
    samples : int
        Samples per pixel of one plane.
    planar : bool
        Whether the samples of a plane are stored one after the other instead of interleaved.
    fill : int
        Value of segments left out.
    dtype : numpy.dtype
        Native byte order.

    Raises
    ------
    SlideError
        ``too_large``: a tile or strip would take far more memory than is stored for it.
    """

    where: str
    index: int
    descriptor: int
    planes: tuple[Plane, ...]
    height_px: int
    width_px: int
    segment_height_px: int
    segment_width_px: int
    tiled: bool
    samples: int
    planar: bool
    fill: int
    dtype: np.dtype[Any]

    def __post_init__(self) -> None:
        rows = self.segment_height_px if self.tiled else min(self.segment_height_px, self.height_px)
        samples = 1 if self.planar else self.samples
        declared = rows * self.segment_width_px * samples * self.dtype.itemsize
        if declared > FREE_PIECE_BYTES:
            stored = max(int(count) for plane in self.planes for count in plane.counts)
            refuse_hollow_piece(declared, stored, self.where, "a tile" if self.tiled else "a strip")

    def read(self, cache: SegmentCache, y: int, x: int, height: int, width: int) -> NDArray[Any]:
        """Read a window, (c, height, width)."""
        out = np.empty((len(self.planes) * self.samples, height, width), self.dtype)
        rows = range(y // self.segment_height_px, -(-(y + height) // self.segment_height_px))
        columns = range(x // self.segment_width_px, -(-(x + width) // self.segment_width_px))
        n_rows = -(-self.height_px // self.segment_height_px)
        n_columns = -(-self.width_px // self.segment_width_px)
        parts = self.samples if self.planar else 1
        for plane, part, row, column in product(self.planes, range(parts), rows, columns):
            number = (part * n_rows + row) * n_columns + column
            top, left = row * self.segment_height_px, column * self.segment_width_px
            y0, y1 = max(y, top), min(y + height, top + self.segment_height_px)
            x0, x1 = max(x, left), min(x + width, left + self.segment_width_px)
            first = plane.page * self.samples + part
            place = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
            if plane.counts[number] == 0:
                out[(slice(first, first + self.samples // parts), *place)] = self.fill
                continue
            segment = cache.get((self.index, plane.page, number), partial(self._decode, plane, number))
            window = segment[y0 - top : y1 - top, x0 - left : x1 - left]
            if window.shape != (
                y1 - y0,
                x1 - x0,
                self.samples // parts,
            ):  # a stream of its own mind, such as a grey JPEG
                error = ValueError(f"it decodes to {' x '.join(map(str, segment.shape))} samples")
                raise self._corrupt(plane, number, error)
            # One sample at a time: several times faster than one transposed copy.
            for sample in range(self.samples // parts):
                out[(first + sample, *place)] = window[..., sample]
        return out

    def _decode(self, plane: Plane, number: int) -> NDArray[Any]:
        """Decode one segment, (rows, columns, samples)."""
        count = plane.counts[number]
        data = os.pread(self.descriptor, count, plane.offsets[number])
        try:
            if len(data) != count:
                raise ValueError(f"{len(data)} of {count} bytes are there")
            size = coded_size(data)
            most = self.segment_height_px + _ROOM_PX, self.segment_width_px + _ROOM_PX
            if size is not None and (size[0] > most[0] or size[1] > most[1]):
                raise ValueError(f"the picture in it says that it has {size[1]} x {size[0]} px")
            segment: NDArray[Any] = plane.decode(data, number, **plane.arguments)[0][0]
            if segment.dtype != self.dtype:
                raise ValueError(f"{segment.dtype} samples in an image of {self.dtype}")
            return segment
        except MemoryError:
            raise
        except Exception as error:
            raise self._corrupt(plane, number, error) from error

    def _corrupt(self, plane: Plane, number: int, error: Exception) -> SlideError:
        n_rows = -(-self.height_px // self.segment_height_px)
        n_columns = -(-self.width_px // self.segment_width_px)
        row, column = divmod(number % (n_rows * n_columns), n_columns)
        y, x = row * self.segment_height_px, column * self.segment_width_px
        y_end = min(y + self.segment_height_px, self.height_px)
        x_end = min(x + self.segment_width_px, self.width_px)
        name = f"tile in row {row}, column {column}" if self.tiled else f"strip {row}"
        page = f" of page {plane.page}" if len(self.planes) > 1 else ""
        reason = str(error).strip() or type(error).__name__
        return SlideError(
            f"{name}{page} cannot be decoded: level {self.index}, y {y} to {y_end}, x {x} to {x_end} px ({reason})",
            where=self.where,
            hint="The file is damaged there; copy it again from where it was made",
            code="corrupt_data",
        )


class MappedLevel:
    """A level stored uncompressed in one run of bytes, mapped from disk.

    Parameters
    ----------
    path : Path
        The file.
    offset : int
        First byte of the samples.
    shape : tuple of int
        As stored.
    dtype : dtype
        As stored, with its byte order.
    axes : str
        One letter an axis: Y, X, and at most one more that is larger than 1, which counts channels.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: DTypeLike, axes: str) -> None:
        stored: NDArray[Any] = np.memmap(path, dtype, "r", offset, shape)
        channel = [axis for axis, size in enumerate(shape) if size > 1 and axes[axis] not in "YX"]
        kept = [*channel, axes.index("Y"), axes.index("X")]
        others = [axis for axis in range(len(shape)) if axis not in kept]
        view = stored.transpose(*others, *kept)[(0,) * len(others)]
        self._view: NDArray[Any] | None = view if channel else view[np.newaxis]

    def read(self, cache: SegmentCache, y: int, x: int, height: int, width: int) -> NDArray[Any]:
        """Read a window, (c, height, width), in native byte order."""
        if self._view is None:
            raise ValueError("the image is closed")
        window = self._view[:, y : y + height, x : x + width]
        return np.array(window, self._view.dtype.newbyteorder("="), order="C")

    def close(self) -> None:
        """Let go of the file."""
        self._view = None
