"""One place of a slide, close up: its pixels, its true nuclei, and what each experiment made of it.

The pixels are one small JPEG, the outlines are vectors: the page can switch them on and off, they stay sharp on paper,
and each tells about its nucleus when it is pointed at. Only the place and a margin around it are read, whatever the
slide's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from slideloom.artefacts.zarrio import open_array, read_attributes
from slideloom.config.model import EvaluationConfig
from slideloom.instances.labels import open_labels
from slideloom.metrics.contingency import PairCounter, contingency, majority
from slideloom.metrics.panoptic import matched_pairs
from slideloom.metrics.semantic import UNKNOWN
from slideloom.reports.choices import Kind, Place
from slideloom.reports.pictures import data_uri, false_colour, outlines
from slideloom.reports.sources import OverlaySource
from slideloom.slides.annotations import open_annotations
from slideloom.slides.facts import image_source, load_facts
from slideloom.slides.open import open_image
from slideloom.slides.region import read_region
from slideloom.slides.tables import ClassTable

__all__ = ["Frame", "Nucleus", "Overlay", "Shot", "draw_overlay"]

#: Margin that is read around a place, so that nuclei on its edge are compared whole.
_MARGIN_UM, _MARGIN_PX = 20.0, 96
#: Longer side of a stored picture.
_PICTURE_PX = 512
#: What the page writes for one outline beside its path and its title.
_MARKUP_BYTES = 60


@dataclass(frozen=True)
class Nucleus:
    """One outline.

    Attributes
    ----------
    path : str
        SVG path in half pixels of the place.
    class_id : int
        0 background, 255 unknown.
    state : {"hit", "other_class", "false", "true", "plain"}
        How a predicted one compares with the truth, ``plain`` where there is none; ``true`` for a true one.
    title : str
        A line about it.
    """

    path: str
    class_id: int
    state: str
    title: str


@dataclass(frozen=True)
class Frame:
    """The place in the frame of one image at one resolution: experiments that read it alike share it.

    Attributes
    ----------
    image : {"he", "sp"}
        Which image.
    y_px, x_px, height_px, width_px : int
        The place, pixels of the frame.
    mpp_um : float
        Pixel size, µm.
    picture : str
        Its pixels as data URI (JPEG).
    colours : str
        What the picture's colours mean; empty for H&E.
    true : tuple of Nucleus or None
        Annotated outlines; ``None`` without annotation.
    """

    image: str
    y_px: int
    x_px: int
    height_px: int
    width_px: int
    mpp_um: float
    picture: str
    colours: str
    true: tuple[Nucleus, ...] | None


@dataclass(frozen=True)
class Shot:
    """What one experiment predicted there.

    Attributes
    ----------
    experiment, fold, role : str
        The run, and the slide's role in it; empty where the slide was not scored.
    frame : int
        Position of its frame in the overlay.
    predicted : tuple of Nucleus
        Outlines found.
    missed : tuple of int
        Positions of the true nuclei that were not found.
    pq : float or None
        PQ of the place as ``tiles.parquet`` tells it; ``None`` where it does not, or is undefined.
    """

    experiment: str
    fold: str
    role: str
    frame: int
    predicted: tuple[Nucleus, ...]
    missed: tuple[int, ...]
    pq: float | None = None


@dataclass(frozen=True)
class Overlay:
    """One place, in the frames that it was predicted in, and every experiment's prediction of it.

    Attributes
    ----------
    kind : {"worst", "best", "dense"}
        Why it is shown.
    slide_id, platform : str
        The slide.
    pq : float or None
        Mean PQ over the experiments that scored it.
    frames : tuple of Frame
        At least one.
    shots : tuple of Shot
        By frame, then in the order of the experiments.
    box : tuple of float
        x, y, width, height on the slide, as shares of its size.
    """

    kind: Kind
    slide_id: str
    platform: str
    pq: float | None
    frames: tuple[Frame, ...]
    shots: tuple[Shot, ...]
    box: tuple[float, float, float, float]

    @property
    def n_bytes(self) -> int:
        """About what it takes on the page."""
        nuclei = [n for shot in self.shots for n in shot.predicted]
        nuclei += [n for frame in self.frames for n in frame.true or ()]
        text = sum(len(n.path) + len(n.title.encode()) + _MARKUP_BYTES for n in nuclei)
        missed = sum(_MARKUP_BYTES + 80 for shot in self.shots for _ in shot.missed)
        return 1000 + 1600 * len(self.shots) + text + missed + sum(len(frame.picture) + 1600 for frame in self.frames)

    def without_titles(self) -> Overlay:
        """The same with nothing to say about single nuclei, for pages that would grow too large."""
        return replace(
            self,
            frames=tuple(replace(frame, true=frame.true and _untitled(frame.true)) for frame in self.frames),
            shots=tuple(replace(shot, predicted=_untitled(shot.predicted)) for shot in self.shots),
        )


def _untitled(nuclei: Sequence[Nucleus]) -> tuple[Nucleus, ...]:
    return tuple(replace(nucleus, title="") for nucleus in nuclei)


@dataclass(frozen=True)
class _Look:
    """What is read once for a frame: pixels and truth of the place with its margin."""

    frame: Frame
    window: tuple[slice, slice]
    gt: NDArray[np.int64] | None
    gt_class: Mapping[int, int]
    gt_order: Sequence[int]


def draw_overlay(
    place: Place,
    runs: Mapping[str, tuple[OverlaySource, str]],
    classes: ClassTable,
    evaluation: EvaluationConfig | None = None,
) -> Overlay:
    """Draw a place for every experiment that predicted its slide.

    Parameters
    ----------
    place : Place
        Where. In the frame of another image or resolution it lies where its physical size puts it, from a common upper
        left corner.
    runs : mapping of str to (OverlaySource, str)
        By experiment, for the place's slide: the run and the slide's role in it.
    classes : ClassTable
        For names.
    evaluation : EvaluationConfig, optional
        How nuclei match; the defaults when left out.

    Returns
    -------
    Overlay
        Without the experiments whose frame ends before the place.

    Raises
    ------
    SlideError
        The image or the annotation cannot be read.
    """
    chosen = evaluation or EvaluationConfig()
    looks: dict[tuple[str, float], _Look | None] = {}
    shots: list[Shot] = []
    drawn: dict[tuple[str, float], int] = {}
    for source, role in runs.values():
        about = read_attributes(source.maps)
        key = source.image, float(about["mpp_um"])
        if key not in looks:
            looks[key] = _look(place, source, about, classes)
        look = looks[key]
        if look is not None:
            number = drawn.setdefault(key, len(drawn))
            shots.append(_shot(look, number, source, role, place, classes, chosen))
    source = next(iter(runs.values()))[0]
    facts = load_facts(source.facts)
    extent = [side * facts.image(place.image).mpp_um for side in facts.image(place.image).shape]
    box = (
        place.x_px * place.mpp_um / extent[1],
        place.y_px * place.mpp_um / extent[0],
        place.width_px * place.mpp_um / extent[1],
        place.height_px * place.mpp_um / extent[0],
    )
    frames = tuple(look.frame for key in drawn if (look := looks[key]) is not None)
    shots.sort(key=lambda shot: shot.frame)
    return Overlay(place.kind, place.slide_id, source.row.platform, place.pq, frames, tuple(shots), box)


def _look(place: Place, source: OverlaySource, about: Mapping[str, Any], classes: ClassTable) -> _Look | None:
    """Pixels and truth of a place in a frame; ``None`` where the frame ends before it."""
    scale, mpp_um = float(about["scale"]), float(about["mpp_um"])
    size = int(about["height_px"]), int(about["width_px"])
    step = 1.0 if (source.image, mpp_um) == (place.image, place.mpp_um) else place.mpp_um / mpp_um
    y, x = round(place.y_px * step), round(place.x_px * step)
    height, width = min(round(place.height_px * step), size[0] - y), min(round(place.width_px * step), size[1] - x)
    if height < 1 or width < 1:
        return None
    margin = min(_MARGIN_PX, round(_MARGIN_UM / mpp_um))
    window = (
        slice(max(0, y - margin), min(size[0], y + height + margin)),
        slice(max(0, x - margin), min(size[1], x + width + margin)),
    )
    facts = load_facts(source.facts)
    seen = facts.image(source.image)
    with open_image(image_source(source.row, source.image, source.root), source.image) as image:
        pixels = read_region(image, y, x, height, width, scale, 255 if seen.is_rgb else 0)
    picture, colours = false_colour(pixels, seen.channels, seen.is_rgb)
    shrink = min(1.0, _PICTURE_PX / max(height, width))
    if shrink < 1:
        smaller = max(1, round(width * shrink)), max(1, round(height * shrink))
        picture = np.asarray(cv2.resize(picture, smaller, interpolation=cv2.INTER_AREA), np.uint8)
    frame = Frame(source.image, y, x, height, width, mpp_um, data_uri(picture, "JPEG"), colours, None)
    annotation = open_annotations(source.row, source.root, facts, source.image, scale, classes)
    if annotation is None:
        return _Look(frame, window, None, {}, ())
    with annotation:
        instances, class_map = annotation.read(window)
    gt = instances.astype(np.int64)
    counter = PairCounter()
    counter.add(gt, class_map, gt > 0)
    ids = np.unique(gt[gt > 0])
    gt_class = dict(zip(ids.tolist(), majority(*counter.pairs(), ids).tolist(), strict=True))
    names = _names(classes)
    paths = _paths(gt, frame, window)
    true = tuple(
        Nucleus(path, gt_class[number], "true", f"true {number}: {names[gt_class[number]]}")
        for number, path in paths.items()
    )
    return _Look(replace(frame, true=true), window, gt, gt_class, list(paths))


def _paths(labels: NDArray[np.int64], frame: Frame, window: tuple[slice, slice]) -> dict[int, str]:
    """Outlines of what touches the place, whole as far as the margin shows them, in half pixels of the place."""
    y, x = frame.y_px - window[0].start, frame.x_px - window[1].start
    inside = labels[y : y + frame.height_px, x : x + frame.width_px]
    return outlines(labels, (y, x), np.unique(inside[inside > 0]))


def _shot(
    look: _Look,
    number: int,
    source: OverlaySource,
    role: str,
    place: Place,
    classes: ClassTable,
    evaluation: EvaluationConfig,
) -> Shot:
    """What a run predicted at a place, nucleus by nucleus, judged as the figures judge."""
    labels = np.asarray(open_labels(source.labels)[look.window]).astype(np.int64)
    cells = _cells_of(source, np.unique(labels[labels > 0]))
    names = _names(classes)
    paths = _paths(labels, look.frame, look.window)

    def line(label: int) -> str:
        class_id, share = cells.get(label, (0, None))
        return f"predicted {label}: {names[class_id]}" + (f" {share:.0%}" if share else "")

    about = source.experiment, source.fold, role, number
    if look.gt is None:
        plain = tuple(Nucleus(path, cells.get(k, (0, None))[0], "plain", line(k)) for k, path in paths.items())
        return Shot(*about, plain, ())
    covered = np.asarray(open_array(source.maps / "covered")[look.window]) == 1
    gt = np.where(covered, look.gt, 0)
    table = contingency(gt, np.where(covered, labels, 0))
    pairs = matched_pairs(table, evaluation.iou_threshold, convention=evaluation.convention)
    partner = {
        int(table.pred_ids[table.pred_index[k]]): (int(table.gt_ids[table.gt_index[k]]), float(table.iou[k]))
        for k in pairs.tolist()
    }
    reached = {int(table.gt_ids[table.gt_index[k]]) for k in pairs.tolist()}
    predicted = []
    for label, path in paths.items():
        class_id = cells.get(label, (0, None))[0]
        if label not in partner:
            state, told = "false", f"{line(label)} · matches no true nucleus"
        else:
            true_class, overlap = look.gt_class[partner[label][0]], partner[label][1]
            state = "hit" if true_class in (class_id, UNKNOWN) or not class_id else "other_class"
            told = f"{line(label)} · truly {names[true_class]} · IoU {overlap:.2f}"
        predicted.append(Nucleus(path, class_id, state, told))
    present = set(table.gt_ids.tolist())
    missed = tuple(k for k, true_id in enumerate(look.gt_order) if true_id in present and true_id not in reached)
    return Shot(*about, tuple(predicted), missed, _tile_pq(source, place))


def _tile_pq(source: OverlaySource, place: Place) -> float | None:
    """PQ of exactly this place, if it is one of the run's tiles."""
    if source.tiles is None or source.image != place.image:
        return None
    box = [("y_px", "==", place.y_px), ("x_px", "==", place.x_px)]
    box += [("height_px", "==", place.height_px), ("width_px", "==", place.width_px)]
    if float(read_attributes(source.maps)["mpp_um"]) != place.mpp_um:
        return None
    found: list[float | None] = pq.read_table(source.tiles, columns=["pq"], filters=box, partitioning=None)[
        "pq"
    ].to_pylist()
    return found[0] if found else None


def _names(classes: ClassTable) -> dict[int, str]:
    return {0: "no class", UNKNOWN: "class unknown", **dict(zip(classes.ids, classes.names, strict=True))}


def _cells_of(source: OverlaySource, ids: NDArray[np.int64]) -> dict[int, tuple[int, float | None]]:
    """Class and its probability of nuclei by id, from the cell table; 0 without a class, ``None`` without either."""
    if not source.cells.is_file() or not ids.size:
        return {}
    present = set(pq.read_schema(source.cells).names)
    wanted = [name for name in ("cell_id", "class_id", "class_probability") if name in present]
    near = [("cell_id", ">=", int(ids[0])), ("cell_id", "<=", int(ids[-1]))]
    table = pq.read_table(source.cells, columns=wanted, filters=near, partitioning=None)
    numbers = table["cell_id"].to_pylist()
    empty = [None] * len(numbers)
    class_ids = table["class_id"].to_pylist() if "class_id" in present else empty
    shares = table["class_probability"].to_pylist() if "class_probability" in present else empty
    return {k: (class_id or 0, share) for k, class_id, share in zip(numbers, class_ids, shares, strict=True)}
