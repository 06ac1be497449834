from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import chi2

from slideloom.config.model import SamplingConfig
from slideloom.errors import SlideloomError
from slideloom.training.data import epoch_order
from slideloom.training.sampling import (
    cellvit_weights,
    draw_epoch,
    group_weights,
    joined_weights,
    patch_weights,
    report_weights,
)

FIXTURE: dict[str, Any] = json.loads(
    (Path(__file__).resolve().parents[1] / "data" / "cellvit_oversampling.json").read_text(encoding="utf-8")
)
PRESENCE = hnp.arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 5)))
GAMMAS = st.floats(0, 1)


@pytest.mark.parametrize("gamma", FIXTURE["weights"])
def test_cellvit_own_weights(gamma: str) -> None:
    """Under PanNuke's counts, which CellViT holds as constants; its figures are float32."""
    classes = cellvit_weights(
        np.asarray(FIXTURE["nuclei"]) > 0, float(gamma), FIXTURE["patches_with"], FIXTURE["n_pairs"]
    )
    tissues = group_weights(FIXTURE["tissues"], float(gamma), FIXTURE["tissue_counts"], FIXTURE["n_patches"])
    expected, tolerance = FIXTURE["weights"][gamma], FIXTURE["tolerance"]
    np.testing.assert_allclose(classes, expected["cell"], rtol=tolerance)
    np.testing.assert_allclose(tissues, expected["tissue"], rtol=tolerance)
    np.testing.assert_allclose(joined_weights(classes, tissues), expected["cell+tissue"], rtol=tolerance)


def test_counts_are_of_the_training_patches() -> None:
    presence = np.asarray([[1, 0], [1, 0], [1, 0], [1, 1], [0, 0]], bool)  # f = 4, 1; N = 5
    weights = patch_weights(presence, None, 99, SamplingConfig(gamma=0.5))
    one, two = 5 / (0.5 * 4 + 0.5 * 5), 5 / (0.5 * 1 + 0.5 * 5)
    plain = 0.5 + 0.5 * one
    np.testing.assert_allclose(weights, [plain, plain, plain, 0.5 + 0.5 * (one + two), plain])


@settings(max_examples=60, deadline=None)
@given(presence=PRESENCE, gamma=GAMMAS, per_patch=st.integers(1, 50))
def test_equation_two_as_printed(presence: np.ndarray, gamma: float, per_patch: int) -> None:
    """Term by term in plain Python."""
    n_cell = per_patch * max(int(presence.sum()), 1)
    expected = []
    for patch in presence:
        total = 0.0
        for c, held in enumerate(patch):
            if held:
                total += n_cell**gamma / (gamma * sum(int(other[c]) for other in presence) + (1 - gamma) * n_cell)
        expected.append((1 - gamma) + gamma * total)
    if not presence.any():
        expected = [1.0] * len(presence)
    np.testing.assert_allclose(report_weights(presence, n_cell, gamma), expected, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    presence=PRESENCE,
    by=st.sampled_from(["classes", "group", "classes+group"]),
    formula=st.sampled_from(["cellvit", "report"]),
)
def test_gamma_zero_weighs_all_alike(presence: np.ndarray, by: str, formula: str) -> None:
    config = SamplingConfig.model_validate({"gamma": 0, "by": by, "formula": formula})
    groups = [str(number % 3) for number in range(len(presence))]
    assert (patch_weights(presence, groups, 7, config) == 1).all()
    assert (cellvit_weights(presence, 0) == 1).all()
    assert (report_weights(presence, max(int(presence.sum()), 1), 0) == 1).all()
    assert (group_weights(groups, 0) == 1).all()


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=2, max_size=60).filter(lambda found: len(set(found) - {0}) > 1),
    gammas=st.lists(GAMMAS, min_size=2, max_size=5),
)
def test_the_rarest_class_is_seen_more_the_higher_gamma_is(labels: list[int], gammas: list[float]) -> None:
    """With one class a patch (0: none) this is a theorem: the rarer a class, the faster its weight grows."""
    presence = np.asarray(labels)[:, None] == np.arange(1, 4)
    counts = Counter(label for label in labels if label)
    rarest = min(counts, key=lambda label: (counts[label], label))
    shares = []
    for gamma in sorted(gammas):
        weights = cellvit_weights(presence, gamma)
        shares.append(weights[presence[:, rarest - 1]].sum() / weights.sum())
    assert (np.diff(shares) >= -1e-12).all()


def test_at_gamma_one_classes_and_groups_are_even() -> None:
    labels = np.repeat([1, 2, 3], [50, 8, 2])
    presence = labels[:, None] == np.arange(1, 4)
    for weights in (
        cellvit_weights(presence, 1),
        report_weights(presence, 500, 1),
        group_weights([str(k) for k in labels], 1),
    ):
        np.testing.assert_allclose([weights[labels == label].sum() / weights.sum() for label in (1, 2, 3)], 1 / 3)


@settings(max_examples=60, deadline=None)
@given(presence=PRESENCE, gamma=GAMMAS)
def test_empty_patches_get_the_smallest_weight_and_order_does_not_matter(presence: np.ndarray, gamma: float) -> None:
    weights = cellvit_weights(presence, gamma)
    empty = ~presence.any(axis=1)
    assert np.isfinite(weights).all()
    assert (weights > 0).all()
    if empty.any() and not empty.all():
        assert (weights[empty] == weights[~empty].min()).all()
    turned = np.random.default_rng(len(presence)).permutation(len(presence))
    np.testing.assert_allclose(cellvit_weights(presence[turned], gamma), weights[turned], rtol=1e-12)
    if not empty.all():
        report = report_weights(presence, 3 * int(presence.sum()), gamma)
        np.testing.assert_allclose(report[empty], 1 - gamma)


@pytest.mark.parametrize("formula", ["cellvit", "report"])
def test_an_absent_class_plays_no_part_and_is_told_once(formula: str, caplog: pytest.LogCaptureFixture) -> None:
    presence = np.asarray([[1, 0, 0], [0, 0, 1], [1, 0, 0]], bool)
    config = SamplingConfig.model_validate({"gamma": 1, "formula": formula})
    with caplog.at_level(logging.WARNING):
        weights = patch_weights(presence, None, 30, config)
    np.testing.assert_array_equal(weights, patch_weights(presence[:, [0, 2]], None, 30, config))
    assert [record.getMessage() for record in caplog.records] == [
        "no training patch holds a nucleus of class 2: sampling cannot make it more frequent"
    ]


@pytest.mark.parametrize("formula", ["cellvit", "report"])
def test_patches_without_any_nucleus_are_weighed_alike_and_told(formula: str, caplog: pytest.LogCaptureFixture) -> None:
    nothing = np.zeros((4, 3), bool)
    config = SamplingConfig.model_validate({"gamma": 0.85, "formula": formula})
    with caplog.at_level(logging.WARNING):
        assert (patch_weights(nothing, None, 0, config) == 1).all()
    assert "no training patch holds a nucleus" in caplog.text
    assert (patch_weights(nothing[:, :0], None, 0, config) == 1).all()
    both = SamplingConfig.model_validate({"gamma": 0.85, "formula": formula, "by": "classes+group"})
    weights = patch_weights(nothing, ["a", "a", "a", "b"], 0, both)
    rare = 4 / (0.85 * 1 + 0.15 * 4)
    np.testing.assert_allclose(weights, [1 + 4 / (0.85 * 3 + 0.15 * 4) / rare] * 3 + [2])


def test_groups_are_needed_one_a_patch() -> None:
    presence = np.ones((3, 1), bool)
    config = SamplingConfig(gamma=0.5, by="group", column="tissue")
    np.testing.assert_allclose(patch_weights(presence, ["a", "b", "b"], 3, config), group_weights(["a", "b", "b"], 0.5))
    for groups in (None, ["a"]):
        with pytest.raises(SlideloomError, match="of column tissue for 3 patches") as caught:
            patch_weights(presence, groups, 3, config)
        assert caught.value.code == "sampling_groups"
    with pytest.raises(SlideloomError, match="0 nuclei in patches that hold some"):
        report_weights(presence, 0, 1)


def test_without_weights_every_patch_is_seen_once() -> None:
    for ours, plain in zip(draw_epoch(None, 13, 4, 5, 2), epoch_order(13, 4, 5, 2), strict=True):
        np.testing.assert_array_equal(ours, plain)


@settings(max_examples=60, deadline=None)
@given(
    weights=hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1e6)).filter(lambda found: found.any()),
    batch_sizes=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    count=st.integers(1, 90),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 9),
)
def test_the_draw_follows_from_seed_and_epoch_alone(
    weights: np.ndarray, batch_sizes: tuple[int, int], count: int, seed: int, epoch: int
) -> None:
    first, second = (draw_epoch(weights, count, size, seed, epoch) for size in batch_sizes)
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(second))
    for batches, size in zip((first, second), batch_sizes, strict=True):
        assert sum(map(len, batches)) == count
        assert all(batch.dtype == np.intp for batch in batches)
        assert all(len(batch) == size for batch in batches[:-1]) or len(batches) == 1
        assert len(batches[-1]) > 1 or count == 1 or size == 1
    drawn = np.concatenate(first)
    assert (weights[drawn] > 0).all(), "what weighs nothing is never drawn"
    np.testing.assert_array_equal(drawn, np.concatenate(draw_epoch(weights * 8, count, 7, seed, epoch)))


def test_seeds_and_epochs_draw_differently() -> None:
    weights = np.arange(1.0, 201.0)
    drawn = {tuple(np.concatenate(draw_epoch(weights, 200, 16, seed, epoch))) for seed in (0, 1) for epoch in (0, 1)}
    assert len(drawn) == 4


@pytest.mark.parametrize("gamma", [0.45, 0.85, 1.0])
def test_patches_are_drawn_in_proportion_to_their_weights(gamma: float) -> None:
    presence = np.random.default_rng(1).random((40, 4)) < [0.8, 0.5, 0.2, 0.05]
    weights = cellvit_weights(presence, gamma)
    count = 100_000
    seen = np.bincount(np.concatenate(draw_epoch(weights, count, 64, 3, 0)), minlength=40)
    expected = count * weights / weights.sum()
    # Of honest draws, one in ten thousand lies beyond; the seed is fixed, so the outcome is.
    assert ((seen - expected) ** 2 / expected).sum() < chi2.ppf(0.9999, 39)
    # The test can tell: draws by other weights are far beyond it.
    assert ((seen - count / 40) ** 2 / (count / 40)).sum() > 10 * chi2.ppf(0.9999, 39)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [1.0, np.nan], [np.inf, 1.0], []], ids=str)
def test_weights_that_cannot_be_drawn_by(weights: list[float]) -> None:
    with pytest.raises(SlideloomError) as caught:
        draw_epoch(np.asarray(weights), 2, 1, 0, 0)
    assert caught.value.code == "sampling_weights"
