from __future__ import annotations

import json
import uuid

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from slideloom.errors import SlideError
from slideloom.slides import outlines
from slideloom.slides.outlines import (
    area_in_cells,
    feature_collection,
    mask_to_polygons,
    pixels_inside,
    read_tissue,
)

MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(mask=MASKS)
@settings(deadline=None, max_examples=50)
def test_polygons_are_the_mask_to_the_pixel_edge(mask):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outlines, "_TOLERANCE_PX", 0.0)
        polygons = mask_to_polygons(mask, 1.0, mask.shape)
    assert all(polygon.is_valid for polygon in polygons)
    assert sum(polygon.area for polygon in polygons) == pytest.approx(mask.sum())
    lines = [np.arange(size + 1) for size in mask.shape]
    assert np.allclose(area_in_cells(shapely.union_all(polygons), *lines), mask)


@given(mask=MASKS, scale=st.sampled_from([1.0, 2.0, 3.7]))
@settings(deadline=None, max_examples=50)
def test_smoothing_moves_no_outline_by_more_than_a_pixel(mask, scale):
    height, width = (max(1, round(size * scale)) for size in mask.shape)
    smooth = shapely.union_all(mask_to_polygons(mask, scale, (height, width)))
    assert smooth.is_empty == (not mask.any())
    y, x = np.nonzero(mask)
    exact = shapely.union_all(shapely.box(x * scale, y * scale, (x + 1) * scale, (y + 1) * scale))
    assert smooth.is_empty or exact.buffer(1.01 * scale).covers(smooth)


def test_the_outline_of_everything_is_the_whole_slide():
    (polygon,) = mask_to_polygons(np.ones((10, 13), bool), 8.3, (85, 106))
    assert polygon.equals(shapely.box(0, 0, 106, 85))


def test_holes_are_kept():
    mask = np.ones((40, 40), bool)
    mask[10:20, 10:20] = False
    (polygon,) = mask_to_polygons(mask, 2.0, (80, 80))
    assert len(polygon.interiors) == 1
    assert polygon.area == pytest.approx(80 * 80 - 20 * 20)


@given(
    mask=MASKS,
    rows=st.lists(st.floats(-3, 15), min_size=2, max_size=6, unique=True),
    columns=st.lists(st.floats(-3, 15), min_size=2, max_size=6, unique=True),
)
@settings(deadline=None, max_examples=50)
def test_areas_in_cells_equal_those_of_intersections(mask, rows, columns):
    region = shapely.union_all(mask_to_polygons(mask, 1.0, mask.shape))
    rows, columns = np.sort(rows), np.sort(columns)
    left, top = np.meshgrid(columns[:-1], rows[:-1])
    right, bottom = np.meshgrid(columns[1:], rows[1:])
    expected = shapely.area(shapely.intersection(region, shapely.box(left, top, right, bottom)))
    assert np.allclose(area_in_cells(region, rows, columns), expected, atol=1e-8)


def test_areas_of_slanted_outlines():
    star = shapely.Polygon(
        [(5, 0), (6.5, 3.5), (10, 4), (7, 6.2), (8, 10), (5, 8), (2, 9.7), (3, 6), (0, 4), (3.5, 3.5)]
    )
    lines = np.linspace(-1, 11, 9)
    left, top = np.meshgrid(lines[:-1], lines[:-1])
    expected = shapely.area(shapely.intersection(star, shapely.box(left, top, left + 1.5, top + 1.5)))
    assert np.allclose(area_in_cells(star, lines, lines), expected)
    assert np.allclose(area_in_cells(star.reverse(), lines, lines), expected)


def test_geojson_round_trip(tmp_path):
    ring = shapely.box(0, 0, 100, 80).difference(shapely.box(10, 10, 30, 30))
    body = feature_collection([ring, shapely.box(200, 0, 210, 10)], {"note": "x"}, uuid.UUID(int=1))
    assert body == feature_collection([ring, shapely.box(200, 0, 210, 10)], {"note": "x"}, uuid.UUID(int=1))
    first = body["features"][0]
    assert first["properties"]["objectType"] == "annotation"
    assert first["properties"]["classification"]["name"] == "Tissue"
    assert uuid.UUID(first["id"]) != uuid.UUID(body["features"][1]["id"])
    (tmp_path / "t.geojson").write_text(json.dumps(body))
    read = read_tissue(tmp_path / "t.geojson")
    assert [polygon.area for polygon in read] == [100 * 80 - 400, 100]


@pytest.mark.parametrize("wrap", ["bare", "feature", "list", "collection"])
def test_what_qupath_may_export(tmp_path, wrap):
    geometry = {
        "type": "MultiPolygon",
        "coordinates": [[[[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]], [[[20, 0], [21, 0], [21, 1], [20, 1], [20, 0]]]],
    }
    feature = {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": "Tissue"}}}
    other = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [99, 0], [99, 99], [0, 0]]]},
        "properties": {"classification": {"name": "Pen mark"}},
    }
    value = {
        "bare": geometry,
        "feature": feature,
        "list": [feature, other],
        "collection": {"type": "FeatureCollection", "features": [other, feature]},
    }[wrap]
    (tmp_path / "t.geojson").write_text(json.dumps(value))
    assert [polygon.area for polygon in read_tissue(tmp_path / "t.geojson")] == [81, 1]


def test_a_bow_tie_is_mended(tmp_path):
    ring = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]
    (tmp_path / "t.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    polygons = read_tissue(tmp_path / "t.geojson")
    assert all(polygon.is_valid for polygon in polygons)
    assert sum(polygon.area for polygon in polygons) == pytest.approx(50)


@pytest.mark.parametrize(
    "text", ["", "{", "3", '{"type": "FeatureCollection"}', '{"type": "Polygon", "coordinates": 3}']
)
def test_what_is_no_geojson(tmp_path, text):
    (tmp_path / "t.geojson").write_text(text)
    with pytest.raises(SlideError) as caught:
        read_tissue(tmp_path / "t.geojson")
    assert caught.value.code == "bad_tissue"


def test_pixels_that_a_region_covers_at_least_half():
    rng = np.random.default_rng(5)
    triangles = [shapely.Polygon(rng.uniform(-10, 50, (3, 2))) for _ in range(6)]
    region = shapely.union_all(triangles).difference(shapely.box(12, 14, 19.4, 17.6))
    for y, x in ((0, 0), (7, 13), (30, -20)):
        rows, columns = np.mgrid[y : y + 24, x : x + 24]
        squares = shapely.box(columns, rows, columns + 1, rows + 1)
        assert np.array_equal(
            pixels_inside(region, y, x, 24), shapely.area(shapely.intersection(region, squares)) >= 0.5
        )
    assert pixels_inside(shapely.box(0.5, 0, 3, 8), 0, 0, 8).sum(axis=1).tolist() == [3] * 8, "a half counts"
    assert not pixels_inside(region, 900, 900, 8).any()
