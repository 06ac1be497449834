"""Paired comparisons as the report shows them: a list for a few experiments, a matrix a metric for many."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slideloom.reports.comparisons import LESS_IS_BETTER, LEVEL, verdict
from slideloom.reports.views import HEADLINES, experiment_rows

__all__ = ["Cell", "Matrix", "comparison_matrices", "comparison_rows", "power_notes"]

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One pair.

    Attributes
    ----------
    text : str
        Its difference, row less column, in hundredths.
    state : {"good", "poor", ""}
        Whether the row is shown to be better, worse, or neither.
    title : str
        A line about it.
    """

    text: str
    state: str
    title: str


@dataclass(frozen=True)
class Matrix:
    """All pairs in one metric.

    Attributes
    ----------
    name : str
        Of the metric.
    names : tuple of str
        Experiments, the one with the best mean first.
    rows : tuple of tuple of Cell or None
        A row an experiment; the cell of column j stands for the pair with the experiment j; ``None`` on and below the
        diagonal, and where no slide is shared.
    n_shown, n_pairs : int
        Differences that hold, and pairs that were compared.
    """

    name: str
    names: tuple[str, ...]
    rows: tuple[tuple[Cell | None, ...], ...]
    n_shown: int
    n_pairs: int


def comparison_rows(comparisons: Rows, role: str) -> list[dict[str, Any]]:
    """Comparisons of the headline figures, with readable names and verdicts; those without a slide are left out."""
    names = dict(HEADLINES)
    order = list(names)
    told = [row for row in comparisons if row["role"] == role and row["metric"] in names and row["n"]]
    pairs = {pair: k for k, pair in enumerate(dict.fromkeys((r["experiment_a"], r["experiment_b"]) for r in told))}
    told.sort(key=lambda row: (pairs[row["experiment_a"], row["experiment_b"]], order.index(row["metric"])))
    return [{**row, "name": names[row["metric"]], "verdict": verdict(row)} for row in told]


def comparison_matrices(comparisons: Rows, experiments: Rows, role: str) -> list[Matrix]:
    """A matrix of all pairs for each headline figure that any pair has.

    Parameters
    ----------
    comparisons, experiments : sequence of mapping
        Rows of those report tables.
    role : str
        Of the slides.
    """
    means = experiment_rows(experiments, role)
    by_metric: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {}
    for row in comparisons:
        if row["role"] == role and row["n"]:
            by_metric.setdefault(row["metric"], {})[row["experiment_a"], row["experiment_b"]] = row
    return [_matrix(metric, name, by_metric[metric], means) for metric, name in HEADLINES if metric in by_metric]


def _matrix(
    metric: str,
    name: str,
    pairs: Mapping[tuple[str, str], Mapping[str, Any]],
    means: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> Matrix:
    present = dict.fromkeys(experiment for pair in pairs for experiment in pair)
    sign = 1 if metric in LESS_IS_BETTER else -1
    names = sorted(present, key=lambda one: (sign * (means[one][metric]["mean"] or 0.0), one))
    rows: list[tuple[Cell | None, ...]] = []
    for k, first in enumerate(names):
        cells: list[Cell | None] = [None] * (k + 1)
        for second in names[k + 1 :]:
            row = pairs.get((second, first)) or pairs.get((first, second))
            cells.append(None if row is None else _cell(row, first))
        rows.append(tuple(cells))
    shown = sum(cell is not None and cell.state != "" for cell in itertools.chain(*rows))
    return Matrix(name, tuple(names), tuple(rows), shown, len(pairs))


def _cell(row: Mapping[str, Any], first: str) -> Cell:
    """The pair, seen from the experiment of the matrix's row."""
    sign = 1 if row["experiment_b"] == first else -1
    other = row["experiment_a"] if sign == 1 else row["experiment_b"]
    said = verdict(row)
    state = "good" if said.startswith(f"{first} better,") else "poor" if said.startswith(f"{other} better,") else ""
    title = f"{first} less {other}: {sign * row['difference']:+.3f}"
    if row["ci_low"] is not None:
        ends = sorted((sign * row["ci_low"], sign * row["ci_high"]))
        title += f" ({ends[0]:+.3f} to {ends[1]:+.3f}), p_adj {row['p_adjusted']:.2g}"
    return Cell(f"{100 * sign * row['difference']:+.1f}", state, f"{title}, {row['n']} slides")


def power_notes(comparisons: Rows, role: str) -> list[str]:
    """What so few patients and so many pairs can show at all, in words; empty where every pair could be shown."""
    told = [row for row in comparisons if row["role"] == role and row["n"] and row["metric"] in dict(HEADLINES)]
    pairs = {(row["experiment_a"], row["experiment_b"]) for row in told}
    tested = [row for row in told if row["p_value"] is not None]
    could = {(row["experiment_a"], row["experiment_b"]) for row in tested}
    notes = []
    if pairs - could:
        notes.append(f"{_some(len(pairs - could), len(pairs))}: one shared patient only, nothing can be tested.")
    for column, what, why in (
        ("p_smallest", "p", "they share too few patients"),
        ("p_adjusted_smallest", "p_adj", "too few patients for so many pairs"),
    ):
        strong = {(row["experiment_a"], row["experiment_b"]) for row in tested if row[column] < LEVEL}
        if weak := could - strong:
            least = min(row[column] for row in tested)
            most = max(row["n_patients"] for row in tested)
            best = "" if strong else f" The smallest that is possible, with {most} patients, is {least:.2g}."
            notes.append(f"{_some(len(weak), len(pairs))} cannot reach a {what} below {LEVEL:g}: {why}.{best}")
        could = strong
    return notes


def _some(count: int, of: int) -> str:
    return f"{count} of {of} pairs" if count < of else "All pairs" if of > 1 else "The pair"
