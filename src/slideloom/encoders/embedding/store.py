"""The embedding store as its readers see it: the tokens of every tile of a slide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from slideloom.artefacts.broken import BrokenArtefactError, MissingArtefactError
from slideloom.artefacts.stage import SCHEMA_VERSION
from slideloom.artefacts.zarrio import check_array, check_attributes, open_array, read_attributes
from slideloom.encoders.dihedral import N_SYMMETRIES, steps
from slideloom.errors import SlideloomError
from slideloom.patches.statistics import ChannelStatistics
from slideloom.patches.store import read_rows

__all__ = ["EmbeddingStore", "TokenArray", "token_arrays"]

_KEYS = (
    "slide_id", "image", "n_tiles", "blocks", "width", "patch_px", "tile_px", "markers", "dropped", "final_norm",
    "weights", "statistics",
)  # fmt: skip


class TokenArray(NamedTuple):
    """Which tokens an array of an embedding store holds.

    Attributes
    ----------
    block : int
        Block of the encoder, 1-based.
    symmetry : int
        How the tiles were flipped and turned before they were encoded; see :mod:`slideloom.encoders.dihedral`.
    """

    block: int
    symmetry: int = 0

    @property
    def label(self) -> str:
        """Short name, such as ``3`` or ``3_s1``."""
        return f"{self.block}_s{self.symmetry}" if self.symmetry else f"{self.block}"

    @property
    def folder(self) -> str:
        """Name of the array in its store."""
        return f"block_{self.label}"


def token_arrays(blocks: Sequence[int], symmetries: bool) -> tuple[TokenArray, ...]:
    """Arrays of a store with these blocks, with or without those of flipped and turned tiles."""
    return tuple(TokenArray(block, one) for block in blocks for one in range(N_SYMMETRIES if symmetries else 1))


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
    has_symmetries : bool
        Whether it holds the tokens of the flipped and turned tiles, too.

    Raises
    ------
    BrokenArtefactError
        ``missing_artefact``, ``store_damaged``; ``artefact_schema``: no embeddings, or of another version.
        ``store_mismatch``, when tokens are read: they are not as the attributes say.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            about = read_attributes(self.path)
        except MissingArtefactError as error:
            raise MissingArtefactError(f"no embeddings at {path}", place=self.path) from error
        if about.get("kind") != "embeddings":
            what = f"a store of kind {about.get('kind')!r}"
            raise BrokenArtefactError(what, place=self.path, expected="embeddings", code="artefact_schema")
        check_attributes(self.path, about, "embeddings", SCHEMA_VERSION, _KEYS)
        self.attributes = about
        self._opened: dict[TokenArray, ts.TensorStore] = {}
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
        self.has_symmetries: bool = about.get("symmetries", False)
        kept = about["statistics"]
        self.statistics = None if kept is None else ChannelStatistics.from_dict(kept)

    def tokens(
        self, block: int, indices: slice | Sequence[int] | NDArray[np.integer[Any]], symmetry: int = 0
    ) -> NDArray[np.float16]:
        """Tokens of one block for some tiles.

        Parameters
        ----------
        block : int
            One of ``blocks``.
        indices : slice or sequence of int
            Tiles, in any order; a slice has NumPy's meaning.
        symmetry : int
            Tokens of the tiles after :func:`slideloom.encoders.dihedral.transform`, where they then lie; 0: as they
            are.

        Returns
        -------
        (k, h, w, d) float16 array
            h = w = tile_px / patch_px, d = width.

        Raises
        ------
        SlideloomError
            ``encoder_blocks``: no such block. ``encoder_symmetries``: the store holds no flipped and turned tiles.
        """
        if block not in self.blocks:
            raise SlideloomError(
                f"block {block}", where=str(self.path), expected=f"one of {list(self.blocks)}", code="encoder_blocks"
            )
        steps(symmetry)
        if symmetry and not self.has_symmetries:
            raise SlideloomError(
                "no tokens of flipped and turned tiles",
                where=str(self.path),
                expected="a store made with symmetries",
                hint="Set 'symmetries: true' for this encoder ('encoders.<name>.symmetries'); what is stored is kept",
                code="encoder_symmetries",
            )
        data: NDArray[np.float16] = read_rows(self._array(TokenArray(block, symmetry)), indices)
        return data

    def _array(self, which: TokenArray) -> ts.TensorStore:
        if which not in self._opened:
            place, side = self.path / which.folder, self.tile_px // self.patch_px
            self._opened[which] = check_array(open_array(place), place, (self.n, side, side, self.width), np.float16)
        return self._opened[which]
