"""Tiles laid over each other in slide coordinates, on the device, in memory that does not grow with the height."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["FinishedRows", "RowBlender", "tile_weights"]

#: Pixels given out at a time: bounds what working on them takes.
_PIECE_PX = 4 << 20


class FinishedRows(NamedTuple):
    """The next rows of a slide that no later tile can change.

    Attributes
    ----------
    n_rows : int
        How many.
    values : Tensor or None
        (channels, n_rows, width) float32, 0 where no tile lay; None where none lay in any of them.
    covered : Tensor or None
        (n_rows, width) bool: where one lay; None with the values.
    """

    n_rows: int
    values: Tensor | None = None
    covered: Tensor | None = None


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
        Above 0 everywhere, so that a pixel which one tile alone covers keeps that tile's value; where two tiles meet at
        this step, their weights add up to 1.

    Examples
    --------
    >>> tile_weights(4, 4).tolist()
    [1.0, 1.0, 1.0, 1.0]
    >>> tile_weights(5, 3).astype(float).round(2).tolist()
    [0.33, 0.67, 1.0, 0.67, 0.33]
    """
    overlap = tile_px - stride_px
    place = np.arange(tile_px, dtype=np.float64)
    ramp = np.minimum(place + 1, tile_px - place) / (overlap + 1)
    weights: NDArray[np.float32] = np.minimum(ramp, 1.0).astype(np.float32)
    return weights


class RowBlender:
    """Weighted mean of overlapping tiles, given out as soon as no later tile can change it.

    Tiles come in raster order, at equal steps or not. Sums are kept for one row of tiles only, so memory is
    (channels + 1) × tile × width float32, whatever the slide's height. They are formed in the order of the tiles:
    batches do not matter, nor does what a band of rows leaves out.

    Parameters
    ----------
    height_px, width_px : int
        Size of the slide.
    channels : int
        Values a pixel.
    tile_px, stride_px : int
        Tile side and usual step between tiles, along both axes.
    rows : (int, int), optional
        First row wanted and the row past the last; all of the slide when left out.
    device : str or device
        Where the tiles are.
    """

    def __init__(
        self,
        height_px: int,
        width_px: int,
        channels: int,
        tile_px: int,
        stride_px: int,
        *,
        rows: tuple[int, int] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self._first, self._end = rows or (0, height_px)
        self._width_px, self._tile_px = width_px, tile_px
        line = torch.from_numpy(tile_weights(tile_px, stride_px)).to(device)
        self._weights = line[:, None] * line[None, :]
        self._sum = torch.zeros((channels, tile_px, width_px), dtype=torch.float32, device=device)
        self._weight = torch.zeros((tile_px, width_px), dtype=torch.float32, device=device)
        self._top = self._reach = self._first

    def add(self, y_px: Sequence[int], x_px: Sequence[int], tiles: Tensor) -> Iterator[FinishedRows]:
        """Lay tiles down.

        Parameters
        ----------
        y_px, x_px : sequence of int
            Their upper left corners; ``y_px`` never falls, nor from one call to the next.
        tiles : Tensor
            (k, channels, tile_px, tile_px) float32; what reaches over the border of slide or rows is dropped.

        Yields
        ------
        FinishedRows
            The next finished rows, from the first wanted on. Their tensors are good until the next is asked for.

        Raises
        ------
        ValueError
            Tiles come out of order.
        """
        for y, x, tile in zip(y_px, x_px, tiles, strict=True):
            start = max(y, self._first)
            if start < self._top:
                raise ValueError(f"tile row {y} comes after row {self._top}")
            yield from self._advance(min(start, self._end))
            bottom = min(y + self._tile_px, self._end)
            if bottom <= start:
                continue
            rows, width = slice(start - y, bottom - y), min(self._tile_px, self._width_px - x)
            weights = self._weights[rows, :width]
            self._sum[:, : bottom - start, x : x + width].addcmul_(tile[:, rows, :width], weights)
            self._weight[: bottom - start, x : x + width] += weights
            self._reach = max(self._reach, bottom)

    def finish(self) -> Iterator[FinishedRows]:
        """Give out the rows that are left, down to the last that is wanted."""
        yield from self._advance(self._end)

    def _advance(self, y_px: int) -> Iterator[FinishedRows]:
        """Move the band's first row to ``y_px``; rows above it are finished."""
        while self._top < y_px:
            if self._top >= self._reach:
                yield FinishedRows(y_px - self._top)
                self._top = y_px
                return
            count = min(self._tile_px, y_px - self._top, self._reach - self._top)
            step = max(1, _PIECE_PX // self._width_px)
            for first in range(0, count, step):
                rows = slice(first, min(first + step, count))
                weight = self._weight[rows]
                covered = weight > 0
                yield FinishedRows(len(weight), self._sum[:, rows] / torch.where(covered, weight, 1), covered)
            for band in (self._sum, self._weight):
                kept = band[..., count:, :].clone()
                band[..., : self._tile_px - count, :] = kept
                band[..., self._tile_px - count :, :] = 0
            self._top += count
