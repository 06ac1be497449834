"""Nuclei that another program found, in the forms that our own have: maps, label image, cell table.

Everything after that (scores, exports, biology, reports) reads these three and knows no difference, but for what no
label image tells: there are no probabilities, and no tile seams.

1. Window by window, in any order: the labels are brought into the frame of the grid and written down, and it is
   measured where each id lies.
2. A mask or a class map is refused before anything is put in its place.
3. Ids are renumbered in raster order of their first pixels. An id stays one nucleus, also in several pieces.

Memory: the windows in work, half a thousand rows of labels, and some hundred bytes for each nucleus.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from slideloom._version import __version__
from slideloom.artefacts.files import publish, scratch_beside
from slideloom.artefacts.zarrio import create_array, create_group, open_array
from slideloom.config.model import Modality
from slideloom.errors import SlideError
from slideloom.instances.cells import MarkerMeans, write_cells
from slideloom.instances.contours import position
from slideloom.instances.labels import open_labels, write_labels
from slideloom.instances.markers import check_frame, marker_sums
from slideloom.instances.measure import label_runs, measured
from slideloom.instances.pool import in_order
from slideloom.instances.windows import Box, LabelTable, label_table
from slideloom.patches.store import PatchStore
from slideloom.slides.annotations import UNKNOWN_CLASS, Annotation, open_annotations
from slideloom.slides.binary_labels import LARGEST_NUCLEUS_UM2, instances_or_refuse
from slideloom.slides.facts import SlideFacts
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import ClassTable

__all__ = ["import_slide"]

_LOG = logging.getLogger(__name__)
_SCHEMA = 1
#: Height and width of the windows, each a shard of the maps. They are flat because label images often lie in strips of
#: whole rows: those that a row of windows needs are kept by the reader until its last.
_WINDOW_PX = (512, 4096)
_CHUNK_PX = 256
#: Side of the windows that nuclei are measured in.
_MEASURED_PX = 1024
_AXES = ("y", "x")


def import_slide(
    row: SlideRow,
    root: Path,
    facts: SlideFacts,
    image: Modality,
    scale: float,
    patches: PatchStore | None,
    classes: ClassTable,
    maps_place: Path,
    labels_place: Path,
    cells_place: Path,
    *,
    about: Mapping[str, Any],
    workers: int = 1,
) -> int:
    """Take in the nuclei that another program found on a slide.

    Parameters
    ----------
    row : SlideRow
        The slide, whose ``instances`` and ``classes`` name the other program's files.
    root : Path
        Folder that these paths start from.
    facts : SlideFacts
        The slide.
    image : {"he", "sp"}
        The image whose grid is meant.
    scale : float
        Level-0 pixels of that image per grid pixel.
    patches : PatchStore or None
        Its tiles: where they lie counts as looked at, and they hold the markers. None: everything was looked at, and
        there are no means.
    classes : ClassTable
        The study's classes.
    maps_place : Path
        Zarr group to write, in the grid frame: ``covered`` (H, W) uint8, 1 where a tile lies; and, where the files
        say anything of classes, ``class_id`` (H, W) uint8, 0 for the background and where the class is not known. The
        attribute ``heads`` tells which: ``["labels"]`` or ``["labels", "classes"]``.
    labels_place : Path
        OME-Zarr label image to write, renumbered.
    cells_place : Path
        GeoParquet file to write. The class of a nucleus is that of most of its pixels.
    about : mapping
        JSON values recorded with the maps, such as the experiment, the fold and the files' digest; ``encoder_notes``
        says what readers of the tables should know of the labels.
    workers : int
        Windows in work at once, each in a thread. Changes no byte.

    Returns
    -------
    int
        Number of nuclei.

    Raises
    ------
    SlideError
        ``binary_labels``: a mask or a class map, not nuclei; ``annotation_missing``: the row names no file;
        ``maps_shape``: the tiles lie in another frame; and whatever
        :func:`~slideloom.slides.annotations.open_annotations` and its windows refuse. Nothing is written then.
    """
    start = time.perf_counter()
    annotation = open_annotations(row, root, facts, image, scale, classes)
    if annotation is None:
        raise SlideError(
            "no labels are named",
            where=row.slide_id,
            expected="a label image or GeoJSON",
            hint="Give the experiment's labels",
            code="annotation_missing",
        )
    mpp_um = scale * facts.image(image).mpp_um
    with annotation, scratch_beside(labels_place) as scratch:
        shape, has_classes = annotation.shape, annotation.has_classes
        if patches is not None:
            check_frame(patches, shape, row.slide_id, "patches")
        for warning in annotation.warnings:
            _LOG.warning("%s: %s", row.slide_id, warning)
        attributes = {"encoder_notes": []} | dict(about)
        attributes |= {
            "schema": _SCHEMA,
            "slideloom_version": __version__,
            "slide_id": row.slide_id,
            "image": image,
            "scale": scale,
            "mpp_um": mpp_um,
            "height_px": shape[0],
            "width_px": shape[1],
            "heads": ["labels", "classes"] if has_classes else ["labels"],
            "encoder_weights": "labels",
            "warnings": list(annotation.warnings),
        }
        if patches is not None:
            attributes |= {"tile_px": patches.tile_px, "stride_px": patches.stride_px}
        with publish(maps_place) as draft:
            create_group(draft, attributes)
            taken = _take_in(annotation, _covered(patches), draft, scratch, workers)
            largest_px = LARGEST_NUCLEUS_UM2 / mpp_um**2
            pieces = instances_or_refuse(taken.given, where=f"{row.slide_id}, {row.instances}", largest_px=largest_px)
        files = {name: text for name in ("instances", "classes") if (text := getattr(row, name))}
        made_from = {"slide_id": row.slide_id, "labels": files, "maps": attributes}
        with publish(labels_place) as draft:
            write_labels(draft, shape, taken.read, mpp_um, attributes={"made_from": made_from}, workers=workers)
    labels, table = open_labels(labels_place), taken.table
    means = None
    if patches is not None and not patches.is_rgb:
        means = MarkerMeans.of(patches.channels, *marker_sums(labels, patches, len(table), workers=workers))
    figures = measured(
        labels,
        _planes(maps_place, shape, has_classes),
        table,
        n_classes=len(classes) + 1 if has_classes else 0,
        scale=scale,
        window_px=_MEASURED_PX,
        workers=workers,
    )
    write_cells(
        cells_place,
        row.slide_id,
        table,
        figures,
        classes if has_classes else None,
        means,
        scale=scale,
        image_mpp_um=facts.image(image).mpp_um,
        made_from=made_from,
        foreign=True,
    )
    took = time.perf_counter() - start
    _LOG.info("%s: %d nuclei taken in, %.1f Mpx in %.1f s", row.slide_id, pieces.n_ids, shape[0] * shape[1] / 1e6, took)
    return pieces.n_ids


def _planes(maps: Path, shape: tuple[int, int], has_classes: bool) -> dict[str, Any]:
    """The maps that nuclei are measured on; of how sure the other program was, nothing is known."""
    nothing = np.broadcast_to(np.uint8(0), shape)
    found: dict[str, Any] = {"nucleus": nothing}
    if has_classes:
        found |= {"class_id": open_array(maps / "class_id"), "class_probability": nothing}
    return found


@dataclass(frozen=True)
class _Taken:
    """Labels as they were given, and what becomes of them.

    Attributes
    ----------
    given : tensorstore.TensorStore
        (H, W) int32: the ids as they were given, in the grid frame.
    ids : (n,) int64 array
        These ids, rising.
    number : (n,) uint32 array
        What each becomes: 1 … n in raster order of first pixels.
    table : LabelTable
        Where they lie, by their numbers.
    """

    given: ts.TensorStore
    ids: NDArray[np.int64]
    number: NDArray[np.uint32]
    table: LabelTable

    def read(self, box: Box) -> NDArray[np.uint32]:
        """The final labels of a box."""
        labels = np.zeros((box.height, box.width), np.uint32)
        for part in _windows(box):
            _renumber(np.asarray(self.given[part.slices]), self.ids, self.number, labels[part.within(box)])
        return labels


@dataclass(frozen=True)
class _Window:
    """What was found in a window: ids, rising, and where they lie there."""

    ids: NDArray[np.int64]
    table: LabelTable


def _take_in(
    annotation: Annotation, covered: Callable[[Box], NDArray[np.uint8]], maps: Path, scratch: Path, workers: int
) -> _Taken:
    """Write labels down as they are given, and the maps; see :class:`_Taken`."""
    height, width = annotation.shape
    given = _create(scratch / "given", annotation.shape, np.int32)
    class_ids = _create(maps / "class_id", annotation.shape, np.uint8) if annotation.has_classes else None
    coverage = _create(maps / "covered", annotation.shape, np.uint8)

    def work(place: Box) -> _Window | None:
        coverage[place.slices].write(covered(place)).result()
        instances, class_map = annotation.read(place.slices)
        labels = np.ascontiguousarray(instances, np.uint32)
        ids = np.unique(label_runs(labels)).astype(np.int64)
        if not ids.size:
            return None
        given[place.slices].write(instances).result()
        if class_ids is not None:
            known = np.where(class_map == UNKNOWN_CLASS, np.uint8(0), class_map)
            class_ids[place.slices].write(known).result()
        local = np.zeros(labels.shape, np.int32)
        _renumber(labels, ids, np.arange(1, ids.size + 1, dtype=np.int32), local)
        return _Window(ids, label_table(local, ids.size, place, width))

    found = [window for window in in_order(work, _windows(Box(0, 0, height, width)), workers) if window is not None]
    every = np.concatenate([np.zeros(0, np.int64), *(window.ids for window in found)])
    ids = np.unique(every)
    joined = LabelTable.empty(ids.size)
    where = np.concatenate([[0], np.searchsorted(ids, every) + 1])
    joined.add(where, LabelTable.stack([window.table for window in found]))
    order = np.argsort(joined.first[1:])
    number = np.empty(ids.size, np.uint32)
    number[order] = np.arange(1, ids.size + 1)
    rows = np.concatenate([[0], order + 1])
    table = LabelTable(joined.first[rows], joined.area[rows], joined.box[rows])
    return _Taken(given, ids, number, table)


def _windows(frame: Box) -> Iterator[Box]:
    """Cut a frame into windows, row by row."""
    height, width = _WINDOW_PX
    for top in range(frame.top, frame.bottom, height):
        for left in range(frame.left, frame.right, width):
            yield Box(top, left, top + height, left + width).common(frame)


def _create(place: Path, shape: tuple[int, int], dtype: type[np.integer[Any]]) -> ts.TensorStore:
    """An array whose shards are the windows."""
    return create_array(
        place,
        shape,
        dtype,
        chunk=(_CHUNK_PX, _CHUNK_PX),
        shard=_WINDOW_PX,
        codec="labels",
        dimension_names=_AXES,
    )


def _covered(patches: PatchStore | None) -> Callable[[Box], NDArray[np.uint8]]:
    """A function that says where tiles lie in a box: 1 there, 0 elsewhere."""
    if patches is None:
        return lambda box: np.ones((box.height, box.width), np.uint8)
    top, left = patches.y_px, patches.x_px
    bottom, right = top + patches.height_valid, left + patches.width_valid

    def covered(box: Box) -> NDArray[np.uint8]:
        seen = np.zeros((box.height, box.width), np.uint8)
        touching = (top < box.bottom) & (bottom > box.top) & (left < box.right) & (right > box.left)
        for tile in np.flatnonzero(touching).tolist():
            lies = Box(int(top[tile]), int(left[tile]), int(bottom[tile]), int(right[tile])).common(box)
            seen[lies.within(box)] = 1
        return seen

    return covered


@numba.njit(nogil=True, cache=True)
def _renumber(values: Any, known: Any, numbers: Any, out: Any) -> None:
    """Write the number of each value into ``out``; ``known`` rises and holds every value but 0, which is left out."""
    height, width = values.shape
    for y in range(height):
        before, number = 0, 0
        for x in range(width):
            own = int(values[y, x])
            if own == 0:
                continue
            if own != before:
                before, number = own, int(numbers[position(known, own)])
            out[y, x] = number
