"""From slides to experiments: averages with intervals, and paired comparisons.

Patients, not slides, are the independent units: every interval resamples patients with all their slides, every
permutation flips a patient's slides together. All resampling is matrix arithmetic on per-patient sums, with a fixed
seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.metrics.schemas import SCORES

__all__ = ["compare_experiments", "sign_flip_p", "summarise_experiments"]

Rows = Sequence[Mapping[str, Any]]
Floats = NDArray[np.float64]

_SEED = 20260101
_RESAMPLES = 2000
_FLIPS = 20_000
_EXACT_UP_TO = 12
#: Signs drawn at a time; bounds memory.
_AT_ONCE = 1 << 21
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
            counts = {"n_slides": len(defined), "n_patients": len({row["patient_id"] for row in defined})}
            lines = [_mean_over_slides(defined, metric), _mean_over_patients(defined, metric)]
            if metric in _POOLED:
                lines.append(_pooled(rows, metric))
            if len({row["fold"] for row in rows}) > 1:
                lines.append(_mean_over_folds(defined, metric))
            result += [shared | {"metric": metric} | counts | line for line in lines]
    return result


def compare_experiments(slides: Rows) -> list[dict[str, Any]]:
    """Rows of ``comparisons.parquet``.

    Parameters
    ----------
    slides : sequence of mapping
        Rows of ``slides.parquet``.

    Returns
    -------
    list of dict
        One per pair of experiments, role and metric, where they share at least one slide; without the study.
    """
    by_run = _groups(slides, "experiment", "role")
    result = []
    for (first, second), role in itertools.product(
        itertools.combinations(dict.fromkeys(row["experiment"] for row in slides), 2),
        dict.fromkeys(row["role"] for row in slides),
    ):
        a, b = by_run.get((first, role), []), by_run.get((second, role), [])
        if not {row["slide_id"] for row in a} & {row["slide_id"] for row in b}:
            continue
        shared = {"experiment_a": first, "experiment_b": second, "role": role}
        shared["random_weights"] = bool(a[0]["random_weights"] or b[0]["random_weights"])
        result += [shared | {"metric": metric} | _compare(a, b, metric) for metric in SCORES]
    return result


def _groups(rows: Rows, *keys: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _by_patient(rows: Rows, columns: Sequence[str]) -> Floats:
    """Sums per patient, (patients, columns + 1); the last column counts the slides. Patients in sorted order."""
    names, at = np.unique([str(row["patient_id"]) for row in rows], return_inverse=True)
    values = np.array([[float(row[column]) for column in columns] + [1.0] for row in rows]).reshape(len(rows), -1)
    sums = np.zeros((names.size, len(columns) + 1))
    np.add.at(sums, at, values)
    return sums


@lru_cache(maxsize=4)
def _resamples(n: int) -> Floats:
    """How often each of n patients is drawn in each resample, (resamples, n); the same for every figure."""
    rng = np.random.default_rng(_SEED)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)
    drawn.setflags(write=False)
    return drawn


def _interval(values: Floats) -> dict[str, float | None]:
    values = values[np.isfinite(values)]
    if not values.size:
        return {"ci_low": None, "ci_high": None}
    low, high = np.percentile(values, [2.5, 97.5])
    return {"ci_low": float(low), "ci_high": float(high)}


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
        drawn = _resamples(len(sums)) @ sums
        line |= _interval(_divide(drawn[:, 0], drawn[:, 1]))
    return line


def _mean_over_patients(rows: Rows, metric: str) -> dict[str, Any]:
    sums = _by_patient(rows, [metric]) if rows else np.zeros((0, 2))
    means = sums[:, 0] / sums[:, 1]
    line: dict[str, Any] = {"averaging": "patient", **_spread(means.tolist())}
    if len(means) > 1:
        line |= _interval(_resamples(len(means)) @ means / len(means))
    return line


def _mean_over_folds(rows: Rows, metric: str) -> dict[str, Any]:
    folds = _groups(rows, "fold").values()
    return {"averaging": "fold", **_spread([float(np.mean([row[metric] for row in fold])) for fold in folds])}


def _pooled(rows: Rows, metric: str) -> dict[str, Any]:
    sums = _by_patient(rows, _COUNTS)
    formula = _POOLED[metric]
    value = float(formula(sums.sum(axis=0, keepdims=True))[0])
    line: dict[str, Any] = {"averaging": "pooled", **_spread([])}
    line |= {"n": len(rows), "n_slides": len(rows), "n_patients": len(sums)}
    line["mean"] = value if np.isfinite(value) else None
    if len(sums) > 1:
        line |= _interval(formula(_resamples(len(sums)) @ sums))
    return line


def _compare(a: Rows, b: Rows, metric: str) -> dict[str, Any]:
    left, right = _per_slide(a, metric), _per_slide(b, metric)
    patients = {row["slide_id"]: row["patient_id"] for row in a}
    shared = sorted(left.keys() & right.keys())
    rows = [
        {"patient_id": patients[slide], "a": left[slide], "b": right[slide], "d": right[slide] - left[slide]}
        for slide in shared
    ]
    line: dict[str, Any] = {"n": len(rows), "n_patients": len({row["patient_id"] for row in rows})}
    line |= dict.fromkeys(("mean_a", "mean_b", "difference", "ci_low", "ci_high", "p_value"))
    if not rows:
        return line
    for name, column in (("mean_a", "a"), ("mean_b", "b"), ("difference", "d")):
        line[name] = float(np.mean([row[column] for row in rows]))
    sums = _by_patient(rows, ["d"])
    if len(sums) > 1:
        drawn = _resamples(len(sums)) @ sums
        line |= _interval(drawn[:, 0] / drawn[:, 1])
        line["p_value"] = sign_flip_p(sums[:, 0])
    return line


def _per_slide(rows: Rows, metric: str) -> dict[str, float]:
    groups = _groups([row for row in rows if row[metric] is not None], "slide_id")
    return {slide: float(np.mean([row[metric] for row in group])) for (slide,), group in groups.items()}


def sign_flip_p(differences: Floats) -> float:
    """Two-sided p value of the hypothesis that differences are as likely positive as negative.

    Parameters
    ----------
    differences : ndarray of float64, (n,)
        Paired differences (sums) of independent units.

    Returns
    -------
    float
        Share of sign patterns whose absolute sum is at least the one observed: of all 2ⁿ up to n = 12, else of 20 000
        random ones and the one observed.

    Examples
    --------
    >>> sign_flip_p(np.array([1.0, 2.0, 3.0]))
    0.25
    """
    n = differences.size
    total = float(differences.sum())
    # Sums of the same numbers in another order differ in their last bits; that must not decide.
    least = abs(total) - 1e-12 * float(np.abs(differences).sum())
    if n <= _EXACT_UP_TO:
        kept = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((np.abs(2 * (kept @ differences) - total) >= least).mean())
    rng = np.random.default_rng(_SEED)
    rows = max(1, _AT_ONCE // n)
    hits = 0
    for start in range(0, _FLIPS, rows):
        kept = rng.integers(0, 2, (min(rows, _FLIPS - start), n), np.uint8)
        hits += int((np.abs(2 * (kept @ differences) - total) >= least).sum())
    return (hits + 1) / (_FLIPS + 1)
