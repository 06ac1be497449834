"""Tiles cut from the slide itself and encoded as they are predicted; nothing is stored."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideloom.adapters.base import Adapter
from slideloom.adapters.panel import adapter_channels, adapter_statistics
from slideloom.config.model import EncoderConfig, GridConfig
from slideloom.encoders.base import Encoder
from slideloom.encoders.dihedral import transform
from slideloom.encoders.fit import check_fit, choose_channels, used_statistics
from slideloom.encoders.fused import numbered_levels
from slideloom.encoders.lattice import TokenFrame, TokenLattice
from slideloom.encoders.normalise import normalise
from slideloom.errors import SlideError
from slideloom.inference.tiles import Inputs, RawTiles
from slideloom.patches.bands import read_bands
from slideloom.patches.statistics import ChannelStatistics
from slideloom.patches.store import PatchStore
from slideloom.slides.facts import SlideFacts, image_source
from slideloom.slides.grid import TileGrid, grid_scale, grid_size
from slideloom.slides.open import open_image
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tissue import read_tissue, tissue_fraction

__all__ = ["LiveTiles"]

_WHITE = 255
#: Blocks of further encoders have keys of one number: that of the encoder times this, and the block.
_BLOCKS = 1 << 16


class LiveTiles:
    """Tiles cut from the slide with overlap, encoded on the device.

    The last row and column lie flush with the slide's border; a slide smaller than a tile is padded. Of several
    encoders, the first sees the tiles; the tokens of the others are taken from their stores, beneath each tile.

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
        Built once by the caller and on the device; where it was trained with the decoder, with the weights that it then
        had (:func:`slideloom.training.checkpoint.load_tuned_encoder`).
    config : EncoderConfig
        Its entry.
    patches : PatchStore
        The slide's stored patches: they give the panel and, with ``scope: slide``, the channel statistics.
    statistics : ChannelStatistics or None
        Of the training slides, with ``scope: training``.
    others : sequence of TokenLattice
        Stored tokens of every further encoder.
    blocks : tuple of int, optional
        Blocks, or levels of several encoders, that the decoder reads; all when left out.
    rows : (int, int), optional
        Band of rows that is wanted alone.
    shifted : bool
        Shift the tiles between the first and the last by half a tile.
    adapter : Adapter, optional
        What stands before the encoder, trained with the decoder; on the device, in evaluation mode. Networks see what
        it gives, also in other poses: tiles are turned behind it.

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
        others: Sequence[TokenLattice] = (),
        blocks: tuple[int, ...] | None = None,
        rows: tuple[int, int] | None = None,
        shifted: bool = False,
        adapter: Adapter | None = None,
    ) -> None:
        self._slide_id = patches.slide_id
        self._facts = facts.image(grid.image)
        self._source = image_source(row, grid.image, root)
        self._modality = grid.image
        self.scale = grid_scale(self._facts.mpp_um, grid.mpp_um)
        self.tile_px, self.stride_px = grid.tile_px, grid.tile_px - overlap_px
        self.height_px, self.width_px = grid_size(*self._facts.shape, self.scale)
        self._tiles = TileGrid.make(
            self.height_px, self.width_px, self.tile_px, self.stride_px, flush=True, shifted=shifted
        )
        self.rows = rows
        share = tissue_fraction(read_tissue(tissue_path), facts, grid.image, self._tiles, self.scale)
        wanted = self._tiles.rows_touching(*(rows or (0, self.height_px)))
        self._keep = wanted[share[wanted] >= grid.min_tissue] if grid.min_tissue > 0 else wanted
        self.n = int(self._keep.size)
        self._encoder = encoder
        check_fit(encoder, config, patches)
        self._adapter, self._name = adapter, config.model
        if adapter is None:
            self._channels = choose_channels(encoder, config, patches)
            self._statistics = used_statistics(encoder, config, patches, statistics)
        else:
            self._channels = adapter_channels(config, patches, adapter.most_channels)
            self._statistics = adapter_statistics(config, patches, statistics)
        self._others = tuple(others)
        self._frame = TokenFrame(self._facts.mpp_um * self.scale, self.tile_px, encoder.patch_px)
        levels = numbered_levels([encoder.blocks, *(other.blocks for other in others)])
        self._levels = [levels[number] for number in blocks or levels]
        self.kind: Hashable = ("live", id(encoder), self.tile_px, tuple(self._levels))

    def bytes_each(self, poses: Sequence[int]) -> int:
        """Memory that a tile takes as it is read."""
        pixels = len(self._channels) * np.dtype(self._facts.dtype).itemsize * self.tile_px**2
        width = sum(other.width for other in self._others)
        return pixels + 2 * len(self._levels) * self._frame.side**2 * width

    def read(self, count: int, poses: Sequence[int]) -> Iterator[RawTiles]:
        """Give all tiles, ``count`` at most at a time."""
        if self._others and tuple(poses) != (0,):
            raise SlideError(
                "several encoders' tokens of flipped and turned tiles",
                where=self._slide_id,
                expected="tiles as they are",
                hint="Set 'inference.symmetries: none', or name one encoder only",
                code="encoder_symmetries",
            )
        wanted = sorted({key for level in self._levels for key in enumerate(level[1:])})
        first = 0
        for pixels in self._pixels(count):
            indices = self._keep[first : first + len(pixels)]
            first += len(pixels)
            y_px, x_px = self._tiles.y_px[indices], self._tiles.x_px[indices]
            tokens = {
                (number * _BLOCKS + block, 0): torch.from_numpy(
                    self._others[number].sample(block, y_px, x_px, self._frame)
                )
                for number, block in wanted
            }
            yield RawTiles(y_px, x_px, torch.from_numpy(pixels), tokens)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels as the encoder sees them."""
        if self._adapter is None or self._statistics is None:
            return self._encoder.preprocess(pixels, self._statistics)
        seen = normalise(pixels, self._statistics, self._statistics.markers, self._name)
        with torch.inference_mode():
            return self._adapter(seen)  # type: ignore[no-any-return]

    def levels(self, inputs: Inputs, pose: int) -> list[Tensor]:
        """Encode tiles in a pose."""
        if inputs.images is None:
            raise ValueError("there is nothing to encode")
        own = self._encoder.encode(transform(inputs.images, pose).contiguous())
        return [self._joined(own, inputs, level).permute(0, 3, 1, 2) for level in self._levels]

    def _joined(self, own: Mapping[int, Tensor], inputs: Inputs, level: tuple[int, ...]) -> Tensor:
        """Tokens of all encoders at one level, (n, h, w, d)."""
        if not self._others:
            return own[level[0]]
        parts = [inputs.tokens[number * _BLOCKS + block, 0] for number, block in enumerate(level[1:])]
        return torch.cat([own[level[0]].float(), *(part.float() for part in parts)], dim=-1)

    def _pixels(self, count: int) -> Iterator[NDArray[np.generic]]:
        """Chosen channels of the tiles, as the reader's own pieces hold them, ``count`` at most."""
        fill = _WHITE if self._facts.is_rgb else 0
        every = self._channels == list(range(self._facts.n_channels))
        with open_image(self._source, self._modality) as opened:
            for piece in read_bands(opened, self._facts, self._tiles, self.scale, self._keep, fill):
                for first in range(0, len(piece), count):
                    tiles = piece[first : first + count]
                    yield tiles if every else tiles[:, self._channels]
