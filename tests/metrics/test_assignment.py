"""The sparse assignment against a dense one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from slideloom.metrics.assignment import best_pairs


def candidates(rng: np.random.Generator, n: int, m: int, share: float, levels: int) -> tuple[np.ndarray, ...]:
    rows, cols = np.nonzero(rng.random((n, m)) < share)
    order = rng.permutation(rows.size)
    weight = rng.integers(0, levels, rows.size) / levels if levels else rng.random(rows.size)
    return rows[order], cols[order], weight


def check_one_to_one(rows: np.ndarray, cols: np.ndarray, chosen: np.ndarray) -> None:
    assert np.unique(rows[chosen]).size == np.unique(cols[chosen]).size == chosen.size
    assert (np.diff(chosen) > 0).all()


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 25),
    m=st.integers(1, 25),
    share=st.sampled_from([0.05, 0.2, 0.6, 1.0]),
    levels=st.sampled_from([0, 2, 5]),
)
def test_the_total_is_the_dense_optimum(seed: int, n: int, m: int, share: float, levels: int) -> None:
    rng = np.random.default_rng(seed)
    rows, cols, weight = candidates(rng, n, m, share, levels)
    dense = np.zeros((n, m))
    dense[rows, cols] = weight
    chosen = best_pairs(rows, cols, weight)
    check_one_to_one(rows, cols, chosen)
    assert weight[chosen].sum() == pytest.approx(dense[linear_sum_assignment(-dense)].sum(), abs=1e-9)
    assert (weight[chosen] > 0).all()

    counted = rng.random(rows.size) < 0.5
    dense[rows, cols] = weight + 100.0 * counted
    best = dense[linear_sum_assignment(-dense)].sum()
    chosen = best_pairs(rows, cols, weight, counted=counted)
    check_one_to_one(rows, cols, chosen)
    assert counted[chosen].sum() == int(best // 100)
    assert weight[chosen].sum() == pytest.approx(best % 100, abs=1e-9)


def test_a_long_chain_is_solved_as_a_whole() -> None:
    n = 3000  # row i may take column i or i + 1, and the last only its own: everything shifts for it
    rows = np.concatenate([np.arange(n), np.arange(n - 1)])
    cols = np.concatenate([np.arange(n), np.arange(1, n)])
    weight = np.concatenate([np.full(n, 0.4), np.full(n - 1, 0.6)])
    assert weight[best_pairs(rows, cols, weight)].sum() == pytest.approx(0.6 * (n - 1))
    assert best_pairs(rows, cols, weight, counted=np.ones(rows.size, bool)).tolist() == list(range(n))


def test_no_candidates_no_pairs() -> None:
    empty = np.empty(0, np.int64)
    assert best_pairs(empty, empty, np.empty(0)).size == 0
    assert best_pairs(np.array([7]), np.array([9]), np.array([0.0])).size == 0
    assert best_pairs(np.array([7]), np.array([9]), np.array([0.0]), counted=np.array([True])).tolist() == [0]
