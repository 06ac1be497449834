"""Forests of windows joined: always the forest of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from tests.forest_oracle import in_raster_order, spanning_forest

from slideloom.instances.forest import flood
from slideloom.instances.join import Joined, join, window_forest
from slideloom.instances.method import HIGHEST_LEVEL, Landscape
from slideloom.instances.windows import Box, WindowGrid


def in_windows(
    inside: np.ndarray, landscape: Landscape | None, side: int, frame: Box | None = None
) -> tuple[np.ndarray, Joined]:
    """Labels of a map worked in windows, not yet in raster order."""
    grid = WindowGrid(frame or Box(0, 0, *inside.shape), side)
    floods, forests = [], []
    for index in range(grid.n):
        place = grid.place(index)
        part = np.ascontiguousarray(inside[place.slices])
        own = None
        if landscape is not None:
            level, seeds = (np.ascontiguousarray(each[place.slices]) for each in (landscape.level, landscape.seeds))
            own = Landscape(level, seeds)
            floods.append(flood(part, level, seeds, grid.seams(index)))
        else:
            floods.append(flood(part, seams=grid.seams(index)))
        forests.append(window_forest(floods[-1], own, place, inside.shape[1]))
    joined = join(grid, forests)
    labels = np.zeros(inside.shape, np.int64)
    for index, found in enumerate(floods):
        own_of = np.concatenate([[0], joined.instance[joined.offsets[index] + 1 : joined.offsets[index + 1] + 1]])
        labels[grid.place(index).slices] = own_of[found.atoms]
    return labels, joined


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 17), st.integers(1, 17)),
    st.integers(1, 18),
    st.floats(0.4, 1.0),
    st.sampled_from([1, 3, HIGHEST_LEVEL]),
    st.floats(0.0, 0.4),
)
def test_any_cut_gives_the_forest_of_the_whole(
    number: int, shape: tuple[int, int], side: int, share: float, levels: int, seed_share: float
) -> None:
    rng = np.random.default_rng(number)
    inside = (rng.random(shape) < share).astype(np.uint8)
    level = rng.integers(1, levels, shape, endpoint=True).astype(np.int32)
    seeds = inside * (rng.random(shape) < seed_share).astype(np.uint8)
    labels, joined = in_windows(inside, Landscape(level, seeds), side)
    np.testing.assert_array_equal(in_raster_order(labels), spanning_forest(inside, level, seeds))
    for instance in range(1, len(joined.table)):
        y, x = np.nonzero(labels == instance)
        assert joined.table.area[instance] == len(y)
        assert joined.table.first[instance] == (y * shape[1] + x).min()
        assert joined.table.box[instance].tolist() == [y.min(), x.min(), y.max() + 1, x.max() + 1]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.3, 0.9), st.integers(4, 45))
def test_components_joined_are_those_of_the_whole(seed: int, share: float, side: int) -> None:
    mask = (np.random.default_rng(seed).random((37, 53)) < share).astype(np.uint8)
    labels, joined = in_windows(mask, None, side)
    expected, count = ndimage.label(mask)
    np.testing.assert_array_equal(in_raster_order(labels), in_raster_order(expected))
    assert len(joined.table) == count + 1


@pytest.mark.parametrize("side", [1, 2, 5, 8, 64])
def test_a_spiral_keeps_its_two_basins(side: int) -> None:
    # One pixel wide, through every window; its highest point lies in the middle of its length.
    mask = np.zeros((21, 21), np.uint8)
    y, x, step = 0, 0, (0, 1)
    path = [(y, x)]
    mask[0, 0] = 1
    while True:
        for _ in range(2):
            ahead, beyond = (y + step[0], x + step[1]), (y + 2 * step[0], x + 2 * step[1])
            free = all(0 <= place < 21 for place in ahead) and not mask[ahead]
            open_beyond = not all(0 <= place < 21 for place in beyond) or not mask[beyond]
            if free and open_beyond:
                break
            step = (step[1], -step[0])
        else:
            break
        y, x = ahead
        mask[y, x] = 1
        path.append((y, x))
    assert len(path) > 200
    level = np.ones(mask.shape, np.int32)
    level[path[120]] = 9
    seeds = np.zeros_like(mask)
    seeds[path[0]] = seeds[path[-1]] = 1
    labels, _ = in_windows(mask, Landscape(level, seeds), side)
    np.testing.assert_array_equal(in_raster_order(labels), spanning_forest(mask, level, seeds))
    assert labels[path[119]] == labels[path[0]] != labels[path[121]] == labels[path[-1]]


@pytest.mark.parametrize("side", [3, 4, 7])
def test_a_seed_cut_by_windows_is_one_seed(side: int) -> None:
    inside = np.ones((20, 23), np.uint8)
    seeds = np.zeros_like(inside)
    seeds[2:18, 3] = seeds[17, 3:20] = 1  # an angle through many windows, in two pieces inside some
    seeds[2:10, 15] = 1
    level = np.random.default_rng(0).integers(1, 4, inside.shape).astype(np.int32)
    labels, joined = in_windows(inside, Landscape(level, seeds), side)
    assert len(joined.table) == 3
    np.testing.assert_array_equal(in_raster_order(labels), spanning_forest(inside, level, seeds))
