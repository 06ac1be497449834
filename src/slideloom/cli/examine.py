"""Open every slide of a study without running anything, and say which will fail, and why.

Headers, and a glimpse at the overview; every pixel and annotation only where that is asked for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast
from warnings import catch_warnings, simplefilter

from slideloom.cli.processes import in_processes
from slideloom.cli.slide_report import Fault, ImageReport, SlideReport
from slideloom.config.model import GridConfig, Modality
from slideloom.errors import SlideError
from slideloom.slides.external import external_rows
from slideloom.slides.sheet import SlideRow, parse_source
from slideloom.slides.study import Study
from slideloom.slides.tables import ClassTable, MarkerTable
from slideloom.workflow.plan import Plan

if TYPE_CHECKING:
    from slideloom.cli.glimpse import Glimpse, Wanted
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
    #: What the run will ask of its tissue.
    tissue: Wanted
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
    grids = {name: study.config.grids[name] for name in Plan(study, Path()).used_grids()}
    tasks = [_task(study, row, deep, grids, embedded, others) for row in study.rows]
    count = min(workers or min(8, os.cpu_count() or 1), len(tasks))
    if count <= 1:
        yield from map(_examine, tasks)
        return
    yield from in_processes(_examine, tasks, count, _lost)


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


def _task(
    study: Study,
    row: SlideRow,
    deep: bool,
    grids: Mapping[str, GridConfig],
    embedded: Mapping[str, _Embedded],
    others: _Others,
) -> _Task:
    from slideloom.cli.glimpse import Wanted

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
    tissue = Wanted(study.config.tissue, grids, study.paths.tissue(row.slide_id).parent)
    return _Task(row, study.data_root, study.markers, study.classes, deep, tissue, wanted, concerned, own)


def _lost(task: _Task) -> SlideReport:
    """A slide whose reading ends the process that does it."""
    hint = "The file is damaged in a way that its library does not survive; write it anew"
    what = "reading it ends the process"
    return _report(task.row, [_fault(SlideError(what, where=task.row.slide_id, hint=hint, code="reader_crashed"))])


def _report(
    row: SlideRow,
    faults: Iterable[Fault],
    images: Iterable[ImageReport] = (),
    annotation: tuple[int, int] | None = None,
    n_annotated: int | None = None,
    warnings: Iterable[str] = (),
    tiles: Mapping[str, int] = MappingProxyType({}),
) -> SlideReport:
    unseen = (ImageReport(name, text) for name in _MODALITIES if (text := getattr(row, name)))
    return SlideReport(
        row.slide_id,
        row.patient_id,
        row.platform,
        tuple(images) or tuple(unseen),
        annotation,
        n_annotated,
        tuple(dict.fromkeys(faults)),
        tuple(dict.fromkeys(warnings)),
        dict(tiles),
        bool(row.instances),
    )


def _examine(task: _Task) -> SlideReport:
    row = task.row
    for library in ("slideloom", "tifffile"):  # what they would log stands in the report
        logging.getLogger(library).addHandler(_QUIET)
    try:
        with catch_warnings():
            simplefilter("ignore")
            return _look(task)
    except OSError as error:
        return _report(row, [_of_machine(row, error)])
    except Exception as error:
        return _report(row, [_unforeseen(row, error)])


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
    seen = _glimpse(task, facts)
    faults += seen.faults
    warnings = [*facts.warnings, *dropped, *_cell_remarks(task, facts)]
    if task.deep:
        found, count, more = _read_everything(task, facts)
        faults += found
        warnings += more
    return _report(row, faults, images, annotation, count, warnings, seen.tiles)


def _facts(task: _Task, row: SlideRow) -> SlideFacts:
    from slideloom.slides.headers import read_facts

    return read_facts(row, task.root, task.markers, digests=False)


def _cell_remarks(task: _Task, facts: SlideFacts) -> tuple[str, ...]:
    from slideloom.slides.cell_annotation import cell_remarks

    return cell_remarks(task.row, task.root, facts, whole=task.deep)


def _glimpse(task: _Task, facts: SlideFacts) -> Glimpse:
    from slideloom.cli.glimpse import glimpse

    return glimpse(task.row, task.root, facts, task.tissue)


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


def _of_machine(row: SlideRow, error: OSError) -> Fault:
    """What readers do not put down to the file: the disk, the network, too many open files."""
    what = f"{error.filename or 'its files'}: {error.strerror or error}"
    hint = "The disk or the network did not answer. Try again; if it stays, copy the file anew"
    return _fault(SlideError(what, where=row.slide_id, hint=hint, code="unreadable"))


def _unforeseen(row: SlideRow, error: Exception) -> Fault:
    hint = "This is a defect of Slideloom. Please report it, with the file if you may"
    return _fault(SlideError(f"{type(error).__name__}: {error}", where=row.slide_id, hint=hint, code="internal"))


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
    import numpy as np

    from slideloom.slides.annotations import read_annotations

    faults: list[Fault] = []
    warnings: list[str] = []
    for modality in facts.images:
        try:
            warnings += _read_pixels(task, cast("Modality", modality))
        except SlideError as error:
            faults.append(_fault(error))
        except Exception as error:
            faults.append(_unforeseen(task.row, error))
    try:
        found = read_annotations(task.row, task.root, facts, facts.reference, 1.0, task.classes)
    except SlideError as error:
        return [*faults, _fault(error)], None, warnings
    if found is None:
        return faults, None, warnings
    maps, more = found
    return faults, int(np.count_nonzero(np.unique(maps.instances))), [*warnings, *more]


def _read_pixels(task: _Task, modality: Modality) -> list[str]:
    """Read level 0 once, in bands of full rows where they fit into memory; returns what is worth knowing."""
    import numpy as np

    from slideloom.slides.open import open_image

    undefined = 0
    with open_image(parse_source(str(getattr(task.row, modality)), task.root), modality) as image:
        row_bytes = image.width_px * image.n_channels * image.dtype.itemsize
        band_px = max(1, min(image.height_px, _WINDOW_BYTES // row_bytes))
        for y_px in range(0, image.height_px, band_px):
            band = image.read(0, y_px, 0, min(band_px, image.height_px - y_px), image.width_px)
            undefined += 0 if band.dtype.kind != "f" else int(np.count_nonzero(~np.isfinite(band)))
    if not undefined:
        return []
    # Whether they lie in tissue, where they count, the patches will tell.
    return [
        f"{modality}: {undefined} values are NaN or infinite; the slide fails (non_finite_pixels) if tissue has any"
    ]
