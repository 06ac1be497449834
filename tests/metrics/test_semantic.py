"""Pixel figures against torchmetrics and plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_average_precision, binary_f1_score, multiclass_f1_score

from slideloom.metrics.semantic import UNKNOWN, ClassConfusion, HvError, PixelConfusion, ScoreHistogram


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
    assert confusion.dice_macro([1, 2, 3]) == pytest.approx(float(expected[1:].mean()), abs=1e-6)
    one = confusion.of(2)
    assert one.tp + one.fp + one.fn + one.tn == int(known.sum())


def test_absent_classes_do_not_count() -> None:
    confusion = ClassConfusion()
    confusion.add(np.array([1, 0], np.uint8), np.array([1, 3], np.uint8))
    assert confusion.dice_macro([1, 2]) == 1.0
    assert confusion.dice_macro([1, 2, 3]) == 0.5  # predicted, though it does not occur
    assert confusion.dice_macro([2]) is None


def test_confusion_says_nothing_about_nothing() -> None:
    empty = PixelConfusion(0, 0, 0, 5)
    assert (empty.precision, empty.recall, empty.dice, empty.iou, empty.accuracy) == (None, None, None, None, 1.0)
    assert PixelConfusion(0, 0, 0, 0).accuracy is None


def test_the_hv_error_is_the_same_for_any_blocks() -> None:
    rng = np.random.default_rng(0)
    prediction, truth = rng.integers(-127, 128, (2, 2, 30, 17)).astype(np.int8)
    inside = rng.random((30, 17)) < 0.4
    values = []
    for step in (1, 7, 30):
        error = HvError()
        for y in range(0, 30, step):
            part = slice(y, y + step)
            error.add(prediction[:, part], truth[:, part], inside[part])
        values.append(error.value)
    assert values[0] == values[1] == values[2]
    difference = (prediction.astype(float) - truth)[:, inside] / 127
    assert values[0] == pytest.approx(float((difference**2).mean()))
    assert HvError().value is None
