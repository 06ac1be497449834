"""Warnings that stages recorded reach people: a table, and lines on the page."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from slideloom.artefacts.files import write_json
from slideloom.artefacts.paths import Paths
from slideloom.artefacts.tables import write_table
from slideloom.artefacts.zarrio import create_group
from slideloom.reports.schemas import WARNINGS
from slideloom.reports.warned import gather_warnings, warning_lines

_OK = {"status": "ok", "digest": "d"}
_FAILED = {"status": "failed", "stage": "patches", "code": "no_tissue", "message": "x"}


def _record(paths: Paths, stage: str, context: str, items: dict[str, Any], unit: str = "1-0") -> Path:
    place = paths.job_record(stage, context, unit)
    write_json(place, {"stage": stage, "context": context, "items": items})
    return place


def _facts(paths: Paths, slide: str, *warnings: str) -> None:
    write_json(paths.slide_facts(slide), {"slide_id": slide, "warnings": list(warnings)})


def _store(place: Path, *warnings: str) -> None:
    create_group(place, {"slide_id": place.stem, "warnings": list(warnings)})


def test_every_stage_that_writes_warnings_is_read(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    _facts(paths, "b", "he: first", "he: a second", "he: first")
    _facts(paths, "a")
    _store(paths.patches("sp64", "a"), "CD3 holds one value throughout")
    _store(paths.targets("sp64", "b"), "the annotation holds no nucleus")
    _store(paths.maps("qupath", "0", "a"), "1 of 7 outlines stand there twice")
    write_json(
        paths.statistics_slides("mean"),
        {
            "used": ["a"],
            "left_out": {"b": {"code": "missing_marker", "message": "b: no channel shows CD8", "hint": ""}},
        },
    )
    records = [
        _record(paths, "statistics", "mean", {"mean": _OK}, "mean"),
        _record(paths, "imported", "qupath/0", {"a": _OK, "b": _FAILED}),
        _record(paths, "targets", "sp64", {"b": _OK, "a": {"status": "absent", "message": "no annotation"}}),
        _record(paths, "patches", "sp64", {"a": _OK}),
        _record(paths, "facts", "", {"b": _OK, "a": _OK}),
        _record(paths, "embeddings", "mean", {"a": _OK, "b": _FAILED}),
    ]
    rows = gather_warnings(records, paths)
    assert [tuple(row.values()) for row in rows] == [
        ("b", "facts", "", "he: first"),
        ("b", "facts", "", "he: a second"),
        ("a", "patches", "sp64", "CD3 holds one value throughout"),
        ("b", "targets", "sp64", "the annotation holds no nucleus"),
        ("a", "imported", "qupath/0", "1 of 7 outlines stand there twice"),
        ("b", "statistics", "mean", "it does not count in the encoder's channel statistics: b: no channel shows CD8"),
    ]
    assert rows == gather_warnings(records[::-1], paths)
    table = write_table(WARNINGS, [{"study": "s"} | row for row in rows], tmp_path / "w.parquet")
    assert pd.read_parquet(tmp_path / "w.parquet")["slide_id"].tolist() == table.column("slide_id").to_pylist()


def test_left_overs_of_slides_that_failed_are_not_taken_for_news(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    _store(paths.patches("g", "a"), "of an earlier run")
    assert gather_warnings([_record(paths, "patches", "g", {"a": _FAILED})], paths) == []


def test_what_cannot_be_read_any_more_stops_no_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = Paths(tmp_path)
    _store(paths.patches("g", "whole"), "told")
    _store(paths.patches("g", "cut"), "told")
    (paths.patches("g", "cut") / "zarr.json").write_text("{")
    paths.slide_facts("odd").parent.mkdir(parents=True)
    paths.slide_facts("odd").write_text("[")
    records = [
        _record(paths, "patches", "g", {"cut": _OK, "gone": _OK, "whole": _OK}),
        _record(paths, "facts", "", {"odd": _OK}),
    ]
    with caplog.at_level(logging.WARNING):
        assert [row["slide_id"] for row in gather_warnings(records, paths)] == ["whole"]
    for name in ("patches of cut", "patches of gone", "facts of odd"):
        assert name in caplog.text


def test_the_page_tells_a_kind_of_warning_in_a_line() -> None:
    def row(slide: str, message: str, stage: str = "facts") -> dict[str, str]:
        return {"slide_id": slide, "stage": stage, "context": "", "message": message}

    rows = [row(f"s{k}", f"he: the file holds {k + 2} images of 0.{k} µm in s{k}") for k in range(8)]
    rows += [row("s0", "another"), row("s0", "another", "patches")]
    first, *others = warning_lines(rows)
    assert (first.message, first.n_slides, first.n_more) == ("he: the file holds 2 images of 0.0 µm in s0", 8, 3)
    assert first.slides == ("s0", "s1", "s2", "s3", "s4")
    assert [(line.stage, line.n_slides, line.n_more) for line in others] == [("facts", 1, 0), ("patches", 1, 0)]


def test_a_thousand_slides_take_seconds(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    slides = [f"s{k:04d}" for k in range(1000)]
    for slide in slides:
        _facts(paths, slide, "x")
        for place in (paths.patches("g", slide), paths.targets("g", slide)):
            place.mkdir(parents=True)
            (place / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {"warnings": []}}')
    items = dict.fromkeys(slides, _OK)
    records = [_record(paths, stage, "g", items) for stage in ("facts", "patches", "targets")]
    start = time.perf_counter()
    assert len(gather_warnings(records, paths)) == 1000
    assert time.perf_counter() - start < 5
