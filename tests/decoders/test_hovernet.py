"""HoVer-Net: the published network's numbers, and maps of any image's size.

``data/hovernet_published.npz`` holds what the published program (github.com/vqdang/hover_net at commit 67e2ce5, five
classes) says: names and shapes of its state dict, and its maps of :func:`picture` with the weights of :func:`drawn`.
"""

from __future__ import annotations

import json
import math
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from slideloom.config.model import DecoderConfig
from slideloom.decoders.base import HEADS
from slideloom.decoders.build import build_decoder, decoder_from_recipe
from slideloom.decoders.hovernet import HoVerNet
from slideloom.decoders.hovernet_published import from_published, published_name
from slideloom.decoders.whole import reflected
from slideloom.errors import SlideloomError

PUBLISHED = Path(__file__).resolve().parents[1] / "data" / "hovernet_published.npz"
SIDES = {"fast": 104, "original": 198}
NAMES = {"nucleus": "np", "hv": "hv", "classes": "tp"}
MODES: list[Any] = ["fast", "original"]
CHANNELS = {"nucleus": 2, "hv": 2, "classes": 5, "boundary": 1, "distance": 1, "three_class": 3}


def drawn(key: str, shape: tuple[int, ...]) -> Tensor:
    """Weights of a key by a rule that does not depend on the network."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if key.endswith("unpool_mat"):
        return torch.ones(2, 2)
    values = 2 * np.random.RandomState(zlib.crc32(key.encode())).random_sample(shape) - 1
    last = key.rpartition(".")[2]
    if len(shape) == 4:
        values *= math.sqrt(3 / math.prod(shape[1:]))
    elif last == "weight":
        values = 1 + values / 4
    elif last == "running_var":
        values = 1 + values / 2
    else:
        values = values / 4
    return torch.from_numpy(values.astype(np.float32))


def picture(side: int) -> Tensor:
    """(1, 3, side, side) whole numbers 0 … 255."""
    values = np.random.RandomState(side).randint(0, 256, (1, 3, side, side))
    return torch.from_numpy(values.astype(np.float32))


@cache
def shapes(mode: str) -> dict[str, tuple[int, ...]]:
    with np.load(PUBLISHED) as held:
        lines = bytes(held[f"{mode}_keys"]).decode().splitlines()
    pairs = (line.split(" ") for line in lines)
    return {key: tuple(map(int, sides.split(","))) if sides else () for key, sides in pairs}


def blank(mode: str = "fast", classes: bool = True) -> dict[str, Tensor]:
    """A published state dict of zeros that take no memory."""
    found = {key: torch.zeros(()).expand(shape) for key, shape in shapes(mode).items()}
    counts = {key: torch.tensor(7) for key in found if key.endswith("num_batches_tracked")}
    found |= counts | {"upsample2x.unpool_mat": torch.ones(2, 2)}
    return found if classes else {key: value for key, value in found.items() if ".tp." not in key}


def narrow(mode: Any = "fast", heads: Any = HEADS[:6], seed: int = 1, **more: Any) -> Any:
    config = DecoderConfig(kind="hovernet", mode=mode, width=0.04)
    return build_decoder(config, heads, 5, 0, 16, more.pop("image_channels", 3), seed=seed, **more)


def settled(network: Any) -> Any:
    """In evaluation, with the statistics of an image, under which maps differ from place to place."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.inference_mode():
        network.train()([], torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0)))
    return network.eval()


@pytest.mark.parametrize("mode", MODES)
def test_the_published_networks_numbers(mode: str) -> None:
    network = from_published({key: drawn(key, shape) for key, shape in shapes(mode).items()})
    assert (network.config.mode, network.heads, network.training) == (mode, ("nucleus", "hv", "classes"), False)
    image = picture(SIDES[mode]) / 255
    with torch.inference_mode():
        found = network.valid_maps(image)
    with np.load(PUBLISHED) as held:
        for head, name in NAMES.items():
            expected = held[f"{mode}_{name}"]
            assert expected.std() > 0.1
            np.testing.assert_allclose(found[head][0].numpy(), expected, rtol=1e-4, atol=1e-4)
    if mode == "fast":
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            half = network.valid_maps(image)
        for head, maps in found.items():
            spread = maps - maps.mean(dim=(2, 3), keepdim=True)
            assert float((half[head].float() - maps).norm() / spread.norm()) < 0.05


@pytest.mark.parametrize("mode", MODES)
def test_every_published_key_is_one_of_ours(mode: Any) -> None:
    config = DecoderConfig(kind="hovernet", mode=mode)
    with torch.device("meta"):
        network = HoVerNet(config, ["nucleus", "hv", "classes"], 5, 0, 16, 3)
    found = {published_name(key): tuple(value.shape) for key, value in network.state_dict().items()}
    assert len(found) == len(network.state_dict())
    assert found == {key: shape for key, shape in shapes(mode).items() if key != "upsample2x.unpool_mat"}


def test_published_state_dicts_of_every_age_load() -> None:
    state = blank() | {"decoder.tp.u0.conv.bias": torch.arange(5.0)}
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    bare = {key: value for key, value in state.items() if not key.startswith("upsample2x")}
    ways: list[dict[str, Any]] = [
        {"desc": {f"module.{key}": value for key, value in state.items()}},
        {"desc": old},
        bare,
    ]
    for way, count in zip(ways, (7, 0, 7), strict=True):
        network = from_published(way)
        own = network.state_dict()
        assert network.n_classes == 5
        assert own["nuclei_type_maps_decoder.last.bias"].tolist() == [0, 1, 2, 3, 4]
        assert {int(value) for key, value in own.items() if key.endswith("num_batches_tracked")} == {count}
        assert all(value.is_contiguous() for value in own.values())


def test_a_published_network_without_classes() -> None:
    network = from_published(blank("original", classes=False))
    assert network.heads == ("nucleus", "hv")
    assert network.config.mode == "original"


@pytest.mark.parametrize(
    ("change", "code", "match"),
    [
        ({"d1.shortcut.weight": None}, "checkpoint_keys", "1 missing: encoder.stages.1.shortcut.weight"),
        ({"d4.shortcut.weight": torch.zeros(1)}, "checkpoint_keys", "1 unexpected: d4.shortcut.weight"),
        ({"decoder.hv.u0.conv.bias": torch.zeros(3)}, "checkpoint_keys", "1 misshapen"),
        ({"d0.units.0.conv1/bn.num_batches_tracked": None}, "checkpoint_keys", "1 missing"),
        ({"upsample2x.unpool_mat": torch.full((2, 2), 0.5)}, "checkpoint_arch", "2 by 2 matrix of ones"),
        ({"decoder.np.u3.conva.weight": torch.zeros(256, 1024, 7, 7)}, "checkpoint_arch", "7 pixels"),
        ({"conv0./.weight": None}, "checkpoint_arch", "conv0"),
    ],
)
def test_other_state_dicts_are_refused(change: dict[str, Tensor | None], code: str, match: str) -> None:
    state = {key: value for key, value in (blank() | change).items() if value is not None}
    with pytest.raises(SlideloomError, match=match) as caught:
        from_published(state, path=Path("hover.tar"))
    assert caught.value.code == code
    assert "hover.tar" in str(caught.value)


@pytest.mark.parametrize(("mode", "reads", "gives"), [("fast", 256, 164), ("original", 270, 80)])
def test_the_middle_has_the_published_size(mode: str, reads: int, gives: int) -> None:
    network = narrow(mode, ["hv"]).eval()
    with torch.inference_mode():
        assert network.valid_maps(torch.zeros(1, 3, reads, reads))["hv"].shape == (1, 2, gives, gives)
        for wrong in (reads + 4, reads - gives - 4):
            with pytest.raises(SlideloomError) as caught:
                network.valid_maps(torch.zeros(1, 3, reads, wrong))
            assert caught.value.code == "decoder_input"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(64, 64), (1, 1), (37, 90)])
def test_maps_have_the_images_size_whatever_it_is(mode: str, size: tuple[int, int]) -> None:
    network = narrow(mode, image_channels=4).eval()
    assert not network.reads_tokens
    assert network.needs_image
    with torch.inference_mode():
        found = network([], torch.zeros(2, 4, *size))
    assert {head: tuple(maps.shape) for head, maps in found.items()} == {
        head: (2, channels, *size) for head, channels in CHANNELS.items()
    }


@pytest.mark.parametrize(("mode", "side", "reach"), [("fast", 256, 110), ("original", 334, 156)])
def test_out_of_the_borders_reach_maps_are_the_published_ones(mode: str, side: int, reach: int) -> None:
    network = settled(narrow(mode, ["hv"])).double()
    image = torch.rand(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        valid, found = network.valid_maps(image), network([], image)
    lost = network.mode.margin
    for head in network.heads:
        centre = valid[head][..., reach - lost : lost - reach, reach - lost : lost - reach]
        ours = found[head][..., reach:-reach, reach:-reach]
        assert centre.std() > 1e-3
        torch.testing.assert_close(ours, centre, rtol=1e-9, atol=1e-9)
    # Nearer, the published network sees its own zeros and this one a reflection.
    assert (found["hv"][..., lost:-lost, lost:-lost] - valid["hv"]).abs().max() > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_margins_are_reflections(mode: str) -> None:
    network = settled(narrow(mode, ["nucleus", "distance"]))
    image = torch.rand(1, 3, 51, 110, generator=torch.Generator().manual_seed(3))
    before, lost, more = (48, 46, 0) if mode == "fast" else (96, 95, 6)
    after = [next(n for n in range(lost, lost + 8) if (before + side + n - more) % 8 == 0) for side in (51, 110)]
    pad = [(0, 0), (0, 0), (before, after[0]), (before, after[1])]
    wide = torch.from_numpy(np.pad(image.numpy(), pad, mode="reflect"))
    with torch.inference_mode():
        valid, found = network.valid_maps(wide), network([], image, (51, 110))
    first = before - lost
    for head, maps in found.items():
        assert torch.equal(maps, valid[head][..., first : first + 51, first : first + 110])


@given(st.tuples(st.integers(1, 6), st.integers(1, 6)), st.tuples(*[st.integers(0, 20)] * 4))
def test_reflection_is_numpys(size: tuple[int, int], margins: tuple[int, int, int, int]) -> None:
    image = torch.arange(2.0 * size[0] * size[1]).reshape(2, *size)
    above, below, left, right = margins
    expected = np.pad(image.numpy(), [(0, 0), (above, below), (left, right)], mode="reflect")
    np.testing.assert_array_equal(reflected(image, *margins).numpy(), expected)


def test_seed_and_recipe_give_the_same_network() -> None:
    network, again, other = (narrow(seed=seed) for seed in (4, 4, 5))
    state, same = network.state_dict(), again.state_dict()
    assert all(torch.equal(value, same[key]) for key, value in state.items())
    assert not torch.equal(other.encoder.stem.weight, network.encoder.stem.weight)
    rebuilt = decoder_from_recipe(json.loads(json.dumps(network.recipe())))
    rebuilt.load_state_dict(state, strict=True)
    assert isinstance(rebuilt, HoVerNet)
    assert rebuilt.recipe() == network.recipe()
    for head in network.heads:
        assert len(network.get_parameter(f"{network.last_layer(head)}.bias")) == CHANNELS[head]


def test_every_weight_learns() -> None:
    network = narrow().train()
    image = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(6))
    outputs = network([], image)
    torch.stack([value.square().mean() for value in outputs.values()]).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


def test_regression_is_two_more_channels() -> None:
    network = narrow(heads=["nucleus"], regression=True).eval()
    with torch.inference_mode():
        found = network([], torch.zeros(1, 3, 16, 16))
    assert {name: value.shape[1] for name, value in found.items()} == {"nucleus": 2, "regression": 2}


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (None, None),
        (torch.zeros(1, 4, 16, 16), None),
        (torch.zeros(3, 16, 16), None),
        (torch.zeros(1, 3, 8, 8), (8, 9)),
    ],
)
def test_other_inputs_are_refused(image: Tensor | None, size: tuple[int, int] | None) -> None:
    with pytest.raises(SlideloomError) as caught:
        narrow(heads=["hv"])([], image, size)
    assert caught.value.code == "decoder_input"


@pytest.mark.parametrize("wrong", [{"kind": "unet"}, {"masked_attention": True}, {"global_context": True}])
def test_other_configs_are_refused(wrong: dict[str, Any]) -> None:
    # Past the config's own check, should it have one.
    config = DecoderConfig.model_construct(**(DecoderConfig(kind="hovernet").model_dump() | wrong))
    with pytest.raises(SlideloomError) as caught:
        HoVerNet(config, ["nucleus"], 2, 0, 16, 3)
    assert caught.value.code == "decoder_kind"
