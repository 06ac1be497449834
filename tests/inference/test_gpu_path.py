"""The way of a GPU, walked on a CPU: streams and events are stand-ins that do nothing but keep the time.

What a GPU computes is not tested here, but that the way for it is whole: every tile goes through it, waits and copies
are accounted for, batches grow, and what is queued is bounded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slideloom.artefacts.keys import digest_tree
from slideloom.inference import account, engine, forward
from slideloom.inference.account import Timing
from slideloom.inference.predict import Predictor, SlideTask, predict_slide

from .test_engine import picture
from .toys import ArrayTiles, Slopes


class Stream:
    """Work is done at once."""

    def __init__(self, *_: Any) -> None:
        self.waits: list[Any] = []

    def wait_stream(self, other: Any) -> None:
        self.waits.append(other)


class Event:
    """Knows when it was recorded."""

    waited = 0

    def __init__(self, **_: Any) -> None:
        self.at: float | None = None

    def record(self, _: Any) -> None:
        assert self.at is None
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        assert self.at is not None
        Event.waited += 1

    def elapsed_time(self, end: Event) -> float:
        assert self.at is not None
        assert end.at is not None
        return 1e3 * (end.at - self.at)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """A CPU that is taken for a GPU; its stream."""
    current = Stream()

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        yield

    def pinned(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return torch.zeros(*shape, **options)

    for module in (account, engine, forward):
        monkeypatch.setattr(module, "is_gpu", lambda device: True)
    for name, stand_in in {
        "Stream": Stream,
        "Event": Event,
        "stream": on,
        "current_stream": lambda device: current,
        "synchronize": lambda device: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device: None,
        "memory_allocated": lambda device: 100,
        "max_memory_allocated": lambda device: 8100,
        "memory_reserved": lambda device: 100,
        "mem_get_info": lambda device: (20_000, 1 << 20),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    return current


def test_the_maps_are_those_of_a_cpu(tmp_path: Path, gpu: Stream) -> None:
    tiles = {f"s{n}": ArrayTiles(picture(n, 70, 90 + n), 16, 12) for n in range(3)}
    tasks = [SlideTask(name, tmp_path / f"{name}.zarr", {}, lambda one=one: one) for name, one in tiles.items()]
    predictor = Predictor(Slopes(), batch_size=8)
    assert dict(predictor.run(tasks)) == {name: tmp_path / f"{name}.zarr" for name in tiles}
    spent = predictor.account.as_dict()
    assert spent["n_tiles"] == sum(one.n for one in tiles.values())
    assert spent["blend_s"] > 0
    # One thing after the other: nothing is counted twice.
    parts = ("read_s", "copy_s", "forward_s", "blend_s", "write_s", "idle_s")
    assert sum(spent[part] for part in parts) == pytest.approx(spent["seconds"], rel=0.05)
    assert Event.waited > spent["n_tiles"] / 8
    assert gpu.waits  # for the tiles to have arrived
    digests = {name: digest_tree(tmp_path / f"{name}.zarr") for name in tiles}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for module in (account, engine, forward):
            monkeypatch.setattr(module, "is_gpu", lambda device: False)
        for name, one in tiles.items():
            predict_slide(Slopes(), one, tmp_path / "cpu.zarr", {}, batch_size=8)
            assert digest_tree(tmp_path / "cpu.zarr") == digests[name]


def test_batches_grow_as_far_as_memory_allows(tmp_path: Path, gpu: Stream) -> None:
    """8000 bytes for eight tiles, 20 000 free: sixteen fit into 80 % of that, thirty-two do not."""
    decoder = Slopes()
    predict_slide(decoder, ArrayTiles(picture(0, 200, 200), 16, 12), tmp_path / "a.zarr", {}, batch_size="auto")
    assert decoder.sizes[:2] == [8, 16]
    # Sixteen took 8000 bytes, so thirty-two fit, and so on: four times as many at most.
    assert decoder.sizes == sorted(decoder.sizes)
    assert decoder.sizes[2] == 32


def test_out_of_memory_while_it_grows(tmp_path: Path, gpu: Stream) -> None:
    class Small(Slopes):
        def forward(self, *inputs: Any) -> Any:
            if len(inputs[1]) > 12:
                self.sizes.append(len(inputs[1]))
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(*inputs)

    decoder = Small()
    tiles = ArrayTiles(picture(0, 200, 200), 16, 12)
    assert predict_slide(decoder, tiles, tmp_path / "a.zarr", {}, batch_size="auto")["n_tiles"] == tiles.n
    assert decoder.sizes[:3] == [8, 16, 8]
    assert set(decoder.sizes[2:]) == {8}


def test_waiting_counts_only_where_work_stood_still(gpu: Stream) -> None:
    device = torch.device("cpu")
    first = Timing(device, {"read_s": 5.0})
    first.mark("forward_s")
    # Its tiles were waited for, but the work before it ended just now.
    second = Timing(device, {"read_s": 3.0, "write_s": 1.0}, first)
    second.mark("forward_s")
    spent = second.seconds()
    assert spent["read_s"] + spent["write_s"] < 0.1
    assert spent["read_s"] == pytest.approx(3 * spent["write_s"])
    assert first.seconds()["read_s"] == 5.0  # nothing came before it
    assert np.isfinite(list(spent.values())).all()
