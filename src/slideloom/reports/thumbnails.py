"""Whole slides at a glance: the tissue's picture, and every experiment's nuclei on it in the colours of their classes.

All experiments' nuclei of a slide are drawn or none, so that the page can switch between experiments; which slides are
drawn is shared out fairly where the page would grow too large for all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from slideloom.artefacts.zarrio import open_array, read_attributes
from slideloom.errors import SlideError
from slideloom.reports.choices import rank_of
from slideloom.reports.crops import Overlay
from slideloom.reports.pictures import NO_NUCLEUS, class_dots, data_uri, dots_uri
from slideloom.reports.sources import OverlaySource
from slideloom.slides.facts import SlideFacts, load_facts
from slideloom.slides.tables import ClassTable

__all__ = ["Layer", "Mark", "SlideView", "draw_slides"]

_LOG = logging.getLogger(__name__)
#: Longer side of the tissue's picture, and of the dots where there is room for them.
_PICTURE_PX = 300
_SIDES_PX = (300, 240, 180, 120)
#: Up to this pixel size nuclei are drawn in their shapes, above as the most frequent class under each dot.
_SHAPES_UM = 3.0
_BATCH = 1 << 18
#: What the page writes for a slide and for a layer beside their pictures.
_SLIDE_BYTES, _LAYER_BYTES = 1600, 260
_UNKNOWN = 255


@dataclass(frozen=True)
class Layer:
    """One experiment's nuclei of a slide.

    Attributes
    ----------
    experiment, fold, role : str
        The run, and the slide's role in it; empty where it was not scored.
    n : int
        Nuclei.
    dots : str
        Transparent picture as data URI, over the whole slide.
    box : tuple of float
        Width and height of the predicted image, as shares of the picture's.
    """

    experiment: str
    fold: str
    role: str
    n: int
    dots: str
    box: tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """A place that the page shows close up: its number there (from 1), why, and its box as shares of the slide."""

    number: int
    kind: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class SlideView:
    """A slide.

    Attributes
    ----------
    slide_id, platform : str
        Which.
    width, height : int
        Size of the picture, pixels.
    width_um, height_um : float
        Size of the slide's reference image.
    picture : str
        Its tissue as data URI; empty where there is no thumbnail.
    layers : tuple of Layer
        Nuclei by experiment.
    marks : tuple of Mark
        Places shown close up.
    """

    slide_id: str
    platform: str
    width: int
    height: int
    width_um: float
    height_um: float
    picture: str
    layers: tuple[Layer, ...]
    marks: tuple[Mark, ...]

    @property
    def n_bytes(self) -> int:
        """About what it takes on the page."""
        layers = sum(len(layer.dots) + _LAYER_BYTES for layer in self.layers)
        return _SLIDE_BYTES + len(self.picture) + layers + 200 * len(self.marks)


def draw_slides(
    runs: Mapping[str, Mapping[str, tuple[OverlaySource, str]]],
    overlays: Sequence[Overlay],
    classes: ClassTable,
    budget_bytes: int,
) -> tuple[SlideView, ...]:
    """Draw as many slides as a number of bytes allows.

    Parameters
    ----------
    runs : mapping
        By slide, then by experiment, the run and the slide's role, as
        :func:`~slideloom.reports.choices.one_run_each` gives it.
    overlays : sequence of Overlay
        Places shown close up, in the page's order; their slides come first.
    classes : ClassTable
        For colours.
    budget_bytes : int
        For all of them together.

    Returns
    -------
    tuple of SlideView
        In the order of ``runs``. The experiment with the fewest slides so far chooses the next one: those shown close
        up before others, tested ones before those that chose the epoch, platforms in turn. The dots are coarser where
        that lets all slides in.
    """
    marks: dict[str, list[Mark]] = {}
    for number, overlay in enumerate(overlays, 1):
        marks.setdefault(overlay.slide_id, []).append(Mark(number, overlay.kind, overlay.box))
    order = list(_in_turns(runs, marks))
    drawn: dict[str, SlideView] = {}
    left, side = budget_bytes, 0
    for slide in order:
        try:
            if not side:
                side, view = _first_view(runs[slide], classes, tuple(marks.get(slide, ())), budget_bytes // len(order))
            else:
                view = _draw(runs[slide], classes, tuple(marks.get(slide, ())), side)
        except (SlideError, OSError) as error:
            _LOG.warning("no picture of %s: %s", slide, error)
            continue
        if view.n_bytes > left:
            break
        left -= view.n_bytes
        drawn[slide] = view
    return tuple(drawn[slide] for slide in runs if slide in drawn)


def _in_turns(
    runs: Mapping[str, Mapping[str, tuple[OverlaySource, str]]], marks: Mapping[str, Sequence[Mark]]
) -> Iterator[str]:
    """Slides in the order that experiments choose them; the one with the fewest slides so far has the next choice."""
    seen_of: dict[str, int] = {}
    wish: dict[str, list[tuple[tuple[int, int, int, int], str]]] = {}
    for position, (slide, of_slide) in enumerate(runs.items()):
        platform = next(iter(of_slide.values()))[0].row.platform
        turn = seen_of[platform] = seen_of.get(platform, -1) + 1
        for experiment, (_, role) in of_slide.items():
            wish.setdefault(experiment, []).append(((slide not in marks, rank_of(role), turn, position), slide))
    queues = {experiment: [slide for _, slide in sorted(wishes, reverse=True)] for experiment, wishes in wish.items()}
    shown = dict.fromkeys(queues, 0)
    done: set[str] = set()
    while queues:
        experiment = min(queues, key=shown.__getitem__)
        queue = queues[experiment]
        while queue and queue[-1] in done:
            queue.pop()
        if not queue:
            del queues[experiment]
            continue
        slide = queue.pop()
        done.add(slide)
        for one in runs[slide]:
            shown[one] += 1
        yield slide


def _first_view(
    of_slide: Mapping[str, tuple[OverlaySource, str]], classes: ClassTable, marks: tuple[Mark, ...], share: int
) -> tuple[int, SlideView]:
    """The first slide, with the finest dots of which every slide could have as many; the coarsest if none fit."""
    for side in _SIDES_PX:
        view = _draw(of_slide, classes, marks, side)
        if view.n_bytes <= share:
            break
    return side, view


def _draw(
    of_slide: Mapping[str, tuple[OverlaySource, str]], classes: ClassTable, marks: tuple[Mark, ...], side: int
) -> SlideView:
    source = next(iter(of_slide.values()))[0]
    facts = load_facts(source.facts)
    reference = facts.images[facts.reference]
    extent = reference.height_px * reference.mpp_um, reference.width_px * reference.mpp_um
    longest = _PICTURE_PX / max(extent)
    height, width = (max(1, round(length * longest)) for length in extent)
    thumbnail = next((one.thumbnail for one, _ in of_slide.values() if one.thumbnail is not None), None)
    picture = _shrunk(thumbnail, (width, height)) if thumbnail is not None else ""
    layers = [
        Layer(experiment, run.fold, role, *_dots(run, facts, classes, side))
        for experiment, (run, role) in of_slide.items()
    ]
    row = source.row
    return SlideView(row.slide_id, row.platform, width, height, extent[1], extent[0], picture, tuple(layers), marks)


def _shrunk(path: Path, size: tuple[int, int]) -> str:
    """A picture file at another size, (width, height), as data URI."""
    with Image.open(path) as image:
        small = image.convert("RGB").resize(size, Image.Resampling.BOX)
    return data_uri(np.asarray(small), "JPEG", 70)


def _dots(
    source: OverlaySource, facts: SlideFacts, classes: ClassTable, side: int
) -> tuple[int, str, tuple[float, float]]:
    """Number of a run's nuclei, its dots as data URI, and the predicted image's width and height in pictures."""
    image, reference = facts.image(source.image), facts.images[facts.reference]
    extent = image.height_px * image.mpp_um, image.width_px * image.mpp_um
    step_um = max(extent) / side
    size = max(1, round(extent[0] / step_um)), max(1, round(extent[1] / step_um))
    box = extent[1] / (reference.width_px * reference.mpp_um), extent[0] / (reference.height_px * reference.mpp_um)
    if not source.cells.is_file():
        return 0, dots_uri(np.full((1, 1), NO_NUCLEUS, np.uint8), classes), box
    n = pq.read_metadata(source.cells).num_rows
    if step_um <= _SHAPES_UM:
        dots = _shapes(source, size, classes)
    else:
        dots = _centroids(source, size, (image.height_px, image.width_px), classes)
    return n, dots_uri(dots, classes), box


def _batches(path: Path, columns: Sequence[str]) -> Iterator[dict[str, NDArray[np.float64]]]:
    """Columns of the cell table, part by part; class 0 where there is none."""
    with pq.ParquetFile(path) as file:
        present = [name for name in columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(_BATCH, columns=present):
            part = {name: batch[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in present}
            part["class_id"] = np.nan_to_num(part.get("class_id", np.zeros(batch.num_rows)))
            yield part


def _centroids(
    source: OverlaySource, size: tuple[int, int], shape: tuple[int, int], classes: ClassTable
) -> NDArray[np.uint8]:
    """The most frequent class of the nuclei under each dot; ``shape`` is the image's, level-0 pixels."""
    column_of = _columns(classes)
    counts = np.zeros((1 + len(classes.ids), *size), np.int64)
    for part in _batches(source.cells, ("x_px", "y_px", "class_id")):
        y = (part["y_px"] * (size[0] / shape[0])).astype(np.int64).clip(0, size[0] - 1)
        x = (part["x_px"] * (size[1] / shape[1])).astype(np.int64).clip(0, size[1] - 1)
        np.add.at(counts, (column_of[part["class_id"].astype(np.int64)], y, x), 1)
    return class_dots(counts, classes.ids)


def _shapes(source: OverlaySource, size: tuple[int, int], classes: ClassTable) -> NDArray[np.uint8]:
    """The class of the nucleus at each dot's centre, from the coarsest label image that is as fine as the dots."""
    levels = read_attributes(source.labels)["ome"]["multiscales"][0]["datasets"]
    arrays = [open_array(source.labels / level["path"]) for level in levels]
    fine = [array for array in arrays if all(have >= want for have, want in zip(array.shape, size, strict=True))]
    array = fine[-1] if fine else arrays[0]
    labels = np.asarray(array)
    at = [
        ((np.arange(want) + 0.5) * (have / want)).astype(np.int64)
        for have, want in zip(labels.shape, size, strict=True)
    ]
    picked = labels[np.ix_(*at)]
    column_of, ids = _columns(classes), np.array([0, *classes.ids], np.uint8)
    dots = np.where(picked > 0, 0, NO_NUCLEUS).astype(np.uint8)
    for part in _batches(source.cells, ("cell_id", "class_id")):
        order = np.argsort(part["cell_id"], kind="stable")
        cell_ids = part["cell_id"][order]
        found = np.searchsorted(cell_ids, picked).clip(0, max(0, cell_ids.size - 1))
        known = (cell_ids[found] == picked) & (picked > 0) if cell_ids.size else np.zeros(picked.shape, bool)
        own = ids[column_of[part["class_id"][order].astype(np.int64)]]
        dots[known] = own[found[known]]
    return dots


def _columns(classes: ClassTable) -> NDArray[np.int64]:
    """Position of each class id among the counts: 0 for those that are no class."""
    column_of = np.zeros(256, np.int64)
    column_of[list(classes.ids)] = np.arange(1, 1 + len(classes.ids))
    return column_of
