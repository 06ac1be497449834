"""Tiles from the stores against tiles cut and encoded on the fly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from slideloom.config.model import DecoderConfig, EncoderConfig, GridConfig, NormalisationConfig
from slideloom.decoders.build import build_decoder
from slideloom.decoders.cellvit import expand_blocks
from slideloom.encoders.embedding.embed import embed_slide
from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.encoders.fused import open_tokens
from slideloom.encoders.lattice import TokenLattice
from slideloom.encoders.mean_marker import MeanMarker
from slideloom.encoders.registry import build_encoder
from slideloom.errors import SlideError, SlideloomError
from slideloom.inference.live import LiveTiles
from slideloom.inference.tiles import Inputs, RawTiles, StoredTiles, TileSource, joined, normalised
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
    return slide.live(overlap_px, **options)


def lattice_of(further: tuple[Path, Path]) -> TokenLattice:
    return TokenLattice(EmbeddingStore(further[1]), PatchStore(further[0]))


def read(source: TileSource, count: int = 4, poses: tuple[int, ...] = (0,)) -> list[RawTiles]:
    return [normalised(source, raw) for raw in source.read(count, poses)]


def by_place(
    source: TileSource, count: int = 4, pose: int = 0
) -> dict[tuple[int, int], tuple[list[Tensor], Tensor | None]]:
    """Tokens (d, h, w) of each of the decoder's inputs, and the image, of each tile."""
    found = {}
    for raw in read(source, count, (pose,)):
        inputs = joined([raw], len(raw))
        levels = expand_blocks(source.levels(inputs, pose))
        for number, place in enumerate(zip(raw.y_px.tolist(), raw.x_px.tolist(), strict=True)):
            image = None if inputs.images is None else inputs.images[number]
            found[place] = ([level[number] for level in levels], image)
    return found


def first_batch(source: TileSource) -> tuple[list[Tensor], Inputs]:
    inputs = joined([read(source, 100)[0]], 4)
    return expand_blocks(source.levels(inputs, 0)), inputs


def agree(stored: TileSource, fresh: TileSource, count: int = 4) -> int:
    """Check that two sources give the same tiles where both have one; the number of token maps seen."""
    one, two = by_place(stored, count), by_place(fresh, count)
    assert (len(one), len(two)) == (stored.n, fresh.n)
    # The last row and column of live tiles lie flush with the border.
    both = one.keys() & two.keys()
    inside = [(y, x) for y, x in one if max(y + stored.tile_px - 90, x + stored.tile_px - 150) <= 0]
    assert set(inside) <= both
    assert len(inside) > 5
    for place in both:
        for a, b in zip(one[place][0], two[place][0], strict=True):
            torch.testing.assert_close(a.float(), b.float(), rtol=1e-3, atol=1e-3)  # stored tokens are float16
        assert one[place][1] is not None
        torch.testing.assert_close(one[place][1], two[place][1], rtol=1e-5, atol=1e-5)
    return max(len({id(level) for level in first_batch(source)[0]}) for source in (stored, fresh))


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
@pytest.mark.parametrize("count", [1, 4, 100])
def test_stored_and_live_tiles_of_two_encoders_agree(
    stride_px: int, count: int, slide: Callable[..., Any], further: tuple[Path, Path]
) -> None:
    one = slide(stride_px)
    tokens = open_tokens(one.embeddings.path, one.patches, (further,))
    stored = StoredTiles(one.patches, tokens, tokens.blocks, image=True)
    assert agree(stored, live(one, TILE_PX - stride_px, others=[lattice_of(further)]), count) == 1
    assert first_batch(stored)[0][0].shape[1:] == (6, 4, 4)


def test_both_encoders_tell_of_the_same_place(slide: Callable[..., Any], further: tuple[Path, Path]) -> None:
    one = slide(TILE_PX)
    tokens = open_tokens(one.embeddings.path, one.patches, (further,)).tokens(1, EVERY).astype(float)
    inside = one.patches.valid(EVERY).reshape(-1, 4, 8, 4, 8).all((2, 4))
    related = np.corrcoef(tokens[inside].T)[:3, 3:]
    assert (related.diagonal() > 0.6).all()
    assert (np.abs(related[~np.eye(3, dtype=bool)]) < 0.3).all()


def test_live_windows_need_not_be_stored_ones(slide: Callable[..., Any], further: tuple[Path, Path]) -> None:
    """Live tiles overlap as they like, and lie flush with the slide's border; a place has one token all the same."""
    seen: dict[tuple[int, int], np.ndarray] = {}
    for overlap_px in (0, 8, 16):
        source = live(slide(TILE_PX), overlap_px, others=[lattice_of(further)])
        for (y_px, x_px), (levels, _) in by_place(source, 3).items():
            tile = levels[3][3:].permute(1, 2, 0).numpy()
            for row, col in np.ndindex(4, 4):
                place = (y_px + 8 * row, x_px + 8 * col)
                np.testing.assert_array_equal(seen.setdefault(place, tile[row, col]), tile[row, col])
    assert len(seen) > 300
    assert all(values.any() for values in seen.values())


def test_a_blur_is_the_encoders_own_and_not_in_the_decoders_image(slide: Callable[..., Any], tmp_path: Path) -> None:
    one = slide(TILE_PX)
    encoder = Blurring(one.embeddings.markers)
    embed_slide(encoder, ENCODER, one.patches, None, tmp_path / "blurred.zarr")
    blurred = EmbeddingStore(tmp_path / "blurred.zarr")
    assert not np.allclose(blurred.tokens(1, [0]), one.embeddings.tokens(1, [0]), atol=1e-2)
    stored = StoredTiles(one.patches, blurred, blurred.blocks, image=True)
    assert agree(stored, live(one, 0, encoder=encoder)) == 2
    plain, sharp = (first_batch(source)[1].images for source in (one.stored(), stored))
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
    tokens_by_input, inputs = first_batch(stored)
    assert tokens_by_input[0].shape[1:] == (6, 2, 2)
    out = decoder([level.float() for level in tokens_by_input], inputs.images, (28, 28))
    assert out["nucleus"].shape[1:] == (2, 28, 28)


def test_stored_pixels_are_normalised_as_the_encoder_saw_them(slide: Callable[..., Any]) -> None:
    """Against the statistics' own arithmetic, on NumPy."""
    one = slide(TILE_PX)
    assert one.embeddings.statistics is not None
    images = torch.cat([raw.pixels for raw in read(one.stored()) if raw.pixels is not None])
    expected = one.embeddings.statistics.apply(one.patches.pixels(EVERY))
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-5)


def test_rgb_pixels_are_scaled_as_the_encoder_scales_them(slide: Callable[..., Any]) -> None:
    source = slide(TILE_PX).stored()
    about = {"spec": {"mean": (0.7, 0.6, 0.5), "std": (0.1, 0.2, 0.3), "name": "rgb"}}
    source._embeddings = SimpleNamespace(attributes=about, statistics=None)
    pixels = torch.arange(3 * 256, dtype=torch.uint8).reshape(1, 3, 16, 16)
    found = source.normalise(pixels).double().numpy()
    scaled = pixels.double().numpy() / 255
    expected = (scaled - np.array([0.7, 0.6, 0.5])[:, None, None]) / np.array([0.1, 0.2, 0.3])[:, None, None]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_live_tiles_lie_flush_with_the_border(slide: Callable[..., Any]) -> None:
    places = by_place(slide(TILE_PX).live(0))
    assert sorted({y for y, _ in places}) == [0, 32, 58]
    assert sorted({x for _, x in places}) == [0, 32, 64, 96, 118]
    shifted = by_place(slide(TILE_PX).live(0, shifted=True))
    assert sorted({y for y, _ in shifted}) == [0, 16, 48, 58]


@pytest.mark.parametrize("rows", [(0, 90), (0, 40), (40, 60), (33, 64), (64, 90)])
def test_a_band_reads_the_tiles_that_touch_it(rows: tuple[int, int], slide: Callable[..., Any]) -> None:
    one = slide(TILE_PX)
    for whole, band in ((one.stored(), one.stored(rows=rows)), (one.live(8), one.live(8, rows=rows))):
        every, some = by_place(whole), by_place(band)
        touching = {(y, x) for y, x in every if any(y <= row < y + TILE_PX for row in range(*rows))}
        assert set(some) == touching
        assert band.n == len(touching)
        for place, (levels, image) in some.items():
            torch.testing.assert_close(levels[0], every[place][0][0], rtol=0, atol=0)
            torch.testing.assert_close(image, every[place][1], rtol=0, atol=0)


def test_poses_without_stored_tokens_are_refused(slide: Callable[..., Any], further: tuple[Path, Path]) -> None:
    with pytest.raises(SlideloomError, match=r"flipped and turned") as caught:
        list(slide(TILE_PX).stored().read(4, (0, 4)))
    assert caught.value.code == "encoder_symmetries"
    with pytest.raises(SlideError, match="several encoders") as caught:
        list(slide(TILE_PX).live(0, others=[lattice_of(further)]).read(4, (0, 4)))
    assert caught.value.code == "encoder_symmetries"


def test_live_and_stored_poses_agree(slide: Callable[..., Any], tmp_path: Path) -> None:
    one = slide(TILE_PX)
    config = ENCODER.model_copy(update={"symmetries": True})
    embed_slide(one.encoder, config, one.patches, None, tmp_path / "poses.zarr")
    stored = StoredTiles(one.patches, EmbeddingStore(tmp_path / "poses.zarr"), (1,), image=True)
    for pose in (1, 4, 7):
        turned, fresh = by_place(stored, pose=pose), by_place(one.live(0), pose=pose)
        assert not torch.equal(turned[32, 32][0][0], by_place(stored)[32, 32][0][0])
        torch.testing.assert_close(turned[32, 32][0][0].float(), fresh[32, 32][0][0], rtol=1e-3, atol=1e-3)


def test_a_batch_is_filled_up_to_its_size(slide: Callable[..., Any]) -> None:
    source = slide(TILE_PX).stored()
    parts = [raw.part(0, 2) for raw in read(source)[:2]]
    inputs = joined(parts, 7)
    assert inputs.images is not None
    assert inputs.images.shape[0] == inputs.tokens[1, 0].shape[0] == 7
    assert inputs.images.is_contiguous(memory_format=torch.channels_last)
    assert parts[1].pixels is not None
    torch.testing.assert_close(inputs.images[2:4], parts[1].pixels, rtol=0, atol=0)
