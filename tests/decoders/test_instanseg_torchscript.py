"""TorchScript models of the published build: run as they are, refused where they are something else."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.published_models import Scripted
from tests.published_models import saved_program as saved
from tests.published_models import tiny_program as tiny
from torch import Tensor, nn

from slideloom.decoders.instanseg_head import INSTANSEG_HEADS, PixelClassifier
from slideloom.decoders.instanseg_published import from_published, read_published
from slideloom.decoders.instanseg_torchscript import load_torchscript
from slideloom.errors import SlideloomError

#: Published models are TorchScript, whatever PyTorch would rather have.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Backbone(nn.Module):
    """Adapter inside the network, as the published program nests them, one tensor out."""

    def __init__(self, adapter: nn.Module, network: Any) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.AdaptorNet = adapter
        self.model.encoder, self.model.decoders = network.encoder, network.decoders
        self.model.pixel_classifier = network.pixel_classifier

    def forward(self, image: Tensor) -> Tensor:
        levels = [self.model.AdaptorNet(image)]
        for block in self.model.encoder:
            levels.append(block(levels[-1]))
        return torch.cat([part for way in self.model.decoders for part in way(levels[1:])], dim=1)


def published(folder: Path) -> tuple[Any, Any, Any]:
    adapter, network = read_published(folder / "instanseg_tiny_nc.safetensors")
    assert adapter is not None
    backbone = Backbone(adapter, network).eval()
    with pytest.warns(torch.jit.TracerWarning):
        traced = torch.jit.trace(backbone, torch.rand(1, 4, 64, 64), check_trace=False)
    return adapter, network, traced


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "fixtures/instanseg"


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    _, network, traced = published(folder)
    return saved(Scripted(traced, network.pixel_classifier), tmp_path_factory.mktemp("model") / "instanseg.pt")


def test_its_network_gives_the_recorded_maps(file: Path, folder: Path) -> None:
    network = load_torchscript(file)
    recorded = np.load(folder / "instanseg_tiny_io.npz")
    with torch.inference_mode():
        maps = network([], torch.from_numpy(recorded["image_norm"])[None])
    assert tuple(maps) == network.heads == INSTANSEG_HEADS
    raw = torch.cat(list(maps.values()), dim=1)[0]
    torch.testing.assert_close(raw, torch.from_numpy(recorded["network_out"]), atol=1e-4, rtol=1e-4)


def test_what_the_file_says_of_itself(file: Path) -> None:
    network = load_torchscript(file)
    assert network.image_channels == 0
    assert network.pixel_size_um == 0.5
    assert network.defaults == {
        "mask_threshold": 0.53,
        "seed_threshold": 0.7,
        "peak_distance_px": 5,
        "overlap_threshold": 0.3,
        "window_px": 64,
        "cleanup": True,
    }
    assert network.recipe() == {"torchscript": str(file), "sha256": network.sha256}
    assert len(network.sha256) == 64
    assert not network.reads_tokens
    assert not any(part.training for part in network.train().modules())


def test_its_weights_make_a_network_of_ours(file: Path, folder: Path) -> None:
    _, network = from_published(load_torchscript(file).weights())
    _, wanted = read_published(folder / "instanseg_tiny_nc.safetensors")
    assert {key: value.tolist() for key, value in network.state_dict().items()} == {
        key: value.tolist() for key, value in wanted.state_dict().items()
    }


def test_values_are_bounded_on_a_copy_and_sides_are_padded(tmp_path: Path) -> None:
    network = load_torchscript(saved(tiny(), tmp_path / "instanseg.pt"))
    image = torch.full((2, 3, 17, 5), 9.0)
    maps = network([], image)["instanseg"]
    assert maps.shape == (2, 5, 17, 5)
    assert (image == 9).all()
    assert torch.equal(maps, network([], torch.full((2, 3, 17, 5), 3.0))["instanseg"])


def test_a_channel_that_is_missing_is_told(tmp_path: Path) -> None:
    network = load_torchscript(saved(tiny(), tmp_path / "instanseg.pt"))
    with pytest.raises(SlideloomError) as caught:
        network([], torch.zeros(1, 2, 16, 16))
    assert caught.value.code == "torchscript_model"
    assert "(1, 2, 16, 16)" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: tiny(cells_and_nuclei=3), "cells_and_nuclei = 3"),
        (lambda: tiny(dim_seeds=2), "dim_seeds = 2"),
        (lambda: tiny(classifier=nn.Identity()), "no weights pixel_classifier"),
        (lambda: nn.Sequential(nn.Conv2d(3, 5, 1)), "no network 'fcn'"),
    ],
)
def test_another_program_is_refused(make: Callable[[], nn.Module], told: str, tmp_path: Path) -> None:
    path = saved(make(), tmp_path / "instanseg.pt")
    with pytest.raises(SlideloomError) as caught:
        load_torchscript(path)
    assert caught.value.code == "torchscript_model"
    assert told in str(caught.value)


def test_maps_of_another_number_of_channels_are_refused(tmp_path: Path) -> None:
    network = load_torchscript(saved(tiny(channels=5, cells=True), tmp_path / "instanseg.pt"))
    with pytest.raises(SlideloomError, match=r"\(1, 5, 16, 16\).*not \(1, 10, 16, 16\)"):
        network([], torch.zeros(1, 3, 16, 16))


class Reader(Scripted):
    """Reads a file by name where it is run."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.from_file("/etc/hostname", size=1, dtype=torch.uint8) + self.fcn(image)


class Starter(nn.Module):
    """Runs code while it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        self.weight = state[0]
        self.training = state[1]

    def forward(self, image: Tensor) -> Tensor:
        return image * self.weight


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Reader(nn.Conv2d(3, 5, 1), PixelClassifier()), "from_file"),
        (lambda: Scripted(Starter(), PixelClassifier()), "__setstate__"),
    ],
)
def test_code_that_no_network_needs_is_refused_unrun(make: Callable[[], nn.Module], told: str, tmp_path: Path) -> None:
    path = saved(make(), tmp_path / "instanseg.pt")
    with pytest.raises(SlideloomError) as caught:
        load_torchscript(path)
    assert caught.value.code == "unsafe_checkpoint"
    assert told in str(caught.value)


def test_files_that_are_no_program_are_told(tmp_path: Path) -> None:
    state = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(2)}, state)
    short = tmp_path / "short.pt"
    whole = saved(tiny(), tmp_path / "instanseg.pt").read_bytes()
    short.write_bytes(whole[: len(whole) // 2])
    for path, code in ((state, "unreadable_checkpoint"), (short, "unreadable_checkpoint")):
        with pytest.raises(SlideloomError) as caught:
            load_torchscript(path)
        assert caught.value.code == code
    with pytest.raises(SlideloomError) as caught:
        load_torchscript(tmp_path / "none.pt")
    assert caught.value.code == "missing_checkpoint"


def test_a_damaged_program_is_told(tmp_path: Path) -> None:
    whole, damaged = saved(tiny(), tmp_path / "whole.pt"), tmp_path / "instanseg.pt"
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(damaged, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, b"this is no program" if name.endswith(".py") else data)
    with pytest.raises(SlideloomError) as caught:
        load_torchscript(damaged)
    assert caught.value.code == "unreadable_checkpoint"
