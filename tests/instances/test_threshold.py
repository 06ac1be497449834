"""Foreground and components."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from slideloom.config.model import InstancesConfig
from slideloom.instances.stitch import SlideMaps, find_instances
from slideloom.instances.threshold import Foreground, Threshold, area_px, components, enclosed, foreground


@pytest.mark.parametrize(("area", "mpp", "pixels"), [(4.0, 0.25, 64), (4.0, 0.5, 16), (4.0, 0.3, 45), (0.0, 0.5, 1)])
def test_areas_are_scaled_to_the_slide(area: float, mpp: float, pixels: int) -> None:
    assert area_px(area, mpp) == pixels


@pytest.mark.parametrize(("threshold", "level"), [(0.5, 128), (0.3, 77), (0.2, 51), (0.999, 255)])
def test_level_is_the_lowest_code_at_or_above_the_threshold(threshold: float, level: int) -> None:
    settings = Foreground.from_config(InstancesConfig(nucleus_threshold=threshold), 0.5)
    assert settings.level == level
    assert level / 255 >= threshold > (level - 1) / 255


def test_small_holes_are_filled_and_bays_are_not() -> None:
    nucleus = np.full((30, 30), 255, np.uint8)
    nucleus[5:8, 5:8] = 0  # a hole of 9
    nucleus[15:19, 5:9] = 0  # a hole of 16
    nucleus[28:, 20:22] = 0  # a bay of 4 that leaves the slide
    nucleus[10, 12:20] = 0  # a hole of 8, too long
    mask = foreground(nucleus, 128, 10, 7)
    assert not mask[10, 12:20].any()
    assert mask[5:8, 5:8].all()
    assert not mask[15:19, 5:9].any()
    assert not mask[28:, 20:22].any()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000),
    st.integers(2, 30),
    st.integers(1, 9),
    st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(40, 80), st.integers(40, 70)),
)
def test_foreground_is_local(seed: int, hole_px: int, side_px: int, cut: tuple[int, int, int, int]) -> None:
    nucleus = (np.random.default_rng(seed).random((80, 70)) < 0.7).astype(np.uint8) * 255
    whole = foreground(nucleus, 128, hole_px, side_px)
    top, left, bottom, right = cut
    reach = Foreground(128, 1, hole_px, side_px).context_px
    part = foreground(np.ascontiguousarray(nucleus[top:bottom, left:right]), 128, hole_px, side_px)
    inner = (
        slice(top + reach if top else 0, bottom - reach if bottom < 80 else 80),
        slice(left + reach if left else 0, right - reach if right < 70 else 70),
    )
    shifted = tuple(
        slice(max(one.start - by, 0), max(one.stop - by, 0)) for one, by in zip(inner, (top, left), strict=True)
    )
    np.testing.assert_array_equal(part[shifted], whole[inner])


def test_pieces_beside_what_is_forbidden_are_not_enclosed() -> None:
    pieces = np.zeros((12, 20), np.uint8)
    pieces[3:5, 3:6] = pieces[3:5, 10:13] = 1
    forbidden = np.zeros_like(pieces)
    forbidden[4, 12] = 1
    found = enclosed(pieces, None, 6, forbidden)
    assert found[3:5, 3:6].all()
    assert found.sum() == 6


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.1, 0.9))
def test_components_are_scipys(seed: int, share: float) -> None:
    mask = (np.random.default_rng(seed).random((40, 50)) < share).astype(np.uint8)
    found, table = components(mask)
    expected, count = ndimage.label(mask)
    pairs = np.unique(np.stack([found.ravel(), expected.ravel()]), axis=1)
    assert len(table) == count + 1
    assert pairs.shape[1] == len(np.unique(found))
    np.testing.assert_array_equal(table.area[1:], np.bincount(found.ravel(), minlength=count + 1)[1:])


def test_instances_are_large_components() -> None:
    nucleus = np.zeros((40, 40), np.uint8)
    nucleus[2:12, 2:12] = 200
    nucleus[12:22, 12:22] = 200  # touches the first at a corner only
    nucleus[30:33, 30:33] = 200
    found = find_instances(SlideMaps({"nucleus": nucleus}), Threshold.from_config(InstancesConfig(), 0.5))
    assert found.max() == 2
    assert found[5, 5] != found[15, 15]
    assert not found[30:33, 30:33].any()
