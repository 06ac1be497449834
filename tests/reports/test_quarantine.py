"""Which slides the trainings went on without, and which failed after a decoder had learned from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from slideloom.artefacts.files import write_json
from slideloom.artefacts.tables import write_table
from slideloom.config.model import StudyConfig
from slideloom.reports.job_tables import gather_failures
from slideloom.reports.quarantine import Learned, count_left_out, learned_from
from slideloom.reports.runs import Run
from slideloom.training.history import HISTORY
from slideloom.training.splits import SPLIT

_FAILED = {"status": "failed", "stage": "maps", "code": "store_damaged", "message": "x", "hint": "y"}
_EARLY = {"status": "failed", "stage": "facts", "code": "truncated", "message": "short"}


def _history(place: Path, slides: dict[str, list[str]] | None, n_epochs: int = 1) -> Path:
    numbers = {"lr": 1e-3, "seconds": 1.0, "train_patches_per_s": 1.0, "train_loss": 1.0, "is_best": True}
    numbers |= {"skipped_steps": 0, "wait_share": 0.0}
    rows = [numbers | {"epoch": epoch} for epoch in range(n_epochs)]
    write_table(HISTORY, rows, place, made_from={} if slides is None else {"slides": slides})
    return place


def _run(tmp_path: Path, fold: str, slides: dict[str, list[str]] | None, n_epochs: int = 1) -> Run:
    return Run("sp", fold, False, tmp_path / "s.parquet", _history(tmp_path / f"{fold}.parquet", slides, n_epochs))


def _record(place: Path, stage: str, context: str, items: dict[str, Any]) -> Path:
    write_json(place, {"stage": stage, "context": context, "items": items})
    return place


def test_a_slide_that_a_decoder_has_seen_is_told_from_one_that_none_has(tmp_path: Path) -> None:
    runs = [_run(tmp_path, "0", {"train": ["a"], "val": ["b"]}), _run(tmp_path, "1", {"train": ["c"], "val": []})]
    found = learned_from([*runs, Run("labels", "0", False, tmp_path / "s.parquet")])
    assert found == Learned(frozenset("abc"), complete=True)
    items = {"a": _FAILED, "b": _FAILED, "z": _EARLY}
    records = [_record(tmp_path / "maps.json", "maps", "sp/0", items)]
    records += [
        _record(tmp_path / "train.json", "train", "sp", {"1": _FAILED | {"stage": "train", "code": "diverged"}})
    ]
    rows = {row["item"]: row["trained_on"] for row in gather_failures(records, set("abcz"), found)}
    assert rows == {"a": True, "b": True, "z": False, "1": None}


def test_who_never_asks_for_cells_has_not_learned_before_they_failed(tmp_path: Path) -> None:
    nuclei, cells = (learned_from([_run(tmp_path, fold, {"train": [fold], "val": []})]) for fold in ("a", "b"))
    items = {name: _FAILED | {"stage": "cell_targets"} for name in ("a", "b")}
    records = [_record(tmp_path / "cells.json", "cell_targets", "g", items)]
    found = gather_failures(records, {"a", "b"}, nuclei, {"cell_targets": cells})
    assert {row["item"]: row["trained_on"] for row in found} == {"a": False, "b": True}
    other = [_record(tmp_path / "maps.json", "maps", "sp/0", {"a": _FAILED})]
    assert [row["trained_on"] for row in gather_failures(other, {"a"}, nuclei, {"cell_targets": cells})] == [True]


def test_a_history_that_does_not_tell_leaves_it_open(tmp_path: Path) -> None:
    found = learned_from([_run(tmp_path, "0", {"train": ["a"], "val": []}), _run(tmp_path, "1", None)])
    assert (found.saw("a"), found.saw("z"), found.saw(None)) == (True, None, None)
    published = learned_from([_run(tmp_path, "2", None, n_epochs=0)])
    assert published.saw("z") is False, "a published model learned from no slide here"


@pytest.mark.parametrize("stage", ["targets", "patches", "embeddings"])
def test_slides_that_failed_before_a_training_are_counted_once(tmp_path: Path, stage: str) -> None:
    config = StudyConfig.model_validate(
        {
            "study": "x",
            "slides": "slides.tsv",
            "grids": {"g": {"image": "he", "tile_px": 64}},
            "encoders": {"e": {"model": "mean_marker", "grid": "g"}},
            "splits": {"s": {}},
            "experiments": {"sp": {"encoder": "e", "split": "s"}},
        }
    )
    roles = {"a": "train", "b": "train", "c": "val", "d": "test"}
    columns = [pa.array(values, pa.string()) for values in (list(roles), ["0"] * 4, list(roles.values()))]
    write_table(SPLIT, pa.table(dict(zip(SPLIT.names, columns, strict=True))), tmp_path / "s.parquet")
    ok, absent = {"status": "ok", "digest": "d"}, {"status": "absent", "message": "no annotation"}
    contexts = {"patches": "g", "targets": "g", "embeddings": "e"}
    records = []
    for name, context in contexts.items():
        bad = name == stage or stage == "patches"
        items = {"a": _EARLY if bad else ok, "b": absent if name == "targets" else ok, "c": ok, "d": _EARLY}
        records.append(_record(tmp_path / f"{name}.json", name, context, items))
    run = Run("sp", "0", False, tmp_path / "s.parquet")
    assert count_left_out(config, [run], records) == {("sp", "0"): 1}, "b has no annotation, d is no part of it"
    assert count_left_out(config, [run], []) == {}
    late = _record(tmp_path / "cells.json", "cell_targets", "g", {"c": _FAILED | {"stage": "cell_targets"}})
    assert count_left_out(config, [run], [*records, late]) == {("sp", "0"): 1}, "nobody asks for c's cells"
    config.experiments["sp"].heads.append("instanseg_cells")
    assert count_left_out(config, [run], [*records, late]) == {("sp", "0"): 2}
    assert count_left_out(config, [Run("sp", "0", False, tmp_path / "none.parquet")], records) == {}
