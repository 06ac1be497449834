"""Tiles of an array, and decoders whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slideloom.inference.tiles import Inputs, RawTiles
from slideloom.slides.grid import TileGrid


class ArrayTiles:
    """Tiles of an image (c, h, w) in memory; ``watch`` is called with the number of each tile that is read."""

    scale = 1.0

    def __init__(
        self,
        image: NDArray[Any],
        tile_px: int,
        stride_px: int,
        *,
        rows: tuple[int, int] | None = None,
        shifted: bool = False,
        watch: Callable[[int], None] | None = None,
        kind: Hashable = "array",
    ) -> None:
        self.tile_px, self.stride_px, self.rows, self.kind = tile_px, stride_px, rows, (kind, tile_px)
        self.height_px, self.width_px = image.shape[1:]
        grid = TileGrid.make(*image.shape[1:], tile_px, stride_px, flush=True, shifted=shifted)
        self._indices = grid.rows_touching(*(rows or (0, self.height_px)))
        self.n = int(self._indices.size)
        self._grid, self._watch = grid, watch
        self._padded = np.pad(image, ((0, 0), (0, tile_px), (0, tile_px)))

    def bytes_each(self, poses: Sequence[int]) -> int:
        return self.tile_px**2 * 4

    def read(self, count: int, poses: Sequence[int]) -> Iterator[RawTiles]:
        side = self.tile_px
        for first in range(0, self.n, count):
            some = self._indices[first : first + count]
            y_px, x_px = self._grid.y_px[some], self._grid.x_px[some]
            if self._watch is not None:
                for number in some.tolist():
                    self._watch(number)
            tiles = [self._padded[:, y : y + side, x : x + side] for y, x in zip(y_px, x_px, strict=True)]
            yield RawTiles(y_px, x_px, torch.from_numpy(np.stack(tiles)), {})

    def normalise(self, pixels: Tensor) -> Tensor:
        return pixels.float()

    def levels(self, inputs: Inputs, pose: int) -> list[Tensor]:
        assert inputs.images is not None
        return [inputs.images[:, :1, ::8, ::8]]


class Slopes(nn.Module):
    """Nuclei where the image is bright, HV its slope to the right and downwards: turns with the image, signs and all.

    ``most``: more tiles at a time do not fit into memory. ``bias``: the way of a network that no symmetry knows.
    """

    heads = ("nucleus", "hv", "boundary")
    n_classes = 1
    needs_image = True

    def __init__(self, most: int | None = None, bias: float = 0.0) -> None:
        super().__init__()
        self.most, self.bias = most, bias
        self.sizes: list[int] = []

    def forward(self, tokens: Sequence[Tensor], image: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        self.sizes.append(len(image))
        if self.most is not None and len(image) > self.most:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")
        first = image[:, :1].contiguous()
        logits = torch.cat([torch.zeros_like(first), first * 4 - 2], 1)
        x = torch.zeros_like(first)
        y = torch.zeros_like(first)
        x[..., 1:-1] = (first[..., 2:] - first[..., :-2]) / 2
        y[..., 1:-1, :] = (first[..., 2:, :] - first[..., :-2, :]) / 2
        return {"nucleus": logits, "hv": torch.cat([x + self.bias, y], 1), "boundary": first - 0.5}


def cone(side: int = 32) -> NDArray[np.float32]:
    """(1, side, side): a cone, bright in the middle."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return np.clip(1 - np.hypot(y, x) / (side / 2), 0, 1)[None].astype(np.float32)
