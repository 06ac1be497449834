"""Tile grids: where tiles lie on a slide, and how the grid frame relates to level-0 pixels.

Grid pixel ``i`` covers the level-0 interval ``[i * scale, (i + 1) * scale)``. Tile ``(row, col)`` covers grid pixels
from ``(row * stride, col * stride)`` on; the last row and column may reach beyond the slide, so that every pixel is
seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["TileGrid", "grid_scale", "grid_size"]


def grid_scale(image_mpp_um: float, grid_mpp_um: float | None) -> float:
    """Level-0 pixels per grid pixel.

    Parameters
    ----------
    image_mpp_um : float
        Level-0 pixel size, µm.
    grid_mpp_um : float, optional
        Pixel size of the grid, µm; ``None`` is the image's own.

    Returns
    -------
    float
        Exactly 1.0 when the two agree to within 0.1 %, so that no pixel is resampled for a rounding of the header.
    """
    if grid_mpp_um is None:
        return 1.0
    scale = grid_mpp_um / image_mpp_um
    return 1.0 if abs(scale - 1.0) < 1e-3 else scale


def grid_size(height_lv0_px: int, width_lv0_px: int, scale: float) -> tuple[int, int]:
    """Height and width of a slide in grid pixels, at least 1 each."""
    return max(1, round(height_lv0_px / scale)), max(1, round(width_lv0_px / scale))


def _count(size_px: int, tile_px: int, stride_px: int) -> int:
    return 1 + max(0, -((tile_px - size_px) // stride_px))


@dataclass(frozen=True)
class TileGrid:
    """All tiles of a slide in raster order. Sizes and places are in grid pixels.

    Attributes
    ----------
    height_px, width_px : int
        Size of the slide.
    tile_px, stride_px : int
        Tile side, and step between tiles.
    """

    height_px: int
    width_px: int
    tile_px: int
    stride_px: int

    @classmethod
    def make(cls, height_px: int, width_px: int, tile_px: int, stride_px: int) -> TileGrid:
        """Lay a grid over a slide.

        Raises
        ------
        ValueError
            A size is below 1, or the stride is larger than the tile, which would lose pixels.
        """
        if min(height_px, width_px, tile_px, stride_px) < 1:
            raise ValueError(f"sizes must be at least 1 px: {height_px}x{width_px}, tile {tile_px}, stride {stride_px}")
        if stride_px > tile_px:
            raise ValueError(f"stride {stride_px} px is larger than the tile, {tile_px} px: pixels would be lost")
        return cls(int(height_px), int(width_px), int(tile_px), int(stride_px))

    @property
    def n_rows(self) -> int:
        """Rows of tiles."""
        return _count(self.height_px, self.tile_px, self.stride_px)

    @property
    def n_cols(self) -> int:
        """Columns of tiles."""
        return _count(self.width_px, self.tile_px, self.stride_px)

    @property
    def n(self) -> int:
        """Number of tiles."""
        return self.n_rows * self.n_cols

    @cached_property
    def rows(self) -> NDArray[np.int32]:
        """Row of every tile, (n,)."""
        return np.repeat(np.arange(self.n_rows, dtype=np.int32), self.n_cols)

    @cached_property
    def cols(self) -> NDArray[np.int32]:
        """Column of every tile, (n,)."""
        return np.tile(np.arange(self.n_cols, dtype=np.int32), self.n_rows)

    @cached_property
    def y_px(self) -> NDArray[np.int32]:
        """First pixel row of every tile, (n,)."""
        return self.rows * np.int32(self.stride_px)

    @cached_property
    def x_px(self) -> NDArray[np.int32]:
        """First pixel column of every tile, (n,)."""
        return self.cols * np.int32(self.stride_px)

    @cached_property
    def height_valid(self) -> NDArray[np.int32]:
        """Pixel rows of every tile that lie on the slide, (n,); the rest is padding."""
        return np.minimum(self.tile_px, self.height_px - self.y_px).astype(np.int32)

    @cached_property
    def width_valid(self) -> NDArray[np.int32]:
        """Pixel columns of every tile that lie on the slide, (n,); the rest is padding."""
        return np.minimum(self.tile_px, self.width_px - self.x_px).astype(np.int32)
