"""The registry: what may be named, and what is refused before a model is made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slideloom.config.catalogue import CATALOGUE
from slideloom.config.model import EncoderConfig
from slideloom.encoders import registry
from slideloom.encoders.base import EncoderSpec, check_patch_px, check_tile, even_blocks, resolve_blocks
from slideloom.encoders.registry import build_encoder, find_encoder
from slideloom.errors import SlideloomError
from slideloom.slides.tables import Channel

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}


def test_find_encoder() -> None:
    assert find_encoder("mean_marker").kind == "markers"
    assert find_encoder("timm/vit_tiny_patch16_224").kind == "rgb"
    for wrong in ("timm/", "timm", "mean_markers", "cellvit", "timm/<name>"):
        with pytest.raises(SlideloomError, match="there is no encoder") as caught:
            find_encoder(wrong)
        assert caught.value.code == "encoder_model"
    with pytest.raises(SlideloomError, match=r"expected mean_marker or mean_rgb\)"):
        find_encoder("mean_markers")
    with pytest.raises(SlideloomError, match="cellvit/vit256 or cellvit/sam_b"):
        find_encoder("cellvit/resnet")


def test_every_family_has_a_builder() -> None:
    assert {entry.family for entry in CATALOGUE.values()} == set(registry._BUILDERS)


def test_a_model_of_timm_is_built_by_name(rgb_channels: list[Channel]) -> None:
    encoder = build_encoder(EncoderConfig(grid="g", model="timm/test_vit", random=1), rgb_channels)
    assert (encoder.spec.name, encoder.weights) == ("timm/test_vit", "random:1")


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"model": "timm/test_vit"}, "encoder_weights"),
        ({"model": "timm/test_vit", "random": 1, "checkpoint": "a.pth"}, "encoder_weights"),
        ({"model": "mean_marker", "random": 1}, "encoder_weights"),
        ({"model": "timm/test_vit", "random": 1, "markers": ["CD3"]}, "encoder_channels"),
    ],
)
def test_build_encoder_refuses(settings: dict[str, Any], code: str, rgb_channels: list[Channel]) -> None:
    with pytest.raises(SlideloomError) as caught:
        build_encoder(EncoderConfig(grid="g", **settings), rgb_channels)
    assert caught.value.code == code


def test_rgb_encoder_refuses_a_multiplexed_image(channels: Any) -> None:
    with pytest.raises(SlideloomError, match="DNA, CD3") as caught:
        build_encoder(EncoderConfig(grid="g", model="timm/test_vit", random=1), channels("DNA", "CD3"))
    assert caught.value.code == "encoder_channels"


def test_importing_the_registry_loads_no_heavy_library() -> None:
    code = (
        "import sys, slideloom.encoders.registry as r; r.find_encoder('mean_marker');"
        "print([m for m in ('torch', 'timm', 'torchvision', 'matplotlib') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert run.stdout.strip() == "[]"


SPEC = EncoderSpec("e", "rgb", 16, 8, 12, (3, 6, 9, 12), 16)


def test_even_blocks_rise_to_the_last() -> None:
    for depth in range(1, 41):
        blocks = even_blocks(depth)
        assert blocks == tuple(sorted(set(blocks)))
        assert blocks[-1] == depth
        assert len(blocks) == min(4, depth)
        assert blocks[0] >= 1


def test_resolve_blocks() -> None:
    assert resolve_blocks([], SPEC) == (3, 6, 9, 12)
    assert resolve_blocks([1, 12], SPEC) == (1, 12)
    for wrong in ([2, 1], [1, 1], [13]):
        with pytest.raises(SlideloomError, match="blocks") as caught:
            resolve_blocks(wrong, SPEC)
        assert caught.value.code == "encoder_blocks"


def test_check_tile_and_patch() -> None:
    check_tile(32, SPEC)
    check_patch_px(8, "e")
    with pytest.raises(SlideloomError, match="112 or 128") as caught:
        check_tile(120, SPEC)
    assert caught.value.code == "encoder_tile_px"
    with pytest.raises(SlideloomError, match="16 or 32"):
        check_tile(8, SPEC)
    check_patch_px(14, "e")
    with pytest.raises(SlideloomError, match="32 px") as caught:
        check_patch_px(32, "e")
    assert caught.value.code == "encoder_patch_px"
