"""Tiles from the stores against tiles cut and encoded on the fly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from slideloom.config.model import DecoderConfig, EncoderConfig, GridConfig, NormalisationConfig
from slideloom.decoders.cellvit import build_decoder
from slideloom.encoders.embedding.embed import embed_slide
from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.encoders.fused import open_tokens
from slideloom.encoders.lattice import TokenLattice
from slideloom.encoders.mean_marker import MeanMarker
from slideloom.encoders.registry import build_encoder
from slideloom.inference.tiles import LiveTiles, StoredTiles, TileSource
from slideloom.patches.cut import cut_patches
from slideloom.patches.store import PatchStore

from .conftest import ENCODER, TILE_PX

EVERY = slice(None)
OTHER = EncoderConfig(model="mean_marker", grid="o", patch_px=16, normalisation=NormalisationConfig(scope="slide"))


class Blurring(MeanMarker):
    """An encoder that mixes pixels before it looks at them, and has two blocks."""

    def __init__(self, markers: tuple[str, ...]) -> None:
        super().__init__(markers)
        self.blocks = (1, 2)

    def encode(self, images: Tensor) -> dict[int, Tensor]:
        blurred = functional.avg_pool2d(images, 7, 1, 3, count_include_pad=False)
        tokens = super().encode(blurred)[1]
        return {1: tokens, 2: tokens * 2}


class OfFourteenPx(MeanMarker):
    """Tokens of 14 px, which no doubling leads to."""

    def __init__(self, markers: tuple[str, ...]) -> None:
        super().__init__(markers)
        self.patch_px = 14
        self.spec = dataclasses.replace(self.spec, patch_px=14, tile_multiple_px=14)


def live(slide: Any, overlap_px: int, **options: Any) -> LiveTiles:
    encoder = options.pop("encoder", slide.encoder)
    return LiveTiles(
        slide.row, slide.root, slide.facts, slide.tissue, slide.grid, overlap_px, encoder, ENCODER, slide.patches,
        None, "cpu", **options,
    )  # fmt: skip


def lattice_of(further: tuple[Path, Path]) -> TokenLattice:
    return TokenLattice(EmbeddingStore(further[1]), PatchStore(further[0]))


def agree(stored: TileSource, fresh: TileSource, batch_size: int = 4) -> int:
    """Check that two sources give the same tiles; the number of token maps seen."""
    assert stored.n == fresh.n
    maps = 0
    for one, two in zip(stored.batches(batch_size), fresh.batches(batch_size), strict=True):
        np.testing.assert_array_equal(one.y_px, two.y_px)
        np.testing.assert_array_equal(one.x_px, two.x_px)
        assert len(one.tokens) == len(two.tokens) == 4
        for a, b in zip(one.tokens, two.tokens, strict=True):
            torch.testing.assert_close(a.float(), b.float(), rtol=1e-3, atol=1e-3)  # stored tokens are float16
        maps = max(maps, len({id(token) for token in one.tokens}), len({id(token) for token in two.tokens}))
        assert one.image is not None
        assert two.image is not None
        torch.testing.assert_close(one.image, two.image, rtol=1e-5, atol=1e-5)
    return maps


@pytest.fixture(scope="module")
def further(slide: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Patches and embeddings of the slide at another resolution, in overlapping tiles."""
    folder, whole = tmp_path_factory.mktemp("further"), slide(TILE_PX)
    grid = GridConfig(image="sp", tile_px=48, stride_px=32, mpp_um=0.4)
    cut_patches(whole.row, whole.root, whole.facts, whole.tissue, grid, folder / "patches.zarr")
    patches = PatchStore(folder / "patches.zarr")
    embed_slide(build_encoder(OTHER, patches.channels), OTHER, patches, None, folder / "embeddings.zarr")
    return folder / "patches.zarr", folder / "embeddings.zarr"


@pytest.mark.parametrize("stride_px", [32, 24])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_stored_and_live_tiles_of_two_encoders_agree(
    stride_px: int, batch_size: int, slide: Callable[..., Any], further: tuple[Path, Path]
) -> None:
    one = slide(stride_px)
    tokens = open_tokens(one.embeddings.path, one.patches, (further,))
    stored = StoredTiles(one.patches, tokens, tokens.blocks, image=True)
    assert agree(stored, live(one, TILE_PX - stride_px, others=[lattice_of(further)]), batch_size) == 1
    batch = next(iter(stored.batches(batch_size)))
    assert batch.tokens[0].shape[1:] == (6, 4, 4)


def test_both_encoders_tell_of_the_same_place(slide: Callable[..., Any], further: tuple[Path, Path]) -> None:
    one = slide(TILE_PX)
    tokens = open_tokens(one.embeddings.path, one.patches, (further,)).tokens(1, EVERY).astype(float)
    inside = one.patches.valid(EVERY).reshape(-1, 4, 8, 4, 8).all((2, 4))
    related = np.corrcoef(tokens[inside].T)[:3, 3:]
    assert (related.diagonal() > 0.6).all()
    assert (np.abs(related[~np.eye(3, dtype=bool)]) < 0.3).all()


def test_live_windows_need_not_be_stored_ones(slide: Callable[..., Any], further: tuple[Path, Path]) -> None:
    """Live tiles overlap as they like, and reach over the slide's border; a place has one token all the same."""
    seen: dict[tuple[int, int], np.ndarray] = {}
    for overlap_px in (0, 8, 16):
        for batch in live(slide(TILE_PX), overlap_px, others=[lattice_of(further)]).batches(3):
            tokens = batch.tokens[3][:, 3:].permute(0, 2, 3, 1).numpy()
            for y_px, x_px, tile in zip(batch.y_px.tolist(), batch.x_px.tolist(), tokens, strict=True):
                for row, col in np.ndindex(4, 4):
                    place = (y_px + 8 * row, x_px + 8 * col)
                    np.testing.assert_array_equal(seen.setdefault(place, tile[row, col]), tile[row, col])
    assert all(values.any() for (y, x), values in seen.items() if y < 90 and x < 150)
    assert not any(values.any() for (y, x), values in seen.items() if y > 120 or x > 180)


def test_a_blur_is_the_encoders_own_and_not_in_the_decoders_image(slide: Callable[..., Any], tmp_path: Path) -> None:
    one = slide(TILE_PX)
    encoder = Blurring(one.embeddings.markers)
    embed_slide(encoder, ENCODER, one.patches, None, tmp_path / "blurred.zarr")
    blurred = EmbeddingStore(tmp_path / "blurred.zarr")
    assert not np.allclose(blurred.tokens(1, [0]), one.embeddings.tokens(1, [0]), atol=1e-2)
    stored = StoredTiles(one.patches, blurred, blurred.blocks, image=True)
    assert agree(stored, live(one, 0, encoder=encoder)) == 2
    plain, sharp = (next(iter(source.batches(4))).image for source in (one.stored(), stored))
    assert plain is not None
    assert sharp is not None
    torch.testing.assert_close(plain, sharp)


def test_only_the_blocks_that_are_read_are_given(
    slide: Callable[..., Any], further: tuple[Path, Path], tmp_path: Path
) -> None:
    one = slide(TILE_PX)
    encoder = Blurring(one.embeddings.markers)
    embed_slide(encoder, ENCODER, one.patches, None, tmp_path / "two.zarr")
    tokens = open_tokens(tmp_path / "two.zarr", one.patches, (further,))
    assert tokens.blocks == (1, 2)
    stored = StoredTiles(one.patches, tokens, (2,), image=True)
    assert agree(stored, live(one, 0, encoder=encoder, others=[lattice_of(further)], blocks=(2,))) == 1
    both = StoredTiles(one.patches, tokens, (1, 2), image=True)
    assert agree(both, live(one, 0, encoder=encoder, others=[lattice_of(further)])) == 2


def test_the_first_encoders_token_side_decides_how_far_up(
    slide: Callable[..., Any], further: tuple[Path, Path], tmp_path: Path
) -> None:
    """Tokens of 14 px with tokens of 6.4 µm beneath."""
    one, grid = slide(TILE_PX), GridConfig(image="sp", tile_px=28)
    cut_patches(one.row, one.root, one.facts, one.tissue, grid, tmp_path / "patches.zarr")
    patches = PatchStore(tmp_path / "patches.zarr")
    encoder = OfFourteenPx(build_encoder(OTHER, patches.channels).markers)
    embed_slide(encoder, OTHER, patches, None, tmp_path / "embeddings.zarr")
    tokens = open_tokens(tmp_path / "embeddings.zarr", patches, (further,))
    stored = StoredTiles(patches, tokens, tokens.blocks, image=True)
    fresh = live(dataclasses.replace(one, patches=patches, grid=grid), 0, encoder=encoder, others=[lattice_of(further)])
    agree(stored, fresh)
    decoder = build_decoder(
        DecoderConfig(width=0.1, branches="shared"), ["nucleus", "hv"], 1, tokens.width, tokens.patch_px, 3, seed=1
    ).eval()
    batch = next(iter(stored.batches(2)))
    assert batch.tokens[0].shape == (2, 6, 2, 2)
    out = decoder([token.float() for token in batch.tokens], batch.image, (28, 28))
    assert out["nucleus"].shape == (2, 2, 28, 28)
