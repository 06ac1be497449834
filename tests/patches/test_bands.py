"""Tiles read in bands against tiles cut from the whole slide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from slideloom.patches import bands
from slideloom.slides.facts import image_source
from slideloom.slides.grid import TileGrid, grid_size
from slideloom.slides.open import open_image
from slideloom.slides.region import read_region

SIZE = (83, 131)
FILL = 7


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_tiles_of_any_grid_are_cut_right(
    scale: float, make_slide: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    slide = make_slide(sp=rng.integers(0, 60000, (2, *SIZE)).astype(np.uint16), names=("DAPI", "CD3"))
    facts = slide.facts.image("sp")
    height, width = grid_size(*SIZE, scale)
    read: list[int] = []

    def counted(*arguments: Any) -> Any:
        window = read_region(*arguments)
        read.append(window[0].size)
        return window

    monkeypatch.setattr(bands, "read_region", counted)
    pieces = 0
    with open_image(image_source(slide.row, "sp", slide.root), "sp") as opened:
        whole = read_region(opened, 0, 0, height, width, scale, FILL)
        for turn in range(60):
            tile = int(rng.integers(4, 40)) if turn % 10 else 90
            kind = ("plain", "flush", "shifted")[turn % 3]
            grid = TileGrid.make(
                height, width, tile, int(rng.integers(2, tile + 1)), flush=kind == "flush", shifted=kind == "shifted"
            )
            keep = np.flatnonzero(rng.random(grid.n) < (1, 0.5, 0.1)[turn % 4 % 3])
            if turn % 5 == 0:
                keep = np.intersect1d(keep, grid.rows_touching(20, 45))
            most_px = int(rng.choice([1, 20 * width, 45 * width, 10**6]))
            monkeypatch.setattr(bands, "_READ_BYTES", round(most_px * 4 * max(1.0, scale) ** 2) + 1)
            read.clear()
            found = list(bands.read_bands(opened, facts, grid, scale, keep, FILL))
            pieces += len(found)
            assert max(read, default=0) <= max(most_px, tile**2), "memory is bounded"
            expected = np.full((keep.size, 2, tile, tile), FILL, np.uint16)
            for patch, index in zip(expected, keep, strict=True):
                y, x = int(grid.y_px[index]), int(grid.x_px[index])
                part = whole[:, y : y + tile, x : x + tile]
                patch[:, : part.shape[1], : part.shape[2]] = part
            joined = np.concatenate([expected[:0], *found])
            assert joined.dtype == np.uint16
            np.testing.assert_array_equal(joined, expected)
    assert pieces > 120


def test_what_no_tile_needs_is_not_read(make_slide: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    slide = make_slide(sp=np.arange(100 * 60, dtype=np.uint16).reshape(1, 100, 60), names=("DAPI",))
    grid = TileGrid.make(100, 60, 20, 20, shifted=True)
    asked: list[tuple[int, int]] = []

    def noted(opened: Any, y: int, x: int, height: int, *rest: Any) -> Any:
        asked.append((y, y + height))
        return read_region(opened, y, x, height, *rest)

    monkeypatch.setattr(bands, "read_region", noted)
    with open_image(image_source(slide.row, "sp", slide.root), "sp") as opened:
        keep = grid.rows_touching(40, 60)
        found = np.concatenate(list(bands.read_bands(opened, slide.facts.image("sp"), grid, 1.0, keep, 0)))
    assert asked == [(30, 70)], "the two rows of tiles from 30 and from 50 on"
    assert found[0, 0, 0, 0] == 30 * 60
