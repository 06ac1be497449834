"""InstanSeg's network and loss together learn two small images by heart, and part nuclei that touch."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import maximum_filter
from torch import Tensor

from slideloom.config.model import DecoderConfig, LossConfig
from slideloom.decoders.build import build_decoder
from slideloom.decoders.instanseg import InstanSeg
from slideloom.decoders.instanseg_head import fields
from slideloom.training.instanseg_loss import instanseg_loss

#: Six seeds of six part the discs with them, on either of two kinds of processor.
SIDE, STEPS, HOT_STEPS, RATE = 64, 220, 40, 5e-3
#: Row, column and radius of each disc; the first two of an image touch.
DISCS = [[(30, 21, 9), (30, 40, 9), (53, 52, 7)], [(22, 20, 8), (35, 28, 8), (14, 48, 8)]]


def two_images() -> tuple[Tensor, Tensor]:
    """Bright discs in noise, and their ids."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    instances = np.zeros((2, SIDE, SIDE), np.int32)
    for patch, discs in zip(instances, DISCS, strict=True):
        for name, (row, column, radius) in enumerate(discs, 1):
            patch[((y - row) ** 2 + (x - column) ** 2 <= radius**2) & (patch == 0)] = name
    image = (instances > 0)[:, None] + 0.1 * rng.standard_normal((2, 1, SIDE, SIDE))
    return torch.from_numpy(image.astype(np.float32)), torch.from_numpy(instances)


def touching(patch: Tensor, one: int, other: int) -> bool:
    pairs = [(patch[1:], patch[:-1]), (patch[:, 1:], patch[:, :-1])]
    return any(bool((((a == one) & (b == other)) | ((a == other) & (b == one))).any()) for a, b in pairs)


def test_touching_discs_get_a_seed_each() -> None:
    image, instances = two_images()
    assert all(touching(patch, 1, 2) for patch in instances)
    valid = torch.ones_like(instances, dtype=torch.bool)
    config = DecoderConfig(kind="instanseg", widths=(8, 16, 16))
    network = build_decoder(config, ("instanseg",), 2, 1, 16, 1, 0)
    assert isinstance(network, InstanSeg)
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE, fused=True)
    rng = np.random.default_rng(0)
    hot_losses, losses = [], []
    for step in range(STEPS):
        hot = step < HOT_STEPS
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        optimiser.zero_grad(set_to_none=True)
        raw = network([], image)["instanseg"]
        of_instances, of_seeds = instanseg_loss(
            raw, instances, valid, network.pixel_classifier, LossConfig(), hot, rng, window_px=40
        )
        loss = 1.5 * of_instances + of_seeds
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 20)
        optimiser.step()
        (hot_losses if hot else losses).append(loss.item())
    # Before the first seeds are found there is no loss of instances, so the first steps say little.
    assert hot_losses[-1] < 0.8 * max(hot_losses)
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])

    with torch.no_grad():
        for _ in range(40):  # running statistics lag behind so few, so large steps
            network([], image)
        seed = fields(network.eval()([], image)["instanseg"]).seed
    for values, patch in zip(seed[:, 0].numpy(), instances, strict=True):
        seeds = np.argwhere((maximum_filter(values, 11) == values) & (values > 0.5))
        assert sorted(patch[row, column].item() for row, column in seeds) == [1, 2, 3]
