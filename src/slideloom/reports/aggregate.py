"""From slides to experiments: averages with intervals, each by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.metrics.schemas import COMPARED
from slideloom.reports.averages import SlideValues, columns_of, divide, pooled_figures

__all__ = ["IMAGE_METRICS", "main_role", "pooled_line", "rows_by", "slide_values", "summarise_experiments"]

Rows = Sequence[Mapping[str, Any]]
Floats = NDArray[np.float64]
#: By experiment, role and metric: a pooled figure that follows from other tables than ``slides.parquet``.
Pooled = Mapping[tuple[str, str, str], Mapping[str, Any]]

#: Figures that are published as means over images with nuclei, and over the tissues of these.
IMAGE_METRICS = ("pq", "dq", "sq", "bpq", "mpq")
_NUCLEI = ("tp", "fp", "fn", "iou_sum")
_PIXELS = ("gt_pixels", "pred_pixels", "tp_pixels")
_BINARY = ("gt_pixels", "pred_pixels_binary", "tp_pixels_binary")
_CENTROIDS = ("tp_d", "fp_d", "fn_d")
_OUTLINES = ("boundary_gt_pixels", "boundary_pred_pixels", "boundary_gt_near", "boundary_pred_near")
_AT = ("tp_50", "tp_60", "tp_70", "tp_80", "tp_90")
_SIDES = ("n_gt", "n_pred")


def _f1(c: Floats) -> Floats:
    """F1 of columns TP, FP, FN."""
    return divide(2 * c[:, 0], 2 * c[:, 0] + c[:, 1] + c[:, 2])


def _dice(c: Floats) -> Floats:
    """Dice of columns true, predicted, both."""
    return divide(2 * c[:, 2], c[:, 0] + c[:, 1])


def _f1_at(c: Floats) -> Floats:
    """F1 of columns true nuclei, predicted nuclei, and matches at some thresholds: (sets, thresholds)."""
    return divide(2 * c[:, 2:], c[:, :1] + c[:, 1:2])


def _ap_at(c: Floats) -> Floats:
    return divide(c[:, 2:], c[:, :1] + c[:, 1:2] - c[:, 2:])


def _boundary_f1(c: Floats) -> Floats:
    """Harmonic mean of the shares of outlines that are near; 0 where only one side has an outline."""
    recall, precision = (np.nan_to_num(divide(c[:, 2 + side], c[:, side])) for side in (0, 1))
    found = divide(2 * precision * recall, precision + recall)
    return np.where(c[:, :2].any(axis=1), np.nan_to_num(found), np.nan)


#: Counts that each pooled figure follows from, and how: (sets, counts) to (sets,).
_POOLED: dict[str, tuple[tuple[str, ...], Callable[[Floats], Floats]]] = {
    "pq": (_NUCLEI, lambda c: divide(2 * c[:, 3], 2 * c[:, 0] + c[:, 1] + c[:, 2])),
    "dq": (_NUCLEI, _f1),
    "sq": (_NUCLEI, lambda c: divide(c[:, 3], c[:, 0])),
    "precision": (_NUCLEI, lambda c: divide(c[:, 0], c[:, 0] + c[:, 1])),
    "recall": (_NUCLEI, lambda c: divide(c[:, 0], c[:, 0] + c[:, 2])),
    **{f"f1_{name[3:]}": ((*_SIDES, name), lambda c: _f1_at(c)[:, 0]) for name in _AT},
    **{f"ap_{name[3:]}": ((*_SIDES, name), lambda c: _ap_at(c)[:, 0]) for name in _AT},
    "f1_mean": ((*_SIDES, *_AT), lambda c: _f1_at(c).mean(axis=1)),
    "ap_mean": ((*_SIDES, *_AT), lambda c: _ap_at(c).mean(axis=1)),
    "f1_d": (_CENTROIDS, _f1),
    "precision_d": (_CENTROIDS, lambda c: divide(c[:, 0], c[:, 0] + c[:, 1])),
    "recall_d": (_CENTROIDS, lambda c: divide(c[:, 0], c[:, 0] + c[:, 2])),
    "f1_pixel": (_PIXELS, _dice),
    "precision_pixel": (_PIXELS, lambda c: divide(c[:, 2], c[:, 1])),
    "recall_pixel": (_PIXELS, lambda c: divide(c[:, 2], c[:, 0])),
    "dice_binary": (_BINARY, _dice),
    "iou_binary": (_BINARY, lambda c: divide(c[:, 2], c[:, 0] + c[:, 1] - c[:, 2])),
    "precision_binary": (_BINARY, lambda c: divide(c[:, 2], c[:, 1])),
    "recall_binary": (_BINARY, lambda c: divide(c[:, 2], c[:, 0])),
    "boundary_f1": (_OUTLINES, _boundary_f1),
    "boundary_recall": (_OUTLINES, lambda c: divide(c[:, 2], c[:, 0])),
    "boundary_precision": (_OUTLINES, lambda c: divide(c[:, 3], c[:, 1])),
    "surface_dice": (_OUTLINES, lambda c: divide(c[:, 2] + c[:, 3], c[:, 0] + c[:, 1])),
}


def main_role(rows: Rows) -> str:
    """The role that the report is about: test where anything was tested, else val, else whatever there is."""
    present = {row["role"] for row in rows}
    return next((role for role in ("test", "val", *sorted(present)) if role in present), "")


def rows_by(rows: Rows, *keys: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Rows by the values of some columns, in the order in which these are met."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def slide_values(rows: Rows, values: Floats) -> SlideValues:
    """Figures of rows of ``slides.parquet``, (rows, m), slide by slide."""
    slides, patients, folds = ([str(row[name]) for row in rows] for name in ("slide_id", "patient_id", "fold"))
    return SlideValues(slides, patients, folds, values)


def summarise_experiments(slides: Rows, pooled: Pooled | None = None) -> list[dict[str, Any]]:
    """Rows of ``experiments.parquet``.

    Parameters
    ----------
    slides : sequence of mapping
        Rows of ``slides.parquet``.
    pooled : mapping, optional
        Pooled figures that these rows do not tell, as :func:`pooled_line` makes them, by experiment, role and metric.

    Returns
    -------
    list of dict
        One per experiment, role, metric and averaging; without the study.
    """
    result = []
    for (experiment, role), rows in rows_by(slides, "experiment", "role").items():
        shared = {"experiment": experiment, "role": role, "random_weights": bool(rows[0]["random_weights"])}
        given = {metric: line for (*whose, metric), line in (pooled or {}).items() if whose == [experiment, role]}
        for metric, lines in _averagings(rows, given).items():
            result += [shared | {"metric": metric} | line for line in lines]
    return result


def _averagings(rows: Rows, pooled: Mapping[str, Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Every averaging of every metric, of one experiment and role."""
    values = columns_of(rows, COMPARED)
    of_slides = slide_values(rows, values)
    found = {"slide": of_slides.over_slides(), "patient": of_slides.over_patients()}
    lines = {
        metric: [{"averaging": averaging, **figures.row(k)} for averaging, figures in found.items()]
        for k, metric in enumerate(COMPARED)
    }
    of_counts = {**{metric: _pooled(rows, metric) for metric in _POOLED}, **pooled}
    for metric, line in of_counts.items():
        lines[metric].append({"averaging": "pooled", **line})
    if len({row["fold"] for row in rows}) > 1:
        over_folds = of_slides.over_folds()
        for k, metric in enumerate(COMPARED):
            lines[metric].append({"averaging": "fold", **over_folds.row(k)})
    for averaging, k, line in _of_images(rows, values[:, [COMPARED.index(metric) for metric in IMAGE_METRICS]]):
        lines[IMAGE_METRICS[k]].append({"averaging": averaging, **line})
    return lines


def _of_images(rows: Rows, values: Floats) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """PanNuke's averagings: over the slides whose truth holds a nucleus, and over the tissues of these."""
    holds = columns_of(rows, ["n_gt"])[:, 0] > 0
    tissues = {str(row["slide_id"]): row["tissue"] for row in rows if row.get("tissue") is not None}
    images = slide_values([row for row, kept in zip(rows, holds, strict=True) if kept], values[holds])
    found = {"image": images.over_slides()}
    if tissues and images.slides.size:
        placed = images.take(np.isin(images.slides, list(tissues)))
        found["tissue"] = placed.over_groups([tissues[slide] for slide in placed.slides.tolist()])
    for averaging, figures in found.items():
        for k in range(len(IMAGE_METRICS)):
            yield averaging, k, figures.row(k)


def _pooled(rows: Rows, metric: str) -> dict[str, Any]:
    columns, formula = _POOLED[metric]
    counts = columns_of(rows, columns)
    known = np.asarray(np.isfinite(counts).all(axis=1), np.bool_)
    if columns[:2] == _SIDES:
        # A pair that counts twice (instanseg_pairs) makes F1 another thing than twice the pairs over both sides.
        n_gt, n_pred, tp, fp, fn = columns_of(rows, (*_SIDES, *_NUCLEI[:3])).T
        known &= (tp + fp == n_pred) & (tp + fn == n_gt)
    kept = [row for row, one in zip(rows, known, strict=True) if one]
    return pooled_line(
        counts[known],
        [str(row["patient_id"]) for row in kept],
        len({row["slide_id"] for row in kept}),
        lambda c: formula(c)[:, None],
    )[0]


def pooled_line(
    counts: Floats, patients: Sequence[str], n_slides: int, figures: Callable[[Floats], Floats]
) -> list[dict[str, Any]]:
    """Figures of summed counts as columns of a report table.

    Parameters
    ----------
    counts, patients, figures
        As :func:`~slideloom.reports.averages.pooled_figures` takes them.
    n_slides : int
        Slides behind the counts.

    Returns
    -------
    list of dict
        For each figure ``n``, ``n_slides``, ``n_patients``, ``mean``, ``std``, ``ci_low``, ``ci_high``.
    """
    about = {"n": n_slides, "n_slides": n_slides, "n_patients": len(set(patients)), "std": None}
    ends = zip(*(part.tolist() for part in pooled_figures(counts, patients, figures)), strict=True)
    names = ("mean", "ci_low", "ci_high")
    return [
        about | {name: None if value != value else value for name, value in zip(names, line, strict=True)}
        for line in ends
    ]
