"""Where a slide's tiles come from: the stores, or the slide itself, cut and encoded on the fly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideloom.config.model import EncoderConfig, GridConfig
from slideloom.decoders.cellvit import expand_blocks
from slideloom.encoders.base import Encoder
from slideloom.encoders.fit import check_fit, choose_channels, used_statistics
from slideloom.encoders.fused import TokenReader, numbered_levels
from slideloom.encoders.lattice import TokenFrame, TokenLattice
from slideloom.patches.bands import read_bands
from slideloom.patches.statistics import ChannelStatistics
from slideloom.patches.store import PatchStore
from slideloom.slides.facts import SlideFacts, image_source
from slideloom.slides.grid import TileGrid, grid_scale, grid_size
from slideloom.slides.open import open_image
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tissue import read_tissue, tissue_fraction
from slideloom.training.stored import pixel_table

__all__ = ["LiveTiles", "StoredTiles", "TileBatch", "TileSource"]

_WHITE = 255
#: Indices of tiles, their pixels, and tokens by further encoder (numbered from 0) and block.
_Piece = tuple[NDArray[np.intp], NDArray[np.generic], dict[tuple[int, int], NDArray[np.float16]]]


@dataclass(frozen=True)
class TileBatch:
    """Tiles as a decoder is fed them.

    Attributes
    ----------
    y_px, x_px : (k,) int array
        Their upper left corners, grid pixels.
    tokens : list of Tensor
        z1 … z4, each (k, d, h, w).
    image : Tensor or None
        (k, c, p, p) float32, normalised; None when the decoder does not look at it.
    """

    y_px: NDArray[np.int32]
    x_px: NDArray[np.int32]
    tokens: list[Tensor]
    image: Tensor | None


class TileSource(Protocol):
    """A slide's tiles in raster order, and the frame that they lie in."""

    n: int
    tile_px: int
    stride_px: int
    height_px: int
    width_px: int
    scale: float

    def batches(self, batch_size: int) -> Iterator[TileBatch]:
        """Give the tiles in full batches; only the last may be smaller."""
        ...


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
    """

    def __init__(self, patches: PatchStore, embeddings: TokenReader, blocks: tuple[int, ...], image: bool) -> None:
        self.n, self.tile_px = patches.n, patches.tile_px
        self.stride_px = int(patches.attributes["stride_px"])
        self.height_px, self.width_px, self.scale = patches.height_px, patches.width_px, patches.scale
        self._patches, self._embeddings, self._blocks = patches, embeddings, blocks
        self._channels = list(embeddings.attributes["channel_indices"])
        self._normalise = pixel_table(embeddings, patches.dtype) if image else None

    def batches(self, batch_size: int) -> Iterator[TileBatch]:
        """Give the tiles in full batches."""
        for first in range(0, self.n, batch_size):
            indices = np.arange(first, min(self.n, first + batch_size))
            tokens = [torch.from_numpy(self._embeddings.tokens(block, indices)) for block in self._blocks]
            image = None
            if self._normalise is not None:
                pixels = self._patches.pixels(indices)[:, self._channels]
                image = torch.from_numpy(self._normalise(pixels)).permute(0, 3, 1, 2)
            yield TileBatch(
                self._patches.y_px[indices],
                self._patches.x_px[indices],
                expand_blocks([token.permute(0, 3, 1, 2) for token in tokens]),
                image,
            )


class LiveTiles:
    """Tiles cut from the slide with overlap and encoded on the fly; nothing is stored.

    Of several encoders, the first sees the tiles; the tokens of the others are taken from their stores, beneath each
    tile.

    Parameters
    ----------
    row, root, facts
        The slide's sheet row, the folder its paths start from, and its facts.
    tissue_path : Path
        Its tissue outline.
    grid : GridConfig
        Tile side, resolution, least share of tissue; its stride is replaced by the overlap.
    overlap_px : int
        Overlap of neighbouring tiles.
    encoder : Encoder
        Built once by the caller; where it was trained with the decoder, with the weights that it then had
        (:func:`slideloom.training.checkpoint.load_tuned_encoder`).
    config : EncoderConfig
        Its entry.
    patches : PatchStore
        The slide's stored patches: they give the panel and, with ``scope: slide``, the channel statistics.
    statistics : ChannelStatistics or None
        Of the training slides, with ``scope: training``.
    device : str
        Where the encoder runs.
    precision : {"fp32", "bf16"}
        Arithmetic of the encoder.
    others : sequence of TokenLattice
        Stored tokens of every further encoder.
    blocks : tuple of int, optional
        Blocks, or levels of several encoders, that the decoder reads; all when left out.

    Raises
    ------
    SlideError, SlideloomError
        As :func:`~slideloom.encoders.fit.check_fit`, :func:`~slideloom.encoders.fit.choose_channels` and
        :func:`~slideloom.encoders.fit.used_statistics`; whatever keeps the image from being read.
    """

    def __init__(
        self,
        row: SlideRow,
        root: Path,
        facts: SlideFacts,
        tissue_path: Path,
        grid: GridConfig,
        overlap_px: int,
        encoder: Encoder,
        config: EncoderConfig,
        patches: PatchStore,
        statistics: ChannelStatistics | None,
        device: str,
        precision: Literal["fp32", "bf16"] = "fp32",
        others: Sequence[TokenLattice] = (),
        blocks: tuple[int, ...] | None = None,
    ) -> None:
        self._facts = facts.image(grid.image)
        self._source = image_source(row, grid.image, root)
        self._modality = grid.image
        self.scale = grid_scale(self._facts.mpp_um, grid.mpp_um)
        self.tile_px, self.stride_px = grid.tile_px, grid.tile_px - overlap_px
        self.height_px, self.width_px = grid_size(*self._facts.shape, self.scale)
        self._tiles = TileGrid.make(self.height_px, self.width_px, self.tile_px, self.stride_px)
        share = tissue_fraction(read_tissue(tissue_path), facts, grid.image, self._tiles, self.scale)
        self._keep = np.flatnonzero(share >= grid.min_tissue) if grid.min_tissue > 0 else np.arange(self._tiles.n)
        self.n = int(self._keep.size)
        self._encoder, self._device, self._half = encoder.to(device), device, precision == "bf16"
        check_fit(encoder, config, patches)
        self._channels = choose_channels(encoder, config, patches)
        self._statistics = used_statistics(encoder, config, patches, statistics)
        self._others = tuple(others)
        self._frame = TokenFrame(self._facts.mpp_um * self.scale, self.tile_px, encoder.patch_px)
        levels = numbered_levels([encoder.blocks, *(other.blocks for other in others)])
        self._levels = [levels[number] for number in blocks or levels]

    def batches(self, batch_size: int) -> Iterator[TileBatch]:
        """Give the tiles in full batches, reading the next while these are encoded."""
        with ThreadPoolExecutor(1) as pool:
            pieces = self._pieces(batch_size)
            waiting = pool.submit(next, pieces, None)
            while (piece := waiting.result()) is not None:
                waiting = pool.submit(next, pieces, None)
                indices, pixels, sampled = piece
                images = self._encoder.preprocess(torch.from_numpy(pixels).to(self._device), self._statistics)
                with torch.autocast(torch.device(self._device).type, torch.bfloat16, self._half):
                    tokens = self._encoder.encode(images)
                yield TileBatch(
                    self._tiles.y_px[indices],
                    self._tiles.x_px[indices],
                    expand_blocks([self._joined(tokens, sampled, level) for level in self._levels]),
                    images,
                )

    def _joined(
        self, own: Mapping[int, Tensor], sampled: Mapping[tuple[int, int], NDArray[np.float16]], level: tuple[int, ...]
    ) -> Tensor:
        """Tokens of all encoders at one level, (k, d, h, w)."""
        joined = own[level[0]]
        if self._others:
            parts = [torch.from_numpy(sampled[key]).to(self._device) for key in enumerate(level[1:])]
            joined = torch.cat([joined.float(), *(part.float() for part in parts)], dim=-1)
        return joined.permute(0, 3, 1, 2)

    def _pieces(self, batch_size: int) -> Iterator[_Piece]:
        """What the encoder is fed batch by batch, and the further encoders' tokens there."""
        first = 0
        wanted = sorted({key for level in self._levels for key in enumerate(level[1:])})
        for pixels in self._pixels(batch_size):
            indices = self._keep[first : first + len(pixels)]
            first += len(pixels)
            y_px, x_px = self._tiles.y_px[indices], self._tiles.x_px[indices]
            sampled = {
                (number, block): self._others[number].sample(block, y_px, x_px, self._frame) for number, block in wanted
            }
            yield indices, pixels, sampled

    def _pixels(self, batch_size: int) -> Iterator[NDArray[np.generic]]:
        """Chosen channels of the tiles, in batches that do not follow the reader's own pieces."""
        fill = _WHITE if self._facts.is_rgb else 0
        held: list[NDArray[np.generic]] = []
        count = 0
        with open_image(self._source, self._modality) as opened:
            for piece in read_bands(opened, self._facts, self._tiles, self.scale, self._keep, fill):
                held.append(np.ascontiguousarray(piece[:, self._channels]))
                count += len(piece)
                while count >= batch_size:
                    joined = np.concatenate(held)
                    yield joined[:batch_size]
                    held, count = [joined[batch_size:]], count - batch_size
        if count:
            yield np.concatenate(held)
