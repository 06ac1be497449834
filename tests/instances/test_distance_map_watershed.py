"""Nuclei parted along the valleys of a predicted distance map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from tests.forest_oracle import in_raster_order, spanning_forest

from slideloom.config.model import InstancesConfig
from slideloom.instances.distance_map_watershed import DistanceMapWatershed
from slideloom.instances.distance_watershed import HEIGHT
from slideloom.instances.method import HIGHEST_LEVEL
from slideloom.instances.stitch import SlideMaps, find_instances, stitch
from slideloom.instances.windows import Box


def shares(truth: np.ndarray) -> np.ndarray:
    """Distance of each pixel to its nucleus' outline as a share of the nucleus' greatest, from SciPy's transform."""
    out = np.zeros(truth.shape, np.float32)
    for number, place in enumerate(ndimage.find_objects(truth), 1):
        if place is not None:
            own = truth[place] == number
            away = ndimage.distance_transform_edt(np.pad(own, 1))[1:-1, 1:-1]
            out[place] += np.where(own, away / away.max(), 0).astype(np.float32)
    return out


def as_map(share: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


def grain(shape: tuple[int, int], seed: int, sigma: float = 2.0) -> np.ndarray:
    """Smooth noise of deviation 1."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=shape).astype(np.float32), (0, 0), sigma)
    return np.asarray(noise / noise.std())


def instances(mask: np.ndarray, distance: np.ndarray, mpp_um: float = 0.25, **options: Any) -> np.ndarray:
    method = DistanceMapWatershed.from_config(InstancesConfig(**options), mpp_um)
    return find_instances(SlideMaps({"nucleus": (mask > 0).astype(np.uint8) * 255, "distance": distance}), method)


@pytest.mark.parametrize(
    ("mpp_um", "apart_px", "peak_px", "level_px"),
    [(0.25, 8.0, 5, 3), (0.5, 4.0, 3, 1), (0.1, 20.0, 15, 9), (0.02, 100.0, 61, 41), (10.0, 1.0, 1, 1)],
)
def test_sizes_follow_the_pixel_size(mpp_um: float, apart_px: float, peak_px: int, level_px: int) -> None:
    method = DistanceMapWatershed.from_config(InstancesConfig(), mpp_um)
    assert (method.peak_px, method.level_px) == (peak_px, level_px)
    assert method.apart_px == pytest.approx(apart_px)
    assert method.reads == ("distance",)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([0.25, 0.5]))
def test_is_what_a_plain_formulation_gives(seed: int, mpp_um: float) -> None:
    mask = grain((40, 44), seed, 3) > -0.02
    distance = as_map(0.5 + grain((40, 44), seed + 1) / 3)
    method = DistanceMapWatershed.from_config(InstancesConfig(min_area_um2=0.0), mpp_um)
    found = method.landscape(mask.astype(np.uint8), {"distance": distance})

    def smooth(side: int) -> np.ndarray:
        # Python's and NumPy's integers from beginning to end.
        weights = np.convolve(np.convolve(np.ones(side, np.int64), np.ones(side, np.int64)), np.ones(side, np.int64))
        calm = np.where(mask, distance, 0).astype(np.int64)
        total = ndimage.convolve1d(ndimage.convolve1d(calm, weights, 0, mode="mirror"), weights, 1, mode="mirror")
        return np.array([round(int(v) * HEIGHT / (255 * side**6)) for v in total.ravel()]).reshape(mask.shape)

    np.testing.assert_array_equal(found.level, HEIGHT + 1 - smooth(method.level_px))
    assert 1 <= found.level.min() <= found.level.max() <= HIGHEST_LEVEL
    peak, places = smooth(method.peak_px), np.argwhere(mask)
    expected = np.zeros_like(mask)
    own = peak[mask]
    for index, (y, x) in enumerate(places):
        near = ((places - (y, x)) ** 2).sum(axis=1) <= method.apart_px**2
        near[index] = False
        beaten = (own[near] > own[index]) | ((own[near] == own[index]) & (np.flatnonzero(near) < index))
        expected[y, x] = own[index] == HEIGHT or not beaten.any()
    np.testing.assert_array_equal(found.seeds > 0, expected)
    maps = SlideMaps({"nucleus": mask.astype(np.uint8) * 255, "distance": distance})
    np.testing.assert_array_equal(find_instances(maps, method), spanning_forest(mask, found.level, found.seeds))


@pytest.mark.parametrize("gap_px", [10, 13, 16])
@pytest.mark.parametrize("blur", [0.0, 1.0])
def test_touching_discs_are_parted_where_they_touch(
    gap_px: int, blur: float, make_discs: Callable[..., Any], pq: Callable[..., float]
) -> None:
    d = gap_px
    centres = [(20, 20 + d * k) for k in range(4)] + [(60, 20), (60, 20 + d), (60 + d, 20), (60 + d, 20 + d)]
    truth = make_discs((100, 110), centres, 10)
    share = shares(truth)
    found = instances(truth, as_map(cv2.GaussianBlur(share, (0, 0), blur) if blur else share))
    assert found.max() == len(centres)
    assert pq(truth, found) > 0.95


@pytest.mark.parametrize("radius", [3, 10, 25, 60])
def test_a_disc_is_one_nucleus_also_where_the_slide_ends(radius: int, make_discs: Callable[..., Any]) -> None:
    truth = make_discs((160, 160), [(80, 80)], radius)
    distance = as_map(shares(truth))
    np.testing.assert_array_equal(instances(truth, distance, min_area_um2=0.0), truth)
    cut = truth[80:, 75:]
    np.testing.assert_array_equal(instances(cut, distance[80:, 75:], min_area_um2=0.0), cut)


@pytest.mark.parametrize("value", [0, 255])
def test_a_flat_map_parts_nothing(value: int, make_discs: Callable[..., Any]) -> None:
    truth = make_discs((80, 80), [(40, 40)], 30)
    np.testing.assert_array_equal(instances(truth, np.full(truth.shape, value, np.uint8)), truth)


def test_a_wider_distance_parts_less(make_crowd: Callable[..., Any]) -> None:
    truth = make_crowd(5, (200, 220), 70, 8)
    distance = as_map(shares(truth) + 0.15 * grain(truth.shape, 1))
    counts = [instances(truth, distance, seed_distance_um=apart).max() for apart in (0.5, 2.0, 8.0)]
    assert counts[0] > counts[1] > counts[2] >= ndimage.label(truth)[1] * 0.9


@pytest.mark.parametrize(
    ("radius", "mpp_um", "noise", "least"), [(9, 0.25, 0.0, 0.97), (9, 0.25, 0.1, 0.94), (20, 0.25, 0.05, 0.97)]
)
def test_crowds_are_parted(
    radius: int, mpp_um: float, noise: float, least: float, make_crowd: Callable[..., Any], pq: Callable[..., float]
) -> None:
    truth = make_crowd(3, (300, 300), 9720 // radius**2, radius)
    share = cv2.GaussianBlur(shares(truth), (0, 0), 1) + noise * grain(truth.shape, 0)
    parts = in_raster_order(ndimage.label(truth)[0])
    found = pq(truth, instances(truth, as_map(share), mpp_um))
    assert found > least
    assert found > pq(truth, parts) + 0.05


@pytest.fixture(scope="module")
def hard(make_crowd: Callable[..., Any]) -> dict[str, np.ndarray]:
    """Crowded nuclei, bars across the slide, speckle and holes; noisy maps with plateaus at both ends."""
    truth = make_crowd(1, (230, 260), 90, 9)
    nucleus = as_map(cv2.GaussianBlur((truth > 0).astype(np.float32), (0, 0), 1.5) + 0.2 * grain(truth.shape, 2))
    nucleus[150:154, 5:255] = nucleus[5:225, 200:203] = 230
    nucleus[::31, ::29] = 0
    nucleus[::47, ::43] = 255
    distance = as_map(1.3 * shares(truth) + 0.15 * grain(truth.shape, 3))
    distance[20:70, 30:90] = 255
    distance[120:150, 100:220] = 77
    return {"nucleus": nucleus, "distance": distance}


@pytest.mark.parametrize(
    ("mpp_um", "everywhere", "options"),
    [(0.25, False, {}), (0.5, False, {}), (0.25, True, {}), (0.1, True, {"min_area_um2": 0.0})],
)
def test_windows_workers_and_order_change_nothing(
    mpp_um: float, everywhere: bool, options: dict[str, Any], hard: dict[str, np.ndarray], tmp_path: Path
) -> None:
    arrays = hard | ({"nucleus": np.full_like(hard["nucleus"], 255)} if everywhere else {})
    maps = SlideMaps(arrays)
    method = DistanceMapWatershed.from_config(InstancesConfig(**options), mpp_um)
    whole = find_instances(maps, method)
    assert whole.max() > 5
    for window_px, workers in ((41, 2), (97, 1), (128, 2)):
        place = tmp_path / str(window_px)
        place.mkdir()
        n = -(-maps.shape[0] // window_px) * -(-maps.shape[1] // window_px)
        order = np.random.default_rng(window_px).permutation(n).tolist()
        found = stitch(maps, method, place, window_px=window_px, workers=workers, order=order)
        assert found.read(Box(0, 0, *maps.shape)).tobytes() == whole.astype(np.uint32).tobytes(), window_px


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10_000),
    # Without holes to fill, the context is little more than what filter and peaks need.
    st.sampled_from([(0.1, 0.0), (0.25, 0.0), (0.25, 4.0), (1.0, 4.0)]),
    st.sampled_from([0, 255]),
)
def test_a_pixel_looks_no_farther_than_the_context(seed: int, sizes: tuple[float, float], beyond: int) -> None:
    nucleus, distance = as_map(0.6 + grain((110, 115), seed)), as_map(0.5 + grain((110, 115), seed + 1) / 40)
    mpp_um, min_area_um2 = sizes
    method = DistanceMapWatershed.from_config(InstancesConfig(min_area_um2=min_area_um2), mpp_um)
    whole = method.landscape(method.front.mask(nucleus), {"distance": distance})
    y, x = np.mgrid[:110, :115]
    peaks = np.argwhere(whole.seeds)
    for at_y, at_x in peaks[:: max(1, len(peaks) // 5)]:
        far = np.maximum(np.abs(y - at_y), np.abs(x - at_x)) > method.context_px
        other = [np.where(far, np.uint8(beyond), values) for values in (nucleus, distance)]
        found = method.landscape(method.front.mask(other[0]), {"distance": other[1]})
        assert found.seeds[at_y, at_x]
        assert found.level[at_y, at_x] == whole.level[at_y, at_x]
