from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import nn

from slideloom.artefacts.tables import check_table, read_table
from slideloom.config.model import DecoderConfig, SamplingConfig
from slideloom.errors import SlideloomError
from slideloom.training import epoch, loop, optimiser
from slideloom.training.batch import Batch
from slideloom.training.checkpoint import load_decoder, read_meta
from slideloom.training.epoch import Passes
from slideloom.training.history import HISTORY
from slideloom.training.job import TrainJob
from slideloom.training.live import Front
from slideloom.training.loop import train
from slideloom.training.scores import PooledScores
from slideloom.training.stored import SlideData
from slideloom.training.terms import terms_of

MakeJob = Callable[..., TrainJob]


def history(place: Path) -> dict[str, list[Any]]:
    table = read_table(HISTORY, place.parent / "history.parquet")
    columns: dict[str, list[Any]] = table.to_pydict()
    return columns


def timeless(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    clock = ("seconds", "train_patches_per_s", "wait_share", "encode_share")
    return {name: values for name, values in rows.items() if name not in clock}


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
    told = set(HISTORY.names) - {"encoder_lr", "encode_share"}
    told -= {name for name in told if name.startswith(("train_", "val_")) and not rows[name][0]}
    assert all(value is not None for name in told for value in rows[name])
    assert {f"train_{term}" for term in terms_of(job.heads, job.loss)} <= told
    assert {"val_dice_binary", "val_dice_macro", "val_hv_mse", "grad_norm", "wait_share"} <= told
    assert rows["encoder_lr"] == rows["encode_share"] == [None] * 7
    assert rows["skipped_steps"] == [0] * 7
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


def watched(monkeypatch: pytest.MonkeyPatch, column: str, figures: list[float]) -> list[dict[str, torch.Tensor]]:
    """Put figures in place of a validation figure, epoch by epoch; the list fills with the weights judged so."""
    seen: list[dict[str, torch.Tensor]] = []
    values = iter(figures)
    real = Passes.validate

    def validate(self: Any, feed: Any, epoch: int) -> dict[str, float | None]:
        seen.append({name: value.clone() for name, value in self._model.state_dict().items()})
        return real(self, feed, epoch) | {column: next(values)}

    monkeypatch.setattr(Passes, "validate", validate)
    return seen


@pytest.mark.parametrize(("keep", "kept"), [("best", 1), ("last", 2)])
@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_best_or_the_last_epochs_weights_are_kept(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, keep: str, kept: int, ema: float | None
) -> None:
    seen = watched(monkeypatch, "loss", [3.0, 1.0, 2.0])
    place = train(make_job(training={"epochs": 3, "keep": keep, "ema": ema}))
    decoder, meta = load_decoder(place)
    assert (meta.training["best_epoch"], meta.training["best"], meta.training["kept_epoch"]) == (1, 1.0, kept)
    assert all(torch.equal(value, seen[kept][name]) for name, value in decoder.state_dict().items())
    assert not all(torch.equal(value, seen[3 - kept][name]) for name, value in decoder.state_dict().items())
    assert history(place)["is_best"] == [epoch == kept for epoch in range(3)]


@pytest.mark.parametrize(
    ("monitor", "figures", "best", "epochs"),
    [
        ("loss", [3.0, 1.0, 1.0, 2.0, 0.5], 1, 4),
        ("loss", [1.0, 0.9, 0.8, 0.7, 0.6], 4, 5),
        ("dice_macro", [0.1, 0.5, 0.4, 0.5, 0.9], 1, 4),
        ("hv_mse", [0.5, 0.4, 0.5, 0.4, 0.1], 1, 4),
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
    scores = {"loss": 1.0, "dice_binary": 0.5, "dice_macro": 0.5, "hv_mse": 0.1}
    monkeypatch.setattr(Passes, "validate", lambda *_: scores | {monitor: next(values)})
    monkeypatch.setattr(Passes, "train", lambda *_: {"loss": 1.0})
    place = train(make_job(training={"epochs": 5, "patience": 2, "monitor": monitor}))
    assert read_meta(place).training["best_epoch"] == best
    assert len(history(place)["epoch"]) == epochs


def test_the_rate_falls_on_a_plateau_of_the_monitor(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    watched(monkeypatch, "dice_macro", [0.5, 0.5, 0.4, 0.6, 0.6, 0.6])
    training = {"schedule": "plateau", "plateau_epochs": 2, "monitor": "dice_macro", "epochs": 6, "lr": 1e-3}
    place = train(make_job(heads=("nucleus", "classes"), training=training))
    assert history(place)["lr"] == [1e-3, 1e-3, 1e-3, 5e-4, 5e-4, 5e-4]


def test_same_seed_same_bytes_and_other_seed_other_weights(make_job: MakeJob) -> None:
    decoder = DecoderConfig(width=0.1, dropout=0.2, branches="shared")
    first, second = (train(make_job(name, decoder=decoder, training={"epochs": 2})) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert timeless(history(first)) == timeless(history(second))
    third = train(make_job("c", decoder=decoder, training={"epochs": 2, "seed": 1}))
    one, three = (load_decoder(place)[0].state_dict() for place in (first, third))
    assert not any(torch.equal(one[name], three[name]) for name in one if name.endswith("0.weight"))


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
        real = epoch.total_loss

        def wild(*arguments: Any) -> Any:
            loss, terms = real(*arguments)
            return loss * math.inf, terms | {"hv_mse": terms["hv_mse"] * math.nan}

        monkeypatch.setattr(epoch, "total_loss", wild)
    else:

        def poisoned(self: Any, *_: Any) -> dict[str, float]:
            nn.init.constant_(next(self._model.parameters()), math.nan)
            return {"loss": 1.0}

        monkeypatch.setattr(Passes, "train", poisoned)
    job = make_job()
    with caplog.at_level(logging.ERROR), pytest.raises(SlideloomError, match="not finite") as caught:
        train(job)
    assert caught.value.code == "diverged"
    assert "epoch 0" in str(caught.value)
    assert "not finite" in caplog.text
    assert spoil == "weights" or "by hv_mse: " in str(caught.value)
    assert not (job.place / "decoder.safetensors").exists()


def test_what_cannot_be_trained_is_refused(make_job: MakeJob, cohort: dict[str, SlideData], tmp_path: Path) -> None:
    ghost = SlideData("ghost", tmp_path / "p", tmp_path / "t", tmp_path / "e")
    cases: list[tuple[TrainJob, str]] = [
        (make_job(train=(ghost,)), "no_training_slides"),
        (make_job(train=()), "no_training_slides"),
        (make_job(heads=("nucleus",), training={"monitor": "dice_macro"}), "monitor_undefined"),
        (make_job(heads=("nucleus",), val=(), training={"monitor": "hv_mse"}), "monitor_undefined"),
        (make_job(loss={"boundary": 0}), "no_loss"),
        (make_job(train=(ghost,), training={"precision": "fp16"}), "precision_needs_gpu"),
    ]
    for job, code in cases:
        with pytest.raises(SlideloomError) as caught:
            train(job)
        assert caught.value.code == code


def test_a_monitor_without_a_value_is_refused(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PooledScores, "figures", lambda self: {"dice_binary": None})
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


def test_accumulated_batches_are_the_steps_of_a_larger_one(
    make_job: MakeJob, cohort: dict[str, SlideData], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without batch normalisation, and with a loss that is a mean over patches: steps of 4 and 5 patches."""
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, values: values)
    monkeypatch.setattr(optimiser, "AdamW", PlainDescent)
    loss = dict.fromkeys(("cross_entropy", "dice", "focal_tversky", "hv_msge"), 0) | {"hv_mse": 1.0}
    found = {}
    for size, accumulate in ((4, 1), (2, 2), (2, 1)):
        training = {"batch_size": size, "accumulate": accumulate, "epochs": 2, "lr": 0.05, "keep": "last"}
        job = make_job(
            f"{size}x{accumulate}", heads=("hv",), train=(cohort["b"],), val=(), loss=loss, training=training
        )
        place = train(job)
        found[size, accumulate] = load_decoder(place)[0].state_dict(), history(place)["grad_norm"]
    (whole, norms), (parts, part_norms), (small, _) = found[4, 1], found[2, 2], found[2, 1]
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[name], rtol=1e-4, atol=1e-6)
    assert norms == pytest.approx(part_norms, rel=1e-4)
    assert any(not torch.allclose(value, small[name], rtol=1e-3, atol=1e-5) for name, value in whole.items())


class PlainDescent(torch.optim.SGD):
    """Steps that grow with the gradient, so that its scale shows."""

    def __init__(self, parameters: Any, lr: float, **_: Any) -> None:
        super().__init__(parameters, lr=lr)


@pytest.mark.parametrize(("name", "batch_size"), [("single", 16), ("t_only", 16), ("t_only", 1)])
def test_few_patches_train_whatever_the_batch(
    make_job: MakeJob, oddities: dict[str, SlideData], name: str, batch_size: int
) -> None:
    """One slide, of one patch or fewer patches than a batch; and batches of one."""
    job = make_job(train=(oddities[name],), val=(oddities["single"],), training={"batch_size": batch_size, "epochs": 6})
    rows = history(train(job))
    assert rows["train_loss"][-1] < 0.8 * rows["train_loss"][0]
    assert all(np.isfinite(rows["val_loss"]))


def test_a_class_that_no_patch_shows_is_named_and_weighs_nothing(
    make_job: MakeJob, oddities: dict[str, SlideData], caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(train=(oddities["t_only"],), loss={"class_weights": True}, training={"epochs": 1})
    with caplog.at_level(logging.WARNING):
        meta = read_meta(train(job))
    assert "no training patch shows the class B; the decoder cannot learn it" in caplog.text
    assert meta.training["absent_classes"] == ["B"]
    assert meta.training["class_weights"][2] == 0 < meta.training["class_weights"][1]


def test_patches_without_a_nucleus_train_and_that_is_said(
    make_job: MakeJob, oddities: dict[str, SlideData], caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(train=(oddities["bare"],), training={"epochs": 1}, loss={"class_weights": True})
    with caplog.at_level(logging.WARNING):
        place = train(job)
    assert "none of 4 training patches shows a nucleus" in caplog.text
    assert "shows the class" not in caplog.text
    assert read_meta(place).training["n_train_nuclei"] == 0
    assert np.isfinite(history(place)["train_loss"][0])


def test_patches_are_drawn_by_their_weights(
    make_job: MakeJob, cohort: dict[str, SlideData], oddities: dict[str, SlideData], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[NDArray[np.intp]] = []
    real = Passes.train

    def spy(self: Any, feed: Any, order: Any, *rest: Any) -> dict[str, float]:
        drawn.extend(order)
        return real(self, feed, order, *rest)

    monkeypatch.setattr(Passes, "train", spy)
    slides = (oddities["bare"], oddities["t_only"], cohort["b"])
    sampling = SamplingConfig(gamma=1.0, by="group", column="platform")
    job = make_job(
        train=slides, sampling=sampling, training={"epochs": 6}, val=(), decoder=DecoderConfig(kind="linear")
    )
    with pytest.raises(SlideloomError, match="3 training slides have no platform, such as bare") as caught:
        train(job)
    assert caught.value.code == "sampling_groups"
    train(replace(job, groups={"bare": "x", "t_only": "y", "b": "y"}))
    seen = np.concatenate(drawn)
    assert seen.size == 6 * 17, "an epoch has as many patches as there are"
    first = (seen < 4).mean()  # 4 of 17 patches, half of the groups
    assert 0.35 < first < 0.65


class Turn(Front):
    """An encoder behind stored tokens: a matrix, at first one."""

    def __init__(self, unfreeze_epoch: int | None) -> None:
        self.module = nn.Conv2d(3, 3, 1, bias=False).requires_grad_(False)
        nn.init.dirac_(self.module.weight)
        self._unfreeze_epoch, self.trained, self._trains = unfreeze_epoch, False, False
        self.adapter = None

    def fit(self, slides: Any) -> None:
        pass

    def prepare(self, batch: Batch, slides: Any, augmentation: Any = None, rng: Any = None) -> Batch:
        with torch.set_grad_enabled(augmentation is not None and self._trains):
            return replace(batch, tokens=[self.module(batch.tokens[3])] * 4)


@pytest.fixture
def with_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "make_front", lambda job, *_: Turn(job.training.unfreeze_epoch))


@pytest.mark.parametrize("ema", [None, 0.5])
@pytest.mark.usefixtures("with_encoder")
def test_an_encoder_trains_from_its_epoch_on_at_its_own_rate(
    make_job: MakeJob, caplog: pytest.LogCaptureFixture, ema: float | None
) -> None:
    training = {"epochs": 4, "unfreeze_epoch": 2, "encoder_lr": 1e-4, "schedule": "exponential", "ema": ema}
    with caplog.at_level(logging.INFO):
        place = train(make_job(training=training | {"keep": "last", "weight_decay": 0.5}))
    rows, meta = history(place), read_meta(place)
    assert rows["encoder_lr"] == [None, None, pytest.approx(2.5e-5), pytest.approx(1.25e-5)]
    assert all(0 < share < 1 for share in rows["encode_share"])
    assert "% encoding" in caplog.text
    assert meta.encoder_trained
    with safe_open(place, framework="pt") as file:
        (name,) = (name for name in file.keys() if name.startswith("encoder."))  # noqa: SIM118 - not a mapping
        moved = (file.get_tensor(name)[..., 0, 0] - torch.eye(3)).abs().max().item()
    assert 0 < moved < 6 * 4e-5, "6 steps at these rates"


@pytest.mark.usefixtures("with_encoder")
@pytest.mark.parametrize("unfreeze_epoch", [None, 3])
def test_an_encoder_that_was_never_trained_is_not_saved(make_job: MakeJob, unfreeze_epoch: int | None) -> None:
    place = train(make_job(training={"epochs": 2, "unfreeze_epoch": unfreeze_epoch}))
    assert not read_meta(place).encoder_trained
    load_decoder(place)
    assert history(place)["encoder_lr"] == [None, None]


@pytest.mark.usefixtures("with_encoder")
def test_the_encoder_of_the_best_epoch_is_kept(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    real, figures = Passes.validate, iter([3.0, 1.0, 2.0])

    def validate(self: Any, feed: Any, epoch: int) -> dict[str, float | None]:
        seen.append(feed._front.module.weight.detach().clone())
        return real(self, feed, epoch) | {"loss": next(figures)}

    monkeypatch.setattr(Passes, "validate", validate)
    place = train(make_job(training={"epochs": 3, "unfreeze_epoch": 0, "ema": 0.9}))
    with safe_open(place, framework="pt") as file:
        kept = file.get_tensor("encoder.weight")
    assert torch.equal(kept, seen[1])
    assert not torch.equal(kept, seen[2])


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
