"""One training in several processes.

What they work out together is tested with threads in their place, which share one process's imports; that they are
started, heard and ended, with the processes themselves.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slideloom.config.model import DecoderConfig
from slideloom.errors import SlideloomError
from slideloom.training import distributed, loop, optimiser
from slideloom.training.checkpoint import load_decoder, read_meta
from slideloom.training.distributed import ALONE, World, launch, launched
from slideloom.training.handover import to_text
from slideloom.training.job import TrainJob
from slideloom.training.loop import train
from slideloom.training.stored import SlideData

from .test_loop import PlainDescent
from .test_resume import told

MakeJob = Callable[..., TrainJob]
T = TypeVar("T")


class Table:
    """Where threads lay down what they have, and look when all have."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.given: list[Any] = [None] * size


@dataclass(frozen=True)
class Thread(World):
    """A process of a training, in the form of a thread."""

    table: Table = field(kw_only=True)

    def _laid(self, value: T) -> list[T]:
        self.table.given[self.rank] = value
        self.table.barrier.wait()
        laid = list(self.table.given)
        self.table.barrier.wait()
        return laid

    def add_up(self, *values: Tensor) -> None:
        for value in values:
            value.copy_(torch.stack(self._laid(value.detach().clone())).sum(dim=0))

    def tell(self, value: T) -> T:
        return self._laid(value)[0]


def trained(job: TrainJob, size: int, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The weights that each of some processes ends with."""
    table, alone, build = Table(size), threading.Lock(), loop.build_decoder

    def built(*arguments: Any, **named: Any) -> nn.Module:
        with alone:  # threads have one generator of random numbers
            model = build(*arguments, **named)
        table.barrier.wait()
        return model

    monkeypatch.setattr(loop, "build_decoder", built)

    def run(rank: int) -> dict[str, Tensor]:
        world = World() if size == 1 else Thread(rank, size, table=table)
        training = loop._Training(job, world)
        training.run()
        return training.model.state_dict()

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Weights and statistics that are not equal; how many batches a process saw is its own."""
    return [name for name, value in one.items() if value.is_floating_point() and not torch.equal(value, other[name])]


def test_alone_there_is_nothing_to_add_up() -> None:
    values = torch.arange(3.0)
    ALONE.add_up(values)
    ALONE.add_up_together([values])
    assert values.tolist() == [0, 1, 2]
    assert ALONE.tell("x") == "x"
    assert ALONE.first
    assert ALONE.share(np.arange(4)).tolist() == [0, 1, 2, 3]
    assert not launched()


def test_shares_are_disjoint_and_all() -> None:
    batch = np.random.default_rng(0).permutation(11)
    shares = [World(rank, 3).share(batch) for rank in range(3)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(11))
    assert [share.size for share in shares] == [4, 4, 3]
    assert [World(rank, 3).share(batch[:1]).size for rank in range(3)] == [1, 0, 0]


@pytest.mark.parametrize(("size", "batch_size", "accumulate"), [(2, 4, 1), (3, 4, 2), (3, 2, 1)])
def test_processes_take_the_steps_of_one(
    make_job: MakeJob,
    cohort: dict[str, SlideData],
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    batch_size: int,
    accumulate: int,
) -> None:
    """Without batch normalisation, and with a loss that is a mean over patches. Nine patches: shares are uneven, and of
    three processes with batches of two patches one stands by."""
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, values: values)
    monkeypatch.setattr(optimiser, "AdamW", PlainDescent)
    loss = dict.fromkeys(("cross_entropy", "dice", "focal_tversky", "hv_msge"), 0) | {"hv_mse": 1.0}
    training = {"batch_size": batch_size, "accumulate": accumulate, "lr": 0.05, "ema": 0.9, "keep": "last"}
    changes: dict[str, Any] = {"heads": ("hv",), "train": (cohort["b"],), "val": (cohort["b"],), "loss": loss}
    one, several = (make_job(place, training=training, **changes) for place in ("one", "several"))
    (alone,), together = trained(one, 1, monkeypatch), trained(several, size, monkeypatch)
    for weights in together:
        assert not differing(weights, together[0])
    for name, value in alone.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, together[0][name], rtol=1e-4, atol=1e-6)
    first, second = (told(job.place / "decoder.safetensors") for job in (one, several))
    for name in ("train_loss", "val_loss", "val_hv_mse", "grad_norm"):
        assert second[name] == pytest.approx(first[name], rel=1e-4)


def test_processes_share_statistics_and_judge_alike(
    make_job: MakeJob, cohort: dict[str, SlideData], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"epochs": 4, "patience": 1, "monitor": "dice_macro", "schedule": "plateau", "plateau_epochs": 1}
    changes: dict[str, Any] = {"decoder": DecoderConfig(width=0.05, branches="shared"), "train": (cohort["b"],)}
    job = make_job(heads=("nucleus", "classes"), training=training, **changes)
    ours, theirs = trained(job, 2, monkeypatch)
    assert any(name.endswith("running_var") for name in ours)
    assert not differing(ours, theirs)


def test_validation_counts_are_those_of_one_process(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that do not move, and padded patches: scores are pooled over the same pixels."""
    training = {"epochs": 1, "lr": 1e-12, "weight_decay": 0.0, "batch_size": 5}
    found = []
    for size in (1, 2):
        job = make_job(str(size), decoder=DecoderConfig(kind="linear"), training=training)
        trained(job, size, monkeypatch)
        found.append(told(job.place / "decoder.safetensors"))
    one, two = found
    for name in ("val_dice_binary", "val_dice_macro", "val_hv_mse"):
        assert two[name] == pytest.approx(one[name], rel=1e-6)


# ---- the processes themselves -------------------------------------------------------------------------------------

#: What they run; a module of its own, as this one cannot be imported by name.
_MODULE = """
import hashlib, os, signal, time

import torch

from slideloom.errors import SlideloomError
from slideloom.training.distributed import member


def train_and_tell(job):
    "Train, and lay a digest of the weights that each process ends with beside the decoder."
    from slideloom.training import loop

    class Told(loop._Training):
        def run(self):
            place = super().run()
            job.place.mkdir(parents=True, exist_ok=True)
            weights = [value.numpy().tobytes() for value in self.model.state_dict().values()]
            (job.place / f"digest-{self.world.rank}").write_text(hashlib.sha256(b"".join(weights)).hexdigest())
            (job.place / f"threads-{self.world.rank}").write_text(str(torch.get_num_threads()))
            return place

    loop._Training = Told
    return loop.train(job)


def fail(how):
    with member(2, "cpu") as (world, _):
        world.add_up(torch.ones(1))
        if world.rank == 1:
            if how == "refuse":
                raise SlideloomError("one channel is wild", where="slide", hint="Look", code="diverged")
            os.kill(os.getpid(), signal.SIGKILL)
        world.add_up(torch.ones(1))  # waits for the other
        time.sleep(60)
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "slideloom_tasks.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    import slideloom_tasks

    yield slideloom_tasks
    del sys.modules["slideloom_tasks"]


def test_two_processes_train_one_decoder(
    make_job: MakeJob, tasks: ModuleType, cohort: dict[str, SlideData], caplog: pytest.LogCaptureFixture
) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    changes: dict[str, Any] = {
        "decoder": DecoderConfig(width=0.05, branches="shared"),
        "train": (cohort["b"],),
        "heads": ("nucleus", "classes"),
        "training": {"epochs": 3, "ema": 0.5, "clip_norm": 5.0, "lr": 1e-2},
    }
    job = replace(make_job("two", **changes), processes=2, threads=2)
    with caplog.at_level(logging.INFO):
        place = launch(tasks.train_and_tell, job, 2, "cpu")
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    written = {path.name: path for path in job.place.iterdir()}
    beside = {f"{what}-{rank}" for what in ("digest", "threads") for rank in (0, 1)}
    assert set(written) == {"decoder.safetensors", "history.parquet"} | beside
    assert written["digest-0"].read_text() == written["digest-1"].read_text()
    assert written["threads-0"].read_text() == written["threads-1"].read_text() == "1"
    lines = [record for record in caplog.records if "epoch 3/3" in record.getMessage()]
    assert [record.name for record in lines] == ["slideloom.training.progress"], "the first alone tells"
    assert not [record for record in caplog.records if not record.name.startswith("slideloom")]
    assert read_meta(place).training["processes"] == 2
    load_decoder(place)
    one, two = told(train(make_job("one", **changes))), told(place)
    assert two["val_loss"][-1] == pytest.approx(one["val_loss"][-1], rel=0.25)
    assert two["val_loss"][-1] < 0.95 * two["val_loss"][0]
    assert two["lr"] == one["lr"]


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("refuse", "diverged", "slide: one channel is wild"),
        pytest.param("kill", "process_failed", "process 1 failed: it was ended by SIGKILL", marks=pytest.mark.slow),
    ],
)
def test_one_process_that_fails_ends_all_with_its_own_words(tasks: ModuleType, how: str, code: str, words: str) -> None:
    start = time.monotonic()
    with pytest.raises(SlideloomError, match=words) as caught:
        launch(tasks.fail, how, 2, "cpu")
    assert caught.value.code == code
    assert time.monotonic() - start < 50, "nobody waits for it"


def test_the_first_error_is_told(tmp_path: Path) -> None:
    for moment, rank in ((7, 1), (9, 0)):
        error = SlideloomError(f"at {moment}", code="diverged")
        (tmp_path / f"error-{moment:020d}-{rank}").write_text(to_text(error))
    for codes in ({0: 1, 1: 1}, {0: -signal.SIGTERM, 1: 1}):
        assert distributed._first_error(tmp_path, codes).what == "at 7"
    assert "process 0 failed: it was ended by SIGSEGV" in str(distributed._first_error(tmp_path, {1: 1, 0: -11}))
    assert "process 3 failed: exit code 2" in str(distributed._first_error(tmp_path / "none", {3: 2}))


def test_what_cannot_be_shared_out_is_refused(monkeypatch: pytest.MonkeyPatch, make_job: MakeJob) -> None:
    with pytest.raises(SlideloomError, match="GPUs for 99 processes") as caught:
        launch(print, None, 99, "cuda")
    assert caught.value.code == "too_few_gpus"
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SlideloomError, match="3 processes were started") as caught:
        train(make_job())
    assert caught.value.code == "processes"
