from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from slideloom.training.losses import (
    PixelSums,
    binary_map,
    cross_entropy,
    dice,
    focal,
    focal_tversky,
    hv_mse,
    hv_msge,
    pixel_map,
    tversky,
)
from slideloom.training.lovasz import lovasz_hinge, lovasz_softmax


def pixel_sums(logits: Tensor, target: Tensor, usable: Tensor | None = None) -> PixelSums:
    return pixel_map(logits, target, usable).sums


def binary_sums(logits: Tensor, target: Tensor, usable: Tensor | None = None) -> PixelSums:
    return binary_map(logits, target, usable).sums


@pytest.fixture(scope="module")
def inputs(shared: Path) -> dict[str, Tensor]:
    with np.load(shared / "fixtures/cellvit/losses_inputs.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored}


@pytest.fixture(scope="module")
def expected(shared: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((shared / "fixtures/cellvit/losses.json").read_text())
    return loaded


def nucleus(inputs: dict[str, Tensor]) -> Tensor:
    return (inputs["inst_map"] > 0).long()


WEIGHTS = torch.tensor([1, 2, 3, 4, 5, 0.5])
Loss = Callable[[dict[str, Tensor]], Tensor]
ORIGINALS: dict[str, tuple[str, Loss]] = {
    "xentropy_loss/binary(probs)": (
        "bin_logits",
        lambda i: cross_entropy(pixel_map(i["bin_logits"], nucleus(i)).clamped),
    ),
    "xentropy_loss/type(probs)": (
        "type_logits",
        lambda i: cross_entropy(pixel_map(i["type_logits"], i["type_map"]).clamped),
    ),
    "xentropy_loss/type(sum)": ("type_logits", lambda i: pixel_sums(i["type_logits"], i["type_map"]).nll.sum()),
    # the original divides by pixels, not by weights
    "CEWeighted/type(class_weights)": (
        "type_logits",
        lambda i: cross_entropy(pixel_sums(i["type_logits"], i["type_map"]), WEIGHTS) * WEIGHTS[i["type_map"]].mean(),
    ),
    "CEWeighted/type(plain)": (
        "type_logits",
        lambda i: cross_entropy(pixel_sums(i["type_logits"], i["type_map"])),
    ),
    # the original divides by all pixels, not by those that count
    "CEWeighted/type(mask)": (
        "type_logits",
        lambda i: cross_entropy(pixel_sums(i["type_logits"], i["type_map"], i["mask"] > 0)) * i["mask"].mean(),
    ),
    "dice_loss/binary(probs)": ("bin_logits", lambda i: dice(pixel_sums(i["bin_logits"], nucleus(i)), "sum")),
    "dice_loss/type(probs)": ("type_logits", lambda i: dice(pixel_sums(i["type_logits"], i["type_map"]), "sum")),
    "mse_loss_maps/hv": ("hv_pred", lambda i: hv_mse(i["hv_pred"], i["hv_gt"])),
    "mse_loss_maps/regression": ("reg_pred", lambda i: hv_mse(i["reg_pred"], i["reg_gt"])),
    "MSEWeighted/hv": ("hv_pred", lambda i: hv_mse(i["hv_pred"], i["hv_gt"])),
    "msge_loss_maps/hv(focus=binary one-hot)": (
        "hv_pred",
        lambda i: hv_msge(i["hv_pred"], i["hv_gt"], nucleus(i), original=True),
    ),
    "msge_loss_maps/hv(focus empty)": (
        "hv_pred",
        lambda i: hv_msge(i["hv_pred"], i["hv_gt"], torch.zeros_like(nucleus(i)), original=True),
    ),
    "FocalTverskyLoss/binary(logits)": (
        "bin_logits",
        lambda i: focal_tversky(pixel_sums(i["bin_logits"], nucleus(i)), "pooled"),
    ),
    "FocalTverskyLoss/binary(probs: as trained)": (
        "bin_logits",
        lambda i: focal_tversky(pixel_map(i["bin_logits"], nucleus(i)).again.sums, "pooled"),
    ),
    "FocalTverskyLoss/binary(alpha=.3,beta=.7)": (
        "bin_logits",
        lambda i: focal_tversky(pixel_sums(i["bin_logits"], nucleus(i)), "pooled", alpha=0.3, beta=0.7),
    ),
    "MCFocalTverskyLoss/type(logits)": (
        "type_logits",
        lambda i: focal_tversky(pixel_sums(i["type_logits"], i["type_map"]), "sum"),
    ),
    "MCFocalTverskyLoss/type(probs: as trained)": (
        "type_logits",
        lambda i: focal_tversky(pixel_map(i["type_logits"], i["type_map"]).again.sums, "sum"),
    ),
    "MCFocalTverskyLoss/type(logits,class_weights=[1,2,3,4,5,.5])": (
        "type_logits",
        lambda i: focal_tversky(pixel_sums(i["type_logits"], i["type_map"]), "sum", weights=WEIGHTS),
    ),
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_values_and_gradients_are_the_originals(name: str, inputs: dict[str, Tensor], expected: dict[str, Any]) -> None:
    raw, loss = ORIGINALS[name]
    inputs = inputs | {raw: inputs[raw].clone().requires_grad_()}
    value = loss(inputs)
    value.backward()
    gradient = inputs[raw].grad
    assert gradient is not None
    assert value.item() == pytest.approx(expected[name]["value"], rel=1e-5, abs=1e-9)
    assert gradient.norm().item() == pytest.approx(expected[name]["grad_l2_wrt_raw_input"], rel=1e-5, abs=1e-9)


def test_every_original_that_is_not_met_is_one_that_is_not_offered(expected: dict[str, Any]) -> None:
    others = {name for name in expected if name not in ORIGINALS and not name.startswith("TOTAL")}
    variants = ("label smoothing", "svls", "spectral decoupling", "edge_weight", "MAE", "L1", "BCEWeighted", "tissue")
    assert {name for name in others if not any(word in name for word in variants)} == set()


def random_case(seed: int = 0) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    hv = torch.rand((2, 2, 20, 24), generator=drawn, dtype=torch.float64) * 2 - 1
    return {
        "logits": torch.randn((2, 5, 20, 24), generator=drawn, dtype=torch.float64),
        "target": torch.randint(0, 5, (2, 20, 24), generator=drawn),
        "binary": torch.randn((2, 1, 20, 24), generator=drawn, dtype=torch.float64),
        "thin": torch.randint(0, 2, (2, 20, 24), generator=drawn),
        "hv": hv,
        "true_hv": torch.rand((2, 2, 20, 24), generator=drawn, dtype=torch.float64) * 2 - 1,
    }


MASKED: dict[str, Callable[[dict[str, Tensor], Tensor | None], Tensor]] = {
    "cross_entropy": lambda c, m: cross_entropy(pixel_sums(c["logits"], c["target"], m)),
    "weighted": lambda c, m: cross_entropy(pixel_sums(c["logits"], c["target"], m), torch.arange(5.0)),
    "dice present": lambda c, m: dice(pixel_sums(c["logits"], c["target"], m)),
    "dice mean": lambda c, m: dice(pixel_sums(c["logits"], c["target"], m), "mean"),
    "dice sum": lambda c, m: dice(pixel_sums(c["logits"], c["target"], m), "sum", first=1),
    "focal": lambda c, m: focal(pixel_map(c["logits"], c["target"], m)),
    "focal half": lambda c, m: focal(pixel_map(c["logits"], c["target"], m), 0.5),
    "tversky": lambda c, m: tversky(pixel_sums(c["logits"], c["target"], m)),
    "focal tversky": lambda c, m: focal_tversky(pixel_sums(c["logits"], c["target"], m)),
    "focal tversky half": lambda c, m: focal_tversky(pixel_sums(c["logits"], c["target"], m), gamma=0.5),
    "lovasz softmax": lambda c, m: lovasz_softmax(pixel_map(c["logits"], c["target"], m)),
    "clamped": lambda c, m: cross_entropy(pixel_map(c["logits"], c["target"], m).clamped),
    "tversky again": lambda c, m: focal_tversky(pixel_map(c["logits"], c["target"], m).again.sums),
    "tversky pooled": lambda c, m: focal_tversky(pixel_sums(c["logits"], c["target"], m), "pooled"),
    "boundary": lambda c, m: cross_entropy(binary_sums(c["binary"], c["thin"], m)),
    "boundary hinge": lambda c, m: lovasz_hinge(c["binary"][:, 0], c["thin"], m),
    "boundary focal": lambda c, m: focal(binary_map(c["binary"], c["thin"], m)),
    "boundary dice": lambda c, m: dice(binary_sums(c["binary"], c["thin"], m), first=1),
    "mse": lambda c, m: hv_mse(c["hv"], c["true_hv"], m),
    "msge": lambda c, m: hv_msge(c["hv"], c["true_hv"], c["thin"], m),
    "msge original": lambda c, m: hv_msge(c["hv"], c["true_hv"], c["thin"], m, original=True),
}


@pytest.mark.parametrize("name", MASKED)
@settings(deadline=None, max_examples=12)
@given(st.integers(0, 99), st.integers(0, 19), st.integers(0, 23), st.integers(1, 20), st.integers(1, 24))
def test_a_masked_map_loses_and_pulls_as_the_cropped_one_does(
    name: str, seed: int, top: int, left: int, height: int, width: int
) -> None:
    inside = (..., slice(top, top + height), slice(left, left + width))
    valid = torch.zeros((2, 20, 24), dtype=torch.bool)
    valid[inside] = True
    case = random_case(seed)
    raw = raw_of(name)
    cropped = {key: value[inside].clone() for key, value in case.items()}
    cropped[raw].requires_grad_()
    wanted = MASKED[name](cropped, None)
    wanted.backward()  # type: ignore[no-untyped-call]
    spoilt = {key: value.clone() for key, value in case.items()}
    for key, value in spoilt.items():  # what lies outside must not matter, whatever it is
        noise = 255 if key in ("target", "thin") else float("nan") if key == raw else 7.0
        value.masked_fill_(~valid if value.dim() == 3 else ~valid[:, None], noise)
    for masked in (case, spoilt):
        masked[raw].requires_grad_()
        got = MASKED[name](masked, valid)
        got.backward()  # type: ignore[no-untyped-call]
        assert got.item() == pytest.approx(wanted.item(), rel=1e-12, abs=1e-12)
        gradient = masked[raw].grad
        assert gradient is not None
        assert cropped[raw].grad is not None
        assert torch.allclose(gradient[inside], cropped[raw].grad, rtol=1e-9, atol=1e-12)
        assert not (gradient * ~(valid if gradient.dim() == 3 else valid[:, None])).any()


def raw_of(name: str) -> str:
    """The input that a case of :data:`MASKED` pulls at."""
    return "binary" if "boundary" in name else "hv" if "ms" in name else "logits"


# mean, sum and pooled count absent classes by definition
@pytest.mark.parametrize("name", [name for name in MASKED if name.split()[-1] not in ("mean", "sum", "pooled")])
def test_a_fully_masked_map_loses_nothing_and_pulls_nowhere(name: str) -> None:
    case = random_case()
    for key in ("logits", "binary", "hv"):
        case[key].requires_grad_()
    loss = MASKED[name](case, torch.zeros((2, 20, 24), dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    gradients = [case[key].grad for key in ("logits", "binary", "hv")]
    assert all(g is None or not g.any() for g in gradients)


def test_cross_entropy_is_pytorchs() -> None:
    case = random_case()
    weights = torch.tensor([0.5, 1, 0, 3, 2], dtype=torch.float64)
    ignored = case["target"].masked_fill(case["target"] == 1, -100)
    wanted = functional.cross_entropy(case["logits"], ignored, weight=weights)
    got = cross_entropy(pixel_sums(case["logits"], case["target"], case["target"] != 1), weights)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-12)
    wanted = functional.binary_cross_entropy_with_logits(case["binary"][:, 0], case["thin"].double())
    assert cross_entropy(binary_sums(case["binary"], case["thin"])).item() == pytest.approx(wanted.item(), rel=1e-12)


def test_dice_and_tversky_against_a_loop_over_classes() -> None:
    case = random_case()
    p = case["logits"].softmax(1)
    target = case["target"].masked_fill(case["target"] == 3, 0)  # class 3 is absent
    dices, tverskys = [], []
    for k in (0, 1, 2, 4):
        true = (target == k).double()
        tp, fn, fp = (p[:, k] * true).sum(), ((1 - p[:, k]) * true).sum(), (p[:, k] * (1 - true)).sum()
        dices.append(1 - (2 * tp + 1e-3) / (p[:, k].sum() + true.sum() + 1e-3))
        tverskys.append((1 - (tp + 1e-6) / (tp + 0.7 * fn + 0.3 * fp + 1e-6)) ** (4 / 3))
    sums = pixel_sums(case["logits"], target)
    assert dice(sums).item() == pytest.approx(torch.stack(dices).mean().item(), rel=1e-12)
    assert focal_tversky(sums).item() == pytest.approx(torch.stack(tverskys).mean().item(), rel=1e-12)
    assert dice(sums, first=1).item() == pytest.approx(torch.stack(dices[1:]).mean().item(), rel=1e-12)


def test_focal_against_its_formula_and_at_gamma_0_the_cross_entropy() -> None:
    case = random_case(4)
    p = case["logits"].softmax(1).numpy()
    true = np.take_along_axis(p, case["target"].numpy()[:, None], axis=1)[:, 0]
    for gamma in (0.5, 2.0, 3.5):
        wanted = np.mean(-((1 - true) ** gamma) * np.log(true))
        assert focal(pixel_map(case["logits"], case["target"]), gamma).item() == pytest.approx(wanted, rel=1e-10)
    values = pixel_map(case["logits"], case["target"], case["thin"].bool())
    assert focal(values, 0).item() == pytest.approx(cross_entropy(values.sums).item(), rel=1e-12)


def test_tversky_between_dice_and_focal_tversky() -> None:
    sums = pixel_sums(random_case(5)["logits"], random_case(5)["target"])
    halves = tversky(sums, alpha=0.5, beta=0.5, smooth=0)
    assert halves.item() == pytest.approx(dice(sums, smooth=0).item(), rel=1e-12)
    assert tversky(sums).item() == pytest.approx(focal_tversky(sums, gamma=1).item(), rel=1e-12)
    one = PixelSums(*(part[2:3] for part in (sums.nll, sums.hits, sums.predicted, sums.true)))
    assert focal_tversky(one, gamma=0.75).item() == pytest.approx(tversky(one).item() ** 0.75, rel=1e-12)


def test_the_original_pulls_nowhere_where_it_is_surely_wrong() -> None:
    logits = torch.tensor([[20.0, 0.0], [-20.0, 0.0]]).T.reshape(1, 2, 1, 2).requires_grad_()
    target = torch.ones((1, 1, 2), dtype=torch.long)  # the first pixel is surely taken for background
    values = pixel_map(logits, target)
    original, right = (torch.autograd.grad(cross_entropy(s), logits, retain_graph=True)[0][0, 1, 0, 0]
                       for s in (values.clamped, values.sums))  # fmt: skip
    assert original == 0
    assert right.item() == pytest.approx(-0.5)


def test_binary_tversky_weighs_missed_pixels_more_than_invented_ones() -> None:
    target = torch.zeros((1, 8, 8), dtype=torch.long)
    target[:, :4] = 1
    missed, invented = (torch.full((1, 2, 8, 8), -9.0) for _ in range(2))
    missed[:, 1, :2] = 9
    invented[:, 1, :6] = 9
    for maps in (missed, invented):
        maps[:, 0] = -maps[:, 1]
    losses = [focal_tversky(pixel_sums(maps, target), first=1).item() for maps in (missed, invented)]
    assert losses[0] == pytest.approx((1 - 16 / (16 + 0.7 * 16)) ** (4 / 3), rel=1e-4)
    assert losses[1] == pytest.approx((1 - 32 / (32 + 0.3 * 16)) ** (4 / 3), rel=1e-4)


def test_perfect_maps_lose_nothing_and_have_finite_gradients() -> None:
    target = torch.arange(64).reshape(1, 8, 8) % 3
    logits = (200.0 * functional.one_hot(target, 3).permute(0, 3, 1, 2)).requires_grad_()
    sums = pixel_sums(logits, target)
    loss = cross_entropy(sums) + dice(sums) + focal_tversky(sums)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_half_precision_is_summed_in_single() -> None:
    logits = torch.zeros((4, 2, 256, 256), dtype=torch.bfloat16)
    sums = pixel_sums(logits, torch.ones((4, 256, 256), dtype=torch.uint8))
    assert sums.true.tolist() == [0, 4 * 65536]
    assert cross_entropy(sums).item() == pytest.approx(np.log(2), rel=1e-6)


def test_msge_looks_along_the_axis_that_each_map_changes_along() -> None:
    ramp = torch.linspace(-1, 1, 16)
    x_map = ramp.expand(16, 16)
    true = torch.stack([x_map, x_map.T])[None]
    inside = torch.zeros((1, 16, 16), dtype=torch.bool)
    inside[:, 4:12, 4:12] = True
    flat = torch.zeros_like(true)
    assert hv_msge(flat, true, inside).item() > 0.1
    assert hv_msge(flat, true, inside, original=True).item() == pytest.approx(0, abs=1e-10)


def test_msge_of_a_slope_is_the_filters_response() -> None:
    case = random_case(3)
    difference = (case["hv"] - case["true_hv"]).numpy()
    padded = np.pad(difference, ((0, 0), (0, 0), (2, 2), (2, 2)))
    total = 0.0
    inside = case["thin"].numpy().astype(bool)
    for n, y, x in np.argwhere(inside):
        for channel in (0, 1):
            slope = 0.0
            for dy in range(-2, 3):
                for dx in range(-2, 3):
                    step = (dx, dy)[channel]
                    slope += step / (dy**2 + dx**2 + 1e-15) * padded[n, channel, y + 2 + dy, x + 2 + dx]
            total += slope**2
    wanted = total / (2 * inside.sum())
    assert hv_msge(case["hv"], case["true_hv"], case["thin"]).item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("name", MASKED)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    case = {key: value[:, ..., :6, :7] for key, value in random_case(1).items()}
    valid = torch.ones((2, 6, 7), dtype=torch.bool)
    valid[:, 5:] = False
    raw = raw_of(name)

    def loss(values: Tensor) -> Tensor:
        return MASKED[name](case | {raw: values}, valid)

    assert torch.autograd.gradcheck(loss, (case[raw].clone().requires_grad_(),))
