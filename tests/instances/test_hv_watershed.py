"""The watershed on fixed scales: as good as the original where that is good, and local."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.config.model import InstancesConfig
from slideloom.instances.hv_watershed import ENERGY, HVWatershed, hv_energy, kernel_px, relief
from slideloom.instances.parity import parity_watershed
from slideloom.instances.threshold import components
from slideloom.instances.whole import hv_watershed
from slideloom.patches.hv import hv_map, hv_map_int8


@pytest.mark.parametrize(("mpp_um", "width"), [(0.25, 21), (0.377, 13), (0.5, 11), (0.65, 7), (1.0, 5), (8.0, 3)])
def test_filter_width_follows_the_pixel_size(mpp_um: float, width: int) -> None:
    assert kernel_px(5.0, mpp_um) == width


@pytest.mark.parametrize("width", [3, 5, 11, 21])
def test_energy_is_that_of_opencvs_sobel(width: int) -> None:
    hv = np.random.default_rng(width).integers(-127, 128, (2, 40, 50)).astype(np.int8)
    derive, smooth = cv2.getDerivKernels(1, 0, width, ktype=cv2.CV_64F)
    bound = 127 * np.abs(derive).sum() * smooth.sum()
    x_slope = cv2.Sobel(hv[0].astype(np.float64), cv2.CV_64F, 1, 0, ksize=width) / bound
    y_slope = cv2.Sobel(hv[1].astype(np.float64), cv2.CV_64F, 0, 1, ksize=width) / bound
    expected = np.clip((0.5 - np.minimum(x_slope, y_slope)) / 1.5, 0, 1)
    np.testing.assert_allclose(hv_energy(hv, width) / ENERGY, expected, rtol=0, atol=1 / ENERGY)


@pytest.mark.parametrize("width", [3, 11, 21, 41])
def test_energy_scale_is_the_filters_own(width: int) -> None:
    # Nucleus against nucleus, nucleus against background, and nothing at all.
    hv = np.zeros((2, 120, 400), np.int8)
    hv[0, :, :100], hv[0, :, 100:200] = 127, -127
    hv[0, :, 300:] = -127
    energy = hv_energy(hv, width)[60]
    assert energy[99:101].max() == pytest.approx(ENERGY, rel=1e-3)
    assert energy[299:301].max() == pytest.approx(2 / 3 * ENERGY, rel=1e-3)
    assert energy[250] == round(ENERGY / 3)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 40), st.integers(0, 40), st.sampled_from([5, 11, 21, 35]), st.integers(0, 5))
def test_energy_does_not_depend_on_the_window(top: int, left: int, width: int, seed: int) -> None:
    hv = np.random.default_rng(seed).integers(-127, 128, (2, 90, 100)).astype(np.int8)
    reach = width // 2
    part = hv_energy(np.ascontiguousarray(hv[:, top:, left:]), width)
    inner = (slice(reach if top else 0, None), slice(reach if left else 0, None))
    np.testing.assert_array_equal(part[inner], hv_energy(hv, width)[top:, left:][inner])


@pytest.mark.parametrize("count", [500, 2000])
def test_agrees_with_the_original_on_whole_tiles(count: int, shared: Path, pq: Callable[..., float]) -> None:
    with np.load(shared / "fixtures" / "cellvit" / "bench_tiles.npz") as tiles:
        truth, expected = tiles[f"tile{count}/inst"], tiles[f"tile{count}/expected_instance_map"]
    found = hv_watershed((truth > 0).astype(np.uint8) * 255, hv_map_int8(truth))
    assert pq(expected, found) >= 0.995
    assert pq(truth, found) >= 0.995


def test_agrees_with_the_original_on_noisy_maps(shared: Path, pq: Callable[..., float]) -> None:
    with np.load(shared / "fixtures" / "cellvit" / "postproc_maps.npz") as arrays:
        for case, least in (("clean_128", 0.99), ("dense_noisy_256", 0.94)):
            binary = arrays[f"{case}/binary_prob"].astype(np.float32)[1]
            found = hv_watershed(binary, arrays[f"{case}/hv"].astype(np.float32))
            assert pq(arrays[f"{case}/instance_map"], found) >= least


@pytest.mark.parametrize("gap_px", [12, 13, 14])
def test_parts_touching_lymphocytes_at_half_a_micron(
    gap_px: int, make_discs: Callable[..., Any], make_maps: Callable[..., Any], pq: Callable[..., float]
) -> None:
    # 7 µm discs, 14 px, in a row, a triangle, a square and a diagonal pair; centres 6 to 7 µm apart.
    d, h = gap_px, round(gap_px * 0.87)
    centres = [(20, 20 + d * k) for k in range(4)]
    centres += [(60, 20), (60, 20 + d), (60 + h, 20 + d / 2), (60, 80), (60, 80 + d), (60 + d, 80), (60 + d, 80 + d)]
    centres += [(110, 30), (110 + d * 0.71, 30 + d * 0.71)]
    truth = make_discs((140, 130), centres, 7)
    for made in (make_maps(truth), make_maps(truth, blur=1.0, noise=0.1)):
        found = hv_watershed(made.nucleus, made.hv, mpp_um=0.5)
        assert found.max() == len(centres)
        assert pq(truth, found) > 0.85


def test_steadier_than_the_original_on_noisy_maps_of_mixed_sizes(
    make_crowd: Callable[..., Any], make_maps: Callable[..., Any], pq: Callable[..., float]
) -> None:
    scores = []
    for seed in range(3):
        small, large = make_crowd(seed, (400, 200), 130, 5), make_crowd(seed + 9, (400, 200), 40, 13)
        truth = np.concatenate([small, np.where(large > 0, large + 1000, 0)], axis=1)
        made = make_maps(truth, blur=1.0, noise=0.15)
        ours = hv_watershed(made.nucleus, made.hv, mpp_um=0.5)
        theirs = parity_watershed(made.nucleus >= 128, made.hv.astype(np.float32) / 127, magnification=20).instances
        scores.append((pq(truth, ours), pq(truth, theirs)))
    ours_mean, theirs_mean = np.mean(scores, axis=0)
    ours_worst, theirs_worst = np.min(scores, axis=0)
    assert ours_mean > theirs_mean + 0.05
    assert ours_worst > theirs_worst + 0.1
    assert ours_worst > 0.75


def test_a_nucleus_does_not_depend_on_the_others(make_discs: Callable[..., Any]) -> None:
    # The original's scale is the tile's extremes: a small steep nucleus far away changes what a large flat one becomes.
    large = make_discs((200, 500), [(100, 100)], 60)
    both = np.where(make_discs((200, 500), [(100, 450)], 4) > 0, 2, large)
    config = InstancesConfig(min_area_um2=1.0)
    alone, beside = (
        hv_watershed((truth > 0).astype(np.float32), hv_map(truth), config=config)[:, :300] for truth in (large, both)
    )
    np.testing.assert_array_equal(alone, beside)
    assert alone.max() == 1


def test_flat_maps_split_nothing() -> None:
    full = np.full((80, 90), 255, np.uint8)
    assert (hv_watershed(full, np.zeros((2, 80, 90), np.int8)) == 1).all()
    empty = np.zeros((80, 90), np.uint8)
    assert not hv_watershed(empty, np.zeros((2, 80, 90), np.int8)).any()


def test_small_nuclei_are_dropped_by_area(make_discs: Callable[..., Any]) -> None:
    truth = make_discs((60, 80), [(20, 20), (20, 50)], 6)
    truth[50:53, 70:73] = 3
    nucleus, hv = (truth > 0).astype(np.float32), hv_map(truth)
    assert len(np.unique(hv_watershed(nucleus, hv, config=InstancesConfig(min_area_um2=1.0)))) == 3
    assert len(np.unique(hv_watershed(nucleus, hv, config=InstancesConfig(min_area_um2=0.5)))) == 4


def test_enclosed_ridges_are_filled_and_open_ones_are_not() -> None:
    settings = HVWatershed.from_config(InstancesConfig(), 0.25)
    inside = np.zeros((40, 60), np.uint8)
    inside[5:35, 5:55] = 1
    energy = np.zeros((40, 60), np.int32)
    energy[15:25, 15:25] = ENERGY
    energy[5:35, 38:40] = ENERGY
    marks = settings.markers(inside, energy)
    assert marks[20, 20] == 1
    assert marks[20, 38] == 0
    assert components(marks)[0].max() == 2


def test_relief_is_low_in_the_calm_and_highest_off_the_foreground() -> None:
    mask = np.zeros((30, 30), np.uint8)
    mask[5:25, 5:25] = 1
    energy = np.random.default_rng(0).integers(0, ENERGY + 1, mask.shape).astype(np.int32)
    level = relief(energy, mask)
    calm = np.pad((ENERGY - energy).astype(np.int64) * mask, 1, mode="reflect")
    weights = np.outer([1, 2, 1], [1, 2, 1])
    smooth = sum(weights[y, x] * calm[y : y + 30, x : x + 30] for y in range(3) for x in range(3))
    np.testing.assert_array_equal(level, 16 * ENERGY + 1 - smooth)
    assert level.min() >= 1
