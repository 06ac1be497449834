"""The verifier on made scenes whose truth is known, and its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.stats import mannwhitneyu

from slideloom.errors import SlideloomError
from slideloom.instances.refine.features import Features, instance_features
from slideloom.instances.refine.fit import FitSettings, Gain, fit_verifier
from slideloom.instances.refine.found import keep_instances
from slideloom.instances.refine.tokens import Projection
from slideloom.instances.refine.verifier import Verifier
from slideloom.metrics.contingency import contingency
from slideloom.metrics.panoptic import matched_pairs

MPP = 0.5
Examples = tuple[Features, np.ndarray, np.ndarray, np.ndarray]
FAST = FitSettings(hidden=0, folds=4, steps=60, resamples=200)


def examples(make_scene: Any, seeds: range) -> Examples:
    scenes = [make_scene(seed) for seed in seeds]
    features = Features.stack([instance_features(one.found, one.maps, mpp_um=MPP) for one in scenes])
    image = np.repeat(np.arange(len(scenes)), [one.found.n for one in scenes])
    return features, np.concatenate([one.real for one in scenes]), image, np.array([one.n_true for one in scenes])


@pytest.fixture(scope="module")
def seen(make_scene: Any) -> Examples:
    return examples(make_scene, range(8))


@pytest.fixture(scope="module")
def unseen(make_scene: Any) -> Examples:
    return examples(make_scene, range(100, 106))


def auc(probability: np.ndarray, real: np.ndarray) -> float:
    return float(mannwhitneyu(probability[real], probability[~real]).statistic / (real.sum() * (~real).sum()))


def f1(kept: np.ndarray, real: np.ndarray, n_true: np.ndarray) -> float:
    return float(2 * (kept & real).sum() / (kept.sum() + n_true.sum()))


@pytest.mark.parametrize("hidden", [0, 6])
def test_drops_planted_false_instances_on_scenes_that_it_never_saw(
    seen: Examples, unseen: Examples, make_scene: Any, hidden: int
) -> None:
    verifier, gain = fit_verifier(*seen, replace(FAST, hidden=hidden))
    features, real, _, n_true = unseen
    probability = verifier.probability(features)
    assert auc(probability, real) > 0.9
    kept = verifier.keep(features)
    before, after = f1(np.ones_like(kept), real, n_true), f1(kept, real, n_true)
    assert after > before + 0.08
    # What the folds promised is what unseen scenes give.
    assert gain.gains
    assert gain.gain_low < gain.f1_gain < gain.gain_high
    assert after - before == pytest.approx(gain.f1_gain, abs=0.05)
    assert auc(probability, real) == pytest.approx(gain.auc, abs=0.04)
    assert np.mean((probability - real) ** 2) == pytest.approx(gain.brier, abs=0.04)
    one = make_scene(100)
    refined = keep_instances(one.found, kept[: one.found.n])
    assert refined.n == kept[: one.found.n].sum()
    for label in np.flatnonzero(~kept[: one.found.n]) + 1:
        assert not refined.read(refined.grid.frame)[one.found.labels == label].any()


def test_probabilities_are_shares(seen: Examples, unseen: Examples) -> None:
    verifier, _ = fit_verifier(*seen, FAST)
    features, real, _, _ = unseen
    probability = verifier.probability(features)
    assert probability.mean() == pytest.approx(real.mean(), abs=0.05)
    for third in np.array_split(np.argsort(probability), 3):
        assert len(third) > 80
        assert probability[third].mean() == pytest.approx(real[third].mean(), abs=0.1)


def test_counts_of_the_gain_are_those_of_the_examples(seen: Examples) -> None:
    features, matched, _, n_true = seen
    _, gain = fit_verifier(*seen, FAST)
    assert (gain.n_images, gain.n_true, gain.n_found) == (8, n_true.sum(), len(features))
    assert gain.n_matched == matched.sum()
    assert gain.f1_before == f1(np.ones(len(matched), bool), matched, n_true)
    assert gain.f1_after == 2 * gain.n_kept_matched / (gain.n_kept + gain.n_true)


def test_features_that_say_nothing_gain_nothing_and_nothing_is_dropped(seen: Examples) -> None:
    features, matched, image, n_true = seen
    noise = Features(("token_0", "token_1"), np.random.default_rng(0).normal(size=(len(features), 2)))
    verifier, gain = fit_verifier(noise, matched, image, n_true, FAST)
    assert not gain.gains
    assert 0.4 < gain.auc < 0.6
    assert verifier.threshold == 0 or gain.f1_gain > 0
    if verifier.threshold == 0:
        assert verifier.keep(noise).all()


def test_equal_seeds_give_equal_bytes(tmp_path: Path, seen: Examples) -> None:
    settings = replace(FAST, hidden=3, steps=20)
    for name in ("one", "other"):
        fit_verifier(*seen, settings)[0].save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    fit_verifier(*seen, replace(settings, seed=1))[0].save(tmp_path / "third")
    assert (tmp_path / "one").read_bytes() != (tmp_path / "third").read_bytes()


def test_the_file_gives_back_the_same_model(tmp_path: Path, seen: Examples, unseen: Examples) -> None:
    projection = Projection(np.arange(4, dtype=np.float32), np.ones((4, 2), np.float32))
    verifier, gain = fit_verifier(*seen, replace(FAST, hidden=3, steps=20), projection)
    verifier.save(tmp_path / "verifier.safetensors")
    read = Verifier.load(tmp_path / "verifier.safetensors")
    features = unseen[0]
    assert read.probability(features).tobytes() == verifier.probability(features).tobytes()
    assert (read.threshold, read.names) == (verifier.threshold, verifier.names)
    assert Gain(**read.about["gain"]) == gain
    assert read.projection is not None
    np.testing.assert_array_equal(read.projection.mean, projection.mean)
    np.testing.assert_array_equal(read.projection.matrix, projection.matrix)
    one_by_one = [verifier.probability(Features(features.names, features.values[row : row + 1])) for row in range(9)]
    assert np.concatenate(one_by_one).tobytes() == verifier.probability(features)[:9].tobytes()
    mixed = Features(features.names[::-1], features.values[:, ::-1].copy())
    assert verifier.probability(mixed).tobytes() == verifier.probability(features).tobytes()


def test_refuses_other_files(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no")
    save_file({"mean": np.zeros(2)}, tmp_path / "other")
    for name in ("text", "other", "absent"):
        with pytest.raises(SlideloomError) as caught:
            Verifier.load(tmp_path / name)
        assert caught.value.code == "verifier_file"


def test_refuses_too_few_of_a_kind(seen: Examples) -> None:
    features, matched, image, n_true = seen
    few = np.ones_like(matched)
    few[:5] = False
    for wrong, what in ((few, "5 instances in 1 images match none"), (~few, "5 instances in 1 images match a true")):
        with pytest.raises(SlideloomError, match=what) as caught:
            fit_verifier(features, wrong, image, n_true, FAST)
        assert caught.value.code == "verifier_examples"
    five = image < 5
    parted = np.where(image[five] == 2, matched[five], image[five] > 2)  # true ones in 2, 3, 4, false ones in 0, 1, 2
    lone = Features(features.names, features.values[five])
    with pytest.raises(SlideloomError, match="once the patients of one part are held back, no instances are left") as of:
        fit_verifier(lone, parted, image[five], n_true[:5], replace(FAST, called="patients"))
    assert of.value.code == "verifier_examples"
    with pytest.raises(ValueError, match="there are counts"):
        fit_verifier(features, matched, image, n_true[:-1], FAST)


def test_matches_as_the_metrics_count_them(make_scene: Any) -> None:
    """What a caller gives as ``matched`` is what panoptic quality calls a true positive."""
    one = make_scene(3)
    truth = np.where(np.append(False, one.real)[one.found.labels], one.found.labels, 0)
    table = contingency(truth, one.found.labels)
    matched = np.zeros(one.found.n, bool)
    matched[table.pred_ids[table.pred_index[matched_pairs(table, 0.5, convention="stardist")]] - 1] = True
    np.testing.assert_array_equal(matched, one.real)
