"""Instance figures: the originals' numbers, torchmetrics as oracle, and what must not change them."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment
from torchmetrics.functional.detection import panoptic_quality

from slideloom.metrics.contingency import contingency
from slideloom.metrics.conventions import CONVENTIONS, DEFAULT, convention_named
from slideloom.metrics.panoptic import (
    F1_THRESHOLDS,
    aji,
    aji_plus,
    class_panoptic,
    dice_2,
    matched_pairs,
    mean_defined,
    panoptic,
    panoptic_at,
)

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


@pytest.mark.parametrize("case", CELLVIT)
def test_pairs_and_pq_at_iou_0_3_are_cellvits(original: tuple, case: str) -> None:
    expected, maps = original
    theirs = expected[case]["cellvit_get_fast_pq@0.3"]
    table = contingency(maps[f"{case}/gt"], maps[f"{case}/pred"])
    ours = panoptic(table, 0.3, convention="pannuke")
    assert (ours.tp, ours.fp, ours.fn) == tuple(
        len(theirs[k]) for k in ("paired_true", "unpaired_pred", "unpaired_true")
    )
    dq, sq = ours.tp / (ours.tp + 0.5 * (ours.fp + ours.fn) + EPS), ours.iou_sum / (ours.tp + EPS)
    assert (dq, sq, dq * sq) == pytest.approx((theirs["dq"], theirs["sq"], theirs["pq"]), abs=1e-9)
    if case not in ("one_pred_over_two_gt", "two_pred_over_one_gt", "merged_pairs_same_id"):  # their halves are equals
        pairs = matched_pairs(table, 0.3)
        assert (table.gt_index[pairs] + 1).tolist() == sorted(theirs["paired_true"])
        assert set((table.pred_index[pairs] + 1).tolist()) == set(theirs["paired_pred"])


@pytest.mark.parametrize("case", CELLVIT)
def test_pannukes_own_program_agrees(original: tuple, case: str) -> None:
    expected, maps = original
    theirs = expected[case]["pannuke_metrics_get_fast_pq@0.5"]
    ours = panoptic(contingency(maps[f"{case}/gt"], maps[f"{case}/pred"]))
    if "raises" in theirs:
        assert case in ("both_empty", "no_background_pred")
        assert ours.pq == (None if case == "both_empty" else 0.0)
    else:
        assert (ours.dq, ours.iou_sum / (ours.tp + EPS)) == pytest.approx((theirs["dq"], theirs["sq"]), abs=1e-9)


@pytest.mark.parametrize("case", CELLVIT)
def test_aji_plus_and_dice_2_are_hovernets_where_they_are_defined(original: tuple, case: str) -> None:
    expected, maps = original
    table = contingency(maps[f"{case}/gt"], maps[f"{case}/pred"])
    for name, ours in (("get_fast_aji_plus", aji_plus(table)), ("get_fast_dice_2", dice_2(table))):
        theirs = expected[case][name]
        if theirs == "nan" or (isinstance(theirs, dict) and "Zero" in theirs["raises"]):
            assert ours is None, name
        elif isinstance(theirs, dict):  # no background: an error of numbering there, a figure here
            assert case == "no_background_pred"
            assert ours == pytest.approx({"get_fast_aji_plus": 0.25, "get_fast_dice_2": 0.4}[name])
        else:
            assert ours == pytest.approx(theirs, abs=1e-9), name
    areas = int(table.gt_area.sum() + table.pred_area.sum())
    dice_1 = 2 * table.tp_pixels / areas if areas else None
    assert dice_1 == (None if expected[case]["get_dice_1"] == "nan" else pytest.approx(expected[case]["get_dice_1"]))


def test_renumbering_as_hovernet_does_it_is_the_tables_order(original: tuple) -> None:
    _, maps = original
    labels, renumbered = maps["remap/in"], maps["remap/out"]
    table = contingency(labels, renumbered)
    assert (table.pred_index == table.gt_index).all()
    assert panoptic(table).pq == 1.0
    by_size = contingency(renumbered, maps["remap/out_by_size"])
    assert panoptic(by_size).pq == 1.0
    assert (np.diff(by_size.pred_area) <= 0).all()


@pytest.fixture(scope="module")
def instanseg(shared: Path) -> tuple[dict, np.lib.npyio.NpzFile]:
    folder = shared / "fixtures" / "instanseg"
    return json.loads((folder / "metrics_expected.json").read_text()), np.load(folder / "metrics_pairs.npz")


STARDIST_FIGURES = {
    "precision": "precision",
    "recall": "recall",
    "ap": "accuracy",
    "dq": "f1",
    "mean_true_iou": "mean_true_score",
    "sq": "mean_matched_score",
    "pq": "panoptic_quality",
}


@pytest.mark.parametrize(("key", "convention"), [("stardist_0_9_2", "stardist"), ("stardist_0_9_2", "instanseg"),
                                                 ("instanseg_head_torch", "instanseg_pairs")])  # fmt: skip
def test_every_figure_of_the_sweep_is_theirs(instanseg: tuple, key: str, convention: str) -> None:
    expected, maps = instanseg
    assert tuple(expected["taus"]) == F1_THRESHOLDS
    for case, values in expected["cases"].items():
        table = contingency(maps[f"{case}__gt"], maps[f"{case}__pred"])
        sweep = panoptic_at(table, convention=convention)
        for ours, theirs in zip(sweep, values[key], strict=True):
            assert (ours.tp, ours.fp, ours.fn) == (theirs["tp"], theirs["fp"], theirs["fn"]), case
            assert (table.gt_ids.size, table.pred_ids.size) == (theirs["n_true"], theirs["n_pred"])
            for name, other in STARDIST_FIGURES.items():
                if other in theirs:  # they give 0 where ours is undefined, and add IoU as 32-bit floats
                    assert (getattr(ours, name) or 0.0) == pytest.approx(theirs[other], abs=1e-6), (case, name)
        summary = values["summary"]
        names = {"f1": "stardist_F1_05", "mean": "stardist_F1_mu"}
        if convention == "instanseg_pairs":
            names = {"f1": "F1_05", "mean": "F1_mu"}
        else:
            assert (mean_defined([each.pq for each in sweep]) or 0.0) == pytest.approx(
                summary["stardist_PQ_mu"], abs=1e-6
            )
            assert (mean_defined([each.ap for each in sweep]) or 0.0) == pytest.approx(
                summary["stardist_AP_mu"], abs=1e-6
            )
        assert (sweep[0].dq or 0.0) == pytest.approx(summary[names["f1"]], abs=1e-9), case
        assert (mean_defined([each.dq for each in sweep]) or 0.0) == pytest.approx(summary[names["mean"]], abs=1e-9), (
            case
        )


def test_hovernets_figures_on_instansegs_pairs(instanseg: tuple) -> None:
    expected, maps = instanseg
    compared = 0
    for case, values in expected["cases"].items():
        table = contingency(maps[f"{case}__gt"], maps[f"{case}__pred"])
        ours = panoptic(table)
        figures = {
            "DQ": ours.dq, "SQ": ours.iou_sum / (ours.tp + EPS), "AJI": aji(table), "AJI_plus": aji_plus(table),
            "Dice2": dice_2(table),
        }  # fmt: skip
        for name, theirs in values["hovernet"].items():
            if name in figures and isinstance(theirs, float):
                assert figures[name] == pytest.approx(theirs, abs=1e-9), (case, name)
                compared += 1
    assert compared > 80


def test_instansegs_training_score_is_f1_over_ten_thresholds(instanseg: tuple) -> None:
    expected, maps = instanseg
    thresholds = np.linspace(0.5, 1.0, 10)
    assert expected["robust_average_precision_thresholds"] == pytest.approx(thresholds)
    of_image = [
        mean_defined(
            [
                each.dq
                for each in panoptic_at(
                    contingency(maps[f"random{number}__gt"], maps[f"random{number}__pred"]),
                    thresholds.tolist(),
                    convention="instanseg_pairs",
                )
            ]
        )
        for number in range(4)
    ]
    theirs = expected["robust_average_precision_pip_0_1_2"]
    assert of_image[:2] == pytest.approx(theirs["nc"], abs=1e-9)
    assert mean_defined(of_image[:2]) == pytest.approx(theirs["two_images"], abs=1e-9)


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


def score_like_stardist(gt: np.ndarray, pred: np.ndarray, threshold: float) -> tuple[int, float]:
    """True positives and their sum of IoU from the definition: dense table, Hungarian assignment, cut."""
    gt_ids, pred_ids = np.unique(gt[gt > 0]), np.unique(pred[pred > 0])
    iou = np.array(
        [[((gt == i) & (pred == j)).sum() / ((gt == i) | (pred == j)).sum() for j in pred_ids] for i in gt_ids]
    )
    if iou.size == 0:
        return 0, 0.0
    n_matched = min(iou.shape)
    rows, cols = linear_sum_assignment(-((iou >= threshold).astype(float) + iou / (2 * n_matched)))
    good = iou[rows, cols] >= threshold
    return int(good.sum()), float(iou[rows, cols][good].sum())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.sampled_from([0.1, 0.25, 0.3, 0.4, 0.5, 0.55, 0.6, 0.75, 0.9, 1.0]))
def test_matching_is_stardists_at_any_threshold(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    gt = discs(rng, 40)
    pred = jitter(rng, gt) if rng.random() < 0.5 else discs(rng, 40)
    ours = panoptic(contingency(gt, pred), threshold, convention="stardist")
    tp, iou_sum = score_like_stardist(gt, pred, threshold)
    assert ours.tp == tp
    assert ours.iou_sum == pytest.approx(iou_sum, abs=1e-9)
    assert (ours.tp + ours.fp, ours.tp + ours.fn) == tuple(np.unique(image[image > 0]).size for image in (pred, gt))


@settings(max_examples=40, deadline=None)
@given(
    gt=arrays(np.int32, (5, 6), elements=st.integers(0, 4)),
    pred=arrays(np.int32, (5, 6), elements=st.integers(0, 4)),
    threshold=st.sampled_from([0.2, 0.5, 0.6]),
)
def test_the_number_of_matches_is_stardists_among_many_equals(
    gt: np.ndarray, pred: np.ndarray, threshold: float
) -> None:
    assert (
        panoptic(contingency(gt, pred), threshold, convention="stardist").tp
        == score_like_stardist(gt, pred, threshold)[0]
    )


def aji_of_all_choices(gt: np.ndarray, pred: np.ndarray) -> float | None:
    """AJI from masks; where predictions are equal for a true instance, the best figure of all choices."""
    gt_ids, pred_ids = np.unique(gt[gt > 0]), np.unique(pred[pred > 0])
    options = []
    for i in gt_ids:
        shared = {j: int(((gt == i) & (pred == j)).sum()) for j in pred_ids}
        keys = {j: (Fraction(n, int(((gt == i) | (pred == j)).sum())), n) for j, n in shared.items() if n}
        options.append([j for j in keys if keys[j] == max(keys.values())] or [None])
    figures = []
    for choice in product(*options):
        inter, union = 0, int(np.isin(pred, list(set(pred_ids.tolist()) - set(choice))).sum())
        for i, j in zip(gt_ids, choice, strict=True):
            inter += 0 if j is None else int(((gt == i) & (pred == j)).sum())
            union += int(((gt == i) | (pred == j)).sum()) if j is not None else int((gt == i).sum())
        figures.append(inter / union if union else None)
    return max(figures) if figures[0] is not None else None


@settings(max_examples=60, deadline=None)
@given(
    gt=arrays(np.int32, (4, 5), elements=st.integers(0, 3)), pred=arrays(np.int32, (4, 5), elements=st.integers(0, 4))
)
def test_aji_is_that_of_masks_with_equals_told_apart_by_area(gt: np.ndarray, pred: np.ndarray) -> None:
    assert aji(contingency(gt, pred)) == aji_of_all_choices(gt, pred)


@settings(max_examples=60, deadline=None)
@given(
    gt=arrays(np.int32, (4, 5), elements=st.integers(0, 3)), pred=arrays(np.int32, (4, 5), elements=st.integers(0, 4))
)
def test_aji_plus_is_the_best_of_all_one_to_one_matchings(gt: np.ndarray, pred: np.ndarray) -> None:
    table = contingency(gt, pred)
    n, m = table.gt_ids.size, table.pred_ids.size
    iou, shared = np.zeros((n, n + m)), np.zeros((n, n + m), int)  # the last n columns stand for "no partner"
    iou[table.gt_index, table.pred_index], shared[table.gt_index, table.pred_index] = table.iou, table.overlap
    best = max(
        (round(sum(iou[i, j] for i, j in enumerate(choice)), 9), int(sum(shared[i, j] for i, j in enumerate(choice))))
        for choice in permutations(range(n + m), n)
    )
    total = int(table.gt_area.sum() + table.pred_area.sum())
    assert aji_plus(table) == (best[1] / (total - best[1]) if total else None)


def figures_of(gt: np.ndarray, pred: np.ndarray) -> tuple:
    table = contingency(gt, pred)
    return (
        *(vars(each) for each in panoptic_at(table)),
        *(vars(each) for each in panoptic_at(table, convention="stardist")),
        aji(table),
        aji_plus(table),
        dice_2(table),
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_figures_ignore_numbering_transposition_and_empty_margins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gt = discs(rng)
    pred = jitter(rng, gt)
    names = np.concatenate(([0], rng.choice(2**31 - 1, 12, replace=False) + 1)).astype(np.int64)
    shuffled = np.concatenate(([0], rng.permutation(np.arange(1, 13))))
    figures = figures_of(gt, pred)
    assert figures_of(names[gt], shuffled[pred]) == figures
    assert figures_of(gt.T, pred.T) == figures
    assert figures_of(np.pad(gt, 9), np.pad(pred, ((9, 9), (9, 9)))) == figures
    base = panoptic(contingency(gt, pred))
    turned = panoptic(contingency(pred, gt))
    assert (turned.fp, turned.fn, turned.iou_sum) == (base.fn, base.fp, base.iou_sum)
    assert panoptic(contingency(gt, gt)).pq == 1.0
    assert aji(contingency(gt, gt)) == aji_plus(contingency(gt, gt)) == 1.0


@settings(max_examples=60, deadline=None)
@given(
    gt=arrays(np.int32, (5, 6), elements=st.integers(0, 5)),
    pred=arrays(np.int32, (5, 6), elements=st.integers(0, 5)),
    order=st.permutations(range(1, 6)),
)
def test_figures_ignore_numbering_where_much_is_equal(gt: np.ndarray, pred: np.ndarray, order: list[int]) -> None:
    names = np.array([0, *order])
    assert (
        figures_of(names[gt], pred) == figures_of(gt, names[pred]) == figures_of(gt.T, pred.T) == figures_of(gt, pred)
    )


def test_nothing_is_made_up_where_nothing_is() -> None:
    empty, one = np.zeros((8, 8), np.int32), np.zeros((8, 8), np.int32)
    one[2:5, 2:5] = 1
    both = panoptic(contingency(empty, empty))
    assert (both.pq, both.dq, both.sq, both.precision, both.recall) == (None,) * 5
    assert (both.ap, both.mean_true_iou) == (None, None)
    assert aji(contingency(empty, empty)) is None
    assert aji_plus(contingency(empty, empty)) is None
    assert dice_2(contingency(one, empty)) is None
    assert aji_plus(contingency(one, empty)) == aji_plus(contingency(empty, one)) == 0.0
    missed = panoptic(contingency(one, empty))
    assert (missed.pq, missed.dq, missed.sq, missed.precision, missed.recall) == (0.0, 0.0, None, None, 0.0)
    assert aji(contingency(one, empty)) == aji(contingency(empty, one)) == 0.0
    assert mean_defined([None, None]) is None


def test_thresholds_and_conventions_out_of_range_are_refused() -> None:
    table = contingency(np.ones((2, 2), int), np.ones((2, 2), int))
    assert panoptic(table, 1.0, convention="stardist").tp == 1
    for threshold, convention in [(0.0, "stardist"), (-0.5, "pannuke"), (1.0, "pannuke"), (1.1, "stardist")]:
        with pytest.raises(ValueError, match=str(threshold)):
            panoptic(table, threshold, convention=convention)
    with pytest.raises(ValueError, match=r"cocopan.*pannuke, stardist"):
        panoptic(table, convention="cocopan")
    classes = np.ones(1, np.int64)
    for threshold, convention in [(0.4, "pannuke"), (0.5, "instanseg_pairs")]:
        with pytest.raises(ValueError, match="one to one"):
            class_panoptic(table, classes, classes, [1], threshold, convention=convention)


def test_conventions_differ_where_they_say_so(instanseg: tuple) -> None:
    assert DEFAULT is CONVENTIONS["pannuke"]
    assert all(name == convention_named(name).name for name in CONVENTIONS)
    _, maps = instanseg
    table = contingency(maps["iou_exactly_half_two_preds__gt"], maps["iou_exactly_half_two_preds__pred"])
    f1 = {name: panoptic(table, convention=name).dq for name in CONVENTIONS}
    assert f1 == pytest.approx({"pannuke": 0.0, "stardist": 2 / 3, "instanseg": 2 / 3, "instanseg_pairs": 1.0})


def test_unknown_truth_is_left_out_of_classes_only() -> None:
    gt, pred = np.zeros((4, 12), np.int32), np.zeros((4, 12), np.int32)
    gt[:, 0:3], gt[:, 4:7], gt[:, 8:10] = 1, 2, 3  # nucleus 2 has no known class
    pred[:, 0:3], pred[:, 4:7], pred[:, 10:12] = 1, 2, 3
    table = contingency(gt, pred)
    found = class_panoptic(table, np.array([1, 255, 1]), np.array([1, 1, 1]), [1, 2])
    assert (found[1].tp, found[1].fp, found[1].fn) == (1, 1, 1)  # prediction 2 is neither right nor wrong
    assert found[2].pq is None
    assert panoptic(table).tp == 2
