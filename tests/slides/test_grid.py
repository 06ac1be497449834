from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slideloom.slides.grid import TileGrid, grid_scale, grid_size

SIZE = st.integers(1, 90)


@given(height=SIZE, width=SIZE, tile=st.integers(1, 40), data=st.data())
def test_tiles_cover_every_pixel_and_once_when_they_do_not_overlap(height, width, tile, data):
    stride = data.draw(st.integers(1, tile))
    grid = TileGrid.make(height, width, tile, stride)
    seen = np.zeros((height, width), int)
    for y, x, rows, columns in zip(grid.y_px, grid.x_px, grid.height_valid, grid.width_valid, strict=True):
        assert 0 < rows <= tile
        assert 0 < columns <= tile
        assert y + rows <= height
        assert x + columns <= width
        seen[y : y + rows, x : x + columns] += 1
    assert (seen >= 1).all()
    if stride == tile:
        assert (seen == 1).all()


@given(height=SIZE, width=SIZE, tile=st.integers(1, 40), data=st.data())
def test_no_tile_is_needless(height, width, tile, data):
    stride = data.draw(st.integers(1, tile))
    grid = TileGrid.make(height, width, tile, stride)
    assert grid.n == grid.n_rows * grid.n_cols == len(grid.rows) == len(grid.cols)
    assert grid.n_rows == 1 or (grid.n_rows - 2) * stride + tile < height
    assert grid.n_cols == 1 or (grid.n_cols - 2) * stride + tile < width


def test_the_slides_of_the_report_give_625_tiles():
    grid = TileGrid.make(3000, 3000, 120, 120)
    assert (grid.n, grid.n_rows, grid.n_cols) == (625, 25, 25)
    assert grid.height_valid.min() == grid.width_valid.min() == 120


def test_tiles_stand_in_raster_order():
    grid = TileGrid.make(10, 25, 10, 10)
    assert grid.rows.tolist() == [0, 0, 0]
    assert grid.cols.tolist() == [0, 1, 2]
    assert grid.x_px.tolist() == [0, 10, 20]
    assert grid.width_valid.tolist() == [10, 10, 5]


@given(size=st.integers(1, 400), tile=st.integers(1, 60), shifted=st.booleans(), data=st.data())
def test_flush_grids_pad_nothing_and_lose_nothing(size, tile, shifted, data):
    stride = data.draw(st.integers(1, tile))
    grid = TileGrid.make(size, tile, tile, stride, flush=True, shifted=shifted)
    starts = grid.row_starts_px
    assert starts.dtype == np.int32
    assert grid.n_cols == 1, "the slide is as wide as a tile"
    assert starts[0] == 0
    assert starts[-1] == max(0, size - tile)
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= tile).all(), "no pixel between two tiles"
    assert (steps[1:-1] == stride).all()
    if size >= tile:
        assert (grid.height_valid == tile).all()
    else:
        assert grid.height_valid.tolist() == [size]


@given(height=SIZE, width=SIZE, tile=st.integers(1, 40), shifted=st.booleans(), data=st.data())
def test_flush_tiles_cover_every_pixel(height, width, tile, shifted, data):
    stride = data.draw(st.integers(1, tile))
    grid = TileGrid.make(height, width, tile, stride, flush=not shifted, shifted=shifted)
    assert grid.flush
    seen = np.zeros((height, width), int)
    for y, x, rows, columns in zip(grid.y_px, grid.x_px, grid.height_valid, grid.width_valid, strict=True):
        assert y + rows <= height
        assert x + columns <= width
        seen[y : y + rows, x : x + columns] += 1
    assert (seen >= 1).all()
    assert grid.n == len(grid.rows) == len(grid.y_px)
    np.testing.assert_array_equal(grid.row_starts_px[grid.rows], grid.y_px)
    np.testing.assert_array_equal(grid.col_starts_px[grid.cols], grid.x_px)


def test_flush_and_shifted_tiles_by_hand():
    def starts(size, tile, stride, **options):
        return TileGrid.make(size, size, tile, stride, **options).row_starts_px.tolist()

    assert starts(100, 32, 32) == [0, 32, 64, 96]
    assert starts(100, 32, 32, flush=True) == [0, 32, 64, 68]
    assert starts(100, 32, 32, shifted=True) == [0, 16, 48, 68]
    assert starts(96, 32, 32, flush=True) == starts(96, 32, 32) == [0, 32, 64]
    assert starts(100, 32, 24, flush=True) == [0, 24, 48, 68]
    assert starts(100, 32, 24, shifted=True) == [0, 16, 40, 64, 68]
    assert starts(100, 32, 16, shifted=True) == [0, 8, 24, 40, 56, 68], "half a tile would be a whole stride"
    assert starts(20, 32, 32, shifted=True) == starts(32, 32, 32, shifted=True) == [0]


@given(size=st.integers(1, 400), tile=st.integers(2, 60), data=st.data())
def test_shifted_tiles_lie_elsewhere(size, tile, data):
    stride = data.draw(st.integers(2, tile))
    plain = TileGrid.make(size, size, tile, stride, flush=True).row_starts_px
    moved = TileGrid.make(size, size, tile, stride, shifted=True).row_starts_px
    assert not set(plain[1:-1].tolist()) & set(moved[1:-1].tolist())


@given(height=SIZE, tile=st.integers(1, 40), kind=st.sampled_from(["plain", "flush", "shifted"]), data=st.data())
def test_tiles_that_touch_a_band(height, tile, kind, data):
    stride = data.draw(st.integers(1, tile))
    top, bottom = data.draw(st.integers(-5, 100)), data.draw(st.integers(-5, 100))
    grid = TileGrid.make(height, 50, tile, stride, flush=kind == "flush", shifted=kind == "shifted")
    rows = set(range(top, bottom))
    wanted = [
        index
        for index, (y, valid) in enumerate(zip(grid.y_px.tolist(), grid.height_valid.tolist(), strict=True))
        if rows & set(range(y, y + valid))
    ]
    found = grid.rows_touching(top, bottom)
    assert found.tolist() == wanted
    assert found.dtype == np.intp


@pytest.mark.parametrize(("tile", "stride"), [(8, 9), (0, 1), (8, 0)])
def test_grids_that_lose_pixels_are_refused(tile, stride):
    with pytest.raises(ValueError, match=r"px"):
        TileGrid.make(100, 100, tile, stride)


def test_scale_and_size():
    assert grid_scale(0.25, None) == 1.0
    assert grid_scale(0.25, 0.5) == 2.0
    assert grid_scale(0.4999, 0.5) == 1.0, "a rounding of the header resamples nothing"
    assert grid_size(100, 51, 2.0) == (50, 26)
    assert grid_size(1, 1, 8.0) == (1, 1)
