"""A small cohort, put on disk by the very stages that a study runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from slideloom.config.model import (
    DecoderConfig,
    EncoderConfig,
    GridConfig,
    LossConfig,
    NormalisationConfig,
    TissueConfig,
    TrainingConfig,
)
from slideloom.encoders.embedding.embed import embed_slide
from slideloom.encoders.registry import build_encoder
from slideloom.patches.cut import cut_patches
from slideloom.patches.statistics import ChannelStatistics
from slideloom.patches.store import PatchStore
from slideloom.patches.targets import cut_targets
from slideloom.slides.facts import load_facts
from slideloom.slides.headers import write_facts
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import Channel, ClassTable, MarkerTable
from slideloom.slides.tissue import write_tissue
from slideloom.training.job import TrainJob
from slideloom.training.stored import SlideData

PANEL = ("DNA", "CD3", "CD20")
MARKERS = MarkerTable(tuple(Channel(name, name, nuclear=name == "DNA") for name in PANEL))
CLASSES = ClassTable((1, 2), ("T", "B"), ((255, 0, 0), (0, 0, 255)), ((), ()))
GRID = GridConfig(image="sp", tile_px=32)
ENCODER = EncoderConfig(model="mean_marker", grid="g", normalisation=NormalisationConfig(scope="slide"))


def draw_slide(
    seed: int, height: int, width: int, among: Sequence[int] = (1, 2)
) -> tuple[NDArray[np.uint16], NDArray[np.int32], dict[int, int]]:
    """Round nuclei of some classes on a jittered lattice: intensities (3, h, w), ids (h, w), class by id."""
    drawn = np.random.default_rng(seed)
    ids = np.zeros((height, width), np.int32)
    kinds: dict[int, int] = {}
    pixels = drawn.poisson(60, (3, height, width)).astype(np.float64)
    y, x = np.mgrid[:height, :width]
    for row in range(8, height, 16):
        for column in range(8, width if among else 0, 16):
            centre_y, centre_x = row + drawn.uniform(-2, 2), column + drawn.uniform(-2, 2)
            disc = (y - centre_y) ** 2 + (x - centre_x) ** 2 < drawn.uniform(4, 6.5) ** 2
            number = len(kinds) + 1
            ids[disc] = number
            kinds[number] = among[int(drawn.integers(len(among)))]
            pixels[0][disc] += 900
            pixels[kinds[number]][disc] += 600
    return drawn.poisson(pixels).astype(np.uint16), ids, kinds


def slide_row(slide_id: str) -> SlideRow:
    """Its row of a sheet."""
    return SlideRow(
        slide_id,
        sp=f"{slide_id}.npz::image",
        instances=f"{slide_id}.npz::ids",
        classes=f"{slide_id}.csv",
        sp_mpp_um=0.5,
        sp_channels=PANEL,
    )


def make_slide(
    folder: Path,
    slide_id: str,
    seed: int,
    size: tuple[int, int] = (80, 112),
    unknown: Sequence[int] = (),
    statistics: ChannelStatistics | None = None,
    among: Sequence[int] = (1, 2),
) -> SlideData:
    """Write a slide and all that a training reads of it; its nuclei are of some classes, of none there are none."""
    pixels, ids, kinds = draw_slide(seed, *size, among)
    np.savez(folder / f"{slide_id}.npz", image=pixels, ids=ids)
    lines = ["label,class", *(f"{n},{CLASSES.names[k - 1]}" for n, k in kinds.items() if n not in unknown)]
    (folder / f"{slide_id}.csv").write_text("\n".join(lines) + "\n")
    row = slide_row(slide_id)
    home = folder / slide_id
    data = SlideData(slide_id, home / "patches.zarr", home / "targets.zarr", home / "embeddings.zarr")
    facts = write_facts(row, folder, MARKERS, home / "slide.json")
    write_tissue(facts, row, folder, TissueConfig(method="all"), home / "tissue.geojson", home / "thumbnail.png")
    cut_patches(row, folder, facts, home / "tissue.geojson", GRID, data.patches)
    patches = PatchStore(data.patches)
    assert cut_targets(row, folder, facts, patches, CLASSES, data.targets)
    encoder = build_encoder(ENCODER, patches.channels)
    config = ENCODER if statistics is None else ENCODER.model_copy(update={"normalisation": NormalisationConfig()})
    embed_slide(encoder, config, patches, statistics, data.embeddings)
    return data


def add_encoder(data: SlideData, grid: GridConfig, encoder: EncoderConfig, place: Path) -> SlideData:
    """The slide with the tokens of a further encoder, whose stores are put into a folder."""
    row, folder = slide_row(data.slide_id), data.patches.parents[1]
    home = data.patches.parent
    patches, embeddings = place / f"{data.slide_id}_patches.zarr", place / f"{data.slide_id}_embeddings.zarr"
    cut_patches(row, folder, load_facts(home / "slide.json"), home / "tissue.geojson", grid, patches)
    store = PatchStore(patches)
    embed_slide(build_encoder(encoder, store.channels), encoder, store, None, embeddings)
    return replace(data, fused=(*data.fused, (patches, embeddings)))


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SlideData]:
    """Slides a (12 patches, some with padding), b (9), c (12)."""
    folder = tmp_path_factory.mktemp("cohort")
    return {
        "a": make_slide(folder, "a", 1),
        "b": make_slide(folder, "b", 2, size=(96, 96), unknown=(3, 4)),
        "c": make_slide(folder, "c", 3),
    }


@pytest.fixture(scope="session")
def oddities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SlideData]:
    """Slides ``single`` (one patch), ``bare`` (4 without a nucleus), ``t_only`` (4 with one of the two classes)."""
    folder = tmp_path_factory.mktemp("oddities")
    return {
        "single": make_slide(folder, "single", 4, size=(32, 32)),
        "bare": make_slide(folder, "bare", 5, size=(64, 64), among=()),
        "t_only": make_slide(folder, "t_only", 6, size=(64, 64), among=(1,)),
    }


@pytest.fixture
def make_job(cohort: dict[str, SlideData], tmp_path: Path) -> Callable[..., TrainJob]:
    """A small training job; keywords go to the job, and ``training=`` and ``loss=`` take dicts."""

    def make(place: str = "model", **changes: Any) -> TrainJob:
        training = {"epochs": 2, "batch_size": 4, "lr": 3e-3} | changes.pop("training", {})
        values: dict[str, Any] = {
            "study": "demo",
            "experiment": "tiny",
            "fold": "0",
            "grid": GRID,
            "classes": CLASSES,
            "decoder": DecoderConfig(width=0.1, branches="shared"),
            "heads": ("nucleus", "hv", "classes", "boundary"),
            "loss": LossConfig(**changes.pop("loss", {})),
            "training": TrainingConfig(**training),
            "train": (cohort["a"],),
            "val": (cohort["c"],),
            "place": tmp_path / place,
            "threads": 1,
            "save_every_s": 1e9,
        }
        return TrainJob(**values | changes)

    return make
