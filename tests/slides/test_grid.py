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
