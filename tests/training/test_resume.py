"""A training that is killed and begun again ends as one that was never interrupted."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from slideloom.artefacts.tables import read_table
from slideloom.config.model import AugmentationConfig, DecoderConfig, SamplingConfig
from slideloom.training import loop
from slideloom.training.batch import Batch
from slideloom.training.epoch import Passes
from slideloom.training.history import HISTORY
from slideloom.training.job import TrainJob
from slideloom.training.live import Front
from slideloom.training.loop import train
from slideloom.training.optimiser import Stepper
from slideloom.training.progress import Progress
from slideloom.training.resume import TrainState, load_state, save_state
from slideloom.training.stored import SlideData

MakeJob = Callable[..., TrainJob]
TINY = DecoderConfig(width=0.05, dropout=0.2, branches="shared")


def told(place: Path) -> dict[str, list[Any]]:
    columns = read_table(HISTORY, place.parent / "history.parquet").to_pydict()
    clock = ("seconds", "train_patches_per_s", "wait_share", "encode_share")
    return {name: values for name, values in columns.items() if name not in clock}


class Killed(Exception):
    pass


def die(*_: object) -> None:
    raise Killed


def dies_at(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, call: int) -> None:
    """End the program after a method was called so often."""
    real, calls = getattr(owner, method), iter(range(call + 1))

    def dies(self: Any, *rest: Any) -> Any:
        result = real(self, *rest)
        if next(calls) == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, method, dies)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {"t_0": 2, "patience": 2},
    "accumulate and clip": {"accumulate": 2, "clip_norm": 0.5, "optimiser": "adam"},
    "ema": {"ema": 0.8, "keep": "last"},
    "plateau": {"schedule": "plateau", "plateau_epochs": 1, "monitor": "dice_macro", "decay": 0.1},
    "warm-up": {"warmup_epochs": 2, "schedule": "exponential", "precision": "bf16"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_to_the_very_weights_of_an_unbroken_one(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Killed between two epochs, before the second one's state is saved, and in the midst of one."""
    changes = {"decoder": TINY, "training": {"epochs": 3} | KINDS[kind], "save_every_s": 0.0}
    changes |= {"heads": ("nucleus", "classes")}
    whole = train(make_job("whole", **changes))
    for owner, method, call in ((Progress, "report", 1), (Stepper, "step", 4)):
        job = make_job(method, **changes)
        with monkeypatch.context() as patch:
            dies_at(patch, owner, method, call)
            with pytest.raises(Killed):
                train(job)
        assert [path.name for path in job.place.iterdir()] == ["resume.pt"]
        with caplog.at_level(logging.INFO):
            caplog.clear()
            broken = train(job)
        assert "goes on after epoch" in caplog.text
        assert broken.read_bytes() == whole.read_bytes()
        assert told(broken) == told(whole)
        assert not (job.place / "resume.pt").exists()


def test_draws_and_augmentation_are_gone_on_with(
    make_job: MakeJob,
    cohort: dict[str, SlideData],
    oddities: dict[str, SlideData],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An encoder is trained, too, from the second epoch on."""
    monkeypatch.setattr(loop, "make_front", lambda job, *_: Scale(job.training.unfreeze_epoch))
    changes: dict[str, Any] = {
        "decoder": TINY,
        "heads": ("nucleus", "classes"),
        "training": {"epochs": 3, "unfreeze_epoch": 1, "encoder_lr": 1e-2, "ema": 0.9},
        "train": (cohort["b"],),
        "val": (oddities["single"],),
        "sampling": SamplingConfig(gamma=0.8),
        "augmentation": AugmentationConfig(channel_dropout=0.5),
        "save_every_s": 0.0,
    }
    whole = train(make_job("whole", **changes))
    for owner, method, call in ((Progress, "report", 0), (Passes, "validate", 1), (Stepper, "step", 5)):
        job = make_job(method, **changes)
        with monkeypatch.context() as patch:
            dies_at(patch, owner, method, call)
            with pytest.raises(Killed):
                train(job)
        assert train(job).read_bytes() == whole.read_bytes()
    plain = train(make_job("plain", **changes | {"augmentation": AugmentationConfig()}))
    assert plain.read_bytes() != whole.read_bytes()


class Scale(Front):
    """An encoder behind stored tokens: a factor a channel; augmentation drops channels by it."""

    def __init__(self, unfreeze_epoch: int | None) -> None:
        self.module = nn.Conv2d(3, 3, 1, groups=3, bias=False).requires_grad_(False)
        nn.init.ones_(self.module.weight)
        self._unfreeze_epoch, self.trained, self._trains = unfreeze_epoch, False, False
        self.adapter = None

    def fit(self, slides: Any) -> None:
        pass

    def prepare(self, batch: Batch, slides: Any, augmentation: Any = None, rng: Any = None) -> Batch:
        tokens = batch.tokens[3]
        if augmentation is not None and augmentation.channel_dropout:
            kept = rng.random((batch.n, 3, 1, 1)) >= augmentation.channel_dropout
            tokens = tokens * torch.from_numpy(kept).to(tokens.dtype)
        with torch.set_grad_enabled(augmentation is not None and self._trains):
            return replace(batch, tokens=[self.module(tokens)] * 4)


_PROGRAM = """
import os, pickle, signal, sys
sys.path[:] = pickle.loads(open(sys.argv[1], "rb").read())
from slideloom.training.loop import train
from slideloom.training.optimiser import Stepper
real, calls = Stepper.step, iter(range(9))
def step(*arguments):
    real(*arguments)
    if next(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
Stepper.step = step
train(pickle.loads(open(sys.argv[2], "rb").read()))
"""


def test_a_process_that_was_killed_outright_is_gone_on_from_in_another(make_job: MakeJob, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"decoder": TINY, "heads": ("nucleus",), "save_every_s": 0.0, "val": ()}
    job = make_job("broken", **changes)
    (tmp_path / "path").write_bytes(pickle.dumps(sys.path))
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path / "path"), str(tmp_path / "job")]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert torch.load(job.place / "resume.pt", weights_only=True)["state"]["epochs_done"] == 1
    assert train(job).read_bytes() == train(make_job("whole", **changes)).read_bytes()


def test_a_state_of_another_training_or_a_broken_one_is_put_aside(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    changes: dict[str, Any] = {"decoder": TINY, "heads": ("nucleus",), "val": (), "training": {"epochs": 1}}
    whole = train(make_job("whole", **changes))
    job = make_job("other", **changes)
    others = [{"training": {"epochs": 1, "lr": 1e-4}}, {"inputs_key": "new"}, {"sampling": SamplingConfig(gamma=0.5)}]
    for other in others:
        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_decoder", die)
            with pytest.raises(Killed):
                train(make_job("other", save_every_s=0.0, **changes | other))
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            assert train(job).read_bytes() == whole.read_bytes()
        assert "is of another training" in caplog.text
    (job.place / "resume.pt").write_bytes(b"half a fi")
    with caplog.at_level(logging.WARNING):
        assert train(job).read_bytes() == whole.read_bytes()
    assert "cannot be read" in caplog.text


def test_parts_come_back_and_are_left_alone_when_the_state_is_not_theirs(tmp_path: Path) -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    before = other.weight.detach().clone()
    save_state(
        tmp_path / "state.pt", TrainState("k", 3, [{"epoch": 0}], 0.5, 2, {"w": one.weight.detach()}), {"net": one}
    )
    assert load_state(tmp_path / "none", "k", {"net": other}) is None
    assert load_state(tmp_path / "state.pt", "l", {"net": other}) is None
    assert load_state(tmp_path / "state.pt", "k", {"net": other, "more": one}) is None
    assert torch.equal(other.weight, before)
    state = load_state(tmp_path / "state.pt", "k", {"net": other})
    assert state is not None
    assert (state.epochs_done, state.best, state.best_epoch) == (3, 0.5, 2)
    assert torch.equal(other.weight, one.weight)
