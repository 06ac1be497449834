"""The embedding store as its readers see it: the tokens of every tile of a slide."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from slideloom.artefacts.stage import SCHEMA_VERSION
from slideloom.artefacts.zarrio import open_array, read_attributes
from slideloom.errors import SlideloomError
from slideloom.patches.statistics import ChannelStatistics
from slideloom.patches.store import read_rows

__all__ = ["EmbeddingStore"]


class EmbeddingStore:
    """Token maps of a slide, read lazily.

    Parameters
    ----------
    path : Path
        Zarr group that :mod:`~slideloom.encoders.embedding.embed` wrote.

    Attributes
    ----------
    attributes : dict
        Everything that was recorded.
    slide_id, image : str
        Whose tokens.
    n : int
        Number of tiles.
    blocks : tuple of int
        1-based, rising.
    width, patch_px, tile_px : int
        Token length; side of a token and of a tile in pixels.
    markers : tuple of str
        Channels that the encoder read, in order.
    dropped : tuple of str
        Markers of its panel that it left out on purpose.
    final_norm : bool
        Whether the encoder's last block was stored after the final normalisation.
    statistics : ChannelStatistics or None
        What the pixels were normalised with; None for RGB encoders.
    weights : str
        ``sha256:<digits>``, ``random:<seed>`` or ``none``.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            about = read_attributes(self.path)
        except FileNotFoundError as error:
            raise SlideloomError(f"no embeddings at {path}", code="missing_artefact") from error
        if about.get("kind") != "embeddings" or about.get("schema") != SCHEMA_VERSION:
            raise SlideloomError(
                f"{path} is a store of kind {about.get('kind')!r}, schema {about.get('schema')!r}",
                expected=f"embeddings, schema {SCHEMA_VERSION}",
                code="artefact_schema",
            )
        self.attributes = about
        self.slide_id: str = about["slide_id"]
        self.image: str = about["image"]
        self.n: int = about["n_tiles"]
        self.blocks: tuple[int, ...] = tuple(about["blocks"])
        self.width: int = about["width"]
        self.patch_px: int = about["patch_px"]
        self.tile_px: int = about["tile_px"]
        self.markers: tuple[str, ...] = tuple(about["markers"])
        self.dropped: tuple[str, ...] = tuple(about["dropped"])
        self.final_norm: bool = about["final_norm"]
        self.weights: str = about["weights"]
        kept = about["statistics"]
        self.statistics = None if kept is None else ChannelStatistics.from_dict(kept)

    @cached_property
    def _arrays(self) -> dict[int, ts.TensorStore]:
        return {block: open_array(self.path / f"block_{block}") for block in self.blocks}

    def tokens(self, block: int, indices: slice | Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float16]:
        """Tokens of one block for some tiles.

        Parameters
        ----------
        block : int
            One of ``blocks``.
        indices : slice or sequence of int
            Tiles, in any order; a slice has NumPy's meaning.

        Returns
        -------
        (k, h, w, d) float16 array
            h = w = tile_px / patch_px, d = width.
        """
        if block not in self.blocks:
            raise SlideloomError(
                f"block {block}", where=str(self.path), expected=f"one of {list(self.blocks)}", code="encoder_blocks"
            )
        data: NDArray[np.float16] = read_rows(self._arrays[block], indices)
        return data
