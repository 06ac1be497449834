"""Label images of annotations, in any format that slides are read from, refused with a reason when there are none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from slideloom.config.texts import shortened
from slideloom.errors import SlideError
from slideloom.slides.image import Header, RawImage
from slideloom.slides.open import open_raw
from slideloom.slides.source import Source

__all__ = [
    "LabelImage",
    "check_shape",
    "label_shape",
    "open_label_image",
    "read_instances",
    "read_labels",
    "source_name",
]

_LARGEST = 2**31 - 1
_FEW_PX, _COARSEST = 8, 64
_HINTS = {
    "annotation_negative": "0 is the background: set what is negative to 0, or number the nuclei anew",
    "annotation_range": "Number the nuclei anew, as 1, 2, 3, …",
    "annotation_rgb": "Give one image in which each nucleus has a number of its own: not its picture, not a mask each",
    "annotation_boolean": "Give the numbered nuclei, or split the mask into connected components and say that you did",
    "annotation_float": "If all values are whole, save them as such: numpy.save('labels.npy', labels.astype('int32'))",
    "annotation_lossy": "Export it again as PNG or TIFF where it was made: JPEG does not give the numbers back",
}
_PICTURES = {"rgb", "rgba", "rgba_premultiplied", "grey_alpha", "cmyk"}
_LOSSY = "pillow/jpeg"
_AGAIN = "Write it again as a label image: TIFF, PNG, .npy, .npz or OME-Zarr"
_TABLE = "A table of classes belongs into the sheet's column 'classes'; 'instances' is a label image or GeoJSON"
#: What to do with files that annotations come in elsewhere, by suffix.
_ELSEWHERE = {
    ".mat": "Bring the whole set in: `slideloom sheet FOLDER --layout consep --out FOLDER/slides.tsv` reads inst_map "
    "and classes from Labels/*.mat beside Images/*.png, as CoNSeP and HoVer-Net have them; --layout lizard Lizard's",
    ".h5": "Save its label image as .npy, with numpy.save",
    ".hdf5": "Save its label image as .npy, with numpy.save",
    ".xml": "Export the outlines as GeoJSON, as QuPath does",
    ".csv": _TABLE,
    ".tsv": _TABLE,
    ".txt": _TABLE,
    ".parquet": _TABLE,
}


class LabelImage:
    """An open label image, read window by window; a context manager. Reading is safe from several threads.

    Parameters
    ----------
    source : Source
        Where it lies.
    raw : RawImage
        The open file; closed with this image.

    Attributes
    ----------
    source : Source
        Where it lies.
    shape : (int, int)
        Height and width, px.
    dtype : numpy.dtype
        Of the stored values.

    Notes
    -----
    Of tiled TIFF and Zarr, only what a window touches is decoded; ``.npy`` and uncompressed TIFF are mapped from disk;
    PNG, members of ``.npz`` and a TIFF stored as one compressed strip are decoded whole at the first window.
    """

    def __init__(self, source: Source, raw: RawImage) -> None:
        level = raw.header.levels[0]
        self.source = source
        self.shape = (level.height_px, level.width_px)
        self.dtype = np.dtype(raw.header.dtype)
        self._raw = raw

    def read(self, rows: slice, columns: slice) -> NDArray[Any]:
        """Read a window.

        Parameters
        ----------
        rows, columns : slice
            First pixel and the one behind the last, inside the image, without a step.

        Returns
        -------
        (h, w) integer array
            Values as stored, none negative, none above 2**31 - 1; freshly made.

        Raises
        ------
        SlideError
            ``annotation_unreadable``, ``annotation_negative``, ``annotation_range``: what this window holds.
        """
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if height <= 0 or width <= 0:
            return np.zeros((max(0, height), max(0, width)), self.dtype)
        with _as_annotation(self.source):
            values: NDArray[Any] = self._raw.read(0, rows.start, columns.start, height, width)[0]
        if self.dtype.kind == "i" and (low := int(values.min())) < 0:
            what = f"the label image holds negative values, down to {low}"
            raise _refuse(self.source, what, "annotation_negative")
        if self.dtype.itemsize >= 4 and (high := int(values.max())) > _LARGEST:
            raise _refuse(self.source, f"the label image holds {high}, above 2**31 - 1", "annotation_range")
        # A picture hands out its only copy, not to be written to.
        return values if values.flags.writeable else values.copy()

    def whole(self) -> NDArray[Any]:
        """Read everything; see :meth:`read`."""
        return self.read(slice(0, self.shape[0]), slice(0, self.shape[1]))

    def close(self) -> None:
        """Release the file."""
        self._raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_label_image(source: Source) -> LabelImage:
    """Open a label image; only its header is read.

    Parameters
    ----------
    source : Source
        A TIFF, PNG, ``.npy``, ``.npz::name``, ``.npz::name[k]`` or ``.zarr::path/of/array``. Of a picture with a colour
        table, the stored indices are the labels.

    Returns
    -------
    LabelImage
        Open; the caller closes it.

    Raises
    ------
    SlideError
        ``annotation_missing``, ``annotation_unreadable``, ``annotation_rgb`` (a picture, or a stack of masks),
        ``annotation_float``, ``annotation_boolean``, ``annotation_lossy`` (JPEG).
    """
    with _as_annotation(source):
        raw = open_raw(source)
    try:
        _check(source, raw.header)
    except BaseException:
        raw.close()
        raise
    return LabelImage(source, raw)


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
        As :func:`open_label_image`.
    """
    with open_label_image(source) as image:
        return image.shape


def read_labels(source: Source) -> NDArray[Any]:
    """Read a label image.

    Parameters
    ----------
    source : Source
        As for :func:`open_label_image`.

    Returns
    -------
    (H, W) integer array
        Values as stored, none negative, none above 2**31 - 1.

    Raises
    ------
    SlideError
        As :func:`open_label_image`, and ``annotation_negative``, ``annotation_range``.
    """
    with open_label_image(source) as image:
        return image.whole()


def read_instances(source: Source) -> NDArray[np.int32]:
    """Read an instance map.

    Parameters
    ----------
    source : Source
        As for :func:`open_label_image`.

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


@contextmanager
def _as_annotation(source: Source) -> Iterator[None]:
    """Tell of what a reader refuses as of an annotation."""
    try:
        yield
    except SlideError as error:
        if error.code == "missing_file":
            code, hint = "annotation_missing", "Mend the path in the sheet, or leave the cell empty"
        else:
            code, hint = "annotation_unreadable", _ELSEWHERE.get(source.path.suffix.lower()) or error.hint or _AGAIN
        what = f"the annotation: {shortened(error.what, 400)}"
        raise SlideError(
            what, where=source_name(source), expected=error.expected or "a label image", hint=hint, code=code
        ) from error


def _check(source: Source, header: Header) -> None:
    if header.colour in _PICTURES or header.n_channels != 1:
        what = f"{header.n_channels} values a pixel are a picture, or a stack of masks, no label image"
        raise _refuse(source, what, "annotation_rgb")
    kind = np.dtype(header.dtype).kind
    if kind == "b":
        raise _refuse(source, "a true/false mask does not tell touching nuclei apart", "annotation_boolean")
    if kind not in "ui":
        raise _refuse(source, f"the label image holds {np.dtype(header.dtype).name} values", "annotation_float")
    if header.reader == _LOSSY:
        raise _refuse(source, "JPEG does not keep the numbers that are stored in it", "annotation_lossy")


def _refuse(source: Source, what: str, code: str) -> SlideError:
    expected = "one whole number a pixel, 0 to 2**31 - 1"
    return SlideError(what, where=source_name(source), expected=expected, hint=_HINTS[code], code=code)


def source_name(source: Source) -> str:
    """Name of a source in messages: the file without its folders, and the member."""
    return f"{source.path.name}::{source.member}" if source.member else source.path.name


def check_shape(shape: tuple[int, int], shapes: Iterable[tuple[int, int]]) -> None:
    """Refuse an annotation that has the size of none of a slide's images.

    Parameters
    ----------
    shape : (int, int)
        Height and width of the annotation.
    shapes : iterable of (int, int)
        Sizes that it may have.

    Raises
    ------
    SlideError
        ``annotation_shape``.
    """
    allowed = set(shapes)
    if shape not in allowed:
        raise SlideError(
            f"the annotation is {shape[0]} x {shape[1]} px",
            expected=" or ".join(f"{height} x {width}" for height, width in sorted(allowed)) + ", as the slide's image",
            hint=_mishap(shape, allowed),
            code="annotation_shape",
        )


def _mishap(shape: tuple[int, int], shapes: Iterable[tuple[int, int]]) -> str:
    """What may have happened to an annotation that has the size of no image, and what to do."""
    for image in sorted(shapes):
        if shape == image[::-1]:
            return "Rows and columns seem to be exchanged: transpose it, and look whether it then fits the image"
        down, across = shape[0] - image[0], shape[1] - image[1]
        if max(abs(down), abs(across)) <= _FEW_PX:
            return (
                f"It has {down:+d} rows and {across:+d} columns: cut it, or fill it up with 0, on the side where they "
                "were added or lost"
            )
        times = round(image[0] / max(1, shape[0]), 1)
        if 1 < times <= _COARSEST and all(
            abs(part * times - whole) <= times for part, whole in zip(shape, image, strict=True)
        ):
            return f"It seems to be drawn at a {times:g} times lower resolution: export it at full resolution"
    return (
        "Give it at the full resolution of one of the slide's images; if it is, it may belong to another slide: "
        "look at what the sheet names"
    )
