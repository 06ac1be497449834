"""From slides to experiments: averages with intervals.

Patients, not slides, are the independent units: every interval resamples patients with all their slides, as matrix
arithmetic on per-patient sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.metrics.schemas import SCORES
from slideloom.reports.resampling import draws, percentiles

__all__ = ["main_role", "summarise_experiments"]

Rows = Sequence[Mapping[str, Any]]
Floats = NDArray[np.float64]

_COUNTS = ("tp", "fp", "fn", "iou_sum", "gt_pixels", "pred_pixels", "tp_pixels")


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """Quotient, NaN where the denominator is 0."""
    quotient: Floats = np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
    return quotient


#: How each pooled figure follows from summed counts, columns in the order of _COUNTS.
_POOLED: dict[str, Callable[[Floats], Floats]] = {
    "pq": lambda c: _divide(2 * c[:, 3], 2 * c[:, 0] + c[:, 1] + c[:, 2]),
    "dq": lambda c: _divide(2 * c[:, 0], 2 * c[:, 0] + c[:, 1] + c[:, 2]),
    "sq": lambda c: _divide(c[:, 3], c[:, 0]),
    "precision": lambda c: _divide(c[:, 0], c[:, 0] + c[:, 1]),
    "recall": lambda c: _divide(c[:, 0], c[:, 0] + c[:, 2]),
    "f1_pixel": lambda c: _divide(2 * c[:, 6], c[:, 4] + c[:, 5]),
    "precision_pixel": lambda c: _divide(c[:, 6], c[:, 5]),
    "recall_pixel": lambda c: _divide(c[:, 6], c[:, 4]),
}


def main_role(rows: Rows) -> str:
    """The role that the report is about: test where anything was tested, else val, else whatever there is."""
    present = {row["role"] for row in rows}
    return next((role for role in ("test", "val", *sorted(present)) if role in present), "")


def summarise_experiments(slides: Rows) -> list[dict[str, Any]]:
    """Rows of ``experiments.parquet``.

    Parameters
    ----------
    slides : sequence of mapping
        Rows of ``slides.parquet``.

    Returns
    -------
    list of dict
        One per experiment, role, metric and averaging; without the study.
    """
    result = []
    for (experiment, role), rows in _groups(slides, "experiment", "role").items():
        shared = {"experiment": experiment, "role": role, "random_weights": bool(rows[0]["random_weights"])}
        for metric in SCORES:
            defined = [row for row in rows if row[metric] is not None]
            own = _one_a_slide(defined, metric)
            counts = {"n_slides": len(own), "n_patients": len({row["patient_id"] for row in own})}
            lines = [_mean_over_slides(own, metric), _mean_over_patients(own, metric)]
            if metric in _POOLED:
                lines.append(_pooled(rows, metric))
            if len({row["fold"] for row in rows}) > 1:
                lines.append(_mean_over_folds(defined, metric))
            result += [shared | {"metric": metric} | counts | line for line in lines]
    return result


def _groups(rows: Rows, *keys: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _one_a_slide(rows: Rows, metric: str) -> list[dict[str, Any]]:
    """A row a slide: one that several folds predicted is one slide, with the mean of its figures."""
    result = []
    for (slide,), own in _groups(rows, "slide_id").items():
        mean = sum(row[metric] for row in own) / len(own)
        result.append({"slide_id": slide, "patient_id": own[0]["patient_id"], metric: mean})
    return result


def _by_patient(rows: Rows, columns: Sequence[str]) -> Floats:
    """Sums per patient, (patients, columns + 1); the last column counts the slides. Patients in sorted order."""
    names, at = np.unique([str(row["patient_id"]) for row in rows], return_inverse=True)
    values = np.array([[float(row[column]) for column in columns] + [1.0] for row in rows]).reshape(len(rows), -1)
    sums = np.zeros((names.size, len(columns) + 1))
    np.add.at(sums, at, values)
    return sums


def _interval(values: Floats) -> dict[str, float | None]:
    low, high = percentiles(values[:, None])[:, 0].tolist()
    return {"ci_low": low, "ci_high": high} if low == low else {"ci_low": None, "ci_high": None}


def _spread(values: Sequence[float]) -> dict[str, float | int | None]:
    return {
        "n": len(values),
        "mean": float(np.mean(values)) if len(values) else None,
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "ci_low": None,
        "ci_high": None,
    }


def _mean_over_slides(rows: Rows, metric: str) -> dict[str, Any]:
    line: dict[str, Any] = {"averaging": "slide", **_spread([row[metric] for row in rows])}
    sums = _by_patient(rows, [metric]) if rows else np.zeros((0, 2))
    if len(sums) > 1:
        drawn = draws(len(sums)) @ sums
        line |= _interval(_divide(drawn[:, 0], drawn[:, 1]))
    return line


def _mean_over_patients(rows: Rows, metric: str) -> dict[str, Any]:
    sums = _by_patient(rows, [metric]) if rows else np.zeros((0, 2))
    means = sums[:, 0] / sums[:, 1]
    line: dict[str, Any] = {"averaging": "patient", **_spread(means.tolist())}
    if len(means) > 1:
        line |= _interval(draws(len(means)) @ means / len(means))
    return line


def _mean_over_folds(rows: Rows, metric: str) -> dict[str, Any]:
    folds = _groups(rows, "fold").values()
    return {"averaging": "fold", **_spread([float(np.mean([row[metric] for row in fold])) for fold in folds])}


def _pooled(rows: Rows, metric: str) -> dict[str, Any]:
    sums = _by_patient(rows, _COUNTS)
    formula = _POOLED[metric]
    value = float(formula(sums.sum(axis=0, keepdims=True))[0])
    line: dict[str, Any] = {"averaging": "pooled", **_spread([])}
    n_slides = len({row["slide_id"] for row in rows})
    line |= {"n": n_slides, "n_slides": n_slides, "n_patients": len(sums)}
    line["mean"] = value if np.isfinite(value) else None
    if len(sums) > 1:
        line |= _interval(formula(draws(len(sums)) @ sums))
    return line
