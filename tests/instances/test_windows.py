"""Windows over a slide, and where labels lie on it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.instances.windows import Box, LabelTable, WindowGrid, label_table, windows


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40))
def test_windows_cover_every_pixel_once(height: int, width: int, side: int) -> None:
    seen = np.zeros((height, width), int)
    for box in windows(Box(0, 0, height, width), side):
        seen[box.slices] += 1
        assert box.height <= side
        assert box.width <= side
    assert (seen == 1).all()


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.data())
def test_windows_know_their_neighbours(height: int, width: int, side: int, data: st.DataObject) -> None:
    grid = WindowGrid(Box(3, 5, 3 + height, 5 + width), side)
    owner = np.full((height + 9, width + 9), -1)
    for index in range(grid.n):
        owner[grid.place(index).slices] = index
    for index in range(grid.n):
        place = grid.place(index)
        beside = {
            "above": owner[place.top - 1, place.left],
            "left": owner[place.top, place.left - 1],
            "below": owner[place.bottom, place.left],
            "right": owner[place.top, place.right],
        }
        assert grid.seams(index) == tuple(bool(other >= 0) for other in beside.values())
        assert (grid.below(index), grid.right_of(index)) == tuple(
            None if beside[side] < 0 else beside[side] for side in ("below", "right")
        )
    top, left = data.draw(st.integers(3, 2 + height)), data.draw(st.integers(5, 4 + width))
    bottom, right = data.draw(st.integers(top + 1, 3 + height)), data.draw(st.integers(left + 1, 5 + width))
    box = Box(top, left, bottom, right)
    assert list(grid.meeting(box)) == np.unique(owner[box.slices]).tolist()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.tuples(st.integers(1, 30), st.integers(1, 30)), st.integers(1, 9))
def test_table_is_what_each_label_measures(seed: int, shape: tuple[int, int], count: int) -> None:
    labels = np.random.default_rng(seed).integers(0, count + 1, shape).astype(np.int32)
    table = label_table(labels, count, Box(7, 11, 7 + shape[0], 11 + shape[1]), 1000)
    for label in range(1, count + 1):
        y, x = np.nonzero(labels == label)
        assert table.area[label] == len(y)
        if len(y):
            assert table.first[label] == ((y + 7) * 1000 + x + 11).min()
            assert table.box[label].tolist() == [y.min() + 7, x.min() + 11, y.max() + 8, x.max() + 12]


def test_table_measures_labels_in_slide_coordinates() -> None:
    labels = np.array([[0, 2, 2], [1, 2, 0], [1, 0, 1]], np.int32)
    table = label_table(labels, 3, Box(10, 20, 13, 23), 100)
    assert table.area.tolist() == [0, 3, 3, 0]
    assert table.first[1:3].tolist() == [11 * 100 + 20, 10 * 100 + 21]
    assert table.box[1].tolist() == [11, 20, 13, 23]
    assert table.box_of(2) == Box(10, 21, 12, 23)


def test_tables_add_up() -> None:
    labels = np.array([[1, 1, 2]], np.int32)
    one, other = (label_table(labels, 2, Box(0, x, 1, x + 3), 10) for x in (0, 3))
    both = LabelTable.empty(2)
    both.add(np.array([0, 1, 1, 2, 2]), LabelTable.stack([one, other]))
    assert both.area.tolist() == [0, 3, 3]
    assert both.first[1:].tolist() == [0, 3]


@pytest.mark.parametrize("by", [0, 3, 100])
def test_boxes_grow_within_the_slide(by: int) -> None:
    box = Box(2, 3, 5, 9)
    outer = box.grown(by, (8, 20))
    image = np.arange(160).reshape(8, 20)
    np.testing.assert_array_equal(image[outer.slices][box.within(outer)], image[box.slices])
