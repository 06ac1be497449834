"""U-Net: the library's network, split into heads."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slideloom import decoders
from slideloom.config.model import DecoderConfig
from slideloom.decoders.build import build_decoder, decoder_from_recipe
from slideloom.decoders.unet import UNet
from slideloom.encoders.timm_models.torchvision_guard import ensure_torchvision
from slideloom.errors import SlideloomError

SMALL = "efficientnet-b0"
CHANNELS = {"nucleus": 2, "hv": 2, "classes": 5, "boundary": 1, "distance": 1, "three_class": 3}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be fetched."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a network is asked for something over the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def unet(backbone: str = SMALL, heads: Any = tuple(CHANNELS), seed: int = 1, **more: Any) -> Any:
    config = DecoderConfig(kind="unet", backbone=backbone)
    return build_decoder(config, heads, 5, 0, 16, more.pop("image_channels", 3), seed=seed, **more)


def image(*size: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


def test_is_the_librarys_network_split_into_heads() -> None:
    ensure_torchvision()
    import segmentation_models_pytorch as library

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        plain = library.Unet("resnet18", encoder_weights=None, in_channels=4, classes=14).eval()
    ours = unet("resnet18", image_channels=4).eval()
    state = ours.state_dict()
    assert set(state) == {f"network.{key}" for key in plain.state_dict()}
    assert all(torch.equal(state[f"network.{key}"], value) for key, value in plain.state_dict().items())
    read = image(2, 4, 64, 96)
    with torch.inference_mode():
        found, expected = ours([], read), plain(read)
    assert {head: maps.shape[1] for head, maps in found.items()} == CHANNELS
    assert torch.equal(torch.cat(list(found.values()), 1), expected)
    assert expected.std() > 0.01


@pytest.mark.parametrize("size", [(1, 1), (37, 70), (64, 65)])
def test_maps_have_the_images_size_whatever_it_is(size: tuple[int, int]) -> None:
    network = unet().eval()
    read = image(1, 3, *size)
    pad = [(0, 0), (0, 0), *((0, -side % 32) for side in size)]
    wide = torch.from_numpy(np.pad(read.numpy(), pad, mode="reflect"))
    with torch.inference_mode():
        found, whole = network([], read, size), network([], wide)
    for head, maps in found.items():
        assert maps.shape == (1, CHANNELS[head], *size)
        assert torch.equal(maps, whole[head][..., : size[0], : size[1]])


@pytest.mark.parametrize("backbone", ["mobileone_s0", "tu-resnet10t", "mit_b0"])
def test_other_backbones(backbone: str) -> None:
    network = unet(backbone, ["classes", "nucleus"]).eval()
    assert network.multiple_px == 32
    with torch.inference_mode():
        assert {head: tuple(maps.shape) for head, maps in network([], image(1, 3, 40, 33)).items()} == {
            "nucleus": (1, 2, 40, 33),
            "classes": (1, 5, 40, 33),
        }


@pytest.mark.parametrize(
    ("backbone", "match"),
    [
        ("resnet-34", "such as resnet34"),
        ("EfficientNet-B0", "such as efficientnet-b0"),
        ("tu-convnext_ato", "such as tu-convnext_atto"),
        ("tu-hf-hub:someone/something", "is no encoder"),
        ("tu-vit_tiny_patch16_224", "makes no U-Net"),
        ("tu-swin_tiny_patch4_window7_224", "makes no U-Net"),
    ],
)
def test_unknown_and_unfit_backbones_are_refused(backbone: str, match: str) -> None:
    with pytest.raises(SlideloomError, match=match) as caught:
        unet(backbone)
    assert caught.value.code == "decoder_backbone"


def test_seed_and_recipe_give_the_same_network() -> None:
    before = torch.random.get_rng_state()
    network, again, other = (unet(seed=seed, regression=True) for seed in (4, 4, 5))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert network.training
    assert all(module.training for module in network.modules())
    state, same, differs = (one.state_dict() for one in (network, again, other))
    assert all(torch.equal(value, same[key]) for key, value in state.items())
    assert any(not torch.equal(value, differs[key]) for key, value in state.items())
    rebuilt = decoder_from_recipe(json.loads(json.dumps(network.recipe())))
    rebuilt.load_state_dict(state, strict=True)
    assert isinstance(rebuilt, UNet)
    assert rebuilt.recipe() == network.recipe()
    layer = network.get_submodule(network.last_layer("hv"))
    assert layer.weight.shape[0] == sum(CHANNELS.values()) + 2
    assert {name: value.shape[1] for name, value in network([], image(2, 3, 32, 32)).items()} == CHANNELS | {
        "regression": 2
    }


def test_every_weight_learns() -> None:
    network = unet("resnet18")
    outputs = network([], image(2, 3, 64, 70))
    torch.stack([value.square().mean() for value in outputs.values()]).sum().backward()
    assert all(parameter.grad is not None and bool((parameter.grad != 0).any()) for parameter in network.parameters())


def test_other_configs_are_refused() -> None:
    with pytest.raises(SlideloomError) as caught:
        UNet(DecoderConfig(kind="hovernet"), ["nucleus"], 2, 0, 16, 3)
    assert caught.value.code == "decoder_kind"


def test_the_library_is_imported_when_a_network_is_built() -> None:
    # The checkout under test, wherever it is installed from.
    surroundings = {**os.environ, "PYTHONPATH": str(Path(decoders.__file__).resolve().parents[2])}
    told = (
        "import sys, slideloom.decoders.unet as unet;"
        "print(unet.__file__, {'segmentation_models_pytorch', 'timm'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True, env=surroundings)
    assert found.stdout.split() == [str(Path(decoders.__file__).with_name("unet.py")), "set()"]
