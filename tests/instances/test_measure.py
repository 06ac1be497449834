"""Figures of instances against plain full-image loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from slideloom.errors import SlideloomError
from slideloom.instances.markers import marker_sums
from slideloom.instances.measure import measure, measured
from slideloom.instances.windows import Box, label_table


def _table(labels: np.ndarray) -> Any:
    return label_table(labels.astype(np.int32), int(labels.max()), Box(0, 0, *labels.shape), labels.shape[1])


@pytest.fixture(scope="module")
def labels(make_crowd: Callable[..., Any]) -> np.ndarray:
    found = make_crowd(2, (150, 190), 60, 8)
    return np.unique(found, return_inverse=True)[1].reshape(found.shape).astype(np.uint32)


@pytest.mark.parametrize(("window_px", "workers"), [(64, 1), (71, 3), (4096, 1)])
def test_figures_are_those_of_full_masks(labels: np.ndarray, window_px: int, workers: int) -> None:
    rng = np.random.default_rng(0)
    maps = {name: rng.integers(0, 256, labels.shape).astype(np.uint8) for name in ("nucleus", "class_probability")}
    maps["class_id"] = rng.integers(0, 4, labels.shape).astype(np.uint8)
    figures = measure(labels, maps, _table(labels), n_classes=4, scale=2.0, window_px=window_px, workers=workers)
    assert figures.first == 1
    assert len(figures) == labels.max()
    polygons = figures.outlines.polygons()
    for number in range(1, int(labels.max()) + 1):
        mask = labels == number
        y, x = np.nonzero(mask)
        row = number - 1
        assert figures.area[row] == mask.sum()
        assert figures.centroid[row] == pytest.approx([x.mean() + 0.5, y.mean() + 0.5])
        assert figures.nucleus[row] == maps["nucleus"][mask].sum()
        assert figures.class_pixels[row].tolist() == np.bincount(maps["class_id"][mask], minlength=4).tolist()
        for kind in range(4):
            chosen = mask & (maps["class_id"] == kind)
            assert figures.class_weight[row, kind] == maps["class_probability"][chosen].sum()
        polygon = polygons[row]
        assert polygon.is_valid
        assert polygon.bounds == (2 * x.min(), 2 * y.min(), 2 * x.max() + 2, 2 * y.max() + 2)
        assert polygon.area == pytest.approx(4 * (mask.sum() - 0.5 + 0.5 * len(polygon.interiors)))


@pytest.mark.parametrize(("window_px", "workers", "part"), [(64, 1, 7), (50, 4, 1000), (4096, 1, 10), (13, 2, 1)])
def test_parts_and_windows_change_no_figure(labels: np.ndarray, window_px: int, workers: int, part: int) -> None:
    maps = {"nucleus": np.full(labels.shape, 7, np.uint8)}
    whole = measure(labels, maps, _table(labels), window_px=4096)
    parts = list(measured(labels, maps, _table(labels), window_px=window_px, workers=workers, part=part))
    assert [figures.first for figures in parts] == list(range(1, len(whole) + 1, part))
    assert whole.class_pixels.shape == (labels.max(), 0)
    for name in ("area", "box", "centroid", "nucleus"):
        np.testing.assert_array_equal(np.concatenate([getattr(one, name) for one in parts]), getattr(whole, name))
    assert b"".join(one.outlines.wkb.tobytes() for one in parts) == whole.outlines.wkb.tobytes()


def test_parts_come_while_windows_below_are_not_read(labels: np.ndarray) -> None:
    numbers, first, where = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.zeros(len(numbers), np.uint32)
    rank[1 + np.argsort(first[1:])] = np.arange(1, len(numbers))
    in_order = rank[where].reshape(labels.shape)

    class Watched:
        shape = labels.shape
        lowest = 0

        def __getitem__(self, place: Any) -> np.ndarray:
            self.lowest = max(self.lowest, place[0].stop)
            return in_order[place]

    watched = Watched()
    parts = measured(watched, {"nucleus": labels.astype(np.uint8)}, _table(in_order), window_px=10, part=5)
    assert len(next(parts)) == 5
    assert watched.lowest < 60
    assert sum(map(len, parts)) == labels.max() - 5


def test_no_instance_is_a_part_without_one() -> None:
    nothing = np.zeros((20, 30), np.uint32)
    (figures,) = measured(nothing, {"nucleus": nothing.astype(np.uint8)}, _table(nothing), n_classes=0)
    assert len(figures) == len(figures.outlines) == 0


def test_a_label_image_that_lacks_an_id_is_refused(labels: np.ndarray) -> None:
    table = _table(labels)
    with pytest.raises(ValueError, match="not all in the label image"):
        measure(np.where(labels == 9, 0, labels), {"nucleus": labels.astype(np.uint8)}, table)


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
    again = marker_sums(labels, slide.patches, count, workers=3)
    np.testing.assert_array_equal(again[0], sums)
    np.testing.assert_array_equal(again[1], pixels)
    expected = np.bincount(labels[seen], minlength=count)
    np.testing.assert_array_equal(pixels[1:], expected[1:])
    for channel, plane in enumerate(slide.image):
        weights = np.bincount(labels[seen], weights=plane[seen], minlength=count)
        np.testing.assert_array_equal(sums[1:, channel], weights[1:])
