"""Instance figures: panoptic quality and its kin, AJI, F1 over IoU thresholds, all from one contingency table.

Conventions
-----------
* How instances match is a named convention (:mod:`slideloom.metrics.conventions`). The default, ``pannuke``, takes an
  IoU strictly greater than the threshold; at 0.5 and above a match is then unique without any assignment (Kirillov et
  al., CVPR 2019).
* No small constants are added to denominators. What cannot be defined is ``None``: every figure when truth and
  prediction are both empty, precision without predictions, recall without truth, SQ without a match. (CellViT and
  HoVer-Net add 1e-6, give 0, or stop with an error there.)
* Sums of IoU are rounded once, so no figure depends on the order of the instances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slideloom.metrics.assignment import best_pairs
from slideloom.metrics.contingency import Contingency
from slideloom.metrics.conventions import DEFAULT, Convention, convention_named

__all__ = [
    "F1_THRESHOLDS",
    "Panoptic",
    "aji",
    "aji_plus",
    "class_panoptic",
    "dice_2",
    "matched_pairs",
    "mean_defined",
    "mostly_on_unknown",
    "panoptic",
    "panoptic_at",
    "ratio",
]

#: IoU thresholds of F1 mean (F1^µ of InstanSeg): 0.5 to 0.9 in steps of 0.1.
F1_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
#: Weight of the shared area beside the IoU where matchings of equal IoU are to be told apart.
_TIE = 1e-9


def ratio(numerator: float, denominator: float) -> float | None:
    """Their quotient; ``None`` when the denominator is 0."""
    return float(numerator) / float(denominator) if denominator else None


def mean_defined(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are not ``None``; ``None`` when there is none."""
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None


@dataclass(frozen=True)
class Panoptic:
    """Counts of a matching and the figures that follow from them.

    Attributes
    ----------
    tp, fp, fn : int
        Matched pairs, predictions without a match, true instances without one. Under a convention that is not one to
        one, TP + FN need not be the number of true instances.
    iou_sum : float
        Sum of the matched pairs' IoU.
    """

    tp: int
    fp: int
    fn: int
    iou_sum: float

    @property
    def dq(self) -> float | None:
        """Detection quality, TP / (TP + FP/2 + FN/2), which is F1; ``None`` when both sides are empty."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def sq(self) -> float | None:
        """Segmentation quality, the mean IoU of matched pairs; ``None`` without a match."""
        return ratio(self.iou_sum, self.tp)

    @property
    def pq(self) -> float | None:
        """Panoptic quality, ΣIoU / (TP + FP/2 + FN/2) = DQ · SQ; ``None`` when both sides are empty."""
        return ratio(2 * self.iou_sum, 2 * self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float | None:
        """TP / (TP + FP); ``None`` without predictions."""
        return ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        """TP / (TP + FN); ``None`` without true instances."""
        return ratio(self.tp, self.tp + self.fn)

    @property
    def ap(self) -> float | None:
        """TP / (TP + FP + FN), StarDist's accuracy and the AP of cell segmentation; ``None`` when both are empty.

        It is not the area under a precision-recall curve: instances of a label image have no score.
        """
        return ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def mean_true_iou(self) -> float | None:
        """Sum of the matched pairs' IoU over all true instances; ``None`` without true instances."""
        return ratio(self.iou_sum, self.tp + self.fn)

    def __add__(self, other: Panoptic) -> Panoptic:
        return Panoptic(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou_sum + other.iou_sum)


def matched_pairs(
    table: Contingency, threshold: float = 0.5, *, convention: str | Convention = DEFAULT
) -> NDArray[np.int64]:
    """Positions in the table of the pairs that match.

    Parameters
    ----------
    table : Contingency
        Of true and predicted labels.
    threshold : float
        Above 0, below 1; 1 too where the convention is inclusive. At 0.5 and above matches are unique but for equals;
        below, the convention's assignment is solved exactly.
    convention : str or Convention
        How instances match.

    Returns
    -------
    ndarray of int64
        Ascending.

    Raises
    ------
    ValueError
        The threshold is outside its range, or there is no such convention.
    """
    rule = convention_named(convention)
    if not 0 < threshold <= 1 or (threshold == 1 and not rule.inclusive):
        raise ValueError(f"IoU threshold {threshold} is outside (0, 1{']' if rule.inclusive else ')'}")
    iou = table.iou
    passing = iou >= threshold if rule.inclusive else iou > threshold
    if not rule.one_to_one or threshold > 0.5 or (threshold == 0.5 and not rule.inclusive):
        return np.flatnonzero(passing)
    if threshold == 0.5:
        # Only at an IoU of exactly 0.5 can two candidates share an instance. They then lie wholly inside it and touch
        # nothing else, so taking the first of them loses no other match.
        found = np.flatnonzero(passing)
        found = found[np.unique(table.gt_index[found], return_index=True)[1]]
        return found[np.sort(np.unique(table.pred_index[found], return_index=True)[1])]
    counted = passing if rule.assignment == "most_pairs" else None
    chosen = best_pairs(table.gt_index, table.pred_index, iou, counted=counted)
    return chosen[passing[chosen]]


def panoptic(table: Contingency, threshold: float = 0.5, *, convention: str | Convention = DEFAULT) -> Panoptic:
    """Match all true with all predicted instances, classes aside.

    Parameters
    ----------
    table : Contingency
        Of true and predicted labels.
    threshold : float
        As in :func:`matched_pairs`.
    convention : str or Convention
        How instances match.

    Returns
    -------
    Panoptic
    """
    matched = matched_pairs(table, threshold, convention=convention)
    tp = int(matched.size)
    fp = int(table.pred_ids.size) - int(np.unique(table.pred_index[matched]).size)
    fn = int(table.gt_ids.size) - int(np.unique(table.gt_index[matched]).size)
    return Panoptic(tp, fp, fn, math.fsum(table.iou[matched]))


def panoptic_at(
    table: Contingency, thresholds: Sequence[float] = F1_THRESHOLDS, *, convention: str | Convention = DEFAULT
) -> list[Panoptic]:
    """:func:`panoptic` at several thresholds."""
    return [panoptic(table, threshold, convention=convention) for threshold in thresholds]


def class_panoptic(
    table: Contingency,
    gt_class: NDArray[np.int64],
    pred_class: NDArray[np.int64],
    class_ids: Sequence[int],
    threshold: float = 0.5,
    *,
    unknown: int = 255,
    convention: str | Convention = DEFAULT,
) -> dict[int, Panoptic]:
    """Match class by class: a true and a predicted instance match only within one class.

    An instance of truth whose class is unknown belongs to no class. A prediction more than half of which lies on such
    instances is left out too, since nobody can say whether its class is right; whatever matches an unknown instance is
    among these, for an IoU above one half means more than half of the prediction.

    Parameters
    ----------
    table : Contingency
        Of true and predicted labels.
    gt_class, pred_class : ndarray of int64, (n_gt,) and (n_pred,)
        Class of each instance, in the table's order.
    class_ids : sequence of int
        Classes asked for.
    threshold : float
        At least 0.5, where matches do not depend on classes.
    unknown : int
        The value of ``gt_class`` that stands for an unknown class.
    convention : str or Convention
        How instances match; one to one.

    Returns
    -------
    dict of int to Panoptic
        By class id.

    Raises
    ------
    ValueError
        The threshold is below 0.5, where the best matching of all is not that of a class, or the convention is not one
        to one.
    """
    rule = convention_named(convention)
    if threshold < 0.5 or not rule.one_to_one:
        raise ValueError(f"classes match one to one at IoU 0.5 and above, not at {threshold} by {rule.name}")
    matched = matched_pairs(table, threshold, convention=rule)
    iou = table.iou[matched]
    gt_of, pred_of = gt_class[table.gt_index[matched]], pred_class[table.pred_index[matched]]
    counted = ~mostly_on_unknown(table, gt_class, unknown=unknown)
    result = {}
    for class_id in class_ids:
        same = (gt_of == class_id) & (pred_of == class_id)
        tp = int(same.sum())
        fp = int(((pred_class == class_id) & counted).sum()) - tp
        fn = int((gt_class == class_id).sum()) - tp
        result[class_id] = Panoptic(tp, fp, fn, math.fsum(iou[same]))
    return result


def mostly_on_unknown(table: Contingency, gt_class: NDArray[np.int64], *, unknown: int = 255) -> NDArray[np.bool_]:
    """Predicted instances whose class nobody can check: more than half of their pixels lie on truth of unknown class.

    Parameters
    ----------
    table : Contingency
        Of true and predicted labels.
    gt_class : ndarray of int64, (n_gt,)
        Class of each true instance.
    unknown : int
        The value that stands for an unknown class.

    Returns
    -------
    ndarray of bool, (n_pred,)
    """
    on_unknown = gt_class[table.gt_index] == unknown
    covered = np.bincount(
        table.pred_index[on_unknown], weights=table.overlap[on_unknown], minlength=table.pred_ids.size
    )
    return np.asarray(covered * 2 > table.pred_area)


def aji(table: Contingency) -> float | None:
    """Aggregated Jaccard index (Kumar et al., TMI 2017).

    Every true instance takes the prediction of highest IoU; one prediction may serve several. Intersections over
    unions, with the area of true instances that nothing overlaps and of predictions that nobody took added to the
    union. Where predictions have equal IoU with a true instance, the one that shares more pixels is taken, and where
    these are equal too, the one that leaves the least predicted area untaken over the whole image. (The originals take
    the smallest label, so that renumbering can change their figure.)

    Returns
    -------
    float or None
        ``None`` when both sides are empty, 0 when one is.
    """
    gt, iou = table.gt_index, table.iou
    highest = np.zeros(table.gt_ids.size)
    np.maximum.at(highest, gt, iou)
    best = iou == highest[gt]
    largest = np.zeros(table.gt_ids.size, np.int64)
    np.maximum.at(largest, gt[best], table.overlap[best])
    best &= table.overlap == largest[gt]
    at = np.flatnonzero(best)
    choices = np.bincount(gt[at], minlength=table.gt_ids.size)
    taken = np.zeros(table.pred_ids.size, np.bool_)
    taken[table.pred_index[at[choices[gt[at]] == 1]]] = True
    open_to = at[(choices[gt[at]] > 1) & ~taken[table.pred_index[at]]]
    # Equals of one instance have equal overlap and area: only which of them stay untaken can matter.
    more = best_pairs(gt[open_to], table.pred_index[open_to], table.pred_area[table.pred_index[open_to]].astype(float))
    taken[table.pred_index[open_to[more]]] = True
    first = at[np.unique(gt[at], return_index=True)[1]]
    overlap = int(table.overlap[first].sum())
    union = int(table.gt_area.sum()) + int(table.pred_area[table.pred_index[first]].sum()) - overlap
    return ratio(overlap, union + int(table.pred_area[~taken].sum()))


def aji_plus(table: Contingency) -> float | None:
    """AJI+ of HoVer-Net (Graham et al., MedIA 2019): AJI where a prediction serves one true instance at most.

    The one-to-one matching with the highest sum of IoU, and among equals the one that shares the most pixels;
    intersections over unions, with the area of everything unmatched added to the union.

    Returns
    -------
    float or None
        ``None`` when both sides are empty, 0 when one is.
    """
    overlap = 0
    if table.overlap.size:
        weight = table.iou + _TIE * (table.overlap / table.overlap.max())
        overlap = int(table.overlap[best_pairs(table.gt_index, table.pred_index, weight)].sum())
    return ratio(overlap, int(table.gt_area.sum()) + int(table.pred_area.sum()) - overlap)


def dice_2(table: Contingency) -> float | None:
    """Ensemble Dice, "Dice-2" of HoVer-Net: twice the shared pixels over the areas, summed over overlapping pairs.

    An instance counts as often as it overlaps another. Instances that overlap nothing do not count at all, so it says
    nothing about missed or invented nuclei.

    Returns
    -------
    float or None
        ``None`` when no pair overlaps.
    """
    areas = int(table.gt_area[table.gt_index].sum()) + int(table.pred_area[table.pred_index].sum())
    return ratio(2 * table.tp_pixels, areas)
