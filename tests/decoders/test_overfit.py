"""Each head and each variant can learn two tiles by heart.

Near zero means: within 200 steps of Adam the loss falls below 2 % of what it was before the first step. The loss is, of
each head, the sum of mean cross-entropy and Dice, or ten times the mean squared error of HV maps. Measured with two
seeds each: 39 to 95 steps; 200 leave room for another machine's rounding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.decoders.variants import ATTENTIONS, HEADS
from torch import Tensor

from slideloom.config.model import DecoderConfig, Head, LossConfig
from slideloom.decoders.base import Decoder
from slideloom.decoders.build import build_decoder
from slideloom.training.terms import total_loss

LOSS = LossConfig(cross_entropy=1, dice=1, focal_tversky=0, hv_mse=10, hv_msge=0, boundary=1)
NEAR_ZERO, STEPS = 0.02, 200
CLASSES, WIDTH = 4, 24


def two_tiles(patch_px: int = 8) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
    """Random tokens and images; three round nuclei a tile, of three classes."""
    side = 34 if patch_px == 14 else 32
    generator = torch.Generator().manual_seed(3)
    tokens = [torch.randn(2, WIDTH, side // patch_px, side // patch_px, generator=generator) for _ in range(4)]
    image = torch.randn(2, 3, side, side, generator=generator)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    flat = {name: torch.zeros(2, side, side, dtype=torch.long) for name in ("nucleus", "classes", "boundary")}
    hv = torch.zeros(2, 2, side, side)
    for tile in range(2):
        for k, (row, column, radius) in enumerate([(8, 9 + 6 * tile, 5), (22, 8, 6), (20 + 2 * tile, 24, 4)]):
            away = ((y - row) ** 2 + (x - column) ** 2).sqrt()
            inside = away <= radius
            flat["nucleus"][tile][inside] = 1
            flat["classes"][tile][inside] = 1 + (k + tile) % 3
            flat["boundary"][tile][inside & (away > radius - 1.5)] = 1
            hv[tile, :, inside] = (torch.stack([x - column, y - row]) / radius)[:, inside]
    return tokens, image, flat | {"hv": hv, "valid": torch.ones(2, side, side, dtype=torch.bool)}


def steps_to_near_zero(
    decoder: Decoder, tokens: list[Tensor], image: Tensor, targets: dict[str, Tensor], lr: float = 1e-2
) -> int:
    """Steps that it took; fails where the loss stays up."""
    decoder.train()
    optimiser = torch.optim.Adam(decoder.parameters(), lr=lr, fused=True)
    values: list[float] = []
    for step in range(STEPS):
        optimiser.zero_grad(set_to_none=True)
        loss, _ = total_loss(decoder(tokens, image), targets, LOSS)
        values.append(loss.item())
        if values[-1] < NEAR_ZERO * values[0]:
            return step
        loss.backward()
        optimiser.step()
    pytest.fail(f"from {values[0]:.3f} to no less than {min(values):.3f} in {STEPS} steps")


@pytest.mark.parametrize("head", HEADS)
def test_each_head(head: Head) -> None:
    decoder = build_decoder(DecoderConfig(width=0.125), [head], CLASSES, WIDTH, 8, 3, seed=0)
    assert steps_to_near_zero(decoder, *two_tiles()) > 5


@pytest.mark.parametrize("settings", [{"skips": False}, {"image_skip": False}, {"skips": False, "image_skip": False}])
def test_each_choice_of_skips(settings: dict[str, Any]) -> None:
    decoder = build_decoder(DecoderConfig(width=0.125, **settings), ["nucleus"], CLASSES, WIDTH, 8, 3, seed=0)
    assert steps_to_near_zero(decoder, *two_tiles()) > 5


@pytest.mark.parametrize(
    ("patch_px", "attention", "branches"),
    [
        (8, "global", "shared"),
        (8, "masked", "shared"),
        (16, "both", "shared"),
        (14, "both", "shared"),
        (8, "both", "separate"),
    ],
)
def test_each_attention(patch_px: int, attention: str, branches: str) -> None:
    heads: list[Head] = ["nucleus"] if branches == "shared" else ["nucleus", "hv"]
    config = DecoderConfig(width=0.125, branches=branches, attention_window_px=8, **ATTENTIONS[attention])
    decoder = build_decoder(config, heads, CLASSES, WIDTH, patch_px, 3, seed=0)
    assert steps_to_near_zero(decoder, *two_tiles(patch_px)) > 5
    # What was learnt was learnt with attention: every last projection left its zeros.
    last = [value.detach() for name, value in decoder.named_parameters() if name.endswith(".out.weight")]
    assert len(last) == len(ATTENTIONS[attention]) * (2 if branches == "separate" else 1)
    assert all(float(value.abs().max()) > 0.01 for value in last)


@pytest.mark.parametrize("patch_px", [8, 16])
def test_linear_learns_what_a_linear_decoder_drew(patch_px: int) -> None:
    """It cannot draw more than one value a token, so it is asked for maps that another one of its kind made."""
    config = DecoderConfig(kind="linear")
    tokens, image, _ = two_tiles(patch_px)
    with torch.no_grad():
        drawn = build_decoder(config, HEADS, CLASSES, WIDTH, patch_px, 3, seed=5)(tokens, image)
    targets = {
        "nucleus": drawn["nucleus"].argmax(1),
        "classes": drawn["classes"].argmax(1),
        "boundary": (drawn["boundary"][:, 0] > 0).long(),
        "hv": drawn["hv"],
        "valid": torch.ones(2, *image.shape[-2:], dtype=torch.bool),
    }
    decoder = build_decoder(config, HEADS, CLASSES, WIDTH, patch_px, 3, seed=0)
    assert steps_to_near_zero(decoder, tokens, image, targets, lr=0.1) > 5
