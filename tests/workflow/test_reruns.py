"""What runs again: on real runs of the small study, through Snakemake; and whether ``slideloom why`` says the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from .conftest import REPOSITORY, RULES, Workspace, copied

pytestmark = [pytest.mark.workflow, pytest.mark.slow]


@pytest.fixture
def workspace(finished: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the finished study that a test may edit."""
    return copied(finished, tmp_path / "study")


#: Below what every report reads, and below the maps.
REPORTS = {"reports", "report_html", "report_figures"}
FOUND = {"instances", "biology", "metrics"} | REPORTS
_LINE = re.compile(r"^(\w+)(?:  \S+)?  (\d+) jobs?$")


def _slideloom(workspace: Workspace, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of the clone that the study runs from, on its config."""
    return subprocess.run(
        [sys.executable, "-m", "slideloom.cli.main", *words, str(workspace.config_path)],
        cwd=workspace.folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(workspace.repository / "src")},
        check=False,
    )


def _would_run(workspace: Workspace) -> dict[str, int]:
    """Jobs by rule that Snakemake would start, after ``slideloom why`` named the same."""
    why = _slideloom(workspace, "why")
    assert why.returncode == 0, why.stdout + why.stderr
    told: dict[str, int] = {}
    for match in filter(None, map(_LINE.match, why.stdout.splitlines())):
        told[match[1]] = told.get(match[1], 0) + int(match[2])
    wanted = workspace.would_run()
    assert told == wanted, why.stdout
    return wanted


def _worked(workspace: Workspace, stage: str) -> list[str]:
    """Items that the last jobs of a stage really worked on, from their logs."""
    logs = (workspace.results / "logs" / stage).rglob("*.log")
    lines = [line for log in logs for line in log.read_text().splitlines()]
    return [line for line in lines if f" {stage} " in line and "(kept)" not in line and " ok (" in line]


def test_a_second_run_does_nothing(finished: Workspace) -> None:
    assert finished.would_run() == {}


def test_a_moved_study_is_not_computed_again(workspace: Workspace) -> None:
    assert workspace.would_run() == {}


def test_an_edit_of_instances_reruns_instances_metrics_and_reports(workspace: Workspace) -> None:
    before = pd.read_parquet(workspace.results / "reports" / "slides.parquet")
    workspace.edit("instances", value={"min_area_um2": 12.0})
    assert set(workspace.would_run()) == {"instances", "biology", "metrics", "reports", "report_html", "report_figures"}
    workspace.run()
    after = pd.read_parquet(workspace.results / "reports" / "slides.parquet")
    assert (after["n_pred"] < before["n_pred"]).any()
    assert workspace.would_run() == {}


def test_an_edit_of_one_experiment_leaves_the_others(workspace: Workspace) -> None:
    workspace.edit("experiments", "he", "training", "lr", value=1e-3)
    wanted = workspace.would_run()
    assert wanted["train"] == 1
    assert set(wanted) == set(RULES[RULES.index("train") :])


def test_a_lost_artefact_is_made_again_and_nothing_below_it(workspace: Workspace) -> None:
    shutil.rmtree(workspace.results / "patches" / "sp120" / "slide_01.zarr")
    done = workspace.run("--until", "patches")
    assert "slide_01.zarr is gone" in done.stdout + done.stderr
    assert [line.split()[5] for line in _worked(workspace, "patches")].count("slide_01") >= 1
    assert set(workspace.would_run()) <= {"reports", "report_html", "report_figures"}


def test_a_broken_slide_fails_alone_and_a_mended_one_returns(workspace: Workspace) -> None:
    sheet = Path(workspace.config()["slides"])
    rows = pd.read_csv(sheet, sep="\t")
    victim = rows.loc[rows["split"] == "test"].iloc[-1]
    image = sheet.parent / victim["sp"]
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 3])
    workspace.run()
    failures = pd.read_parquet(workspace.results / "reports" / "failures.parquet")
    assert failures["slide_id"].tolist() == [victim["slide_id"]]
    assert failures["stage"].tolist() == ["facts"]
    assert failures["hint"].str.len().gt(10).all()
    slides = pd.read_parquet(workspace.results / "reports" / "slides.parquet")
    assert victim["slide_id"] not in set(slides["slide_id"])

    image.write_bytes(whole)
    workspace.run()
    assert len(pd.read_parquet(workspace.results / "reports" / "failures.parquet")) == 0
    slides = pd.read_parquet(workspace.results / "reports" / "slides.parquet")
    assert victim["slide_id"] in set(slides["slide_id"])
    assert not [line for line in _worked(workspace, "train")], "training does not read a test slide"


def test_an_edited_tissue_outline_reruns_the_patches(workspace: Workspace) -> None:
    outline = workspace.results / "slides" / "slide_02" / "tissue.geojson"
    body = json.loads(outline.read_text())
    body["features"] = body["features"][:1]
    outline.write_text(json.dumps(body))
    wanted = workspace.would_run()
    assert "patches" in wanted
    assert not {"facts", "tissue"} & set(wanted)


# ---- traps: what Snakemake alone would miss, or run for nothing ------------------------------------------------------


@pytest.fixture
def clone(workspace: Workspace, tmp_path: Path) -> Workspace:
    """The study, run from a fresh checkout: equal content, new times."""
    place = tmp_path / "clone"
    place.mkdir()
    for name in ("src", "workflow", "profiles", "envs"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(REPOSITORY / name, place / name, copy_function=shutil.copy, ignore=ignored)
    shutil.copytree(REPOSITORY / "config" / "schema", place / "config" / "schema", copy_function=shutil.copy)
    shutil.copy(REPOSITORY / "Snakefile", place)
    return Workspace(workspace.folder, place)


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def test_edits_of_the_code_run_the_stages_that_import_it(clone: Workspace) -> None:
    assert _would_run(clone) == {}, "a fresh checkout"
    package, scripts = clone.repository / "src" / "slideloom", clone.repository / "workflow" / "scripts"
    _append(package / "instances" / "segment.py", "# a comment\n")
    (package / "_version.py").write_text('"""The version."""\n\n__version__ = "99.0.0"\n')
    assert _would_run(clone) == {}, "a comment, and a new version that behaves as the old one"
    _append(package / "instances" / "segment.py", "_NEW = 1\n")
    assert set(_would_run(clone)) == FOUND
    told = _slideloom(clone, "why").stdout
    assert "code: slideloom.instances.segment has changed" in told
    shutil.copy(REPOSITORY / "src" / "slideloom" / "instances" / "segment.py", package / "instances")
    assert _would_run(clone) == {}, "taken back"
    _append(scripts / "metrics.py", "_NEW = 1\n")
    assert set(_would_run(clone)) == {"metrics"} | REPORTS


def test_a_failed_job_that_was_repaired_runs_though_its_old_successors_stand(clone: Workspace) -> None:
    script = clone.repository / "workflow" / "scripts" / "instances.py"
    whole = script.read_text()
    _append(script, 'raise RuntimeError("broken on purpose")\n')
    done = clone.run("--until", "instances", check=False)
    assert done.returncode != 0
    script.write_text(whole)
    wanted = _would_run(clone)
    assert wanted["instances"] >= 1
    assert set(wanted) <= FOUND
    assert "its record is gone" in _slideloom(clone, "why").stdout


def test_exchanged_values_and_a_new_experiment(workspace: Workspace) -> None:
    config = workspace.config_path.read_text()
    workspace.edit("instances", value={"nucleus_threshold": 0.4, "energy_threshold": 0.5})  # 0.5 and 0.4 by default
    assert set(_would_run(workspace)) == FOUND
    workspace.config_path.write_text(config)
    workspace.edit("experiments", "again", value=workspace.config()["experiments"]["sp"])
    wanted = _would_run(workspace)
    assert set(wanted) == {"train", "maps"} | FOUND
    assert wanted["train"] == 1


def test_a_deleted_record_and_a_broken_chunk(workspace: Workspace) -> None:
    record = next((workspace.results / "state" / "tissue" / "jobs").iterdir())
    body = record.read_bytes()
    record.unlink()
    assert _would_run(workspace)["tissue"] == 1, "though all that was made from it is up to date"
    record.write_bytes(body)
    os.utime(record, (0, 0))
    assert _would_run(workspace) == {}

    store = workspace.results / "patches" / "sp120" / "slide_01.zarr"
    chunk = max((path for path in store.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 0xFF
    chunk.write_bytes(content)
    assert _would_run(workspace) == {}, "nobody looks inside stores unasked"
    done = _slideloom(workspace, "verify")
    assert done.returncode == 1
    assert "patches sp120 slide_01" in done.stdout
    wanted = _would_run(workspace)
    assert wanted["patches"] == 1
    assert not {"facts", "tissue", "splits"} & set(wanted)


def _image(workspace: Workspace, slide: str, column: str) -> Path:
    sheet = Path(workspace.config()["slides"])
    rows = pd.read_csv(sheet, sep="\t").set_index("slide_id")
    return sheet.parent / str(rows.loc[slide, column]).split("::")[0]


def _replace_slide(workspace: Workspace) -> None:
    shutil.copy(_image(workspace, "slide_02", "sp"), _image(workspace, "slide_01", "sp"))


def _edit_annotation(workspace: Workspace) -> None:
    shutil.copy(_image(workspace, "slide_02", "instances"), _image(workspace, "slide_01", "instances"))


@pytest.mark.parametrize("edit", [_replace_slide, _edit_annotation])
def test_a_replaced_file_runs_the_jobs_of_its_slide(workspace: Workspace, edit: Callable[[Workspace], None]) -> None:
    edit(workspace)
    wanted = _would_run(workspace)
    assert wanted["facts"] == 1
    assert "splits" not in wanted


def test_touched_slides_compute_nothing(workspace: Workspace) -> None:
    state = workspace.results / "state" / "facts"
    records = {path: path.read_bytes() for path in (state / "jobs").iterdir()}
    item = state / "items" / "slide_01.json"
    made = item.stat().st_mtime_ns
    for column in ("he", "sp"):
        _image(workspace, "slide_01", column).touch()
    assert _would_run(workspace)["facts"] == 1, "a newer time is all that can be seen without reading slides"
    workspace.run("--until", "facts")
    assert {path: path.read_bytes() for path in records} == records
    assert item.stat().st_mtime_ns == made, "kept: the content is the same"
    assert _would_run(workspace) == {}, "so the wave ends at the headers"


def test_a_new_and_a_removed_slide(workspace: Workspace) -> None:
    sheet = Path(workspace.config()["slides"])
    text = sheet.read_text()
    last = text.splitlines()[-1]
    sheet.write_text(text + last.replace(last.split("\t")[0], "slide_new", 1) + "\n")
    wanted = _would_run(workspace)
    assert wanted["facts"] <= 2, "its own job, and the one that a bin is split off"
    assert wanted["splits"] == 1
    told = _slideloom(workspace, "why").stdout
    assert "slide slide_new is new here" in told or "it has never run" in told, "in a bin that was there, or a new one"
    sheet.write_text("\n".join(text.splitlines()[:-1]) + "\n")
    wanted = _would_run(workspace)
    assert wanted.get("facts", 0) <= 2
    assert wanted["splits"] == 1
