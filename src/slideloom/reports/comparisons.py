"""Is a difference real? Pairs of experiments on shared slides and folds, with intervals and corrected p values.

Patients are the independent units: an interval resamples patients with all their slides, a permutation flips the sign
of a patient's slides together. All pairs that share the same slides are worked at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.metrics.schemas import COMPARED
from slideloom.metrics.schemas import LESS_IS_BETTER as SMALL_SCORES
from slideloom.reports.resampling import draws, holm, percentiles, sign_flip_ps, smallest_p, t_half_width

__all__ = ["LESS_IS_BETTER", "LEVEL", "compare_experiments", "verdict"]

Rows = Sequence[Mapping[str, Any]]
Floats = NDArray[np.float64]
Integers = NDArray[np.intp]

#: A difference counts as shown when its adjusted p value is below, and its interval leaves out 0.
LEVEL = 0.05
#: Figures that are better when smaller.
LESS_IS_BETTER = SMALL_SCORES | {"val_loss"}
_COUNTS = ("n", "n_patients", "n_family", "n_folds")


def compare_experiments(
    slides: Rows, splits: Mapping[str, str] | None = None, metrics: Sequence[str] = COMPARED
) -> list[dict[str, Any]]:
    """Rows of ``comparisons.parquet``.

    Parameters
    ----------
    slides : sequence of mapping
        Rows of ``slides.parquet``, or of any table with ``experiment``, ``fold``, ``slide_id``, ``patient_id``,
        ``role``, ``random_weights`` and the metrics.
    splits : mapping of str to str, optional
        Name of each experiment's split. Folds are paired by name where two experiments share their split; left out: all
        share one.
    metrics : sequence of str
        What is compared.

    Returns
    -------
    list of dict
        One per pair of experiments, role and metric, where they share at least one slide; without the study.

    Notes
    -----
    A slide counts once, however many folds predicted it. Under one split its difference is the mean over the folds in
    which both experiments have a value; under two splits each side's folds are averaged first. p values are adjusted
    by Holm's method over the family of all pairs of one role and metric.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for role in dict.fromkeys(row["role"] for row in slides):
        block = _Block([row for row in slides if row["role"] == role], splits, metrics)
        for pair, lines in block.compared():
            found.setdefault(pair, []).extend({"role": role, **line} for line in lines)
    order = dict.fromkeys(row["experiment"] for row in slides)
    return [line for pair in itertools.combinations(order, 2) for line in found.get(pair, ())]


@dataclass(frozen=True)
class _Pairs:
    """Paired values of one metric: (pairs, slides), NaN where a pair does not share the slide."""

    a: Floats
    b: Floats
    #: Mean difference of each shared fold, (pairs, folds); NaN where there is none.
    by_fold: Floats


class _Block:
    """The slides of one role as arrays."""

    def __init__(self, rows: Rows, splits: Mapping[str, str] | None, metrics: Sequence[str]) -> None:
        self.metrics = metrics
        self.names = list(dict.fromkeys(row["experiment"] for row in rows))
        folds = list(dict.fromkeys(row["fold"] for row in rows))
        slides = sorted({row["slide_id"] for row in rows})
        patients = {row["slide_id"]: str(row["patient_id"]) for row in rows}
        chance = {row["experiment"] for row in rows if row["random_weights"]}
        self.random = {name: name in chance for name in self.names}
        #: Patient of each slide, numbered in sorted order.
        self.patient_of: Integers = np.unique([patients[slide] for slide in slides], return_inverse=True)[1]
        at = [{name: k for k, name in enumerate(axis)} for axis in (self.names, folds, slides)]
        index = np.array([(at[0][r["experiment"]], at[1][r["fold"]], at[2][r["slide_id"]]) for r in rows], np.intp).T
        shape = (len(self.names), len(folds), len(slides))
        seen = np.zeros(shape, bool)
        seen[tuple(index)] = True
        self.values: dict[str, Floats] = {}
        for metric in metrics:
            self.values[metric] = np.full(shape, np.nan)
            self.values[metric][tuple(index)] = [np.nan if row[metric] is None else row[metric] for row in rows]
        pairs = np.array(list(itertools.combinations(range(len(self.names)), 2)), np.intp).reshape(-1, 2)
        by_slide: NDArray[np.bool_] = seen.max(axis=1)
        shared = (by_slide[pairs[:, 0]] & by_slide[pairs[:, 1]]).any(axis=1)
        self.pairs = pairs[shared]
        named = [(splits or {}).get(name, "") for name in self.names]
        self.one_split = np.array([named[a] == named[b] for a, b in self.pairs], bool)

    def compared(self) -> list[tuple[tuple[str, str], list[dict[str, Any]]]]:
        """Pairs of experiments, in order, and a line for each metric."""
        columns = {metric: self._columns(metric) for metric in self.metrics}
        result = []
        for k, (a, b) in enumerate(self.pairs):
            pair = self.names[a], self.names[b]
            about = {"experiment_a": pair[0], "experiment_b": pair[1]}
            about |= {"random_weights": self.random[pair[0]] or self.random[pair[1]]}
            lines = [
                about | {"metric": metric} | {name: _plain(name, column[k]) for name, column in columns[metric].items()}
                for metric in self.metrics
            ]
            result.append((pair, lines))
        return result

    def _columns(self, metric: str) -> dict[str, Floats]:
        """Every figure of every pair, (pairs,) each; NaN where undefined."""
        paired = self._paired(self.values[metric])
        difference = paired.b - paired.a
        shared = np.isfinite(difference)
        columns = {
            "n": shared.sum(axis=1).astype(np.float64),
            "mean_a": _mean(paired.a, shared),
            "mean_b": _mean(paired.b, shared),
            "difference": _mean(difference, shared),
        }
        columns |= self._tested(difference, shared)
        columns["p_adjusted"] = holm(columns["p_value"])
        tested = np.isfinite(columns["p_value"])
        columns["n_family"] = np.full(len(self.pairs), tested.sum(), np.float64)
        smallest = np.where(tested, smallest_p(np.maximum(columns["n_patients"], 1)), np.nan)
        columns |= {"p_smallest": smallest, "p_adjusted_smallest": holm(smallest)}
        return columns | _over_folds(paired.by_fold)

    def _paired(self, values: Floats) -> _Pairs:
        a, b = values[self.pairs[:, 0]], values[self.pairs[:, 1]]
        both = np.isfinite(a) & np.isfinite(b)
        same = self.one_split[:, None, None]
        left = _mean(a, np.where(same, both, np.isfinite(a)), axis=1)
        right = _mean(b, np.where(same, both, np.isfinite(b)), axis=1)
        shared = np.isfinite(left) & np.isfinite(right)
        by_fold = _mean(b - a, both & same, axis=2)
        return _Pairs(np.where(shared, left, np.nan), np.where(shared, right, np.nan), by_fold)

    def _tested(self, difference: Floats, shared: NDArray[np.bool_]) -> dict[str, Floats]:
        """Interval and p value; pairs that share the same slides are one piece of arithmetic."""
        empty = np.full(len(self.pairs), np.nan)
        found = {name: empty.copy() for name in ("n_patients", "ci_low", "ci_high", "p_value")}
        patterns, which = np.unique(shared, axis=0, return_inverse=True)
        for k, slides in enumerate(patterns):
            pairs = np.flatnonzero(which.reshape(-1) == k)
            patients, at = np.unique(self.patient_of[slides], return_inverse=True)
            found["n_patients"][pairs] = patients.size
            if patients.size < 2:
                continue
            member = np.equal.outer(at, np.arange(patients.size)).astype(np.float64)
            sums = difference[np.ix_(pairs, np.flatnonzero(slides))] @ member
            drawn = draws(patients.size)
            ends = percentiles(drawn @ sums.T / (drawn @ member.sum(axis=0))[:, None])
            found["ci_low"][pairs], found["ci_high"][pairs] = ends
            found["p_value"][pairs] = sign_flip_ps(sums)
        return found


def _mean(values: Floats, where: NDArray[np.bool_], axis: int = 1) -> Floats:
    count = where.sum(axis=axis)
    total = np.where(where, values, 0.0).sum(axis=axis)
    mean: Floats = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return mean


def _over_folds(by_fold: Floats) -> dict[str, Floats]:
    there = np.isfinite(by_fold)
    n = there.sum(axis=1).astype(np.float64)
    mean = _mean(by_fold, there)
    squares = np.where(there, (by_fold - mean[:, None]) ** 2, 0.0).sum(axis=1)
    std = np.sqrt(np.divide(squares, n - 1, out=np.full(n.shape, np.nan), where=n > 1))
    half = t_half_width(std, n)
    return {
        "n_folds": n, "fold_difference": mean, "fold_std": std, "fold_ci_low": mean - half, "fold_ci_high": mean + half,
    }  # fmt: skip


def _plain(name: str, value: np.float64) -> float | int | None:
    if name in _COUNTS:
        return int(value)
    return None if np.isnan(value) else float(value)


def verdict(row: Mapping[str, Any]) -> str:
    """What a comparison says, in words.

    Parameters
    ----------
    row : mapping
        A row of ``comparisons.parquet``.

    Returns
    -------
    str
        Which experiment is better, where p_adjusted is below 0.05 and the interval leaves out 0; else that no
        difference was shown, or that none could have been.
    """
    p = row["p_adjusted"]
    if p is None:
        return "cannot be told: no shared slide" if not row["n"] else "cannot be told: one patient"
    if p < LEVEL and (row["ci_low"] > 0 or row["ci_high"] < 0):
        less = row["metric"] in LESS_IS_BETTER
        better = row["experiment_b" if (row["difference"] > 0) != less else "experiment_a"]
        return f"{better} better, p_adj = {p:.2g}"
    if row["p_adjusted_smallest"] >= LEVEL:
        return f"no difference shown; none could be: {_too_few(row)}"
    return f"no difference shown, p_adj = {p:.2g}"


def _too_few(row: Mapping[str, Any]) -> str:
    patients = f"{row['n_patients']} patients"
    if row["p_smallest"] >= LEVEL:
        return f"with {patients} no p is below {row['p_smallest']:.2g}"
    return f"with {patients} and {row['n_family']} pairs no p_adj is below {row['p_adjusted_smallest']:.2g}"
