"""``slideloom why`` and ``slideloom verify``, on a study whose jobs left their records and notes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from slideloom.artefacts.files import write_json
from slideloom.artefacts.stage import Stage
from slideloom.cli.main import app
from slideloom.cli.why import reasons_of
from slideloom.slides.study import Study, load_study
from slideloom.workflow.graph import PlannedJob, planned_jobs
from slideloom.workflow.notes import write_note
from slideloom.workflow.plan import Plan

GRID, SPLIT = {"image": "sp", "tile_px": 64}, {"scheme": "sequential"}
MEAN = {"model": "mean_marker", "grid": "sp64", "statistics": "holdout"}
SP = {"encoder": "mean", "split": "holdout", "heads": ["nucleus", "hv"]}
CONFIG = {
    "study": "small",
    "slides": "slides.tsv",
    "markers": "markers.tsv",
    "classes": "classes.tsv",
    "grids": {"sp64": GRID},
    "encoders": {"mean": MEAN},
    "splits": {"holdout": SPLIT},
    "experiments": {"sp": SP},
    "jobs": {"slides_per_job": 2},
}
SHEET = "slide_id\tpatient_id\tsp\tinstances\tmpp_um\n"
MODULES = {"slideloom.instances.segment": "b" * 16, "instances.py": "c" * 16}
BELOW_INSTANCES = {"biology", "metrics", "reports", "report_html", "report_figures"}


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Scripts that stand for the rules', and code that is asked for by their stage."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    monkeypatch.setattr(Plan, "_code", lambda self, stage: f"code of {stage}")
    monkeypatch.setattr("slideloom.workflow.reasons.code_parts", lambda scripts: dict(MODULES))
    return folder


@pytest.fixture
def finished(tmp_path: Path, scripts: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Study]:
    """A study with four slides, all of whose jobs have run; called again, the study as its files are now."""
    monkeypatch.chdir(tmp_path)
    for name in ("sp", "labels"):
        (tmp_path / f"{name}.tif").write_text(name)
    (tmp_path / "markers.tsv").write_text("channel\tmarker\tuniprot\tnuclear\nDAPI\tDNA\t\tyes\n")
    (tmp_path / "classes.tsv").write_text("id\tname\tcolour\n1\ttumour\t#ff0000\n")
    (tmp_path / "slides.tsv").write_text(SHEET + "".join(f"s{k}\tp{k}\tsp.tif\tlabels.tif\t0.5\n" for k in range(4)))

    def read(**edits: Any) -> Study:
        Path("config.yaml").write_text(yaml.safe_dump(CONFIG | edits))
        return load_study(Path("config.yaml"))

    study = read()
    plan = Plan(study, scripts)
    for job in planned_jobs(plan):
        _pretend(plan, job)
    return read


def _pretend(plan: Plan, job: PlannedJob) -> None:
    """Leave what a finished job leaves."""
    inputs = [*job.files, *map(Path, job.reads)]
    write_note(plan.paths, job.record, job.spec(plan), Path("none.py"), inputs)
    for path in job.also:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if job.record.parent.name != "jobs":
        job.record.parent.mkdir(parents=True, exist_ok=True)
        job.record.touch()
        return
    write_json(job.record, {"stage": job.stage, "context": "/".join(job.context), "items": {}})


def _why(study: Study, scripts: Path) -> dict[str, set[str]]:
    """Reasons by stage; those that only follow have none."""
    told: dict[str, set[str]] = {}
    for one in reasons_of(study, scripts):
        told.setdefault(one.job.stage, set()).update(one.reasons)
    return told


def test_nothing_would_run_after_a_run(finished: Callable[..., Study], scripts: Path) -> None:
    assert _why(finished(), scripts) == {}


def test_a_study_that_never_ran_runs_everything(finished: Callable[..., Study], scripts: Path) -> None:
    told = _why(finished(results="elsewhere"), scripts)
    assert {"facts", "splits", "statistics", "embeddings", "train", "maps", "instances", "reports"} <= set(told)
    assert set().union(*told.values()) == {"it has never run"}


def test_the_key_of_the_config_is_named_with_both_values(finished: Callable[..., Study], scripts: Path) -> None:
    told = _why(finished(instances={"min_area_um2": 12.0}), scripts)
    assert set(told) == {"instances", *BELOW_INSTANCES}
    sentence = "config instances.min_area_um2: 4.0 → 12.0"
    assert told["instances"] == {sentence}
    assert told["reports"] == {sentence}
    assert told["metrics"] == told["biology"] == set()


@pytest.mark.parametrize(
    ("edits", "stage", "sentence"),
    [
        ({"grids": {"sp64": GRID | {"stride_px": 32}}}, "patches", "config grids.sp64.stride_px: null → 32"),
        ({"splits": {"holdout": SPLIT | {"train": 0.5}}}, "splits", "config splits.holdout.train: 0.8 → 0.5"),
        ({"tissue": {"method": "all"}}, "tissue", 'config tissue.method: "otsu" → "all"'),
        (
            {"encoders": {"mean": MEAN | {"markers": ["DNA"]}}},
            "statistics",
            'config encoders.mean.markers: [] → ["DNA"]',
        ),
        (
            {"experiments": {"sp": SP | {"training": {"lr": 0.1}}}},
            "train",
            "config experiments.sp.training.lr: 0.0005 → 0.1",
        ),
        ({"study": "other"}, "reports", 'config study: "small" → "other"'),
    ],
)
def test_keys_are_named_as_the_config_names_them(
    finished: Callable[..., Study], scripts: Path, edits: dict[str, Any], stage: str, sentence: str
) -> None:
    assert sentence in _why(finished(**edits), scripts)[stage]


def test_a_slide_is_named(finished: Callable[..., Study], scripts: Path) -> None:
    (Path("slides.tsv")).write_text(Path("slides.tsv").read_text() + "s9\tp9\tsp.tif\tlabels.tif\t0.5\n")
    told = _why(finished(jobs={"slides_per_job": 2}), scripts)
    assert told["facts"] & {"slide s9 is new here", "it has never run"}
    assert told["splits"] == {"the sheet has changed"}


def test_a_changed_module_is_named(
    finished: Callable[..., Study], scripts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = finished()
    write_json(study.paths.root / "state" / "code" / "code of instances.json", MODULES)
    now = MODULES | {"slideloom.instances.segment": "d" * 16, "slideloom.instances.new": "e" * 16}
    monkeypatch.setattr(Plan, "_code", lambda self, stage: "edited" if stage == "instances" else f"code of {stage}")
    monkeypatch.setattr("slideloom.workflow.reasons.code_parts", lambda scripts: now)
    told = _why(study, scripts)
    assert set(told) == {"instances", *BELOW_INSTANCES}
    assert told["instances"] == {
        "code: slideloom.instances.segment has changed",
        "code: slideloom.instances.new is imported now",
    }


def test_a_newer_file_is_a_reason_when_its_content_differs(finished: Callable[..., Study], scripts: Path) -> None:
    study = finished()
    later = max(path.stat().st_mtime for path in study.paths.root.rglob("*.json")) + 10
    os.utime("sp.tif", (later, later))
    assert _why(study, scripts) == {}, "small files are compared by content"
    Path("sp.tif").write_text("another slide")
    os.utime("sp.tif", (later, later))
    told = _why(study, scripts)
    assert told["facts"] == {"sp.tif is newer than what was made from it"}
    assert told["tissue"] == set()
    assert "splits" not in told


def test_what_is_gone_is_named(finished: Callable[..., Study], scripts: Path) -> None:
    study = finished()
    plan = Plan(study, scripts)
    Path(plan.records("maps", "sp", "0")[0]).unlink()
    (study.paths.reports() / "costs.parquet").unlink()
    told = _why(study, scripts)
    assert told["maps"] == {"its record is gone: it failed, was stopped, or was removed"}
    assert told["reports"] == {"reports/costs.parquet is gone"}
    assert "train" not in told


def test_the_command_prints_each_reason_once(finished: Callable[..., Study], monkeypatch: pytest.MonkeyPatch) -> None:
    finished(instances={"min_area_um2": 12.0})
    done = CliRunner().invoke(app, ["why", "config.yaml"])
    assert done.exit_code == 0, done.output
    assert done.output.count("instances.min_area_um2: 4.0 → 12.0") == 1 + 3, "instances and the three of the report"
    assert "reads what runs again: instances" in done.output
    finished()
    assert "nothing would run" in CliRunner().invoke(app, ["why", "config.yaml"]).output


# ---- verify -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(finished: Callable[..., Study], scripts: Path) -> tuple[Study, list[Path]]:
    """The study with real stores of patches, and their chunks."""
    study = finished()
    plan = Plan(study, scripts)

    def work(slide: str) -> list[Path]:
        store = study.paths.patches("sp64", slide)
        for chunk in ("0", "1"):
            (store / "c" / chunk).mkdir(parents=True, exist_ok=True)
            (store / "c" / chunk / "0").write_text(f"pixels of {slide}, {chunk}")
        return [store]

    for record in plan.records("patches", "sp64"):
        slides = plan.job_slides("patches", ("sp64",), Path(record).stem)
        Stage("patches", "sp64", study.paths, "params").run(slides, work, Path(record))
    return study, sorted(path for path in (study.paths.root / "patches").rglob("0") if path.is_file())


def _verify(*options: str) -> Any:
    return CliRunner().invoke(app, ["verify", "config.yaml", *options])


def _records(study: Study) -> set[Path]:
    return {path for path in (study.paths.root / "state" / "patches").rglob("*.json") if path.parent.name != "why"}


def test_whole_stores_are_left_alone(stored: tuple[Study, list[Path]]) -> None:
    before = _records(stored[0])
    done = _verify()
    assert done.exit_code == 0, done.output
    assert "whole" in done.output
    assert _records(stored[0]) == before


@pytest.mark.parametrize(
    ("harm", "quick"),
    [
        (lambda chunk: chunk.write_text(chunk.read_text()[::-1]), False),  # as long as before
        (lambda chunk: chunk.write_text("short"), True),
        (lambda chunk: chunk.unlink(), True),
        (lambda chunk: (chunk.parent / "extra").touch(), True),
    ],
    ids=["changed", "shortened", "removed", "added"],
)
def test_a_broken_chunk_is_found_and_its_slide_alone_is_forgotten(
    stored: tuple[Study, list[Path]], harm: Callable[[Path], object], quick: bool
) -> None:
    study, chunks = stored
    before = _records(study)
    harm(chunks[0])
    slide = chunks[0].relative_to(study.paths.root).parts[2].removesuffix(".zarr")
    fast = _verify("--quick", "--keep")
    assert (fast.exit_code == 1) is quick, "sizes tell all but a change of the same length"
    kept = _verify("--keep")
    assert kept.exit_code == 1
    assert f"patches sp64 {slide}" in kept.output
    assert _records(study) == before
    assert _verify().exit_code == 1
    gone = before - _records(study)
    assert {path.parent.name for path in gone} == {"items", "jobs"}
    assert [path.stem for path in gone if path.parent.name == "items"] == [slide]
    assert len(gone) == 2
    assert _verify().exit_code == 0


def test_a_persons_outline_is_not_broken(stored: tuple[Study, list[Path]]) -> None:
    study, _ = stored
    plan = Plan(study, Path())
    record = Path(plan.records("tissue")[0])
    slide = plan.jobs[record.stem][0]
    outline = study.paths.tissue(slide)

    def work(_: str) -> list[Path]:
        outline.parent.mkdir(parents=True, exist_ok=True)
        outline.write_text("made")
        outline.with_suffix(".made").write_text("digest of what was made")
        return [outline]

    Stage("tissue", "", study.paths, "params").run([slide], work, record)
    outline.write_text("edited by a person")
    assert _verify().exit_code == 0
