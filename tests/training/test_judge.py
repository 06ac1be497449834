from __future__ import annotations

import logging
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from slideloom.errors import SlideloomError
from slideloom.training.job import TrainJob
from slideloom.training.judge import Judge
from slideloom.training.resume import TrainState

MakeJob = Callable[..., TrainJob]


@pytest.mark.parametrize(
    ("monitor", "figures", "best"),
    [
        ("loss", [3.0, 1.0, 1.0, 2.0], 1),
        ("hv_mse", [0.5, 0.2, 0.1, 0.3], 2),
        ("dice_macro", [0.1, 0.5, 0.4, 0.5], 1),
        ("dice_binary", [0.9, 0.1, 0.1, 0.1], 0),
    ],
)
def test_every_figure_has_its_direction(make_job: MakeJob, monitor: str, figures: list[float], best: int) -> None:
    judge = Judge(make_job(training={"monitor": monitor}), 1)
    state = TrainState("")
    for epoch, value in enumerate(figures):
        better = judge.is_best(state, {"epoch": epoch, f"val_{monitor}": value})
        assert better == (state.best_epoch == epoch)
    assert (state.best_epoch, state.best) == (best, figures[best])
    assert judge.lower_is_better == (monitor in ("loss", "hv_mse"))


@pytest.mark.parametrize("monitor", ["loss", "hv_mse", "dice_macro", "dice_binary"])
def test_without_validation_the_training_loss_is_monitored(make_job: MakeJob, monitor: str) -> None:
    judge = Judge(make_job(training={"monitor": monitor}), 0)
    assert (judge.monitor, judge.lower_is_better) == ("train_loss", True)


@pytest.mark.parametrize(("monitor", "head"), [("hv_mse", "hv"), ("dice_macro", "classes"), ("dice_binary", "nucleus")])
@pytest.mark.parametrize("n_val", [0, 3])
def test_the_figure_of_a_head_that_there_is_not_is_refused(
    make_job: MakeJob, monitor: str, head: str, n_val: int
) -> None:
    with pytest.raises(SlideloomError, match=f"{monitor} needs the {head} head") as caught:
        Judge(make_job(heads=("boundary",), training={"monitor": monitor}), n_val)
    assert caught.value.code == "monitor_undefined"


def test_patience_and_the_kept_epoch(make_job: MakeJob) -> None:
    for keep in ("best", "last"):
        judge = Judge(make_job(training={"patience": 2, "keep": keep}), 1)
        state = TrainState("", epochs_done=3, best=1.0, best_epoch=1)
        assert not judge.patience_spent(state)
        state.epochs_done = 4
        assert judge.patience_spent(state)
        assert judge.kept_epoch(state) == (1 if keep == "best" else 3)
    assert not Judge(make_job(training={"patience": None}), 1).patience_spent(state)


def test_divergence_names_the_terms_that_are_to_blame(make_job: MakeJob, caplog: pytest.LogCaptureFixture) -> None:
    judge = Judge(make_job(), 1)
    judge.check_finite({}, 0, "training")
    judge.check_finite({"loss": 1e30, "hv_mse": 0.0}, 0, "training")
    with caplog.at_level(logging.ERROR), pytest.raises(SlideloomError) as caught:
        judge.check_finite({"loss": math.inf, "nucleus_dice": 0.5, "hv_mse": math.nan}, 7, "validation")
    assert caught.value.code == "diverged"
    assert "the validation loss is not finite in epoch 7, by hv_mse: " in caught.value.what
    assert "hv_mse nan" in caplog.text
    assert "clip_norm" in caught.value.hint
    assert "bf16" not in caught.value.hint
    half = Judge(make_job(training={"precision": "fp16", "clip_norm": 1.0}), 1).scale_lost(3, 1e-5)
    assert (half.code, "clip_norm" in half.hint, "bf16" in half.hint) == ("diverged", False, True)


def test_weights_that_are_not_finite_are_named(make_job: MakeJob) -> None:
    judge, network = Judge(make_job(), 1), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    judge.check_weights(0, {"decoder": network})
    torch.nn.init.constant_(network[1].running_var, math.inf)
    with pytest.raises(SlideloomError, match=r"1 weights .* after epoch 4, such as decoder\.1\.running_var") as caught:
        judge.check_weights(4, {"decoder": network})
    assert caught.value.code == "diverged"
