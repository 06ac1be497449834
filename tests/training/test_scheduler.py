from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, ExponentialLR, ReduceLROnPlateau

from slideloom.config.model import TrainingConfig
from slideloom.training.scheduler import cosine_warm_restarts, learning_rate


def toy(lr: float = 5e-4) -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)


@pytest.mark.parametrize("t_0", [1, 3, 20])
def test_the_rate_is_pytorchs_schedulers(t_0: int) -> None:
    optimiser = toy()
    scheduler = CosineAnnealingWarmRestarts(optimiser, T_0=t_0, eta_min=1e-6)
    for epoch in range(3 * t_0 + 2):
        rate = optimiser.param_groups[0]["lr"]
        assert cosine_warm_restarts(epoch, 5e-4, t_0, 1e-6) == pytest.approx(rate, rel=1e-9)
        assert learning_rate(epoch, TrainingConfig(t_0=t_0)) == cosine_warm_restarts(epoch, 5e-4, t_0, 1e-6)
        optimiser.step()
        scheduler.step()


def test_exponential_is_pytorchs_down_to_the_floor() -> None:
    optimiser = toy()
    scheduler = ExponentialLR(optimiser, gamma=0.7)
    training = TrainingConfig(schedule="exponential", decay=0.7, eta_min=1e-5)
    for epoch in range(20):
        rate = max(1e-5, optimiser.param_groups[0]["lr"])
        assert learning_rate(epoch, training) == pytest.approx(rate, rel=1e-9)
        optimiser.step()
        scheduler.step()
    assert learning_rate(19, training) == 1e-5


@given(
    values=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), max_size=30),
    patience=st.integers(1, 4),
    lower_is_better=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_plateau_is_pytorchs_with_one_epoch_less_of_patience(
    values: list[float], patience: int, lower_is_better: bool
) -> None:
    optimiser = toy()
    scheduler = ReduceLROnPlateau(
        optimiser, mode="min" if lower_is_better else "max", factor=0.5, patience=patience - 1, threshold=0,
        threshold_mode="abs", min_lr=1e-5, eps=0,
    )  # fmt: skip
    training = TrainingConfig(schedule="plateau", plateau_epochs=patience, eta_min=1e-5)
    for epoch in range(len(values) + 1):
        rate = learning_rate(epoch, training, values[:epoch], lower_is_better=lower_is_better)
        assert rate == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
        if epoch < len(values):
            scheduler.step(values[epoch])


def test_a_plateau_is_not_looked_for_in_the_warm_up() -> None:
    training = TrainingConfig(schedule="plateau", plateau_epochs=2, warmup_epochs=3, lr=1.0)
    past = [0.1, 0.9, 0.9, 0.9, 0.9, 0.9]
    assert [learning_rate(epoch, training, past[:epoch]) for epoch in range(7)] == [0.25, 0.5, 0.75, 1, 1, 1, 0.5]


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "exponential", "constant"])
def test_the_schedule_begins_at_the_peak_after_the_warm_up_and_is_only_put_off(schedule: Any) -> None:
    late = TrainingConfig(schedule=schedule, warmup_epochs=4, t_0=5, lr=1e-2)
    prompt = late.model_copy(update={"warmup_epochs": 0})
    past = [1.0] * 40
    warm = [learning_rate(epoch, late, past[:epoch]) for epoch in range(4)]
    assert warm == pytest.approx([2e-3, 4e-3, 6e-3, 8e-3])
    for epoch in range(20):
        put_off = learning_rate(epoch + 4, late, past[: epoch + 4])
        assert put_off == learning_rate(epoch, prompt, past[:epoch])
    assert learning_rate(4, late, past[:4]) == 1e-2


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "exponential", "constant"])
def test_another_peak_has_the_same_shape_and_a_peak_below_the_floor_stays(schedule: Any) -> None:
    training = TrainingConfig(schedule=schedule, warmup_epochs=2, t_0=4, lr=1.0, eta_min=0.0, plateau_epochs=2)
    floored = training.model_copy(update={"eta_min": 0.5})
    for epoch in range(15):
        past = [1.0] * epoch
        rate = learning_rate(epoch, training, past)
        assert learning_rate(epoch, training, past, peak=1e-3) == pytest.approx(1e-3 * rate)
        assert learning_rate(epoch, floored, past, peak=0.1) == (
            0.1 if epoch >= 2 else pytest.approx(0.1 * (epoch + 1) / 3)
        )
