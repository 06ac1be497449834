"""The window's forest against SciPy's minimum spanning tree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from tests.forest_oracle import in_raster_order, spanning_forest

from slideloom.instances.forest import flood

Scene = tuple[np.ndarray, np.ndarray, np.ndarray]


def scene(seed: int, shape: tuple[int, int], share: float, levels: int, seed_share: float) -> Scene:
    """Random foreground, levels with many ties, and seeds."""
    rng = np.random.default_rng(seed)
    inside = (rng.random(shape) < share).astype(np.uint8)
    level = rng.integers(1, levels + 1, shape).astype(np.int32)
    seeds = inside * (rng.random(shape) < seed_share).astype(np.uint8)
    return inside, level, seeds


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    st.floats(0.4, 1.0),
    st.sampled_from([1, 2, 5, 1 << 20]),
    st.floats(0.0, 0.4),
)
def test_a_whole_map_is_the_spanning_forest(
    number: int, shape: tuple[int, int], share: float, levels: int, seed_share: float
) -> None:
    inside, level, seeds = scene(number, shape, share, levels, seed_share)
    found = flood(inside, level, seeds)
    np.testing.assert_array_equal(in_raster_order(found.atoms), spanning_forest(inside, level, seeds))
    assert not len(found.edges)
    assert found.n == found.atoms.max(initial=0) == len(found.seeded) - 1
    np.testing.assert_array_equal(np.unique(found.atoms[seeds > 0]), np.flatnonzero(found.seeded))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(*[st.booleans()] * 4),
    st.floats(0.0, 0.3),
)
def test_a_window_decides_nothing_that_another_could_change(
    number: int, shape: tuple[int, int], seams: tuple[bool, bool, bool, bool], seed_share: float
) -> None:
    # Whatever lies beyond the seams: atoms never run across basins, and the undecided edges lie inside the forest.
    inside, level, seeds = scene(number, shape, 0.8, 4, seed_share)
    found = flood(inside, level, seeds, seams)
    assert len(found.edges) <= ndimage.label(seeds)[1] + 2 * sum(shape)
    for beyond in range(4):
        wide = tuple(size + 6 for size in shape)
        outer = scene(number + 1 + beyond, wide, 0.8, 4, 0.1 * beyond)
        top, left, bottom, right = (3 if seam else 0 for seam in seams)
        core = (slice(3, 3 + shape[0]), slice(3, 3 + shape[1]))
        for whole, part in zip(outer, (inside, level, seeds), strict=True):
            whole[core] = part
        cut = (slice(3 - top, 3 + shape[0] + bottom), slice(3 - left, 3 + shape[1] + right))
        whole = spanning_forest(*(array[cut] for array in outer))[top : top + shape[0], left : left + shape[1]]
        pairs = np.unique(np.stack([found.atoms.ravel(), whole.ravel()]), axis=1)
        assert pairs.shape[1] == found.n + bool((inside == 0).any())


def test_a_ridge_parts_two_basins() -> None:
    inside = np.ones((1, 9), np.uint8)
    level = np.array([[1, 1, 2, 5, 9, 4, 3, 1, 1]], np.int32)
    seeds = np.array([[1, 0, 0, 0, 0, 0, 0, 0, 1]], np.uint8)
    assert in_raster_order(flood(inside, level, seeds).atoms).tolist() == [[1, 1, 1, 1, 2, 2, 2, 2, 2]]


def test_a_component_with_one_seed_or_none_stays_whole() -> None:
    inside = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 0, 1, 1]], np.uint8)
    seeds = np.zeros_like(inside)
    seeds[0, 3] = 1
    found = flood(inside, inside.astype(np.int32), seeds)
    assert in_raster_order(found.atoms).tolist() == [[1, 1, 0, 2], [1, 0, 0, 2], [1, 0, 2, 2]]
    assert sorted(found.seeded[1:].tolist()) == [False, True]


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (33, 47)])
def test_nothing_and_everything(shape: tuple[int, int]) -> None:
    empty, full = np.zeros(shape, np.uint8), np.ones(shape, np.uint8)
    level = np.ones(shape, np.int32)
    assert flood(empty, level, empty).n == 0
    assert flood(full, level, empty).n == 1
    assert flood(full, level, full).seeded.tolist() == [False, True]
    assert flood(full).n == 1
    open_all = flood(full, level, empty, (True, True, True, True))
    assert len(open_all.edges) == open_all.n - 1, "undecided edges make a tree of the atoms"
