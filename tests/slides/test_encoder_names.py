import pytest

from slideloom.encoders.registry import list_encoders
from slideloom.slides.encoder_names import ENCODERS, encoder_kind


def test_the_registry_holds_the_encoders_that_a_config_may_name() -> None:
    registry = {entry.name: (entry.kind == "rgb", entry.weights) for entry in list_encoders()}
    assert registry == {name: (kind.rgb, kind.weights) for name, kind in ENCODERS.items()}


@pytest.mark.parametrize(
    ("model", "token_px"),
    [
        ("mean_marker", 8),
        ("timm/vit_small_patch14_dinov2.lvd142m", 14),
        ("timm/vit_tiny_patch16_224", 16),
        ("timm/vit_small_patch8_224.dino", 8),
        ("timm/other", None),
    ],
)
def test_token_side_by_name(model: str, token_px: int | None) -> None:
    kind = encoder_kind(model)
    assert kind is not None
    assert kind.token_px == token_px


@pytest.mark.parametrize("model", ["timm/", "timm", "timm/<name>"[:4] + "<name>", "virtues", "", "mean_marker2"])
def test_unknown_names(model: str) -> None:
    assert encoder_kind(model) is None
