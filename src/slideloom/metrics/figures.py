"""Every instance figure of one contingency table, by name."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slideloom.metrics.contingency import Contingency
from slideloom.metrics.conventions import DEFAULT, Convention, convention_named
from slideloom.metrics.detection import Detection, PairingRule, pair_centroids
from slideloom.metrics.panoptic import F1_THRESHOLDS, aji, aji_plus, dice_2, mean_defined, panoptic, panoptic_at
from slideloom.metrics.splits import count_splits

__all__ = ["detected_pairs", "instance_figures"]


def detected_pairs(
    table: Contingency, radius_px: float, *, pairing: PairingRule = "most_pairs"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair the centroids of a table's true and predicted instances.

    Parameters
    ----------
    table : Contingency
        With centroids.
    radius_px : float
        Greatest distance of a pair, in pixels: :data:`~slideloom.metrics.detection.RADIUS_UM` over the pixel size.
    pairing : {"most_pairs", "hovernet"}
        As in :func:`~slideloom.metrics.detection.pair_centroids`.

    Returns
    -------
    gt_at, pred_at : ndarray of int64, (n_pairs,)
        Partners as positions in ``gt_ids`` and ``pred_ids``.

    Raises
    ------
    ValueError
        The table has no centroids.
    """
    if table.gt_centroid is None or table.pred_centroid is None:
        raise ValueError("detection needs centroids: count the blocks with their origin")
    return pair_centroids(table.gt_centroid, table.pred_centroid, radius_px, rule=pairing)


def instance_figures(
    table: Contingency,
    *,
    threshold: float = 0.5,
    convention: str | Convention = DEFAULT,
    detected: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
) -> dict[str, int | float | None]:
    """All instance figures, classes aside.

    Parameters
    ----------
    table : Contingency
        Of true and predicted labels.
    threshold : float
        IoU of PQ, DQ, SQ, precision and recall; F1 and AP have their own five.
    convention : str or Convention
        How instances match.
    detected : tuple of ndarray, optional
        Pairs of centroids, of :func:`detected_pairs`. Without them the figures of detection are ``None``.

    Returns
    -------
    dict
        Counts: ``n_gt``, ``n_pred``, ``tp``, ``fp``, ``fn``; ``splits``, ``split_pieces``, ``merges``,
        ``merged_nuclei``; ``tp_50`` to ``tp_90``; ``tp_d``, ``fp_d``, ``fn_d`` (``None`` without pairs of centroids).
        ``iou_sum``, ``pq``, ``dq``, ``sq``, ``precision``, ``recall``, ``aji``, ``aji_plus``, ``dice_2``;
        ``f1_50`` to ``f1_90``, ``ap_50`` to ``ap_90``; ``f1_mean``, ``sq_mean``, ``pq_mean``, ``ap_mean`` over the five
        thresholds; ``f1_d``, ``precision_d``, ``recall_d`` of detection.

    Raises
    ------
    ValueError
        As :func:`~slideloom.metrics.panoptic.panoptic`.

    Notes
    -----
    F1, PQ, DQ, AP, AJI and AJI+ are ``None`` when truth and prediction are both empty; SQ when nothing matched;
    precision without predictions; recall without truth; Dice-2 when nothing overlaps.
    """
    rule = convention_named(convention)
    sweep = panoptic_at(table, convention=rule)
    matched = dict(zip(F1_THRESHOLDS, sweep, strict=True)).get(threshold) or panoptic(table, threshold, convention=rule)
    split = count_splits(table)
    figures: dict[str, int | float | None] = {
        "n_gt": int(table.gt_ids.size),
        "n_pred": int(table.pred_ids.size),
        "tp": matched.tp,
        "fp": matched.fp,
        "fn": matched.fn,
        "iou_sum": matched.iou_sum,
        "pq": matched.pq,
        "dq": matched.dq,
        "sq": matched.sq,
        "precision": matched.precision,
        "recall": matched.recall,
        "aji": aji(table),
        "aji_plus": aji_plus(table),
        "dice_2": dice_2(table),
        "f1_mean": mean_defined([each.dq for each in sweep]),
        "sq_mean": mean_defined([each.sq for each in sweep]),
        "pq_mean": mean_defined([each.pq for each in sweep]),
        "ap_mean": mean_defined([each.ap for each in sweep]),
        "splits": split.splits,
        "split_pieces": split.pieces,
        "merges": split.merges,
        "merged_nuclei": split.merged,
    }
    for iou, each in zip(F1_THRESHOLDS, sweep, strict=True):
        figures[f"tp_{iou * 100:.0f}"] = each.tp
        figures[f"f1_{iou * 100:.0f}"] = each.dq
        figures[f"ap_{iou * 100:.0f}"] = each.ap
    if detected is None:
        return figures | dict.fromkeys(("tp_d", "fp_d", "fn_d", "f1_d", "precision_d", "recall_d"))
    tp = int(detected[0].size)
    found = Detection(tp, int(table.pred_ids.size) - tp, int(table.gt_ids.size) - tp)
    return figures | {
        "tp_d": found.tp,
        "fp_d": found.fp,
        "fn_d": found.fn,
        "f1_d": found.f1,
        "precision_d": found.precision,
        "recall_d": found.recall,
    }
