"""Annotations in the frame of a grid: which nucleus, and which class, each pixel belongs to."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slideloom.config.model import Modality
from slideloom.errors import SlideError
from slideloom.slides.classlist import is_class_table, read_class_rows, settle_classes
from slideloom.slides.facts import SlideFacts
from slideloom.slides.grid import grid_size
from slideloom.slides.labels import check_shape, read_instances, read_labels
from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import Source, parse_source
from slideloom.slides.tables import ClassTable

__all__ = ["UNKNOWN_CLASS", "AnnotationMaps", "read_annotations", "read_instances", "slide_annotations"]

_LOG = logging.getLogger(__name__)
#: Class id of pixels inside a nucleus whose class is not known.
UNKNOWN_CLASS = 255


class AnnotationMaps(NamedTuple):
    """Annotation of a slide, one value a pixel.

    Attributes
    ----------
    instances : (H, W) int32 array
        0 background; instance ids as annotated.
    class_map : (H, W) uint8 array
        0 background, class ids, and 255 inside instances whose class is unknown.
    """

    instances: NDArray[np.int32]
    class_map: NDArray[np.uint8]


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
        each grid pixel. An annotation drawn on the other image is placed by physical size, from a common upper left
        corner.

    Raises
    ------
    SlideError
        ``annotation_shape``: the size of none of the slide's images, or classes of another size than the instances.
        ``unknown_class``: a class that the study does not name. ``annotation_no_rows``: a class table without a row for
        this slide's instances. And those of :func:`~slideloom.slides.labels.read_labels` and
        :func:`~slideloom.slides.classlist.read_class_rows`.
    """
    if not row.instances:
        return None
    try:
        return _read(row, row.instances, root, facts, modality, scale, classes)
    except SlideError as error:
        where = f"{row.slide_id}, {error.where or 'annotation'}"
        raise SlideError(error.what, where=where, expected=error.expected, hint=error.hint, code=error.code) from error


def _read(
    row: SlideRow,
    instances_text: str,
    root: Path,
    facts: SlideFacts,
    modality: Modality,
    scale: float,
    classes: ClassTable,
) -> tuple[AnnotationMaps, tuple[str, ...]]:
    image = facts.image(modality)
    instances = read_instances(parse_source(instances_text, root))
    drawn_on = next((name for name in (modality, *facts.images) if facts.images[name].shape == instances.shape), None)
    if drawn_on is None:
        check_shape((instances.shape[0], instances.shape[1]), {one.shape for one in facts.images.values()})
    step = scale if drawn_on == modality else scale * image.mpp_um / facts.images[drawn_on or modality].mpp_um
    size = grid_size(*image.shape, scale)
    at_y, at_x = (_nearest(count, step, extent) for count, extent in zip(size, instances.shape, strict=True))
    warnings: list[str] = []
    if not row.classes:
        placed = _place(instances, at_y, at_x)
        return AnnotationMaps(placed, _unknown(placed)), ()
    source = parse_source(row.classes, root)
    if is_class_table(source):
        settled = _from_table(source, instances, classes, warnings)
        placed = _place(instances, at_y, at_x)
        class_map = _look_up(placed, settled)
    else:
        drawn = _from_image(source, instances, classes, warnings)
        placed, class_map = _place(instances, at_y, at_x), _place(drawn, at_y, at_x)
    for warning in warnings:
        _LOG.warning("%s: %s", row.slide_id, warning)
    return AnnotationMaps(placed, class_map), tuple(warnings)


def _nearest(count: int, step: float, extent: int) -> NDArray[np.int64]:
    """Annotation index of each grid index; -1 where the annotation has ended."""
    index = np.floor((np.arange(count) + 0.5) * step).astype(np.int64)
    # Rounding of the grid's size can put the last centre on the very edge.
    index[(index == extent) & (np.arange(count) * step < extent)] = extent - 1
    return np.where(index < extent, index, -1)


def _place(values: NDArray[Any], at_y: NDArray[np.int64], at_x: NDArray[np.int64]) -> NDArray[Any]:
    height, width = values.shape
    if np.array_equal(at_y, np.arange(height)) and np.array_equal(at_x, np.arange(width)):
        return values
    placed = np.zeros((at_y.size, at_x.size), values.dtype)
    rows, cols = int((at_y >= 0).sum()), int((at_x >= 0).sum())
    placed[:rows, :cols] = values[np.ix_(at_y[:rows], at_x[:cols])]
    return placed


def _unknown(instances: NDArray[np.int32]) -> NDArray[np.uint8]:
    return np.where(instances > 0, np.uint8(UNKNOWN_CLASS), np.uint8(0))


def _from_table(
    source: Source, instances: NDArray[np.int32], classes: ClassTable, warnings: list[str]
) -> dict[int, int]:
    where = f"{source.path.name}::{source.member}" if source.member else source.path.name
    rows = read_class_rows(source)
    if not rows.ids and instances.any():
        what = f"no row belongs to {source.member!r}" if source.member else "no row names an instance"
        hint = "The member after '::' must equal a value of the column 'image'" if source.member else ""
        raise SlideError(what, where=where, hint=hint, code="annotation_no_rows")
    settled, notes = settle_classes(rows, classes, where)
    warnings += notes
    present = set(np.unique(instances[instances > 0]).tolist())
    strangers = len(settled.keys() - present)
    if strangers:
        warnings.append(f"{where}: {strangers} of {len(settled)} instance ids are not in the instance map")
    without = len(present - settled.keys())
    if without:
        warnings.append(f"{where}: {without} of {len(present)} instances have no class")
    return settled


def _look_up(instances: NDArray[np.int32], settled: dict[int, int]) -> NDArray[np.uint8]:
    class_map = _unknown(instances)
    inside = np.flatnonzero(instances.reshape(-1) > 0)
    if not settled or not inside.size:
        return class_map
    ids = np.array(sorted(settled), np.int64)
    numbers = np.array([settled[int(one)] for one in ids], np.uint8)
    found = instances.reshape(-1)[inside]
    place = np.minimum(np.searchsorted(ids, found), ids.size - 1)
    class_map.reshape(-1)[inside] = np.where(ids[place] == found, numbers[place], np.uint8(UNKNOWN_CLASS))
    return class_map


def _from_image(
    source: Source, instances: NDArray[np.int32], classes: ClassTable, warnings: list[str]
) -> NDArray[np.uint8]:
    where = f"{source.path.name}::{source.member}" if source.member else source.path.name
    drawn = read_labels(source)
    if drawn.shape != instances.shape:
        raise SlideError(
            f"the class image is {drawn.shape[0]} x {drawn.shape[1]} px",
            where=where,
            expected=f"{instances.shape[0]} x {instances.shape[1]}, as the instance map",
            code="annotation_shape",
        )
    unknown = set(np.unique(drawn).tolist()) - {0, UNKNOWN_CLASS, *classes.ids}
    if unknown:
        shown = ", ".join(map(str, sorted(unknown)[:10])) + (", …" if len(unknown) > 10 else "")
        raise SlideError(
            f"the class image holds {shown}",
            where=where,
            expected=f"0, 255 (unknown) or a class id: {', '.join(map(str, classes.ids))}",
            hint="Give classes as a table, whose words the classes table's aliases can name, or renumber the image",
            code="unknown_class",
        )
    stray = int(np.count_nonzero((drawn != 0) & (instances == 0)))
    if stray:
        warnings.append(f"{where}: {stray} px carry a class outside of every instance, and are left aside")
    without = (drawn == 0) & (instances > 0)
    class_map = np.where(instances > 0, drawn, 0).astype(np.uint8)
    class_map[without] = UNKNOWN_CLASS
    return class_map
