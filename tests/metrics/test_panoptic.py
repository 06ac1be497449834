"""Instance figures: the originals' numbers, torchmetrics as oracle, and what must not change them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.detection import panoptic_quality

from slideloom.metrics.contingency import contingency
from slideloom.metrics.panoptic import F1_THRESHOLDS, Panoptic, aji, class_panoptic, mean_defined, panoptic, panoptic_at

EPS = 1e-6
CELLVIT = ("perfect", "shift_x3", "shift_xy5", "merged_pairs_same_id", "split_one_half", "both_empty", "pred_empty",
           "gt_empty", "radius_smaller", "radius_larger", "two_missed_one_false", "one_pred_over_two_gt",
           "two_pred_over_one_gt", "random_noncontiguous", "iou_exactly_half", "no_background_pred")  # fmt: skip


def discs(rng: np.random.Generator, size: int = 64, n: int = 12) -> np.ndarray:
    """Label image of discs, later ones on top of earlier ones."""
    labels = np.zeros((size, size), np.int32)
    y, x = np.mgrid[:size, :size]
    for label in range(1, n + 1):
        cy, cx = rng.uniform(0, size, 2)
        labels[(y - cy) ** 2 + (x - cx) ** 2 < rng.uniform(2, 8) ** 2] = label
    return labels


def jitter(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """A prediction that has something in common with the truth."""
    moved = np.roll(labels, rng.integers(-2, 3, 2), (0, 1))
    moved[np.isin(moved, rng.integers(1, 13, 2))] = 0
    return np.where(rng.random(labels.shape) < 0.03, 0, moved).astype(np.int32)


@pytest.fixture(scope="module")
def original(shared: Path) -> tuple[dict, np.lib.npyio.NpzFile]:
    folder = shared / "fixtures" / "cellvit"
    return json.loads((folder / "metrics.json").read_text())["instance"], np.load(folder / "metrics_maps.npz")


@pytest.mark.parametrize("case", CELLVIT)
def test_pq_is_the_originals_once_their_epsilons_are_put_back(original: tuple, case: str) -> None:
    expected, maps = original
    table = contingency(maps[f"{case}/gt"], maps[f"{case}/pred"])
    ours = panoptic(table, 0.5)
    cellvit = expected[case]["cellvit_get_fast_pq@0.5"]
    dq = ours.tp / (ours.tp + 0.5 * ours.fp + 0.5 * ours.fn + EPS)
    sq = ours.iou_sum / (ours.tp + EPS)
    assert (dq, sq, dq * sq) == pytest.approx((cellvit["dq"], cellvit["sq"], cellvit["pq"]), abs=1e-9)
    assert ours.tp == len(cellvit["paired_true"])
    hovernet = expected[case]["hover_net_get_fast_pq@0.5"]
    if "raises" not in hovernet:
        assert ours.dq == pytest.approx(hovernet["dq"], abs=1e-9)
        assert ours.dq * sq == pytest.approx(hovernet["pq"], abs=1e-9)


@pytest.mark.parametrize("case", CELLVIT)
def test_aji_is_hovernets_where_it_is_defined(original: tuple, case: str) -> None:
    expected, maps = original
    table = contingency(maps[f"{case}/gt"], maps[f"{case}/pred"])
    theirs = expected[case]["get_fast_aji"]
    if isinstance(theirs, dict):  # the original stops with an error
        assert aji(table) == (None if case == "both_empty" else 0.0 if case == "pred_empty" else pytest.approx(0.25))
    else:
        assert aji(table) == pytest.approx(theirs, abs=1e-9)


def test_f1_sweep_is_stardists(shared: Path) -> None:
    folder = shared / "fixtures" / "instanseg"
    expected = json.loads((folder / "metrics_expected.json").read_text())
    maps = np.load(folder / "metrics_pairs.npz")
    assert tuple(expected["taus"]) == F1_THRESHOLDS
    for case, values in expected["cases"].items():
        table = contingency(maps[f"{case}__gt"], maps[f"{case}__pred"])
        for ours, theirs in zip(panoptic_at(table, inclusive=True), values["stardist_0_9_2"], strict=True):
            assert (ours.tp, ours.fp, ours.fn) == (theirs["tp"], theirs["fp"], theirs["fn"]), case
            assert (ours.dq or 0.0) == pytest.approx(theirs["f1"], abs=1e-9)
            assert (ours.pq or 0.0) == pytest.approx(theirs["panoptic_quality"], abs=1e-6)
        if "AJI" in values["hovernet"]:
            assert aji(table) == pytest.approx(values["hovernet"]["AJI"], abs=1e-6)
        if not np.isin(table.iou, F1_THRESHOLDS).any():  # else "greater" and "at least" differ
            strict = mean_defined([each.dq for each in panoptic_at(table)])
            assert (strict or 0.0) == pytest.approx(values["summary"]["stardist_F1_mu"], abs=1e-9), case


def test_pooled_counts_are_stardists_data_set_figures(shared: Path) -> None:
    folder = shared / "fixtures" / "instanseg"
    expected = json.loads((folder / "metrics_expected.json").read_text())["dataset_random0-3"]["pooled_stardist"]
    maps = np.load(folder / "metrics_pairs.npz")
    total = Panoptic(0, 0, 0, 0.0)
    for number in range(4):
        total = total + panoptic(contingency(maps[f"random{number}__gt"], maps[f"random{number}__pred"]))
    assert total.dq == pytest.approx(expected[0]["f1"], abs=1e-9)
    assert total.pq == pytest.approx(expected[0]["panoptic_quality"], abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_classwise_pq_is_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gt = discs(rng)
    pred = jitter(rng, gt)
    gt_of, pred_of = rng.integers(1, 4, 13), rng.integers(1, 4, 13)
    table = contingency(gt, pred)
    ours = class_panoptic(table, gt_of[table.gt_ids], pred_of[table.pred_ids], [1, 2, 3])
    images = [
        torch.from_numpy(np.stack([np.where(ids > 0, of[ids], 0), ids], axis=-1)[None].astype(np.int64))
        for ids, of in ((pred, pred_of), (gt, gt_of))
    ]
    theirs = panoptic_quality(*images, things={1, 2, 3}, stuffs={0}, return_per_class=True, return_sq_and_rq=True)
    for class_id in (1, 2, 3):
        figures = ours[class_id]
        pq, sq, rq = (float(value) for value in theirs[class_id - 1])  # things come first
        assert (figures.pq or 0.0, figures.sq or 0.0, figures.dq or 0.0) == pytest.approx((pq, sq, rq), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_figures_ignore_numbering_transposition_and_empty_margins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gt = discs(rng)
    pred = jitter(rng, gt)
    names = np.concatenate(([0], np.sort(rng.choice(2**31 - 1, 12, replace=False)) + 1)).astype(np.int64)
    shuffled = np.concatenate(([0], rng.permutation(np.arange(1, 13))))
    base = contingency(gt, pred)
    figures = (*(vars(each) for each in panoptic_at(base)), aji(base))
    for other in (
        contingency(names[gt], names[pred]),
        contingency(gt.T, pred.T),
        contingency(np.pad(gt, 9), np.pad(pred, 9)),
    ):
        assert (*(vars(each) for each in panoptic_at(other)), aji(other)) == figures
    assert panoptic(contingency(shuffled[gt], pred)).pq == pytest.approx(panoptic(base).pq)
    turned = panoptic(contingency(pred, gt))
    assert (turned.fp, turned.fn) == (panoptic(base).fn, panoptic(base).fp)
    assert panoptic(contingency(gt, gt)).pq == 1.0
    assert aji(contingency(gt, gt)) == 1.0


def test_nothing_is_made_up_where_nothing_is() -> None:
    empty, one = np.zeros((8, 8), np.int32), np.zeros((8, 8), np.int32)
    one[2:5, 2:5] = 1
    both = panoptic(contingency(empty, empty))
    assert (both.pq, both.dq, both.sq, both.precision, both.recall) == (None,) * 5
    assert aji(contingency(empty, empty)) is None
    missed = panoptic(contingency(one, empty))
    assert (missed.pq, missed.dq, missed.sq, missed.precision, missed.recall) == (0.0, 0.0, None, None, 0.0)
    assert aji(contingency(one, empty)) == aji(contingency(empty, one)) == 0.0
    assert mean_defined([None, None]) is None


def test_only_thresholds_with_unique_matches_are_taken() -> None:
    table = contingency(np.ones((2, 2), int), np.ones((2, 2), int))
    with pytest.raises(ValueError, match=r"0\.3"):
        panoptic(table, 0.3)


def test_unknown_truth_is_left_out_of_classes_only() -> None:
    gt, pred = np.zeros((4, 12), np.int32), np.zeros((4, 12), np.int32)
    gt[:, 0:3], gt[:, 4:7], gt[:, 8:10] = 1, 2, 3  # nucleus 2 has no known class
    pred[:, 0:3], pred[:, 4:7], pred[:, 10:12] = 1, 2, 3
    table = contingency(gt, pred)
    found = class_panoptic(table, np.array([1, 255, 1]), np.array([1, 1, 1]), [1, 2])
    assert (found[1].tp, found[1].fp, found[1].fn) == (1, 1, 1)  # prediction 2 is neither right nor wrong
    assert found[2].pq is None
    assert panoptic(table).tp == 2
