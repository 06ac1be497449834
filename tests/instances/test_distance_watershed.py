"""Nuclei parted at the necks of the foreground."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from tests.forest_oracle import in_raster_order, spanning_forest

from slideloom.config.model import InstancesConfig
from slideloom.instances.distance_watershed import HEIGHT, DistanceWatershed, peaks, squared_distance
from slideloom.instances.stitch import SlideMaps, find_instances


def instances(mask: np.ndarray, mpp_um: float = 0.25, **options: Any) -> np.ndarray:
    method = DistanceWatershed.from_config(InstancesConfig(**options), mpp_um)
    return find_instances(SlideMaps({"nucleus": (mask > 0).astype(np.uint8) * 255}), method)


@pytest.mark.parametrize(
    ("mpp_um", "bound_px", "apart_px", "smoothing_px"),
    [(0.25, 48, 8.0, 8), (0.5, 24, 4.0, 4), (0.1, 120, 20.0, 10), (0.02, 256, 100.0, 10), (10.0, 2, 1.0, 1)],
)
def test_sizes_follow_the_pixel_size(mpp_um: float, bound_px: int, apart_px: float, smoothing_px: int) -> None:
    method = DistanceWatershed.from_config(InstancesConfig(), mpp_um)
    assert (method.bound_px, method.smoothing_px) == (bound_px, smoothing_px)
    assert method.apart_px == pytest.approx(apart_px)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([0.0, 0.5, 0.9, 0.995, 1.0]),
    st.sampled_from([1, 2, 7, 60]),
)
def test_distances_are_those_of_brute_force(seed: int, shape: tuple[int, int], share: float, bound: int) -> None:
    mask = (np.random.default_rng(seed).random(shape) < share).astype(np.uint8)
    y, x = np.mgrid[: shape[0], : shape[1]]
    expected = np.full(shape, bound**2)
    for other_y, other_x in np.argwhere(mask == 0):
        expected = np.minimum(expected, (y - other_y) ** 2 + (x - other_x) ** 2)
    np.testing.assert_array_equal(squared_distance(mask, bound), expected)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 60), st.floats(1.0, 6.0))
def test_peaks_are_those_of_brute_force(seed: int, highest: int, apart: float) -> None:
    rng = np.random.default_rng(seed)
    mask = (rng.random((20, 23)) < 0.8).astype(np.uint8)
    height = rng.integers(0, highest, mask.shape).astype(np.int32)
    height[rng.random(mask.shape) < 0.02] = HEIGHT
    places = np.argwhere(mask)
    own = height[mask > 0].astype(np.int64)
    expected = np.zeros_like(mask)
    for index, (y, x) in enumerate(places):
        near = ((places - (y, x)) ** 2).sum(axis=1) <= apart**2
        near[index] = False
        beaten = (own[near] > own[index]) | ((own[near] == own[index]) & (np.flatnonzero(near) < index))
        expected[y, x] = own[index] == HEIGHT or not beaten.any()
    np.testing.assert_array_equal(peaks(height, mask, apart), expected)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_is_what_a_plain_formulation_gives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=(40, 44)), 3) > -0.02
    method = DistanceWatershed.from_config(InstancesConfig(min_area_um2=0.0), 0.5)
    found = method.landscape(mask.astype(np.uint8), {})
    # The border of the slide is no background.
    away = np.minimum(ndimage.distance_transform_edt(mask) if not mask.all() else np.inf, method.bound_px)
    kernel = np.array([1, 8, 28, 56, 70, 56, 28, 8, 1]) / 256
    smooth = ndimage.convolve1d(ndimage.convolve1d(away, kernel, 0, mode="mirror"), kernel, 1, mode="mirror")
    # Distances are kept in sixteenths of a pixel.
    expected = smooth / method.bound_px * HEIGHT
    np.testing.assert_allclose(HEIGHT + 1 - found.level, expected, rtol=0, atol=HEIGHT / method.bound_px / 32 + 1)
    np.testing.assert_array_equal(
        find_instances(SlideMaps({"nucleus": mask.astype(np.uint8) * 255}), method),
        spanning_forest(mask, found.level, found.seeds),
    )


@pytest.mark.parametrize("gap_px", [13, 15, 17])
def test_touching_discs_are_parted_where_they_touch(
    gap_px: int, make_discs: Callable[..., Any], pq: Callable[..., float]
) -> None:
    d = gap_px
    centres = [(20, 20 + d * k) for k in range(4)] + [(60, 20), (60, 20 + d), (60 + d * 0.71, 80), (60, 80 - d * 0.71)]
    truth = make_discs((100, 110), centres, 10)
    found = instances(truth)
    assert found.max() == len(centres)
    assert pq(truth, found) > 0.95


@pytest.mark.parametrize("radius", [3, 10, 25, 47, 80])
def test_a_disc_is_one_nucleus_also_where_the_slide_ends(radius: int, make_discs: Callable[..., Any]) -> None:
    truth = make_discs((200, 200), [(100, 100)], radius)
    np.testing.assert_array_equal(instances(truth, min_area_um2=0.0), truth)
    cut = truth[100:, 95:]
    np.testing.assert_array_equal(instances(cut, min_area_um2=0.0), cut)


def test_a_wider_distance_parts_less(make_crowd: Callable[..., Any]) -> None:
    truth = make_crowd(5, (200, 220), 70, 8)
    counts = [instances(truth, seed_distance_um=distance).max() for distance in (0.5, 2.0, 5.0)]
    assert counts[0] > counts[1] > counts[2] >= ndimage.label(truth)[1] * 0.9


def test_crowds_are_parted(make_crowd: Callable[..., Any], pq: Callable[..., float]) -> None:
    truth = make_crowd(3, (300, 300), 120, 9)
    parts = in_raster_order(ndimage.label(truth)[0])
    assert pq(truth, instances(truth)) > pq(truth, parts) + 0.2
