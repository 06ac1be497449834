"""The verifier's job on slides with planted false nuclei, and what a job of the nuclei then does with it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from slideloom.artefacts.files import read_json, write_json
from slideloom.artefacts.keys import digest_tree
from slideloom.artefacts.paths import Paths
from slideloom.artefacts.stage import ItemState
from slideloom.artefacts.zarrio import create_group, write_array
from slideloom.config.model import InstancesConfig, RefineSplitConfig, RefineVerifyConfig
from slideloom.errors import SlideError
from slideloom.instances.refine.verifier import Verifier
from slideloom.slides.headers import write_facts
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import Channel, ClassTable, MarkerTable
from slideloom.workflow.job import Job
from slideloom.workflow.refiners import refiners_of, verifier_digest
from slideloom.workflow.run_verifier import run_verifier

SIDE, MPP = 200, 0.5
SLIDES = {"a": "p1", "b": "p1", "c": "p2", "d": "p3", "e": "p4"}


def _drawn(seed: int, alike: bool) -> tuple[np.ndarray, np.ndarray]:
    """True nuclei, and a nucleus map with false ones among them: small and less probable, or like the true ones."""
    rng = np.random.default_rng(seed)
    truth, probability = np.zeros((SIDE, SIDE), np.int32), np.zeros((SIDE, SIDE), np.float32)
    for number, (row, col) in enumerate(np.ndindex(8, 8), 1):
        y, x = 12 + 25 * row + int(rng.integers(-2, 3)), 12 + 25 * col + int(rng.integers(-2, 3))
        mask = np.zeros((SIDE, SIDE), np.uint8)
        true = rng.random() > 0.4
        looks_true = true or alike
        cv2.circle(mask, (x, y), int(rng.integers(7, 10) if looks_true else rng.integers(4, 7)), 1, -1)
        if true:
            truth[mask > 0] = number
        probability[mask > 0] = np.clip(rng.normal(0.9 if looks_true else 0.7, 0.06), 0.55, 0.99)
    return truth, np.rint(probability * 255).astype(np.uint8)


class Study:
    """Slides with facts, annotation and maps, and the verifier's job on them."""

    def __init__(self, folder: Path, alike: bool = False) -> None:
        self.folder, self.paths = folder, Paths(folder / "results")
        self.rows = {}
        markers = MarkerTable((Channel("DNA", "DNA", nuclear=True),))
        for number, (slide, patient) in enumerate(SLIDES.items()):
            truth, nucleus = _drawn(number, alike)
            np.save(folder / f"{slide}.npy", np.ones((1, SIDE, SIDE), np.uint16))
            np.save(folder / f"{slide}_l.npy", truth)
            row = SlideRow(
                slide, patient, sp=f"{slide}.npy", instances=f"{slide}_l.npy", sp_mpp_um=MPP, sp_channels=("DNA",)
            )
            self.rows[slide] = row
            self.paths.slide_facts(slide).parent.mkdir(parents=True)
            write_facts(row, folder, markers, self.paths.slide_facts(slide))
            about = {"slide_id": slide, "image": "sp", "scale": 1.0, "mpp_um": MPP, "heads": ["nucleus"]}
            create_group(self.paths.maps("x", "0", slide), about)
            for name, values in (("nucleus", nucleus), ("covered", np.ones_like(nucleus))):
                write_array(self.paths.maps("x", "0", slide) / name, values)
        self.states = {
            "facts": dict.fromkeys(SLIDES, ItemState("ok", "1")),
            "maps": dict.fromkeys(SLIDES, ItemState("ok", "1")),
        }

    def job(self, stage: str = "verifier", split: bool = False, **verify: Any) -> Job:
        for name, states in self.states.items():
            items = {slide: state.as_dict() for slide, state in states.items()}
            write_json(self.record(name), {"stage": name, "context": "", "items": items})
        asked: Any = RefineVerifyConfig(**verify).model_dump(mode="json") if stage == "verifier" else True
        splitter = RefineSplitConfig().model_dump(mode="json") if split else None
        config = {
            "instances": InstancesConfig(method="threshold").model_dump(mode="json", exclude={"window_px"}),
            "image": "sp",
            "classes": ClassTable().as_dict(),
            "refine": {"split": splitter, "verify": asked},
        }
        columns = ("patient_id", "sp", "instances")
        rows = {slide: {key: getattr(row, key) for key in columns} for slide, row in self.rows.items()}
        spec = {"stage": stage, "context": "x/0", "code": "c", "config": config, "items": rows}
        inputs = {name: [str(self.record(name))] for name in ("facts", "maps")}
        output = self.paths.job_record("verifier", "x", "0")
        if stage == "instances":
            inputs["verifier"], output = [str(output)], self.paths.job_record("instances", "x/0", "1-0")
        return Job.start(
            SimpleNamespace(
                threads=1,
                log=[str(self.folder / "job.log")],
                params=SimpleNamespace(spec=json.dumps(spec)),
                config={"results": str(self.paths.root), "data_root": str(self.folder)},
                wildcards={"experiment": "x", "fold": "0"},
                input=inputs,
                output=[str(output)],
            )
        )

    def record(self, stage: str) -> Path:
        return self.paths.job_record(stage, "", "1-0")

    def run(self, **options: Any) -> dict[str, Any]:
        """Run the job; the verifier's record."""
        run_verifier(self.job(**options))
        state = read_json(self.paths.job_record("verifier", "x", "0"))["items"]["0"]
        assert state["status"] == "ok", state
        return read_json(self.paths.verifier("x", "0"))

    @property
    def log(self) -> str:
        return (self.folder / "job.log").read_text()


@pytest.fixture
def loggers() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers, root.level = before
    logging.captureWarnings(False)


@pytest.fixture
def study(tmp_path: Path, loggers: None) -> Study:
    return Study(tmp_path)


def test_it_drops_false_nuclei_and_says_what_that_gains(study: Study) -> None:
    told = study.run()
    assert told["used"]
    assert told["slides"] == list(SLIDES)
    assert told["n_patients"] == told["gain"]["n_images"] == 4, "slides of a patient are never parted"
    assert told["gain"]["f1_gain"] > 0.1
    assert told["gain"]["above_zero"]
    model = study.paths.verifier("x", "0").with_suffix(".safetensors")
    verifier = Verifier.load(model)
    assert verifier.threshold == told["threshold"] > 0
    assert verifier.about["slides"] == list(SLIDES)
    before = digest_tree(model), model.stat().st_mtime_ns
    assert study.run() == told
    assert (digest_tree(model), model.stat().st_mtime_ns) == before, "kept"
    study.states["maps"]["a"] = ItemState("ok", "2")
    study.run()
    assert model.stat().st_mtime_ns != before[1], "other maps of a slide"
    refiners = refiners_of(study.job("instances"))
    assert refiners is not None
    assert refiners.verifier is not None
    assert refiners.about == {
        "split": None,
        "verifier": {"used": True, "threshold": told["threshold"], "why": told["why"]},
    }
    assert verifier_digest(study.job("instances")) != ""


def test_where_it_gains_nothing_it_is_off(tmp_path: Path, loggers: None) -> None:
    study = Study(tmp_path, alike=True)
    told = study.run()
    assert (told["used"], told["threshold"], told["forced"]) == (False, 0.0, False)
    assert "the verifier is OFF and drops nothing" in study.log
    refiners = refiners_of(study.job("instances"))
    assert refiners is not None
    assert refiners.verifier is None


def test_a_threshold_of_the_config_holds(study: Study) -> None:
    told = study.run(threshold=0.9)
    assert (told["used"], told["threshold"], told["forced"]) == (True, 0.9, True)
    own, other = study.run(), study.run(threshold=0.999)
    kept = [record["gain"]["n_kept"] for record in (own, told, other)]
    assert kept[0] > kept[1] > kept[2], "the gain is that of the threshold that is used"
    assert other["used"], "whatever that gains"
    assert other["gain"]["f1_gain"] < 0
    nothing = study.run(threshold=0)
    assert (nothing["used"], nothing["why"]) == (False, "the config's threshold is 0")


def test_too_few_patients_or_nuclei_stop_nothing(study: Study) -> None:
    study.run()
    study.rows = {slide: study.rows[slide] for slide in "abc"}
    told = study.run()
    assert not told["used"]
    assert "in 2 patients match a true nucleus" in told["why"]
    assert "the verifier is OFF" in study.log
    model = study.paths.verifier("x", "0").with_suffix(".safetensors")
    assert not model.exists(), "that of another fit is not left"
    refiners = refiners_of(study.job("instances"))
    assert refiners is not None
    assert refiners.verifier is None
    study.rows = {}
    assert "no validation slide could be read" in study.run()["why"]


def test_slides_that_cannot_be_used_are_left_out_and_named(study: Study) -> None:
    study.states["maps"]["a"] = ItemState("failed", stage="maps", code="x", message="it broke")
    np.save(study.folder / "b_l.npy", np.ones((SIDE, SIDE + 9), np.int32))
    told = study.run()
    assert told["used"]
    assert told["slides"] == ["c", "d", "e"]
    assert told["left_out"]["a"] == "it broke"
    assert "b" in told["left_out"]
    assert "validation slide a left out: it broke" in study.log


def test_nuclei_are_not_made_without_the_verifier_that_was_asked_for(study: Study) -> None:
    study.run()
    record = study.paths.job_record("verifier", "x", "0")
    write_json(record, read_json(record) | {"items": {"0": {"status": "failed", "message": "it broke", "code": "x"}}})
    with pytest.raises(SlideError, match="its verifier was not made: it broke"):
        refiners_of(study.job("instances"))
