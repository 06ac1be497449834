"""Counted costs, against sums by hand and the figures that the models' users publish."""

from __future__ import annotations

import pytest

from slideloom.config.catalogue import CATALOGUE, EncoderEntry, find_entry
from slideloom.encoders.costs import default_tile, encoder_gflop, virtues_gflop


def by_hand(entry: EncoderEntry, tile_px: int, hidden: int, gated: bool) -> float:
    """Of a plain vision transformer: patches, four matrices, attention, feed-forward."""
    width, depth, token_px = entry.width or 0, entry.depth or 0, entry.token_px or 0
    patches = (tile_px // token_px) ** 2
    tokens = patches + entry.prefix_tokens
    linears = 4 * width**2 + width * hidden + (hidden // 2 if gated else hidden) * width
    block = 2 * tokens * linears + 4 * tokens**2 * width
    return (depth * block + 2 * patches * 3 * token_px**2 * width) / 1e9


@pytest.mark.parametrize(
    ("name", "tile_px", "hidden", "gated"),
    [
        ("phikon", 224, 3072, False),
        ("h0_mini", 256, 4096, True),
        ("uni", 224, 4096, False),
        ("virchow2", 224, 6832, True),
        ("cellvit/vit256", 256, 1536, False),
        ("cellvit/virchow", 256, 6832, True),
    ],
)
def test_counted_as_by_hand(name: str, tile_px: int, hidden: int, gated: bool) -> None:
    entry = CATALOGUE[name]
    wanted = by_hand(entry, tile_px, hidden, gated)
    assert encoder_gflop(entry, tile_px) == pytest.approx(wanted, rel=1e-6)


def test_vit256_costs_what_is_told_of_it() -> None:
    """12.3 of the 232.3 that the whole CellViT-256 takes at 256 px."""
    assert encoder_gflop(CATALOGUE["cellvit/vit256"], 256) == pytest.approx(12.3, abs=0.05)


def test_virtues_formula_gives_the_tabulated_costs() -> None:
    """10^9 operations by markers and side of the tile, for the published sizes."""
    table = {(1, 120): 31.9, (8, 120): 143.8, (16, 120): 272.1, (16, 128): 311.8, (40, 128): 756.2}
    for (markers, side), wanted in table.items():
        assert virtues_gflop(markers, side, side) == pytest.approx(wanted, abs=0.06)
    assert encoder_gflop(CATALOGUE["virtues/sp31"], 120, 16) == virtues_gflop(16, 120, 120)


def test_what_has_no_sizes_has_no_cost() -> None:
    for name in ("cellvit/vit", "timm/<name>"):
        with pytest.raises(ValueError, match="not known"):
            encoder_gflop(CATALOGUE[name], 256)
    assert encoder_gflop(CATALOGUE["mean_marker"], 120, 16) == 0
    tiny = find_entry("timm/test_vit")
    assert tiny is not None
    assert 0 < encoder_gflop(tiny, 64) < 1


def test_tiles_at_which_costs_are_told() -> None:
    assert [default_tile(CATALOGUE[name]) for name in ("virtues", "uni", "cellvit/sam_b", "timm/<name>")] == [
        120,
        224,
        256,
        256,
    ]
