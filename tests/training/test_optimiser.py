from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from slideloom.config.model import TrainingConfig
from slideloom.errors import SlideloomError
from slideloom.training.distributed import ALONE
from slideloom.training.optimiser import Stepper, autocast, check_precision, make_optimiser

CPU = torch.device("cpu")


def layer(seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(5, 1)


def examples(count: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(1)
    return torch.randn((count, 5), generator=drawn), torch.randn((count, 1), generator=drawn)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ((model(x) - y) ** 2).mean()


def stepper_of(model: nn.Module, scaler: torch.amp.GradScaler | None = None, **training: object) -> Stepper:
    config = TrainingConfig(**{"lr": 0.1} | training)
    stepper = Stepper(make_optimiser(config, list(model.parameters())), config, CPU, ALONE, scaler)
    stepper.begin([])
    return stepper


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("kind", ["adamw", "adam"])
def test_the_optimisers_are_the_textbooks(kind: str) -> None:
    x, y = examples(8)
    model = layer()
    weight = model.weight.detach().double().clone()
    stepper = stepper_of(model, optimiser=kind, weight_decay=0.3, betas=(0.8, 0.95))
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, 6):
        loss = loss_of(model, x, y)
        (gradient,) = torch.autograd.grad(loss, [model.weight], retain_graph=True)
        gradient = gradient.double()
        if kind == "adam":
            gradient = gradient + 0.3 * weight
        else:
            weight = weight * (1 - 0.1 * 0.3)
        first, second = 0.8 * first + 0.2 * gradient, 0.95 * second + 0.05 * gradient**2
        weight = weight - 0.1 * (first / (1 - 0.8**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
        stepper.backward(loss, 1.0)
        stepper.step()
        torch.testing.assert_close(model.weight.double(), weight, rtol=1e-5, atol=1e-6)


def test_batches_added_up_step_like_all_their_patches_at_once() -> None:
    x, y = examples(11)
    whole, parts = layer(), layer()
    one, many = stepper_of(whole), stepper_of(parts)
    for _ in range(3):
        one.backward(loss_of(whole, x, y), 1.0)
        one.step()
        for cut in (slice(0, 4), slice(4, 8), slice(8, 11)):  # the last is shorter, and weighs less
            many.backward(loss_of(parts, x[cut], y[cut]), (cut.stop - cut.start) / 11)
        many.step()
        torch.testing.assert_close(whole.weight, parts.weight, rtol=1e-5, atol=1e-6)
    assert one.figures()["grad_norm"] == pytest.approx(many.figures()["grad_norm"], rel=1e-5)


def test_a_long_gradient_is_clipped_over_all_weights_and_told_in_full() -> None:
    x, y = examples(8)
    model = layer()
    config = TrainingConfig(clip_norm=0.5)
    steps = torch.optim.SGD(model.parameters(), lr=1.0)
    stepper = Stepper(steps, config, CPU, ALONE)
    stepper.begin([])
    before = torch.cat([part.detach().reshape(-1).clone() for part in model.parameters()])
    loss = 100 * loss_of(model, x, y)
    gradient = torch.cat(
        [part.reshape(-1) for part in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)]
    )
    stepper.backward(loss, 1.0)
    stepper.step()
    moved = before - torch.cat([part.detach().reshape(-1) for part in model.parameters()])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-4)
    torch.testing.assert_close(moved / moved.norm(), gradient / gradient.norm())
    assert stepper.figures() == {"grad_norm": pytest.approx(gradient.norm().item(), rel=1e-5), "skipped_steps": 0}


def test_groups_have_their_own_rate_and_frozen_weights_stay() -> None:
    decoder, encoder = layer(0), layer(1)
    config = TrainingConfig(lr=0.5, encoder_lr=0.01, weight_decay=0.1)
    optimiser = make_optimiser(config, list(decoder.parameters()), list(encoder.parameters()))
    assert [group["lr"] for group in optimiser.param_groups] == [0.5, 0.01]
    encoder.requires_grad_(False)
    before = encoder.weight.clone()
    stepper = Stepper(optimiser, config, CPU, ALONE)
    x, y = examples(4)
    for frozen in (True, False):
        encoder.requires_grad_(not frozen)
        stepper.begin([])
        stepper.backward(loss_of(decoder, x, y) + loss_of(encoder, x, y), 1.0)
        stepper.step()
        assert torch.equal(encoder.weight, before) == frozen
    assert (encoder.weight - before).abs().max() < 0.02


def test_scaled_losses_take_the_same_steps() -> None:
    x, y = examples(8)
    plain, scaled = layer(), layer()
    one = stepper_of(plain, clip_norm=0.1)
    other = stepper_of(scaled, torch.amp.GradScaler("cpu", init_scale=2.0**10), clip_norm=0.1)
    for _ in range(3):
        for stepper, model in ((one, plain), (other, scaled)):
            stepper.backward(loss_of(model, x, y), 1.0)
            stepper.step()
    assert equal(plain, scaled), "the scale is a power of two"
    assert one.figures() == other.figures()


def test_a_step_without_a_finite_gradient_is_skipped_and_counted_and_the_scale_halved() -> None:
    x, y = examples(8)
    model, reference = layer(), layer()
    stepper = stepper_of(model, torch.amp.GradScaler("cpu", init_scale=2.0**10))
    other = stepper_of(reference)
    for wild in (False, True, False):
        stepper.backward(loss_of(model, x, y) * (math.inf if wild else 1.0), 1.0)
        stepper.step()
        if not wild:
            other.backward(loss_of(reference, x, y), 1.0)
            other.step()
    assert equal(model, reference)
    assert stepper.scaler.get_scale() == 2.0**9
    assert stepper.figures() == other.figures() | {"skipped_steps": 1}
    assert not stepper.hopeless
    stepper.begin([])
    for _ in range(40):
        stepper.backward(loss_of(model, x, y) * math.nan, 1.0)
        stepper.step()
    assert stepper.figures() == {"grad_norm": None, "skipped_steps": 40}
    assert stepper.hopeless
    assert equal(model, reference)


def test_half_precision_is_refused_where_there_is_none() -> None:
    with pytest.raises(SlideloomError, match="fp16 on a CPU") as caught:
        check_precision("fp16", CPU)
    assert caught.value.code == "precision_needs_gpu"
    check_precision("fp16", torch.device("cuda:0"))
    check_precision("bf16", CPU)
    model, (x, _) = layer(), examples(2)
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    for precision, dtype in kinds.items():
        with autocast(precision, CPU):
            assert model(x).dtype == dtype
