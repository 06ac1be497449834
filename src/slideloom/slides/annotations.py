"""Annotations in the frame of a grid: which nucleus, and which class, each pixel belongs to; whole or by windows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from slideloom.config.model import Modality
from slideloom.errors import SlideError
from slideloom.slides.annotation_frame import Axis, Taps
from slideloom.slides.annotation_sources import UNKNOWN_CLASS, LabelSource, NucleusSource, Seen, unknown_classes
from slideloom.slides.class_register import ClassRegister, read_register
from slideloom.slides.classlist import is_class_table
from slideloom.slides.facts import SlideFacts
from slideloom.slides.geojson_text import is_geojson
from slideloom.slides.grid import grid_size
from slideloom.slides.labels import check_shape, open_label_image, read_instances, source_name
from slideloom.slides.polygon_source import open_polygons, polygon_image
from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import Source, parse_source
from slideloom.slides.tables import ClassTable

__all__ = [
    "UNKNOWN_CLASS",
    "Annotation",
    "AnnotationMaps",
    "AnnotationView",
    "open_annotations",
    "read_annotations",
    "read_instances",
    "slide_annotations",
]

_LOG = logging.getLogger(__name__)
_Window = tuple[slice, slice]
_Value = TypeVar("_Value", bound=np.generic)


class AnnotationMaps(NamedTuple):
    """Annotation of a slide, or of a window of it, one value a pixel.

    Attributes
    ----------
    instances : (H, W) int32 array
        0 background; instance ids as annotated.
    class_map : (H, W) uint8 array
        0 background, class ids, and 255 inside instances whose class is unknown.
    """

    instances: NDArray[np.int32]
    class_map: NDArray[np.uint8]


class Annotation:
    """Annotation of a slide in the grid frame of one of its images, read window by window; a context manager.

    Windows hold what :func:`slide_annotations` holds there, byte for byte. What only pixels tell (negative values, ids
    that are too large, classes that the study does not name) is refused when a window that holds it is read. Reading is
    safe from several threads.

    Attributes
    ----------
    slide_id : str
        The slide.
    shape : (int, int)
        Height and width of the slide, grid pixels.
    has_classes : bool
        Whether the annotation says anything of classes; otherwise every nucleus has :data:`UNKNOWN_CLASS`.
    warnings : tuple of str
        What a person should know, as far as it shows without reading every pixel.
    """

    def __init__(
        self,
        slide_id: str,
        source: NucleusSource,
        axes: tuple[Axis, Axis],
        table: ClassRegister | None,
        has_classes: bool,
        warnings: tuple[str, ...],
    ) -> None:
        self.slide_id = slide_id
        self.shape = (axes[0].count, axes[1].count)
        self.has_classes = has_classes
        self.warnings = warnings
        self._source = source
        self._axes = axes
        self._table = table

    @property
    def instances(self) -> AnnotationView[np.int32]:
        """Instance ids, as an array that is read where it is indexed."""
        return AnnotationView(self, np.dtype(np.int32))

    @property
    def class_map(self) -> AnnotationView[np.uint8]:
        """Class ids, as an array that is read where it is indexed."""
        return AnnotationView(self, np.dtype(np.uint8))

    def read(self, window: _Window) -> AnnotationMaps:
        """Read a window.

        Parameters
        ----------
        window : (slice, slice)
            Rows and columns, grid pixels, without a step; cut to the slide as NumPy does.

        Returns
        -------
        AnnotationMaps
            Maps of the window's size, freshly made.

        Raises
        ------
        SlideError
            As :func:`read_annotations`.
        """
        with _of_slide(self.slide_id):
            return self._maps(*self._taps(window), None)

    def read_instances(self, window: _Window) -> NDArray[np.int32]:
        """Read the instances of a window and leave their classes alone; see :meth:`read`."""
        with _of_slide(self.slide_id):
            return self._source.sample(*self._taps(window), with_classes=False)[0]

    def _taps(self, window: _Window) -> tuple[Taps, Taps]:
        rows, columns = (_bounds(part, axis.count) for part, axis in zip(window, self._axes, strict=True))
        return self._axes[0].window(*rows), self._axes[1].window(*columns)

    def _whole(self) -> tuple[AnnotationMaps, tuple[str, ...]]:
        """Everything, and what is worth a warning in it."""
        seen = Seen()
        with _of_slide(self.slide_id):
            maps = self._maps(self._axes[0].whole(), self._axes[1].whole(), seen)
        return maps, (*self.warnings, *self._remarks(seen))

    def _maps(self, down: Taps, across: Taps, seen: Seen | None) -> AnnotationMaps:
        instances, class_map = self._source.sample(down, across, seen=seen)
        if class_map is not None:
            return AnnotationMaps(instances, class_map)
        if self._table is None:
            class_map = unknown_classes(instances)
        else:
            if self._table.is_empty and (bool(seen.ids) if seen else bool(instances.any())):
                raise self._table.refusal()
            class_map = self._table.of(instances)
        return AnnotationMaps(instances, class_map)

    def _remarks(self, seen: Seen) -> Iterator[str]:
        if not seen.ids:
            yield "instances: the annotation holds no nucleus"
        elif hidden := max(0, seen.outlines - len(seen.ids)):
            yield (
                f"instances: {hidden} of {seen.outlines} outlines hold no pixel of this grid: "
                "they are smaller than one, or lie under later outlines"
            )
        if seen.stray_px:
            yield f"{seen.where}: {seen.stray_px} px carry a class outside of every instance, and are left aside"
        if self._table is not None:
            yield from self._table.remarks(seen.ids)

    def close(self) -> None:
        """Release the files."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AnnotationView(Generic[_Value]):
    """One map of an annotation as an array of two axes that is read where it is indexed by two slices.

    Parameters
    ----------
    annotation : Annotation
        Open.
    dtype : numpy.dtype
        int32: the instances; uint8: the classes.
    """

    ndim = 2

    def __init__(self, annotation: Annotation, dtype: np.dtype[_Value]) -> None:
        self.shape = annotation.shape
        self.dtype = dtype
        self._annotation = annotation

    def __getitem__(self, window: _Window) -> NDArray[_Value]:
        one = self._annotation
        found: Any = one.read_instances(window) if self.dtype == np.int32 else one.read(window).class_map
        chosen: NDArray[_Value] = found
        return chosen

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("an annotation is read from disk, which makes a copy")
        return np.asarray(self[:, :], dtype)


def open_annotations(
    row: SlideRow,
    root: Path,
    facts: SlideFacts,
    modality: Modality,
    scale: float,
    classes: ClassTable,
    *,
    whole: bool = False,
) -> Annotation | None:
    """Open a slide's annotation in the grid frame of one of its images; pixels are read window by window.

    Parameters
    ----------
    row, root, facts, modality, scale, classes
        As for :func:`read_annotations`.
    whole : bool
        Outlines are read as whole cells: of an object that has both, the cell's and not the nucleus'.

    Returns
    -------
    Annotation or None
        Open, the caller closes it; None for a slide without instances.

    Raises
    ------
    SlideError
        As :func:`read_annotations`, as far as headers and tables tell.
    """
    if not row.instances:
        return None
    with _of_slide(row.slide_id):
        return _open(row, parse_source(row.instances, root), root, facts, modality, scale, classes, whole)


def slide_annotations(
    row: SlideRow, root: Path, facts: SlideFacts, modality: Modality, scale: float, classes: ClassTable
) -> AnnotationMaps | None:
    """Annotation of a slide in the grid frame of one of its images; see :func:`read_annotations`."""
    found = read_annotations(row, root, facts, modality, scale, classes)
    return found[0] if found else None


def read_annotations(
    row: SlideRow, root: Path, facts: SlideFacts, modality: Modality, scale: float, classes: ClassTable
) -> tuple[AnnotationMaps, tuple[str, ...]] | None:
    """Read a slide's annotation and bring it into the grid frame of one of its images.

    Parameters
    ----------
    row : SlideRow
        The slide's row of the sheet.
    root : Path
        Folder that the sheet's paths start from.
    facts : SlideFacts
        Sizes and pixel sizes of the slide's images.
    modality : {"he", "sp"}
        The image whose grid is meant.
    scale : float
        Level-0 pixels of that image per grid pixel.
    classes : ClassTable
        The study's classes.

    Returns
    -------
    (AnnotationMaps, tuple of str) or None
        Maps of (H, W) grid pixels, and warnings; None for a slide without instances. Values are taken at the centre of
        each grid pixel. A label image drawn on the other image is placed by physical size, from a common upper left
        corner; one of the size of the grid has its pixels. GeoJSON counts level-0 pixels of the grid's image, unless it
        is named as in ``nuclei.geojson::he``; its nuclei are 1 to n in the order of the file, later ones over earlier.

    Raises
    ------
    SlideError
        ``annotation_shape``: the size of none of the slide's images, or classes of another size than the instances.
        ``unknown_class``: a class that the study does not name. ``annotation_no_rows``: a class table without a row for
        this slide's instances. ``annotation_classes``: classes beside GeoJSON, which has its own. ``binary_labels``: a
        mask or a class map. And those of
        :func:`~slideloom.slides.labels.read_labels`, :func:`~slideloom.slides.classlist.read_class_rows`,
        :func:`~slideloom.slides.polygon_source.polygon_image` and
        :func:`~slideloom.slides.polygon_source.open_polygons`.
    """
    opened = open_annotations(row, root, facts, modality, scale, classes)
    if opened is None:
        return None
    with opened:
        maps, warnings = opened._whole()
    from slideloom.slides.binary_labels import check_pieces  # compiles: only those who read everything wait for it

    with _of_slide(row.slide_id):
        where = source_name(parse_source(str(row.instances), root))
        warnings += check_pieces(maps.instances, facts.image(modality).mpp_um * scale, where)
    for warning in warnings:
        _LOG.warning("%s: %s", row.slide_id, warning)
    return maps, warnings


@contextmanager
def _of_slide(slide_id: str) -> Iterator[None]:
    """Say of an error which slide it befell."""
    try:
        yield
    except SlideError as error:
        where = f"{slide_id}, {error.where or 'annotation'}"
        raise SlideError(error.what, where=where, expected=error.expected, hint=error.hint, code=error.code) from error


def _bounds(part: slice, size: int) -> tuple[int, int]:
    first, stop, step = part.indices(size)
    if step != 1:
        raise ValueError(f"a window has no step; {part} has {step}")
    return first, max(first, stop)


def _open(
    row: SlideRow,
    instances: Source,
    root: Path,
    facts: SlideFacts,
    modality: Modality,
    scale: float,
    classes: ClassTable,
    whole: bool,
) -> Annotation:
    image = facts.image(modality)
    size = grid_size(*image.shape, scale)
    class_source = parse_source(row.classes, root) if row.classes else None
    if is_geojson(instances):
        return _open_polygons(row, instances, facts, modality, scale, classes, whole)
    is_table = class_source is not None and is_class_table(class_source)
    with ExitStack() as opened:
        labels = opened.enter_context(open_label_image(instances))
        step = _step(labels.shape, facts, modality, scale)
        drawn, table = None, None
        notes: tuple[str, ...] = ()
        if class_source is not None and is_table:
            table, notes = read_register(class_source, classes)
        elif class_source is not None:
            drawn = opened.enter_context(open_label_image(class_source))
        source = LabelSource(labels, drawn, classes)
        opened.pop_all()
    axes = Axis(size[0], step, labels.shape[0]), Axis(size[1], step, labels.shape[1])
    return Annotation(row.slide_id, source, axes, table, class_source is not None, notes)


def _open_polygons(
    row: SlideRow,
    instances: Source,
    facts: SlideFacts,
    modality: Modality,
    scale: float,
    classes: ClassTable,
    whole: bool,
) -> Annotation:
    if row.classes:
        raise SlideError(
            f"classes are given as {row.classes!r} beside GeoJSON",
            where=instances.path.name,
            expected="classes in the GeoJSON itself, under 'classification'",
            hint="Leave the classes empty",
            code="annotation_classes",
        )
    drawn_on = polygon_image(instances, facts.images, modality)
    frame, image = facts.image(drawn_on), facts.image(modality)
    step = scale if drawn_on == modality else scale * image.mpp_um / frame.mpp_um
    source = open_polygons(instances, frame.shape, classes, whole=whole)
    size = grid_size(*image.shape, scale)
    axes = Axis(size[0], step, frame.height_px), Axis(size[1], step, frame.width_px)
    return Annotation(row.slide_id, source, axes, None, source.has_classes, source.warnings)


def _step(shape: tuple[int, int], facts: SlideFacts, modality: Modality, scale: float) -> float:
    """Annotation pixels per grid pixel, by the image or the grid that a label image has the size of."""
    image = facts.image(modality)
    drawn_on = next((name for name in (modality, *facts.images) if facts.images[name].shape == shape), None)
    if drawn_on is not None:
        return scale if drawn_on == modality else scale * image.mpp_um / facts.images[drawn_on].mpp_um
    size = grid_size(*image.shape, scale)
    check_shape(shape, {*(one.shape for one in facts.images.values()), size})
    return 1.0
