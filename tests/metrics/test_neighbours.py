"""Nearest neighbours against all distances of all pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from slideloom.metrics.cell_groups import Nuclei
from slideloom.metrics.neighbours import nearest_distances, neighbour_rows

NAMES = ("background", "tumour", "stroma", "rare")


def cells(x: Any, y: Any, kinds: Any) -> Nuclei:
    """Nuclei of an area of 1."""
    x = np.asarray(x, float)
    return Nuclei(
        x, np.asarray(y, float), np.ones(x.size), None if kinds is None else np.asarray(kinds, np.uint8), NAMES
    )


def all_pairs(points: np.ndarray, others: np.ndarray, same: bool) -> np.ndarray:
    """Nearest by looking at every pair."""
    distance = np.hypot(*(points[:, None] - others[None]).transpose(2, 0, 1))
    if same:
        np.fill_diagonal(distance, np.inf)
    return distance.min(axis=1)


# On a coarse lattice many nuclei share a place or have two nearest ones.
places = st.one_of(st.integers(0, 5).map(float), st.floats(0, 1e4))
few = st.integers(0, 40).flatmap(
    lambda n: st.tuples(
        stn.arrays(np.float64, (n, 2), elements=places), stn.arrays(np.uint8, n, elements=st.integers(0, 3))
    )
)


@given(few)
@settings(max_examples=150, deadline=None)
def test_rows_are_those_of_all_pairs(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    points, kinds = drawn
    rows = neighbour_rows(cells(*points.T, kinds))
    assert [(row["class_id"], row["to_class_id"]) for row in rows] == [
        (None, None), *((a, b) for a in (1, 2, 3) for b in (1, 2, 3))
    ]  # fmt: skip
    for row in rows:
        some, others = (
            points if kind is None else points[kinds == kind] for kind in (row["class_id"], row["to_class_id"])
        )
        same = row["class_id"] == row["to_class_id"]
        assert (row["n"], row["n_to"]) == (len(some), len(others))
        assert row["class_name"] == ("all" if row["class_id"] is None else NAMES[row["class_id"]])
        if not len(some) or len(others) < 1 + same:
            assert row["distance_mean_um"] is row["distance_median_um"] is None
            continue
        wanted = all_pairs(some, others, same)
        assert row["distance_mean_um"] == pytest.approx(wanted.mean(), rel=1e-12, abs=1e-12)
        assert row["distance_median_um"] == pytest.approx(np.median(wanted), rel=1e-12, abs=1e-12)


@given(few, st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_order_and_transposition_play_no_part(drawn: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    points, kinds = drawn
    turn = np.random.default_rng(seed).permutation(len(points))
    before = neighbour_rows(cells(*points.T, kinds))
    for after in (neighbour_rows(cells(*points[turn].T, kinds[turn])), neighbour_rows(cells(*points.T[::-1], kinds))):
        for name in ("distance_mean_um", "distance_median_um"):
            # What is null becomes NaN, which equals NaN here alone.
            one, other = (np.array([row[name] for row in rows], float) for rows in (before, after))
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_figures_of_a_handful_of_nuclei() -> None:
    rows = neighbour_rows(cells([0, 0, 3, 10], [0, 0, 4, 0], [1, 1, 2, 0]))
    found = {
        (row["class_name"], row["to_class_name"]): (row["distance_mean_um"], row["distance_median_um"]) for row in rows
    }
    # Two nuclei at one place are each other's neighbours, at no distance.
    assert found["tumour", "tumour"] == (0, 0)
    assert found["tumour", "stroma"] == found["stroma", "tumour"] == (5, 5)
    assert found["stroma", "stroma"] == found["tumour", "rare"] == found["rare", "tumour"] == (None, None)
    nearest = [0, 0, 5, np.hypot(7, 4)]
    assert found["all", "all"] == (pytest.approx(np.mean(nearest)), 2.5)


def test_without_classes_one_row_is_left() -> None:
    (row,) = neighbour_rows(Nuclei(np.array([0.0, 4]), np.array([0.0, 3]), np.ones(2)))
    assert (row["scope"], row["class_id"], row["n"], row["distance_mean_um"]) == ("all", None, 2, 5)


def test_threads_change_no_bit() -> None:
    rng = np.random.default_rng(3)
    many = cells(*rng.uniform(0, 5000, (2, 20_000)), rng.integers(0, 4, 20_000))
    assert neighbour_rows(many, workers=1) == neighbour_rows(many, workers=2)
    points, others = rng.uniform(0, 99, (2, 300, 2))
    np.testing.assert_allclose(nearest_distances(points, others), all_pairs(points, others, False), rtol=1e-13)


def test_nothing_to_be_near_to() -> None:
    assert nearest_distances(np.empty((0, 2)), np.empty((0, 2))).size == 0
    with pytest.raises(ValueError, match="nothing"):
        nearest_distances(np.zeros((1, 2)), np.empty((0, 2)))
