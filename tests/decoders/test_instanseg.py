"""InstanSeg's network: as published to the number, and what is ours about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from slideloom.config.model import DecoderConfig, Head
from slideloom.decoders.base import HEADS
from slideloom.decoders.build import build_decoder, decoder_from_recipe
from slideloom.decoders.instanseg import InstanSeg
from slideloom.decoders.instanseg_head import INSTANSEG_HEADS, UNITS_PER_PX, fields
from slideloom.decoders.instanseg_published import from_published, read_published
from slideloom.errors import SlideloomError

UNETS = {
    "instanseg_unet_single": (("instanseg",), False),
    "instanseg_unet_single_multihead": (("instanseg",), True),
    "instanseg_unet_NC": (INSTANSEG_HEADS, False),
    "instanseg_unet_NC_multihead": (INSTANSEG_HEADS, True),
}
WRAPPED = ["instanseg_channelnet_NC", "instanseg_channelnet_NC_multihead"]


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "fixtures/instanseg"


@pytest.fixture(scope="module")
def keys(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "state_dict_keys.json").read_text())


@pytest.fixture(scope="module")
def recorded(folder: Path) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in np.load(folder / "instanseg_tiny_io.npz").items()}


def shapes(state: dict[str, Tensor]) -> list[list[Any]]:
    return [[key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.items()]


def state_of(entry: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """A state dict of the names and shapes of a fixture's entry, its values told apart by their place."""
    return {
        f"{prefix}{key}": torch.full(size, float(place)).to(getattr(torch, dtype))
        for place, (key, size, dtype) in enumerate(entry["tensors"])
    }


def small(heads: tuple[Head, ...] = ("instanseg",), multihead: bool = False, **settings: Any) -> Any:
    config = DecoderConfig(kind="instanseg", widths=settings.pop("widths", (4, 6, 8)), multihead=multihead)
    return build_decoder(config, heads, 4, 1, 16, settings.pop("image_channels", 3), 7, **settings)


@pytest.mark.parametrize("variant", UNETS)
def test_names_shapes_and_sizes_as_published(keys: dict[str, Any], variant: str) -> None:
    heads, multihead = UNETS[variant]
    network = build_decoder(DecoderConfig(kind="instanseg", multihead=multihead), heads, 2, 1, 16, 3)
    assert sorted(shapes(network.state_dict())) == sorted(keys[variant]["tensors"])
    assert sum(weight.numel() for weight in network.parameters()) == keys[variant]["n_params"]


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("variant", [*UNETS, *WRAPPED])
def test_published_state_dicts_load_whole(keys: dict[str, Any], variant: str, prefix: str) -> None:
    state = state_of(keys[variant], prefix)
    adapter, network = from_published({"model_state_dict": state, "epoch": 3, "f1_score": 0.5})
    assert (adapter is None) == (variant in UNETS)
    assert (network.heads, network.config.multihead) == UNETS[variant.replace("channelnet", "unet")]
    assert network.config.widths == (32, 64, 128, 256)
    mine = dict(network.state_dict())
    wrapped = ""
    if adapter is not None:
        wrapped = "model."
        mine |= {f"AdaptorNet.{key}": value for key, value in adapter.state_dict().items()}
        assert adapter.config.aggregation == "concat"
    assert {f"{prefix}{wrapped}{key}" for key in mine} == set(state)
    for key, value in mine.items():
        assert torch.equal(value, state[f"{prefix}{wrapped}{key}"]), key


@pytest.mark.parametrize(
    ("variant", "norm", "aggregation"),
    [
        ("channelnet_real_sum", "batch", "sum"),
        ("channelnet_real_no_aggregation", "batch", "none"),
        ("channelnet_real_concat_norm_none", "none", "concat"),
        ("channelnet_real_concat_norm_instance", "instance", "concat"),
    ],
)
def test_kinds_of_channelnet_are_told_apart(keys: dict[str, Any], variant: str, norm: str, aggregation: Any) -> None:
    state = state_of(keys["instanseg_unet_single"], "model.") | state_of(keys[variant], "model.AdaptorNet.")
    adapter, _ = from_published(state, aggregation="none" if aggregation == "none" else "concat")
    assert adapter is not None
    assert (adapter.config.norm, adapter.config.aggregation, adapter.config.widths) == (norm, aggregation, (8, 16, 32))
    assert adapter.out_channels == 3


def test_maps_as_recorded(folder: Path, recorded: dict[str, Tensor]) -> None:
    adapter, network = read_published(folder / "instanseg_tiny_nc.safetensors")
    assert adapter is not None
    assert network.heads == INSTANSEG_HEADS
    with torch.inference_mode():
        seen = adapter.eval()(recorded["image_padded"][None])
        maps = network.eval()([], seen)
    torch.testing.assert_close(seen[0], recorded["adaptor_out"], atol=1e-4, rtol=1e-4)
    raw = torch.cat([maps[head] for head in INSTANSEG_HEADS], dim=1)[0]
    torch.testing.assert_close(raw, recorded["network_out_padded"], atol=1e-4, rtol=1e-4)
    height, width = recorded["network_out"].shape[-2:]
    torch.testing.assert_close(raw[:, :height, :width], recorded["network_out"], atol=1e-4, rtol=1e-4)


def test_weights_under_a_checkpoint_of_torch_are_read(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "instanseg_tiny_nc.safetensors")
    optimiser = torch.optim.Adam([torch.zeros(2, requires_grad=True)]).state_dict()
    path = tmp_path / "model_weights.pth"
    torch.save({"model_state_dict": state, "optimizer_state_dict": optimiser, "f1_score": 0.7, "epoch": 9}, path)
    adapter, network = read_published(path)
    assert adapter is not None
    assert torch.equal(network.state_dict()["encoder.0.conv1.0.weight"], state["model.encoder.0.conv1.0.weight"])


@pytest.mark.parametrize("head", [0, 1])
def test_fields_seed_maps_and_classifier_as_recorded(folder: Path, recorded: dict[str, Tensor], head: int) -> None:
    name = ("nuclei", "cells")[head]
    raw = recorded["network_out"][None, 5 * head : 5 * head + 5]
    height, width = raw.shape[-2:]
    offset, sigma, seed = fields(raw)
    # The original spreads its coordinates so that the last pixel has those of an image's end.
    x = torch.arange(width) * UNITS_PER_PX * width / (width - 1)
    y = torch.arange(height) * UNITS_PER_PX * height / (height - 1)
    place = offset[0] + torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    torch.testing.assert_close(place, recorded[f"{name}_fields"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(seed[0, 0], recorded[f"{name}_seed_map"], atol=1e-5, rtol=1e-5)
    assert offset.abs().max() <= 4
    _, network = read_published(folder / "instanseg_tiny_nc.safetensors")
    row, column = recorded[f"{name}_seeds_yx"][:6].unbind(1)
    _, y_px, x_px = recorded[f"{name}_crop_coords_first6"].long()
    steps = place[:, y_px, x_px] - place[:, row, column][:, :, None, None]
    with torch.inference_mode():
        logits = network.pixel_classifier(torch.cat([steps, sigma[0][:, y_px, x_px]]).movedim(0, -1))
    wanted = recorded[f"{name}_crop_logits_first6"]
    claimed = wanted != wanted.new_tensor(0)
    torch.testing.assert_close(logits[claimed], wanted[claimed], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("multihead", [False, True])
@pytest.mark.parametrize("heads", [HEADS, ("nucleus", "hv"), ("distance", "instanseg"), INSTANSEG_HEADS])
def test_any_heads_of_any_size_from_a_recipe(heads: tuple[Head, ...], multihead: bool) -> None:
    network = small(heads, multihead).eval()
    assert not network.reads_tokens
    assert network.needs_image
    again = decoder_from_recipe(json.loads(json.dumps(network.recipe()))).eval()
    again.load_state_dict(network.state_dict())
    image = torch.randn(2, 3, 21, 18, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps, others = network([], image), again([], image, (21, 18))
    assert tuple(maps) == heads
    for head, values in maps.items():
        assert values.shape == (2, network.head_channels[head], 21, 18)
        assert torch.equal(values, others[head])
    assert ("pixel_classifier.fc1.weight" in network.state_dict()) == bool(set(heads) & set(INSTANSEG_HEADS))
    for head in heads:
        layer = network.get_submodule(network.last_layer(head))
        assert isinstance(layer, torch.nn.Conv2d)
        assert layer.out_channels == (2 if head in INSTANSEG_HEADS else network.head_channels[head])


def test_with_multihead_each_group_of_outputs_has_its_own_way_back() -> None:
    counts = {
        ("instanseg",): 3,
        INSTANSEG_HEADS: 2,
        ("nucleus", *INSTANSEG_HEADS): 3,
        ("nucleus", "hv"): 2,
        ("nucleus", "instanseg_cells"): 4,
    }
    for heads, count in counts.items():
        assert len(small(heads, True).decoders) == count
        assert len(small(heads).decoders) == 1


@pytest.mark.parametrize("multihead", [False, True])
def test_seed_maps_start_at_the_scale_of_their_target(multihead: bool) -> None:
    maps = small(INSTANSEG_HEADS, multihead)([], torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    for values in maps.values():
        spread, mean = torch.std_mean(values, dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.tensor([0.0, 0.0, 0.0, 0.0, -6.0]), atol=1e-3, rtol=0)
        torch.testing.assert_close(spread, torch.tensor([1.0, 1.0, 1.0, 1.0, 4.0]), atol=0.05, rtol=0)


def test_every_weight_learns() -> None:
    network = small(HEADS, True)
    maps = network([], torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    # A map's mean has no gradient through batch normalisation; its square against a pattern does.
    pattern = torch.linspace(-1, 1, 16)
    sum(((values - pattern) ** 2).sum() for values in maps.values()).backward()
    still = [name for name, weight in network.named_parameters() if weight.grad is None]
    assert {name.split(".")[0] for name in still} == {"pixel_classifier"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("encoder.1.conv3.0.bias"), "missing"),
        (lambda state: state.update({"encoder.1.extra": torch.zeros(1)}), "unexpected"),
        (lambda state: state.update({"pixel_classifier.fc1.weight": torch.zeros(10, 4)}), "misshapen"),
        (
            lambda state: state.update({"decoders.0.final_block.2.0.weight": torch.zeros(2, 32, 1, 1)}),
            "output channels",
        ),
        (lambda state: [state.pop(key) for key in list(state) if key.startswith("encoder")], "no weight encoder"),
        (lambda state: state.update({"AdaptorNet.encoder.0.conv0.0.weight": torch.zeros(3, 3, 1, 1)}), "no ChannelNet"),
    ],
)
def test_other_weights_are_refused(keys: dict[str, Any], change: Any, told: str) -> None:
    state = state_of(keys["instanseg_unet_single"])
    change(state)
    with pytest.raises(SlideloomError) as caught:
        from_published(state)
    assert caught.value.code == "checkpoint_keys"
    assert told in str(caught.value)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(SlideloomError) as caught:
        small(widths=())
    assert caught.value.code == "decoder_kind"
    with pytest.raises(SlideloomError) as caught:
        small()([], torch.zeros(1, 4, 16, 16))
    assert caught.value.code == "decoder_input"
    with pytest.raises(SlideloomError) as caught:
        InstanSeg(DecoderConfig(kind="unet"), ("instanseg",), 2, 1, 16, 3)
    assert caught.value.code == "decoder_kind"
