"""Instance figures: panoptic quality and its kin, AJI, F1 over IoU thresholds, all from one contingency table.

Conventions
-----------
* Two instances match when their IoU is strictly greater than the threshold, which is at least 0.5; a match is then
  unique without any assignment (Kirillov et al., CVPR 2019). ``inclusive`` takes "at least" instead, one to one, as
  StarDist and InstanSeg do.
* No small constants are added to denominators. What cannot be defined is ``None``: every figure when truth and
  prediction are both empty, precision without predictions, recall without truth, SQ without a match. (CellViT and
  HoVer-Net add 1e-6, give 0, or stop with an error there.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slideloom.metrics.contingency import Contingency

__all__ = [
    "F1_THRESHOLDS",
    "Panoptic",
    "aji",
    "class_panoptic",
    "matched_pairs",
    "mean_defined",
    "panoptic",
    "panoptic_at",
    "ratio",
]

#: IoU thresholds of F1 mean (F1^µ of InstanSeg): 0.5 to 0.9 in steps of 0.1.
F1_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def ratio(numerator: float, denominator: float) -> float | None:
    """Their quotient; ``None`` when the denominator is 0."""
    return float(numerator) / float(denominator) if denominator else None


def mean_defined(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are not ``None``; ``None`` when there is none."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


@dataclass(frozen=True)
class Panoptic:
    """Counts of a matching and the figures that follow from them.

    Attributes
    ----------
    tp, fp, fn : int
        Matched pairs, predictions without a match, true instances without one.
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

    def __add__(self, other: Panoptic) -> Panoptic:
        return Panoptic(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou_sum + other.iou_sum)


def matched_pairs(table: Contingency, threshold: float = 0.5, *, inclusive: bool = False) -> NDArray[np.int64]:
    """Positions in the table of the pairs that match.

    Parameters
    ----------
    table : Contingency
        Of true and predicted labels.
    threshold : float
        In [0.5, 1).
    inclusive : bool
        An IoU that equals the threshold matches.

    Raises
    ------
    ValueError
        The threshold is outside its range.
    """
    if not 0.5 <= threshold < 1:
        raise ValueError(f"IoU threshold {threshold} is outside [0.5, 1): a match would not be unique")
    iou = table.iou
    if not inclusive:
        return np.flatnonzero(iou > threshold)
    # Only at an IoU of exactly 0.5 can two candidates share an instance. They then lie wholly inside it and touch
    # nothing else, so taking the first of them loses no other match.
    found = np.flatnonzero(iou >= threshold)
    found = found[np.unique(table.gt_index[found], return_index=True)[1]]
    return found[np.sort(np.unique(table.pred_index[found], return_index=True)[1])]


def panoptic(table: Contingency, threshold: float = 0.5, *, inclusive: bool = False) -> Panoptic:
    """Match all true with all predicted instances, classes aside.

    Parameters
    ----------
    table : Contingency
        Of true and predicted labels.
    threshold : float
        In [0.5, 1).
    inclusive : bool
        An IoU that equals the threshold matches.

    Returns
    -------
    Panoptic
    """
    matched = matched_pairs(table, threshold, inclusive=inclusive)
    tp = int(matched.size)
    iou_sum = float(table.iou[matched].sum())
    return Panoptic(tp, int(table.pred_ids.size) - tp, int(table.gt_ids.size) - tp, iou_sum)


def panoptic_at(
    table: Contingency, thresholds: Sequence[float] = F1_THRESHOLDS, *, inclusive: bool = False
) -> list[Panoptic]:
    """:func:`panoptic` at several thresholds."""
    return [panoptic(table, threshold, inclusive=inclusive) for threshold in thresholds]


def class_panoptic(
    table: Contingency,
    gt_class: NDArray[np.int64],
    pred_class: NDArray[np.int64],
    class_ids: Sequence[int],
    threshold: float = 0.5,
    *,
    unknown: int = 255,
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
        In [0.5, 1); strictly greater matches.
    unknown : int
        The value of ``gt_class`` that stands for an unknown class.

    Returns
    -------
    dict of int to Panoptic
        By class id.
    """
    matched = matched_pairs(table, threshold)
    iou = table.iou[matched]
    gt_of, pred_of = gt_class[table.gt_index[matched]], pred_class[table.pred_index[matched]]
    on_unknown = gt_class[table.gt_index] == unknown
    covered = np.bincount(
        table.pred_index[on_unknown], weights=table.overlap[on_unknown], minlength=table.pred_ids.size
    )
    counted = covered * 2 <= table.pred_area
    result = {}
    for class_id in class_ids:
        same = (gt_of == class_id) & (pred_of == class_id)
        tp = int(same.sum())
        fp = int(((pred_class == class_id) & counted).sum()) - tp
        fn = int((gt_class == class_id).sum()) - tp
        result[class_id] = Panoptic(tp, fp, fn, float(iou[same].sum()))
    return result


def aji(table: Contingency) -> float | None:
    """Aggregated Jaccard index (Kumar et al., TMI 2017).

    Every true instance takes the prediction of highest IoU, the one of smallest label among equals; one prediction may
    serve several. Intersections over unions, with the area of true instances that nothing overlaps and of predictions
    that nobody took added to the union.

    Returns
    -------
    float or None
        ``None`` when both sides are empty, 0 when one is.
    """
    order = np.lexsort((table.pred_index, -table.iou, table.gt_index))
    first = np.ones(order.size, np.bool_)
    first[1:] = table.gt_index[order][1:] != table.gt_index[order][:-1]
    best = order[first]
    overlap = int(table.overlap[best].sum())
    taken = np.zeros(table.pred_ids.size, np.bool_)
    taken[table.pred_index[best]] = True
    union = int(table.gt_area.sum()) + int(table.pred_area[table.pred_index[best]].sum()) - overlap
    return ratio(overlap, union + int(table.pred_area[~taken].sum()))
