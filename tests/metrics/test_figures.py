"""The list of all instance figures: what it holds, what is undefined when, and what changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.metrics.contingency import Contingency, PairCounter, blocks, contingency
from slideloom.metrics.figures import instance_figures

COUNTS = {"n_gt", "n_pred", "tp", "fp", "fn", "splits", "split_pieces", "merges", "merged_nuclei", "iou_sum"}
DETECTION = {"tp_d", "fp_d", "fn_d", "f1_d", "precision_d", "recall_d"}


def squares(rng: np.random.Generator, n: int = 14, size: int = 48) -> np.ndarray:
    labels = np.zeros((size, size), np.int32)
    for label in rng.permutation(n) + 1:
        y, x = rng.integers(0, size - 4, 2)
        labels[y : y + rng.integers(3, 9), x : x + rng.integers(3, 9)] = label
    return labels


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), block_px=st.sampled_from([7, 16, 31]))
def test_numbering_order_of_tiles_transposition_and_margins_change_nothing(seed: int, block_px: int) -> None:
    rng = np.random.default_rng(seed)
    gt = squares(rng)
    pred = np.roll(gt, rng.integers(-3, 4, 2), (0, 1)) if seed % 2 else squares(rng)
    base = instance_figures(contingency(gt, pred), radius_px=4.0)
    names = np.concatenate(([0], rng.permutation(1000)[:14] + 1))
    assert instance_figures(contingency(names[gt], pred), radius_px=4.0) == base
    assert instance_figures(contingency(gt.T, pred.T), radius_px=4.0) == base
    margins = ((8, 0), (16, 5))
    assert instance_figures(contingency(np.pad(gt, margins), np.pad(pred, margins)), radius_px=4.0) == base
    counter = PairCounter()
    windows = list(blocks(gt.shape, block_px))
    for at in rng.permutation(len(windows)):
        window = windows[at]
        counter.add(gt[window], pred[window], origin=(window[0].start, window[1].start))
    assert instance_figures(Contingency.from_counter(counter), radius_px=4.0) == base


def test_what_is_defined_when() -> None:
    empty, one = np.zeros((9, 9), np.int32), np.zeros((9, 9), np.int32)
    one[2:6, 2:6] = 5
    both = instance_figures(contingency(empty, empty), radius_px=3)
    assert all(
        value in (0, 0.0) if name in COUNTS | {"tp_d", "fp_d", "fn_d"} else value is None
        for name, value in both.items()
    )
    missed = instance_figures(contingency(one, empty), radius_px=3)
    undefined = {name for name, value in missed.items() if value is None}
    assert undefined == {"sq", "precision", "dice_2", "sq_mean", "precision_d"}
    invented = instance_figures(contingency(empty, one), radius_px=3)
    assert {name for name, value in invented.items() if value is None} == {
        "sq",
        "recall",
        "dice_2",
        "sq_mean",
        "recall_d",
    }
    same = instance_figures(contingency(one, one), radius_px=3)
    assert {value for name, value in same.items() if name not in COUNTS | DETECTION} == {1.0}
    assert {name for name, value in instance_figures(contingency(one, one)).items() if value is None} == DETECTION
    assert set(both) == set(missed) == set(same)
    assert {"f1_50", "f1_90", "ap_50", "ap_70", "f1_mean", "ap_mean", "pq_mean", "aji_plus"} <= set(same)


def test_centroids_are_needed_for_detection_only() -> None:
    counter = PairCounter()
    counter.add(np.ones((2, 2), int), np.ones((2, 2), int))
    table = Contingency.from_counter(counter)
    assert instance_figures(table)["pq"] == 1.0
    with pytest.raises(ValueError, match="origin"):
        instance_figures(table, radius_px=3)
