"""Every instance figure of one contingency table, by name."""

from __future__ import annotations

from slideloom.metrics.contingency import Contingency
from slideloom.metrics.conventions import DEFAULT, Convention, convention_named
from slideloom.metrics.detection import PairingRule, detect
from slideloom.metrics.panoptic import F1_THRESHOLDS, aji, aji_plus, dice_2, mean_defined, panoptic, panoptic_at
from slideloom.metrics.splits import count_splits

__all__ = ["instance_figures"]


def instance_figures(
    table: Contingency,
    *,
    threshold: float = 0.5,
    radius_px: float | None = None,
    convention: str | Convention = DEFAULT,
    pairing: PairingRule = "most_pairs",
) -> dict[str, int | float | None]:
    """All instance figures, classes aside.

    Parameters
    ----------
    table : Contingency
        Of true and predicted labels.
    threshold : float
        IoU of PQ, DQ, SQ, precision and recall; F1 and AP have their own five.
    radius_px : float, optional
        Greatest distance of two centroids that are one detection, in pixels:
        :data:`~slideloom.metrics.detection.RADIUS_UM` over the pixel size. Without it the figures of detection are
        ``None``.
    convention : str or Convention
        How instances match.
    pairing : {"most_pairs", "hovernet"}
        How centroids pair.

    Returns
    -------
    dict
        Counts: ``n_gt``, ``n_pred``, ``tp``, ``fp``, ``fn``; ``splits``, ``split_pieces``, ``merges``,
        ``merged_nuclei``; ``tp_d``, ``fp_d``, ``fn_d`` (``None`` without a radius).
        ``iou_sum``, ``pq``, ``dq``, ``sq``, ``precision``, ``recall``, ``aji``, ``aji_plus``, ``dice_2``;
        ``f1_50`` to ``f1_90``, ``ap_50`` to ``ap_90``; ``f1_mean``, ``sq_mean``, ``pq_mean``, ``ap_mean`` over the five
        thresholds; ``f1_d``, ``precision_d``, ``recall_d`` of detection.

    Raises
    ------
    ValueError
        A radius is given and the table has no centroids, or as :func:`~slideloom.metrics.panoptic.panoptic`.

    Notes
    -----
    F1, PQ, DQ, AP, AJI and AJI+ are ``None`` when truth and prediction are both empty; SQ when nothing matched;
    precision without predictions; recall without truth; Dice-2 when nothing overlaps.
    """
    rule = convention_named(convention)
    matched = panoptic(table, threshold, convention=rule)
    sweep = panoptic_at(table, convention=rule)
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
        figures[f"f1_{iou * 100:.0f}"] = each.dq
        figures[f"ap_{iou * 100:.0f}"] = each.ap
    figures |= dict.fromkeys(("tp_d", "fp_d", "fn_d", "f1_d", "precision_d", "recall_d"))
    if radius_px is not None:
        if table.gt_centroid is None or table.pred_centroid is None:
            raise ValueError("detection needs centroids: count the blocks with their origin")
        found = detect(table.gt_centroid, table.pred_centroid, radius_px, rule=pairing)
        figures |= {
            "tp_d": found.tp,
            "fp_d": found.fp,
            "fn_d": found.fn,
            "f1_d": found.f1,
            "precision_d": found.precision,
            "recall_d": found.recall,
        }
    return figures
