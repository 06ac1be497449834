"""A slide's tiles on their way to a decoder: what a source of tiles is, and tiles from the stores."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideloom.encoders.fused import TokenReader
from slideloom.encoders.normalise import normalise
from slideloom.patches.store import PatchStore

__all__ = ["Inputs", "RawTiles", "StoredTiles", "TileSource", "joined", "normalised"]

#: What tokens are of: a number of the source's own, and the pose of the tiles.
_Key = tuple[int, int]
_BYTE = 255


@dataclass(frozen=True)
class RawTiles:
    """Neighbouring tiles as they are read.

    Attributes
    ----------
    y_px, x_px : (k,) int array
        Their upper left corners, grid pixels.
    pixels : Tensor or None
        (k, c, p, p) in the source's dtype, or normalised (:func:`normalised`); None where nobody looks at them.
    tokens : dict of (int, int) to Tensor
        Stored tokens, each (k, h, w, d) float16: by a number that the source understands, and the pose of the tiles
        (:mod:`slideloom.encoders.dihedral`).
    """

    y_px: NDArray[np.int32]
    x_px: NDArray[np.int32]
    pixels: Tensor | None
    tokens: Mapping[_Key, Tensor]

    def __len__(self) -> int:
        return len(self.y_px)

    def part(self, start: int, stop: int) -> RawTiles:
        """Some of the tiles; memory is shared."""
        rows = slice(start, stop)
        tokens = {key: value[rows] for key, value in self.tokens.items()}
        pixels = None if self.pixels is None else self.pixels[rows]
        return RawTiles(self.y_px[rows], self.x_px[rows], pixels, tokens)

    def moved(self, move: Callable[[Tensor], Tensor]) -> RawTiles:
        """The same tiles with every tensor moved, such as to page-locked memory or to a device."""
        pixels = None if self.pixels is None else move(self.pixels)
        return RawTiles(self.y_px, self.x_px, pixels, {key: move(value) for key, value in self.tokens.items()})


@dataclass(frozen=True)
class Inputs:
    """Tiles on the device, ready for the networks; of several slides, perhaps.

    Attributes
    ----------
    images : Tensor or None
        (n, c, p, p) float32, normalised.
    tokens : dict of (int, int) to Tensor
        As of :class:`RawTiles`.
    """

    images: Tensor | None
    tokens: Mapping[_Key, Tensor]


class TileSource(Protocol):
    """A slide's tiles in raster order, the frame that they lie in, and what leads from them to a decoder.

    Attributes
    ----------
    n : int
        Tiles that :meth:`read` gives.
    tile_px, stride_px : int
        Side, and usual step from one to the next.
    height_px, width_px : int
        Of the slide, grid pixels.
    scale : float
        Level-0 pixels a grid pixel.
    rows : (int, int) or None
        Band of rows, the first and the one past the last, that is wanted alone; only tiles that touch it are read.
    kind : hashable
        Tiles of sources of one kind may go through the networks together.
    """

    n: int
    tile_px: int
    stride_px: int
    height_px: int
    width_px: int
    scale: float
    rows: tuple[int, int] | None
    kind: Hashable

    def bytes_each(self, poses: Sequence[int]) -> int:
        """Memory that a tile takes as it is read, about."""
        ...

    def read(self, count: int, poses: Sequence[int]) -> Iterator[RawTiles]:
        """Give all tiles, ``count`` at most at a time.

        Parameters
        ----------
        count : int
            Tiles.
        poses : sequence of int
            Those that the decoder is to see them in.

        Raises
        ------
        SlideError, SlideloomError
            Whatever keeps them from being read; ``encoder_symmetries``: there are no tokens of those poses.
        """
        ...

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels (k, c, p, p) as the networks see them, float32, on the same device."""
        ...

    def levels(self, inputs: Inputs, pose: int) -> list[Tensor]:
        """Tokens of tiles in a pose, shallow to deep, each (n, d, h, w)."""
        ...


def normalised(source: TileSource, raw: RawTiles) -> RawTiles:
    """The same tiles with their pixels as the networks see them, float32, wherever they lie."""
    pixels = None if raw.pixels is None else source.normalise(raw.pixels)
    return RawTiles(raw.y_px, raw.x_px, pixels, raw.tokens)


def joined(parts: Sequence[RawTiles], size: int) -> Inputs:
    """Tiles as one batch of a fixed size.

    Parameters
    ----------
    parts : sequence of RawTiles
        Normalised tiles of sources of one kind.
    size : int
        Tiles of the batch. The first is repeated to fill it up, so that every batch has one shape, and a tile's values
        do not depend on how many others there are.
    """
    missing = size - sum(map(len, parts))
    found = [part.pixels for part in parts if part.pixels is not None]
    images = _filled(found, missing).contiguous(memory_format=torch.channels_last) if found else None
    tokens = {key: _filled([part.tokens[key] for part in parts], missing) for key in parts[0].tokens}
    return Inputs(images, tokens)


def _filled(parts: Sequence[Tensor], missing: int) -> Tensor:
    first = parts[0][:1]
    filling = [first.expand(missing, *first.shape[1:])] if missing > 0 else []
    return torch.cat([*parts, *filling]) if len(parts) + len(filling) > 1 else parts[0]


class StoredTiles:
    """Tiles from the patch and the embedding store.

    Parameters
    ----------
    patches : PatchStore
        Pixels.
    embeddings : EmbeddingStore or FusedEmbeddings
        Tokens; they tell how the pixels were normalised.
    blocks : tuple of int
        Blocks, or levels of several encoders, that the decoder reads.
    image : bool
        Whether it reads the image.
    rows : (int, int), optional
        Band of rows that is wanted alone.
    """

    def __init__(
        self,
        patches: PatchStore,
        embeddings: TokenReader,
        blocks: tuple[int, ...],
        image: bool,
        rows: tuple[int, int] | None = None,
    ) -> None:
        self.tile_px, self.stride_px = patches.tile_px, patches.stride_px
        self.height_px, self.width_px, self.scale = patches.height_px, patches.width_px, patches.scale
        self.rows = rows
        self.kind: Hashable = ("stored", self.tile_px, blocks, image)
        top, bottom = rows or (0, self.height_px)
        touching = (patches.y_px < bottom) & (patches.y_px + self.tile_px > top)
        self._indices = np.flatnonzero(touching)
        self.n = int(self._indices.size)
        self._patches, self._embeddings, self._blocks, self._image = patches, embeddings, blocks, image
        self._channels = list(embeddings.attributes["channel_indices"])

    def bytes_each(self, poses: Sequence[int]) -> int:
        """Memory that a tile takes as it is read."""
        pixels = len(self._channels) * self._patches.dtype.itemsize * self.tile_px**2 if self._image else 0
        side = self.tile_px // self._embeddings.patch_px
        return pixels + 2 * len(poses) * len(self._blocks) * side**2 * self._embeddings.width

    def read(self, count: int, poses: Sequence[int]) -> Iterator[RawTiles]:
        """Give all tiles, ``count`` at a time."""
        for first in range(0, self.n, count):
            indices = self._indices[first : first + count]
            tokens = {
                (block, pose): torch.from_numpy(self._embeddings.tokens(block, indices, pose))
                for block in self._blocks
                for pose in poses
            }
            pixels = None
            if self._image:
                raw = self._patches.pixels(indices)
                every = self._channels == list(range(raw.shape[1]))
                pixels = torch.from_numpy(raw if every else raw[:, self._channels])
            yield RawTiles(self._patches.y_px[indices], self._patches.x_px[indices], pixels, tokens)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels as the encoder saw them when its tokens were made."""
        about, statistics = self._embeddings.attributes, self._embeddings.statistics
        if statistics is not None:
            return normalise(pixels, statistics, self._embeddings.markers, about["spec"]["name"])
        mean, std = torch.tensor([about["spec"]["mean"], about["spec"]["std"]], device=pixels.device)[:, :, None, None]
        return pixels.to(torch.float32).div_(_BYTE).sub_(mean).div_(std)

    def levels(self, inputs: Inputs, pose: int) -> list[Tensor]:
        """Stored tokens of tiles in a pose."""
        return [inputs.tokens[block, pose].permute(0, 3, 1, 2) for block in self._blocks]
