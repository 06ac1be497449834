"""Masks scored as instances look perfect, and are refused."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from slideloom.errors import SlideError
from slideloom.metrics.contingency import contingency
from slideloom.metrics.panoptic import panoptic, panoptic_at
from slideloom.metrics.semantic import PixelConfusion
from slideloom.slides.binary_labels import instances_or_refuse, label_pieces, looks_binary


def nuclei(seed: int, size: int = 160, pitch: int = 16) -> np.ndarray:
    """Label image of separate discs."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    y, x = np.mgrid[:size, :size]
    label = 0
    for cy in range(pitch // 2, size, pitch):
        for cx in range(pitch // 2, size, pitch):
            label += 1
            dy, dx = rng.uniform(-1.5, 1.5, 2)
            labels[(y - cy - dy) ** 2 + (x - cx - dx) ** 2 < rng.uniform(4, 5.5) ** 2] = label
    return labels


def brute_force(labels: np.ndarray) -> tuple[int, int, int, int, int]:
    ids = np.unique(labels[labels > 0])
    pieces = scattered = torn = 0
    for label in ids:
        numbered, n = ndimage.label(labels == label)
        pieces += n
        areas = np.bincount(numbered.ravel())[1:]
        scattered += int(areas.sum()) if areas.max() < 0.9 * areas.sum() else 0
        torn += areas.max() < 0.9 * areas.sum()
    return ids.size, pieces, int((labels > 0).sum()), scattered, torn


def test_masks_scored_as_instances_look_perfect_and_are_refused() -> None:
    truth = nuclei(0)
    # Half the nuclei are merged in pairs and all are shifted: pixels agree fairly, instances hardly.
    merged = ndimage.binary_dilation(np.roll(truth, (2, 1), (0, 1)) > 0, iterations=2)
    prediction = ndimage.label(merged)[0].astype(np.int32)
    pixels = PixelConfusion.of_masks(truth, prediction)
    honest = panoptic(contingency(truth, prediction))
    assert pixels.f1 is not None
    assert 0.6 < pixels.f1 < 0.8
    assert honest.dq is not None
    assert honest.dq < 0.4

    masks = [(each > 0).astype(np.uint8) for each in (truth, prediction)]
    fooled = panoptic_at(contingency(*masks))
    assert fooled[0].dq == 1.0  # one true object, one predicted, IoU above one half
    assert fooled[0].sq == pytest.approx(pixels.iou)

    for mask in masks:
        with pytest.raises(SlideError, match=r"one id, in .* separate pieces") as told:
            instances_or_refuse(mask, where="slide_1")
        assert told.value.code == "binary_labels"
        assert "connected components" in told.value.hint
        assert str(pickle.loads(pickle.dumps(told.value))).startswith("slide_1: ")
    for labels in (truth, prediction):
        assert instances_or_refuse(labels, where="slide_1").scattered_share == 0.0


def test_class_maps_are_refused() -> None:
    truth = nuclei(1)
    classes = np.random.default_rng(1).integers(1, 4, truth.max() + 1)[truth] * (truth > 0)
    with pytest.raises(SlideError, match="3 ids in 100 separate pieces; 100% of its labelled area") as told:
        instances_or_refuse(classes, where="slide_1")
    assert told.value.code == "binary_labels"
    assert looks_binary(np.where(truth > 0, 255, 0).astype(np.uint8))
    assert looks_binary(truth > 0)


def test_real_label_images_pass(shared: Path) -> None:
    tiles = np.load(shared / "fixtures" / "cellvit" / "bench_tiles.npz")
    names = [name for name in tiles.files if name.endswith(("/inst", "/expected_instance_map"))]
    assert names
    for name in names:
        found = instances_or_refuse(tiles[name], where=name)
        assert found.n_ids == np.unique(tiles[name]).size - 1
        assert found.scattered_share is not None
        assert found.scattered_share < 0.02
        assert looks_binary((tiles[name] > 0).astype(np.uint8))


def test_a_few_cut_nuclei_and_crumbs_pass() -> None:
    labels = nuclei(2)
    labels[:, 38:41] = 0  # cuts one column of nuclei in two
    labels[2, 2] = 50  # a crumb of another nucleus
    found = instances_or_refuse(labels, where="slide_1")
    assert found.n_pieces > found.n_ids
    assert found.scattered_share is not None
    assert 0 < found.scattered_share < 0.2


def test_one_id_needs_a_size_to_be_believed() -> None:
    labels = np.zeros((50, 50), np.int32)
    labels[10:20, 10:20] = 7
    assert looks_binary(labels)
    assert not looks_binary(labels, largest_px=100)
    assert looks_binary(labels, largest_px=99)
    labels[30, 30] = 7
    assert looks_binary(labels, largest_px=1000)
    with pytest.raises(SlideError, match="one id, in 1 separate piece:"):
        instances_or_refuse(labels[:25], where="slide_1")


def test_no_labels_are_not_a_mask() -> None:
    for shape in ((0, 5), (5, 0), (6, 6)):
        found = label_pieces(np.zeros(shape, np.int32))
        assert (found.n_ids, found.n_pieces, found.pixels, found.scattered_share) == (0, 0, 0, None)
        assert found.binary_because() is None


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    band_px=st.integers(1, 20),
    top=st.sampled_from([1, 2, 3, 30]),
    share=st.sampled_from([0.3, 0.6, 0.9, 1.0]),
)
def test_pieces_are_those_of_scipy_for_any_bands(seed: int, band_px: int, top: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 24, 2))
    labels = (rng.integers(1, top + 1, shape) * (rng.random(shape) < share)).astype(np.int32)
    found = label_pieces(labels, band_px=band_px)
    assert dataclasses.astuple(found) == brute_force(labels)
    for other in (labels.T, labels[::-1], np.pad(labels, 3), labels.astype(np.int64) * 100_000_007):
        assert label_pieces(other, band_px=band_px) == found


def test_spirals_and_combs_join_late() -> None:
    comb = np.zeros((40, 41), np.uint16)
    comb[:, ::2] = 9
    assert label_pieces(comb, band_px=7).n_pieces == 21
    comb[-1] = 9
    assert label_pieces(comb, band_px=7).n_pieces == 1
    spiral = np.zeros((31, 31), np.uint8)
    y, x, dy, dx = 15, 15, 0, 2
    for leg in range(1, 15):
        for _ in range(leg):
            spiral[min(y, y + dy) : max(y, y + dy) + 1, min(x, x + dx) : max(x, x + dx) + 1] = 1
            y, x = y + dy, x + dx
        dy, dx = dx, -dy
    assert {label_pieces(each, band_px=band).n_pieces for each in (spiral, spiral.T) for band in (1, 4, 31)} == {1}


def test_arrays_on_disk_and_what_is_refused(tmp_path: Path) -> None:
    labels = nuclei(3)
    array = zarr.create_array(str(tmp_path / "labels"), shape=labels.shape, chunks=(32, 32), dtype="uint32")
    array[:] = labels
    assert label_pieces(array, band_px=50) == label_pieces(labels)
    with pytest.raises(ValueError, match="2 axes"):
        label_pieces(labels[None])
    with pytest.raises(ValueError, match="whole numbers, not float64"):
        label_pieces(labels.astype(float))


def test_a_nucleus_torn_in_two_is_no_class_map() -> None:
    labels = np.zeros((40, 60), np.int32)
    labels[2:20, 2:20], labels[2:20, 30:48] = 1, 1  # a slip: one nucleus drawn in two pieces, most of the area
    labels[25:30, 5:12], labels[25:30, 30:37] = 2, 3
    assert not looks_binary(labels)
    labels[25:30, 50:57] = 2
    labels[32:37, 5:12] = 3
    assert looks_binary(labels), "three ids in six pieces: classes"
