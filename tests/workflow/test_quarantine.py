"""Slides that fail are left out by data: before the training, after it, and until they are mended."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import pytest

from .conftest import Workspace
from .undisturbed import BROKEN, write_study

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

ROLES = {"slide_01": "train", "slide_02": "train", "slide_03": "train", "slide_04": "val", "slide_05": "test"}
SEEN = "slide_01"


def test_failed_slides_are_left_out_told_apart_and_come_back_alone(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study")
    sheet = Path(study.config()["slides"])
    image = sheet.parent / "sp" / f"{BROKEN}.ome.tif"
    rows = pd.read_csv(sheet, sep="\t", dtype=str, keep_default_na=False)
    assert set(rows["slide_id"]) == set(ROLES)
    rows["split"] = rows["slide_id"].map(ROLES)
    rows.to_csv(sheet, sep="\t", index=False)
    for section in ("inference", "evaluation"):
        study.edit(section, value={"roles": ["train", "val", "test"]})

    # Before the training.
    screen = study.run().stderr
    assert "Traceback" not in screen
    assert "sp/0: 1 of 3 training slides FAILED, left out: slide_03 (truncated at facts)" in _log(study, "train")
    assert _training(study) == {"n_slides_train": 2, "n_slides_val": 1, "n_slides_failed": 1}
    (failed,) = _failures(study)
    assert (failed["slide_id"], failed["stage"], failed["trained_on"]) == (BROKEN, "facts", False)
    page = (study.results / "reports" / "report.html").read_text()
    assert "went on without slides that had failed" in page
    assert "after a decoder had learned" not in page

    # After it: a chunk of tokens is lost, and the maps are to be made anew.
    store = study.results / "embeddings" / "mean" / f"{SEEN}.zarr"
    next(path for path in sorted(store.rglob("c/**/*")) if path.is_file()).unlink()
    before = _digests(study, "maps/sp/0")
    study.edit("inference", "batch_size", value=2)
    study.run()
    found = {row["slide_id"]: row for row in _failures(study)}
    assert set(found) == {BROKEN, SEEN}
    assert (found[SEEN]["stage"], found[SEEN]["reason_code"]) == ("maps", "store_damaged")
    assert found[SEEN]["trained_on"] is True
    assert found[BROKEN]["trained_on"] is False
    assert "failed after a decoder had learned from it" in (study.results / "reports" / "report.html").read_text()
    assert set(_scored(study)) == set(ROLES) - {BROKEN, SEEN}

    # The same command makes the tokens again, and the maps of that slide; nobody trains.
    start = time.time()
    done = study.run()
    assert f"embeddings/mean/{SEEN}.zarr was found broken: it is made again" in done.stdout + done.stderr
    assert _worked(study, "embeddings", start) == _worked(study, "maps", start) == {SEEN}
    assert _worked(study, "train", start) == _worked(study, "facts", start) == set()
    assert set(_scored(study)) == set(ROLES) - {BROKEN}
    assert [row["slide_id"] for row in _failures(study)] == [BROKEN]
    assert _digests(study, "maps/sp/0").keys() == before.keys()

    # Mended: it alone is worked on, and then the training, which had wanted it.
    from slideloom.demo.cohort import write_cohort

    whole = write_cohort(tmp_path / "again", seed=11, n_slides=5, size_px=192).parent / "sp" / image.name
    image.write_bytes(whole.read_bytes())
    start = time.time()
    study.run()
    for stage in ("facts", "tissue", "patches", "targets"):
        assert _worked(study, stage, start) == {BROKEN}, stage
    assert _worked(study, "train", start) == {"0"}
    assert _training(study) == {"n_slides_train": 3, "n_slides_val": 1, "n_slides_failed": 0}
    assert _failures(study) == []
    assert set(_scored(study)) == set(ROLES)
    assert study.would_run() == {}


def _log(study: Workspace, stage: str, since: float = 0.0) -> str:
    logs = sorted((study.results / "logs" / stage).rglob("*.log"))
    return "\n".join(path.read_text() for path in logs if path.stat().st_mtime >= since)


def _worked(study: Workspace, stage: str, since: float) -> set[str]:
    """Items that the jobs of a stage worked on since then, and were well."""
    lines = [line.split() for line in _log(study, stage, since).splitlines() if "(kept)" not in line]
    return {words[5] for words in lines if len(words) > 7 and words[4] == stage and words[7] == "ok"}


def _failures(study: Workspace) -> list[dict[str, object]]:
    return pd.read_parquet(study.results / "reports" / "failures.parquet").to_dict("records")


def _scored(study: Workspace) -> list[str]:
    return pd.read_parquet(study.results / "reports" / "slides.parquet")["slide_id"].tolist()


def _training(study: Workspace) -> dict[str, int]:
    table = pd.read_parquet(study.results / "reports" / "training.parquet")
    counts = table[["n_slides_train", "n_slides_val", "n_slides_failed"]].drop_duplicates()
    assert len(counts) == 1
    return {str(name): int(value) for name, value in counts.iloc[0].items()}


def _digests(study: Workspace, stage: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (study.results / "state" / stage / "items").glob("*.json")}
