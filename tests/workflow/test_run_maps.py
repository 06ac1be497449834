"""The maps job: stored and live tiles, bands of rows, slides that are left out or fail."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from slideloom.artefacts.files import read_json, write_json
from slideloom.artefacts.keys import digest_tree
from slideloom.artefacts.paths import Paths
from slideloom.artefacts.stage import ItemState
from slideloom.artefacts.tables import write_table
from slideloom.artefacts.zarrio import read_array, read_attributes
from slideloom.config.model import (
    DecoderConfig,
    EncoderConfig,
    GridConfig,
    InferenceConfig,
    NormalisationConfig,
    TissueConfig,
)
from slideloom.decoders.build import build_decoder
from slideloom.encoders.base import encoder_record
from slideloom.encoders.embedding.embed import embed_slide
from slideloom.encoders.registry import build_encoder
from slideloom.patches.cut import cut_patches
from slideloom.patches.store import PatchStore
from slideloom.slides.headers import write_facts
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import Channel, ClassTable, MarkerTable
from slideloom.slides.tissue import write_tissue
from slideloom.training.checkpoint import DecoderMeta, save_decoder
from slideloom.training.splits import SPLIT
from slideloom.workflow.job import Job
from slideloom.workflow.run_join import run_join
from slideloom.workflow.run_maps import run_maps

PANEL = ("DNA", "CD3")
GRID = GridConfig(image="sp", tile_px=32)
ENCODER = EncoderConfig(model="mean_marker", grid="g", normalisation=NormalisationConfig(scope="slide"))
SHAPES = {"a": (90, 150), "b": (60, 60), "tall": (1100, 40)}
ROLES = {"a": "test", "b": "train", "tall": "infer"}


class Study:
    """Three slides with their stores, a trained decoder, and the maps jobs on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.paths = folder, Paths(folder / "results")
        rng = np.random.default_rng(0)
        self.rows = {}
        markers = MarkerTable(tuple(Channel(one, one, nuclear=one == "DNA") for one in PANEL))
        for slide, shape in SHAPES.items():
            np.save(folder / f"{slide}.npy", rng.poisson(200, (2, *shape)).astype(np.uint16))
            row = SlideRow(slide, sp=f"{slide}.npy", sp_mpp_um=0.5, sp_channels=PANEL)
            self.rows[slide] = row
            for place in (self.paths.slide_facts(slide), self.paths.patches("g", slide)):
                place.parent.mkdir(parents=True, exist_ok=True)
            facts = write_facts(row, folder, markers, self.paths.slide_facts(slide))
            tissue = self.paths.tissue(slide)
            write_tissue(facts, row, folder, TissueConfig(method="all"), tissue, self.paths.thumbnail(slide))
            cut_patches(row, folder, facts, tissue, GRID, self.paths.patches("g", slide))
            patches = PatchStore(self.paths.patches("g", slide))
            encoder = build_encoder(ENCODER, patches.channels)
            embed_slide(encoder, ENCODER, patches, None, self.paths.embeddings("e", slide))
        self.save_decoder(encoder)
        columns = zip(*((slide, "0", role) for slide, role in ROLES.items()), strict=True)
        arrays = [pa.array(column, pa.string()) for column in columns]
        write_table(SPLIT, pa.table(dict(zip(SPLIT.names, arrays, strict=True))), self.paths.split("s"), made_from={})
        for stage in ("facts", "patches", "embeddings"):
            self.write_record(stage, "", list(SHAPES))
        self.write_record("train", "", ["0"])

    def save_decoder(self, encoder: Any) -> None:
        config = DecoderConfig(width=0.1, branches="shared")
        decoder = build_decoder(config, ["nucleus", "hv"], 1, encoder.width, encoder.patch_px, len(PANEL), seed=1)
        meta = DecoderMeta(
            recipe=decoder.recipe(),
            classes=ClassTable(),
            blocks=encoder.blocks,
            encoder=encoder_record(encoder, ENCODER),
            statistics=None,
            grid=GRID.model_dump(mode="json"),
        )
        save_decoder(decoder.state_dict(), meta, self.paths.model("x", "0") / "decoder.safetensors")

    def write_record(self, stage: str, context: str, items: list[str]) -> None:
        states = {item: ItemState("ok", item).as_dict() for item in items}
        write_json(self.record(stage), {"stage": stage, "context": context, "items": states})

    def record(self, stage: str) -> Path:
        return self.paths.job_record(stage, "", "1-0")

    def run(self, work: Any = run_maps, band: int | None = None, bands: int = 1, **inference: Any) -> dict[str, Any]:
        """Run a job; the states of its slides."""
        stage = "maps" if band is None else "bands"
        run = ("x", "0") if band is None else ("x", "0", str(band))
        encoder = ENCODER.model_dump(mode="json", exclude={"checkpoint", "marker_embeddings"})
        config: dict[str, Any] = {"encoders": [{"name": "e", "encoder": encoder}], "split": "s"}
        config |= {"inference": InferenceConfig(**inference).model_dump(mode="json")}
        config |= {"grid": GRID.model_dump(mode="json")} if inference.get("source") == "live" else {}
        config |= {} if band is None else {"bands": bands}
        rows = {slide: {"sp": row.sp, "he": None} for slide, row in self.rows.items()}
        spec = {"stage": stage, "context": "/".join(run), "code": "c", "config": config, "items": rows}
        inputs = {name: [str(self.record(name))] for name in ("facts", "patches", "embeddings")}
        inputs |= {"model": [str(self.record("train"))]}
        if work is run_join:
            places = [self.paths.job_record("bands", f"x/0/{one}", "1-0") for one in range(bands)]
            inputs |= {"bands": [str(place) for place in places]}
        output = self.paths.job_record(stage, "/".join(run), "1-0")
        job = Job.start(
            SimpleNamespace(
                threads=1,
                log=[str(self.folder / "job.log")],
                params=SimpleNamespace(spec=json.dumps(spec)),
                config={"results": str(self.paths.root), "data_root": str(self.folder)},
                wildcards={"experiment": "x", "fold": "0"} | ({} if band is None else {"band": str(band)}),
                input=inputs,
                output=[str(output)],
            )
        )
        work(job)
        found: dict[str, Any] = read_json(output)["items"]
        return found


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield Study(tmp_path)
    root.handlers, root.level = before
    logging.captureWarnings(False)


def test_slides_of_the_wanted_roles_are_predicted_once(study: Study) -> None:
    states = study.run()
    assert {slide: state["status"] for slide, state in states.items()} == {"a": "ok", "b": "absent", "tall": "ok"}
    assert states["b"]["message"] == "the role train is not predicted"
    maps = study.paths.maps("x", "0", "a")
    assert read_array(maps / "nucleus").shape == (90, 150)
    about = read_attributes(maps)
    assert (about["slide_id"], about["experiment"], about["symmetries"]) == ("a", "x", "none")
    spent = read_json(study.paths.account("maps", "x/0", "1-0"))
    assert spent["n_tiles"] == 15 + 35 * 2
    assert spent["forward_s"] > 0
    assert "all slides: 85 tiles" in (study.folder / "job.log").read_text()
    before = digest_tree(maps)
    assert study.run() == states
    assert set(read_json(study.paths.account("maps", "x/0", "1-0"))) == {"made"}
    assert digest_tree(maps) == before


def test_bands_make_the_same_maps(study: Study) -> None:
    whole = study.run()
    digest = digest_tree(study.paths.maps("x", "0", "tall"))
    for band in range(3):
        states = study.run(band=band, bands=3)
        assert states["tall"]["status"] == "ok"
        assert study.paths.maps_band("x", "0", "tall", str(band)).exists() == (band < 2)
    study.run(run_join, bands=3)
    assert digest_tree(study.paths.maps("x", "0", "tall")) == digest
    assert whole["tall"]["status"] == "ok"


def test_live_tiles_with_a_seam_check(study: Study) -> None:
    states = study.run(source="live", overlap_px=8, seam_check=True, symmetries="flips")
    assert states["a"]["status"] == "ok"
    maps = study.paths.maps("x", "0", "a")
    assert read_attributes(maps)["symmetries"] == "flips"
    assert read_array(maps / "covered").all()
    assert read_array(maps / "shifted" / "covered").all()
    assert (read_array(maps / "hv") != read_array(maps / "shifted" / "hv")).any()


def test_a_slide_that_cannot_be_read_fails_alone(study: Study) -> None:
    (study.folder / "a.npy").write_bytes(b"no picture")
    states = study.run(source="live")
    assert {slide: state["status"] for slide, state in states.items()} == {"a": "failed", "b": "absent", "tall": "ok"}
    assert states["a"]["stage"] == "maps"
    assert not study.paths.maps("x", "0", "a").exists()
