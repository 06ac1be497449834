"""The channel adapter, and the replication of channels that it is fed with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from slideloom.adapters.build import build_adapter
from slideloom.adapters.channel_adapter import ChannelAdapter
from slideloom.adapters.channels import replicate
from slideloom.config.model import AdapterConfig
from slideloom.errors import SlideloomError


def adapter(seed: int = 0, **settings: Any) -> ChannelAdapter:
    net = build_adapter(AdapterConfig(kind="channel_adapter", **settings), seed=seed)
    assert isinstance(net, ChannelAdapter)
    return net


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_the_reports_replication() -> None:
    """Two channels, sixteen times; one channel doubled first comes to the same as one 32 times."""
    panel = images(3, 2, 4, 5)
    assert torch.equal(replicate(panel, 32), panel.repeat(1, 16, 1, 1))
    single = panel[:, :1]
    assert torch.equal(replicate(single, 32), torch.cat([single, single], 1).repeat(1, 16, 1, 1))


@given(st.integers(1, 9), st.integers(0, 12), st.data())
def test_channels_go_round_and_the_last_round_is_cut(most: int, more: int, data: st.DataObject) -> None:
    to = most + more
    counts = data.draw(st.lists(st.integers(1, most), min_size=1, max_size=4))
    present = torch.zeros(len(counts), most, dtype=torch.bool)
    for row, count in enumerate(counts):
        present[row, data.draw(st.permutations(list(range(most))))[:count]] = True
    pixels = images(len(counts), most, 2, 3)
    pixels[~present] = float("nan")
    full = replicate(pixels, to, present)
    assert full.shape == (len(counts), to, 2, 3)
    for row in range(len(counts)):
        mine = pixels[row][present[row]]
        assert torch.equal(full[row], torch.stack([mine[place % len(mine)] for place in range(to)]))


def test_a_panel_that_is_too_large_is_told() -> None:
    pixels, present = images(2, 5, 4, 4), torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    with pytest.raises(SlideloomError) as caught:
        replicate(pixels, 4)
    assert caught.value.code == "adapter_channels"
    assert "5 channels" in str(caught.value)
    with pytest.raises(SlideloomError, match="5 channels"):
        replicate(pixels, 4, present)
    # What pads a small panel takes no place.
    assert replicate(pixels[1:], 4, present[1:]).shape == (1, 4, 4, 4)


def test_it_has_the_layers_of_the_report() -> None:
    net = adapter()
    sizes = {name: tuple(value.shape) for name, value in net.named_parameters() if name.endswith("weight")}
    assert sizes == {
        "conv1.weight": (32, 32, 3, 3),
        "bn1.weight": (32,),
        "conv2.weight": (32, 32, 3, 3),
        "bn2.weight": (32,),
        "conv_out.weight": (3, 32, 1, 1),
    }
    # 2 · (32·32·9 + 32) of the convolutions, 2 · 64 of the normalisations, 32·3 + 3 of the last.
    assert sum(value.numel() for value in net.parameters()) == 18_723


def test_the_output_is_what_its_description_says() -> None:
    net = adapter(in_channels=4, out_channels=2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in net.named_buffers():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5 * ("var" in name))
    pixels = images(1, 4, 7, 9, seed=2)
    state = {name: value.double().numpy() for name, value in net.state_dict().items()}

    def normalised(maps: np.ndarray, conv: str, norm: str) -> np.ndarray:
        out = np.stack(
            [
                sum(ndimage.correlate(one, kernel, mode="constant") for one, kernel in zip(maps, kernels, strict=True))
                for kernels in state[f"{conv}.weight"]
            ]
        )
        rows = {name: state[f"{norm}.{name}"][:, None, None] for name in ("weight", "bias", "running_mean")}
        scale = rows["weight"] / np.sqrt(state[f"{norm}.running_var"][:, None, None] + 1e-5)
        return (out + state[f"{conv}.bias"][:, None, None] - rows["running_mean"]) * scale + rows["bias"]

    hidden = np.maximum(normalised(pixels[0].double().numpy(), "conv1", "bn1"), 0)
    hidden = np.maximum(normalised(hidden, "conv2", "bn2") + hidden, 0)
    expected = np.tensordot(state["conv_out.weight"][:, :, 0, 0], hidden, 1) + state["conv_out.bias"][:, None, None]
    with torch.inference_mode():
        np.testing.assert_allclose(net.eval()(pixels)[0].numpy(), expected, atol=1e-5)


def test_the_input_is_added_where_it_fits() -> None:
    for out_channels, added in ((5, True), (4, False)):
        net = adapter(in_channels=5, out_channels=out_channels)
        torch.nn.init.zeros_(net.conv_out.weight)
        torch.nn.init.zeros_(net.conv_out.bias)  # type: ignore[arg-type]
        pixels = images(2, 5, 6, 6)
        out = net.eval()(pixels).detach()
        assert torch.equal(out, pixels if added else torch.zeros(2, 4, 6, 6))


@settings(max_examples=15)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_an_image_gives_the_same_alone_as_among_other_panels(counts: list[int]) -> None:
    net = adapter(in_channels=8).eval()
    present = torch.tensor([[place < count for place in range(max(counts))] for count in counts])
    pixels = images(len(counts), max(counts), 9, 6)
    pixels[~present] = float("nan")
    with torch.inference_mode():
        together = net(pixels, present)
        for row, count in enumerate(counts):
            torch.testing.assert_close(together[row], net(pixels[row : row + 1, :count])[0], atol=1e-6, rtol=1e-6)


def test_gradients_reach_every_parameter() -> None:
    net = adapter()
    (net(images(2, 2, 8, 8)) * images(2, 3, 8, 8, seed=1)).sum().backward()
    for name, value in net.named_parameters():
        assert value.grad is not None, name
        assert torch.isfinite(value.grad).all(), name
        # Before a normalisation a bias moves nothing.
        assert value.grad.any() or name in ("conv1.bias", "conv2.bias"), name


def test_the_output_is_float32_of_any_size() -> None:
    net = adapter(in_channels=3, out_channels=7).eval()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(images(2, 1, 5, 3))
    assert out.dtype == torch.float32
    assert out.shape == (2, 7, 5, 3)


def test_pass_through_hands_on_what_there_is() -> None:
    adapter = build_adapter(AdapterConfig(kind="pass_through"))
    assert not list(adapter.parameters())
    images = torch.randn(2, 2, 5, 7, generator=torch.Generator().manual_seed(3))
    found = adapter(images, torch.tensor([[True, True], [True, False]]))
    torch.testing.assert_close(found[0], images[0, [0, 1, 0]], atol=0, rtol=0)
    torch.testing.assert_close(found[1], images[1, [0, 0, 0]], atol=0, rtol=0)
    with pytest.raises(SlideloomError, match="4"):
        adapter(torch.zeros(1, 4, 5, 7))
