"""Pictures of what was found: a crop of a slide with the outlines of true and of predicted nuclei.

The pixels are one small JPEG, the outlines are vectors: the report can switch them on and off, they stay sharp on
paper, and each tells about its nucleus when it is pointed at. Only the crop's pixels are read, whatever the slide's
size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from slideloom.artefacts.zarrio import read_attributes
from slideloom.config.model import Modality
from slideloom.errors import SlideError
from slideloom.instances.labels import open_labels
from slideloom.metrics.contingency import PairCounter, contingency, majority
from slideloom.metrics.panoptic import matched_pairs
from slideloom.metrics.semantic import UNKNOWN
from slideloom.reports.pictures import data_uri, false_colour, outlines, overview_picture
from slideloom.slides.annotations import AnnotationMaps, slide_annotations
from slideloom.slides.facts import image_source, load_facts
from slideloom.slides.open import open_image
from slideloom.slides.region import read_region
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import ClassTable

__all__ = ["Nucleus", "Overlay", "OverlaySource", "choose_overlays", "draw_overlay", "draw_overlays"]

_LOG = logging.getLogger(__name__)
_CROP_PX = 384
#: Pictures an experiment, and up to how many experiments; of more there is one each, or the page would not load.
_SHOWN, _MANY = 3, 8


@dataclass(frozen=True)
class OverlaySource:
    """What an overlay is drawn from.

    Attributes
    ----------
    experiment, fold : str
        The run.
    image : {"he", "sp"}
        The image that it predicts.
    row : SlideRow
        The slide.
    root : Path
        Folder that the sheet's paths start from.
    facts, maps, labels, cells : Path
        Artefacts of the slide; ``cells`` is the cell table.
    """

    experiment: str
    fold: str
    image: Modality
    row: SlideRow
    root: Path
    facts: Path
    maps: Path
    labels: Path
    cells: Path


@dataclass(frozen=True)
class Nucleus:
    """One outline.

    Attributes
    ----------
    path : str
        SVG path in pixels of the crop.
    class_id : int
        0 background, 255 unknown.
    state : {"hit", "other_class", "false", "missed", "plain"}
        How it compares with the other side; ``plain`` where nothing can be compared.
    title : str
        A line about it.
    """

    path: str
    class_id: int
    state: str
    title: str


@dataclass(frozen=True)
class Overlay:
    """A crop with its outlines.

    Attributes
    ----------
    experiment, fold, slide_id : str
        What it shows.
    width, height : int
        Size of the crop, pixels of the grid.
    x_px, y_px : int
        Its upper left corner on the slide, pixels of the grid.
    mpp_um : float
        Pixel size, µm.
    picture : str
        The crop as data URI (JPEG).
    colours : str
        What the picture's colours mean.
    overview : str
        The whole slide, a dot a predicted nucleus, as data URI (PNG).
    overview_box : tuple of float
        x, y, width, height of the crop in the overview, as shares of its size.
    overview_size : tuple of int
        Width and height of the overview.
    predicted : tuple of Nucleus
        Outlines found.
    true : tuple of Nucleus or None
        Outlines annotated; ``None`` without annotation.
    """

    experiment: str
    fold: str
    slide_id: str
    width: int
    height: int
    x_px: int
    y_px: int
    mpp_um: float
    picture: str
    colours: str
    overview: str
    overview_box: tuple[float, float, float, float]
    overview_size: tuple[int, int]
    predicted: tuple[Nucleus, ...]
    true: tuple[Nucleus, ...] | None = field(default=None)


def choose_overlays(
    slides: Sequence[Mapping[str, Any]], sources: Sequence[OverlaySource], per_experiment: int | None = None
) -> list[OverlaySource]:
    """Choose the slides to show: from the worst to the best PQ, the same slides for every experiment where it can be.

    Parameters
    ----------
    slides : sequence of mapping
        Rows of ``slides.parquet``.
    sources : sequence of OverlaySource
        What could be shown.
    per_experiment : int, optional
        At most so many each, 3 when left out, or 1 of more than 8 experiments; scored slides come first, those with
        role test before others.

    Returns
    -------
    list of OverlaySource
        By experiment, in the order of ``sources``, best PQ first.
    """
    score = {(row["experiment"], row["fold"], row["slide_id"]): row for row in slides}
    experiments = dict.fromkeys(source.experiment for source in sources)
    most = per_experiment or (_SHOWN if len(experiments) <= _MANY else 1)

    def quality(source: OverlaySource) -> tuple[int, float]:
        row = score.get((source.experiment, source.fold, source.row.slide_id))
        if row is None or row["pq"] is None:
            return 2, 0.0
        return (0 if row["role"] == "test" else 1), -row["pq"]

    shown: list[str] = []
    result: list[OverlaySource] = []
    for experiment in experiments:
        own = sorted((s for s in sources if s.experiment == experiment), key=lambda s: (quality(s), s.row.slide_id))
        rank = quality(own[0])[0]
        first = [source for source in own if quality(source)[0] == rank]
        spread = np.linspace(0, len(first) - 1, min(most, len(first))).round().astype(int)
        wanted = [s for s in own if s.row.slide_id in shown] + [first[k] for k in dict.fromkeys(spread)] + own
        chosen: dict[str, OverlaySource] = {}
        for source in wanted:
            if len(chosen) < most:
                chosen.setdefault(source.row.slide_id, source)
        shown += [slide for slide in chosen if slide not in shown]
        result += sorted(chosen.values(), key=lambda s: (quality(s), s.row.slide_id))
    return result


def draw_overlays(sources: Iterable[OverlaySource], classes: ClassTable, crop_px: int = _CROP_PX) -> list[Overlay]:
    """Draw overlays; one that cannot be drawn is logged and left out."""
    drawn = []
    for source in sources:
        try:
            drawn.append(draw_overlay(source, classes, crop_px))
        except (SlideError, OSError) as error:
            _LOG.warning("no overlay of %s, %s: %s", source.row.slide_id, source.experiment, error)
    return drawn


def draw_overlay(source: OverlaySource, classes: ClassTable, crop_px: int = _CROP_PX) -> Overlay:
    """Draw the part of a slide where its nuclei, the true ones if there are any, stand closest.

    Parameters
    ----------
    source : OverlaySource
        What to draw.
    classes : ClassTable
        For names.
    crop_px : int
        Side of the crop in pixels of the grid, at most 512.

    Returns
    -------
    Overlay
    """
    side = min(crop_px, 512)
    attributes = read_attributes(source.maps)
    scale, size = float(attributes["scale"]), (int(attributes["height_px"]), int(attributes["width_px"]))
    facts = load_facts(source.facts)
    truth = slide_annotations(source.row, source.root, facts, source.image, scale, classes)
    cells = _read_cells(source.cells)
    centre_y, centre_x = cells["y_px"] / scale, cells["x_px"] / scale
    y, x = _densest(size, side, truth, centre_y, centre_x)
    height, width = min(side, size[0]), min(side, size[1])
    window = slice(y, y + height), slice(x, x + width)
    labels = np.asarray(open_labels(source.labels)[window]).astype(np.int64)
    about = facts.image(source.image)
    with open_image(image_source(source.row, source.image, source.root), source.image) as image:
        pixels = read_region(image, y, x, height, width, scale, 255 if about.is_rgb else 0)
    picture, colours = false_colour(pixels, about.channels, about.is_rgb)
    predicted, true = _compare(labels, truth, window, cells, classes)
    overview = overview_picture(size, centre_y, centre_x, cells["class_id"], classes)
    return Overlay(
        experiment=source.experiment,
        fold=source.fold,
        slide_id=source.row.slide_id,
        width=width,
        height=height,
        x_px=x,
        y_px=y,
        mpp_um=float(attributes["mpp_um"]),
        picture=data_uri(picture, "JPEG"),
        colours=colours,
        overview=data_uri(overview, "PNG"),
        overview_box=(x / size[1], y / size[0], width / size[1], height / size[0]),
        overview_size=(overview.shape[1], overview.shape[0]),
        predicted=predicted,
        true=true,
    )


def _read_cells(path: Path) -> dict[str, NDArray[Any]]:
    """Columns of the cell table that an overlay needs; empty arrays where there is no table."""
    wanted = {
        "cell_id": np.int64,
        "x_px": np.float64,
        "y_px": np.float64,
        "class_id": np.uint8,
        "class_probability": float,
    }
    if not path.is_file():
        return {name: np.empty(0, kind) for name, kind in wanted.items()}
    present = set(pq.read_schema(path).names)
    table = pq.read_table(path, columns=[name for name in wanted if name in present], partitioning=None)
    result: dict[str, NDArray[Any]] = {}
    for name, kind in wanted.items():
        if name in present:
            result[name] = table.column(name).to_numpy(zero_copy_only=False)
        else:
            result[name] = np.zeros(table.num_rows, kind)
    missing = np.isnan(result["class_id"].astype(np.float64))
    result["class_id"] = np.where(missing, 0, result["class_id"]).astype(np.uint8)
    return result


def _densest(
    size: tuple[int, int],
    side: int,
    truth: AnnotationMaps | None,
    centre_y: NDArray[np.float64],
    centre_x: NDArray[np.float64],
) -> tuple[int, int]:
    """Upper left corner of the window with most nuclei, on a lattice of a quarter window."""
    step = max(1, side // 4)
    rows, cols = -(-size[0] // step), -(-size[1] // step)
    count = np.zeros((rows, cols))
    if truth is not None and truth.instances.any():
        for row in range(rows):
            band = (truth.instances[row * step : (row + 1) * step] > 0).sum(axis=0)
            count[row] = np.add.reduceat(band, np.arange(0, size[1], step))
    else:
        at = (centre_y / step).astype(int).clip(0, rows - 1), (centre_x / step).astype(int).clip(0, cols - 1)
        np.add.at(count, at, 1)
    total = np.zeros((rows + 1, cols + 1))
    total[1:, 1:] = count.cumsum(axis=0).cumsum(axis=1)
    deep, wide = min(4, rows), min(4, cols)
    window = total[deep:, wide:] - total[:-deep, wide:] - total[deep:, :-wide] + total[:-deep, :-wide]
    top, left = divmod(int(window.argmax()), window.shape[1])
    return min(top * step, max(0, size[0] - side)), min(left * step, max(0, size[1] - side))


def _compare(
    labels: NDArray[np.int64],
    truth: AnnotationMaps | None,
    window: tuple[slice, slice],
    cells: Mapping[str, NDArray[Any]],
    classes: ClassTable,
) -> tuple[tuple[Nucleus, ...], tuple[Nucleus, ...] | None]:
    names = {0: "no class", UNKNOWN: "class unknown", **dict(zip(classes.ids, classes.names, strict=True))}
    at = {int(cell): k for k, cell in enumerate(cells["cell_id"])}
    class_of = {label: int(cells["class_id"][at[label]]) if label in at else 0 for label in np.unique(labels).tolist()}

    def found(label: int) -> str:
        share = float(cells["class_probability"][at[label]]) if label in at else 0.0
        return f"predicted {label}: {names.get(class_of[label], '')}" + (f" {share:.0%}" if share else "")

    if truth is None:
        return tuple(
            Nucleus(path, class_of[label], "plain", found(label)) for label, path in outlines(labels).items()
        ), None
    gt, gt_map = truth.instances[window], truth.class_map[window]
    counter = PairCounter()
    counter.add(gt, gt_map, gt > 0)
    table = contingency(gt, labels)
    gt_class = dict(zip(table.gt_ids.tolist(), majority(*counter.pairs(), table.gt_ids).tolist(), strict=True))
    pairs = matched_pairs(table)
    partner: dict[int, tuple[int, float]] = {}
    reached: dict[int, tuple[int, float]] = {}
    for k in pairs.tolist():
        true_id, label = int(table.gt_ids[table.gt_index[k]]), int(table.pred_ids[table.pred_index[k]])
        overlap = float(table.iou[k])
        partner[label], reached[true_id] = (true_id, overlap), (label, overlap)

    def state(label: int, true_id: int) -> str:
        agree = gt_class[true_id] in (class_of[label], UNKNOWN) or not class_of[label]
        return "hit" if agree else "other_class"

    predicted = []
    for label, path in outlines(labels).items():
        if label in partner:
            true_id, overlap = partner[label]
            line = f"{found(label)} · true class: {names.get(gt_class[true_id], '')} · IoU {overlap:.2f}"
            predicted.append(Nucleus(path, class_of[label], state(label, true_id), line))
        else:
            predicted.append(Nucleus(path, class_of[label], "false", f"{found(label)} · matches no true nucleus"))
    true = []
    for true_id, path in outlines(gt).items():
        line = f"true {true_id}: {names.get(gt_class[true_id], '')}"
        if true_id in reached:
            label, overlap = reached[true_id]
            true.append(Nucleus(path, gt_class[true_id], state(label, true_id), f"{line} · found, IoU {overlap:.2f}"))
        else:
            true.append(Nucleus(path, gt_class[true_id], "missed", f"{line} · missed"))
    return tuple(predicted), tuple(true)
