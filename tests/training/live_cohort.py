"""Slides and encoders of live trainings: markers and RGB, with and without stored tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slideloom.config.model import (
    AugmentationConfig,
    DecoderConfig,
    EncoderConfig,
    GridConfig,
    LossConfig,
    NormalisationConfig,
    TissueConfig,
    TrainingConfig,
)
from slideloom.encoders.base import Encoder, EncoderSpec
from slideloom.encoders.cellvit.encoder import CellViTEncoder, encoder_module
from slideloom.encoders.embedding.embed import embed_slide
from slideloom.encoders.registry import build_encoder
from slideloom.patches.cut import cut_patches
from slideloom.patches.store import PatchStore
from slideloom.patches.targets import cut_targets
from slideloom.slides.headers import write_facts
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import Channel
from slideloom.slides.tissue import write_tissue
from slideloom.training.data import PatchData
from slideloom.training.feed import Feed
from slideloom.training.job import LiveEncoder, TrainJob
from slideloom.training.live import Front, make_front
from slideloom.training.stored import Needs, SlideData, open_slides

from .conftest import CLASSES, GRID, MARKERS, draw_slide

CPU = torch.device("cpu")
NEEDS = Needs(("nucleus", "hv", "classes"), skips=True, image=True, n_classes=3)
OWN = NormalisationConfig(scope="slide")
UNIPROT = {"DNA": "P68431", "CD3": "P07766", "CD20": "P11836"}
VIRTUES = EncoderConfig(model="virtues/tiny", grid="g", random=0, off_resolution=True, normalisation=OWN)
TIMM = EncoderConfig(model="timm/vit_tiny_patch16_224", grid="he", random=0, blocks=[2, 4])
VIT = EncoderConfig(model="cellvit/vit256", grid="he", random=0)
SAM = EncoderConfig(model="cellvit/sam_b", grid="he", random=0)
HE_GRID = GridConfig(image="he", tile_px=32)


def build(config: EncoderConfig, channels: Sequence[Channel]) -> Encoder:
    """As the registry does, but the encoders of CellViT are tiny."""
    if not config.model.startswith("cellvit/"):
        return build_encoder(config, channels)
    sizes: dict[str, Any] = {"embed_dim": 24, "depth": 4, "heads": 3}
    if config.model.endswith("sam_b"):
        module: Any = encoder_module("sam_b", img_size=64, global_blocks=(2, 4), window=3, **sizes)
    else:
        module = encoder_module("vit256", img_size=48, **sizes)
    drawn = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for values in module.parameters():
            values.normal_(0, 0.2, generator=drawn)
    spec = EncoderSpec(config.model, "rgb", 16, 24, 4, (1, 2, 3, 4), 16, None, (0.5,) * 3, (0.5,) * 3)
    return CellViTEncoder(module, spec, (1, 2, 3, 4), "random:5")


def rgb_slide(folder: Path, slide_id: str, seed: int, size: tuple[int, int] = (64, 80)) -> SlideData:
    """A slide in red, green and blue with all that a live training reads of it; 6 patches, two with padding."""
    markers, ids, kinds = draw_slide(seed, *size)
    shown = np.clip(240 - markers.astype(np.int64) // 8 + np.arange(3)[:, None, None] * 3, 0, 255)
    np.savez(folder / f"{slide_id}.npz", image=shown.astype(np.uint8).transpose(1, 2, 0), ids=ids)
    lines = ["label,class", *(f"{n},{CLASSES.names[k - 1]}" for n, k in kinds.items())]
    (folder / f"{slide_id}.csv").write_text("\n".join(lines) + "\n")
    row = SlideRow(
        slide_id,
        he=f"{slide_id}.npz::image",
        instances=f"{slide_id}.npz::ids",
        classes=f"{slide_id}.csv",
        he_mpp_um=0.5,
    )
    home = folder / slide_id
    data = SlideData(slide_id, home / "patches.zarr", home / "targets.zarr")
    facts = write_facts(row, folder, MARKERS, home / "slide.json")
    write_tissue(facts, row, folder, TissueConfig(method="all"), home / "tissue.geojson", home / "thumbnail.png")
    cut_patches(row, folder, facts, home / "tissue.geojson", HE_GRID, data.patches)
    assert cut_targets(row, folder, facts, PatchStore(data.patches), CLASSES, data.targets)
    return data


def raw(data: SlideData) -> SlideData:
    """The slide without its tokens."""
    return dataclasses.replace(data, embeddings=None)


def embedded(data: SlideData, config: EncoderConfig, place: Path) -> SlideData:
    """The slide with the tokens of an encoder of :func:`build`."""
    patches = PatchStore(data.patches)
    channels = [dataclasses.replace(one, uniprot=UNIPROT.get(one.marker, "")) for one in patches.channels]
    embeddings = place / f"{data.slide_id}_{config.model.replace('/', '_')}.zarr"
    embed_slide(build(config, channels), config, patches, None, embeddings)
    return dataclasses.replace(data, embeddings=embeddings)


def live_job(slides: Sequence[SlideData], config: EncoderConfig, place: Path, **changes: Any) -> TrainJob:
    """A job that encodes as it goes; ``training=`` and ``augmentation=`` take dicts."""
    live = LiveEncoder(config, UNIPROT, changes.pop("statistics", None), build=changes.pop("build", build))
    training = {"epochs": 2, "batch_size": 4, "lr": 3e-3, "input": "live"} | changes.pop("training", {})
    values: dict[str, Any] = {
        "study": "demo",
        "experiment": "live",
        "fold": "0",
        "grid": GRID,
        "classes": CLASSES,
        "decoder": DecoderConfig(width=0.1, branches="shared"),
        "heads": NEEDS.heads,
        "loss": LossConfig(),
        "training": TrainingConfig(**training),
        "augmentation": AugmentationConfig(**changes.pop("augmentation", {})),
        "train": tuple(slides),
        "val": (),
        "place": place,
        "threads": 1,
        "live": live,
    }
    return TrainJob(**values | changes)


@dataclasses.dataclass
class Live:
    """An opened live training."""

    job: TrainJob
    data: PatchData
    front: Front
    feed: Feed

    @classmethod
    def open(cls, slides: Sequence[SlideData], config: EncoderConfig, place: Path, **changes: Any) -> Live:
        needs = changes.pop("needs", NEEDS)
        job = live_job([raw(slide) for slide in slides], config, place, **changes)
        shuffle = job.training.seed if job.training.shuffle_targets else None
        data = PatchData(open_slides(job.train, needs, "training"), shuffle)
        front = make_front(job, data.slides, CPU)
        assert front is not None
        return cls(job, data, front, Feed(data, job, CPU, front))
