"""Tiles laid over each other in slide coordinates, in memory that does not grow with the slide's height."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["FinishedRows", "RowBlender", "tile_weights"]

#: (channels, k, width) float32 values and (k, width) bool: where a tile lay.
FinishedRows = tuple[NDArray[np.float32], NDArray[np.bool_]]


def tile_weights(tile_px: int, stride_px: int) -> NDArray[np.float32]:
    """Weights of a tile along one axis: 1 where no neighbour reaches, falling to its ends where one does.

    Parameters
    ----------
    tile_px : int
        Tile side.
    stride_px : int
        Step between tiles.

    Returns
    -------
    (tile_px,) float32 array
        Above 0 everywhere, so that a pixel which one tile alone covers keeps that tile's value; where two tiles meet,
        their weights add up to 1.

    Examples
    --------
    >>> tile_weights(4, 4).tolist()
    [1.0, 1.0, 1.0, 1.0]
    >>> tile_weights(5, 3).round(2).tolist()
    [0.33, 0.67, 1.0, 0.67, 0.33]
    """
    overlap = tile_px - stride_px
    place = np.arange(tile_px, dtype=np.float64)
    ramp = np.minimum(place + 1, tile_px - place) / (overlap + 1)
    weights: NDArray[np.float32] = np.minimum(ramp, 1.0).astype(np.float32)
    return weights


class RowBlender:
    """Weighted mean of overlapping tiles, given out as soon as no later tile can change it.

    Tiles come in raster order. Sums are kept for one row of tiles only, so memory is (channels + 1) × tile × width
    float32, whatever the slide's height. They are formed in the order of the tiles: batches do not matter.

    Parameters
    ----------
    height_px, width_px : int
        Size of the slide.
    channels : int
        Values a pixel.
    tile_px, stride_px : int
        Tile side and step between tiles, along both axes.
    """

    def __init__(self, height_px: int, width_px: int, channels: int, tile_px: int, stride_px: int) -> None:
        self.height_px, self.width_px = height_px, width_px
        self._tile_px = tile_px
        line = tile_weights(tile_px, stride_px)
        self._weights = line[:, None] * line[None, :]
        self._sum = np.zeros((channels, tile_px, width_px), np.float32)
        self._weight = np.zeros((tile_px, width_px), np.float32)
        self._top = 0

    def add(self, y_px: int, x_px: int, tile: NDArray[np.float32]) -> Iterator[FinishedRows]:
        """Lay a tile down.

        Parameters
        ----------
        y_px, x_px : int
            Its upper left corner; ``y_px`` never falls from one call to the next.
        tile : (channels, tile_px, tile_px) float32 array
            Its values; what reaches over the slide's border is dropped.

        Yields
        ------
        values : (channels, k, width_px) float32 array
            The next k finished rows of the slide; 0 where no tile lay.
        covered : (k, width_px) bool array
            Where one lay.

        Raises
        ------
        ValueError
            Tiles come out of order.
        """
        if y_px < self._top:
            raise ValueError(f"tile row {y_px} comes after row {self._top}")
        yield from self._advance(y_px)
        height = min(self._tile_px, self.height_px - y_px)
        width = min(self._tile_px, self.width_px - x_px)
        weights = self._weights[:height, :width]
        self._sum[:, :height, x_px : x_px + width] += tile[:, :height, :width] * weights
        self._weight[:height, x_px : x_px + width] += weights

    def finish(self) -> Iterator[FinishedRows]:
        """Give out the rows that are left, down to the slide's last."""
        yield from self._advance(self.height_px)

    def _advance(self, y_px: int) -> Iterator[FinishedRows]:
        """Move the band's first row to ``y_px``; rows above it are finished."""
        while self._top < y_px:
            count = min(self._tile_px, y_px - self._top)
            weight = self._weight[:count]
            covered = weight > 0
            yield np.asarray(self._sum[:, :count] / np.where(covered, weight, 1), np.float32), covered
            for band in (self._sum, self._weight):
                kept = band[..., count:, :].copy()
                band[..., : self._tile_px - count, :] = kept
                band[..., self._tile_px - count :, :] = 0
            self._top += count
