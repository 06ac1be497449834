from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from slideloom.inference import blend
from slideloom.inference.blend import FinishedRows, RowBlender, tile_weights
from slideloom.slides.grid import TileGrid


def _gather(rows: Iterable[FinishedRows], channels: int, width: int) -> tuple[NDArray, NDArray]:
    """Finished rows, put together."""
    values, covered = [], []
    for n_rows, part, seen in rows:
        values.append(np.zeros((channels, n_rows, width), np.float32) if part is None else part.numpy())
        covered.append(np.zeros((n_rows, width), bool) if seen is None else seen.numpy())
    return np.concatenate(values, 1), np.concatenate(covered, 0)


def _blend(
    image: NDArray[np.float32],
    grid: TileGrid,
    keep: set[int] | None = None,
    rows: tuple[int, int] | None = None,
    batch: int = 3,
) -> tuple[NDArray, NDArray]:
    """Cut an image into tiles and blend them again."""
    channels, height, width = image.shape
    tile = grid.tile_px
    blender = RowBlender(height, width, channels, tile, grid.stride_px, rows=rows)
    padded = np.pad(image, ((0, 0), (0, tile), (0, tile)), constant_values=9)
    top, bottom = rows or (0, height)
    places = [
        (y, x)
        for number, (y, x) in enumerate(zip(grid.y_px.tolist(), grid.x_px.tolist(), strict=True))
        if (keep is None or number in keep) and y < bottom and y + tile > top
    ]

    def finished() -> Iterator[FinishedRows]:
        for first in range(0, len(places), batch):
            some = places[first : first + batch]
            tiles = torch.from_numpy(np.stack([padded[:, y : y + tile, x : x + tile] for y, x in some]))
            yield from blender.add([y for y, _ in some], [x for _, x in some], tiles)
        yield from blender.finish()

    return _gather(finished(), channels, width)


SIZES = st.integers(1, 40)


@settings(max_examples=80, deadline=None)
@given(SIZES, SIZES, st.integers(2, 12), st.integers(1, 12), st.booleans(), st.booleans())
def test_tiles_of_one_image_blend_to_that_image(
    height: int, width: int, tile: int, stride: int, flush: bool, shifted: bool
) -> None:
    image = np.random.default_rng(0).random((2, height, width), dtype=np.float32)
    grid = TileGrid.make(height, width, tile, min(stride, tile), flush=flush, shifted=shifted)
    values, covered = _blend(image, grid)
    assert values.shape == image.shape
    assert covered.all()
    np.testing.assert_allclose(values, image, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(5, 50), st.integers(1, 20), st.integers(2, 12), st.booleans())
def test_bands_of_rows_are_the_whole(data: st.DataObject, height: int, width: int, tile: int, shifted: bool) -> None:
    """To the last bit: tiles above and below a band matter in it as they did."""
    rng = np.random.default_rng(1)
    grid = TileGrid.make(height, width, tile, data.draw(st.integers(1, tile)), flush=True, shifted=shifted)
    tiles = rng.random((grid.n, 2, tile, tile), dtype=np.float32)
    keep = np.flatnonzero(rng.random(grid.n) < 0.7)
    edges = [0, *sorted(data.draw(st.sets(st.integers(1, height - 1), max_size=3))), height]

    def blended(top: int, bottom: int) -> tuple[NDArray, NDArray]:
        blender = RowBlender(height, width, 2, tile, grid.stride_px, rows=(top, bottom))
        some = keep[np.isin(keep, grid.rows_touching(top, bottom))]
        found = list(blender.add(grid.y_px[some].tolist(), grid.x_px[some].tolist(), torch.from_numpy(tiles[some])))
        return _gather([*found, *blender.finish()], 2, width)

    whole = blended(0, height)
    parts = [blended(top, bottom) for top, bottom in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate([values for values, _ in parts], 1), whole[0])
    np.testing.assert_array_equal(np.concatenate([covered for _, covered in parts], 0), whole[1])


def test_without_overlap_values_are_untouched() -> None:
    image = np.random.default_rng(1).random((1, 30, 31), dtype=np.float32)
    np.testing.assert_array_equal(_blend(image, TileGrid.make(30, 31, 8, 8))[0], image)


@pytest.mark.parametrize("piece_px", [1, 40, 1 << 20])
def test_how_many_rows_come_at_a_time_changes_nothing(piece_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blend, "_PIECE_PX", piece_px)
    image = np.random.default_rng(1).random((2, 30, 31), dtype=np.float32)
    np.testing.assert_allclose(_blend(image, TileGrid.make(30, 31, 8, 5))[0], image, atol=1e-6)


def test_missing_tiles_are_not_covered() -> None:
    image = np.ones((1, 16, 16), np.float32)
    values, covered = _blend(image, TileGrid.make(16, 16, 8, 8), keep={1, 2})
    expected = np.zeros((16, 16), bool)
    expected[:8, 8:] = expected[8:, :8] = True
    np.testing.assert_array_equal(covered, expected)
    np.testing.assert_array_equal(values[0], expected)


def test_no_tile_at_all_gives_an_empty_slide() -> None:
    values, covered = _blend(np.ones((3, 20, 9), np.float32), TileGrid.make(20, 9, 8, 8), keep=set())
    assert values.shape == (3, 20, 9)
    assert not covered.any()


def test_rows_without_a_tile_cost_no_memory() -> None:
    blender = RowBlender(10_000_000, 4, 1, 8, 8)
    ((n_rows, values, _),) = list(blender.add([9_000_000], [0], torch.ones(1, 1, 8, 8)))
    assert (n_rows, values) == (9_000_000, None)
    (_, tile, _), (rest, nothing, _) = list(blender.finish())
    assert tile is not None
    assert tile.shape == (1, 8, 4)
    assert (rest, nothing) == (999_992, None)


@given(st.integers(1, 64), st.integers(1, 64))
def test_where_two_tiles_meet_weights_add_up_to_one(tile: int, stride: int) -> None:
    stride = min(stride, tile)
    weights = tile_weights(tile, stride)
    assert (weights > 0).all()
    if 2 * stride >= tile:
        overlap = tile - stride
        np.testing.assert_allclose(weights[stride:] + weights[:overlap], 1, atol=1e-6)


def test_two_tiles_that_disagree_meet_without_a_step() -> None:
    blender = RowBlender(4, 12, 1, 8, 4)
    tiles = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    assert list(blender.add([0, 0], [0, 4], tiles)) == []
    ((_, values, _),) = list(blender.finish())
    assert values is not None
    np.testing.assert_allclose(values[0, 0], [0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1], atol=1e-6)


def test_tiles_out_of_order_are_refused() -> None:
    blender = RowBlender(16, 8, 1, 8, 8)
    tile = torch.zeros(1, 1, 8, 8)
    list(blender.add([8], [0], tile))
    with pytest.raises(ValueError, match="comes after"):
        list(blender.add([0], [0], tile))
