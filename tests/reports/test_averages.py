"""Averages of many figures against plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.reports.averages import Averages, SlideValues, columns_of, divide, pooled_figures
from slideloom.reports.resampling import draws

NAMES = ("n", "n_slides", "n_patients", "mean", "std", "ci_low", "ci_high")
CELLS = st.one_of(st.none(), st.floats(-5, 5, width=32))


@st.composite
def cohorts(draw: Any) -> tuple[list[str], list[str], list[str], np.ndarray]:
    """Slides, patients, folds and two figures of each; a patient owns several slides, a slide has up to two folds."""
    rows = draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), min_size=1, max_size=12, unique=True))
    slides = [f"s{slide}" for slide, _ in rows]
    patients = [f"P{slide // 2}" for slide, _ in rows]
    folds = [str(fold) for _, fold in rows]
    values = [[draw(CELLS), draw(CELLS)] for _ in rows]
    return slides, patients, folds, np.array(values, np.float64).reshape(-1, 2)


def plain(
    slides: list[str], patients: list[str], values: np.ndarray
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Mean of each slide that has a value, and those of each patient."""
    rows: dict[str, list[float]] = {}
    whose = dict(zip(slides, patients, strict=True))
    for slide, value in zip(slides, values.tolist(), strict=True):
        if value == value:
            rows.setdefault(slide, []).append(value)
    of_slide = {slide: sum(found) / len(found) for slide, found in rows.items()}
    of_patient: dict[str, list[float]] = {}
    for slide in sorted(of_slide):
        of_patient.setdefault(whose[slide], []).append(of_slide[slide])
    return of_slide, of_patient


def close(found: float | None, wanted: float | None) -> bool:
    if found is None or wanted is None:
        return found is wanted
    return math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-9)


@settings(max_examples=40, deadline=None)
@given(cohorts())
def test_means_and_intervals_are_those_of_plain_loops(cohort: tuple[Any, ...]) -> None:
    slides, patients, folds, values = cohort
    own = SlideValues(slides, patients, folds, values)
    for k in range(2):
        of_slide, of_patient = plain(slides, patients, values[:, k])
        means = [sum(found) / len(found) for found in of_patient.values()]
        line = own.over_slides().row(k)
        assert (line["n"], line["n_slides"], line["n_patients"]) == (len(of_slide), len(of_slide), len(of_patient))
        assert close(line["mean"], float(np.mean(list(of_slide.values()))) if of_slide else None)
        assert close(line["std"], float(np.std(list(of_slide.values()), ddof=1)) if len(of_slide) > 1 else None)
        by_patient = own.over_patients().row(k)
        assert by_patient["n"] == by_patient["n_patients"] == len(means)
        assert close(by_patient["mean"], float(np.mean(means)) if means else None)
        if len(of_patient) < 2:
            assert line["ci_low"] is line["ci_high"] is by_patient["ci_low"] is None
            continue
        drawn = draws(len(of_patient))
        groups = [of_patient[name] for name in sorted(of_patient)]
        sums, counts = np.array([sum(found) for found in groups]), np.array([len(found) for found in groups])
        resampled = (drawn * sums).sum(axis=1) / (drawn * counts).sum(axis=1)
        assert [line["ci_low"], line["ci_high"]] == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=1e-9)
        of_means = (drawn * np.array([means[list(of_patient).index(n)] for n in sorted(of_patient)])).sum(axis=1)
        ends = np.percentile(of_means / len(means), [2.5, 97.5])
        assert [by_patient["ci_low"], by_patient["ci_high"]] == pytest.approx(ends, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(cohorts(), st.randoms())
def test_the_order_of_the_rows_changes_no_bit(cohort: tuple[Any, ...], random: Any) -> None:
    slides, patients, folds, values = cohort
    order = list(range(len(slides)))
    random.shuffle(order)
    moved = SlideValues(*([each[k] for k in order] for each in (slides, patients, folds)), values[order])
    own = SlideValues(slides, patients, folds, values)
    groups = [(name[-1] in "024" and "even") or "odd" for name in own.slides.tolist()]
    for first, second in (
        (own.over_slides(), moved.over_slides()),
        (own.over_patients(), moved.over_patients()),
        (own.over_folds(), moved.over_folds()),
        (own.over_groups(groups), moved.over_groups(groups)),
    ):
        for name in NAMES:
            assert np.array_equal(getattr(first, name), getattr(second, name), equal_nan=True), name


def test_groups_are_averaged_after_their_slides() -> None:
    values = np.array([[0.1], [0.3], [0.8], [np.nan]])
    own = SlideValues(["a", "b", "c", "d"], ["P1", "P1", "P2", "P3"], ["0"] * 4, values)
    line = own.over_groups(["x", "x", "y", "z"]).row(0)
    assert (line["n"], line["n_slides"], line["n_patients"]) == (2, 3, 2)
    assert line["mean"] == pytest.approx((0.2 + 0.8) / 2)
    # Drawn twice, a patient leaves one tissue alone.
    assert (line["ci_low"], line["ci_high"]) == (pytest.approx(0.2), pytest.approx(0.8))


def test_folds_are_means_of_their_own_slides() -> None:
    own = SlideValues(["a", "b", "a"], ["P", "Q", "P"], ["0", "0", "1"], np.array([[0.2], [0.4], [0.9]]))
    line = own.over_folds().row(0)
    assert (line["n"], line["n_slides"], line["mean"]) == (2, 2, pytest.approx(0.6))
    assert line["ci_low"] is None


def test_what_some_patients_lack_is_resampled_over_those_that_have_it() -> None:
    values = np.array([[0.5, 0.1], [0.7, np.nan], [0.9, 0.3]])
    both: Averages = SlideValues(["a", "b", "c"], ["P", "Q", "R"], ["0"] * 3, values).over_slides()
    alone = SlideValues(["a", "c"], ["P", "R"], ["0"] * 2, values[[0, 2], 1:]).over_slides()
    assert both.row(1) == alone.row(0)


def test_no_slide_gives_no_value() -> None:
    empty = SlideValues([], [], [], np.empty((0, 3)))
    for found in (empty.over_slides(), empty.over_patients(), empty.over_folds()):
        assert found.row(2) == {"n": 0, "n_slides": 0, "n_patients": 0, "mean": None, "std": None} | {
            "ci_low": None, "ci_high": None,
        }  # fmt: skip


def test_pooled_figures_sum_by_patient() -> None:
    counts = np.array([[1.0, 4.0], [2.0, 2.0], [0.0, 0.0]])
    mean, low, high = pooled_figures(counts, ["P", "Q", "P"], lambda c: divide(c[:, :1], c[:, 1:]))
    assert (mean[0], low[0], high[0]) == (pytest.approx(0.5), 0.25, 1.0)
    mean, low, high = pooled_figures(counts[:1], ["P"], lambda c: divide(c[:, :1], c[:, 1:]))
    assert mean[0] == 0.25
    assert np.isnan([low[0], high[0]]).all()


def test_columns_of_rows_and_of_tables_are_the_same() -> None:
    rows = [{"a": 1, "b": None}, {"a": 3, "b": 0.5}]
    table = pa.Table.from_pylist(rows)
    assert np.array_equal(columns_of(rows, ["a", "b"]), columns_of(table, ["a", "b"]), equal_nan=True)
    assert np.isnan(columns_of(rows, ["c"])).all()
    assert columns_of([], ["a", "b"]).shape == (0, 2)
