from __future__ import annotations

from fractions import Fraction

import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.slides.rasterise import _side, paint_polygons

LATTICE = st.integers(-4, 28).map(lambda value: value / 2)
ANYWHERE = st.floats(-2, 14, allow_nan=False, width=32)


def _paint(polygons, at_y, at_x):
    """Of polygons given as lists of rings."""
    rings = [np.asarray(ring, float).reshape(-1, 2) for polygon in polygons for ring in polygon]
    out = np.zeros((len(at_y), len(at_x)), np.int32)
    paint_polygons(
        np.concatenate(rings),
        np.cumsum([0, *map(len, rings)]),
        np.cumsum([0, *map(len, polygons)]),
        np.arange(len(polygons)),
        np.asarray(at_y, float),
        np.asarray(at_x, float),
        out,
    )
    return out


def _rings(polygon):
    return [np.asarray(ring.coords)[:, :2] for ring in (polygon.exterior, *polygon.interiors)]


@st.composite
def _polygons(draw):
    """Valid polygons, some with a hole."""
    place = draw(st.sampled_from([LATTICE, ANYWHERE]))
    corners = draw(st.lists(st.tuples(place, place), min_size=3, max_size=9))
    made = shapely.make_valid(shapely.Polygon(corners))
    if draw(st.booleans()):
        made = shapely.make_valid(made.difference(shapely.box(3.25, 3.25, 6.5, 5.75)))
    return [part for part in shapely.get_parts(made) if part.geom_type == "Polygon" and part.area > 1e-6]


@settings(max_examples=150, deadline=None)
@given(several=st.lists(_polygons(), min_size=1, max_size=3), step=st.sampled_from([0.5, 1.0, 1.3]))
def test_a_pixel_belongs_to_the_last_polygon_that_holds_its_centre(several, step):
    polygons = [polygon for group in several for polygon in group]
    if not polygons:
        return
    centres = (np.arange(24) + 0.5) * step
    painted = _paint([_rings(polygon) for polygon in polygons], centres, centres)
    expected = np.zeros((24, 24), np.int32)
    on_edge = np.zeros((24, 24), bool)
    x, y = np.meshgrid(centres, centres)
    for number, polygon in enumerate(polygons, 1):
        expected[shapely.contains_xy(polygon, x, y)] = number
        on_edge |= shapely.intersects_xy(polygon.boundary, x, y)
    assert np.array_equal(painted[~on_edge], expected[~on_edge])


@settings(max_examples=100, deadline=None)
@given(places=st.lists(st.tuples(LATTICE, LATTICE), min_size=4, max_size=14, unique=True))
def test_polygons_that_share_outlines_share_no_pixel_and_leave_none_out(places):
    points = shapely.MultiPoint(places)
    triangles = [one for one in shapely.delaunay_triangles(points).geoms if one.area > 0]
    if not triangles:
        return
    centres = np.arange(13) + 0.5  # on many corners and edges of the lattice
    count = sum((_paint([_rings(one)], centres, centres) > 0).astype(int) for one in triangles)
    x, y = np.meshgrid(centres, centres)
    assert count.max() <= 1
    assert np.all(count[shapely.contains_xy(points.convex_hull, x, y)] == 1)


def test_centres_on_the_outline_belong_to_what_lies_right_and_below():
    square = [(0.5, 0.5), (2.5, 0.5), (2.5, 2.5), (0.5, 2.5)]
    centres = np.arange(4) + 0.5
    expected = np.zeros((4, 4), int)
    expected[:2, :2] = 1
    assert np.array_equal(_paint([[square]], centres, centres), expected)
    assert np.array_equal(_paint([[square[::-1]]], centres, centres), expected)
    assert np.array_equal(_paint([[[*square, square[0]]]], centres, centres), expected)


def test_later_polygons_lie_over_earlier_ones_and_holes_show_what_is_below():
    centres = np.arange(6) + 0.5
    ring = [[(0, 0), (6, 0), (6, 6), (0, 6)], [(2, 2), (4, 2), (4, 4), (2, 4)]]
    below = [[(1, 1), (5, 1), (5, 5), (1, 5)]]
    painted = _paint([below, ring], centres, centres)
    assert painted[2:4, 2:4].tolist() == [[1, 1], [1, 1]]
    assert np.count_nonzero(painted == 2) == 32
    assert np.count_nonzero(_paint([ring, below], centres, centres) == 2) == 16


def test_a_polygon_that_reaches_far_out_of_the_window():
    centres = 100 + np.arange(3) + 0.5
    assert (_paint([[[(-1e9, -1e9), (1e9, -1e9), (1e9, 1e9), (-1e9, 1e9)]]], centres, centres) == 1).all()
    assert not _paint([[[(0, 0), (1, 0), (1, 1)]], [[(5, 5), (5, 5), (5, 5)]]], centres, centres).any()


NUMBERS = st.one_of(st.integers(-64, 64).map(lambda value: value / 8), st.floats(-131072, 131072, width=32))


@settings(max_examples=400, deadline=None)
@given(
    corners=st.lists(NUMBERS, min_size=4, max_size=4), share=st.floats(0, 1), off=st.sampled_from([0.0, 1e-16, -1e-15])
)
def test_the_side_of_a_place_is_that_of_exact_arithmetic(corners, share, off):
    x0, y0, x1, y1 = corners
    x, y = x0 + share * (x1 - x0) + off, y0 + share * (y1 - y0)  # close to the edge, where rounding could decide
    fx0, fy0, fx1, fy1, fx, fy = map(Fraction, (x0, y0, x1, y1, x, y))
    exact = (fx1 - fx0) * (fy - fy0) - (fy1 - fy0) * (fx - fx0)
    scale = abs((fx1 - fx0) * (fy - fy0)) + abs((fy1 - fy0) * (fx - fx0))
    if exact and abs(exact) < scale / 2**100:
        return  # closer than twice a double's digits can tell
    assert np.sign(_side(x0, y0, x1, y1, x, y)) == (exact > 0) - (exact < 0)
