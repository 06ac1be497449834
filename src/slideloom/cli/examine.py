"""Open every slide of a study without running anything, and say which will fail, and why."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, cast

from slideloom.cli.slide_report import Fault, ImageReport, SlideReport
from slideloom.config.model import GridConfig, Modality
from slideloom.errors import SlideError
from slideloom.slides.external import external_rows
from slideloom.slides.sheet import SlideRow, parse_source
from slideloom.slides.study import Study
from slideloom.slides.tables import ClassTable, MarkerTable

if TYPE_CHECKING:
    from slideloom.slides.facts import SlideFacts

__all__ = ["examine"]

_QUIET = logging.NullHandler()
_WINDOW_BYTES = 64 * 1024 * 1024
_MODALITIES: tuple[Modality, ...] = ("he", "sp")
_Others = Mapping[str, Mapping[str, tuple[SlideRow, GridConfig]]]


@dataclass(frozen=True)
class _Task:
    row: SlideRow
    root: Path
    markers: MarkerTable
    classes: ClassTable
    deep: bool
    #: Markers that each experiment asks of this slide's sp image.
    wanted: Mapping[str, Sequence[str]] = field(default_factory=dict)
    #: By name, the encoders that read it and need an embedding of every marker.
    embedded: Mapping[str, _Embedded] = field(default_factory=dict)
    #: By experiment, nuclei of another program in place of the annotation, and the grid that they lie on.
    others: Mapping[str, tuple[SlideRow, GridConfig]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Embedded:
    """Which markers an encoder reads (empty: all), their accessions, and for which of these there is a vector."""

    markers: Sequence[str]
    accessions: Mapping[str, str]
    vectors: frozenset[str]
    drops: bool

    def lacking(self, has: Sequence[str]) -> tuple[str, ...]:
        """Markers of a slide that it reads and has no vector for."""
        read = dict.fromkeys(marker for marker in has if not self.markers or marker in self.markers)
        return tuple(marker for marker in read if self.accessions.get(marker) not in self.vectors)


def examine(study: Study, *, deep: bool = False, workers: int | None = None) -> Iterator[SlideReport]:
    """Examine every slide of a study, as they come.

    Parameters
    ----------
    study : Study
        The checked study.
    deep : bool
        Also read every pixel and every annotation once.
    workers : int, optional
        Processes; as many as there are cores, at most 8, when left out. A file that crashes its reader spoils its own
        slide only.

    Yields
    ------
    SlideReport
        One a slide, in the order in which they are done.
    """
    embedded = _embedded(study)
    others = external_rows(study.rows, study.config)
    tasks = [_task(study, row, deep, embedded, others) for row in study.rows]
    count = min(workers or min(8, os.cpu_count() or 1), len(tasks))
    if count <= 1:
        yield from map(_examine, tasks)
        return
    yield from _in_processes(tasks, count)


def _embedded(study: Study) -> dict[str, _Embedded]:
    from slideloom.encoders.checkpoints.files import vector_names

    table = {channel.marker: channel.uniprot for channel in study.markers.channels if channel.uniprot}
    used = {name for experiment in study.config.experiments.values() for name in experiment.encoder}
    found = {}
    for name, encoder in study.config.encoders.items():
        if name in used and encoder.marker_embeddings is not None:
            accessions = table | encoder.marker_ids
            vectors = vector_names(study.base / encoder.marker_embeddings)
            found[name] = _Embedded(encoder.markers, accessions, vectors, encoder.unknown_markers == "drop")
    return found


def _task(study: Study, row: SlideRow, deep: bool, embedded: Mapping[str, _Embedded], others: _Others) -> _Task:
    wanted: dict[str, Sequence[str]] = {}
    readers: set[str] = set()
    for name, experiment in study.config.experiments.items():
        platforms = study.config.splits[experiment.split].platforms
        images = study.images_of(name)
        if (platforms and row.platform not in platforms) or not all(getattr(row, image) for image in images):
            continue
        sp = [encoder for encoder in experiment.encoder if study.image_of(encoder) == "sp"]
        readers.update(sp)
        markers = dict.fromkeys(marker for encoder in sp for marker in study.config.encoders[encoder].markers)
        if markers:
            wanted[name] = tuple(markers)
    concerned = {name: one for name, one in embedded.items() if name in readers}
    own = others.get(row.slide_id, {})
    return _Task(row, study.data_root, study.markers, study.classes, deep, wanted, concerned, own)


def _in_processes(tasks: Sequence[_Task], count: int) -> Iterator[SlideReport]:
    """Share the tasks out; after a crash, try each unfinished one in a process of its own to find the culprit."""
    left = {task.row.slide_id: task for task in tasks}
    context = get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool, suppress(BrokenProcessPool):
        futures: list[Future[SlideReport]] = [pool.submit(_examine, task) for task in tasks]
        for future in as_completed(futures):
            report = future.result()
            del left[report.slide_id]
            yield report
    for task in left.values():
        try:
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                report = pool.submit(_examine, task).result()
        except BrokenProcessPool:
            hint = "The file is damaged in a way that its library does not survive; write it anew"
            report = _report(task.row, [Fault("reader_crashed", "reading it ends the process", hint)])
        yield report


def _report(
    row: SlideRow,
    faults: Iterable[Fault],
    images: Iterable[ImageReport] = (),
    annotation: tuple[int, int] | None = None,
    n_annotated: int | None = None,
    warnings: Iterable[str] = (),
) -> SlideReport:
    return SlideReport(
        row.slide_id,
        row.patient_id,
        row.platform,
        tuple(images),
        annotation,
        n_annotated,
        tuple(faults),
        tuple(dict.fromkeys(warnings)),
    )


def _examine(task: _Task) -> SlideReport:
    row = task.row
    for library in ("slideloom", "tifffile"):  # what they would log stands in the report
        logging.getLogger(library).addHandler(_QUIET)
    try:
        return _look(task)
    except Exception as error:
        return _report(row, [_unforeseen(error)])


def _look(task: _Task) -> SlideReport:
    row = task.row
    try:
        facts = _facts(task, row)
    except SlideError as error:
        return _pieces(task, error)
    images = [_image_report(facts, modality) for modality in _MODALITIES if modality in facts.images]
    unknown, dropped = _without_embedding(task, images)
    faults = [*_missing_markers(task, images), *unknown, *_others(task, facts)]
    annotation, count = _annotation_shape(task), None
    warnings = [*facts.warnings, *dropped]
    if task.deep:
        found, count, more = _read_everything(task, facts)
        faults += found
        warnings += more
    return _report(row, faults, images, annotation, count, warnings)


def _facts(task: _Task, row: SlideRow) -> SlideFacts:
    from slideloom.slides.headers import read_facts

    return read_facts(row, task.root, task.markers, digests=False)


def _pieces(task: _Task, first: SlideError) -> SlideReport:
    """A slide fails at its first fault; look at its images and annotations one by one for the others."""
    row = task.row
    faults = {first.what: _fault(first)}
    images: list[ImageReport] = []
    for modality in _MODALITIES:
        if not getattr(row, modality):
            continue
        he, sp = (row.he, None) if modality == "he" else (None, row.sp)
        alone = replace(row, he=he, sp=sp, instances=None, classes=None)
        try:
            images.append(_image_report(_facts(task, alone), modality))
        except SlideError as error:
            faults.setdefault(error.what, _fault(error))
            images.append(_header(task, modality))
    with suppress(SlideError):
        return _report(row, faults.values(), images, _annotation_shape(task))
    return _report(row, faults.values(), images)


def _fault(error: SlideError) -> Fault:
    return Fault(error.code, error.message, error.hint)


def _unforeseen(error: Exception) -> Fault:
    return Fault("internal", f"{type(error).__name__}: {error}", "Please report it")


def _header(task: _Task, modality: Modality) -> ImageReport:
    from slideloom.slides.open import open_image

    text = str(getattr(task.row, modality))
    try:
        with open_image(parse_source(text, task.root), modality) as image:
            return ImageReport(
                image=modality,
                source=text,
                reader=image.reader,
                height_px=image.height_px,
                width_px=image.width_px,
                n_channels=image.n_channels,
                dtype=str(image.dtype),
                channels=image.channel_names or (),
            )
    except SlideError:
        return ImageReport(modality, text)


def _image_report(facts: SlideFacts, modality: Modality) -> ImageReport:
    one = facts.images[modality]
    return ImageReport(
        image=modality,
        source=one.source,
        reader=one.reader,
        height_px=one.height_px,
        width_px=one.width_px,
        n_channels=one.n_channels,
        dtype=one.dtype,
        mpp_um=one.mpp_um,
        mpp_source=one.mpp_source,
        channels=tuple(channel.name for channel in one.channels),
        markers=tuple(channel.marker for channel in one.channels if channel.marker),
    )


def _missing_markers(task: _Task, images: Sequence[ImageReport]) -> Iterator[Fault]:
    has = next((image.markers for image in images if image.image == "sp"), ())
    by_lack: dict[tuple[str, ...], list[str]] = {}
    for experiment, markers in task.wanted.items():
        lack = tuple(marker for marker in markers if marker not in has)
        if lack:
            by_lack.setdefault(lack, []).append(experiment)
    for lack, experiments in by_lack.items():
        message = f"the image has no {', '.join(lack)}, which {', '.join(experiments)} reads"
        hint = f"It has: {', '.join(has)}. Leave its platform out of the split, or the marker out of the encoder"
        yield Fault("missing_marker", message, hint)


def _without_embedding(task: _Task, images: Sequence[ImageReport]) -> tuple[list[Fault], list[str]]:
    """Markers that encoders read and know nothing of: faults, or notes where they are dropped on purpose."""
    has = next((image.markers for image in images if image.image == "sp"), ())
    faults, notes = [], []
    for name, one in task.embedded.items():
        lacking = one.lacking(has)
        if lacking and one.drops:
            notes.append(f"encoder {name} drops {', '.join(lacking)}: no embedding of the marker's protein")
        elif lacking:
            message = f"encoder {name} has no embedding of {', '.join(lacking)}"
            ids = f"{{{lacking[0]}: <accession>}}"
            hint = (
                f"Name the protein (column uniprot, or marker_ids: {ids}), add its vector, or drop it (unknown_markers)"
            )
            faults.append(Fault("marker_embedding", message, hint))
    return faults, notes


def _others(task: _Task, facts: SlideFacts) -> Iterator[Fault]:
    """What is wrong with nuclei that other programs found."""
    from slideloom.slides.headers import look_at_external

    for experiment, (row, grid) in task.others.items():
        try:
            look_at_external(row, task.root, facts, grid)
        except SlideError as error:
            yield Fault(error.code, f"experiment {experiment}: {error.message}", error.hint)


def _annotation_shape(task: _Task) -> tuple[int, int] | None:
    from slideloom.slides.geojson_text import is_geojson
    from slideloom.slides.labels import label_shape

    source = parse_source(task.row.instances, task.root) if task.row.instances else None
    return None if source is None or is_geojson(source) else label_shape(source)


def _read_everything(task: _Task, facts: SlideFacts) -> tuple[list[Fault], int | None, list[str]]:
    from slideloom.slides.annotations import read_annotations

    faults: list[Fault] = []
    for modality in facts.images:
        try:
            _read_pixels(task, cast("Modality", modality))
        except SlideError as error:
            faults.append(_fault(error))
        except Exception as error:
            faults.append(_unforeseen(error))
    try:
        found = read_annotations(task.row, task.root, facts, facts.reference, 1.0, task.classes)
    except SlideError as error:
        return [*faults, _fault(error)], None, []
    if found is None:
        return faults, None, []
    import numpy as np

    maps, warnings = found
    return faults, int(np.count_nonzero(np.unique(maps.instances))), list(warnings)


def _read_pixels(task: _Task, modality: Modality) -> None:
    """Read level 0 once, in bands of full rows where they fit into memory."""
    from slideloom.slides.open import open_image

    with open_image(parse_source(str(getattr(task.row, modality)), task.root), modality) as image:
        row_bytes = image.width_px * image.n_channels * image.dtype.itemsize
        band_px = max(1, min(image.height_px, _WINDOW_BYTES // row_bytes))
        for y_px in range(0, image.height_px, band_px):
            image.read(0, y_px, 0, min(band_px, image.height_px - y_px), image.width_px)
