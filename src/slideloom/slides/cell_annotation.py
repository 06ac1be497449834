"""Annotated whole cells of a slide, in the frame of a grid: the sheet's column ``cells``.

They come in the forms of annotated nuclei and are read by the same readers; they have no classes, and their ids need
not be those of the nuclei. Of GeoJSON objects that have a cell's outline and a nucleus', the cell's is read.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slideloom.config.model import Modality
from slideloom.errors import SlideError
from slideloom.slides.annotations import open_annotations
from slideloom.slides.facts import SlideFacts
from slideloom.slides.geojson_text import is_geojson
from slideloom.slides.labels import check_shape, label_shape
from slideloom.slides.polygon_source import check_polygons, polygon_image
from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import parse_source
from slideloom.slides.tables import ClassTable

__all__ = ["CellAnnotation", "cell_remarks", "read_cells"]

_LOG = logging.getLogger(__name__)


class CellAnnotation(NamedTuple):
    """Whole cells of a slide.

    Attributes
    ----------
    cells : (H, W) int32 array
        0 background; ids as annotated. Grid pixels.
    warnings : tuple of str
        What a person should know.
    """

    cells: NDArray[np.int32]
    warnings: tuple[str, ...]


def read_cells(row: SlideRow, root: Path, facts: SlideFacts, modality: Modality, scale: float) -> CellAnnotation | None:
    """Read a slide's annotated cells and bring them into the grid frame of one of its images.

    Parameters
    ----------
    row : SlideRow
        The slide's row of the sheet; its column ``cells`` is read.
    root : Path
        Folder that the sheet's paths start from.
    facts : SlideFacts
        Sizes and pixel sizes of the slide's images.
    modality : {"he", "sp"}
        The image whose grid is meant.
    scale : float
        Level-0 pixels of that image per grid pixel.

    Returns
    -------
    CellAnnotation or None
        None for a slide without annotated cells. They are placed as nuclei are, see
        :func:`~slideloom.slides.annotations.read_annotations`. Classes that GeoJSON names are left aside. Where the
        slide has two images of different pixels, GeoJSON says on which it was drawn (``cells.geojson::he``): it lies
        at the same place on every grid.

    Raises
    ------
    SlideError
        As :func:`~slideloom.slides.annotations.read_annotations`; it names the column. ``annotation_frame``: nothing
        says which of two images GeoJSON counts the pixels of.
    """
    if not row.cells:
        return None
    where = f"{row.slide_id}, cells {row.cells}"
    try:
        return _read(row, root, facts, modality, scale, where)
    except SlideError as error:
        _, comma, feature = error.where.partition(", feature ")
        where += comma + feature
        hint = error.hint.replace("column instances", "column cells").replace("'instances' is", "'cells' is")
        raise SlideError(error.what, where=where, expected=error.expected, hint=hint, code=error.code) from error


def cell_remarks(row: SlideRow, root: Path, facts: SlideFacts, *, whole: bool) -> tuple[str, ...]:
    """What a person should know of a slide's annotated cells before anything runs.

    Parameters
    ----------
    row, root, facts
        As for :func:`read_cells`.
    whole : bool
        Read everything; else the header, or the first outline.

    Returns
    -------
    tuple of str
        Warnings; and why the annotation cannot be read, which takes the slide from the experiments that learn cells,
        and from no others.
    """
    if not row.cells:
        return ()
    try:
        if whole:
            found = read_cells(row, root, facts, facts.reference, 1.0)
            return found.warnings if found else ()
        source = parse_source(row.cells, root)
        if is_geojson(source):
            check_polygons(source, facts.images)
        else:
            check_shape(label_shape(source), {image.shape for image in facts.images.values()})
    except SlideError as error:
        return (f"cells {row.cells}: {error.what} ({error.code}): no whole cells are learnt from this slide",)
    return ()


def _read(
    row: SlideRow, root: Path, facts: SlideFacts, modality: Modality, scale: float, where: str
) -> CellAnnotation | None:
    from slideloom.slides.binary_labels import LARGEST_NUCLEUS_UM2, instances_or_refuse  # compiles

    source = parse_source(str(row.cells), root)
    if is_geojson(source):
        polygon_image(source, facts.images)  # else every grid would have them elsewhere
    own = replace(row, instances=row.cells, classes=None)
    annotation = open_annotations(own, root, facts, modality, scale, ClassTable(), whole=True)
    if annotation is None:
        return None
    with annotation:
        cells = annotation.read_instances((slice(None), slice(None)))
        warnings = [f"cells: {warning}" for warning in annotation.warnings]
    mpp_um = facts.image(modality).mpp_um * scale
    found = instances_or_refuse(cells, where=where, largest_px=LARGEST_NUCLEUS_UM2 / mpp_um**2)
    if not found.n_ids:
        warnings.append("cells: the annotation holds no cell")
    if found.n_scattered:
        warnings.append(f"cells: {found.n_scattered} of {found.n_ids} cells lie in several pieces under one id")
    for warning in warnings:
        _LOG.warning("%s: %s", row.slide_id, warning)
    return CellAnnotation(cells, tuple(warnings))
