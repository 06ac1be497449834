"""The adapter that a config asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from slideloom.adapters.base import Adapter
from slideloom.adapters.channel_adapter import ChannelAdapter
from slideloom.adapters.channelnet import ChannelNet
from slideloom.adapters.pass_through import PassThrough
from slideloom.config.model import AdapterConfig

__all__ = ["adapter_from_recipe", "build_adapter"]


def build_adapter(config: AdapterConfig, seed: int | None = None) -> Adapter:
    """Build the adapter that a config asks for, with PyTorch's initial weights.

    Parameters
    ----------
    config : AdapterConfig
        Kind and variants.
    seed : int, optional
        Draw the weights from this seed and leave the global generator as it was; left out: draw from the global one.

    Returns
    -------
    Adapter
        On the CPU, float32, in training mode.
    """
    kinds: dict[str, type[Adapter]] = {
        "channelnet": ChannelNet,
        "channel_adapter": ChannelAdapter,
        "pass_through": PassThrough,
    }
    kind = kinds[config.kind]
    if seed is None:
        return kind(config)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return kind(config)


def adapter_from_recipe(recipe: Mapping[str, Any]) -> Adapter:
    """Build the adapter that :meth:`Adapter.recipe <slideloom.adapters.base.Adapter.recipe>` described.

    Its weights are yours to load.
    """
    config = AdapterConfig.model_validate(recipe["config"])
    return PassThrough(config, any_number=True) if recipe.get("any_number") else build_adapter(config)
