"""Outlines against scikit-image's marching squares and against areas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import find_contours

from slideloom.instances.contours import Sides, find_sides, reference_contour
from slideloom.instances.outlines import Outlines, outlines


def _outlines(labels: NDArray[Any], scale: float = 1.0) -> dict[int, Any]:
    found = outlines(find_sides(labels, 0, 0, labels.shape[1]), labels.shape[1], scale)
    return dict(zip(found.label.tolist(), found.polygons(), strict=True))


def _in_windows(labels: NDArray[Any], rows: int, columns: int, seed: int = 0) -> Outlines:
    """Outlines of labels looked at in windows, in any order; each window knows nothing beyond it."""
    height, width = labels.shape
    places = [(y, x) for y in range(0, height, rows) for x in range(0, width, columns)]
    np.random.default_rng(seed).shuffle(places)
    pieces = [find_sides(labels[y : y + rows, x : x + columns], y, x, width) for y, x in places]
    return outlines(Sides.join(pieces, width), width)


def _oracle(mask: NDArray[np.bool_]) -> Any:
    """Even-odd union of scikit-image's rings; pixel i is centred at i + 0.5."""
    rings = find_contours(np.pad(mask, 1).astype(float), 0.5, fully_connected="low")
    polygons = [shapely.Polygon(ring[:, ::-1] - 0.5) for ring in rings]
    result = shapely.Polygon()
    for polygon in sorted(polygons, key=lambda polygon: -polygon.area):
        result = result.symmetric_difference(polygon)
    return result


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.floats(0.2, 0.85))
def test_outlines_are_marching_squares(seed: int, share: float) -> None:
    labels, count = ndimage.label(np.random.default_rng(seed).random((12, 14)) < share)
    polygons = _outlines(labels)
    assert sorted(polygons) == list(range(1, count + 1))
    for number, polygon in polygons.items():
        assert polygon.geom_type == "Polygon"
        assert polygon.is_valid
        assert polygon.exterior.is_ccw
        assert polygon.symmetric_difference(_oracle(labels == number)).area < 1e-9
        rings = 1 + len(polygon.interiors)
        # Half a pixel is lost at a shell's corners, and won at a hole's.
        assert polygon.area == pytest.approx((labels == number).sum() - 0.5 + 0.5 * (rings - 1))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.floats(0.2, 0.85))
def test_instances_in_several_pieces_are_marching_squares(seed: int, share: float) -> None:
    # Pieces touch diagonally, and lie in the holes of others.
    labels = np.random.default_rng(seed).choice(3, (12, 14), p=[1 - share, share * 0.7, share * 0.3])
    for number, shape in _outlines(labels).items():
        n_pieces = ndimage.label(labels == number)[1]
        assert shape.geom_type == ("Polygon" if n_pieces == 1 else "MultiPolygon")
        assert len(shapely.get_parts(shape)) == n_pieces
        assert shape.is_valid
        assert all(piece.exterior.is_ccw for piece in shapely.get_parts(shape))
        assert shape.symmetric_difference(_oracle(labels == number)).area < 1e-9


def test_a_piece_in_the_hole_of_another_is_kept() -> None:
    labels = np.zeros((13, 13), int)
    labels[0:13, 0:13], labels[1:12, 1:12], labels[3:10, 3:10], labels[4:9, 4:9], labels[6, 6] = 1, 0, 1, 0, 1
    outer, middle, inner = shapely.get_parts(_outlines(labels)[1])
    assert [len(piece.interiors) for piece in (outer, middle, inner)] == [1, 1, 0]
    assert [piece.bounds for piece in (outer, middle, inner)] == [(0, 0, 13, 13), (3, 3, 10, 10), (6, 6, 7, 7)]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_neighbours_never_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, (9, 9))
    labels = sum(((ndimage.label(labels == k)[0] + 100 * k) * (labels == k) for k in (1, 2, 3)), np.zeros((9, 9), int))
    polygons = list(_outlines(labels).values())
    union = shapely.union_all(polygons)
    assert union.area == pytest.approx(sum(polygon.area for polygon in polygons))


def test_scale_and_place() -> None:
    labels = np.zeros((6, 8), int)
    labels[1:3, 2:6] = 5
    polygon = _outlines(labels, scale=2.0)[5]
    assert polygon.bounds == (4.0, 2.0, 12.0, 6.0)
    # Straight runs are one edge: an oblong with its corners cut has eight points.
    assert len(polygon.exterior.coords) == 9
    assert shapely.Point(8, 4).within(polygon)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000), st.integers(1, 23), st.integers(1, 31), st.integers(1, 9), st.integers(1, 12), st.booleans()
)
def test_windows_give_the_same_outlines(
    seed: int, height: int, width: int, rows: int, columns: int, connected: bool
) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, (height, width))
    if connected:
        labels, _ = ndimage.label(labels)
    whole = outlines(find_sides(labels, 0, 0, width), width)
    pieces = _in_windows(labels, rows, columns, seed)
    for name in ("label", "start", "wkb"):
        np.testing.assert_array_equal(getattr(pieces, name), getattr(whole, name))


def test_an_object_longer_than_many_windows() -> None:
    # A comb: its outline crosses every seam many times, and windows hold it in several pieces.
    labels = np.zeros((60, 90), int)
    labels[2:58, 3:87:4] = labels[2:58, 4:87:4] = labels[30, 3:87] = 7
    polygon = _in_windows(labels, 7, 11).polygons()[0]
    assert polygon.is_valid
    assert polygon.symmetric_difference(_oracle(labels == 7)).area < 1e-9


def test_joined_pieces_are_in_the_order_of_their_labels() -> None:
    labels, count = ndimage.label(np.random.default_rng(3).random((30, 40)) < 0.4)
    whole = outlines(find_sides(labels, 0, 0, 40), 40)
    cut = count // 3
    again = Outlines.join([whole.part(cut, count), whole.part(0, cut)])
    for name in ("label", "start", "wkb"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))


def test_bytes_are_those_of_shapely() -> None:
    labels, _ = ndimage.label(np.random.default_rng(5).random((30, 40)) < 0.6)
    found = outlines(find_sides(labels, 0, 0, 40), 40, 1.5)
    assert found.wkb.tobytes() == b"".join(shapely.to_wkb(found.polygons(), byte_order=1))
    assert found.kinds() == {3}


def test_sides_of_half_an_instance_are_refused() -> None:
    sides = find_sides(np.ones((4, 5), int), 0, 0, 5)
    with pytest.raises(ValueError, match="without all of its sides"):
        outlines(sides.of(np.arange(len(sides.key)) > 0), 5)


def test_pieces_of_one_id_become_a_multipolygon() -> None:
    labels = np.zeros((10, 20), int)
    labels[1:6, 1:6] = labels[1:9, 10:18] = 3
    labels[3:5, 12:14] = 0
    polygon = _outlines(labels)[3]
    assert polygon.geom_type == "MultiPolygon"
    assert len(polygon.geoms) == 2
    assert polygon.area == pytest.approx(25 - 0.5 + 64 - 0.5 - 4 + 0.5)


def test_nothing_has_no_outline() -> None:
    assert _outlines(np.zeros((4, 5), int)) == {}


def test_reference_contour_of_nothing_is_empty() -> None:
    assert reference_contour(np.zeros((3, 3), bool)).shape == (0, 2)
