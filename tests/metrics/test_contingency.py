"""The contingency table: against NumPy's own counting, and the same for any cut into blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from slideloom.artefacts.zarrio import create_array, open_array
from slideloom.metrics.contingency import PairCounter, contingency, majority

LABELS = arrays(np.int32, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.integers(0, 6))


def _pair(data: st.DataObject) -> tuple[np.ndarray, np.ndarray]:
    gt = data.draw(LABELS)
    return gt, data.draw(arrays(np.int32, gt.shape, elements=st.sampled_from([0, 1, 2, 7, 2**31 - 1])))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_counts_are_those_of_unique_over_pairs(data: st.DataObject) -> None:
    gt, pred = _pair(data)
    table = contingency(gt, pred)
    keys, counts = np.unique(np.stack([gt.ravel(), pred.ravel()]), axis=1, return_counts=True)
    both = (keys > 0).all(axis=0)
    found = np.stack([table.gt_ids[table.gt_index], table.pred_ids[table.pred_index]])
    np.testing.assert_array_equal(found, keys[:, both])
    np.testing.assert_array_equal(table.overlap, counts[both])
    for ids, area, labels in [(table.gt_ids, table.gt_area, gt), (table.pred_ids, table.pred_area, pred)]:
        wanted, sizes = np.unique(labels[labels > 0], return_counts=True)
        np.testing.assert_array_equal(ids, wanted)
        np.testing.assert_array_equal(area, sizes)
    assert table.n_pixels == gt.size
    assert table.tp_pixels == int(((gt > 0) & (pred > 0)).sum())


@settings(max_examples=40, deadline=None)
@given(data=st.data(), block_px=st.integers(1, 30))
def test_any_block_size_gives_the_same_table(data: st.DataObject, block_px: int) -> None:
    gt, pred = _pair(data)
    whole, cut = contingency(gt, pred), contingency(gt, pred, block_px=block_px)
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(value, getattr(cut, name), err_msg=name)


def test_arrays_on_disk_are_read_block_by_block(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    gt = rng.integers(0, 40, (100, 130)).astype(np.uint32)
    pred = rng.integers(0, 2**32, (100, 130), dtype=np.uint64).astype(np.uint32) % 50 + np.uint32(2**32 - 60)
    for name, data in (("gt", gt), ("pred", pred)):
        create_array(tmp_path / name, data.shape, data.dtype, chunk=(32, 32), shard=(64, 64)).write(data).result()
    stored = contingency(open_array(tmp_path / "gt"), open_array(tmp_path / "pred"), block_px=64)
    memory = contingency(gt, pred)
    np.testing.assert_array_equal(stored.overlap, memory.overlap)
    np.testing.assert_array_equal(stored.pred_ids, memory.pred_ids)
    assert stored.pred_ids[-1] > 2**31


def test_masked_pixels_do_not_count() -> None:
    counter = PairCounter()
    counter.add(np.array([[1, 1, 2]]), np.array([[3, 3, 3]]), np.array([[True, False, False]]))
    counter.add(np.array([[5]]), np.array([[5]]), np.array([[False]]))
    assert [column.tolist() for column in counter.pairs()] == [[1], [3], [1]]


def test_pending_pairs_are_merged_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slideloom.metrics.contingency._PENDING", 3)
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 9, (2, 40, 40))
    counter = PairCounter()
    for row in range(40):
        counter.add(first[row], second[row])
    once = PairCounter()
    once.add(first, second)
    for merged, single in zip(counter.pairs(), once.pairs(), strict=True):
        np.testing.assert_array_equal(merged, single)


def test_unlike_images_are_refused() -> None:
    with pytest.raises(ValueError, match="alike"):
        contingency(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(ValueError, match="shapes"):
        PairCounter().add(np.zeros(2, int), np.zeros(3, int))


def test_majority_prefers_the_smaller_value_among_equals() -> None:
    ids, values, counts = np.array([1, 1, 1, 4]), np.array([2, 3, 9, 7]), np.array([5, 5, 4, 1])
    assert majority(ids, values, counts, np.array([1, 2, 4, 5])).tolist() == [2, 0, 7, 0]
    empty = np.empty(0, np.int64)
    assert majority(empty, empty, empty, np.array([3])).tolist() == [0]
