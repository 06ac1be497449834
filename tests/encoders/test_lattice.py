"""Tokens sampled on other lattices against one square at a time, worked out in exact fractions of a pixel."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from slideloom.encoders.lattice import TileCache, TokenFrame, TokenLattice
from slideloom.errors import SlideloomError
from slideloom.slides.grid import TileGrid


@dataclass
class Tiles:
    """As much of a patch store as tells where tiles lie."""

    grid: TileGrid
    mpp_um: float = 0.5
    keep: Sequence[int] | None = None
    slide_id: str = "s1"
    image: str = "sp"

    def __post_init__(self) -> None:
        kept = np.arange(self.grid.n) if self.keep is None else np.asarray(self.keep, np.int64)
        self.n, self.tile_px, self.stride_px = len(kept), self.grid.tile_px, self.grid.stride_px
        self.row, self.col = self.grid.rows[kept], self.grid.cols[kept]
        self.y_px, self.x_px = self.grid.y_px[kept], self.grid.x_px[kept]
        self.attributes = {"n_rows": self.grid.n_rows, "n_cols": self.grid.n_cols}


@dataclass
class Tokens:
    """As much of an embedding store as is read."""

    data: NDArray[np.float16]
    tile_px: int
    slide_id: str = "s1"
    image: str = "sp"
    blocks: tuple[int, ...] = (1, 2)
    path: Path = Path("s1.zarr")
    read: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.n, side, _, self.width = self.data.shape
        self.patch_px = self.tile_px // side

    def tokens(self, block: int, indices: Any) -> NDArray[np.float16]:
        self.read += list(indices)
        return self.data[np.asarray(indices)] * np.float16(block)


def make(
    size: tuple[int, int] = (64, 96),
    tile_px: int = 16,
    stride_px: int = 16,
    token_px: int = 4,
    keep: Sequence[int] | None = None,
    mpp_um: float = 0.5,
    cache: TileCache | None = None,
) -> tuple[TokenLattice, Tiles, Tokens]:
    tiles = Tiles(TileGrid.make(*size, tile_px, stride_px), mpp_um, keep)
    side = tile_px // token_px
    data = np.random.default_rng(1).normal(size=(tiles.n, side, side, 3)).astype(np.float16)
    tokens = Tokens(data, tile_px)
    return TokenLattice(tokens, tiles, cache), tiles, tokens  # type: ignore[arg-type]


def mosaic(tiles: Tiles, tokens: Tokens) -> NDArray[np.float16]:
    """Tokens of a whole slide whose tiles do not overlap."""
    grid, side = tiles.grid, tokens.data.shape[1]
    return (
        tokens.data.reshape(grid.n_rows, grid.n_cols, side, side, -1)
        .transpose(0, 2, 1, 3, 4)
        .reshape(grid.n_rows * side, grid.n_cols * side, -1)
    )


def whole(lattice: TokenLattice, frame: TokenFrame) -> NDArray[np.float16]:
    return lattice.sample(1, [0], [0], frame)[0]


def oracle(
    tiles: Tiles, tokens: Tokens, y_px: int, x_px: int, side: int, token_px: int, ratio: Fraction
) -> NDArray[np.float64]:
    """A window's tokens, every piece of a pixel by itself."""
    fine = lcm(ratio.denominator, 2)  # pieces along a pixel: every edge lies between two of them
    patch, tile_px = tokens.patch_px, tiles.tile_px

    def edges(starts: NDArray[np.int32], n: int) -> list[float]:
        every = [tile * tiles.stride_px for tile in range(n)]
        lines = {start + k * patch for start in every for k in range(tile_px // patch + 1)}
        middles = {(a + b + tile_px) / 2 for a, b in pairwise(every) if b - a < tile_px}
        return sorted(lines | middles)

    lines = edges(tiles.y_px, tiles.grid.n_rows), edges(tiles.x_px, tiles.grid.n_cols)
    known: dict[tuple[float, float], NDArray[np.float64] | None] = {}

    def token_at(y: float, x: float) -> NDArray[np.float64] | None:
        centre = []
        for value, cuts in zip((y, x), lines, strict=True):
            after = next((k for k, cut in enumerate(cuts) if cut > value), 0)
            if after == 0:
                return None
            centre.append((cuts[after - 1] + cuts[after]) / 2)
        here = (centre[0], centre[1])
        if here not in known:
            best, found = np.inf, None
            for index, (top, left) in enumerate(zip(tiles.y_px.tolist(), tiles.x_px.tolist(), strict=True)):
                dy, dx = here[0] - top, here[1] - left
                far = (dy - tile_px / 2) ** 2 + (dx - tile_px / 2) ** 2
                if 0 <= dy < tile_px and 0 <= dx < tile_px and far < best:
                    best = far
                    found = tokens.data[index, int(dy // patch), int(dx // patch)].astype(np.float64)
            known[here] = found
        return known[here]

    out = np.zeros((side, side, tokens.width))
    step = token_px * ratio * fine
    for row in range(side):
        for col in range(side):
            top, left = (y_px * ratio * fine + row * step, x_px * ratio * fine + col * step)
            spots = [
                token_at((v + 0.5) / fine, (u + 0.5) / fine)
                for v in range(int(top), int(top + step))
                for u in range(int(left), int(left + step))
            ]
            there = [spot for spot in spots if spot is not None]
            if there:
                out[row, col] = np.mean(there, axis=0)
    return out


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_every_square_is_the_mean_of_what_lies_beneath(data: st.DataObject) -> None:
    token_px, side = data.draw(st.sampled_from([2, 3, 4])), data.draw(st.integers(1, 3))
    tile_px = token_px * side
    stride_px = data.draw(st.one_of(st.just(tile_px), st.integers(1, tile_px)))
    size = (data.draw(st.integers(4, 24)), data.draw(st.integers(4, 24)))
    grid = TileGrid.make(*size, tile_px, stride_px)
    kept = data.draw(st.one_of(st.none(), st.sets(st.integers(0, grid.n - 1))))
    lattice, tiles, tokens = make(size, tile_px, stride_px, token_px, None if kept is None else sorted(kept))
    ratio = data.draw(st.sampled_from([Fraction(1), Fraction(1, 2), Fraction(2), Fraction(3, 2), Fraction(2, 3)]))
    ours, count = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    y_px, x_px = data.draw(st.integers(0, 20)), data.draw(st.integers(0, 20))
    frame = TokenFrame(float(ratio) * 0.5, ours * count, ours)
    found = lattice.sample(1, [y_px], [x_px], frame)[0]
    expected = oracle(tiles, tokens, y_px, x_px, count, ours, ratio)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_an_equal_lattice_gives_the_very_tokens() -> None:
    lattice, tiles, tokens = make()
    frame = TokenFrame(0.5, 16, 4)
    np.testing.assert_array_equal(lattice.sample(1, tiles.y_px, tiles.x_px, frame), tokens.data)
    np.testing.assert_array_equal(lattice.sample(2, tiles.y_px, tiles.x_px, frame), tokens.data * 2)
    # Another tile side, and another resolution with other squares, are the same lattice.
    wide = lattice.sample(1, [0], [0], TokenFrame(0.5, 64, 4))[0]
    np.testing.assert_array_equal(wide, mosaic(tiles, tokens)[:16, :16])
    np.testing.assert_array_equal(lattice.sample(1, [0], [0], TokenFrame(0.25, 128, 8))[0], wide)


def test_overlapping_tiles_give_their_own_tokens_in_their_middle() -> None:
    lattice, tiles, tokens = make(stride_px=8)
    own = lattice.sample(1, tiles.y_px, tiles.x_px, TokenFrame(0.5, 16, 4))
    inner = (tiles.row > 0) & (tiles.col > 0) & (tiles.row < tiles.row.max()) & (tiles.col < tiles.col.max())
    assert inner.any()
    np.testing.assert_array_equal(own[inner, 1:3, 1:3], tokens.data[inner, 1:3, 1:3])
    assert not np.array_equal(own[inner, 0], tokens.data[inner, 0])


def test_finer_tokens_are_averaged_and_coarser_ones_repeated() -> None:
    lattice, tiles, tokens = make()
    stored = mosaic(tiles, tokens).astype(np.float64)
    means = stored[:16, :16].reshape(4, 4, 4, 4, 3).mean((1, 3))
    np.testing.assert_allclose(whole(lattice, TokenFrame(0.5, 64, 16)), means, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(whole(lattice, TokenFrame(1.0, 32, 8)), means, rtol=1e-3, atol=1e-4)
    repeated = stored[:4, :4].repeat(4, 0).repeat(4, 1)
    np.testing.assert_array_equal(whole(lattice, TokenFrame(0.125, 64, 4)), repeated)


def test_a_shifted_lattice_blends_its_four_neighbours() -> None:
    lattice, tiles, tokens = make()
    stored = mosaic(tiles, tokens).astype(np.float64)
    found = lattice.sample(1, [3], [1], TokenFrame(0.5, 32, 4))[0]
    rows = 0.25 * stored[:8] + 0.75 * stored[1:9]
    np.testing.assert_allclose(found, 0.75 * rows[:, :8] + 0.25 * rows[:, 1:9], rtol=1e-3, atol=1e-3)


def test_the_token_of_a_place_does_not_depend_on_the_window() -> None:
    generator = np.random.default_rng(0)
    for stride_px, ratio in ((16, 0.6), (12, 1.7), (7, 1.0)):
        kept = np.flatnonzero(generator.random(TileGrid.make(64, 96, 16, stride_px).n) < 0.8)
        lattice, _, _ = make(stride_px=stride_px, keep=kept.tolist(), cache=TileCache(2000))
        scale = 0.5 * ratio
        all_of_it = lattice.sample(1, [0], [0], TokenFrame(scale, 40 * 3, 3))[0]
        y, x = (generator.integers(0, 30, 12) for _ in range(2))
        for count in (1, 4, 7):
            parts = lattice.sample(1, y * 3, x * 3, TokenFrame(scale, count * 3, 3))
            for part, row, col in zip(parts, y, x, strict=True):
                np.testing.assert_array_equal(part, all_of_it[row : row + count, col : col + count])


def test_places_without_a_tile_do_not_count() -> None:
    lattice, _, tokens = make(keep=[0, 2])  # of the first row of tiles, the second is left out
    found = lattice.sample(1, [0], [8], TokenFrame(0.5, 32, 16))[0]
    np.testing.assert_allclose(found[0, 0], tokens.data[0, :, 2:].astype(float).mean((0, 1)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found[0, 1], tokens.data[1, :, :2].astype(float).mean((0, 1)), rtol=1e-3, atol=1e-4)
    assert not found[1].any()


def test_a_left_out_tile_is_stood_in_for_by_one_that_overlaps_it() -> None:
    stride = 8
    with_all, tiles, tokens = make(stride_px=stride)
    without = 1
    kept = [tile for tile in range(tiles.n) if tile != without]
    # The middle half of tile 1 belongs to it; without it, half is the first tile's, half the third's.
    holed = TokenLattice(
        Tokens(tokens.data[kept], 16),  # type: ignore[arg-type]
        Tiles(tiles.grid, keep=kept),  # type: ignore[arg-type]
    )
    frame = TokenFrame(0.5, 8, 4)
    np.testing.assert_array_equal(with_all.sample(1, [0], [12], frame)[0], tokens.data[1, :2, 1:3])
    expected = np.stack([tokens.data[0, :2, 3], tokens.data[2, :2, 0]], axis=1)
    np.testing.assert_array_equal(holed.sample(1, [0], [12], frame)[0], expected)


def test_windows_may_lie_outside_the_slide() -> None:
    lattice, _, tokens = make(size=(16, 16))
    frame = TokenFrame(0.5, 16, 4)
    assert not lattice.sample(1, [64, -64], [0, 0], frame).any()
    around = lattice.sample(1, [-8], [8], frame)[0]
    np.testing.assert_array_equal(around[2:, :2], tokens.data[0, :2, 2:])
    assert not around[:2].any()
    assert not around[:, 2:].any()
    assert lattice.sample(1, [], [], frame).shape == (0, 4, 4, 3)


def test_a_smooth_field_is_found_where_it_lies() -> None:
    """Tokens that tell where their centre is, in micrometres, seen from H&E tiles of another resolution."""
    _, tiles, tokens = make(size=(512, 512), tile_px=120, stride_px=100, token_px=8, mpp_um=0.5)
    centre = (np.arange(15) + 0.5) * 8
    y = (tiles.y_px[:, None, None] + centre[:, None]) * 0.5
    x = (tiles.x_px[:, None, None] + centre) * 0.5
    tokens.data = np.stack(np.broadcast_arrays(y, x, np.sin(y / 20)), -1).astype(np.float16)
    lattice = TokenLattice(tokens, tiles)  # type: ignore[arg-type]
    frame = TokenFrame(0.2527, 224, 14)
    tops, lefts = np.array([0, 224, 448, 150]), np.array([448, 0, 300, 777])
    found = lattice.sample(1, tops, lefts, frame).astype(float)
    centre = (np.arange(16) + 0.5) * 14
    true_y = np.broadcast_to(((tops[:, None] + centre) * 0.2527)[:, :, None], found.shape[:3])
    true_x = np.broadcast_to(((lefts[:, None] + centre) * 0.2527)[:, None, :], found.shape[:3])
    inside = (true_y < 254) & (true_x < 254)
    # Squares of 3.5 µm over tokens of 4 µm, cut where tiles meet: off by less than half a token, not at all on average.
    for axis, true in enumerate((true_y, true_x)):
        error = (found[..., axis] - true)[inside]
        assert np.abs(error).max() < 2.0
        assert abs(error.mean()) < 0.1
    assert np.abs(found[..., 2] - np.sin(true_y / 20))[inside].max() < 0.1


def test_pixel_sizes_that_agree_up_to_rounding_are_one_lattice() -> None:
    tiles = Tiles(TileGrid.make(4000, 64, 16, 16), mpp_um=0.3 * 3)
    data = np.random.default_rng(2).normal(size=(tiles.n, 2, 2, 2)).astype(np.float16)
    lattice = TokenLattice(Tokens(data, 16), tiles)  # type: ignore[arg-type]
    assert tiles.mpp_um != 0.9
    np.testing.assert_array_equal(lattice.sample(1, tiles.y_px, tiles.x_px, TokenFrame(0.9, 16, 8)), data)


def test_neighbours_are_read_once_and_the_cache_keeps_its_bounds() -> None:
    one = 4 * 4 * 3 * 2
    frame = TokenFrame(0.5, 16, 4)
    windows = TileGrid.make(64, 96, 16, 8)
    for tiles_kept, reads in ((1000, 24), (14, 24), (0, None)):
        cache = TileCache(tiles_kept * one)
        lattice, tiles, tokens = make(cache=cache)
        for start in range(0, windows.n, 5):
            picked = slice(start, start + 5)
            lattice.sample(1, windows.y_px[picked], windows.x_px[picked], frame)
            assert cache.nbytes <= cache.max_bytes
        assert tiles.n == 24
        assert len(tokens.read) == reads if reads else len(tokens.read) > 24


def test_threads_may_share_a_lattice() -> None:
    lattice, _, _ = make(stride_px=12, cache=TileCache(3000))
    frame = TokenFrame(0.4, 15, 5)
    generator = np.random.default_rng(0)
    asked = [generator.integers(0, 90, (2, 6)) for _ in range(30)]
    expected = [lattice.sample(1, y, x, frame) for y, x in asked]
    wrong: list[int] = []

    def work() -> None:
        order = np.random.default_rng(threading.get_ident()).permutation(30).tolist()
        wrong.extend(
            number for number in order if not np.array_equal(lattice.sample(1, *asked[number], frame), expected[number])
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "change", [{"slide_id": "s2"}, {"image": "he"}, {"tile_px": 32}, {"data": np.zeros((3, 4, 4, 3), np.float16)}]
)
def test_tokens_of_other_patches_are_refused(change: dict[str, Any]) -> None:
    _, tiles, tokens = make()
    about = {"data": tokens.data, "tile_px": 16} | change
    with pytest.raises(SlideloomError, match="s1 sp, 24 tiles of 16 px") as caught:
        TokenLattice(Tokens(**about), tiles)  # type: ignore[arg-type]
    assert caught.value.code == "store_mismatch"
