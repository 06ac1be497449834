"""OME-Zarr images and labels, and bare Zarr arrays, read chunk by chunk with tensorstore.

tensorstore reads Zarr v2 and v3, sharded or not, from many threads. A chunk that is not stored holds the fill value,
as the format has it: a folder copied in part cannot be told from one with empty tissue, unless a level is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from slideloom.errors import SlideError
from slideloom.slides.image import Header, fits_pyramid, make_levels
from slideloom.slides.read_array import channel_axis
from slideloom.slides.source import Source
from slideloom.slides.zarr_layout import ZarrLayout, read_layout

__all__ = ["ZarrImage", "open_zarr"]

_CACHE_BYTES = 128 * 1024 * 1024


class ZarrImage:
    """An open Zarr image; a :class:`~slideloom.slides.image.RawImage`.

    Parameters
    ----------
    header : Header
        What the metadata say.
    levels : list of tensorstore.TensorStore
        One a level, axes (c, y, x).
    """

    def __init__(self, header: Header, levels: list[ts.TensorStore]) -> None:
        self.header = header
        self._levels = levels

    def read(self, level: int, y: int, x: int, height: int, width: int) -> NDArray[Any]:
        """Read a window, (c, height, width)."""
        if not self._levels:
            raise ValueError(f"{self.header.source} is closed")
        try:
            window = self._levels[level][:, y : y + height, x : x + width].read(order="C").result()
        except ValueError as error:
            raise SlideError(
                f"level {level}, y {y} to {y + height}, x {x} to {x + width} px cannot be decoded ({_short(error)})",
                where=str(self.header.source),
                hint="A chunk is damaged there; copy the folder again",
                code="corrupt_data",
            ) from error
        return np.ascontiguousarray(window, self.header.dtype)

    def close(self) -> None:
        """Let go of the arrays."""
        self._levels = []


def open_zarr(source: Source) -> ZarrImage:
    """Open an OME-Zarr image, a label image inside one (``store.zarr::labels/0``), or a bare array.

    Raises
    ------
    SlideError
        As :func:`slideloom.slides.zarr_layout.read_layout`, and ``unreadable``: an array that tensorstore cannot open;
        ``unsupported_layout``: more than one time or depth.
    """
    layout = read_layout(source)
    context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
    levels: list[ts.TensorStore] = []
    sizes: list[tuple[int, int]] = []
    warnings = list(layout.warnings)
    for path in layout.arrays:
        array = _as_cyx(_open(path, source, context), layout, source)
        size = int(array.shape[1]), int(array.shape[2])
        same = not levels or (array.dtype == levels[0].dtype and array.shape[0] == levels[0].shape[0])
        if levels and not (same and fits_pyramid(sizes[0], sizes[-1], size)):
            warnings.append(f"level {path.name} does not fit the image and is left aside")
            continue
        levels.append(array)
        sizes.append(size)
    n_channels = int(levels[0].shape[0])
    dtype = np.dtype(levels[0].dtype.numpy_dtype)
    names = layout.channel_names
    if names is not None and len(names) != n_channels:
        warnings.append(f"its omero block names {len(names)} channels, the array holds {n_channels}: names left aside")
        names = None
    header = Header(
        source=source,
        reader=f"tensorstore/{layout.kind}",
        levels=make_levels(sizes),
        n_channels=n_channels,
        dtype=dtype,
        colour="grey" if n_channels == 1 else "channels",
        channel_names=names,
        mpp_um=layout.mpp_um,
        warnings=tuple(warnings),
    )
    return ZarrImage(header, levels)


def _open(path: Path, source: Source, context: ts.Context) -> ts.TensorStore:
    driver = "zarr3" if (path / "zarr.json").is_file() else "zarr"
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(path)}, "recheck_cached_data": "open"}
    try:
        return ts.open(spec, read=True, write=False, open=True, context=context).result()
    except ValueError as error:
        raise SlideError(
            f"array {path.name} cannot be opened ({_short(error)})",
            where=str(source),
            expected="a Zarr v2 or v3 array of numbers",
            hint="Copy the whole folder again; if it opens elsewhere, save it with zstd compression",
            code="unreadable",
        ) from error


def _as_cyx(array: ts.TensorStore, layout: ZarrLayout, source: Source) -> ts.TensorStore:
    """See an array with axes (c, y, x)."""
    axes = layout.axes
    shape = tuple(int(size) for size in array.shape)
    if axes is None and len(shape) in (2, 3):
        axes = ("y", "x") if len(shape) == 2 else ("y", "x", "c") if channel_axis(shape) == 2 else ("c", "y", "x")
    if axes is None or len(axes) != len(shape) or not {"y", "x"} <= set(axes):
        raise SlideError(
            f"an array of shape {shape} with axes {axes}",
            where=str(source),
            expected="axes c, y, x",
            hint="Save it with these axes; an OME-Zarr image names them itself",
            code="unsupported_layout",
        )
    if 0 in shape:
        raise SlideError(
            f"an array of shape {shape} holds nothing",
            where=str(source),
            expected="at least one pixel",
            hint="Copy the whole folder again",
            code="unsupported_layout",
        )
    others = [axis for axis in range(len(shape)) if axes[axis] not in "yx" and (shape[axis] > 1 or axes[axis] == "c")]
    if len(others) > 1 and any(axes[axis] == "c" and shape[axis] == 1 for axis in others):
        others = [axis for axis in others if shape[axis] > 1]
    if len(others) > 1 or np.dtype(array.dtype.numpy_dtype).kind not in "biuf":
        raise SlideError(
            f"an array of shape {shape}, axes {axes}, {array.dtype.name}",
            where=str(source),
            expected="numbers, with one axis of channels beside y and x",
            hint="Save one focal plane and time point",
            code="unsupported_layout",
        )
    kept = [*others, axes.index("y"), axes.index("x")]
    array = array[tuple(slice(None) if axis in kept else 0 for axis in range(len(shape)))]
    left = sorted(kept)
    array = array.transpose([left.index(axis) for axis in kept])
    return array if others else array[ts.newaxis]


def _short(error: Exception) -> str:
    return str(error).split(" [")[0].strip()[:300]
