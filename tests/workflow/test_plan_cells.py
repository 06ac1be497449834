"""Annotated whole cells in the plan: a stage of their own, which touches no study that has none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slideloom.errors import ConfigError
from slideloom.slides.study import study_from_mapping
from slideloom.workflow.graph import planned_jobs
from slideloom.workflow.plan import Plan

SCRIPTS = Path(__file__).resolve().parents[2] / "workflow" / "scripts"
N_SLIDES = 8
WITH_CELLS = (0, 1, 5)


@pytest.fixture
def mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two experiments on one grid, of which one learns cells."""
    monkeypatch.chdir(tmp_path)
    Path("markers.tsv").write_text("channel\tmarker\tuniprot\tnuclear\nDAPI\tDNA\t\tyes\n")
    for name in ("sp.tif", "inst.tif", "c0.tif", "c1.tif", "c5.tif", "other.tif"):
        Path(name).touch()
    write_sheet()
    network = {"encoder": "mean", "split": "holdout", "decoder": {"kind": "instanseg", "widths": [8, 16]}}
    return {
        "study": "s",
        "slides": "slides.tsv",
        "markers": "markers.tsv",
        "grids": {"sp": {"image": "sp", "tile_px": 64}},
        "encoders": {"mean": {"model": "mean_marker", "grid": "sp", "statistics": "holdout"}},
        "splits": {"holdout": {"scheme": "sequential"}},
        "experiments": {
            "nuclei": {**network, "heads": ["nucleus", "instanseg"]},
            "cells": {**network, "heads": ["nucleus", "instanseg", "instanseg_cells"]},
        },
        "jobs": {"slides_per_job": 2},
    }


def write_sheet(cells: Callable[[int], str] = lambda k: f"c{k}.tif" if k in WITH_CELLS else "") -> None:
    lines = ["slide_id\tsp\tinstances\tcells\tmpp_um"]
    lines += [f"s{k}\tsp.tif\tinst.tif\t{cells(k)}\t0.5" for k in range(N_SLIDES)]
    Path("slides.tsv").write_text("\n".join(lines) + "\n")


def plan_of(mapping: dict[str, Any]) -> Plan:
    return Plan(study_from_mapping(mapping, Path.cwd()), SCRIPTS)


def specs(plan: Plan) -> dict[str, str]:
    return {job.name: job.spec(plan) for job in planned_jobs(plan)}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def told(mapping: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan_of(mapping)
    return [str(problem) for problem in caught.value.problems]


def test_slides_with_cells_have_jobs_and_the_training_reads_them(mapping: dict[str, Any]) -> None:
    plan = plan_of(mapping)
    jobs = [job for job in planned_jobs(plan) if job.stage == "cell_targets"]
    assert {slide for job in jobs for slide in plan.job_slides("cell_targets", ("sp",), job.unit)} == {"s0", "s1", "s5"}
    records = {str(job.record) for job in jobs}
    assert records < set(plan.all_records())
    trained = {job.context[0]: set(job.reads) for job in planned_jobs(plan) if job.stage == "train"}
    assert records <= trained["cells"]
    assert not records & trained["nuclei"]
    assert {str(path) for job in jobs for path in job.files} == {"c0.tif", "c1.tif", "c5.tif"}
    assert not any(
        "/cell_targets/" in path for job in planned_jobs(plan) if job.stage == "metrics" for path in job.reads
    )


def test_without_the_head_the_column_changes_nothing(mapping: dict[str, Any]) -> None:
    del mapping["experiments"]["cells"]
    with_column = specs(plan_of(mapping))
    write_sheet(lambda k: "")
    assert specs(plan_of(mapping)) == with_column
    assert not any(name.startswith("cell_targets") for name in with_column)


def test_another_file_of_cells_runs_its_own_job(mapping: dict[str, Any]) -> None:
    before = specs(plan_of(mapping))
    write_sheet(lambda k: "other.tif" if k == 5 else f"c{k}.tif" if k in WITH_CELLS else "")
    edited = changed(before, specs(plan_of(mapping)))
    assert {name.split()[0] for name in edited} == {"cell_targets"}
    (name,) = edited
    items = json.loads(before[name])["items"]
    assert items["s5"] == {"cells": "c5.tif"}
    assert "cells" not in json.dumps(
        [json.loads(text).get("items") for name, text in before.items() if "cell_" not in name]
    )


def test_the_head_with_nothing_to_learn_is_refused(mapping: dict[str, Any]) -> None:
    write_sheet(lambda k: "other.tif" if k == N_SLIDES - 1 else "")  # a slide that tests
    (problem,) = told(mapping)
    assert (
        "the head 'instanseg_cells' has nothing to learn: no training slide of split 'holdout' has 'cells'" in problem
    )
    assert "column 'cells'" in problem


def test_cells_go_with_nuclei_of_any_head(mapping: dict[str, Any]) -> None:
    edited = copy.deepcopy(mapping)
    edited["experiments"]["cells"]["heads"] = ["instanseg_cells"]
    (problem,) = told(edited)
    assert "'nucleus' or 'classes'" in problem
    edited["experiments"]["cells"]["heads"] = ["nucleus", "instanseg_cells"]
    assert plan_of(edited).cell_grids() == ["sp"]


def test_a_file_of_cells_that_is_not_there_is_told(mapping: dict[str, Any]) -> None:
    Path("c1.tif").unlink()
    (problem,) = told(mapping)
    assert "c1.tif" in problem
    assert "'s1'" in problem
