"""The residual blocks of ChannelNet and InstanSeg."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from slideloom.adapters.blocks import ConvNormAct, DecoderBlock, EncoderBlock, conv_norm_act

Array = NDArray[np.float64]


def array(value: Tensor) -> Array:
    return value.detach().double().numpy()


def worn(module: nn.Module) -> nn.Module:
    """As after some training: every statistic and weight its own."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) - (0.0 if "running_var" in name else 0.5))
    return module.eval()


def written_out(block: ConvNormAct, maps: Array) -> Array:
    """Convolution, batch normalisation and ReLU of maps (c, h, w), by scipy."""
    conv, norm = block[0], block[1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    weight, bias = array(conv.weight), array(conv.bias)
    out = []
    for kernels, shift in zip(weight, bias, strict=True):
        parts = [ndimage.correlate(one, kernel, mode="constant") for one, kernel in zip(maps, kernels, strict=True)]
        out.append(sum(parts) + shift)
    scale = array(norm.weight) / np.sqrt(array(norm.running_var) + norm.eps)
    moved = (np.stack(out) - array(norm.running_mean)[:, None, None]) * scale[:, None, None]
    return np.maximum(moved + array(norm.bias)[:, None, None], 0)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("pool", [False, True])
def test_an_encoder_block_is_what_its_description_says(pool: bool, gradients: bool) -> None:
    block = worn(EncoderBlock(3, 5, pool=pool, norm="batch"))
    assert isinstance(block, EncoderBlock)
    maps = torch.rand(1, 3, 12, 8, generator=torch.Generator().manual_seed(1))
    x = array(maps[0])
    if pool:
        x = x.reshape(3, 6, 2, 4, 2).max(axis=(2, 4))
    out = written_out(block.conv0, x) + written_out(block.conv2, written_out(block.conv1, x))
    out = out + written_out(block.conv4, written_out(block.conv3, out))
    with torch.set_grad_enabled(gradients):
        np.testing.assert_allclose(array(block(maps)[0]), out, atol=1e-5)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_decoder_block_is_what_its_description_says(gradients: bool) -> None:
    block = worn(DecoderBlock(6, 4, 5, norm="batch"))
    assert isinstance(block, DecoderBlock)
    generator = torch.Generator().manual_seed(1)
    maps, skip = torch.rand(1, 6, 5, 4, generator=generator), torch.rand(1, 4, 10, 8, generator=generator)
    x = array(maps[0]).repeat(2, axis=1).repeat(2, axis=2)
    inner = written_out(block.conv1, x) + written_out(block.conv_skip, array(skip[0]))
    out = written_out(block.conv0, x) + written_out(block.conv2, inner)
    out = out + written_out(block.conv4, written_out(block.conv3, out))
    with torch.set_grad_enabled(gradients):
        np.testing.assert_allclose(array(block(maps, skip)[0]), out, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_batch_statistics_are_exact_in_any_layout(layout: torch.memory_format) -> None:
    """Large batches of values far from zero, where a plain float32 sum would lose digits."""
    block = conv_norm_act(2, 8, 3, "batch").train().to(memory_format=layout)  # type: ignore[call-overload]
    exact = conv_norm_act(2, 8, 3, "batch").double().train()
    exact.load_state_dict(block.state_dict())
    maps = torch.rand(16, 2, 128, 128, generator=torch.Generator().manual_seed(2)) + 3
    out, expected = block(maps.contiguous(memory_format=layout)), exact(maps.double())
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(out[inner].double(), expected[inner], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(
        block.state_dict()["1.running_var"].double(), exact.state_dict()["1.running_var"], atol=0, rtol=1e-5
    )


def test_options_are_the_layers_they_name() -> None:
    for norm, kind in (("batch", nn.BatchNorm2d), ("instance", nn.InstanceNorm2d), ("none", nn.Identity)):
        assert type(conv_norm_act(1, 2, 3, norm)[1]) is kind  # type: ignore[arg-type]
    maps = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 5
    for act, function in (
        ("relu", lambda x: np.maximum(x, 0)),
        ("relu6", lambda x: np.clip(x, 0, 6)),
        ("mish", lambda x: x * np.tanh(np.log1p(np.exp(x)))),
        ("none", lambda x: x),
    ):
        block = conv_norm_act(1, 3, 1, "none", act)  # type: ignore[arg-type]
        conv = block[0]
        assert isinstance(conv, nn.Conv2d)
        linear = array(conv.weight)[:, :, 0] * array(maps[0]) + array(conv.bias)[:, None, None]
        out = block(maps)
        np.testing.assert_allclose(array(out[0]), function(linear), atol=1e-5)
        out.sum().backward()
        assert conv.weight.grad is not None
