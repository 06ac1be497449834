"""Building adapters from a config and a recipe."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from slideloom.adapters.build import adapter_from_recipe, build_adapter
from slideloom.config.model import AdapterConfig

CONFIGS: list[dict[str, Any]] = [
    {},
    {"aggregation": "sum", "widths": (4, 4, 8), "norm": "instance", "out_channels": 2},
    {"aggregation": "none", "norm": "none", "original": True},
    {"kind": "channel_adapter"},
    {"kind": "channel_adapter", "in_channels": 5, "out_channels": 5},
]


@pytest.mark.parametrize("settings", CONFIGS)
def test_a_recipe_builds_the_same_adapter(settings: dict[str, Any]) -> None:
    first = build_adapter(AdapterConfig(**settings), seed=7)
    again = adapter_from_recipe(json.loads(json.dumps(first.recipe())))
    assert type(again) is type(first)
    assert again.config == first.config
    again.load_state_dict(first.state_dict())
    images = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    present = torch.tensor([[True, True, True], [True, False, False]])
    with torch.inference_mode():
        out = first.eval()(images, present)
        assert out.shape == (2, first.out_channels, 12, 16)
        assert torch.equal(again.eval()(images, present), out)


@pytest.mark.parametrize("settings", CONFIGS)
def test_the_seed_alone_draws_the_weights(settings: dict[str, Any]) -> None:
    config = AdapterConfig(**settings)
    state = torch.get_rng_state()
    nets = [build_adapter(config, seed=seed).state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, nets[1][name]) for name, value in nets[0].items())
    assert any(not torch.equal(value, nets[2][name]) for name, value in nets[0].items())
    torch.manual_seed(1)
    assert all(torch.equal(value, nets[0][name]) for name, value in build_adapter(config).state_dict().items())
