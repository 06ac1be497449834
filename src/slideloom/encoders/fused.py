"""Several encoders read as one: their tokens of the same place, side by side, on the first one's tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.encoders.base import spread
from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.encoders.lattice import TileCache, TokenFrame, TokenLattice
from slideloom.errors import SlideloomError
from slideloom.patches.store import Indices, PatchStore

__all__ = [
    "FusedEmbeddings",
    "FusedStores",
    "TokenReader",
    "joint_levels",
    "numbered_levels",
    "open_tokens",
    "token_record",
]

#: Patches and embeddings of every further encoder.
FusedStores = Sequence[tuple[Path, Path]]

_RECORD = ("encoder", "spec", "weights", "notes", "markers", "dropped", "precision")


def token_record(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Which encoder stored tokens come from, out of what was recorded with them.

    Parameters
    ----------
    attributes : mapping
        Of an embedding store, or of several fused.

    Returns
    -------
    dict
        As :func:`slideloom.encoders.base.encoder_record` makes it. Of several encoders, ``weights`` names those of all
        and ``fused`` holds a record of each, with its ``blocks``, ``width`` and ``patch_px``; the rest is the first's.
    """
    record = {name: attributes[name] for name in _RECORD}
    return record | ({"fused": attributes["fused"]} if "fused" in attributes else {})


def joint_levels(blocks: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Blocks of several encoders that go to the decoder together.

    Each encoder's blocks are spread over the decoder's inputs as if it were alone
    (:func:`slideloom.encoders.base.spread`); inputs that get the same blocks are one level. The levels, spread in turn,
    give the inputs back.

    Parameters
    ----------
    blocks : sequence of sequence of int
        Of each encoder, one to four, shallow to deep.

    Returns
    -------
    tuple of tuple of int
        For each level, shallow to deep, a block of each encoder.

    Examples
    --------
    >>> joint_levels([(3, 6, 9, 12), (1,)])
    ((3, 1), (6, 1), (9, 1), (12, 1))
    >>> joint_levels([(1,), (8, 16)])
    ((1, 8), (1, 16))
    """
    inputs = [[one[index] for index in spread(len(one))] for one in blocks]
    return tuple(dict.fromkeys(zip(*inputs, strict=True)))


def numbered_levels(blocks: Sequence[Sequence[int]]) -> dict[int, tuple[int, ...]]:
    """What a decoder may read, by number: one encoder's blocks under their own, :func:`joint_levels` from 1 on.

    Parameters
    ----------
    blocks : sequence of sequence of int
        Of each encoder.

    Returns
    -------
    dict of int to tuple of int
        Shallow to deep; a block of each encoder.
    """
    if len(blocks) == 1:
        return {block: (block,) for block in blocks[0]}
    return dict(enumerate(joint_levels(blocks), start=1))


class FusedEmbeddings:
    """Tokens of a slide's tiles from several encoders; read as an :class:`EmbeddingStore` is.

    The first encoder gives tiles, token squares, and what the image was normalised with. The tokens of the others are
    sampled beneath each square and joined on the last axis.

    Parameters
    ----------
    first : EmbeddingStore
        Tokens of the first encoder.
    patches : PatchStore
        Its tiles.
    others : sequence of TokenLattice
        Tokens of the others, in order.

    Attributes
    ----------
    attributes : dict
        Those of ``first``; but ``blocks``, ``width`` and ``weights`` of all together, and ``fused``: a record of each
        encoder, the first included.
    blocks : tuple of int
        Numbers of the levels, from 1.
    levels : dict of int to tuple of int
        For each of them, a block of each encoder; see :func:`joint_levels`.
    width : int
        Sum of the encoders' widths.
    weights : str
        Of all encoders, joined by `` + ``.
    slide_id, image, n, patch_px, tile_px, markers, dropped, final_norm, statistics
        Of ``first``.
    has_symmetries : bool
        False: tokens of the others, made of flipped and turned tiles of their own grid, fit no tile of the first.

    Raises
    ------
    SlideloomError
        ``store_mismatch``: not one slide's, or ``patches`` are not those of ``first``. ``decoder_blocks``: an encoder
        has more than four blocks.
    """

    def __init__(self, first: EmbeddingStore, patches: PatchStore, others: Sequence[TokenLattice]) -> None:
        _check_one_slide(first, patches, others)
        stores = [first, *(other.embeddings for other in others)]
        self.first, self.patches, self.others = first, patches, tuple(others)
        self.path = first.path
        self.slide_id, self.image, self.n = first.slide_id, first.image, first.n
        self.patch_px, self.tile_px = first.patch_px, first.tile_px
        self.markers, self.dropped, self.final_norm = first.markers, first.dropped, first.final_norm
        self.statistics = first.statistics
        self.has_symmetries = False
        self.levels = numbered_levels([store.blocks for store in stores])
        self.blocks = tuple(self.levels)
        self.width = sum(store.width for store in stores)
        self.weights = " + ".join(store.weights for store in stores)
        self.attributes: dict[str, Any] = first.attributes | {
            "blocks": list(self.blocks),
            "width": self.width,
            "weights": self.weights,
            "symmetries": False,
            "fused": [_member(store) for store in stores],
        }
        self._frame = TokenFrame(patches.mpp_um, first.tile_px, first.patch_px)

    def tokens(self, block: int, indices: Indices, symmetry: int = 0) -> NDArray[np.float16]:
        """Tokens of one level for some tiles.

        Parameters
        ----------
        block : int
            One of ``blocks``.
        indices : slice or sequence of int
            Tiles, in any order; a slice has NumPy's meaning.
        symmetry : int
            0; there are no tokens of flipped and turned tiles.

        Returns
        -------
        (k, h, w, d) float16 array
            h = w = tile_px / patch_px, d = width.

        Raises
        ------
        SlideloomError
            ``encoder_blocks``: no such level. ``encoder_symmetries``: another symmetry than 0.
        """
        if block not in self.blocks:
            raise SlideloomError(
                f"level {block}", where=str(self.path), expected=f"one of {list(self.blocks)}", code="encoder_blocks"
            )
        if symmetry:
            raise SlideloomError(
                "several encoders' tokens of flipped and turned tiles",
                where=str(self.path),
                expected="tiles as they are",
                hint="Set the experiment's augmentation.flips and augmentation.turns to 0, or name one encoder only",
                code="encoder_symmetries",
            )
        picked = indices if isinstance(indices, slice) else np.asarray(indices, np.int64).reshape(-1)
        own, *theirs = self.levels[block]
        y_px, x_px = self.patches.y_px[picked], self.patches.x_px[picked]
        ours = self.first.tokens(own, picked)
        out = np.empty((*ours.shape[:-1], self.width), np.float16)
        out[..., : self.first.width] = ours
        start = self.first.width
        for other, one in zip(self.others, theirs, strict=True):
            other.sample(one, y_px, x_px, self._frame, out[..., start : start + other.width])
            start += other.width
        return out


#: Tokens of one encoder or of several.
TokenReader = EmbeddingStore | FusedEmbeddings


def open_tokens(
    embeddings: Path, patches: PatchStore, fused: FusedStores = (), cache: TileCache | None = None
) -> TokenReader:
    """Open the tokens of a slide's tiles, of one encoder or of several.

    Parameters
    ----------
    embeddings : Path
        Store of the first encoder.
    patches : PatchStore
        Its tiles.
    fused : sequence of (Path, Path)
        Patches and embeddings of every further encoder.
    cache : TileCache, optional
        Shared by the further encoders' tokens, and by other slides if the caller wishes.
    """
    first = EmbeddingStore(embeddings)
    if not fused:
        return first
    cache = cache or TileCache()
    others = [TokenLattice(EmbeddingStore(place), PatchStore(tiles), cache) for tiles, place in fused]
    return FusedEmbeddings(first, patches, others)


def _member(store: EmbeddingStore) -> dict[str, Any]:
    own = {"blocks": list(store.blocks), "width": store.width, "patch_px": store.patch_px, "image": store.image}
    return token_record(store.attributes) | own


def _check_one_slide(first: EmbeddingStore, patches: PatchStore, others: Sequence[TokenLattice]) -> None:
    slides = {first.slide_id, patches.slide_id, *(other.embeddings.slide_id for other in others)}
    if len(slides) > 1 or first.n != patches.n or first.tile_px != patches.tile_px:
        raise SlideloomError(
            f"stores of {', '.join(sorted(slides))}; {first.n} tiles with tokens, {patches.n} with pixels",
            where=str(first.path),
            expected="stores of one slide, and as many tokens as patches",
            hint="Remove the slide's embeddings and run again",
            code="store_mismatch",
        )
