"""The embedding store: what is written, what is refused, how it is read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slideloom.artefacts import zarrio
from slideloom.config.catalogue import complete
from slideloom.config.model import EncoderConfig, NormalisationConfig
from slideloom.encoders.base import Encoder, EncoderSpec
from slideloom.encoders.embedding import batches
from slideloom.encoders.embedding.account import PARTS
from slideloom.encoders.embedding.embed import embed_slide
from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.encoders.mean_marker import MeanMarker
from slideloom.encoders.registry import build_encoder
from slideloom.errors import SlideError, SlideloomError
from slideloom.patches.statistics import ChannelStatistics, channel_statistics

STATISTICS = ChannelStatistics(
    markers=("DNA", "CD3", "CD8"), clip=(3000.0,) * 3, mean=(7.0, 6.5, 6.0), std=(1.0, 0.5, 2.0), log1p=True
)


def markers_config(**settings: Any) -> EncoderConfig:
    return EncoderConfig(**{"model": "mean_marker", "grid": "g", **settings})


class Fixed(MeanMarker):
    """Gives back what it is told for each tile, so that the store can be tried with any numbers."""

    def __init__(self, values: Tensor, blocks: tuple[int, ...] = (1,)) -> None:
        super().__init__(STATISTICS.markers)
        self.values = values
        self.blocks = blocks
        self.batches: list[int] = []

    def preprocess(self, pixels: Tensor, statistics: ChannelStatistics | None) -> Tensor:
        return pixels.to(torch.float32)

    def encode(self, images: Tensor) -> dict[int, Tensor]:
        self.batches.append(len(images))
        return {block: self.values[images[:, 0, 0, 0].long()] * block for block in self.blocks}


@pytest.fixture
def numbered(marker_patches: Callable[..., Any]) -> Callable[..., Any]:
    """Patches whose first pixel is the tile's number."""

    def make(n: int = 7) -> Any:
        patches = marker_patches(n=n)
        patches.data[:, 0, 0, 0] = np.arange(n)
        return patches

    return make


def test_tokens_attributes_and_account(marker_patches: Callable[..., Any], tmp_path: Path) -> None:
    patches = marker_patches()
    config = markers_config()
    encoder = build_encoder(config, patches.channels)
    account = embed_slide(encoder, config, patches, STATISTICS, tmp_path / "e.zarr", batch_size=3)
    store = EmbeddingStore(tmp_path / "e.zarr")
    cells = STATISTICS.apply(patches.data).reshape(7, 3, 3, 8, 3, 8).mean(axis=(3, 5)).transpose(0, 2, 3, 1)
    got = store.tokens(1, slice(None))
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, cells, rtol=1e-3, atol=1e-3)
    assert (store.n, store.width, store.patch_px, store.tile_px) == (7, 3, 8, 24)
    assert (store.blocks, store.markers, store.statistics) == ((1,), STATISTICS.markers, STATISTICS)
    assert (store.slide_id, store.image, store.weights) == ("s1", "sp", "none")
    assert (store.dropped, store.final_norm) == ((), False)
    about = store.attributes
    assert about["channel_indices"] == [0, 1, 2]
    assert about["channel_names"] == ["DNA raw", "CD3 raw", "CD8 raw"]
    assert about["max_abs"]["1"] == pytest.approx(np.abs(cells).max(), rel=1e-4)
    assert about["spec"]["name"] == about["encoder"]["model"] == "mean_marker"
    assert account["n_tiles"] == 7
    assert account["n_padding"] == 2
    parts = sum(account[name] for name in (*PARTS, "idle_s"))
    assert 0 < account["forward_s"] < parts == pytest.approx(account["seconds"])


def test_batches_are_full_and_shards_whole(
    numbered: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """11 tiles in batches of 4, shards of 3: nothing lines up, and everything arrives in order."""
    row = 3 * 3 * 3 * 2
    monkeypatch.setattr(zarrio, "_INNER_BYTES", row)
    monkeypatch.setattr(zarrio, "_SHARD_BYTES", 3 * row)
    patches = numbered(n=11)
    values = torch.arange(11 * 27, dtype=torch.float32).reshape(11, 3, 3, 3)
    encoder = Fixed(values, (1, 2))
    embed_slide(encoder, markers_config(), patches, STATISTICS, tmp_path / "e.zarr", batch_size=4)
    assert encoder.batches == [4, 4, 4], "the last one is filled up: kernels are chosen by shape"
    assert [len(range(*part.indices(11))) for part in patches.reads] == [11], "stored chunks are read once"
    store = EmbeddingStore(tmp_path / "e.zarr")
    for block in (1, 2):
        np.testing.assert_array_equal(store.tokens(block, slice(None)), (values * block).numpy())
        assert len(list((tmp_path / "e.zarr" / f"block_{block}" / "c").iterdir())) == math.ceil(11 / 3)


def test_result_does_not_depend_on_the_batch(marker_patches: Callable[..., Any], tmp_path: Path) -> None:
    found = []
    for size in (1, 5, 64):
        patches = marker_patches()
        encoder = build_encoder(markers_config(), patches.channels)
        embed_slide(encoder, markers_config(), patches, STATISTICS, tmp_path / f"{size}.zarr", batch_size=size)
        found.append(EmbeddingStore(tmp_path / f"{size}.zarr").tokens(1, slice(None)))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_one_encoder_serves_many_slides(marker_patches: Callable[..., Any], tmp_path: Path) -> None:
    """Channels are found by marker, so another order of the same panel gives the same tokens."""
    config = markers_config()
    first = marker_patches()
    encoder = build_encoder(config, first.channels)
    embed_slide(encoder, config, first, STATISTICS, tmp_path / "a.zarr")
    second = marker_patches()
    order = [2, 0, 1]
    second.data, second.channels = second.data[:, order], [second.channels[index] for index in order]
    embed_slide(encoder, config, second, STATISTICS, tmp_path / "b.zarr")
    a, b = (EmbeddingStore(tmp_path / f"{name}.zarr") for name in "ab")
    assert np.array_equal(a.tokens(1, slice(None)), b.tokens(1, slice(None)))
    assert b.attributes["channel_indices"] == [1, 2, 0]


def test_named_markers_choose_channels(marker_patches: Callable[..., Any], tmp_path: Path) -> None:
    config = markers_config(markers=["CD8", "DNA"])
    patches = marker_patches()
    encoder = build_encoder(config, patches.channels)
    two = ChannelStatistics(("CD8", "DNA"), (3000.0, 2000.0), (1.0, 2.0), (3.0, 4.0), False)
    embed_slide(encoder, config, patches, two, tmp_path / "e.zarr")
    store = EmbeddingStore(tmp_path / "e.zarr")
    cells = two.apply(patches.data[:, [2, 0]]).reshape(7, 2, 3, 8, 3, 8).mean(axis=(3, 5)).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(store.tokens(1, slice(None)), cells, rtol=2e-3)
    assert store.attributes["channel_names"] == ["CD8 raw", "DNA raw"]


def test_statistics_of_the_slide_itself(marker_patches: Callable[..., Any], tmp_path: Path) -> None:
    config = markers_config(normalisation=NormalisationConfig(scope="slide"))
    patches = marker_patches()
    encoder = build_encoder(config, patches.channels)
    embed_slide(encoder, config, patches, None, tmp_path / "e.zarr")
    used = EmbeddingStore(tmp_path / "e.zarr").statistics
    assert used == channel_statistics([patches], [], complete(config).normalisation)
    tokens = EmbeddingStore(tmp_path / "e.zarr").tokens(1, slice(None)).astype(np.float64)
    np.testing.assert_allclose(tokens.mean(axis=(0, 1, 2)), 0, atol=1e-3)


def test_rgb_encoder(rgb_patches: Callable[..., Any], tmp_path: Path) -> None:
    patches = rgb_patches()
    config = EncoderConfig(model="timm/test_vit", grid="g", random=1)
    encoder = build_encoder(config, patches.channels)
    embed_slide(encoder, config, patches, None, tmp_path / "e.zarr", batch_size=2)
    store = EmbeddingStore(tmp_path / "e.zarr")
    wanted = encoder.encode(encoder.preprocess(torch.from_numpy(patches.data), None))
    assert store.blocks == (2, 3, 5, 6)
    for block in store.blocks:
        got = store.tokens(block, slice(None))
        assert got.shape == (5, 2, 2, 64)
        np.testing.assert_allclose(got, wanted[block].numpy(), rtol=2e-3, atol=2e-3)
    assert store.statistics is None
    assert store.weights == "random:1"


def test_checkpoint_path_is_not_recorded(rgb_patches: Callable[..., Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    patches = rgb_patches(n=1)
    random: Any = build_encoder(EncoderConfig(model="timm/test_vit", grid="g", random=1), patches.channels)
    save_file(random.module.state_dict(), tmp_path / "w.safetensors")
    config = EncoderConfig(model="timm/test_vit", grid="g", checkpoint=tmp_path / "w.safetensors")
    embed_slide(build_encoder(config, patches.channels), config, patches, None, tmp_path / "e.zarr")
    text = (tmp_path / "e.zarr" / "zarr.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["attributes"]["encoder"]["checkpoint"] == "w.safetensors"
    assert EmbeddingStore(tmp_path / "e.zarr").weights.startswith("sha256:")


def test_bfloat16(rgb_patches: Callable[..., Any], tmp_path: Path) -> None:
    patches = rgb_patches()
    config = EncoderConfig(model="timm/test_vit", grid="g", random=1)
    encoder = build_encoder(config, patches.channels)
    embed_slide(encoder, config, patches, None, tmp_path / "a.zarr")
    embed_slide(encoder, config, patches, None, tmp_path / "b.zarr", precision="bf16")
    a, b = (EmbeddingStore(tmp_path / f"{name}.zarr").tokens(6, slice(None)).astype(float) for name in "ab")
    assert 0 < np.abs(a - b).max() < 0.1 * np.abs(a).max()


def test_slide_without_tiles(marker_patches: Callable[..., Any], tmp_path: Path) -> None:
    patches = marker_patches(n=0)
    config = markers_config()
    account = embed_slide(MeanMarker(STATISTICS.markers), config, patches, STATISTICS, tmp_path / "e.zarr")
    assert account["n_tiles"] == 0
    assert EmbeddingStore(tmp_path / "e.zarr").tokens(1, slice(None)).shape == (0, 3, 3, 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e5])
def test_what_float16_cannot_hold_is_refused(bad: float, numbered: Callable[..., Any], tmp_path: Path) -> None:
    values = torch.zeros(7, 3, 3, 3)
    values[4, 1, 2, 0] = bad
    with pytest.raises(SlideError, match=r"tile 4 \(row 1, column 1\)") as caught:
        embed_slide(Fixed(values), markers_config(), numbered(), STATISTICS, tmp_path / "e.zarr", batch_size=3)
    assert caught.value.code == "non_finite_embedding"
    assert list(tmp_path.iterdir()) == [], "a half-written store was left"


def test_largest_float16_is_kept(numbered: Callable[..., Any], tmp_path: Path) -> None:
    values = torch.full((7, 3, 3, 3), -65504.0)
    embed_slide(Fixed(values), markers_config(), numbered(), STATISTICS, tmp_path / "e.zarr")
    store = EmbeddingStore(tmp_path / "e.zarr")
    assert np.array_equal(store.tokens(1, slice(None)), values.numpy())
    assert store.attributes["max_abs"] == {"1": 65504.0}


def test_panels_that_do_not_fit(marker_patches: Callable[..., Any], tmp_path: Path) -> None:
    encoder = MeanMarker(STATISTICS.markers)
    more = marker_patches(("DNA", "CD3", "CD8", "CD20"))
    with pytest.raises(SlideError, match="does not read CD20") as caught:
        embed_slide(encoder, markers_config(), more, STATISTICS, tmp_path / "e.zarr")
    assert caught.value.code == "panel_mismatch"
    assert caught.value.where == "s1"
    fewer = marker_patches(("DNA", "CD3"))
    with pytest.raises(SlideError, match="CD8") as caught:
        embed_slide(encoder, markers_config(), fewer, STATISTICS, tmp_path / "e.zarr")
    assert caught.value.code == "missing_marker"
    named = markers_config(markers=list(STATISTICS.markers))
    embed_slide(encoder, named, more, STATISTICS, tmp_path / "e.zarr")
    assert EmbeddingStore(tmp_path / "e.zarr").attributes["channel_indices"] == [0, 1, 2]


def test_tiles_statistics_and_resolution_that_do_not_fit(marker_patches: Callable[..., Any], tmp_path: Path) -> None:
    encoder: Encoder = MeanMarker(STATISTICS.markers)
    with pytest.raises(SlideloomError, match="tiles of 20 px") as caught:
        embed_slide(encoder, markers_config(), marker_patches(tile_px=20), STATISTICS, tmp_path / "e.zarr")
    assert caught.value.code == "encoder_tile_px"
    with pytest.raises(SlideloomError, match="no channel statistics") as caught:
        embed_slide(encoder, markers_config(), marker_patches(), None, tmp_path / "e.zarr")
    assert caught.value.code == "encoder_statistics"
    spec: EncoderSpec = encoder.spec
    encoder.spec = replace(spec, mpp_um=(0.2, 0.3))
    with pytest.raises(SlideError, match=r"0\.5 um/px") as caught:
        embed_slide(encoder, markers_config(), marker_patches(), STATISTICS, tmp_path / "e.zarr")
    assert caught.value.code == "encoder_resolution"
    encoder.spec = replace(spec, mpp_um=(0.25, 0.5))
    embed_slide(encoder, markers_config(), marker_patches(), STATISTICS, tmp_path / "e.zarr")


def test_error_while_reading_reaches_the_caller(
    marker_patches: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_BLOCK_BYTES", 1)
    patches = marker_patches()
    whole = patches.pixels

    def pixels(indices: slice) -> Any:
        if indices.start >= 2:
            raise OSError("disk gone")
        return whole(indices)

    patches.pixels = pixels
    with pytest.raises(OSError, match="disk gone"):
        embed_slide(
            MeanMarker(STATISTICS.markers), markers_config(), patches, STATISTICS, tmp_path / "e.zarr", batch_size=2
        )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def filled(numbered: Callable[..., Any], tmp_path: Path) -> tuple[EmbeddingStore, np.ndarray]:
    values = torch.arange(7 * 27, dtype=torch.float32).reshape(7, 3, 3, 3)
    embed_slide(Fixed(values), markers_config(), numbered(), STATISTICS, tmp_path / "e.zarr")
    return EmbeddingStore(tmp_path / "e.zarr"), values.numpy()


@pytest.mark.parametrize(
    "indices",
    [
        slice(2, 5),
        slice(None),
        slice(5, 99),
        slice(-2, None),
        slice(6, 2),
        slice(0, 7, 3),
        slice(None, None, -1),
        [3],
        [6, 0, 0, 2],
        [-1, 1],
        [],
        np.array([4, 1]),
    ],
    ids=str,
)
def test_tokens_index_as_numpy_does(filled: tuple[EmbeddingStore, np.ndarray], indices: Any) -> None:
    store, values = filled
    wanted = values[indices] if isinstance(indices, slice) else values[np.asarray(indices, dtype=int)]
    np.testing.assert_array_equal(store.tokens(1, indices), wanted)


def test_refused_stores(filled: tuple[EmbeddingStore, np.ndarray], tmp_path: Path) -> None:
    store, _ = filled
    with pytest.raises(SlideloomError, match=r"block 2 \(expected one of \[1\]\)"):
        store.tokens(2, [0])
    with pytest.raises(SlideloomError, match="no embeddings at") as caught:
        EmbeddingStore(tmp_path / "absent.zarr")
    assert caught.value.code == "missing_artefact"
    zarrio.create_group(tmp_path / "other.zarr", {"kind": "patches"})
    with pytest.raises(SlideloomError, match="'patches'") as caught:
        EmbeddingStore(tmp_path / "other.zarr")
    assert caught.value.code == "artefact_schema"
