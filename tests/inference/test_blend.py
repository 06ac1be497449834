from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from slideloom.inference.blend import RowBlender, tile_weights
from slideloom.slides.grid import TileGrid


def _blend(image: NDArray[np.float32], tile: int, stride: int, keep: set[int] | None = None) -> tuple[NDArray, NDArray]:
    """Cut an image into tiles and blend them again."""
    channels, height, width = image.shape
    grid = TileGrid.make(height, width, tile, stride)
    blender = RowBlender(height, width, channels, tile, stride)
    padded = np.pad(image, ((0, 0), (0, tile), (0, tile)), constant_values=9)
    rows = []
    for number, (y, x) in enumerate(zip(grid.y_px.tolist(), grid.x_px.tolist(), strict=True)):
        if keep is None or number in keep:
            rows += list(blender.add(y, x, padded[:, y : y + tile, x : x + tile]))
    rows += list(blender.finish())
    return np.concatenate([part for part, _ in rows], 1), np.concatenate([part for _, part in rows], 0)


SIZES = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.integers(2, 12), st.integers(1, 12))
def test_tiles_of_one_image_blend_to_that_image(height: int, width: int, tile: int, stride: int) -> None:
    image = np.random.default_rng(0).random((2, height, width), dtype=np.float32)
    values, covered = _blend(image, tile, min(stride, tile))
    assert values.shape == image.shape
    assert covered.all()
    np.testing.assert_allclose(values, image, atol=1e-6)


def test_without_overlap_values_are_untouched() -> None:
    image = np.random.default_rng(1).random((1, 30, 31), dtype=np.float32)
    np.testing.assert_array_equal(_blend(image, 8, 8)[0], image)


def test_missing_tiles_are_not_covered() -> None:
    image = np.ones((1, 16, 16), np.float32)
    values, covered = _blend(image, 8, 8, keep={1, 2})
    expected = np.zeros((16, 16), bool)
    expected[:8, 8:] = expected[8:, :8] = True
    np.testing.assert_array_equal(covered, expected)
    np.testing.assert_array_equal(values[0], expected)


def test_no_tile_at_all_gives_an_empty_slide() -> None:
    values, covered = _blend(np.ones((3, 20, 9), np.float32), 8, 8, keep=set())
    assert values.shape == (3, 20, 9)
    assert not covered.any()


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
    left, right = np.zeros((1, 8, 8), np.float32), np.ones((1, 8, 8), np.float32)
    assert list(blender.add(0, 0, left)) == []
    assert list(blender.add(0, 4, right)) == []
    ((values, _),) = list(blender.finish())
    np.testing.assert_allclose(values[0, 0], [0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1], atol=1e-6)


def test_tiles_out_of_order_are_refused() -> None:
    blender = RowBlender(16, 8, 1, 8, 8)
    tile = np.zeros((1, 8, 8), np.float32)
    list(blender.add(8, 0, tile))
    with pytest.raises(ValueError, match="comes after"):
        list(blender.add(0, 0, tile))
