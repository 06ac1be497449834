"""Components joined across windows against the whole image at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from slideloom.instances.threshold import components
from slideloom.instances.windows import Box, LabelTable, label_table, link, windows


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40))
def test_windows_cover_every_pixel_once(height: int, width: int, side: int) -> None:
    seen = np.zeros((height, width), int)
    for box in windows(Box(0, 0, height, width), side):
        seen[box.slices] += 1
        assert box.height <= side
        assert box.width <= side
    assert (seen == 1).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.3, 0.9), st.integers(4, 45))
def test_joined_components_are_those_of_the_whole(seed: int, share: float, side: int) -> None:
    mask = (np.random.default_rng(seed).random((37, 53)) < share).astype(np.uint8)
    expected, count = ndimage.label(mask)

    def label(place: Box) -> np.ndarray:
        return components(np.ascontiguousarray(mask[place.slices]))[0]

    places = list(windows(Box(0, 0, *mask.shape), side))
    linked = link(places, label, mask.shape[1])
    found = np.zeros(mask.shape, np.int64)
    for index, place in enumerate(places):
        found[place.slices] = linked.relabel(index, label(place))
    assert len(linked.table) == count + 1
    assert np.unique(np.stack([found.ravel(), expected.ravel()]), axis=1).shape[1] == len(np.unique(expected))
    for number in range(1, count + 1):
        y, x = np.nonzero(found == number)
        assert linked.table.area[number] == len(y)
        assert linked.table.first[number] == (y * mask.shape[1] + x).min()
        assert linked.table.box[number].tolist() == [y.min(), x.min(), y.max() + 1, x.max() + 1]


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
