"""A small slide on disk, made by the stages that a study runs, and a decoder with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slideloom.config.model import DecoderConfig, EncoderConfig, GridConfig, NormalisationConfig, TissueConfig
from slideloom.decoders.build import build_decoder
from slideloom.decoders.cellvit import CellViTDecoder
from slideloom.encoders.base import Encoder
from slideloom.encoders.embedding.embed import embed_slide
from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.encoders.registry import build_encoder
from slideloom.inference.live import LiveTiles
from slideloom.inference.tiles import StoredTiles
from slideloom.patches.cut import cut_patches
from slideloom.patches.store import PatchStore
from slideloom.slides.facts import SlideFacts
from slideloom.slides.headers import write_facts
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import Channel, MarkerTable
from slideloom.slides.tissue import write_tissue

PANEL = ("DNA", "CD3", "CD20")
TILE_PX, N_CLASSES = 32, 4
ENCODER = EncoderConfig(model="mean_marker", grid="g", normalisation=NormalisationConfig(scope="slide"))


@dataclass(frozen=True)
class Slide:
    """Everything that inference reads."""

    row: SlideRow
    root: Path
    facts: SlideFacts
    tissue: Path
    patches: PatchStore
    embeddings: EmbeddingStore
    encoder: Encoder
    grid: GridConfig

    def stored(self, **options: Any) -> StoredTiles:
        return StoredTiles(self.patches, self.embeddings, self.embeddings.blocks, True, **options)

    def live(self, overlap_px: int, **options: Any) -> LiveTiles:
        return LiveTiles(
            self.row,
            self.root,
            self.facts,
            self.tissue,
            self.grid,
            overlap_px,
            options.pop("encoder", self.encoder),
            ENCODER,
            self.patches,
            None,
            **options,
        )


def cut_slide(folder: Path, stride_px: int) -> Slide:
    """A slide of 90 × 150 px, its border tiles padded."""
    rng = np.random.default_rng(0)
    np.save(
        folder / "a.npy", rng.poisson(rng.uniform(20, 900, (3, 9, 15))).repeat(10, 1).repeat(10, 2).astype(np.uint16)
    )
    row = SlideRow("a", sp="a.npy", sp_mpp_um=0.5, sp_channels=PANEL)
    markers = MarkerTable(tuple(Channel(name, name, nuclear=name == "DNA") for name in PANEL))
    facts = write_facts(row, folder, markers, folder / "slide.json")
    tissue = folder / "tissue.geojson"
    write_tissue(facts, row, folder, TissueConfig(method="all"), tissue, folder / "thumbnail.png")
    grid = GridConfig(image="sp", tile_px=TILE_PX, stride_px=stride_px)
    cut_patches(row, folder, facts, tissue, grid, folder / "patches.zarr")
    patches = PatchStore(folder / "patches.zarr")
    encoder = build_encoder(ENCODER, patches.channels)
    embed_slide(encoder, ENCODER, patches, None, folder / "embeddings.zarr")
    return Slide(row, folder, facts, tissue, patches, EmbeddingStore(folder / "embeddings.zarr"), encoder, grid)


@pytest.fixture(scope="session")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Slide]:
    """The slide, cut with a stride; made once for each."""
    made: dict[int, Slide] = {}

    def make(stride_px: int = TILE_PX) -> Slide:
        if stride_px not in made:
            made[stride_px] = cut_slide(tmp_path_factory.mktemp("slide"), stride_px)
        return made[stride_px]

    return make


@pytest.fixture(scope="session")
def decoder() -> CellViTDecoder:
    """All heads; its outputs vary over a tile."""
    config = DecoderConfig(width=0.1, branches="shared")
    made = build_decoder(config, ["nucleus", "hv", "classes", "boundary"], N_CLASSES, 3, 8, 3, seed=1).eval()
    for name, value in made.named_parameters():
        # Without training, normalisation leaves next to nothing of the input in the heads.
        if name.endswith("map_decoder.weight") or name.endswith("maps_decoder.weight"):
            value.data *= 40
    return made
