"""Nuclei parted along the boundary map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from tests.forest_oracle import in_raster_order, spanning_forest

from slideloom.config.model import InstancesConfig
from slideloom.instances.boundary_watershed import BoundaryWatershed
from slideloom.instances.stitch import SlideMaps, find_instances
from slideloom.patches.hv import boundary_map


def instances(nucleus: np.ndarray, boundary: np.ndarray, mpp_um: float = 0.25, **options: Any) -> np.ndarray:
    method = BoundaryWatershed.from_config(InstancesConfig(**options), mpp_um)
    return find_instances(SlideMaps({"nucleus": nucleus, "boundary": boundary}), method)


@pytest.mark.parametrize(("mpp_um", "opening_px", "marker_px"), [(0.25, 5, 16), (0.3, 3, 12), (0.5, 3, 4), (2.0, 3, 1)])
def test_sizes_follow_the_pixel_size(mpp_um: float, opening_px: int, marker_px: int) -> None:
    method = BoundaryWatershed.from_config(InstancesConfig(), mpp_um)
    assert method.opening_px == opening_px
    assert method.min_marker_px == marker_px
    assert method.separates == 128


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.1, 0.9), st.sampled_from([0.2, 0.25, 0.5]))
def test_is_what_a_plain_formulation_gives(seed: int, threshold: float, mpp_um: float) -> None:
    rng = np.random.default_rng(seed)
    mask = cv2.GaussianBlur(rng.normal(size=(40, 44)).astype(np.float32), (0, 0), 3) > -0.02
    grain = cv2.GaussianBlur(rng.normal(size=(40, 44)).astype(np.float32), (0, 0), 2)
    boundary = np.rint(np.clip(0.5 + grain * 2, 0, 1) * 255).astype(np.uint8)
    config = InstancesConfig(boundary_threshold=threshold, min_area_um2=0.0)
    method = BoundaryWatershed.from_config(config, mpp_um)
    found = method.landscape(mask.astype(np.uint8), {"boundary": boundary})

    # SciPy's morphology; beyond the border counts as inside for the erosion, outside for the dilation.
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (method.opening_px, method.opening_px)) > 0
    inner = mask & (boundary / 255 < threshold)
    core = ndimage.binary_dilation(ndimage.binary_erosion(inner, disc, border_value=1), disc)
    pieces, count = ndimage.label(core)
    large = np.isin(pieces, [label for label in range(1, count + 1) if (pieces == label).sum() >= method.min_marker_px])
    np.testing.assert_array_equal(found.seeds > 0, large)
    calm = np.where(mask, 255 - boundary.astype(np.int64), 0)
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1])
    level = 255 * 256 + 1 - ndimage.convolve(calm, kernel, mode="mirror")
    np.testing.assert_array_equal(found.level, level)
    np.testing.assert_array_equal(
        find_instances(SlideMaps({"nucleus": mask.astype(np.uint8) * 255, "boundary": boundary}), method),
        spanning_forest(mask, level, large),
    )


@pytest.mark.parametrize("gap_px", [14, 16, 18])
@pytest.mark.parametrize("blur", [0.0, 0.8])
def test_touching_discs_are_parted_where_they_touch(
    gap_px: int, blur: float, make_discs: Callable[..., Any], pq: Callable[..., float]
) -> None:
    d = gap_px
    centres = [(20, 20 + d * k) for k in range(4)] + [(60, 20), (60, 20 + d), (60 + d, 20), (60 + d, 20 + d)]
    truth = make_discs((100, 110), centres, 10)
    edge = boundary_map(truth).astype(np.float32)
    if blur:
        edge = np.clip(2 * cv2.GaussianBlur(edge, (0, 0), blur), 0, 1)
    found = instances((truth > 0).astype(np.uint8) * 255, np.rint(edge * 255).astype(np.uint8))
    assert found.max() == len(centres)
    assert pq(truth, found) > 0.97


def test_crowds_are_parted(make_crowd: Callable[..., Any], pq: Callable[..., float]) -> None:
    truth = make_crowd(3, (300, 300), 120, 9)
    boundary = boundary_map(truth) * np.uint8(255)
    assert pq(truth, instances((truth > 0).astype(np.uint8) * 255, boundary)) > 0.95


def test_a_leaky_boundary_parts_all_the_same() -> None:
    # Two squares; the line between them has a gap, through which the opening's disc does not fit.
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 10:50] = 1
    boundary = np.zeros_like(mask)
    boundary[10:30, 29:31] = 255
    boundary[18:20, 29:31] = 0
    found = instances(mask * 255, boundary)
    assert found.max() == 2
    assert (found[10:30, 10:29] == 1).all()
    assert (found[10:30, 31:50] == 2).all()


def test_without_a_boundary_components_are_instances(make_crowd: Callable[..., Any]) -> None:
    mask = (make_crowd(4, (120, 120), 25, 8) > 0).astype(np.uint8)
    found = instances(mask * 255, np.zeros_like(mask), min_area_um2=0.0)
    parts = cv2.connectedComponents(mask, connectivity=4)[1]
    np.testing.assert_array_equal(found, in_raster_order(parts))
