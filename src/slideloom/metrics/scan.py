"""One pass over a slide's pixels: maps and labels against the annotation, counted window by window.

All counts are of whole numbers, so windows of any size, in any order, give one result; memory is bounded by a window,
the nuclei that cross its border, and the number of nuclei. Only pixels where a tile looked count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from slideloom.artefacts.zarrio import open_array
from slideloom.errors import SlideError
from slideloom.instances.labels import open_labels
from slideloom.instances.windows import Box, windows
from slideloom.metrics.boundary import BoundaryDistances
from slideloom.metrics.contingency import PairCounter
from slideloom.metrics.hv_error import HvErrors
from slideloom.metrics.probability import ClassScores
from slideloom.metrics.semantic import ClassConfusion, ScoreHistogram
from slideloom.metrics.true_extents import Extents, WatchedLabels
from slideloom.patches.hv import hv_map_int8
from slideloom.slides.annotations import Annotation
from slideloom.slides.binary_labels import LARGEST_NUCLEUS_UM2, instances_or_refuse

__all__ = ["SlideMaps", "Tally", "scan"]

#: Side of the windows that are read at a time; bounds memory, changes no figure.
_BLOCK_PX = 1024


class SlideMaps:
    """A slide's maps and labels, open for reading.

    Parameters
    ----------
    maps_path : Path
        Zarr group of the maps. ``covered`` is always there; ``nucleus``, ``class_id``, ``class_probability`` and ``hv``
        where they were predicted.
    labels_path : Path
        OME-Zarr label image.

    Attributes
    ----------
    arrays : dict of str to TensorStore
        By name; the label image is ``labels``.
    """

    def __init__(self, maps_path: Path, labels_path: Path) -> None:
        names = ("nucleus", "class_id", "class_probability", "hv")
        self.arrays: dict[str, ts.TensorStore] = {"covered": open_array(maps_path / "covered")}
        self.arrays |= {name: open_array(maps_path / name) for name in names if (maps_path / name).is_dir()}
        self.arrays["labels"] = open_labels(labels_path)

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def check_shape(self, shape: tuple[int, int], slide_id: str) -> None:
        """Refuse arrays of another size than the annotation; a ``SlideError`` with the code ``maps_shape``."""
        for name, array in self.arrays.items():
            if tuple(array.shape[-2:]) != shape:
                raise SlideError(
                    f"array {name} is {tuple(array.shape[-2:])} pixels, the annotation {shape} (height, width)",
                    where=slide_id,
                    expected="one size",
                    hint="Remove the slide's maps and labels and run again",
                    code="maps_shape",
                )

    def start(self, name: str, box: Box) -> Any:
        """Begin to read a box; ``.result()`` waits for it."""
        return self.arrays[name][(..., *box.slices)].read()


@dataclass
class Tally:
    """All that the pass gathers; ``None`` where the maps lack what it needs.

    Attributes
    ----------
    outlines : BoundaryDistances
        Outlines of the label image against those of the truth.
    looked : ndarray of bool, (rows, columns)
        Squares of the frame that hold a pixel where a tile looked.
    overlap : PairCounter
        True against predicted nuclei, with positions.
    gt_classes, pred_classes : PairCounter
        Nuclei against the classes of their pixels.
    n_pixels : int
        Pixels counted.
    scores, confusion, class_scores, hv
        Of the nucleus map, the class map, its probabilities, the HV maps.
    """

    outlines: BoundaryDistances
    looked: NDArray[np.bool_]
    overlap: PairCounter = field(default_factory=PairCounter)
    gt_classes: PairCounter = field(default_factory=PairCounter)
    pred_classes: PairCounter | None = None
    n_pixels: int = 0
    scores: ScoreHistogram | None = None
    confusion: ClassConfusion | None = None
    class_scores: ClassScores | None = None
    hv: HvErrors | None = None

    def gt_pixels(self) -> NDArray[np.int64]:
        """Pixels by true class, (256,); 0 is the background, 255 inside nuclei of unknown class."""
        _, values, counts = self.gt_classes.pairs()
        pixels = np.zeros(256, np.int64)
        np.add.at(pixels, values, counts)
        pixels[0] += self.n_pixels - int(counts.sum())
        return pixels


def scan(maps: SlideMaps, annotation: Annotation, mpp_um: float, tolerance_px: float, square_px: int) -> Tally:
    """Count a slide.

    Parameters
    ----------
    maps : SlideMaps
        What was predicted.
    annotation : Annotation
        The truth, read by windows; twice: once for its nuclei's extents, once against the maps.
    mpp_um : float
        Pixel size of both, µm.
    tolerance_px : float
        Tolerance of outlines, pixels.
    square_px : int
        Side of the squares of :attr:`Tally.looked`, pixels.

    Returns
    -------
    Tally

    Raises
    ------
    SlideError
        ``maps_shape``: maps and annotation are not of one size. ``binary_labels``: the annotation is a mask or a class
        map. And what reading the annotation raises.
    """
    shape = annotation.shape
    maps.check_shape(shape, annotation.slide_id)
    extents = Extents() if "hv" in maps else None
    truth = WatchedLabels(annotation.instances, extents)
    largest_px = LARGEST_NUCLEUS_UM2 / mpp_um**2
    instances_or_refuse(truth, where=f"{annotation.slide_id}, annotation", largest_px=largest_px)
    tally = _empty(maps, BoundaryDistances(tolerance_px), (-(-shape[0] // square_px), -(-shape[1] // square_px)))
    for window in windows(Box(0, 0, *shape), _BLOCK_PX):
        grown = window.grown(tally.outlines.context_px, shape)
        was_seen = maps.start("covered", grown).result() == 1
        if not was_seen[window.within(grown)].any():
            continue
        # Labels are needed with the outlines' context, the truth with whole nuclei where HV maps are held against it.
        reach = grown if extents is None else _union(grown, extents.around(window))
        _count(tally, maps, annotation, window, grown, reach, was_seen)
        _look(tally.looked, window, was_seen[window.within(grown)], square_px)
    return tally


def _empty(maps: SlideMaps, outlines: BoundaryDistances, squares: tuple[int, int]) -> Tally:
    tally = Tally(outlines, np.zeros(squares, np.bool_))
    if "nucleus" in maps:
        tally.scores = ScoreHistogram()
    if "class_id" in maps:
        tally.confusion, tally.pred_classes = ClassConfusion(), PairCounter()
        if "class_probability" in maps:
            tally.class_scores = ClassScores()
    if "hv" in maps:
        tally.hv = HvErrors()
    return tally


def _count(
    tally: Tally,
    maps: SlideMaps,
    annotation: Annotation,
    window: Box,
    grown: Box,
    reach: Box,
    was_seen: NDArray[np.bool_],
) -> None:
    """Add a window."""
    awaited = {name: maps.start(name, window) for name in maps.arrays if name not in ("covered", "labels")}
    awaited["labels"] = maps.start("labels", grown)
    around, around_classes = annotation.read(reach.slices)
    gt, gt_classes = around[window.within(reach)], np.ascontiguousarray(around_classes[window.within(reach)])
    core = window.within(grown)
    seen = np.ascontiguousarray(was_seen[core])
    some = None if seen.all() else seen  # a mask costs time where it hides nothing
    labels_around = awaited["labels"].result()
    labels = labels_around[core]

    origin = (window.top, window.left)
    inside = gt > 0
    tally.n_pixels += int(seen.sum())
    tally.overlap.add(gt, labels, some, origin=origin)
    tally.gt_classes.add(gt, gt_classes, seen & inside)
    tally.outlines.add(around[grown.within(reach)], labels_around, core, None if was_seen.all() else was_seen)
    if tally.scores is not None:
        tally.scores.add(awaited["nucleus"].result(), inside, some)
    if tally.confusion is not None and tally.pred_classes is not None:
        predicted = awaited["class_id"].result()
        tally.confusion.add(gt_classes, predicted, some)
        tally.pred_classes.add(labels, predicted, seen & (labels > 0))
        if tally.class_scores is not None:
            tally.class_scores.add(gt_classes, predicted, awaited["class_probability"].result(), some)
    if tally.hv is not None:
        true_hv = hv_map_int8(around)[:, *window.within(reach)]
        tally.hv.add(awaited["hv"].result(), true_hv, inside, some)


def _union(one: Box, other: Box) -> Box:
    return Box(
        min(one.top, other.top),
        min(one.left, other.left),
        max(one.bottom, other.bottom),
        max(one.right, other.right),
    )


def _look(looked: NDArray[np.bool_], window: Box, seen: NDArray[np.bool_], square_px: int) -> None:
    """Note the squares that a window's seen pixels lie in."""
    y, x = (_cuts(part, square_px) for part in window.slices)
    met = np.logical_or.reduceat(np.logical_or.reduceat(seen, y - window.top, axis=0), x - window.left, axis=1)
    looked[np.ix_(y // square_px, x // square_px)] |= met


def _cuts(part: slice, square_px: int) -> NDArray[np.int64]:
    """First pixels of a range, and of every square that begins in it."""
    later = np.arange(part.start // square_px + 1, -(-part.stop // square_px)) * square_px
    return np.concatenate(([part.start], later))
