"""Probabilities: curves, calibration and class scores against torchmetrics and sums of fractions."""

from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    binary_average_precision,
    binary_calibration_error,
    binary_precision_recall_curve,
    multiclass_calibration_error,
)

from slideloom.metrics.probability import (
    EXACT_FROM,
    ClassScores,
    brier_score,
    calibration,
    precision_recall,
)
from slideloom.metrics.semantic import UNKNOWN, Macro, ScoreHistogram


def scored(rng: np.random.Generator, n: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Stored probabilities that have something to do with the truth."""
    truth = rng.random(n) < 0.3
    return np.clip(rng.normal(np.where(truth, 150, 90), 60), 0, 255).astype(np.uint8), truth


def histogram_of(score: np.ndarray, truth: np.ndarray) -> ScoreHistogram:
    found = ScoreHistogram()
    found.add(score, truth)
    return found


def softmaxed(rng: np.random.Generator, n: int, k: int = 4) -> tuple[np.ndarray, ...]:
    """Truth, all probabilities, and what maps store of them."""
    truth = rng.integers(0, k, n).astype(np.uint8)
    logits = rng.normal(0, 1.5, (n, k))
    logits[np.arange(n), truth] += 1.5
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return truth, p, p.argmax(axis=1).astype(np.uint8), np.rint(255 * p.max(axis=1)).astype(np.uint8)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_curve_is_torchmetrics(seed: int) -> None:
    score, truth = scored(np.random.default_rng(seed))
    curve = precision_recall(histogram_of(score, truth))
    assert curve is not None
    precision, recall, threshold = binary_precision_recall_curve(
        torch.from_numpy(score / 255.0), torch.from_numpy(truth.astype(int))
    )
    # torchmetrics starts at the lowest threshold and ends with a point of its own, recall 0.
    assert curve.threshold[::-1] == pytest.approx(threshold.numpy(), abs=1e-9)
    assert curve.precision[::-1] == pytest.approx(precision.numpy()[:-1], abs=1e-6)
    assert curve.recall[::-1] == pytest.approx(recall.numpy()[:-1], abs=1e-6)
    assert curve.exact.all()
    assert curve.tp[-1] == truth.sum()
    assert curve.tp[-1] + curve.fp[-1] == truth.size


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_average_precision_of_hard_predictions_is_another_figure(seed: int) -> None:
    score, truth = scored(np.random.default_rng(seed))
    soft = histogram_of(score, truth)
    hard = histogram_of(np.where(score >= 128, 255, 0).astype(np.uint8), truth)
    at = soft.confusion(128)
    assert hard.average_precision == pytest.approx(
        at.precision * at.recall + (1 - at.recall) * at.true_frequency, abs=1e-12
    )
    assert soft.average_precision > hard.average_precision  # these scores rank within each side of the threshold


def test_the_curve_of_nothing_true_is_none() -> None:
    assert precision_recall(ScoreHistogram()) is None
    assert precision_recall(histogram_of(np.array([3], np.uint8), np.array([False]))) is None
    curve = precision_recall(ScoreHistogram(), 4)
    assert curve is not None
    assert curve.threshold.size == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n_bins=st.sampled_from([1, 2, 7, 10, 15, 255]))
def test_calibration_is_the_sum_of_fractions(seed: int, n_bins: int) -> None:
    score, truth = scored(np.random.default_rng(seed))
    found = calibration(histogram_of(score, truth), n_bins)
    bins: dict[int, list[int]] = {}
    for at, code in enumerate(score.tolist()):
        bins.setdefault(min(int(Fraction(code, 255) * n_bins), n_bins - 1), []).append(at)
    gaps = {}
    for b, at in bins.items():
        mean = Fraction(int(score[at].astype(int).sum()), 255 * len(at))
        gaps[b] = abs(mean - Fraction(int(truth[at].sum()), len(at)))
    ece = sum(gap * Fraction(len(bins[b]), score.size) for b, gap in gaps.items())
    assert found.ece == pytest.approx(float(ece), abs=1e-15)
    assert found.mce == pytest.approx(float(max(gaps.values())), abs=1e-15)
    rows = found.rows()
    assert sum(row["pixels"] for row in rows) == score.size
    for row in rows:
        assert (row["true_share"] is None) == (row["bin"] not in bins) == (row["mean_probability"] is None)
        if row["mean_probability"] is not None:
            assert row["low"] - 1e-12 <= row["mean_probability"] <= row["high"] + 1e-12


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n_bins=st.sampled_from([10, 15]))
def test_calibration_error_is_torchmetrics_off_the_edges(seed: int, n_bins: int) -> None:
    score, truth = scored(np.random.default_rng(seed))
    # torchmetrics compares float32 with float32 edges, and gives a probability of 1 a bin of its own.
    keep = score.astype(int) * n_bins % 255 != 0
    score, truth = score[keep], truth[keep]
    found = calibration(histogram_of(score, truth), n_bins)
    chance, target = torch.from_numpy(score / 255.0), torch.from_numpy(truth.astype(int))
    for ours, norm in ((found.ece, "l1"), (found.mce, "max")):
        expected = float(binary_calibration_error(chance, target, n_bins=n_bins, norm=norm))
        assert ours == pytest.approx(expected, abs=2e-6)


def test_calibration_at_its_ends() -> None:
    empty = calibration(ScoreHistogram(), 10)
    assert empty.ece is empty.mce is brier_score(ScoreHistogram()) is None
    assert empty.rows()[9] == {
        "bin": 9, "low": 0.9, "high": 1.0, "pixels": 0, "mean_probability": None, "true_share": None,
    }  # fmt: skip
    sure = histogram_of(np.array([0, 0, 255], np.uint8), np.array([False, False, True]))
    assert (calibration(sure, 10).ece, calibration(sure, 10).mce, brier_score(sure)) == (0.0, 0.0, 0.0)
    wrong = histogram_of(np.array([0, 255], np.uint8), np.array([True, False]))
    assert (calibration(wrong, 15).ece, brier_score(wrong)) == (1.0, 1.0)
    assert calibration(wrong, 15).count.tolist() == [1] + 13 * [0] + [1]
    for n_bins in (0, 256):
        with pytest.raises(ValueError, match=f"{n_bins} bins"):
            calibration(sure, n_bins)


def test_probabilities_drawn_as_they_say_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    score = rng.integers(0, 256, 200_000).astype(np.uint8)
    truth = rng.random(score.size) < score / 255
    honest, bold = (calibration(histogram_of(score, true)).ece for true in (truth, truth[::-1]))
    assert honest is not None
    assert bold is not None
    assert honest < 0.01  # noise of 13 000 pixels a bin is 0.004
    assert bold > 0.2


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_brier_score_is_the_mean_square(seed: int) -> None:
    score, truth = scored(np.random.default_rng(seed))
    assert brier_score(histogram_of(score, truth)) == pytest.approx(float(((score / 255 - truth) ** 2).mean()))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_calibration_of_the_predicted_class_is_torchmetrics(seed: int) -> None:
    truth, p, prediction, code = softmaxed(np.random.default_rng(seed), 300)
    keep = code.astype(int) * 15 % 255 != 0
    truth, p, prediction, code = truth[keep], p[keep], prediction[keep], code[keep]
    scores = ClassScores()
    scores.add(truth, prediction, code)
    # torchmetrics looks at the largest alone.
    stored = np.zeros_like(p)
    stored[np.arange(truth.size), prediction] = code / 255
    expected = float(multiclass_calibration_error(torch.from_numpy(stored), torch.from_numpy(truth.astype(int)), 4))
    assert calibration(scores.top_label, 15).ece == pytest.approx(expected, abs=2e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_above_one_half_the_curve_of_a_class_is_that_of_the_full_probabilities(seed: int) -> None:
    truth, p, prediction, code = softmaxed(np.random.default_rng(seed), 300)
    scores = ClassScores()
    scores.add(truth, prediction, code)
    for c in range(4):
        full = precision_recall(histogram_of(np.rint(255 * p[:, c]).astype(np.uint8), truth == c))
        ours = scores.curve(c)
        assert ours is not None
        assert full is not None
        assert (ours.exact == (ours.threshold > 0.503)).all()
        above = full.threshold > (EXACT_FROM - 0.5) / 255
        assert above.sum() == ours.exact.sum() > 0
        for name in ("threshold", "precision", "recall", "tp", "fp"):
            assert (getattr(ours, name)[ours.exact] == getattr(full, name)[above]).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(0, 300))
def test_average_precision_of_won_pixels(seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    truth, _, prediction, code = softmaxed(rng, 300)
    truth[rng.random(300) < 0.1] = UNKNOWN
    seen = rng.random(300) < 0.9
    scores = ClassScores()
    for part in (slice(cut, None), slice(0, cut)):
        one = ClassScores()
        one.add(truth[part], prediction[part], code[part], seen[part])
        scores.merge(pickle.loads(pickle.dumps(one)))
    keep = seen & (truth != UNKNOWN)
    values = []
    for c in range(4):
        true, won = truth[keep] == c, prediction[keep] == c
        # As the full ranking has it, were all that was not won ranked last and its step of recall taken away.
        ranked = torch.from_numpy(np.where(won, code[keep] / 255.0, 0.0))
        whole = float(binary_average_precision(ranked, torch.from_numpy(true.astype(int))))
        last_step = (true & ~won).sum() / true.sum() * true.mean()
        assert scores.average_precision_won(c) == pytest.approx(whole - last_step, abs=2e-6)
        values.append(scores.average_precision_won(c))
    macro = scores.average_precision_won_macro([0, 1, 2, 3, 9])
    assert macro == Macro(pytest.approx(np.mean(values)), 4)  # class 9 is true nowhere


def test_class_scores_at_their_ends() -> None:
    scores = ClassScores()
    assert scores.average_precision_won(1) is scores.curve(1) is None
    assert scores.average_precision_won_macro([1, 2]) == Macro(None, 0)
    one = np.array([1], np.uint8)
    scores.add(one, one * 2, one * 200)
    assert scores.average_precision_won(1) == 0.0  # true, never predicted
    assert scores.average_precision_won(2) is None  # predicted, never true
    with pytest.raises(ValueError, match="shapes"):
        scores.add(one, one, np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        scores.add(one, one, np.array([0.5]))
