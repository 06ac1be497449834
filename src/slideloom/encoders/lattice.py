"""Tokens of one encoder on the token lattice of another.

Both images of a slide begin at one upper left corner, and places on them are compared by physical size, as tissue and
annotations are. A window of the first encoder's grid is a lattice of token squares; each takes the mean of the stored
tokens beneath it, weighted by area. So equal lattices give the stored tokens themselves, finer ones their mean, and
shifted or coarser ones a blend.

Two rules make the token of a place one and the same, whatever window asks for it:

- Where stored tiles overlap, a place belongs to the tile whose centre is nearest, of those that are there. Token edges
  and the middles between tiles cut each axis into cells; each cell belongs to one tile as a whole.
- Where no tile is (it was left out for lack of tissue, or the slide ends), the place does not count. A square with
  nothing beneath it is all zeros.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.errors import SlideloomError
from slideloom.patches.store import PatchStore

__all__ = ["TileCache", "TokenFrame", "TokenLattice"]

#: Tokens kept of the stores that are sampled, in all.
_CACHE_BYTES = 256 << 20
#: Rounding of coordinates, pixels: what lies this close to an edge lies on it.
_SNAP_PX = 1e-6
#: Share of a square below which what lies beneath it is a rounding.
_LEAST_SHARE = 1e-6

Numbers = Sequence[int] | NDArray[np.integer[Any]]
_Windows = tuple[tuple[int, ...], tuple[int, ...], "TokenFrame"]


@dataclass(frozen=True)
class TokenFrame:
    """How the windows of a grid are divided into tokens.

    Attributes
    ----------
    mpp_um : float
        Pixel size of the grid, µm.
    tile_px, token_px : int
        Side of a window and of a token, grid pixels.
    """

    mpp_um: float
    tile_px: int
    token_px: int

    @property
    def side(self) -> int:
        """Tokens along a window."""
        return self.tile_px // self.token_px


class TileCache:
    """The tiles' tokens that were read last, up to a number of bytes; may be shared by lattices and threads.

    Parameters
    ----------
    max_bytes : int
        What may be kept.
    """

    def __init__(self, max_bytes: int = _CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._kept: OrderedDict[tuple[str, int, int], NDArray[np.float16]] = OrderedDict()
        self._lock = Lock()

    def tiles(self, store: EmbeddingStore, block: int, wanted: Numbers) -> dict[int, NDArray[np.float16]]:
        """Tokens of some tiles, read in one go where they are not at hand.

        Parameters
        ----------
        store : EmbeddingStore
            Whose.
        block : int
            One of its blocks.
        wanted : sequence of int
            Tiles, rising.

        Returns
        -------
        dict of int to (h, w, d) float16 array
            By tile.
        """
        home = str(store.path)
        found: dict[int, NDArray[np.float16]] = {}
        with self._lock:
            for tile in map(int, wanted):
                kept = self._kept.get((home, block, tile))
                if kept is not None:
                    self._kept.move_to_end((home, block, tile))
                    found[tile] = kept
        missing = [tile for tile in map(int, wanted) if tile not in found]
        if missing:
            read = store.tokens(block, missing)
            found |= dict(zip(missing, read, strict=True))
            with self._lock:
                for tile in missing:
                    self._keep((home, block, tile), found[tile])
        return found

    def _keep(self, key: tuple[str, int, int], tokens: NDArray[np.float16]) -> None:
        if key in self._kept or tokens.nbytes > self.max_bytes:
            return
        # A copy: a row of what was read with it would keep all of it.
        self._kept[key] = tokens.copy()
        self.nbytes += tokens.nbytes
        while self.nbytes > self.max_bytes:
            self.nbytes -= self._kept.popitem(last=False)[1].nbytes


class TokenLattice:
    """Stored tokens, read at any window of any grid of the same slide.

    Parameters
    ----------
    embeddings : EmbeddingStore
        The tokens.
    patches : PatchStore
        The tiles that they were made of: where each lies.
    cache : TileCache, optional
        Where tokens are kept between calls; one of its own when left out.

    Raises
    ------
    SlideloomError
        ``store_mismatch``: the two are not of one slide, image and number of tiles.
    """

    def __init__(self, embeddings: EmbeddingStore, patches: PatchStore, cache: TileCache | None = None) -> None:
        ours = (embeddings.slide_id, embeddings.image, embeddings.n, embeddings.tile_px)
        theirs = (patches.slide_id, patches.image, patches.n, patches.tile_px)
        if ours != theirs:
            raise SlideloomError(
                f"tokens of {_told(*ours)}, patches of {_told(*theirs)}",
                where=str(embeddings.path),
                expected="the tokens of these patches",
                hint="Remove the slide's embeddings and run again",
                code="store_mismatch",
            )
        self.embeddings, self.patches = embeddings, patches
        self.blocks, self.width = embeddings.blocks, embeddings.width
        self._cache = cache or TileCache()
        n_rows, n_cols = int(patches.attributes["n_rows"]), int(patches.attributes["n_cols"])
        self._tile_at = np.full((n_rows, n_cols), -1, np.int32)
        self._tile_at[patches.row, patches.col] = np.arange(patches.n, dtype=np.int32)
        shape = (patches.tile_px, patches.stride_px, embeddings.patch_px)
        self._rows, self._cols = _Axis(n_rows, *shape), _Axis(n_cols, *shape)
        self._side = patches.tile_px // embeddings.patch_px
        self._latest: tuple[_Windows, list[_Plan]] | None = None

    def sample(
        self, block: int, y_px: Numbers, x_px: Numbers, frame: TokenFrame, out: NDArray[np.float16] | None = None
    ) -> NDArray[np.float16]:
        """Tokens beneath some windows.

        Parameters
        ----------
        block : int
            One of ``blocks``.
        y_px, x_px : (k,) int
            Upper left corners of the windows, pixels of the windows' grid; they may reach over the slide's border.
        frame : TokenFrame
            That grid, and its tokens.
        out : (k, h, w, d) float16 array, optional
            Where the tokens go, such as a part of a longer last axis; a new array when left out.

        Returns
        -------
        (k, h, w, d) float16 array
            h = w = ``frame.side``, d = ``width``. Means are taken in float32.
        """
        plans = self._plans((tuple(map(int, y_px)), tuple(map(int, x_px)), frame))
        if out is None:
            out = np.empty((len(plans), frame.side, frame.side, self.width), np.float16)
        wanted = sorted(set().union(*(plan.tiles for plan in plans)))
        tiles = self._cache.tiles(self.embeddings, block, wanted)
        for plan, place in zip(plans, out, strict=True):
            plan.apply(tiles, place)
        return out

    def _plans(self, windows: _Windows) -> list[_Plan]:
        latest = self._latest
        if latest is not None and latest[0] == windows:
            return latest[1]  # the same windows are asked for once a block
        y_px, x_px, frame = windows
        if len(y_px) != len(x_px):
            raise ValueError(f"{len(y_px)} rows for {len(x_px)} columns")
        factor = frame.mpp_um / self.patches.mpp_um
        rows = {y: self._rows.beneath(y, frame, factor) for y in set(y_px)}
        cols = {x: self._cols.beneath(x, frame, factor) for x in set(x_px)}
        plans = [self._plan(rows[y], cols[x], frame.side) for y, x in zip(y_px, x_px, strict=True)]
        self._latest = windows, plans
        return plans

    def _plan(self, rows: _Beneath, cols: _Beneath, side: int) -> _Plan:
        tokens = self._owners(rows.cells, cols.cells)
        # One entry for each square and each cell beneath it, square by square.
        square = rows.square[:, None] * side + cols.square
        weight = rows.weight[:, None] * cols.weight
        token = tokens[rows.place[:, None], cols.place]
        keep = token >= 0
        order = np.argsort(square[keep], kind="stable")
        square, weight, token = square[keep][order], weight[keep][order], token[keep][order]
        share = np.bincount(square, weight, side**2)
        keep = share[square] > _LEAST_SHARE
        square, token = square[keep], token[keep]
        return _Plan.make(square, token, weight[keep] / share[square], side**2, self._side**2)

    def _owners(self, y_cells: slice, x_cells: slice) -> NDArray[np.int64]:
        """Token that each cell belongs to, numbered over all tiles; -1 where no tile is."""
        rows, row_tokens, y_far = (part[y_cells, None, :, None] for part in self._rows.candidates)
        cols, col_tokens, x_far = (part[None, x_cells, None, :] for part in self._cols.candidates)
        tile = self._tile_at[rows, cols]
        far = np.where(tile < 0, np.inf, y_far**2 + x_far**2)
        token = (tile.astype(np.int64) * self._side + row_tokens) * self._side + col_tokens
        n_y, n_x, *both = far.shape
        far, token = (part.reshape(n_y, n_x, both[0] * both[1]) for part in (far, token))
        if far.shape[2] == 1:
            return np.where(np.isinf(far), -1, token)[:, :, 0]
        # Of two as near, the first in raster order.
        nearest = far.argmin(2)[:, :, None]
        owner = np.take_along_axis(token, nearest, 2)[:, :, 0]
        return np.where(np.isinf(np.take_along_axis(far, nearest, 2)[:, :, 0]), -1, owner)


def _told(slide_id: str, image: str, n: int, tile_px: int) -> str:
    return f"{slide_id} {image}, {n} tiles of {tile_px} px"


@dataclass(frozen=True)
class _Plan:
    """Which stored tokens a window's squares are made of.

    ``tiles`` rising; ``bounds`` and ``spots``: tokens needed of each tile, as ``spots[bounds[k] : bounds[k + 1]]``;
    ``source`` (squares,): the one token of each square, -1 for none; or ``mixture``: weights (squares, tokens).
    """

    tiles: tuple[int, ...]
    bounds: NDArray[np.intp]
    spots: NDArray[np.int64]
    source: NDArray[np.int64]
    mixture: csr_array | None

    @classmethod
    def make(
        cls, square: NDArray[np.int64], token: NDArray[np.int64], weight: NDArray[np.float64], n: int, per_tile: int
    ) -> _Plan:
        """From (entries,) squares, rising, with the tokens that they are made of and their weights, summing to 1."""
        needed, column = np.unique(token, return_inverse=True)
        tile, spots = np.divmod(needed, per_tile)
        tiles, first = np.unique(tile, return_index=True)
        starts = np.concatenate([[0], np.cumsum(np.bincount(square, minlength=n))])
        mixture = csr_array((weight, column.reshape(-1), starts), shape=(n, needed.size))
        mixture.sum_duplicates()  # a token may lie in several cells
        bounds, count = np.append(first, needed.size), np.diff(mixture.indptr)
        if count.max() > 1:
            return cls(tuple(tiles.tolist()), bounds, spots, np.empty(0, np.int64), mixture.astype(np.float32))
        source = np.full(n, -1, np.int64)
        source[count == 1] = mixture.indices
        return cls(tuple(tiles.tolist()), bounds, spots, source, None)

    def apply(self, tiles: dict[int, NDArray[np.float16]], out: NDArray[np.float16]) -> None:
        """Fill a window's squares, (h, w, d)."""
        width = out.shape[2]
        tokens = np.empty((self.spots.size, width), np.float16)
        for tile, start, stop in zip(self.tiles, self.bounds, self.bounds[1:], strict=False):
            np.take(tiles[tile].reshape(-1, width), self.spots[start:stop], 0, out=tokens[start:stop], mode="clip")
        if self.mixture is not None:
            # PyTorch changes between half and single precision ten times as fast as NumPy.
            mixed = self.mixture @ torch.from_numpy(tokens).float().numpy()
            torch.from_numpy(out).copy_(torch.from_numpy(mixed).view(out.shape))
        elif not self.tiles:
            out[...] = 0
        else:
            out[...] = tokens[self.source].reshape(out.shape)
            out[self.source.reshape(out.shape[:2]) < 0] = 0


@dataclass(frozen=True)
class _Beneath:
    """What lies beneath the squares along one axis.

    ``cells``: those concerned; and of each overlap, square by square: ``square``, ``place`` (the cell, counted from the
    first concerned) and ``weight`` (the share of the square's side).
    """

    cells: slice
    square: NDArray[np.int64]
    place: NDArray[np.int64]
    weight: NDArray[np.float64]


class _Axis:
    """One axis of a tile grid, cut into cells by the edges of tokens and the middles between neighbouring tiles.

    Attributes
    ----------
    edges : (cells + 1,) float64 array
        Grid pixels.
    candidates : tuple of three (cells, reach) arrays
        Tiles (rows or columns of the grid) that lie over each cell, the token of each there, and how far its centre is,
        in pixels; infinitely far where there are fewer.
    """

    def __init__(self, n_tiles: int, tile_px: int, stride_px: int, token_px: int) -> None:
        starts = np.arange(n_tiles) * float(stride_px)
        tokens = starts[:, None] + np.arange(tile_px // token_px + 1) * token_px
        middles = (starts[:-1] + starts[1:] + tile_px) / 2 if stride_px < tile_px else starts
        self.edges = np.unique(np.concatenate([tokens.reshape(-1), middles]))
        centre = (self.edges[:-1] + self.edges[1:]) / 2
        reach = -(-tile_px // stride_px)
        latest = np.minimum((centre // stride_px).astype(np.int64), n_tiles - 1)
        tile = latest[:, None] - np.arange(reach)[::-1]
        within = centre[:, None] - tile * stride_px
        there = (tile >= 0) & (within < tile_px)
        far = np.where(there, np.abs(within - tile_px / 2), np.inf)
        token = np.where(there, within // token_px, 0).astype(np.int64)
        self.candidates = (np.where(there, tile, 0), token, far)

    def beneath(self, start_px: int, frame: TokenFrame, factor: float) -> _Beneath:
        """What lies beneath a window that starts here in its own grid; ``factor`` leads from there to this grid."""
        lines = (start_px + np.arange(frame.side + 1) * frame.token_px) * factor
        half = np.rint(lines * 2) / 2  # edges are whole or half pixels
        lines = np.where(np.abs(lines - half) < _SNAP_PX, half, lines)
        first = np.maximum(np.searchsorted(self.edges, lines[:-1], "right") - 1, 0)
        count = np.maximum(np.minimum(np.searchsorted(self.edges, lines[1:], "left"), self.edges.size - 1) - first, 0)
        square = np.repeat(np.arange(count.size), count)
        cell = np.arange(square.size) - np.repeat(np.cumsum(count) - count, count) + first[square]
        shared = np.minimum(lines[square + 1], self.edges[cell + 1]) - np.maximum(lines[square], self.edges[cell])
        low, high = (int(cell[0]), int(cell[-1]) + 1) if cell.size else (0, 0)
        return _Beneath(slice(low, high), square, cell - low, shared / (lines[square + 1] - lines[square]))
