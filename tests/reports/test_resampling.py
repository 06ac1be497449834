"""Sign flips, Holm's correction and Student's interval against enumeration, closed testing and SciPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test, ttest_1samp

from slideloom.reports.resampling import draws, holm, percentiles, sign_flip_p, sign_flip_ps, smallest_p, t_half_width


@settings(max_examples=40, deadline=None)
@given(sixteenths=st.lists(st.integers(-40, 40), min_size=1, max_size=8))
def test_sign_flips_are_enumerated(sixteenths: list[int]) -> None:
    sums = [abs(int(np.dot(signs, sixteenths))) for signs in itertools.product((1, -1), repeat=len(sixteenths))]
    expected = np.mean([total >= abs(sum(sixteenths)) for total in sums])
    assert sign_flip_p(np.array(sixteenths) / 16) == pytest.approx(expected)


def test_sign_flips_are_scipys_permutation_test() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0.3, 1, 10)
    theirs = permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(values) == pytest.approx(theirs.pvalue)
    many = rng.normal(0.25, 1, 60)
    theirs = permutation_test((many,), np.mean, permutation_type="samples", n_resamples=20_000, rng=rng)
    assert sign_flip_p(many) == pytest.approx(theirs.pvalue, abs=0.02)
    assert sign_flip_p(np.full(40, 1.0)) == pytest.approx(1 / 20_001)


def test_many_sets_at_once_are_each_as_by_itself() -> None:
    for n in (1, 5, 12, 13, 40):
        values = np.random.default_rng(n).normal(0.2, 1, (7, n))
        assert sign_flip_ps(values) == pytest.approx([sign_flip_p(one) for one in values], abs=1e-12)


def test_no_p_is_below_the_smallest() -> None:
    for n in (2, 5, 6, 12):
        assert sign_flip_p(np.full(n, 1.0)) == float(smallest_p(n)) == 2 / 2**n
        assert sign_flip_p(np.random.default_rng(n).uniform(-1, 1, n)) >= 2 / 2**n
    assert float(smallest_p(100)) == pytest.approx(1 / 20_001)
    assert float(smallest_p(5)) >= 0.05 > float(smallest_p(6))


def test_p_values_of_no_difference_are_uniform() -> None:
    values = np.random.default_rng(1).normal(0, 1, (400, 10))
    p = sign_flip_ps(values)
    for level in (0.05, 0.2, 0.5, 0.8):
        share = float((p <= level).mean())
        assert abs(share - level) < 3.5 * (level * (1 - level) / 400) ** 0.5 + 2 / 2**10


@settings(max_examples=60, deadline=None)
@given(p_values=st.lists(st.integers(1, 100).map(lambda k: k / 100), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    m = range(len(p_values))
    families = [set(one) for size in range(1, len(p_values) + 1) for one in itertools.combinations(m, size)]
    expected = [
        max(min(1.0, len(family) * min(p_values[k] for k in family)) for family in families if k in family) for k in m
    ]
    assert holm(p_values) == pytest.approx(expected)


def test_holm_leaves_out_what_was_not_tested() -> None:
    assert holm([np.nan, 0.01, 0.04]) == pytest.approx([np.nan, 0.02, 0.04], nan_ok=True)
    assert holm([]).size == 0


def test_students_interval_is_scipys() -> None:
    values = np.random.default_rng(2).normal(0.5, 0.1, 4)
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    half = float(t_half_width(values.std(ddof=1), 4))
    assert (values.mean() - half, values.mean() + half) == pytest.approx((low, high))
    assert np.isnan(t_half_width(0.1, 1))


def test_resamples_draw_as_many_as_there_are() -> None:
    drawn = draws(7)
    assert (drawn.sum(axis=1) == 7).all()
    assert drawn.mean() == pytest.approx(1)
    ends = percentiles(np.array([[1.0, np.nan, np.nan], [3.0, np.nan, 2.0]]))
    assert ends[:, 0] == pytest.approx([1.05, 2.95])
    assert np.isnan(ends[:, 1]).all()
    assert ends[:, 2] == pytest.approx([2.0, 2.0])
