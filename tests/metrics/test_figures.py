"""The list of all instance figures: what it holds, what is undefined when, and what changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.metrics.contingency import Contingency, PairCounter, blocks, contingency
from slideloom.metrics.detection import detect
from slideloom.metrics.figures import detected_pairs, instance_figures
from slideloom.metrics.panoptic import panoptic

COUNTS = {"n_gt", "n_pred", "tp", "fp", "fn", "splits", "split_pieces", "merges", "merged_nuclei", "iou_sum"}
COUNTS |= {"tp_50", "tp_60", "tp_70", "tp_80", "tp_90"}
DETECTION = {"tp_d", "fp_d", "fn_d", "f1_d", "precision_d", "recall_d"}


def figures(table: Contingency, radius_px: float = 3.0) -> dict[str, Any]:
    return instance_figures(table, detected=detected_pairs(table, radius_px))


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
    base = figures(contingency(gt, pred), 4.0)
    names = np.concatenate(([0], rng.permutation(1000)[:14] + 1))
    assert figures(contingency(names[gt], pred), 4.0) == base
    assert figures(contingency(gt.T, pred.T), 4.0) == base
    margins = ((8, 0), (16, 5))
    assert figures(contingency(np.pad(gt, margins), np.pad(pred, margins)), 4.0) == base
    counter = PairCounter()
    windows = list(blocks(gt.shape, block_px))
    for at in rng.permutation(len(windows)):
        window = windows[at]
        counter.add(gt[window], pred[window], origin=(window[0].start, window[1].start))
    assert figures(Contingency.from_counter(counter), 4.0) == base


def test_what_is_defined_when() -> None:
    empty, one = np.zeros((9, 9), np.int32), np.zeros((9, 9), np.int32)
    one[2:6, 2:6] = 5
    both = figures(contingency(empty, empty))
    assert all(
        value in (0, 0.0) if name in COUNTS | {"tp_d", "fp_d", "fn_d"} else value is None
        for name, value in both.items()
    )
    missed = figures(contingency(one, empty))
    undefined = {name for name, value in missed.items() if value is None}
    assert undefined == {"sq", "precision", "dice_2", "sq_mean", "precision_d"}
    invented = figures(contingency(empty, one))
    assert {name for name, value in invented.items() if value is None} == {
        "sq",
        "recall",
        "dice_2",
        "sq_mean",
        "recall_d",
    }
    same = figures(contingency(one, one))
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
        detected_pairs(table, 3)


def test_detection_and_matches_are_those_of_their_own_functions() -> None:
    rng = np.random.default_rng(4)
    gt = squares(rng)
    table = contingency(gt, np.roll(gt, (1, 2), (0, 1)))
    found = figures(table, 4.0)
    detection = detect(table.gt_centroid, table.pred_centroid, 4.0)
    assert (found["tp_d"], found["fp_d"], found["fn_d"]) == (detection.tp, detection.fp, detection.fn)
    assert found["tp_d"] > 0
    for threshold in (0.5, 0.55, 0.7):
        for convention in ("pannuke", "stardist", "instanseg_pairs"):
            matched = panoptic(table, threshold, convention=convention)
            found = instance_figures(table, threshold=threshold, convention=convention)
            assert (found["tp"], found["fp"], found["fn"]) == (matched.tp, matched.fp, matched.fn)
            assert found["pq"] == matched.pq
            sweep = [panoptic(table, at / 10, convention=convention) for at in (5, 6, 7, 8, 9)]
            assert [found[f"tp_{at}"] for at in (50, 60, 70, 80, 90)] == [each.tp for each in sweep]
            assert [found[f"ap_{at}"] for at in (50, 60, 70, 80, 90)] == [each.ap for each in sweep]
