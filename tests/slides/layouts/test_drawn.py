from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.slides.layouts.drawn import draw, ellipse

SHAPE = (20, 30)


def square(left: float, top: float, size: float) -> np.ndarray:
    return np.array([[left, top], [left + size, top], [left + size, top + size], [left, top + size]], float)


@pytest.mark.parametrize("first_counts", [True, False])
def test_which_of_two_counts_and_what_is_lost(first_counts: bool) -> None:
    outlines = [
        square(2, 2, 8),
        square(6, 2, 8),
        square(40, 2, 5),
        square(3.1, 3.1, 0.3),
        np.zeros((0, 2)),
        square(5, 5, 0),
        np.array([[1.0, 1], [9, 9]]),
        square(7, 4, 2),
        square(-3, 15, 10),
    ]
    drawn = draw(outlines, SHAPE, first_counts=first_counts)
    expected = np.zeros(SHAPE, int)
    for index in sorted((0, 1, 7), reverse=first_counts):
        left, top, size = ((2, 2, 8), (6, 2, 8), *[(0, 0, 0)] * 5, (7, 4, 2))[index]
        expected[top : top + size, left : left + size] = index + 1
    expected[15:, :7] = 9
    assert np.array_equal(drawn.labels, expected)
    assert drawn.nowhere == (2, 3, 4, 5, 6)
    assert drawn.hidden == ((7,) if first_counts else ())
    assert drawn.shared_px == 4 * 8


corner = st.tuples(st.floats(-5, 35), st.floats(-5, 25))


@given(st.lists(corner, min_size=3, max_size=6))
@settings(max_examples=60)
def test_pixels_are_those_whose_centre_lies_inside(corners: list[tuple[float, float]]) -> None:
    polygon = shapely.Polygon(corners)
    if not polygon.is_valid:
        return
    labels = draw([np.array(corners)], SHAPE, first_counts=True).labels
    y, x = np.indices(SHAPE) + 0.5
    assert not labels[(labels > 0) & ~shapely.intersects_xy(polygon.buffer(1e-6), x, y)].any()
    assert labels[shapely.contains_xy(polygon.buffer(-1e-6), x, y)].all()


def test_the_ellipse_fits_its_box() -> None:
    corners = ellipse(3, 4, 23, 14)
    assert corners.min(0) == pytest.approx([3, 4])
    assert corners.max(0) == pytest.approx([23, 14])
    labels = draw([corners], SHAPE, first_counts=True).labels
    y, x = np.indices(SHAPE) + 0.5
    assert np.count_nonzero(labels != (((x - 13) / 10) ** 2 + ((y - 9) / 5) ** 2 < 1)) <= 4
