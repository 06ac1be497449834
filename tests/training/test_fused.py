"""Training on the tokens of several encoders at once."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slideloom.config.model import DecoderConfig, EncoderConfig, GridConfig, NormalisationConfig
from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.encoders.fused import FusedEmbeddings, open_tokens
from slideloom.encoders.lattice import TokenFrame, TokenLattice
from slideloom.errors import SlideloomError
from slideloom.patches.store import PatchStore
from slideloom.training.checkpoint import load_decoder
from slideloom.training.data import PatchData, batches_in_order
from slideloom.training.loop import train
from slideloom.training.stored import Needs, SlideData, StoredSlide, open_slides

from .conftest import add_encoder

NEEDS = Needs(("nucleus", "hv", "classes", "boundary"), skips=True, image=True, n_classes=3)
#: Other tile side, overlapping, at another resolution, with other tokens.
OTHER_GRID = GridConfig(image="sp", tile_px=32, stride_px=24, mpp_um=0.8)
OTHER = EncoderConfig(
    model="mean_marker", grid="other", patch_px=16, markers=["CD20", "CD3"],
    normalisation=NormalisationConfig(scope="slide"),
)  # fmt: skip


@pytest.fixture(scope="module")
def fused(cohort: dict[str, SlideData], tmp_path_factory: pytest.TempPathFactory) -> dict[str, SlideData]:
    folder = tmp_path_factory.mktemp("further")
    return {name: add_encoder(data, OTHER_GRID, OTHER, folder) for name, data in cohort.items()}


def itself(data: SlideData) -> SlideData:
    return dataclasses.replace(data, fused=((data.patches, data.embeddings),))


def with_blocks(store: Path, place: Path, blocks: int) -> Path:
    """A copy of a store of one block that holds several, each a multiple of it."""
    shutil.copytree(store, place)
    about = json.loads((place / "zarr.json").read_text())
    about["attributes"]["blocks"] = list(range(1, blocks + 1))
    (place / "zarr.json").write_text(json.dumps(about))
    for block in range(2, blocks + 1):
        shutil.copytree(place / "block_1", place / f"block_{block}")
    return place


def test_an_encoder_with_itself_gives_its_tokens_twice(cohort: dict[str, SlideData]) -> None:
    for name, data in cohort.items():
        alone = EmbeddingStore(data.embeddings)
        twice = open_tokens(data.embeddings, PatchStore(data.patches), itself(data).fused)
        assert isinstance(twice, FusedEmbeddings)
        assert (twice.n, twice.width, twice.blocks) == (alone.n, 2 * alone.width, (1,)), name
        for indices in (slice(None), slice(2, 5), [7, 0, 3], np.array([1])):
            tokens = alone.tokens(1, indices)
            np.testing.assert_array_equal(twice.tokens(1, indices), np.concatenate([tokens, tokens], -1))


def test_tokens_of_another_grid_lie_beneath_the_first_ones(fused: dict[str, SlideData]) -> None:
    data = fused["a"]
    patches = PatchStore(data.patches)
    both = open_tokens(data.embeddings, patches, data.fused)
    assert both.width == 3 + 2
    tokens = both.tokens(1, [11, 0])
    np.testing.assert_array_equal(tokens[..., :3], EmbeddingStore(data.embeddings).tokens(1, [11, 0]))
    other_patches, other = (
        kind(place) for kind, place in zip((PatchStore, EmbeddingStore), data.fused[0], strict=True)
    )
    lattice = TokenLattice(other, other_patches)
    frame = TokenFrame(0.5, 32, 8)
    sampled = lattice.sample(1, patches.y_px[[11, 0]], patches.x_px[[11, 0]], frame)
    np.testing.assert_array_equal(tokens[..., 3:], sampled)


def test_provenance_tells_of_every_encoder(fused: dict[str, SlideData], tmp_path: Path) -> None:
    data = fused["a"]
    record = StoredSlide(data, NEEDS).geometry.encoder_record
    alone = StoredSlide(dataclasses.replace(data, fused=()), NEEDS).geometry.encoder_record
    assert "fused" not in alone
    assert {name: record[name] for name in alone if name != "weights"} == {
        name: value for name, value in alone.items() if name != "weights"
    }
    assert record["weights"] == "none + none"
    assert [one["markers"] for one in record["fused"]] == [["DNA", "CD3", "CD20"], ["CD20", "CD3"]]
    assert [(one["width"], one["patch_px"], one["blocks"]) for one in record["fused"]] == [(3, 8, [1]), (2, 16, [1])]
    assert all("dropped" in one for one in record["fused"])


def test_blocks_are_spread_as_for_one_encoder(cohort: dict[str, SlideData], tmp_path: Path) -> None:
    data = cohort["a"]
    four = with_blocks(data.embeddings, tmp_path / "four.zarr", 4)
    two = with_blocks(data.embeddings, tmp_path / "two.zarr", 2)
    mixed = dataclasses.replace(data, embeddings=four, fused=((data.patches, two),))
    slide = StoredSlide(mixed, NEEDS)
    assert slide.blocks == (1, 2, 3, 4)
    levels = slide.embeddings.levels  # type: ignore[union-attr]
    assert levels == {1: (1, 1), 2: (2, 1), 3: (3, 2), 4: (4, 2)}
    deepest = StoredSlide(mixed, dataclasses.replace(NEEDS, skips=False))
    assert deepest.blocks == (4,)
    assert [name for name in deepest.inputs(np.arange(2)) if name.startswith("tokens")] == ["tokens_4"]


def test_memory_holds_what_the_disk_gives_and_takes_what_was_foretold(fused: dict[str, SlideData]) -> None:
    disk, memory = (PatchData(open_slides(list(fused.values()), NEEDS, "training")) for _ in range(2))
    slide = memory.slides[0]
    alone = StoredSlide(dataclasses.replace(fused["a"], fused=()), NEEDS)
    assert slide.bytes_each() - alone.bytes_each() == 4 * 4 * 2 * 2
    assert memory.hold(1 << 30) == sum(one.n * one.bytes_each() for one in memory.slides)
    for indices in [*batches_in_order(disk.n, 7), np.array([14, 0, 32, 11])]:
        one, two = disk.batch(indices), memory.batch(indices)
        assert all(torch.equal(a, b) for a, b in zip(one.tokens, two.tokens, strict=True))
        assert one.tokens[0].shape[1] == 5


def test_a_decoder_learns_from_both(
    fused: dict[str, SlideData], make_job: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    decoder = DecoderConfig(width=0.1, branches="shared")
    job = make_job(train=(fused["a"], fused["b"]), val=(fused["c"],), decoder=decoder)
    model, meta = load_decoder(train(job))
    assert meta.token_width == model.token_width == 5
    assert (meta.blocks, meta.upsampling, meta.image_channels) == ((1,), 8, 3)
    assert meta.encoder["weights"] == "none + none"
    assert len(meta.encoder["fused"]) == 2
    again, _ = load_decoder(train(make_job("again", train=(fused["a"], fused["b"]), val=(fused["c"],), memory_bytes=0)))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_slide_without_a_further_encoders_stores_is_left_out(
    fused: dict[str, SlideData], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lacking = dataclasses.replace(fused["b"], fused=((fused["b"].fused[0][0], tmp_path / "none.zarr"),))
    with caplog.at_level(logging.WARNING):
        opened = open_slides([fused["a"], lacking], NEEDS, "training")
    assert [slide.slide_id for slide in opened] == ["a"]
    assert "b (no embeddings of a further encoder)" in caplog.text


def test_stores_of_two_slides_are_refused(fused: dict[str, SlideData]) -> None:
    for places in (fused["c"].fused, ((fused["a"].fused[0][0], fused["c"].fused[0][1]),)):
        with pytest.raises(SlideloomError) as caught:
            StoredSlide(dataclasses.replace(fused["a"], fused=places), NEEDS)
        assert caught.value.code == "store_mismatch"


def test_slides_of_other_further_encoders_are_refused(fused: dict[str, SlideData]) -> None:
    slides = open_slides([fused["a"], itself(fused["c"])], NEEDS, "training")
    with pytest.raises(SlideloomError, match="CD20") as caught:
        PatchData(slides)
    assert caught.value.code == "mixed_slides"


def test_notes_of_one_slide_do_not_part_it_from_the_others(
    fused: dict[str, SlideData], tmp_path: Path, make_job: Callable[..., Any]
) -> None:
    noted = tmp_path / "noted.zarr"
    shutil.copytree(fused["b"].fused[0][1], noted)
    about = json.loads((noted / "zarr.json").read_text())
    about["attributes"]["notes"] = ["off resolution"]
    (noted / "zarr.json").write_text(json.dumps(about))
    slide = dataclasses.replace(fused["b"], fused=((fused["b"].fused[0][0], noted),))
    _, meta = load_decoder(train(make_job(train=(fused["a"], slide), val=(), training={"epochs": 1})))
    assert meta.encoder["notes"] == ["off resolution"]


def test_the_first_encoders_grid_is_the_experiments(fused: dict[str, SlideData]) -> None:
    """Swapped: the coarse encoder first, the fine one beneath it; targets are cut on its grid, so only tokens here."""
    data = fused["a"]
    patches = PatchStore(data.fused[0][0])
    swapped = open_tokens(data.fused[0][1], patches, ((data.patches, data.embeddings),))
    assert (swapped.patch_px, swapped.tile_px, swapped.n, swapped.width) == (16, 32, patches.n, 5)
    assert swapped.markers == ("CD20", "CD3")
    tokens = swapped.tokens(1, slice(None))
    assert tokens.shape == (patches.n, 2, 2, 5)
    assert np.isfinite(tokens).all()
