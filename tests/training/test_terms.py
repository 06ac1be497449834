from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slideloom.config.model import Head, LossConfig
from slideloom.errors import SlideloomError
from slideloom.training import losses
from slideloom.training.terms import TERMS, class_weights, terms_of, total_loss

HEADS: tuple[Head, ...] = ("nucleus", "hv", "classes", "boundary")


def case(seed: int = 0) -> tuple[dict[Head, Tensor], dict[str, Tensor]]:
    drawn = torch.Generator().manual_seed(seed)
    outputs: dict[Head, Tensor] = {
        "nucleus": torch.randn((3, 2, 16, 16), generator=drawn),
        "hv": torch.randn((3, 2, 16, 16), generator=drawn),
        "classes": torch.randn((3, 4, 16, 16), generator=drawn),
        "boundary": torch.randn((3, 1, 16, 16), generator=drawn),
    }
    classes = torch.randint(0, 4, (3, 16, 16), generator=drawn, dtype=torch.uint8)
    classes[0, :4] = 255
    valid = torch.ones((3, 16, 16), dtype=torch.bool)
    valid[1, 10:] = False
    targets = {
        "valid": valid,
        "nucleus": (classes > 0).to(torch.uint8),
        "classes": classes,
        "hv": torch.randint(-127, 128, (3, 2, 16, 16), generator=drawn).to(torch.int8),
        "boundary": torch.randint(0, 2, (3, 16, 16), generator=drawn, dtype=torch.uint8),
    }
    return outputs, targets


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    outputs, targets = case()
    config = LossConfig(boundary=0.7)
    loss, terms = total_loss(outputs, targets, config)
    weights = terms_of(HEADS, config)
    assert set(terms) == set(weights) == set(TERMS)
    assert loss.item() == pytest.approx(sum(weights[name] * terms[name].item() for name in terms), rel=1e-6)
    assert weights["classes_dice"] == 0.4
    assert weights["hv_msge"] == 8
    assert weights["boundary_dice"] == weights["boundary_cross_entropy"] == 0.7


@pytest.mark.parametrize("heads", [h for n in (1, 2) for h in itertools.combinations(HEADS, n)])
def test_each_head_brings_its_own_terms_only(heads: tuple[Head, ...]) -> None:
    outputs, targets = case()
    kept = {head: outputs[head] for head in heads}
    needed = {name: targets[name] for name in ("valid", "nucleus", *heads)}
    _, terms = total_loss(kept, needed, LossConfig())
    assert set(terms) == {term for term in TERMS if term.split("_")[0] in heads}


def test_pixels_of_unknown_class_count_for_the_nucleus_but_not_for_the_class() -> None:
    outputs, targets = case()
    _, before = total_loss(outputs, targets, LossConfig())
    outputs["classes"][0, :, :4] += torch.randn((4, 4, 16))
    _, after = total_loss(outputs, targets, LossConfig())
    assert all(before[term] == after[term] for term in TERMS)
    outputs["nucleus"][0, 1, :4] += 3
    _, moved = total_loss(outputs, targets, LossConfig())
    assert all((before[term] != moved[term]) == term.startswith("nucleus") for term in TERMS)


def test_stored_hv_is_read_as_its_127th() -> None:
    outputs, targets = case()
    _, terms = total_loss(outputs, targets, LossConfig())
    wanted = losses.hv_mse(outputs["hv"], targets["hv"].float() / 127, targets["valid"])
    assert terms["hv_mse"].item() == pytest.approx(wanted.item(), rel=1e-6)
    _, same = total_loss(outputs, targets | {"hv": targets["hv"].float() / 127}, LossConfig())
    assert same["hv_msge"].item() == pytest.approx(terms["hv_msge"].item(), rel=1e-6)


def test_class_weights_reach_the_class_heads_cross_entropy_only() -> None:
    outputs, targets = case()
    _, plain = total_loss(outputs, targets, LossConfig())
    _, weighted = total_loss(outputs, targets, LossConfig(), torch.tensor([0.1, 1.0, 2.0, 0.9]))
    assert {term for term in TERMS if plain[term] != weighted[term]} == {"classes_cross_entropy"}


def test_a_term_of_weight_0_is_not_computed_and_a_head_without_terms_is_refused() -> None:
    outputs, targets = case()
    _, terms = total_loss(outputs, targets, LossConfig(focal_tversky=0, hv_mse=0))
    assert set(TERMS) - set(terms) == {"nucleus_focal_tversky", "classes_focal_tversky", "hv_mse"}
    with pytest.raises(SlideloomError, match="head 'hv'") as caught:
        terms_of(("nucleus", "hv"), LossConfig(hv_mse=0, hv_msge=0))
    assert caught.value.code == "no_loss"


def test_descending_the_loss_finds_the_target() -> None:
    outputs, targets = case()
    maps = {head: output.clone().requires_grad_() for head, output in outputs.items()}
    optimiser = torch.optim.Adam(maps.values(), lr=0.2)
    for _ in range(100):
        optimiser.zero_grad()
        loss, _ = total_loss(maps, targets, LossConfig())
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    usable = targets["valid"] & (targets["classes"] != 255)
    assert (maps["classes"].argmax(1) == targets["classes"])[usable].all()
    assert (maps["nucleus"].argmax(1) == targets["nucleus"])[targets["valid"]].all()
    assert ((maps["boundary"][:, 0] > 0) == targets["boundary"].bool())[targets["valid"]].all()
    error = (maps["hv"] - targets["hv"] / 127).abs() * targets["valid"][:, None]
    assert error.mean() < 0.04


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=12))
def test_class_weights_have_mean_1_fall_with_frequency_and_stay_bounded(pixels: list[int]) -> None:
    weights = class_weights(pixels)
    counts = np.asarray(pixels)
    assert (weights[counts == 0] == 0).all()
    present = weights[counts > 0]
    if present.size:
        assert present.mean() == pytest.approx(1, rel=1e-5)
        assert present.max() <= 20.001 * present.min()
        order = np.argsort(counts[counts > 0], kind="stable")
        assert (np.diff(present[order]) <= 1e-6).all()


def test_class_weights_go_with_the_inverse_root() -> None:
    weights = class_weights([10000, 2500, 400])
    assert weights / weights[0] == pytest.approx([1, 2, 5])
