"""The contingency table: against NumPy's own counting, and the same for any cut into blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from slideloom.artefacts.zarrio import create_array, open_array
from slideloom.metrics.contingency import Contingency, PairCounter, blocks, contingency, majority

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


@settings(max_examples=40, deadline=None)
@given(data=st.data(), block_px=st.integers(1, 30), seed=st.integers(0, 99))
def test_blocks_in_any_order_give_the_same_bytes(data: st.DataObject, block_px: int, seed: int) -> None:
    gt, pred = _pair(data)
    mask = np.random.default_rng(seed).random(gt.shape) < 0.7
    counters = PairCounter(), PairCounter()
    for counter, order in zip(counters, (1, -1), strict=True):
        for window in list(blocks(gt.shape, block_px))[::order]:
            origin = (window[0].start, window[1].start)
            counter.add(gt[window], pred[window], mask[window], origin=origin)
    forth, back = (Contingency.from_counter(counter) for counter in counters)
    for name, value in vars(forth).items():
        assert np.asarray(value).tobytes() == np.asarray(getattr(back, name)).tobytes(), name
    for ids, centroid, labels in [(forth.gt_ids, forth.gt_centroid, gt), (forth.pred_ids, forth.pred_centroid, pred)]:
        assert centroid is not None
        assert ids.tolist() == np.unique(labels[mask & (labels > 0)]).tolist()
        means = [np.argwhere(mask & (labels == label)).mean(axis=0) for label in ids]
        np.testing.assert_allclose(centroid, np.reshape(means, (-1, 2)), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", ["bool", "u1", "i2", ">i4", "i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("masked", [False, True])
def test_every_kind_of_integer_and_layout_counts_alike(dtype: str, masked: bool) -> None:
    rng = np.random.default_rng(2)
    small = rng.integers(0, 2, (30, 40))
    mask = rng.random((30, 40)) < 0.5 if masked else None
    plain = PairCounter()
    plain.add(small, small[::-1], mask)
    for values in (
        small.astype(dtype),
        np.asfortranarray(small.astype(dtype)),
        np.repeat(small.astype(dtype), 2, 1)[:, ::2],
    ):
        other = PairCounter()
        other.add(values, values[::-1], mask)
        for one, two in zip(plain.pairs(), other.pairs(), strict=True):
            np.testing.assert_array_equal(one, two)


def test_many_pairs_in_one_block_widen_the_table() -> None:
    rng = np.random.default_rng(3)
    gt, pred = rng.integers(1, 400, (2, 300, 500)).astype(np.int32)
    table = contingency(gt, pred)
    keys, counts = np.unique(gt.astype(np.int64) * 1000 + pred, return_counts=True)
    np.testing.assert_array_equal(table.overlap, counts)
    np.testing.assert_array_equal(table.gt_ids[table.gt_index] * 1000 + table.pred_ids[table.pred_index], keys)
    assert table.overlap.size > 90_000


def test_positions_are_not_made_up() -> None:
    counter = PairCounter()
    counter.add(np.ones((2, 2), int), np.ones((2, 2), int), origin=(4, 6))
    assert Contingency.from_counter(counter).gt_centroid.tolist() == [[4.5, 6.5]]
    counter.add(np.ones(3, int), np.ones(3, int))
    table = Contingency.from_counter(counter)
    assert (table.gt_centroid, table.pred_centroid, counter.positions()) == (None, None, None)
    assert table.gt_area.tolist() == [7]


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_what_is_not_a_label_is_refused(dtype: type) -> None:
    good = np.zeros((2, 2), np.uint32)
    with pytest.raises(ValueError, match=r"negative|from -1"):
        PairCounter().add(np.array([[0, -1], [0, 0]], dtype), good)
    with pytest.raises(ValueError, match="4294967296"):
        PairCounter().add(good, np.full((2, 2), 2**32))
    with pytest.raises(ValueError, match="whole numbers"):
        PairCounter().add(good, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="two-dimensional"):
        PairCounter().add(np.zeros(2, int), np.zeros(2, int), origin=(0, 0))


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
