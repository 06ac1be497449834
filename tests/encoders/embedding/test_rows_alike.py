"""What full batches across slides rest on: in batches of one size, a tile's tokens depend on that tile alone.

Kernels are chosen by the shape of a batch and round differently; so :mod:`slideloom.encoders.embedding.forward` keeps
the shape, and this holds every encoder to the rest, to the last bit.
"""

from __future__ import annotations

import pytest
import torch

from slideloom.config.catalogue import find_entry
from slideloom.config.model import EncoderConfig
from slideloom.encoders.embedding.batches import tiles_per_batch
from slideloom.encoders.fit import marker_panel
from slideloom.encoders.registry import build_encoder
from slideloom.slides.tables import Channel

RGB = [Channel(colour, "") for colour in ("red", "green", "blue")]


@pytest.mark.parametrize(
    ("model", "channels", "tile_px", "precision"),
    [
        ("virtues/tiny", 2, 40, "fp32"),
        ("virtues/tiny", 2, 40, "bf16"),
        ("virtues/tiny", 5, 48, "fp32"),
        ("virtues/tiny", 4, 112, "fp32"),  # taken in pieces
        ("cellvit/vit256", 3, 64, "fp32"),
        ("timm/test_vit", 3, 48, "fp32"),
        ("timm/vit_tiny_patch16_224", 3, 32, "fp32"),
        ("timm/vit_tiny_patch16_224", 3, 32, "bf16"),
        ("mean_marker", 3, 24, "fp32"),
    ],
)
def test_neighbours_and_place_change_no_bit(model: str, channels: int, tile_px: int, precision: str) -> None:
    entry = find_entry(model)
    assert entry is not None
    markers = [f"M{index}" for index in range(channels)]
    accessions = {marker: f"P{index}" for index, marker in enumerate(markers)}
    panel = marker_panel(markers, accessions) if entry.kind == "markers" else RGB
    config = EncoderConfig(model=model, grid="g", random=1 if entry.weights else None)
    encoder = build_encoder(config, panel)
    size = min(8, tiles_per_batch(tile_px, channels, "cpu"))
    images = torch.randn(size, channels, tile_px, tile_px, generator=torch.Generator().manual_seed(1))
    strange = images.clone()
    strange[1:] = torch.nan

    def run(batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
            return torch.stack([encoder.encode(batch)[block].float() for block in encoder.blocks], 1)

    plain = run(images)
    for order in (torch.arange(size).flip(0), torch.randperm(size, generator=torch.Generator().manual_seed(2))):
        assert torch.equal(run(images[order]), plain[order])
    assert torch.equal(run(strange)[:1], plain[:1]), "what is wrong with one tile stays with it"
