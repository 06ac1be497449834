"""Figures of instances against plain full-image loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import shapely

from slideloom.errors import SlideloomError
from slideloom.instances.measure import marker_sums, measure
from slideloom.instances.windows import Box, label_table


def _table(labels: np.ndarray) -> Any:
    return label_table(labels.astype(np.int32), int(labels.max()), Box(0, 0, *labels.shape), labels.shape[1])


@pytest.fixture(scope="module")
def labels(make_crowd: Callable[..., Any]) -> np.ndarray:
    found = make_crowd(2, (150, 190), 60, 8)
    return np.unique(found, return_inverse=True)[1].reshape(found.shape).astype(np.uint32)


@pytest.mark.parametrize("window_px", [64, 71, 4096])
def test_figures_are_those_of_full_masks(labels: np.ndarray, window_px: int) -> None:
    rng = np.random.default_rng(0)
    maps = {name: rng.integers(0, 256, labels.shape).astype(np.uint8) for name in ("nucleus", "class_probability")}
    maps["class_id"] = rng.integers(0, 4, labels.shape).astype(np.uint8)
    figures = measure(labels, maps, _table(labels), n_classes=4, scale=2.0, window_px=window_px)
    assert len(figures.area) == labels.max() + 1
    for number in range(1, int(labels.max()) + 1):
        mask = labels == number
        y, x = np.nonzero(mask)
        assert figures.area[number] == mask.sum()
        assert figures.centroid[number] == pytest.approx([x.mean() + 0.5, y.mean() + 0.5])
        assert figures.nucleus[number] == maps["nucleus"][mask].sum()
        assert figures.class_pixels[number].tolist() == np.bincount(maps["class_id"][mask], minlength=4).tolist()
        for kind in range(4):
            chosen = mask & (maps["class_id"] == kind)
            assert figures.class_weight[number, kind] == maps["class_probability"][chosen].sum()
        polygon = figures.polygon[number]
        assert polygon.is_valid
        assert polygon.bounds == (2 * x.min(), 2 * y.min(), 2 * x.max() + 2, 2 * y.max() + 2)
        assert polygon.area == pytest.approx(4 * (mask.sum() - 0.5 + 0.5 * len(polygon.interiors)))


def test_windows_change_no_figure(labels: np.ndarray) -> None:
    maps = {"nucleus": np.full(labels.shape, 7, np.uint8)}
    one, other = (measure(labels, maps, _table(labels), window_px=side) for side in (64, 4096))
    np.testing.assert_array_equal(one.centroid, other.centroid)
    assert (shapely.to_wkb(one.polygon[1:]) == shapely.to_wkb(other.polygon[1:])).all()
    assert one.class_pixels.shape == (labels.max() + 1, 0)


def test_unknown_class_is_refused(labels: np.ndarray) -> None:
    maps = {name: np.full(labels.shape, 5, np.uint8) for name in ("nucleus", "class_id", "class_probability")}
    with pytest.raises(SlideloomError, match="class 5") as caught:
        measure(labels, maps, _table(labels), n_classes=4)
    assert caught.value.code == "unknown_class"


@pytest.mark.parametrize(("stride_px", "drop"), [(64, ()), (40, ()), (64, (1, 4)), (24, (0, 5, 6, 11))])
def test_markers_count_every_pixel_once(
    stride_px: int,
    drop: tuple[int, ...],
    labels: np.ndarray,
    make_maps: Callable[..., Any],
    slide_of: Callable[..., Any],
) -> None:
    slide = slide_of(make_maps(labels.astype(np.int32)), stride_px=stride_px, drop=drop)
    seen = np.zeros(labels.shape, bool)
    for y, x in zip(slide.patches.y_px, slide.patches.x_px, strict=True):
        seen[y : y + 64, x : x + 64] = True
    assert seen.all() == (not drop)
    count = int(labels.max()) + 1
    sums, pixels = marker_sums(labels, slide.patches, count)
    expected = np.bincount(labels[seen], minlength=count)
    np.testing.assert_array_equal(pixels[1:], expected[1:])
    for channel, plane in enumerate(slide.image):
        weights = np.bincount(labels[seen], weights=plane[seen], minlength=count)
        np.testing.assert_array_equal(sums[1:, channel], weights[1:])
