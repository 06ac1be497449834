"""ChannelNet against the original program's numbers, and what must not matter to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from slideloom.adapters import channelnet
from slideloom.adapters.build import build_adapter
from slideloom.adapters.channelnet import ChannelNet
from slideloom.config.model import AdapterConfig
from slideloom.errors import SlideloomError

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
#: Names of the fixtures and what the config calls them.
MODES: dict[str, dict[str, Any]] = {
    "concat": {},
    "no_aggregation": {"aggregation": "none"},
    "sum": {"aggregation": "sum"},
    "instance": {"norm": "instance"},
}
STATES: dict[str, dict[str, Any]] = {
    "channelnet_real_concat": {},
    "channelnet_real_no_aggregation": {"aggregation": "none"},
    "channelnet_real_sum": {"aggregation": "sum"},
    "channelnet_real_concat_norm_none": {"norm": "none"},
    "channelnet_real_concat_norm_instance": {"norm": "instance"},
    "channelnet_tiny": {"widths": (4, 6, 8)},
}


@pytest.fixture(scope="session")
def place(shared: Path) -> Path:
    return shared / "fixtures" / "instanseg"


@pytest.fixture(scope="session")
def io(place: Path) -> dict[str, Tensor]:
    return load_file(place / "channelnet_io.safetensors")


def original(place: Path, mode: str, **settings: Any) -> ChannelNet:
    net = ChannelNet(AdapterConfig(widths=(4, 6, 8), **MODES[mode], **settings))
    net.load_state_dict(load_file(place / f"channelnet_tiny_{mode}.safetensors"))
    return net.eval()


def small(seed: int = 0, **settings: Any) -> ChannelNet:
    """A network whose normalisations are not the identity."""
    net = build_adapter(AdapterConfig(**{"widths": (3, 4, 5)} | settings), seed=seed)
    assert isinstance(net, ChannelNet)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return net.eval()


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2


def run(net: ChannelNet, pixels: Tensor, present: Tensor | None = None) -> Tensor:
    with torch.inference_mode():
        return net(pixels, present)


# The original's numbers


@pytest.mark.parametrize("name", STATES)
def test_published_state_dicts_fit(place: Path, name: str) -> None:
    expected = json.loads((place / "state_dict_keys.json").read_text())[name]
    net = ChannelNet(AdapterConfig(**STATES[name]))
    state = net.state_dict()
    assert [[key, list(value.shape), str(value.dtype).split(".")[1]] for key, value in state.items()] == expected[
        "tensors"
    ]
    assert sum(value.numel() for value in net.parameters()) == expected["n_params"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gradients", [False, True])
def test_output_is_the_originals(place: Path, io: dict[str, Tensor], mode: str, gradients: bool) -> None:
    net = original(place, mode)
    names = [name for name in ("x1", "x3", "x5") if f"{mode}_out_{name}" in io]
    assert len(names) == (2 if mode == "instance" else 3)
    for name in names:
        with torch.set_grad_enabled(gradients):
            out = net(io[f"in_{name}"])
        torch.testing.assert_close(out.detach(), io[f"{mode}_out_{name}"], **CLOSE)


def test_every_stage_is_the_originals(place: Path, io: dict[str, Tensor]) -> None:
    net = original(place, "concat")
    # What a stage gives is what the next one reads.
    readers = {"conv_0": "down_1", "down_1": "down_2", "down_2": "upcat_2", "upcat_2": "upcat_1"}
    readers["upcat_1_pooled"] = "final_conv"
    found: dict[str, list[Tensor]] = {stage: [] for stage in readers}
    for stage, reader in readers.items():
        net.get_submodule(reader).register_forward_pre_hook(
            lambda _, inputs, stage=stage: found[stage].append(inputs[0].clone())
        )
    run(net, io["in_x3"])
    for stage, parts in found.items():
        torch.testing.assert_close(torch.cat(parts), io[f"concat_stage_x3_{stage}"], **CLOSE)


def test_training_is_the_originals(place: Path, io: dict[str, Tensor]) -> None:
    net = original(place, "concat").train()
    torch.testing.assert_close(net(io["in_x5"]).detach(), io["concat_trainmode_out_x5"], **CLOSE)
    for name in ("running_mean", "running_var"):
        expected = io[f"concat_trainmode_{name}_conv_0_conv1"]
        torch.testing.assert_close(net.state_dict()[f"conv_0.conv1.1.{name}"], expected, **CLOSE)


def test_a_channel_of_zeros_counts_where_it_is_a_channel(place: Path, io: dict[str, Tensor]) -> None:
    with_zeros = torch.cat([io["in_x3"], torch.zeros(1, 1, 32, 40)], dim=1)
    present = torch.tensor([[True, True, True, False]])
    counted, without = io["concat_out_x3_plus_zero_channel"], io["concat_out_x3"]
    difference = json.loads((place / "channelnet_meta.json").read_text())["zero_channel_max_abs_diff"]
    assert float((counted - without).abs().max()) == pytest.approx(difference, abs=1e-4)
    torch.testing.assert_close(run(original(place, "concat"), with_zeros), counted, **CLOSE)
    torch.testing.assert_close(run(original(place, "concat", original=True), with_zeros, present), counted, **CLOSE)
    torch.testing.assert_close(run(original(place, "concat"), with_zeros, present), without, **CLOSE)


def test_it_feeds_instanseg_what_the_original_feeds_it(place: Path) -> None:
    state = load_file(place / "instanseg_tiny_nc.safetensors")
    prefix = "model.AdaptorNet."
    net = ChannelNet(AdapterConfig(widths=(4, 6, 8)))
    net.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    with np.load(place / "instanseg_tiny_io.npz") as stored:
        pixels, expected = torch.from_numpy(stored["image_padded"]), torch.from_numpy(stored["adaptor_out"])
    torch.testing.assert_close(run(net.eval(), pixels[None])[0], expected, **CLOSE)


# What must not matter


@pytest.mark.parametrize("mode", MODES)
def test_order_and_repetition_of_channels_change_no_bit(place: Path, io: dict[str, Tensor], mode: str) -> None:
    net = original(place, mode)
    for name in ("x3", "x5"):
        pixels = io[f"in_{name}"]
        out = run(net, pixels)
        for order in ([2, 1, 0, 3, 4], [1, 2, 0, 4, 3], [0, 1, 2, 3, 4, 1], [0, 0, 0, 1, 2, 3, 4, 4]):
            order = [channel for channel in order if channel < pixels.shape[1]]
            assert torch.equal(run(net, pixels[:, order]), out)


@settings(max_examples=15)
@given(st.data())
def test_order_repetition_and_passes_change_no_bit(data: st.DataObject) -> None:
    aggregation = data.draw(st.sampled_from(["concat", "sum", "none"]))
    norm = data.draw(st.sampled_from(["batch", "instance", "none"]))
    channels = data.draw(st.integers(1, 6))
    # Twice halved, a side of 8 is 2: instances of one pixel have no variance.
    height, width = data.draw(st.integers(8, 18)), data.draw(st.integers(8, 18))
    order = data.draw(st.permutations(list(range(channels)))) + data.draw(
        st.lists(st.integers(0, channels - 1), max_size=3)
    )
    net = small(aggregation=aggregation, norm=norm)
    pixels = images(2, channels, height, width, seed=channels)
    assert torch.equal(run(net, pixels[:, order]), run(net, pixels))


@settings(max_examples=15)
@given(st.data())
def test_an_image_gives_the_same_alone_as_among_other_panels(data: st.DataObject) -> None:
    norm = data.draw(st.sampled_from(["batch", "instance"]))
    net = small(aggregation=data.draw(st.sampled_from(["concat", "sum", "none"])), norm=norm)
    counts = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    most = max(counts)
    pixels = images(len(counts), most, 16, 12, seed=most)
    present = torch.zeros(len(counts), most, dtype=torch.bool)
    for row, count in enumerate(counts):
        # Wherever the channels that pad stand.
        present[row, data.draw(st.permutations(list(range(most))))[:count]] = True
    # No value of a channel that is not there may come through, whatever it is.
    pixels[~present] = float("nan")
    together = run(net, pixels, present)
    for row in range(len(counts)):
        assert torch.equal(together[row], run(net, pixels[row][present[row]][None])[0])
    net, pixels = net.double(), pixels.double()
    exact = net(pixels, present).detach()
    torch.testing.assert_close(exact, run(net, pixels, present), atol=1e-6, rtol=1e-6)
    if norm == "batch":
        torch.testing.assert_close(exact, together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("aggregation", ["concat", "sum", "none"])
@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
def test_channels_a_few_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch, aggregation: str, norm: str) -> None:
    net, pixels = small(aggregation=aggregation, norm=norm), images(3, 7, 20, 24)
    if norm == "instance":  # maps of 30 pixels that hardly vary, normalised: float32 alone leaves more than 1e-5
        net, pixels = net.double(), pixels.double()
    at_once: list[int] = []
    net.conv_0.register_forward_hook(lambda _, inputs, __: at_once.append(len(inputs[0])))
    with torch.enable_grad():
        whole = net(pixels).detach()
    assert at_once == [21]
    for most, passes in ((1, [1] * 21), (2, [2, 2, 2, 1] * 3), (14, [14, 7]), (21, [21])):
        monkeypatch.setattr(channelnet, "_most", lambda _, most=most: most)
        at_once.clear()
        torch.testing.assert_close(run(net, pixels), whole, atol=1e-5, rtol=1e-5)
        assert at_once == passes


def test_channels_that_pad_train_nothing() -> None:
    """Not the output, not the statistics, not the gradients: as if the batch were a list of panels."""
    pixels, present = images(3, 4, 16, 20), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 1]]).bool()
    found = []
    for padding in (0.0, 1e3, float("nan")):
        net = small(seed=1).train()
        padded = torch.where(present[:, :, None, None], pixels, padding)
        out = net(padded, present)
        out.square().mean().backward()
        buffers = {name: value.clone() for name, value in net.named_buffers()}
        found.append((out.detach(), buffers, {n: p.grad for n, p in net.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[1], found[0], atol=0, rtol=0)
    torch.testing.assert_close(found[2], found[0], atol=0, rtol=0)
    # The first convolution is one factor and one summand a feature, so its statistics are those of the pixels.
    net = small(seed=1).train()
    before = net.state_dict()["conv_0.conv0.1.running_mean"].clone()
    net(pixels, present)
    layer = net.conv_0.conv0[0]
    mean = (layer.weight[:, 0, 0, 0] * pixels[present].mean() + layer.bias).detach()
    torch.testing.assert_close(net.state_dict()["conv_0.conv0.1.running_mean"], 0.95 * before + 0.05 * mean)


# Learning


@pytest.mark.parametrize("aggregation", ["concat", "sum", "none"])
@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
def test_gradients_reach_every_parameter_that_is_used(aggregation: str, norm: str) -> None:
    net = small(aggregation=aggregation, norm=norm).train()
    (net(images(2, 3, 16, 16)) * images(2, 3, 16, 16, seed=1)).sum().backward()
    for name, value in net.named_parameters():
        if name.startswith("upcat_1.reduce_block"):
            assert value.grad is None
        else:
            assert value.grad is not None, name
            assert torch.isfinite(value.grad).all(), name
    if norm == "none":  # before a normalisation a bias moves nothing
        dead = [n for n, p in net.named_parameters() if p.grad is not None and not p.grad.any()]
        assert [name for name in dead if name.endswith("0.weight")] == []


def test_gradients_are_those_of_differences() -> None:
    net = small(norm="instance").double()
    pixels = images(1, 2, 8, 8).double()
    weights = images(1, 3, 8, 8, seed=5).double()
    parameter = net.down_1.get_submodule("reduce_block")[0].weight  # type: ignore[index]
    before = parameter.detach().clone()

    def value(step: float) -> float:
        with torch.no_grad():
            parameter.copy_(before)
            parameter[1, 2, 0, 1] += step
            # In float64 until the last cast, so that the difference is not lost.
            return float((net.final_conv(net._features([pixels.view(2, 1, 8, 8)], [2])) * weights).sum())

    numeric = (value(1e-6) - value(-1e-6)) / 2e-6
    value(0.0)
    (net(pixels).double() * weights).sum().backward()
    assert float(parameter.grad[1, 2, 0, 1]) == pytest.approx(numeric, rel=1e-4)
    assert abs(numeric) > 1e-3


def test_it_learns_a_function_of_the_set_of_channels() -> None:
    """The brightest channel at each place, of panels of several sizes: most of what varies in it."""
    net = build_adapter(AdapterConfig(widths=(4, 6, 8), out_channels=1), seed=3)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(0)

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        pixels = torch.rand(6, 3, 12, 12, generator=generator)
        # Panels of one, two and three channels.
        present = torch.tensor([[True] * (1 + row % 3) + [False] * (2 - row % 3) for row in range(6)])
        return pixels, present, pixels.masked_fill(~present[:, :, None, None], 0).amax(dim=1, keepdim=True)

    for _ in range(100):
        pixels, present, wanted = batch()
        loss = (net(pixels, present) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    pixels, present, wanted = batch()
    order = [2, 0, 1]
    with torch.inference_mode():
        error = (net.eval()(pixels[:, order], present[:, order]) - wanted).square().mean()
    assert float(error) < 0.5 * float(wanted.var())


# Sizes and types


@pytest.mark.parametrize("size", [(30, 33), (5, 7), (4, 6)])
def test_other_sizes_are_continued_by_reflection_and_cropped(size: tuple[int, int]) -> None:
    net, pixels = small(), images(2, 2, *size)
    margins = [(0, 0), (0, 0), (0, -size[0] % 4), (0, -size[1] % 4)]
    continued = torch.from_numpy(np.pad(pixels.numpy(), margins, mode="reflect"))
    out = run(net, pixels)
    assert out.shape == (2, 3, *size)
    assert torch.equal(out, run(net, continued)[..., : size[0], : size[1]])


def test_the_smallest_images_work() -> None:
    for height in (1, 2, 3):
        for width in (1, 2, 3, 5):
            out = run(small(), images(1, 2, height, width))
            assert out.shape == (1, 3, height, width)
            assert torch.isfinite(out).all()


def test_the_output_is_float32_and_plain() -> None:
    net = small(out_channels=5)
    out = run(net, images(2, 3, 8, 8).contiguous(memory_format=torch.channels_last))
    assert out.dtype == torch.float32
    assert out.shape == (2, 5, 8, 8)
    assert torch.equal(out, run(net, images(2, 3, 8, 8)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = run(net, images(2, 3, 8, 8))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, out, atol=0.1, rtol=0.1)


def test_weights_in_channels_last_train_as_exactly(place: Path, io: dict[str, Tensor]) -> None:
    net = original(place, "concat").train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels = io["in_x5"].contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(pixels).detach(), io["concat_trainmode_out_x5"], **CLOSE)


@pytest.mark.parametrize(
    ("shape", "present", "told"),
    [
        ((1, 0, 8, 8), None, "(1, 0, 8, 8)"),
        ((2, 8, 8), None, "(2, 8, 8)"),
        ((1, 2, 0, 8), None, "(1, 2, 0, 8)"),
        ((1, 2, 8, 8), torch.ones(1, 3).bool(), "(1, 3)"),
        ((1, 2, 8, 8), torch.ones(1, 2), "torch.float32"),
        ((2, 2, 8, 8), torch.tensor([[True, False], [False, False]]), "image 1"),
    ],
)
def test_what_cannot_be_read_is_told(shape: tuple[int, ...], present: Tensor | None, told: str) -> None:
    with pytest.raises(SlideloomError) as caught:
        small()(torch.zeros(shape), present)
    assert caught.value.code == "adapter_input"
    assert told in str(caught.value)
