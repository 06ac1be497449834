"""The embeddings job: what its keys hold, what it takes over, what it tells."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from slideloom.artefacts.files import read_json, write_json
from slideloom.artefacts.keys import digest_tree
from slideloom.artefacts.paths import Paths
from slideloom.artefacts.stage import ItemState
from slideloom.artefacts.zarrio import create_group, write_array
from slideloom.config.model import EncoderConfig
from slideloom.encoders.embedding.embed import Embedder
from slideloom.encoders.embedding.store import EmbeddingStore
from slideloom.encoders.registry import build_encoder
from slideloom.slides.tables import Channel
from slideloom.workflow.job import Job
from slideloom.workflow.run_embeddings import run_embeddings

RGB = [Channel(name, "") for name in ("red", "green", "blue")]


def write_patches(place: Path, slide: str, n: int) -> None:
    """A small RGB patch store."""
    data = np.random.default_rng(n).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    about = {"image": "he", "is_rgb": True, "scale": 1.0, "mpp_um": 0.5, "height_px": 32, "width_px": 32 * n}
    about |= {"slide_id": slide, "channels": [one.as_dict() for one in RGB], "tile_px": 32, "stride_px": 32}
    create_group(place, about)
    write_array(place / "pixels", data)


class Study:
    """A results folder with patches of two slides, and the embeddings job on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.paths = folder, Paths(folder / "results")
        self.entry = {"model": "timm/test_vit", "grid": "g", "random": 1, "blocks": [2, 5]}
        self.files: dict[str, str] = {}
        self.forwards = 0
        for slide, n in (("a", 3), ("b", 2)):
            write_patches(self.paths.patches("g", slide), slide, n)
        self.record = self.paths.job_record("patches", "g", "1-0")
        self.write_record()

    def write_record(self, **digests: str) -> None:
        items = {slide: ItemState("ok", digests.get(slide, slide)).as_dict() for slide in "ab"}
        write_json(self.record, {"stage": "patches", "context": "g", "items": items})

    def job(self) -> Job:
        config = EncoderConfig(**self.entry).model_dump(mode="json", exclude={"checkpoint", "marker_embeddings"})
        spec: dict[str, Any] = {"stage": "embeddings", "context": "e", "code": "c", "items": {"a": {}, "b": {}}}
        spec |= {"config": {"encoder": config}, "files": {"e": self.files} if self.files else {}}
        snakemake = SimpleNamespace(
            threads=1,
            log=[str(self.folder / "job.log")],
            params=SimpleNamespace(spec=json.dumps(spec)),
            config={"results": str(self.paths.root), "data_root": str(self.folder)},
            wildcards={"encoder": "e", "job": "1-0"},
            input={"patches": [str(self.record)]},
            output=[str(self.paths.job_record("embeddings", "e", "1-0"))],
        )
        return Job.start(snakemake)

    def run(self) -> dict[str, dict[str, str]]:
        self.forwards = 0
        job = self.job()
        run_embeddings(job)
        found: dict[str, dict[str, str]] = read_json(job.record)["items"]
        return found

    def store(self, slide: str) -> EmbeddingStore:
        return EmbeddingStore(self.paths.embeddings("e", slide))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Study]:
    made = Study(tmp_path)
    lane = Embedder._run_lane

    def counted(self: Embedder, encoder: Any, missing: Any, tile_px: int, slides: Any) -> Any:
        made.forwards += len(slides)
        return lane(self, encoder, missing, tile_px, slides)

    monkeypatch.setattr(Embedder, "_run_lane", counted)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield made
    root.handlers, root.level = before
    logging.captureWarnings(False)


def test_a_job_embeds_once_and_accounts_for_its_time(study: Study) -> None:
    states = study.run()
    assert study.forwards == 2
    assert states == {slide: {"status": "ok", "digest": states[slide]["digest"]} for slide in "ab"}
    spent = read_json(study.paths.account("embeddings", "e", "1-0"))
    assert spent["n_tiles"] == 5
    assert spent["seconds"] == pytest.approx(sum(value for name, value in spent.items() if name.endswith("_s")))
    assert "in the encoder's forward" in (study.folder / "job.log").read_text()
    assert study.run() == states
    assert study.forwards == 0


def test_a_checkpoint_that_moves_is_the_same_checkpoint(study: Study) -> None:
    module: Any = build_encoder(EncoderConfig(model="timm/test_vit", grid="g", random=1), RGB)
    first, second = study.folder / "w.safetensors", study.folder / "elsewhere" / "renamed.safetensors"
    save_file(module.module.state_dict(), first)
    del study.entry["random"]
    study.files = {"checkpoint": str(first)}
    states = study.run()
    second.parent.mkdir()
    shutil.move(first, second)
    study.files = {"checkpoint": str(second)}
    assert study.job().encoder_config("e").checkpoint == second
    assert study.run() == states
    assert study.forwards == 0
    save_file({name: value * 1.01 for name, value in module.module.state_dict().items()}, second)
    assert study.run() != states
    assert study.forwards == 2


def test_a_block_more_or_less_takes_over_the_others(study: Study) -> None:
    study.run()
    kept = digest_tree(study.paths.embeddings("e", "a") / "block_5")
    study.entry["blocks"] = [5, 6]
    study.run()
    assert study.forwards == 2
    assert digest_tree(study.paths.embeddings("e", "a") / "block_5") == kept
    log = (study.folder / "job.log").read_text()
    assert "a: blocks 6 computed, 5 taken over, 2 dropped" in log
    study.entry["blocks"] = [5]
    study.run()
    assert study.forwards == 0
    assert study.store("a").blocks == (5,)


def test_other_patches_are_embedded_anew_and_alone(study: Study) -> None:
    study.run()
    study.write_record(b="other")
    study.run()
    assert study.forwards == 1
    assert "b: every block is computed: other patches than" in (study.folder / "job.log").read_text()


def test_patches_that_are_gone_fail_their_slide_alone(study: Study) -> None:
    shutil.rmtree(study.paths.patches("g", "a"))
    states = study.run()
    assert (states["a"]["status"], states["b"]["status"]) == ("failed", "ok")
    assert study.store("b").n == 2


def test_a_damaged_shard_of_patches_fails_its_slide_alone(study: Study) -> None:
    shard = next(path for path in (study.paths.patches("g", "a") / "pixels" / "c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-100])
    states = study.run()
    assert (states["a"]["code"], states["b"]["status"]) == ("unreadable_patches", "ok")


def test_failed_statistics_fail_every_slide(study: Study) -> None:
    study.entry |= {"model": "mean_marker", "random": None, "blocks": [], "statistics": "split"}
    record = study.paths.job_record("statistics", "", "e")
    failed = ItemState("failed", stage="statistics", code="x", message="no slide")
    write_json(record, {"stage": "statistics", "context": "", "items": {"e": failed.as_dict()}})
    job = study.job()
    job.inputs["statistics"] = (record,)  # type: ignore[index]
    run_embeddings(job)
    states = read_json(job.record)["items"]
    assert {state["code"] for state in states.values()} == {"no_statistics"}
    assert "no slide" in states["a"]["message"]
