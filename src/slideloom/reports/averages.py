"""Averages of many figures at once, with intervals over patients.

Patients, not slides, are the independent units: every interval resamples patients with all their slides, as matrix
arithmetic on per-patient sums. Figures that the same patients have are one piece of arithmetic. A figure that a slide
does not have (NaN) plays no part in its average, and is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from slideloom.reports.resampling import draws, percentiles

__all__ = ["Averages", "SlideValues", "columns_of", "divide", "pooled_figures"]

Floats = NDArray[np.float64]
Integers = NDArray[np.intp]
Texts = NDArray[np.str_]
Rows = Sequence[Mapping[str, Any]]


def divide(numerator: Floats, denominator: NDArray[Any]) -> Floats:
    """Quotient, NaN where the denominator is 0."""
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    quotient: Floats = np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator > 0)
    return quotient


def columns_of(rows: Rows | pa.Table, names: Sequence[str]) -> Floats:
    """Columns of numbers.

    Parameters
    ----------
    rows : sequence of mapping, or pyarrow.Table
        Rows of a report table.
    names : sequence of str
        Columns.

    Returns
    -------
    ndarray of float64, (rows, names)
        NaN where a value is null or a row lacks the column.
    """
    if isinstance(rows, pa.Table):
        found = [rows.column(name).to_numpy() for name in names]
    else:
        found = [np.array([row.get(name) for row in rows], np.float64) for name in names]
    return np.array(found, np.float64).reshape(len(names), len(rows)).T


@dataclass(frozen=True)
class Averages:
    """Averages of m figures, (m,) each; NaN where undefined.

    Attributes
    ----------
    n : ndarray of int
        What was averaged.
    n_slides, n_patients : ndarray of int
        Slides and patients with a value.
    mean, std, ci_low, ci_high : ndarray of float64
        Mean, standard deviation (n - 1) and 95 % interval.
    """

    n: Integers
    n_slides: Integers
    n_patients: Integers
    mean: Floats
    std: Floats
    ci_low: Floats
    ci_high: Floats

    def row(self, k: int) -> dict[str, float | int | None]:
        """Columns of a report table for one figure."""
        counts = {name: int(getattr(self, name)[k]) for name in ("n", "n_slides", "n_patients")}
        values = {name: float(getattr(self, name)[k]) for name in ("mean", "std", "ci_low", "ci_high")}
        return counts | {name: None if value != value else value for name, value in values.items()}


class SlideValues:
    """Figures of some slides of one experiment and role, each slide once.

    Parameters
    ----------
    slides, patients, folds : sequence of str, (rows,)
        Whose row it is. A slide that several folds predicted has the mean of its figures.
    values : ndarray of float64, (rows, m)
        Its figures, NaN where undefined.

    Attributes
    ----------
    slides : ndarray of str, (n,)
        In alphabetical order, so that the order of the rows changes no bit.
    values : ndarray of float64, (n, m)
        Figures of the slides.
    """

    def __init__(self, slides: Sequence[str], patients: Sequence[str], folds: Sequence[str], values: Floats) -> None:
        order = np.lexsort((np.asarray(folds, np.str_), np.asarray(slides, np.str_)))
        self._folds = np.asarray(folds, np.str_)[order]
        self._rows = values[order]
        self.slides, first, self._slide_of = np.unique(
            np.asarray(slides, np.str_)[order], return_index=True, return_inverse=True
        )
        names, self._patient_of = np.unique(np.asarray(patients, np.str_)[order][first], return_inverse=True)
        self._n_patients = names.size
        sums, counts = _sums(self._rows, self._slide_of, self.slides.size)
        self.values = divide(sums, counts)

    def take(self, chosen: NDArray[np.bool_]) -> SlideValues:
        """Only some of the slides, (n,) bool."""
        at = np.flatnonzero(chosen)
        patients = self._patient_of[at].astype(np.str_)
        return SlideValues(self.slides[at].tolist(), patients.tolist(), ["0"] * at.size, self.values[at])

    def over_slides(self) -> Averages:
        """Mean over slides."""
        sums, counts = _sums(self.values, self._patient_of, self._n_patients)
        return self._averages(self.values, _intervals(sums, counts, divide))

    def over_patients(self) -> Averages:
        """Mean over patients of their slides' means."""
        sums, counts = _sums(self.values, self._patient_of, self._n_patients)
        means = divide(sums, counts)
        there = np.isfinite(means)
        return self._averages(means, _intervals(np.where(there, means, 0.0), there * 1.0, divide))

    def over_folds(self) -> Averages:
        """Mean over folds of their slides' means; no interval."""
        names, at = np.unique(self._folds, return_inverse=True)
        sums, counts = _sums(self._rows, at, names.size)
        return self._averages(divide(sums, counts), np.full((2, self.values.shape[1]), np.nan))

    def over_groups(self, groups: Sequence[str]) -> Averages:
        """Mean over groups of slides, (n,) names, of their slides' means."""
        names, at = np.unique(np.asarray(groups, np.str_), return_inverse=True)
        sums, counts = _sums(self.values, self._patient_of * names.size + at, self._n_patients * names.size)
        shape = (self._n_patients, names.size, self.values.shape[1])
        sums, counts = sums.reshape(shape), counts.reshape(shape)
        means = divide(sums.sum(axis=0), counts.sum(axis=0))
        return self._averages(means, _intervals(sums, counts, _mean_of_groups))

    def _averages(self, values: Floats, ends: Floats) -> Averages:
        there = np.isfinite(values)
        n = there.sum(axis=0)
        mean = divide(np.where(there, values, 0.0).sum(axis=0), n)
        squares = np.where(there, (values - mean) ** 2, 0.0).sum(axis=0)
        known = np.isfinite(self.values)
        patients = _sums(self.values, self._patient_of, self._n_patients)[1]
        return Averages(
            n, known.sum(axis=0), (patients > 0).sum(axis=0), mean, np.sqrt(divide(squares, n - 1)), ends[0], ends[1]
        )


def pooled_figures(
    counts: Floats, patients: Sequence[str], figures: Callable[[Floats], Floats]
) -> tuple[Floats, Floats, Floats]:
    """Figures of summed counts with their intervals.

    Parameters
    ----------
    counts : ndarray of float64, (rows, ...)
        Counts of each slide.
    patients : sequence of str, (rows,)
        Its patient.
    figures : callable
        Gives m figures for each of some sets of counts, (sets, ...) to (sets, m).

    Returns
    -------
    mean, ci_low, ci_high : ndarray of float64, (m,)
        NaN where undefined; the interval also with fewer than 2 patients.
    """
    names, at = np.unique(np.asarray(patients, np.str_), return_inverse=True)
    sums = np.zeros((names.size, *counts.shape[1:]))
    np.add.at(sums, at, counts)
    mean = figures(sums.sum(axis=0)[None])[0]
    if names.size < 2:
        return mean, np.full(mean.shape, np.nan), np.full(mean.shape, np.nan)
    drawn = (draws(names.size) @ sums.reshape(names.size, -1)).reshape(-1, *counts.shape[1:])
    low, high = percentiles(figures(drawn))
    undefined = np.isnan(mean)
    return mean, np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)


def _sums(values: Floats, at: Integers, n: int) -> tuple[Floats, Floats]:
    """Sums and counts of the defined values of each of n groups of rows, (n, m) each."""
    there = np.isfinite(values)
    sums, counts = np.zeros((n, values.shape[1])), np.zeros((n, values.shape[1]))
    np.add.at(sums, at, np.where(there, values, 0.0))
    np.add.at(counts, at, there)
    return sums, counts


def _mean_of_groups(sums: Floats, counts: Floats) -> Floats:
    """(sets, groups, m) to (sets, m)."""
    means = divide(sums, counts)
    there = np.isfinite(means)
    return divide(np.where(there, means, 0.0).sum(axis=1), there.sum(axis=1))


def _intervals(sums: Floats, counts: Floats, figure: Callable[[Floats, Floats], Floats]) -> Floats:
    """Ends of the intervals of m figures, (2, m), from sums and counts by patient, (patients, ..., m)."""
    ends = np.full((2, sums.shape[-1]), np.nan)
    for kept, columns in _patterns(counts.sum(axis=tuple(range(1, counts.ndim - 1))) > 0):
        if kept.size < 2:
            continue
        drawn = draws(kept.size)
        own = [np.ascontiguousarray(part[kept][..., columns]) for part in (sums, counts)]
        resampled = [(drawn @ part.reshape(kept.size, -1)).reshape(-1, *part.shape[1:]) for part in own]
        ends[:, columns] = percentiles(figure(*resampled))
    return ends


def _patterns(there: NDArray[np.bool_]) -> Iterator[tuple[Integers, Integers]]:
    """Patients and the figures that exactly these patients have."""
    if not there.size:
        return
    patterns, which = np.unique(there, axis=1, return_inverse=True)
    for k, pattern in enumerate(patterns.T):
        yield np.flatnonzero(pattern), np.flatnonzero(which.reshape(-1) == k)
