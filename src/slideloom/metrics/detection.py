"""Detection by distance between centroids: pairing, F1, and F1 by class in two named formulas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from slideloom.metrics.assignment import best_pairs
from slideloom.metrics.panoptic import ratio

__all__ = [
    "RADIUS_UM",
    "ClassDetection",
    "Detection",
    "PairingRule",
    "class_detection",
    "detect",
    "pair_centroids",
]

#: Radius within which a predicted centroid finds a true one, µm: 12 pixels at 0.25 µm (×40), 6 at 0.5 µm (×20).
RADIUS_UM = 3.0
#: Entries of the dense table that the rule ``hovernet`` may make (1.6 GB).
_MOST_DISTANCES = 200_000_000

PairingRule = Literal["most_pairs", "hovernet"]


@dataclass(frozen=True)
class Detection:
    """Counts of a detection and the figures that follow.

    Attributes
    ----------
    tp, fp, fn : int
        Pairs, predicted and true centroids without a partner.
    """

    tp: int
    fp: int
    fn: int

    @property
    def f1(self) -> float | None:
        """F_d of HoVer-Net, 2 TP / (2 TP + FP + FN); ``None`` when both sides are empty."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float | None:
        """TP / (TP + FP); ``None`` without predictions."""
        return ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        """TP / (TP + FN); ``None`` without truth."""
        return ratio(self.tp, self.tp + self.fn)

    def __add__(self, other: Detection) -> Detection:
        return Detection(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)


@dataclass(frozen=True)
class ClassDetection:
    """Counts of one class c among detected nuclei.

    Attributes
    ----------
    tp : int
        Pairs of which both sides are c.
    fp_paired, fn_paired : int
        Pairs of which only the prediction, or only the truth, is c.
    fp_alone, fn_alone : int
        Predicted and true nuclei of class c without a partner.

    Notes
    -----
    The figures without a suffix are those of c alone: what is not a true positive of c is an error once. Those ending
    in ``_hovernet`` are F_c and its kin (Graham et al., MedIA 2019, as HoVer-Net and CellViT compute them): errors of
    class weigh double beside errors of detection. Their true negatives are 0, because only pairs with c on a side are
    looked at.
    """

    tp: int
    fp_paired: int
    fn_paired: int
    fp_alone: int
    fn_alone: int

    @property
    def f1(self) -> float | None:
        """2 TP / (number of c predicted + number of c in truth); ``None`` when c occurs on neither side."""
        wrong = self.fp_paired + self.fn_paired + self.fp_alone + self.fn_alone
        return ratio(2 * self.tp, 2 * self.tp + wrong)

    @property
    def precision(self) -> float | None:
        """TP over the predictions of c; ``None`` without one."""
        return ratio(self.tp, self.tp + self.fp_paired + self.fp_alone)

    @property
    def recall(self) -> float | None:
        """TP over the true nuclei of c; ``None`` without one."""
        return ratio(self.tp, self.tp + self.fn_paired + self.fn_alone)

    @property
    def f1_hovernet(self) -> float | None:
        """2 TP / (2 TP + 2 FP_c + 2 FN_c + FP_d + FN_d); ``None`` when c occurs on neither side."""
        paired = self.fp_paired + self.fn_paired
        return ratio(2 * self.tp, 2 * self.tp + 2 * paired + self.fp_alone + self.fn_alone)

    @property
    def precision_hovernet(self) -> float | None:
        """TP / (TP + 2 FP_c + FP_d); ``None`` without predictions of c."""
        return ratio(self.tp, self.tp + 2 * self.fp_paired + self.fp_alone)

    @property
    def recall_hovernet(self) -> float | None:
        """TP / (TP + 2 FN_c + FN_d); ``None`` without true nuclei of c."""
        return ratio(self.tp, self.tp + 2 * self.fn_paired + self.fn_alone)

    def __add__(self, other: ClassDetection) -> ClassDetection:
        return ClassDetection(
            self.tp + other.tp,
            self.fp_paired + other.fp_paired,
            self.fn_paired + other.fn_paired,
            self.fp_alone + other.fp_alone,
            self.fn_alone + other.fn_alone,
        )


def pair_centroids(
    gt: NDArray[np.float64], pred: NDArray[np.float64], radius: float, *, rule: PairingRule = "most_pairs"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair true with predicted centroids one to one, none further apart than the radius.

    Parameters
    ----------
    gt, pred : ndarray of float64, (n, 2) and (m, 2)
        Centroids, of one unit with the radius; (y, x) or (x, y), both alike.
    radius : float
        Greatest distance of a pair, itself allowed; above 0.
    rule : {"most_pairs", "hovernet"}
        ``most_pairs``: as many pairs as the radius allows, and among such choices the least total distance; exact.
        ``hovernet``: the least total distance over all centroids first, cut at the radius after, as HoVer-Net and
        CellViT do. It can lose pairs that lie within the radius, and needs a table of all distances: it is for tiles.

    Returns
    -------
    gt_at, pred_at : ndarray of int64, (n_pairs,)
        Partners as positions, by ascending ``gt_at``.

    Raises
    ------
    ValueError
        The radius is not positive, a rule of that name does not exist, or ``hovernet`` is asked of too many centroids.

    Notes
    -----
    HoVer-Net and CellViT put one point at (0, 0) in place of an empty set, which gives an empty image a true positive.
    Here an empty set pairs with nothing.
    """
    if not radius > 0:
        raise ValueError(f"a radius must be above 0, not {radius}")
    nothing = np.empty(0, np.int64)
    if rule == "hovernet":
        if len(gt) * len(pred) > _MOST_DISTANCES:
            raise ValueError(f"{len(gt)} × {len(pred)} centroids are too many for the rule hovernet; take most_pairs")
        if not len(gt) or not len(pred):
            return nothing, nothing
        distance = cdist(gt, pred)
        gt_at, pred_at = linear_sum_assignment(distance)
        near = distance[gt_at, pred_at] <= radius
        return gt_at[near].astype(np.int64), pred_at[near].astype(np.int64)
    if rule != "most_pairs":
        raise ValueError(f"there is no rule {rule!r}; there are most_pairs and hovernet")
    if not len(gt) or not len(pred):
        return nothing, nothing
    # The tree compares squares, so a distance of exactly the radius needs room to come through; it is looked at below.
    found = cKDTree(gt).sparse_distance_matrix(cKDTree(pred), radius * (1 + 1e-9), output_type="ndarray")
    rows, cols = found["i"].astype(np.int64), found["j"].astype(np.int64)
    apart = np.hypot(gt[rows, 0] - pred[cols, 0], gt[rows, 1] - pred[cols, 1])
    near = apart <= radius
    rows, cols, apart = rows[near], cols[near], apart[near]
    chosen = best_pairs(rows, cols, 1 - apart / radius, counted=np.ones(rows.size, np.bool_))
    chosen = chosen[np.argsort(rows[chosen], kind="stable")]
    return rows[chosen], cols[chosen]


def detect(
    gt: NDArray[np.float64], pred: NDArray[np.float64], radius: float, *, rule: PairingRule = "most_pairs"
) -> Detection:
    """Detection counts of two sets of centroids.

    Parameters
    ----------
    gt, pred, radius, rule
        As in :func:`pair_centroids`.

    Returns
    -------
    Detection
    """
    tp = int(pair_centroids(gt, pred, radius, rule=rule)[0].size)
    return Detection(tp, len(pred) - tp, len(gt) - tp)


def class_detection(
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    gt_class: NDArray[np.int64],
    pred_class: NDArray[np.int64],
    class_ids: Sequence[int],
    *,
    unknown: int = 255,
) -> dict[int, ClassDetection]:
    """Detection counts by class.

    Parameters
    ----------
    pairs : tuple of ndarray
        Of :func:`pair_centroids`, which does not look at classes.
    gt_class, pred_class : ndarray of int64, (n,) and (m,)
        Class of each centroid.
    class_ids : sequence of int
        Classes asked for.
    unknown : int
        The value of ``gt_class`` that stands for an unknown class. Such a nucleus, and the prediction that is its
        partner, count for no class.

    Returns
    -------
    dict of int to ClassDetection
        By class id.
    """
    gt_at, pred_at = pairs
    gt_alone = np.delete(gt_class, gt_at)
    pred_alone = np.delete(pred_class, pred_at)
    known = gt_class[gt_at] != unknown
    true, predicted = gt_class[gt_at][known], pred_class[pred_at][known]
    return {
        each: ClassDetection(
            tp=int(((true == each) & (predicted == each)).sum()),
            fp_paired=int(((true != each) & (predicted == each)).sum()),
            fn_paired=int(((true == each) & (predicted != each)).sum()),
            fp_alone=int((pred_alone == each).sum()),
            fn_alone=int((gt_alone == each).sum()),
        )
        for each in class_ids
    }
