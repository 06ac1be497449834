"""Published whole networks from the plan to nuclei: the rules' own scripts with the plan's own specs, one process."""

from __future__ import annotations

import json
import logging
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from slideloom.artefacts.files import read_json
from slideloom.artefacts.zarrio import read_array, read_attributes
from slideloom.encoders.checkpoints.files import file_sha256
from slideloom.instances.instanseg import as_published
from slideloom.instances.labels import open_labels
from slideloom.slides.study import study_from_mapping
from slideloom.training.checkpoint import read_meta
from slideloom.workflow.plan import Plan
from tests.published_models import instanseg, program

SCRIPTS = Path(__file__).resolve().parents[2] / "workflow" / "scripts"
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Runs:
    """A study of one small H&E image, whose jobs are run one by one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        squares = np.random.default_rng(0).integers(60, 250, (10, 12, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / "a.png"), squares.repeat(10, 0).repeat(10, 1))
        (folder / "slides.tsv").write_text("slide_id\the\the_mpp_um\tsplit\na\ta.png\t0.5\tinfer\n")
        whole = {"encoder": "plain", "split": "all", "decoder": {"kind": "instanseg"}}
        self.mapping: dict[str, Any] = {
            "study": "s",
            "slides": "slides.tsv",
            "results": "results",
            "tissue": {"method": "all"},
            "grids": {"he": {"image": "he", "tile_px": 64, "mpp_um": 0.5}},
            "encoders": {"plain": {"model": "mean_rgb", "grid": "he"}},
            "splits": {"all": {"scheme": "column"}},
            "experiments": {
                "program": whole | {"torchscript": "is.pt", "heads": ["instanseg"]},
                "weights": whole | {"pretrained": "is.pth", "heads": ["instanseg", "instanseg_cells"]},
            },
            "inference": {"source": "live", "overlap_px": 16},
        }

    @property
    def plan(self) -> Plan:
        return Plan(study_from_mapping(self.mapping, self.folder), SCRIPTS)

    def run(self, stage: str, *context: str, script: str = "", **inputs: Any) -> dict[str, Any]:
        """Run a job; the states of its items."""
        plan = self.plan
        of_slides = stage not in ("splits", "pretrained")
        job = next(iter(plan.jobs)) if of_slides else ""
        written = {"pretrained": ("train", *context[:1]), "splits": ("splits",)}.get(stage, (stage, *context))
        unit = job or context[-1]
        output = plan.paths.job_record(written[0], "/".join(written[1:]), unit)
        names = {"experiment": context[0], "fold": context[1]} if len(context) == 2 else {}
        wildcards = names or ({"split": context[0]} if stage == "splits" else {"grid": context[0]} if context else {})
        given = {
            name: [value if isinstance(value, str) else str(plan.paths.job_record(value[0], "/".join(value[1:]), job))]
            for name, value in inputs.items()
        }
        fake = SimpleNamespace(
            threads=1,
            log=[str(self.folder / "job.log")],
            params=SimpleNamespace(spec=plan.spec(stage, context, job)),
            config={"results": str(plan.paths.root), "data_root": str(self.folder), "window_px": 2048},
            wildcards=wildcards | ({"job": job} if job else {}),
            input=given,
            output=[str(output)],
        )
        runpy.run_path(str(SCRIPTS / f"{stage}.py"), init_globals={"snakemake": fake})
        found: dict[str, Any] = read_json(output)["items"]
        return found

    def record(self, stage: str, context: str, unit: str) -> str:
        return str(self.plan.paths.job_record(stage, context, unit))

    def nuclei(self, experiment: str) -> dict[str, Any]:
        """Find the nuclei of an experiment's maps."""
        run = (experiment, "0")
        return self.run("instances", *run, facts=("facts",), patches=("patches", "he"), maps=("maps", *run))

    def predict(self, experiment: str) -> dict[str, Any]:
        """Take the experiment's model over and predict the slide."""
        run = (experiment, "0")
        taken = self.run("pretrained", *run)
        if taken["0"]["status"] != "ok":
            return taken
        split, model = self.record("splits", "", "all"), self.record("train", experiment, "0")
        return self.run("maps", *run, split=split, model=model, facts=("facts",), patches=("patches", "he"))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Plan, "_code", lambda self, stage: stage)  # code is not what this is about
    made = Runs(tmp_path)
    own = {"seed_threshold": 0.0, "mask_threshold": 0.45, "overlap_threshold": 0.99}
    program(tmp_path / "is.pt", **{f"default_{name}": value for name, value in own.items()})
    instanseg(tmp_path / "is.pth", "instanseg", "instanseg_cells", channelnet=True)
    made.run("facts", sources=str(tmp_path / "a.png"))
    made.run("tissue", facts=("facts",))
    made.run("patches", "he", facts=("facts",), tissue=("tissue",))
    made.run("splits", "all")
    yield made
    root.handlers, root.level = before
    logging.captureWarnings(False)


def test_no_token_is_stored_and_nothing_is_trained(runs: Runs) -> None:
    plan = runs.plan
    assert plan.embedded_encoders() == []
    assert plan.slices.predicted_live("program")
    spec = json.loads(plan.spec("pretrained", ("program", "0")))
    assert spec["files"]["pretrained"] == "is.pt"
    assert set(spec["config"]) == {"encoders", "grid", "classes", "heads", "decoder", "program"}
    assert spec["config"]["encoders"][0]["encoder"]["normalisation"]["scope"] == "percentiles"
    weights = json.loads(plan.spec("pretrained", ("weights", "0")))["config"]
    assert (weights["decoder"], "program" in weights) == ({"kind": "instanseg"}, False)


def test_a_program_finds_nuclei_with_its_own_thresholds_until_the_config_says_otherwise(runs: Runs) -> None:
    states = runs.predict("program")
    assert states["a"]["status"] == "ok", states
    paths = runs.plan.paths
    place = paths.model("program", "0")
    assert read_meta(place / "decoder.safetensors").training["pretrained"]["sha256"] == file_sha256(
        place / "instanseg.pt"
    )
    about = read_attributes(paths.maps("program", "0", "a"))
    assert about["instanseg_published"]["seed_threshold"] == 0.0
    assert about["encoder_notes"] == ["is.pt does not say what it was trained on; scores on the images that it was "
                                      "trained on are not scores on unseen images"]  # fmt: skip
    maps = read_array(paths.maps("program", "0", "a") / "instanseg")
    assert maps.shape == (5, 100, 120)
    assert runs.nuclei("program")["a"]["status"] == "ok"
    labels = open_labels(paths.labels("program", "0", "a"))
    assert np.asarray(labels[:]).max() > 3
    runs.mapping["instances"] = {"instanseg": {"seed_threshold": 0.99}}
    runs.nuclei("program")
    assert np.asarray(open_labels(paths.labels("program", "0", "a"))[:]).max() == 0
    config = runs.plan.config.instances_of("program")
    assert as_published(config, about["instanseg_published"]).instanseg.overlap_threshold == 0.99


def test_weights_with_a_channelnet_find_nuclei_and_cells(runs: Runs) -> None:
    assert runs.predict("weights")["a"]["status"] == "ok"
    paths = runs.plan.paths
    about = read_attributes(paths.maps("weights", "0", "a"))
    assert about["heads"] == ["instanseg", "instanseg_cells"]
    assert "instanseg_published" not in about
    assert runs.nuclei("weights")["a"]["status"] == "ok"
    assert (paths.labels("weights", "0", "a") / "labels" / "cells").is_dir()


def test_a_changed_program_is_predicted_anew(runs: Runs) -> None:
    runs.predict("program")
    maps = runs.plan.paths.maps("program", "0", "a")
    stamp, before = maps.stat().st_mtime_ns, read_array(maps / "instanseg")
    runs.predict("program")
    assert maps.stat().st_mtime_ns == stamp, "the same file, the same maps"
    program(runs.folder / "is.pt", seed=1)
    runs.predict("program")
    assert not np.array_equal(read_array(maps / "instanseg"), before)
    copy = runs.plan.paths.model("program", "0") / "instanseg.pt"
    assert file_sha256(copy) == file_sha256(runs.folder / "is.pt")


def test_a_file_of_other_heads_fails_alone_with_its_reason(runs: Runs) -> None:
    torch.save({"model_state_dict": {"weight": torch.zeros(2)}}, runs.folder / "is.pth")
    state = runs.predict("weights")["0"]
    assert (state["status"], state["code"]) == ("failed", "checkpoint_keys")
    runs.mapping["experiments"]["program"]["heads"] = ["instanseg", "instanseg_cells"]
    state = runs.predict("program")["0"]
    assert (state["status"], state["code"]) == ("failed", "pretrained_heads")
