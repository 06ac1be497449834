"""How maps lie in memory while a network trains."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from slideloom.config.model import DecoderConfig, Head
from slideloom.decoders.build import build_decoder
from slideloom.training.batch import Batch, layout_on

CPU = torch.device("cpu")


def test_layouts() -> None:
    assert layout_on(CPU) == torch.contiguous_format
    assert layout_on(torch.device("cuda")) == torch.channels_last


def test_a_batch_lies_plain_on_a_cpu_and_a_repeated_token_map_stays_one() -> None:
    token = torch.rand(2, 4, 4, 8).permute(0, 3, 1, 2)
    image = torch.rand(2, 16, 16, 3).permute(0, 3, 1, 2)
    batch = Batch([token, token], image, {"valid": torch.ones(2, 16, 16, dtype=torch.bool)}).to(CPU)
    assert batch.tokens[0] is batch.tokens[1]
    assert batch.image is not None
    for plain, given in ((batch.tokens[0], token), (batch.image, image)):
        assert plain.is_contiguous()
        assert torch.equal(plain, given)


def _step(net: nn.Module, image: torch.Tensor) -> tuple[float, torch.Tensor]:
    """A loss of every output, and the outputs; its slopes are worked out, too."""
    outputs = net.train()([], image, (64, 64))
    loss = sum(maps.square().mean() for maps in outputs.values())
    loss.backward()
    return loss.item(), torch.cat([maps.detach().double().flatten() for maps in outputs.values()])


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        (DecoderConfig(kind="hovernet", width=0.125), ["nucleus", "hv"]),
        (DecoderConfig(kind="unet", backbone="resnet18"), ["nucleus", "distance"]),
        (DecoderConfig(kind="instanseg", widths=[8, 16, 32]), ["nucleus", "instanseg"]),
    ],
    ids=["hovernet", "unet", "instanseg"],
)
def test_a_step_on_a_cpu_loses_no_digits(config: DecoderConfig, heads: list[Head]) -> None:
    # HoVer-Net in channels last: loss wrong by 8e-6, outputs by 4e-4.
    net = build_decoder(config, heads, 0, 1, 8, 3, 0, patch_px=8)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    exact, maps = _step(copy.deepcopy(net).double(), image.double())
    layout = layout_on(CPU)
    loss, found = _step(net.to(memory_format=layout), image.contiguous(memory_format=layout))  # type: ignore[call-overload]
    assert loss == pytest.approx(exact, rel=2e-6)
    assert float((found - maps).norm()) < 1e-4 * float(maps.norm())
