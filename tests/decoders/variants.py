"""Decoders and inputs of every variant, small."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from slideloom.config.model import DecoderConfig, Head
from slideloom.decoders.base import HEADS as EVERY_HEAD

CLASSES = 4
CHANNELS: dict[Head, int] = {
    "nucleus": 2,
    "hv": 2,
    "classes": CLASSES,
    "boundary": 1,
    "distance": 1,
    "three_class": 3,
    "instanseg": 5,
    "instanseg_cells": 5,
}
BRANCH = {
    "nucleus": "nuclei_binary_map_decoder",
    "hv": "hv_map_decoder",
    "classes": "nuclei_type_maps_decoder",
    "boundary": "boundary_map_decoder",
    "distance": "distance_map_decoder",
    "three_class": "three_class_map_decoder",
    "instanseg": "instanseg_map_decoder",
    "instanseg_cells": "instanseg_cells_map_decoder",
}
ATTENTIONS: dict[str, dict[str, Any]] = {
    "global": {"global_context": True},
    "masked": {"masked_attention": True},
    "both": {"global_context": True, "masked_attention": True},
}
#: The heads that published models have, and boundaries.
HEADS = EVERY_HEAD[:4]
#: Every choice among them, and each of the others beside the nuclei.
SUBSETS: list[tuple[Head, ...]] = [heads for count in range(1, 5) for heads in combinations(HEADS, count)]
SUBSETS += [("nucleus", head) for head in EVERY_HEAD[4:]]


def narrow(**settings: Any) -> DecoderConfig:
    return DecoderConfig(**{"width": 1 / 16, "attention_window_px": 8, **settings})


def inputs(patch_px: int = 8, width: int = 12, count: int = 2, seed: int = 5) -> tuple[list[Tensor], Tensor]:
    """Two by three tokens and an image of three channels; of 14 pixels a token, some pixels over."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randn(count, width, 2, 3, generator=generator) for _ in range(4)]
    over = 6 if patch_px == 14 else 0
    image = torch.randn(count, 3, 2 * patch_px + over, 3 * patch_px + over, generator=generator)
    return tokens, image


def awake(decoder: Any, seed: int = 0) -> Any:
    """The decoder with attention that is felt, in evaluation mode.

    Last projections are drawn, where they would be zero. Normalisations have seen a batch, and background weighs as
    much as all other classes: else maps would be nearly flat, and all or nothing foreground.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in decoder.named_parameters():
        if ".out." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    for module in decoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    if "classes" in decoder.heads:
        with torch.no_grad():
            decoder.get_parameter(f"{decoder.last_layer('classes')}.bias")[0] += math.log(decoder.n_classes - 1)
    tokens, image = inputs(decoder.patch_px, decoder.token_width)
    with torch.no_grad():
        decoder.train()(tokens, image if decoder.needs_image else None, image.shape[-2:])
    return decoder.eval()
