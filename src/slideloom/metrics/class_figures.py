"""Figures by class of an evaluated slide, and the means over classes that its own row holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.metrics.averaging import mean_by_class
from slideloom.metrics.contingency import Contingency, majority
from slideloom.metrics.conventions import Convention
from slideloom.metrics.detection import class_detection
from slideloom.metrics.panoptic import Panoptic, class_panoptic
from slideloom.metrics.probability import calibration
from slideloom.metrics.scan import Tally
from slideloom.metrics.schemas import CLASS_METRICS
from slideloom.metrics.semantic import UNKNOWN, ClassFigure
from slideloom.slides.tables import ClassTable

__all__ = ["NucleusClasses", "class_means", "class_rows", "nucleus_classes"]

_Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
_MACRO: tuple[ClassFigure, ...] = ("dice", "iou", "precision", "recall")


@dataclass(frozen=True)
class NucleusClasses:
    """Classes of a slide's nuclei.

    Attributes
    ----------
    gt : (n_gt,) int64 array
        The commonest class of each true nucleus' pixels, in the order of the contingency table; 255 unknown.
    pred : (n_pred,) int64 array, or None
        The commonest foreground class of each predicted nucleus' pixels, 0 without any; ``None``: not predicted.
    known : bool
        Whether the truth knows any class.
    """

    gt: NDArray[np.int64]
    pred: NDArray[np.int64] | None
    known: bool


def nucleus_classes(tally: Tally, table: Contingency, classes: ClassTable, has_classes: bool) -> NucleusClasses:
    """Settle the class of every nucleus.

    Parameters
    ----------
    tally : Tally
        Of the slide.
    table : Contingency
        Of its nuclei.
    classes : ClassTable
        Nuclear classes.
    has_classes : bool
        Whether the annotation speaks of classes; decides for a slide without true nuclei.
    """
    gt = majority(*tally.gt_classes.pairs(), table.gt_ids)
    known = bool(np.isin(gt, list(classes.ids)).any()) if table.gt_ids.size else has_classes
    if tally.pred_classes is None:
        return NucleusClasses(gt, None, known)
    ids, values, counts = tally.pred_classes.pairs()
    foreground = values > 0
    return NucleusClasses(gt, majority(ids[foreground], values[foreground], counts[foreground], table.pred_ids), known)


def class_rows(
    tally: Tally,
    table: Contingency,
    of: NucleusClasses,
    classes: ClassTable,
    threshold: float,
    convention: Convention,
    detected: _Pairs,
) -> list[dict[str, Any]]:
    """Rows of ``classes.parquet`` without the slide.

    Parameters
    ----------
    tally, table, of
        Pixels, nuclei and their classes.
    classes : ClassTable
        Nuclear classes.
    threshold : float
        IoU of a match.
    convention : Convention
        How instances match.
    detected : tuple of ndarray
        Pairs of centroids, of :func:`~slideloom.metrics.figures.detected_pairs`.

    Returns
    -------
    list of dict
        The background first; every column of the schema.
    """
    wanted = [(0, "background"), *zip(classes.ids, classes.names, strict=True)]
    lines: list[dict[str, Any]] = [{"class_id": class_id, "class_name": name} for class_id, name in wanted]
    true_pixels = tally.gt_pixels()
    for line in lines:
        if of.known:
            line |= _true(true_pixels, of, line["class_id"])
        if of.pred is not None:
            line |= _predicted(tally, of, line["class_id"])
        if of.known and of.pred is not None:
            line |= _pixels(tally, line["class_id"])
    if of.known and of.pred is not None:
        detections = class_detection(detected, of.gt, of.pred, classes.ids, unknown=UNKNOWN)
        thresholds = {0.5, threshold} if convention.one_to_one else set()
        at = {
            iou: class_panoptic(table, of.gt, of.pred, classes.ids, iou, unknown=UNKNOWN, convention=convention)
            for iou in thresholds
        }
        for line in lines[1:]:
            class_id = line["class_id"]
            if at:
                found = at[threshold][class_id]
                line |= {"tp": found.tp, "fp": found.fp, "fn": found.fn, "iou_sum": found.iou_sum}
                line |= {"pq": found.pq, "dq": found.dq, "sq": found.sq, "f1": at[0.5][class_id].dq}
            near = detections[class_id]
            line |= {"tp_d": near.tp, "fp_paired_d": near.fp_paired, "fn_paired_d": near.fn_paired}
            line |= {"fp_alone_d": near.fp_alone, "fn_alone_d": near.fn_alone, "f1_d": near.f1}
            line |= {"precision_d": near.precision, "recall_d": near.recall, "f1_d_hovernet": near.f1_hovernet}
    return [{column: line.get(column) for column in CLASS_METRICS.names[2:]} for line in lines]


def class_means(
    tally: Tally, of: NucleusClasses, rows: Sequence[Mapping[str, Any]], convention: Convention
) -> dict[str, float | int | None]:
    """Columns of the slide's row that are about classes; empty when they are unknown or were not predicted.

    Parameters
    ----------
    tally, of, convention
        As for :func:`class_rows`.
    rows : sequence of mapping
        What it gave.

    Returns
    -------
    dict
        By column of ``slide.parquet``.
    """
    pixels, scores = tally.confusion, tally.class_scores
    if not of.known or of.pred is None or pixels is None:
        return {}
    nuclear = [row for row in rows if row["class_id"] != 0]
    class_ids = [row["class_id"] for row in nuclear]
    found: dict[str, float | int | None] = {
        "class_accuracy": pixels.accuracy,
        "class_accuracy_nuclei": pixels.accuracy_nuclei,
        "dice_macro_n": pixels.macro("dice", class_ids, background=False).n,
    }
    for figure in _MACRO:
        found[f"{figure}_macro"] = pixels.macro(figure, class_ids, background=False).value
        found[f"{figure}_macro_with_background"] = pixels.macro(figure, class_ids, background=True).value
    if convention.one_to_one:
        by_class = {row["class_id"]: Panoptic(row["tp"], row["fp"], row["fn"], row["iou_sum"]) for row in nuclear}
        found["mpq"] = mean_by_class([by_class], "image", convention=convention).mpq
    if scores is not None:
        found["ece_class"] = calibration(scores.top_label).ece
        found["map_won"] = scores.average_precision_won_macro(class_ids).value
    return found


def _true(true_pixels: NDArray[np.int64], of: NucleusClasses, class_id: int) -> dict[str, Any]:
    pixels, known = int(true_pixels[class_id]), int(true_pixels[:UNKNOWN].sum())
    return {
        "gt_pixels": pixels,
        "gt_fraction": pixels / known if known else None,
        "n_gt": int(np.count_nonzero(of.gt == class_id)) if class_id else None,
    }


def _predicted(tally: Tally, of: NucleusClasses, class_id: int) -> dict[str, Any]:
    if tally.confusion is None:
        return {}
    counts = tally.confusion.known if of.known else tally.confusion.counts
    pixels, total = int(counts[:, class_id].sum()), int(counts.sum())
    return {
        "pred_pixels": pixels,
        "pred_fraction": pixels / total if total else None,
        "n_pred": int(np.count_nonzero(of.pred == class_id)) if class_id else None,
    }


def _pixels(tally: Tally, class_id: int) -> dict[str, Any]:
    if tally.confusion is None:
        return {}
    pixels = tally.confusion.of(class_id)
    won = None if tally.class_scores is None else tally.class_scores.average_precision_won(class_id)
    return {
        "tp_pixels": pixels.tp,
        "dice": pixels.dice,
        "iou": pixels.iou,
        "precision": pixels.precision,
        "recall": pixels.recall,
        "ap_won": won,
    }
