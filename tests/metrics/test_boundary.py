"""Boundary F1 against distance transforms of whole images, and what must not change it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from slideloom.metrics.boundary import BoundaryDistances, boundary_distances, tolerance_px
from slideloom.patches.hv import boundary_map

REACH = 6.5


def discs(rng: np.random.Generator, shape: tuple[int, int] = (61, 47), n: int = 9) -> np.ndarray:
    """Label image of discs that touch and run over the border."""
    labels = np.zeros(shape, np.int32)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for label in range(1, n + 1):
        cy, cx = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        labels[(y - cy) ** 2 + (x - cx) ** 2 < rng.uniform(2, 8) ** 2] = label
    return labels


def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gt = discs(rng)
    pred = np.roll(gt, rng.integers(-3, 4, 2), (0, 1))
    pred[pred == rng.integers(1, 10)] = 0
    return gt, pred


def same(one: BoundaryDistances, other: BoundaryDistances) -> bool:
    return bool((one.gt == other.gt).all() and (one.pred == other.pred).all())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), tolerance=st.sampled_from([0, 1, 1.5, 2, 3, 6.5]))
def test_figures_follow_from_distance_transforms(seed: int, tolerance: float) -> None:
    gt, pred = pair(seed)
    found = boundary_distances(gt, pred, REACH)
    true, predicted = boundary_map(gt) > 0, boundary_map(pred) > 0

    def within(outline: np.ndarray, other: np.ndarray) -> np.ndarray:
        far = distance_transform_edt(~other) if other.any() else np.full(other.shape, np.inf)
        return far[outline] <= tolerance

    hits, found_again = within(predicted, true), within(true, predicted)
    precision, recall = hits.mean(), found_again.mean()
    assert found.precision(tolerance) == pytest.approx(precision)
    assert found.recall(tolerance) == pytest.approx(recall)
    both = precision + recall
    assert found.f1(tolerance) == pytest.approx(2 * precision * recall / both if both else 0.0)
    assert found.surface_dice(tolerance) == pytest.approx(np.concatenate([hits, found_again]).mean())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), block_px=st.integers(3, 70), reach=st.sampled_from([0, 1, 2.9, 6.5]))
def test_windows_change_nothing(seed: int, block_px: int, reach: float) -> None:
    gt, pred = pair(seed)
    seen = np.random.default_rng(seed).random(gt.shape) < 0.99
    for mask in (None, seen):
        whole = boundary_distances(gt, pred, reach, seen=mask, block_px=1000)
        assert same(whole, boundary_distances(gt, pred, reach, seen=mask, block_px=block_px))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_other_labels_sides_and_paddings_change_nothing(seed: int) -> None:
    gt, pred = pair(seed)
    whole = boundary_distances(gt, pred, REACH)
    rng = np.random.default_rng(seed)
    names, others = (np.concatenate([[0], rng.permutation(40_000)[:9] + 1]) for _ in range(2))
    assert same(whole, boundary_distances(names[gt], others[pred], REACH))
    assert same(whole, boundary_distances(gt.T, pred.T, REACH))
    assert same(whole, boundary_distances(gt[::-1], pred[::-1], REACH))
    turned = boundary_distances(pred, gt, REACH)
    assert (turned.gt == whole.pred).all()
    assert turned.precision(2) == whole.recall(2)
    # Padding closes nuclei that ran out of the image, so the discs that touch it are taken out first.
    kept = [each * ~np.isin(each, border(each)) for each in (gt, pred)]
    assert same(boundary_distances(*kept, REACH), boundary_distances(*(np.pad(each, 20) for each in kept), REACH))


def border(labels: np.ndarray) -> np.ndarray:
    return np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))


def test_a_shift_by_hand() -> None:
    gt = np.zeros((40, 40), np.uint8)
    gt[10:20, 10:20] = 1
    pred = np.roll(gt, 3, 1)
    found = boundary_distances(gt, pred, 4)
    # The horizontal sides share 7 of 10 columns; the corners and the rest are up to 3 px away.
    assert found.f1(3) == 1.0
    assert found.f1(2.99) < 1.0
    assert found.gt.sum() == found.pred.sum() == 36
    assert found.recall(0) == pytest.approx(14 / 36)
    assert found.f1(0) == found.recall(0) == found.surface_dice(0)


def test_nuclei_that_touch_are_outlined_as_labels_and_not_as_a_mask() -> None:
    gt = np.zeros((30, 30), np.int32)
    gt[10:20, 5:15], gt[10:20, 15:25] = 1, 2
    mask = (gt > 0).astype(np.int32)
    assert boundary_distances(gt, mask, 2).recall(1) < 1.0
    assert boundary_distances(gt > 0, mask > 0, 2).f1(0) == 1.0


def test_the_border_of_what_was_predicted_is_no_outline() -> None:
    gt = np.zeros((30, 30), np.int32)
    gt[5:25, 5:25] = 1
    seen = np.zeros((30, 30), np.bool_)
    seen[:, :15] = True
    pred = np.where(seen, gt, 0)
    assert boundary_distances(gt, pred, 2).f1(0) < 1.0
    for turns in range(4):
        found = boundary_distances(*(np.rot90(each, turns) for each in (gt, pred)), 2, seen=np.rot90(seen, turns))
        assert found.f1(0) == 1.0
        assert found.gt.sum() == 20 + 2 * 8  # one side, and two more up to the column before the last seen


def test_undefined_is_none_and_one_side_alone_is_nought() -> None:
    some, none = np.zeros((20, 20), np.int32), np.zeros((20, 20), np.int32)
    some[5:9, 5:9] = 3
    nothing = boundary_distances(none, none, 2)
    assert nothing.f1(1) is nothing.precision(1) is nothing.recall(1) is nothing.surface_dice(1) is None
    missed = boundary_distances(some, none, 2)
    assert (missed.precision(1), missed.recall(1), missed.f1(1), missed.surface_dice(1)) == (None, 0.0, 0.0, 0.0)
    invented = boundary_distances(none, some, 2)
    assert (invented.precision(1), invented.recall(1), invented.f1(1)) == (0.0, None, 0.0)


def test_tolerances_in_micrometres_keep_whole_pixels() -> None:
    assert 0.3 / 0.1 < 3
    gt = np.zeros((30, 30), np.uint8)
    gt[10:20, 10:20] = 1
    found = boundary_distances(gt, np.roll(gt, 3, 1), tolerance_px(0.5, 0.1))
    assert found.f1(tolerance_px(0.3, 0.1)) == 1.0
    for bad in ((-1.0, 0.5), (1.0, 0.0), (float("nan"), 0.5)):
        with pytest.raises(ValueError, match="tolerance"):
            tolerance_px(*bad)


def test_what_is_refused() -> None:
    image = np.zeros((5, 5), np.int32)
    with pytest.raises(ValueError, match="alike"):
        boundary_distances(image, image[:4], 2)
    with pytest.raises(ValueError, match="0 to 32"):
        boundary_distances(image, image, 32.5)
    found = boundary_distances(image, image, 2)
    for tolerance in (3, -1, float("nan")):
        with pytest.raises(ValueError, match="beyond the reach"):
            found.f1(tolerance)
    with pytest.raises(ValueError, match="reach"):
        found.merge(BoundaryDistances(3))
    with pytest.raises(ValueError, match="shapes"):
        found.add(image, image[:3])


def test_arrays_on_disk_and_merged_halves(tmp_path: Path) -> None:
    gt, pred = pair(5)
    stored = []
    for name, image in (("gt", gt), ("pred", pred)):
        array = zarr.create_array(str(tmp_path / name), shape=image.shape, chunks=(16, 16), dtype="uint32")
        array[:] = image
        stored.append(array)
    whole = boundary_distances(gt, pred, 3)
    assert same(whole, boundary_distances(*stored, 3, block_px=20))
    merged = BoundaryDistances(3)
    for core, grown in ((slice(30, 61), slice(30 - merged.context_px, 61)), (slice(0, 30), slice(0, 35))):
        half = BoundaryDistances(3)
        inner = slice(core.start - grown.start, core.stop - grown.start)
        half.add(gt[grown], pred[grown], (inner, slice(0, gt.shape[1])))
        merged.merge(half)
    assert same(whole, merged)
