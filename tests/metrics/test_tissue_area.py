"""Tissue that was looked at, against polygons and against counted pixels."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.metrics import tissue_area
from slideloom.metrics.tissue_area import PredictedTissue
from slideloom.slides.facts import ImageFacts, SlideFacts
from slideloom.slides.image import Level


def facts(height: int, width: int, he_mpp_um: float = 0.5, sp_mpp_um: float = 0.5) -> SlideFacts:
    """A slide of two images that show the same place."""
    factor = he_mpp_um / sp_mpp_um
    sizes = {"he": (height, width, he_mpp_um), "sp": (round(height * factor), round(width * factor), sp_mpp_um)}
    return SlideFacts(
        "s1",
        {
            name: ImageFacts("a", "numpy", h, w, 3, "uint8", mpp, "sheet", (Level(h, w, 1.0),), (), name == "he")
            for name, (h, w, mpp) in sizes.items()
        },
    )


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_area_is_in_mm2_of_the_covered_part(scale: float) -> None:
    covered = np.zeros((round(800 / scale), round(600 / scale)), np.uint8)
    covered[:, : round(300 / scale)] = 1
    tissue = [shapely.box(100, 200, 500, 700)]
    found = PredictedTissue.of(tissue, facts(800, 600), "he", scale, covered)
    assert found.area_mm2 == pytest.approx(200 * 500 * 0.25 / 1e6, rel=1e-12)
    whole = PredictedTissue.of(tissue, facts(800, 600), "he", scale)
    assert whole.area_mm2 == pytest.approx(400 * 500 * 0.25 / 1e6, rel=1e-12)


def test_tissue_is_placed_on_the_other_image_by_physical_size() -> None:
    slide = facts(800, 600, 0.25, 0.5)
    hole = shapely.box(100, 100, 200, 200)
    tissue = [shapely.Polygon(shapely.box(0, 0, 400, 400).exterior.coords, [hole.exterior.coords])]
    for covered in (np.ones((400, 300), np.uint8), None):
        found = PredictedTissue.of(tissue, slide, "sp", 1.0, covered)
        assert found.area_mm2 == pytest.approx((400 * 400 - 100 * 100) * 0.0625 / 1e6, rel=1e-12)
    x, y = np.array([10.0, 30, 100, 100.1]), np.array([10.0, 30, 100, 10])
    assert found.holds(x, y).tolist() == [True, False, True, False]


def test_overlapping_outlines_count_once_and_what_hangs_over_the_slide_does_not() -> None:
    tissue = [shapely.box(-50, 0, 60, 100), shapely.box(40, 0, 100, 100), shapely.box(90, 90, 300, 300)]
    for covered in (np.ones((100, 200), np.uint8), None):
        found = PredictedTissue.of(tissue, facts(100, 200), "he", 1.0, covered)
        assert found.area_mm2 == pytest.approx((100 * 100 + 100 * 10) * 0.25 / 1e6, rel=1e-12)


def test_no_tissue_and_none_covered() -> None:
    ones = np.ones((100, 200), np.uint8)
    nothing = PredictedTissue.of([], facts(100, 200), "he", 1.0, ones)
    assert (nothing.area_mm2, nothing.holds(np.ones(2), np.ones(2)).tolist()) == (0, [False, False])
    unseen = PredictedTissue.of([shapely.box(0, 0, 9, 9)], facts(100, 200), "he", 1.0, 0 * ones)
    assert (unseen.area_mm2, unseen.holds(np.ones(1), np.ones(1)).tolist()) == (0, [True])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_area_is_that_of_the_geometries(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(200, 900, 2).tolist()
    corners = rng.uniform(-50, 950, (12, 2))
    tissue = shapely.convex_hull(shapely.MultiPoint(corners))
    tiles = [(y, x) for y in range(0, height, 100) for x in range(0, width, 100) if rng.random() < 0.6]
    covered = np.zeros((height, width), np.uint8)
    for y, x in tiles:
        covered[y : y + 100, x : x + 100] = 1
    boxes = [shapely.box(x, y, min(width, x + 100), min(height, y + 100)) for y, x in tiles]
    wanted = shapely.intersection(tissue, shapely.union_all(boxes)).area
    found = PredictedTissue.of([tissue], facts(height, width), "he", 1.0, covered)
    assert found.area_mm2 * 4e6 == pytest.approx(wanted, rel=1e-9, abs=1e-6)


def test_how_it_is_read_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    covered = np.kron(rng.integers(0, 2, (9, 11)), np.ones((130, 130))).astype(np.uint8)
    tissue = [shapely.Point(700, 600).buffer(555)]
    found = []
    for squares in (1, 3, 8):
        monkeypatch.setattr(tissue_area, "_SQUARES", squares)
        found.append(PredictedTissue.of(tissue, facts(*covered.shape), "he", 1.0, covered).area_mm2)
    assert found[0] == found[1] == found[2] > 0
