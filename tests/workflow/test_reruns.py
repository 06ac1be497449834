"""What runs again: on real runs of the small study, through Snakemake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from .conftest import RULES, Workspace, copied

pytestmark = [pytest.mark.workflow, pytest.mark.slow]


@pytest.fixture
def workspace(finished: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the finished study that a test may edit."""
    return copied(finished, tmp_path / "study")


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
