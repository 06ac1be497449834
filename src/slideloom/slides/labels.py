"""Label images of annotations, in any format that slides are read from, refused with a reason when there are none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideError
from slideloom.slides.image import Header
from slideloom.slides.open import open_raw
from slideloom.slides.source import Source

__all__ = ["check_shape", "label_shape", "read_instances", "read_labels"]

_LARGEST = 2**31 - 1
_HINT = "Give a label image with whole numbers: 0 background, 1, 2, 3, … the nuclei"
_PICTURES = {"rgb", "rgba", "rgba_premultiplied", "grey_alpha", "cmyk"}


def label_shape(source: Source) -> tuple[int, int]:
    """Height and width of a label image, from its header.

    Parameters
    ----------
    source : Source
        Where it lies.

    Returns
    -------
    (int, int)
        Height and width.

    Raises
    ------
    SlideError
        As :func:`read_labels`, as far as the header tells.
    """
    return _read(source, values=False)[0]


def read_labels(source: Source) -> NDArray[Any]:
    """Read a label image.

    Parameters
    ----------
    source : Source
        A TIFF, PNG, ``.npy``, ``.npz::name``, ``.npz::name[k]`` or ``.zarr::path/of/array``. Of a picture with a colour
        table, the stored indices are the labels.

    Returns
    -------
    (H, W) integer array
        Values as stored, none negative, none above 2**31 - 1.

    Raises
    ------
    SlideError
        ``annotation_missing``, ``annotation_unreadable``, ``annotation_rgb`` (a picture, or a stack of masks),
        ``annotation_float``, ``annotation_boolean``, ``annotation_negative``, ``annotation_range``.
    """
    values = _read(source, values=True)[1]
    if values.size:
        low, high = int(values.min()), int(values.max())
        if low < 0:
            raise _refuse(source, f"the label image holds negative values, down to {low}", "annotation_negative")
        if high > _LARGEST:
            raise _refuse(source, f"the label image holds {high}, above 2**31 - 1", "annotation_range")
    return values


def read_instances(source: Source) -> NDArray[np.int32]:
    """Read an instance map.

    Parameters
    ----------
    source : Source
        As for :func:`read_labels`.

    Returns
    -------
    (H, W) int32 array
        0 background, any positive number an instance; numbers are kept as they are.

    Raises
    ------
    SlideError
        As :func:`read_labels`.
    """
    return read_labels(source).astype(np.int32, copy=False)


def _read(source: Source, *, values: bool) -> tuple[tuple[int, int], NDArray[Any]]:
    try:
        raw = open_raw(source)
        try:
            header = raw.header
            height, width = header.levels[0].height_px, header.levels[0].width_px
            _check(source, header)
            data = raw.read(0, 0, 0, height, width)[0] if values else np.empty((0, 0), header.dtype)
        finally:
            raw.close()
    except SlideError as error:
        if error.code.startswith("annotation_"):
            raise
        code = "annotation_missing" if error.code == "missing_file" else "annotation_unreadable"
        hint = error.hint if code == "annotation_unreadable" else "Mend the path in the sheet, or leave the cell empty"
        raise SlideError(
            f"the annotation: {error.what}", where=_where(source), expected=error.expected, hint=hint, code=code
        ) from error
    return (height, width), data


def _check(source: Source, header: Header) -> None:
    if header.colour in _PICTURES or header.n_channels != 1:
        what = f"{header.n_channels} values a pixel are a picture, or a stack of masks, no label image"
        raise _refuse(source, what, "annotation_rgb")
    kind = np.dtype(header.dtype).kind
    if kind == "b":
        raise _refuse(source, "a true/false mask does not tell touching nuclei apart", "annotation_boolean")
    if kind not in "ui":
        raise _refuse(source, f"the label image holds {np.dtype(header.dtype).name} values", "annotation_float")


def _refuse(source: Source, what: str, code: str) -> SlideError:
    return SlideError(what, where=_where(source), hint=_HINT, code=code)


def _where(source: Source) -> str:
    return f"{source.path.name}::{source.member}" if source.member else source.path.name


def check_shape(shape: tuple[int, int], shapes: Iterable[tuple[int, int]]) -> None:
    """Refuse an annotation that has the size of none of a slide's images.

    Raises
    ------
    SlideError
        ``annotation_shape``.
    """
    if shape not in shapes:
        raise SlideError(
            f"the annotation is {shape[0]} x {shape[1]} px",
            expected=" or ".join(f"{height} x {width}" for height, width in sorted(shapes)) + ", as the slide's image",
            hint="Give the annotation at the full resolution of one of the slide's images",
            code="annotation_shape",
        )
