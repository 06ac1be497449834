"""The contract at its door: a file that is not exactly the model's builds no encoder, says why, and runs nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slideloom.config.model import EncoderConfig
from slideloom.encoders.base import Encoder
from slideloom.encoders.cellvit.encoder import encoder_module
from slideloom.encoders.registry import build_encoder
from slideloom.encoders.timm_models.torchvision_guard import ensure_torchvision
from slideloom.errors import SlideloomError

State = dict[str, Tensor]


def cellvit() -> State:
    """ViT-256 at its real sizes, as a CellViT holds it; values from one allocation."""
    with torch.device("meta"):
        module = encoder_module("vit256", tissue_classes=19)
    return {f"encoder.{name}": torch.full(value.shape, 0.01) for name, value in module.state_dict().items()}


def timm_vit() -> State:
    ensure_torchvision()
    import timm

    return dict(timm.create_model("test_vit", num_classes=0).state_dict())


MODELS: dict[str, tuple[Callable[[], State], str]] = {
    "timm/test_vit": (timm_vit, "blocks.2.attn.qkv.weight"),
    "cellvit/vit256": (cellvit, "encoder.blocks.2.attn.qkv.weight"),
}


@pytest.fixture(scope="module", params=sorted(MODELS))
def case(request: pytest.FixtureRequest) -> tuple[str, State, str]:
    """Model, its whole state dict, one of its keys."""
    make, key = MODELS[request.param]
    return request.param, make(), key


def build(model: str, path: Path, rgb_channels: Any) -> Encoder:
    return build_encoder(EncoderConfig(model=model, grid="g", checkpoint=path), rgb_channels)


def refused(model: str, content: Any, path: Path, rgb_channels: Any) -> SlideloomError:
    torch.save(content, path)
    with pytest.raises(SlideloomError) as caught:
        build(model, path, rgb_channels)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


def test_the_right_file_builds_it(case: tuple[str, State, str], tmp_path: Path, rgb_channels: Any) -> None:
    model, state, _ = case
    torch.save(state, tmp_path / "a.pth")
    encoder = build(model, tmp_path / "a.pth", rgb_channels)
    assert encoder.weights.startswith("sha256:")


def test_keys_and_shapes(case: tuple[str, State, str], tmp_path: Path, rgb_channels: Any) -> None:
    model, state, key = case
    path = tmp_path / "a.pth"
    lacking = refused(model, {name: value for name, value in state.items() if name != key}, path, rgb_channels)
    assert (lacking.code, "1 missing: " in lacking.what, key in lacking.what) == ("checkpoint_keys", True, True)
    extra = refused(model, state | {f"{key}.more": torch.zeros(1)}, path, rgb_channels)
    assert (extra.code, f"1 unexpected: {key}.more" in extra.what) == ("checkpoint_keys", True)
    shape = tuple(state[key].shape)
    turned = refused(model, state | {key: torch.zeros(shape[::-1])}, path, rgb_channels)
    assert (turned.code, f"{key} {shape[::-1]} instead of {shape}" in turned.what) == ("checkpoint_keys", True)


def test_code_in_the_file(case: tuple[str, State, str], tmp_path: Path, rgb_channels: Any) -> None:
    model, state, _ = case
    sentinel = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {sentinel}",)

    error = refused(model, {"model": state, "config": {"note": Evil()}}, tmp_path / "a.pth", rgb_channels)
    assert error.code == "unsafe_checkpoint"
    assert not sentinel.exists()


def test_a_file_cut_short(case: tuple[str, State, str], tmp_path: Path, rgb_channels: Any) -> None:
    model, state, _ = case
    path = tmp_path / "a.pth"
    torch.save(state, path)
    os.truncate(path, path.stat().st_size - 1000)
    with pytest.raises(SlideloomError) as caught:
        build(model, path, rgb_channels)
    assert caught.value.code == "unreadable_checkpoint"


@pytest.mark.parametrize("model", ["cellvit/sam_b", "cellvit/uni", "cellvit/vit", "timm/test_vit"])
def test_another_models_file(model: str, tmp_path: Path, rgb_channels: Any) -> None:
    error = refused(model, cellvit(), tmp_path / "a.pth", rgb_channels)
    assert error.code in {"checkpoint_arch", "checkpoint_keys"}
    assert error.where == model
    assert error.hint
