"""Which of a slide's nuclei are true: found ones held against the annotation, before anything is written of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideError
from slideloom.instances.refine.found import Found
from slideloom.instances.windows import windows
from slideloom.metrics.contingency import Contingency, PairCounter
from slideloom.metrics.details import Matches
from slideloom.metrics.panoptic import matched_pairs
from slideloom.metrics.true_extents import WatchedLabels
from slideloom.slides.annotations import Annotation
from slideloom.slides.binary_labels import LARGEST_NUCLEUS_UM2, instances_or_refuse

__all__ = ["Judged", "judge_nuclei"]

#: Side of the windows that are read at a time; bounds memory, changes no figure.
_BLOCK_PX = 1024


@dataclass(frozen=True, eq=False)
class Judged:
    """What an annotation says of nuclei that were found.

    Attributes
    ----------
    matched : (n,) bool array
        Row i: whether nucleus i + 1 and a true one share more than half of what either covers (IoU above 0.5).
    seen : (n,) bool array
        Whether a tile looked at any of its pixels; others say nothing.
    n_true : int
        True nuclei, as far as a tile looked.
    """

    matched: NDArray[np.bool_]
    seen: NDArray[np.bool_]
    n_true: int


def judge_nuclei(found: Found, covered: Any, annotation: Annotation, mpp_um: float) -> Judged:
    """Hold a slide's nuclei against its annotation.

    Parameters
    ----------
    found : Found
        The nuclei.
    covered : (H, W) uint8 array
        1 where a tile looked; only these pixels count. NumPy or open Zarr array.
    annotation : Annotation
        The truth, open.
    mpp_um : float
        Pixel size of both, µm.

    Returns
    -------
    Judged

    Raises
    ------
    SlideError
        ``maps_shape``: annotation and maps are not of one size; ``binary_labels``: the annotation is a mask or a class
        map; and what reading it raises.
    """
    frame = found.grid.frame
    if annotation.shape != (frame.height, frame.width):
        raise SlideError(
            f"the maps are {(frame.height, frame.width)} pixels, the annotation {annotation.shape} (height, width)",
            where=annotation.slide_id,
            expected="one size",
            hint="Remove the slide's maps and run again",
            code="maps_shape",
        )
    largest_px = LARGEST_NUCLEUS_UM2 / mpp_um**2
    truth = WatchedLabels(annotation.instances, None)
    instances_or_refuse(truth, where=f"{annotation.slide_id}, annotation", largest_px=largest_px)
    counter = PairCounter()
    for window in windows(frame, _BLOCK_PX):
        seen = np.asarray(covered[window.slices]) == 1
        if seen.any():
            counter.add(annotation.read_instances(window.slices), found.read(window), seen)
    table = Contingency.from_counter(counter)
    matches = Matches(table, matched_pairs(table))
    matched, met = np.zeros(found.n, np.bool_), np.zeros(found.n, np.bool_)
    met[table.pred_ids - 1] = True
    matched[table.pred_ids[matches.pred] - 1] = True
    return Judged(matched, met, int(table.gt_ids.size))
