"""Tile grids: where tiles lie on a slide, and how the grid frame relates to level-0 pixels.

Grid pixel ``i`` covers the level-0 interval ``[i * scale, (i + 1) * scale)``. Tile ``(row, col)`` covers grid pixels
from ``(row_starts_px[row], col_starts_px[col])`` on. In a plain grid these are multiples of the stride, and the last
row and column may reach beyond the slide, so that every pixel is seen. In a flush grid the last row and column end
where the slide ends, so that no tile is padded. In a shifted grid the tiles between the first and the last lie half a
tile further in: seams fall elsewhere.
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


def _starts(size_px: int, tile_px: int, stride_px: int, flush: bool, shifted: bool) -> NDArray[np.int32]:
    """First pixels of the tiles along one axis, strictly rising."""
    last_px = size_px - tile_px
    if last_px <= 0:
        return np.zeros(1, np.int32)
    if not flush:
        return np.arange(0, last_px + stride_px, stride_px, dtype=np.int32)
    first_px = 0
    if shifted:
        # Where half a tile is whole strides, shifted tiles would lie where the others do.
        first_px = tile_px // 2 if tile_px // 2 % stride_px else stride_px // 2
    inner = np.arange(first_px, last_px, stride_px)
    return np.unique(np.concatenate([[0], inner, [last_px]])).astype(np.int32)


@dataclass(frozen=True)
class TileGrid:
    """All tiles of a slide in raster order. Sizes and places are in grid pixels.

    Attributes
    ----------
    height_px, width_px : int
        Size of the slide.
    tile_px, stride_px : int
        Tile side, and step between tiles; the first and the last step of a flush grid may be smaller.
    flush : bool
        Whether the last row and column end with the slide.
    shifted : bool
        Whether the tiles in between lie half a tile further in.
    """

    height_px: int
    width_px: int
    tile_px: int
    stride_px: int
    flush: bool = False
    shifted: bool = False

    @classmethod
    def make(
        cls, height_px: int, width_px: int, tile_px: int, stride_px: int, flush: bool = False, shifted: bool = False
    ) -> TileGrid:
        """Lay a grid over a slide.

        Parameters
        ----------
        height_px, width_px : int
            Size of the slide.
        tile_px, stride_px : int
            Tile side, and step between tiles.
        flush : bool
            Start the last row and column a tile before the slide's end. Where the slide is smaller than a tile, the
            only tile is padded still.
        shifted : bool
            Start the rows and columns in between half a tile further in (half a stride where half a tile is whole
            strides: the tiles would lie where they lay); the first and the last stay flush with the slide. Implies
            ``flush``.

        Raises
        ------
        ValueError
            A size is below 1, or the stride is larger than the tile, which would lose pixels.
        """
        if min(height_px, width_px, tile_px, stride_px) < 1:
            raise ValueError(f"sizes must be at least 1 px: {height_px}x{width_px}, tile {tile_px}, stride {stride_px}")
        if stride_px > tile_px:
            raise ValueError(f"stride {stride_px} px is larger than the tile, {tile_px} px: pixels would be lost")
        return cls(int(height_px), int(width_px), int(tile_px), int(stride_px), flush or shifted, shifted)

    @cached_property
    def row_starts_px(self) -> NDArray[np.int32]:
        """First pixel row of every row of tiles, (n_rows,), strictly rising."""
        return _starts(self.height_px, self.tile_px, self.stride_px, self.flush, self.shifted)

    @cached_property
    def col_starts_px(self) -> NDArray[np.int32]:
        """First pixel column of every column of tiles, (n_cols,), strictly rising."""
        return _starts(self.width_px, self.tile_px, self.stride_px, self.flush, self.shifted)

    @property
    def n_rows(self) -> int:
        """Rows of tiles."""
        return self.row_starts_px.size

    @property
    def n_cols(self) -> int:
        """Columns of tiles."""
        return self.col_starts_px.size

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
        return np.repeat(self.row_starts_px, self.n_cols)

    @cached_property
    def x_px(self) -> NDArray[np.int32]:
        """First pixel column of every tile, (n,)."""
        return np.tile(self.col_starts_px, self.n_rows)

    @cached_property
    def height_valid(self) -> NDArray[np.int32]:
        """Pixel rows of every tile that lie on the slide, (n,); the rest is padding."""
        return np.minimum(self.tile_px, self.height_px - self.y_px).astype(np.int32)

    @cached_property
    def width_valid(self) -> NDArray[np.int32]:
        """Pixel columns of every tile that lie on the slide, (n,); the rest is padding."""
        return np.minimum(self.tile_px, self.width_px - self.x_px).astype(np.int32)

    def rows_touching(self, top_px: int, bottom_px: int) -> NDArray[np.intp]:
        """Tiles that cover a pixel row of [``top_px``, ``bottom_px``).

        Returns
        -------
        (k,) integer array
            Indices of tiles, ascending; neighbouring rows of tiles, all their columns.
        """
        first = int(np.searchsorted(self.row_starts_px, top_px - self.tile_px, side="right"))
        last = int(np.searchsorted(self.row_starts_px, min(bottom_px, self.height_px), side="left"))
        if top_px >= bottom_px or top_px >= self.height_px or bottom_px <= 0:
            return np.empty(0, np.intp)
        return np.arange(first * self.n_cols, last * self.n_cols, dtype=np.intp)
