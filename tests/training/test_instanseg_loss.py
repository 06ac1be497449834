"""InstanSeg's loss: recorded values of the original, a plain loop beside it, and what must not move anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.ndimage import maximum_filter
from torch import Tensor
from torch.nn import functional

from slideloom.config.model import LossConfig
from slideloom.decoders.instanseg_head import PixelClassifier
from slideloom.training.distance_targets import instance_distance
from slideloom.training.instanseg_loss import crop_hinge, instanseg_loss, seed_target
from slideloom.training.lovasz import lovasz_hinge

LOVASZ = [
    "random16",
    "gt_empty_mixed_sign",
    "all_positive",
    "all_negative",
    "correct_large_margin",
    "all_wrong",
    "single_pixel",
    "zeros_ties",
]
SEED_LOSSES = {"binary_xloss": "binary", "l1_distance": "l1_distance", "l2_distance": "l2_distance"}


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "fixtures/instanseg"


@pytest.fixture(scope="module")
def recorded(folder: Path) -> dict[str, Any]:
    return dict(np.load(folder / "misc_io.npz"))


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "misc_expected.json").read_text())


def both_heads(
    folder: Path,
    recorded: dict[str, Any],
    *,
    hot: bool = False,
    seeds: Any = "l1_distance",
    instance_weight: float = 1.5,
    cells: bool = True,
    unannotated_rows: int = 0,
) -> float:
    """The original's total loss of nuclei and cells; it knows nothing of what a mask hides."""
    prefix = "model.pixel_classifier."
    weights = load_file(folder / "instanseg_tiny_nc.safetensors")
    classifier = PixelClassifier()
    classifier.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    raw = torch.from_numpy(recorded["loss_net_out"])[None]
    height, width = raw.shape[-2:]
    valid = torch.ones(1, height, width, dtype=torch.bool)
    valid[:, :unannotated_rows] = False
    total = 0.0
    for head, name in enumerate(("nuclei", "cells") if cells else ("nuclei",)):
        instances = torch.from_numpy(recorded[f"edt_{name}_labels"])[None].masked_fill(~valid, 0)
        instance, seed = instanseg_loss(
            raw[:, 5 * head : 5 * head + 5],
            instances,
            valid,
            classifier,
            LossConfig(instanseg_seed_loss=seeds),
            hot,
            np.random.default_rng(0),
            window_px=48,
            units_per_px=(0.25 * height / (height - 1), 0.25 * width / (width - 1)),
            mask_windows=False,
        )
        total += instance_weight * instance.item() + seed.item()
    return total / 2


@pytest.mark.parametrize("seeds", SEED_LOSSES)
def test_totals_as_recorded(folder: Path, recorded: dict[str, Any], expected: dict[str, Any], seeds: str) -> None:
    values = expected["loss"]["values"]
    own = SEED_LOSSES[seeds]
    got = both_heads(folder, recorded, seeds=own)
    assert got == pytest.approx(values[f"lovasz_hinge+{seeds}"], rel=1e-5)
    got = both_heads(folder, recorded, seeds=own, instance_weight=0)
    assert got == pytest.approx(values[f"seed_only+{seeds}"], rel=1e-5)
    # The original can pair Dice with any seed loss; here it goes with cross-entropy, in the hot start.
    dice = values[f"dice_loss+{seeds}"] - values[f"seed_only+{seeds}"]
    hot = both_heads(folder, recorded, hot=True, seeds=own)
    assert hot - values["seed_only+binary_xloss"] == pytest.approx(dice, rel=1e-5)


def test_partly_annotated_as_recorded(folder: Path, recorded: dict[str, Any], expected: dict[str, Any]) -> None:
    values = expected["loss"]["values"]
    got = both_heads(folder, recorded, cells=False)
    assert got == pytest.approx(values["cells_unannotated_lovasz+l1"], rel=1e-5)
    got = both_heads(folder, recorded, unannotated_rows=30)
    assert got == pytest.approx(values["sparse_top30rows_lovasz+l1"], rel=1e-5)


@pytest.mark.parametrize("name", ["nuclei", "cells"])
def test_seed_targets_as_recorded(recorded: dict[str, Any], name: str) -> None:
    distance = torch.from_numpy(instance_distance(recorded[f"edt_{name}_labels"][None]))
    torch.testing.assert_close(
        seed_target(distance)[0], torch.from_numpy(recorded[f"seed_target_{name}"]), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("case", LOVASZ)
def test_lovasz_as_recorded(recorded: dict[str, Any], expected: dict[str, Any], case: str) -> None:
    logits = torch.from_numpy(recorded[f"lovasz_{case}_scores"]).flatten()[None].requires_grad_()
    mine = torch.from_numpy(recorded[f"lovasz_{case}_labels"]).flatten()[None] == 1
    loss = crop_hinge(logits, mine)
    assert loss.item() == pytest.approx(expected["lovasz_hinge"][case]["numpy_definition"], rel=1e-5, abs=1e-6)
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    theirs = torch.from_numpy(recorded[f"lovasz_{case}_grad_original"]).flatten()
    errors = 1 + torch.where(mine, -logits, logits)
    if len(errors.unique()) == errors.numel():
        torch.testing.assert_close(slope[0], theirs, atol=1e-6, rtol=1e-5)
    else:  # any order of equal errors is right, and each has other slopes, of one sum
        assert float(slope.abs().sum()) == pytest.approx(float(theirs.abs().sum()), rel=1e-5)
    # The loss is convex: it lies nowhere below its own tangent.
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        step = torch.randn(logits.shape, generator=generator)
        assert crop_hinge(logits + step, mine).item() >= (loss + (slope * step).sum()).item() - 1e-5


def test_lovasz_of_rows_is_of_each_by_itself(recorded: dict[str, Any], expected: dict[str, Any]) -> None:
    logits = torch.from_numpy(recorded["lovasz_batch_scores"]).flatten(1)
    mine = torch.from_numpy(recorded["lovasz_batch_labels"]).flatten(1) == 1
    value = expected["lovasz_hinge"]["batch_per_image"]["numpy_definition"]
    assert float(crop_hinge(logits, mine).mean()) == pytest.approx(value, rel=1e-5)


def test_lovasz_of_counted_pixels_is_that_of_the_rest_cut_out() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = 2 * torch.randn(6, 40, generator=generator)
    mine = torch.rand(6, 40, generator=generator) < 0.4
    counted = torch.rand(6, 40, generator=generator) < 0.6
    got = crop_hinge(logits, mine, counted)
    for row in range(6):
        keep = counted[row]
        alone = lovasz_hinge(logits[row, keep][None, None], mine[row, keep][None, None].long())
        assert float(got[row]) == pytest.approx(float(alone), rel=1e-5)


def cells_of(side: int, count: int, step: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Squares on a lattice, ids far apart; raw maps whose seeds lie in them."""
    instances = torch.zeros(count, side, side, dtype=torch.int32)
    for k in range((side // step) ** 2):
        row, column = divmod(k, side // step)
        instances[:, row * step + 1 : (row + 1) * step - 1, column * step + 1 : (column + 1) * step] = 7 + 1000 * k
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(count, 5, side, side, generator=generator)
    raw[:, 4] += seed_target(torch.from_numpy(instance_distance(instances.numpy())))
    return raw, instances


def classifier_of(seed: int = 1) -> PixelClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return PixelClassifier()


def plainly(raw: Tensor, instances: Tensor, classifier: PixelClassifier, hot: bool, window: int) -> Tensor:
    """The instance loss seed by seed, by its description, of images with few instances."""
    count, _, height, width = raw.shape
    side = min(window, height, width)
    total = raw.new_zeros(())
    for image in range(count):
        nucleus = instances[image].numpy() > 0
        score = (raw[image, 4].detach().sigmoid().numpy() * nucleus).astype(np.float64)
        peaks = np.argwhere((maximum_filter(score, 7, mode="constant") == score) & (score > 0.5))
        x = torch.arange(width) * 0.25 + 8 * (raw[image, 0].sigmoid() - 0.5)
        y = torch.arange(height)[:, None] * 0.25 + 8 * (raw[image, 1].sigmoid() - 0.5)
        losses = []
        for row, column in peaks.tolist():
            top = min(max(row - side // 2, 0), height - side)
            left = min(max(column - side // 2, 0), width - side)
            cut = (slice(top, top + side), slice(left, left + side))
            there = (x[row, column].detach(), y[row, column].detach())
            features = [x[cut] - there[0], y[cut] - there[1], raw[image, 2][cut], raw[image, 3][cut]]
            logits = classifier(torch.stack(features, dim=-1))
            mine = instances[image][cut] == instances[image, row, column]
            if hot:
                p = logits.sigmoid()
                losses.append(1.5 * (1 - (2 * p[mine].sum() + 1e-5) / (p.sum() + mine.sum() + 1e-5)))
            else:
                losses.append(lovasz_hinge(logits[None], mine[None].long()))
        total = total + torch.stack(losses).mean() / count
    return total


@pytest.mark.parametrize("hot", [True, False])
@pytest.mark.parametrize("window", [20, 64])
def test_values_and_gradients_of_a_plain_loop(hot: bool, window: int) -> None:
    raw, instances = cells_of(36, 2, 12)
    raw.requires_grad_()
    classifier = classifier_of()
    valid = torch.ones_like(instances, dtype=torch.bool)
    got, _ = instanseg_loss(
        raw, instances, valid, classifier, LossConfig(), hot, np.random.default_rng(0), window_px=window
    )
    wanted = plainly(raw, instances, classifier, hot, window)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=0)
    leaves = [raw, *classifier.parameters()]
    for own, theirs in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-5)


def test_distance_and_binary_is_each_where_it_belongs() -> None:
    raw, instances = cells_of(24, 1, 12)
    valid = torch.ones_like(instances, dtype=torch.bool)
    config = LossConfig(instanseg_seed_loss="distance_and_binary")
    _, got = instanseg_loss(raw, instances, valid, classifier_of(), config, False, np.random.default_rng(0))
    inside = instances > 0
    wanted = (raw[:, 4] - seed_target(torch.from_numpy(instance_distance(instances.numpy())))).square()
    wanted[~inside] = functional.softplus(raw[:, 4])[~inside]
    torch.testing.assert_close(got, wanted.mean())


@pytest.mark.parametrize("hot", [True, False])
def test_images_without_nuclei_have_a_seed_loss_alone(hot: bool) -> None:
    raw = torch.randn(2, 5, 20, 17, generator=torch.Generator().manual_seed(0)).requires_grad_()
    instances = torch.zeros(2, 20, 17, dtype=torch.int32)
    classifier = classifier_of()
    instance, seed = instanseg_loss(
        raw, instances, instances == 0, classifier, LossConfig(), hot, np.random.default_rng(0)
    )
    assert instance.item() == 0
    assert seed.item() > 0
    (1.5 * instance + seed).backward()
    assert raw.grad is not None
    assert not raw.grad[:, :4].any()
    assert raw.grad[:, 4].all()
    assert all(weight.grad is not None and not weight.grad.any() for weight in classifier.parameters())


def test_an_image_of_nothing_but_one_nucleus() -> None:
    raw = torch.randn(1, 5, 24, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    instances = torch.full((1, 24, 24), 3, dtype=torch.int32)
    losses = instanseg_loss(
        raw, instances, instances > 0, classifier_of(), LossConfig(), False, np.random.default_rng(0)
    )
    assert all(bool(torch.isfinite(loss)) and loss.item() > 0 for loss in losses)


@pytest.mark.parametrize("hot", [True, False])
def test_what_nobody_annotated_changes_nothing(hot: bool) -> None:
    """Not even NaN there does; an image without an annotated pixel adds 0 and still counts in the mean."""
    raw, instances = cells_of(36, 2, 12)
    valid = torch.ones_like(instances, dtype=torch.bool)
    valid[0, :14] = False
    valid[1] = False
    classifier = classifier_of()

    def losses(raw: Tensor, instances: Tensor) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(0)
        distance = torch.from_numpy(instance_distance(kept.numpy()))
        return instanseg_loss(raw, instances, valid, classifier, LossConfig(), hot, rng, distance=distance)

    kept = instances.clone()
    first = losses(raw, instances)
    other = raw.clone()
    other.movedim(1, -1)[~valid] = 50.0
    scrambled = torch.where(valid, instances, instances.flip(2) + 1)
    second = losses(other.requires_grad_(), scrambled)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    (second[0] + second[1]).backward()
    assert other.grad is not None
    assert not other.grad.movedim(1, -1)[~valid].any()
    assert other.grad.any()
    alone = instanseg_loss(raw[:1], instances[:1], valid[:1], classifier, LossConfig(), hot, np.random.default_rng(0))
    torch.testing.assert_close(2 * first[0], alone[0])
    torch.testing.assert_close(2 * first[1], alone[1])


def test_draws_are_the_generators_and_are_made_only_of_many() -> None:
    raw, instances = cells_of(64, 1, 8)  # 64 instances
    valid = torch.ones_like(instances, dtype=torch.bool)

    def value(raw: Tensor, instances: Tensor, rng: np.random.Generator) -> float:
        return instanseg_loss(
            raw, instances, valid[: len(raw)], classifier_of(), LossConfig(), False, rng, window_px=24
        )[0].item()

    values = [value(raw, instances, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert values[0] == values[1] != values[2]
    few = instances.masked_fill(instances > 7 + 1000 * 40, 0)
    rng = np.random.default_rng(3)
    before = rng.bit_generator.state
    value(raw, few, rng)
    assert rng.bit_generator.state == before
    twice = value(raw.repeat(2, 1, 1, 1)[:1], few, np.random.default_rng(9))
    assert twice == value(raw, few, np.random.default_rng(3))


def test_half_precision_is_computed_in_single() -> None:
    raw, instances = cells_of(36, 1, 12)
    valid = torch.ones_like(instances, dtype=torch.bool)
    half = raw.bfloat16()
    classifier = classifier_of()
    results = []
    for values in (half, half.float()):
        with torch.autocast("cpu", torch.bfloat16, enabled=values is half):
            results.append(
                instanseg_loss(values, instances, valid, classifier, LossConfig(), False, np.random.default_rng(0))
            )
    for own, theirs in zip(*results, strict=True):
        assert own.dtype == torch.float32
        assert torch.equal(own, theirs)


def test_a_distance_that_is_there_is_taken() -> None:
    raw, instances = cells_of(24, 1, 12)
    valid = torch.ones_like(instances, dtype=torch.bool)
    distance = torch.from_numpy(instance_distance(instances.numpy()))
    arguments = (raw, instances, valid, classifier_of(), LossConfig(), False)
    own = instanseg_loss(*arguments, np.random.default_rng(0))
    given = instanseg_loss(*arguments, np.random.default_rng(0), distance=distance)
    assert torch.equal(own[1], given[1])
    other = instanseg_loss(*arguments, np.random.default_rng(0), distance=distance / 2)
    assert not torch.equal(own[1], other[1])
