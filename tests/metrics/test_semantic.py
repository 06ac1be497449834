"""Pixel figures against torchmetrics and plain arithmetic."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    binary_average_precision,
    binary_f1_score,
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_jaccard_index,
    multiclass_precision,
    multiclass_recall,
)

from slideloom.metrics.semantic import UNKNOWN, ClassConfusion, Macro, PixelConfusion, ScoreHistogram


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([2, 5, 256]))
def test_average_precision_and_dice_are_torchmetrics(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random((2, 300)) < 0.3
    score = (np.clip(rng.normal(truth * 0.3 + 0.3, 0.2), 0, 0.999) * levels).astype(np.uint8) * np.uint8(
        255 // (levels - 1)
    )
    histogram = ScoreHistogram()
    for band, true in zip(score, truth, strict=True):
        histogram.add(band, true)
    chance, target = torch.from_numpy(score.ravel() / 255.0), torch.from_numpy(truth.ravel().astype(int))
    assert histogram.average_precision == pytest.approx(float(binary_average_precision(chance, target)), abs=1e-6)
    expected = float(binary_f1_score((torch.from_numpy(score.ravel()) >= 128).int(), target))
    assert histogram.confusion(128).dice == pytest.approx(expected, abs=1e-6)


def test_average_precision_at_its_ends() -> None:
    histogram = ScoreHistogram()
    histogram.add(np.array([0, 255], np.uint8), np.array([False, False]))
    assert histogram.average_precision is None
    histogram.add(np.array([255], np.uint8), np.array([True]))
    assert histogram.average_precision == pytest.approx(0.5)
    perfect = ScoreHistogram()
    perfect.add(np.array([3, 9], np.uint8), np.array([False, True]))
    assert perfect.average_precision == 1.0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_class_dice_is_torchmetrics_f1_over_known_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.choice(np.array([0, 1, 2, 3, UNKNOWN], np.uint8), 400)
    prediction = rng.choice(np.array([0, 1, 2, 3], np.uint8), 400)
    confusion = ClassConfusion()
    for part in (slice(0, 150), slice(150, None)):
        confusion.add(truth[part], prediction[part])
    known = truth != UNKNOWN
    target, predicted = torch.from_numpy(truth[known].astype(int)), torch.from_numpy(prediction[known].astype(int))
    expected = multiclass_f1_score(predicted, target, num_classes=4, average=None)
    assert [confusion.of(c).dice for c in range(4)] == pytest.approx(expected.tolist(), abs=1e-6)
    assert confusion.macro("dice", [1, 2, 3], background=False).value == pytest.approx(
        float(expected[1:].mean()), abs=1e-6
    )
    one = confusion.of(2)
    assert one.tp + one.fp + one.fn + one.tn == int(known.sum())


def test_absent_classes_do_not_count() -> None:
    confusion = ClassConfusion()
    confusion.add(np.array([1, 0], np.uint8), np.array([1, 3], np.uint8))
    assert confusion.macro("dice", [1, 2], background=False).value == 1.0
    assert confusion.macro("dice", [1, 2, 3], background=False).value == 0.5  # predicted, though it does not occur
    assert confusion.macro("dice", [2], background=False).value is None


def test_confusion_says_nothing_about_nothing() -> None:
    empty = PixelConfusion(0, 0, 0, 5)
    assert (empty.precision, empty.recall, empty.dice, empty.iou, empty.accuracy) == (None, None, None, None, 1.0)
    assert PixelConfusion(0, 0, 0, 0).accuracy is None


def classes(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted classes, in runs, with pixels of unknown class."""
    truth = np.repeat(rng.choice(np.array([0, 0, 1, 2, 3, UNKNOWN], np.uint8), n), rng.integers(1, 6, n))[:n]
    return truth, np.where(rng.random(n) < 0.3, rng.integers(0, 4, n), truth % 4).astype(np.uint8)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_figures_of_classes_are_torchmetrics(seed: int) -> None:
    truth, prediction = classes(np.random.default_rng(seed), 400)
    confusion = ClassConfusion()
    confusion.add(truth, prediction)
    known = truth != UNKNOWN
    target, predicted = torch.from_numpy(truth[known].astype(int)), torch.from_numpy(prediction[known].astype(int))
    assert (confusion.matrix(range(4)) == multiclass_confusion_matrix(predicted, target, 4).numpy()).all()
    for figure, oracle in (
        ("dice", multiclass_f1_score),
        ("f1", multiclass_f1_score),
        ("precision", multiclass_precision),
        ("recall", multiclass_recall),
        ("iou", multiclass_jaccard_index),
    ):
        expected = oracle(predicted, target, num_classes=4, average=None).tolist()
        found = [getattr(confusion.of(c), figure) for c in range(4)]
        # What torchmetrics calls 0 for want of a denominator is None here.
        assert [0.0 if value is None else value for value in found] == pytest.approx(expected, abs=1e-6), figure
        for background in (True, False):
            defined = [value for value in found[not background :] if value is not None]
            macro = confusion.macro(figure, [1, 2, 3], background=background)
            assert macro.n == len(defined)
            assert macro.value == pytest.approx(sum(defined) / len(defined))
    accuracy = multiclass_accuracy(predicted, target, num_classes=4, average="micro")
    assert confusion.accuracy == pytest.approx(float(accuracy), abs=1e-6)
    nuclei = (target > 0).numpy()
    assert confusion.accuracy_nuclei == pytest.approx(float((predicted == target).numpy()[nuclei].mean()))
    assert confusion.of(1).true_frequency == pytest.approx(float((target == 1).float().mean()), abs=1e-6)
    assert confusion.of(1).predicted_frequency == pytest.approx(float((predicted == 1).float().mean()), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(0, 300), max_size=4))
def test_windows_masks_and_merging_change_nothing(seed: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    truth, prediction = classes(rng, 300)
    score, mask = rng.integers(0, 256, 300, dtype=np.uint8), rng.random(300) < 0.7
    whole, scores = ClassConfusion(), ScoreHistogram()
    whole.add(truth[mask], prediction[mask])
    scores.add(score[mask], truth[mask] > 0)
    edges = [0, *sorted(cuts), 300]
    parts = [slice(*pair) for pair in pairwise(edges)]
    merged, merged_scores = ClassConfusion(), ScoreHistogram()
    for part in parts[::-1]:
        one, other = ClassConfusion(), ScoreHistogram()
        one.add(truth[part], prediction[part], mask[part])
        other.add(score[part], truth[part] > 0, mask[part])
        merged.merge(pickle.loads(pickle.dumps(one)))
        merged_scores.merge(pickle.loads(pickle.dumps(other)))
    assert (merged.counts == whole.counts).all()
    assert (merged_scores.counts == scores.counts).all()
    direct = np.zeros((256, 256), np.int64)
    np.add.at(direct, (truth[mask], prediction[mask]), 1)
    assert (whole.counts == direct).all()


def test_the_matrix_as_rows() -> None:
    confusion = ClassConfusion()
    confusion.add(np.array([1, 1, 1, 2, UNKNOWN], np.uint8), np.array([1, 1, 2, 0, 1], np.uint8))
    rows = {(row["true_class_id"], row["pred_class_id"]): row for row in confusion.rows([1, 2, 3])}
    assert len(rows) == 9
    assert rows[1, 1] == {
        "true_class_id": 1, "pred_class_id": 1, "pixels": 2, "share_of_true": 2 / 3, "share_of_pred": 1.0,
    }  # fmt: skip
    assert (rows[2, 1]["pixels"], rows[2, 1]["share_of_true"]) == (0, 0.0)
    assert rows[3, 1]["share_of_true"] is rows[1, 3]["share_of_pred"] is None


def test_a_mean_over_no_class_is_none_and_says_so() -> None:
    confusion = ClassConfusion()
    assert confusion.macro("dice", [1, 2], background=True) == Macro(None, 0)
    assert confusion.accuracy is confusion.accuracy_nuclei is None
    confusion.add(np.array([0, 0, 1], np.uint8), np.array([0, 0, 0], np.uint8))
    assert confusion.macro("dice", [0, 1, 2], background=False) == Macro(0.0, 1)
    assert confusion.macro("dice", [1, 2], background=True) == Macro(pytest.approx(0.4), 2)
    assert confusion.macro("precision", [1, 2], background=False) == Macro(None, 0)  # never predicted
    assert (confusion.accuracy, confusion.accuracy_nuclei) == (pytest.approx(2 / 3), 0.0)


def test_masks_add_up_and_wrong_blocks_are_refused() -> None:
    truth, prediction = np.array([[0, 7, 7], [0, 0, 9]]), np.array([[1.0, 0.5, 0.0], [0.0, 0.0, 3.0]])
    whole = PixelConfusion.of_masks(truth, prediction)
    assert whole == PixelConfusion(2, 1, 1, 2)
    assert whole == PixelConfusion.of_masks(truth[:1], prediction[:1]) + PixelConfusion.of_masks(
        truth[1:], prediction[1:]
    )
    assert PixelConfusion.of_masks(truth, prediction, truth > 0) == PixelConfusion(2, 0, 1, 0)
    assert (whole.f1, whole.true_frequency, whole.predicted_frequency) == (whole.dice, 0.5, 0.5)
    with pytest.raises(ValueError, match="shapes"):
        PixelConfusion.of_masks(truth, prediction[:1])
    with pytest.raises(ValueError, match="uint8 or bool, not int64"):
        ClassConfusion().add(truth, truth)


def test_dice_is_the_originals(shared: Path) -> None:
    folder = shared / "fixtures"
    expected = json.loads((folder / "cellvit" / "metrics.json").read_text())["instance"]
    maps = np.load(folder / "cellvit" / "metrics_maps.npz")
    cases = [(case["get_dice_1"], maps[f"{name}/gt"], maps[f"{name}/pred"]) for name, case in expected.items()]
    others = json.loads((folder / "instanseg" / "metrics_expected.json").read_text())["cases"]
    pairs = np.load(folder / "instanseg" / "metrics_pairs.npz")
    for name, case in others.items():
        if "Dice1" in case["hovernet"]:
            cases.append((case["hovernet"]["Dice1"], pairs[f"{name}__gt"], pairs[f"{name}__pred"]))
    assert len(cases) >= 30
    assert any(value == "nan" for value, *_ in cases)
    for value, gt, pred in cases:
        ours = PixelConfusion.of_masks(gt, pred).dice
        assert ours is None if value == "nan" else ours == pytest.approx(value, abs=1e-9)
