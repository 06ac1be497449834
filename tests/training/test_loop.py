from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from slideloom.artefacts.tables import check_table, read_table
from slideloom.config.model import DecoderConfig
from slideloom.errors import SlideloomError
from slideloom.training import loop
from slideloom.training.checkpoint import load_decoder, read_meta
from slideloom.training.history import HISTORY
from slideloom.training.job import TrainJob
from slideloom.training.loop import train
from slideloom.training.stored import SlideData

MakeJob = Callable[..., TrainJob]


def history(place: Path) -> dict[str, list[Any]]:
    table = read_table(HISTORY, place.parent / "history.parquet")
    columns: dict[str, list[Any]] = table.to_pydict()
    return columns


def timeless(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: values for name, values in rows.items() if name not in ("seconds", "train_patches_per_s")}


def test_training_learns_and_tells_its_story(
    make_job: MakeJob, cohort: dict[str, SlideData], caplog: pytest.LogCaptureFixture
) -> None:
    decoder = DecoderConfig(width=0.1)
    slides = (cohort["a"], cohort["b"])
    job = make_job(train=slides, decoder=decoder, training={"epochs": 7, "lr": 5e-3}, loss={"class_weights": True})
    before = torch.get_num_threads(), torch.get_rng_state()
    with caplog.at_level(logging.INFO):
        place = train(job)
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1]), "the global generator is left alone"
    assert sorted(path.name for path in place.parent.iterdir()) == ["decoder.safetensors", "history.parquet"]
    rows = history(place)
    assert rows["epoch"] == list(range(7))
    assert rows["train_loss"][-1] < 0.6 * rows["train_loss"][0]
    assert rows["val_dice_binary"][-1] > 0.7
    assert rows["lr"][0] == 5e-3 > rows["lr"][1]
    assert sum(rows["is_best"]) == 1
    best = rows["is_best"].index(True)
    assert rows["val_loss"][best] == min(rows["val_loss"])
    assert all(value is not None for name in rows for value in rows[name])
    decoder, meta = load_decoder(place)
    assert meta.training["best_epoch"] == best
    assert meta.training["n_train_patches"] == 21
    assert meta.training["n_val_slides"] == 1
    assert meta.classes == job.classes
    assert meta.encoder["weights"] == "none"
    assert meta.encoder["markers"] == ["DNA", "CD3", "CD20"]
    assert meta.statistics is None, "each slide has its own"
    assert meta.grid["tile_px"] == 32
    assert meta.training["class_weights"][0] < meta.training["class_weights"][1]
    assert not decoder.training
    assert "tiny/0 epoch 7/7: train " in caplog.text
    assert "% waiting for data)" in caplog.text


def test_the_best_epochs_weights_are_kept(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    figures = iter([3.0, 1.0, 2.0])
    real = loop._Training._validate

    def validate(self: Any, epoch: int) -> dict[str, float | None]:
        seen.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return real(self, epoch) | {"val_loss": next(figures)}

    monkeypatch.setattr(loop._Training, "_validate", validate)
    decoder, meta = load_decoder(train(make_job(training={"epochs": 3})))
    assert meta.training["best_epoch"] == 1
    assert all(torch.equal(value, seen[1][name]) for name, value in decoder.state_dict().items())
    assert not all(torch.equal(value, seen[2][name]) for name, value in decoder.state_dict().items())


@pytest.mark.parametrize(
    ("monitor", "figures", "best", "epochs"),
    [
        ("loss", [3.0, 1.0, 1.0, 2.0, 0.5], 1, 4),
        ("loss", [1.0, 0.9, 0.8, 0.7, 0.6], 4, 5),
        ("dice_macro", [0.1, 0.5, 0.4, 0.5, 0.9], 1, 4),
        ("dice_binary", [0.9, 0.1, 0.1, 0.1, 0.1], 0, 3),
    ],
)
def test_early_stopping_follows_the_monitor(
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    monitor: str,
    figures: list[float],
    best: int,
    epochs: int,
) -> None:
    values = iter(figures)
    scores = {"val_loss": 1.0, "val_dice_binary": 0.5, "val_dice_macro": 0.5, "val_hv_mse": 0.1}
    monkeypatch.setattr(loop._Training, "_validate", lambda self, epoch: scores | {f"val_{monitor}": next(values)})
    monkeypatch.setattr(loop._Training, "_train_epoch", lambda self, epoch: {"loss": 1.0})
    place = train(make_job(training={"epochs": 5, "patience": 2, "monitor": monitor}))
    assert read_meta(place).training["best_epoch"] == best
    assert len(history(place)["epoch"]) == epochs


def test_same_seed_same_bytes_and_other_seed_other_weights(make_job: MakeJob) -> None:
    decoder = DecoderConfig(width=0.1, dropout=0.2, branches="shared")
    first, second = (train(make_job(name, decoder=decoder, training={"epochs": 2})) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert timeless(history(first)) == timeless(history(second))
    third = train(make_job("c", decoder=decoder, training={"epochs": 2, "seed": 1}))
    one, three = (load_decoder(place)[0].state_dict() for place in (first, third))
    assert not any(torch.equal(one[name], three[name]) for name in one if name.endswith("0.weight"))


class Killed(Exception):
    pass


def die(*_: object) -> None:
    raise Killed


@pytest.mark.parametrize("spot", ["_train_epoch", "_report"])
def test_a_killed_run_goes_on_to_the_very_weights_of_an_unbroken_one(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, spot: str
) -> None:
    changes: dict[str, Any] = {
        "decoder": DecoderConfig(width=0.1, dropout=0.2, branches="shared"),
        "training": {"epochs": 3, "t_0": 2, "patience": 2},
        "save_every_s": 0.0,
    }
    whole = train(make_job("whole", **changes))
    real = getattr(loop._Training, spot)
    calls = iter(range(9))

    def dies(self: Any, *rest: Any) -> Any:
        result = real(self, *rest)
        if next(calls) == 1:
            raise Killed
        return result

    job = make_job("broken", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(loop._Training, spot, dies)
        with pytest.raises(Killed):
            train(job)
    assert [path.name for path in job.place.iterdir()] == ["resume.pt"]
    with caplog.at_level(logging.INFO):
        broken = train(job)
    assert "goes on after epoch 1" in caplog.text
    assert broken.read_bytes() == whole.read_bytes()
    assert timeless(history(broken)) == timeless(history(whole))
    assert not (job.place / "resume.pt").exists()


def test_a_state_of_another_training_or_a_broken_one_is_put_aside(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(make_job("whole"))
    job = make_job("other")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_decoder", die)
        with pytest.raises(Killed):
            train(make_job("other", training={"lr": 1e-4}, save_every_s=0.0))
    with caplog.at_level(logging.WARNING):
        assert train(job).read_bytes() == whole.read_bytes()
        (job.place / "resume.pt").write_bytes(b"half a fi")
        assert train(job).read_bytes() == whole.read_bytes()
    assert "is of another training" in caplog.text
    assert "cannot be read" in caplog.text


def test_a_state_is_not_gone_on_from_when_the_stores_content_changed(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(training={"epochs": 1}, save_every_s=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_decoder", die)
        with pytest.raises(Killed):
            train(job)
    with caplog.at_level(logging.INFO):
        train(dataclasses.replace(job, inputs_key="new"))
    assert "goes on" not in caplog.text
    assert "epoch 1/1" in caplog.text


def test_reading_from_disk_with_several_threads_changes_nothing(make_job: MakeJob) -> None:
    held = train(make_job("a", training={"epochs": 1}))
    read = train(make_job("b", training={"epochs": 1}, memory_bytes=0, read_threads=3))
    assert held.read_bytes() == read.read_bytes()


def test_without_validation_the_training_loss_decides_and_that_is_said(
    make_job: MakeJob, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        place = train(make_job(val=(), training={"monitor": "dice_macro"}))
    assert "no validation slides; the training loss chooses" in caplog.text
    rows = history(place)
    assert read_meta(place).training["monitor"] == "train_loss"
    assert rows["val_loss"] == rows["val_dice_binary"] == [None] * 2
    assert rows["is_best"].index(True) == int(np.argmin(rows["train_loss"]))


@pytest.mark.parametrize("spoil", ["loss", "weights"])
def test_divergence_is_told_with_its_epoch_and_terms(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    if spoil == "loss":
        real = loop.total_loss

        def wild(*arguments: Any) -> Any:
            loss, terms = real(*arguments)
            return loss * math.inf, terms | {"hv_mse": terms["hv_mse"] * math.nan}

        monkeypatch.setattr(loop, "total_loss", wild)
    else:

        def poisoned(self: Any, epoch: int) -> dict[str, float]:
            nn.init.constant_(next(self.model.parameters()), math.nan)
            self._check_weights(epoch)
            return {}

        monkeypatch.setattr(loop._Training, "_train_epoch", poisoned)
    job = make_job()
    with caplog.at_level(logging.ERROR), pytest.raises(SlideloomError, match="not finite") as caught:
        train(job)
    assert caught.value.code == "diverged"
    assert "epoch 0" in str(caught.value)
    assert "not finite" in caplog.text
    assert spoil == "weights" or "hv_mse nan" in str(caught.value)
    assert not (job.place / "decoder.safetensors").exists()


def test_what_cannot_be_trained_is_refused(make_job: MakeJob, cohort: dict[str, SlideData], tmp_path: Path) -> None:
    ghost = SlideData("ghost", tmp_path / "p", tmp_path / "t", tmp_path / "e")
    cases: list[tuple[TrainJob, str]] = [
        (make_job(train=(ghost,)), "no_training_slides"),
        (make_job(train=()), "no_training_slides"),
        (make_job(heads=("nucleus",), training={"monitor": "dice_macro"}), "monitor_undefined"),
        (make_job(loss={"boundary": 0}), "no_loss"),
    ]
    for job, code in cases:
        with pytest.raises(SlideloomError) as caught:
            train(job)
        assert caught.value.code == code


def test_a_monitor_without_a_value_is_refused(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.PooledScores, "figures", lambda self: {"dice_binary": None})
    with pytest.raises(SlideloomError, match="val_dice_binary has no value") as caught:
        train(make_job(training={"monitor": "dice_binary"}))
    assert caught.value.code == "monitor_undefined"


@pytest.mark.parametrize(
    "decoder",
    [
        DecoderConfig(width=0.1, skips=False, image_skip=False),
        DecoderConfig(width=0.1, branches="separate"),
    ],
)
def test_every_kind_of_decoder_trains(make_job: MakeJob, decoder: DecoderConfig) -> None:
    place = train(make_job(decoder=decoder, heads=("nucleus", "boundary"), training={"epochs": 1}))
    assert load_decoder(place)[1].recipe["config"] == decoder.model_dump(mode="json")
    rows = history(place)
    assert rows["train_hv_mse"] == rows["val_dice_macro"] == [None]


def test_bf16_trains(make_job: MakeJob) -> None:
    rows = history(train(make_job(training={"epochs": 3, "precision": "bf16"})))
    assert rows["train_loss"][-1] < rows["train_loss"][0]


def test_history_is_the_documented_table(make_job: MakeJob) -> None:
    place = train(make_job(training={"epochs": 1}))
    check_table(HISTORY, pq.read_table(place.parent / "history.parquet"))
    assert HISTORY.names[:4] == ("epoch", "lr", "seconds", "train_patches_per_s")
    assert len(HISTORY.names) == len(set(HISTORY.names))


@pytest.mark.slow
def test_shuffled_targets_teach_nothing(make_job: MakeJob, cohort: dict[str, SlideData]) -> None:
    slides, decoder = (cohort["a"], cohort["b"]), DecoderConfig(width=0.1)
    training = {"epochs": 12, "lr": 5e-3}
    true, shuffled = (
        history(
            train(make_job(str(flag), decoder=decoder, train=slides, training=training | {"shuffle_targets": flag}))
        )
        for flag in (False, True)
    )
    assert max(true["val_dice_macro"]) > 0.8
    assert max(shuffled["val_dice_macro"]) < 0.5
    assert min(shuffled["val_loss"]) > 2 * min(true["val_loss"])
