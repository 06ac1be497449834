"""The eight tables, gathered from a small cohort on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slideloom.artefacts.tables import read_table, table_metadata
from slideloom.config.model import StudyConfig
from slideloom.reports.gather import (
    Run,
    gather_costs,
    gather_failures,
    gather_reports,
    gather_training,
    runs_of,
)
from slideloom.reports.schemas import REPORT_TABLES


@pytest.fixture(scope="module")
def tables(cohort: Any) -> dict[str, pd.DataFrame]:
    """What people read."""
    place = cohort.paths.reports()
    runs = list(cohort.runs.values())
    accounts = {("maps", "good/0", "1-0"): {"n_tiles": 50.0, "gpu_seconds": 12.0, "forward_s": 9.0, "read_s": 0.5}}
    gather_reports(
        "study", runs, cohort.rows, cohort.records, cohort.benchmarks, cohort.paths.root, place, accounts=accounts
    )
    return {name: pd.read_parquet(place / f"{name}.parquet") for name in REPORT_TABLES}


def test_every_table_opens_with_its_documented_columns(cohort: Any, tables: dict[str, pd.DataFrame]) -> None:
    for name, schema in REPORT_TABLES.items():
        table = read_table(schema, cohort.paths.reports() / f"{name}.parquet")
        assert (table.num_rows > 0) == (name != "published"), name  # the study names no published report
        assert set(tables[name]["study"]) <= {"study"}
        for column in schema.columns:
            assert table.schema.field(column.name).type == column.type, f"{name}.{column.name}"


def test_slides_are_joined_with_sheet_split_and_encoder(tables: dict[str, pd.DataFrame]) -> None:
    slides = tables["slides"].set_index(["experiment", "slide_id"])
    assert len(slides) == 8  # the slide without annotation is not scored
    assert slides.loc[("good", "s1"), "patient_id"] == "P1"
    assert slides.loc[("good", "s0"), "role"] == "val"
    assert slides.loc["poor", "random_weights"].all()
    assert not slides.loc["good", "random_weights"].any()
    assert slides.loc["good", "pq"].mean() > slides.loc["poor", "pq"].mean() > 0
    classes = tables["classes"]
    assert len(classes) == 8 * 4
    sums = classes.groupby(["experiment", "slide_id"])["gt_fraction"].sum()
    assert sums.tolist() == pytest.approx([1.0] * 8)


def test_every_table_records_the_encoders_weights(cohort: Any, tables: dict[str, pd.DataFrame]) -> None:
    for name, schema in REPORT_TABLES.items():
        origin = table_metadata(read_table(schema, cohort.paths.reports() / f"{name}.parquet"))["made_from"]
        assert origin["encoder_weights"] == {
            "good": [f"sha256:{'ab' * 32} + sha256:{'cd' * 32}"],
            "poor": ["random:3"],
        }
        assert origin["encoder_notes"] == {name: [f"{name} does not read DNA"] for name in ("good", "poor")}


def test_experiments_and_comparisons_keep_roles_apart(tables: dict[str, pd.DataFrame]) -> None:
    frame = tables["experiments"]
    line = frame.query("experiment == 'good' and role == 'test' and metric == 'pq' and averaging == 'slide'").iloc[0]
    slides = tables["slides"].query("experiment == 'good' and role == 'test'")
    assert line["mean"] == pytest.approx(slides["pq"].mean())
    assert (line["n"], line["n_patients"]) == (3, 3)
    pair = tables["comparisons"].query("metric == 'pq' and role == 'test'").iloc[0]
    assert pair["difference"] < 0
    assert pair["random_weights"]


def test_training_has_every_term(tables: dict[str, pd.DataFrame]) -> None:
    frame = tables["training"]
    assert {"train_loss", "train_nucleus_dice", "val_loss", "val_dice_macro"} <= set(frame.columns)
    assert (len(frame), frame["best"].sum()) == (12, 1)
    assert pd.isna(frame["val_dice_macro"].iloc[0])


def test_training_keeps_terms_that_nobody_foresaw_and_names_the_encoder(tmp_path: Path) -> None:
    history = tmp_path / "history.parquet"
    about_epoch = {"lr": 1e-3, "seconds": 1.0, "train_boundary_tversky": 0.5, "val_loss": None, "unknown": 1}
    about_epoch |= {"skipped_steps": 2, "grad_norm": 0.25}
    table = pa.Table.from_pylist([{"epoch": k, "is_best": k == 1} | about_epoch for k in range(3)])
    about = {"made_from": {"encoder_weights": "random:7", "encoder_notes": ["no DNA"]}}
    pq.write_table(table.replace_schema_metadata({"slideloom": json.dumps(about)}), history)
    empty = tmp_path / "empty.parquet"
    pq.write_table(table.slice(0, 0), empty)
    runs = [Run("trained", "0", True, tmp_path / "s.parquet", history), Run("published", "0", False, tmp_path, empty)]
    recorded: dict[str, dict[str, list[str]]] = {"encoder_weights": {"scored": ["sha256:1"]}, "encoder_notes": {}}
    rows = gather_training(runs, recorded)
    assert [row["best"] for row in rows] == [False, True, False]
    assert {(row["train_boundary_tversky"], row["skipped_steps"], row["grad_norm"]) for row in rows} == {(0.5, 2, 0.25)}
    assert "unknown" not in rows[0]
    assert recorded["encoder_weights"] == {"scored": ["sha256:1"], "trained": ["random:7"]}
    assert recorded["encoder_notes"] == {"trained": ["no DNA"]}
    written = gather_reports("s", runs, [], [], [], tmp_path, tmp_path / "reports", published="sp_he")
    assert written["training"].num_rows == 3
    assert table_metadata(written["training"])["made_from"]["encoder_weights"] == {"trained": ["random:7"]}
    assert written["published"].column("note").to_pylist().count("not run here") > 40


def test_costs_are_read_from_benchmarks(tables: dict[str, pd.DataFrame]) -> None:
    costs = tables["costs"].set_index("rule")
    assert costs.loc["maps", "context"] == "good/0"
    assert json.loads(costs.loc["maps", "wildcards"]) == {"context": "good/0", "unit": "1-0"}
    assert costs.loc["maps", "tiles_per_s"] == pytest.approx(2.5)
    assert costs.loc["maps", ["gpu_seconds", "compute_s", "wait_read_s"]].tolist() == [12.0, 9.0, 0.5]
    assert pd.isna(costs.loc["maps", "blend_s"])
    assert costs.loc["maps", "cpu_seconds"] == pytest.approx(18.0)
    assert costs.loc["facts", "max_rss_mb"] == 512.5
    assert pd.isna(costs.loc["facts", "tiles_per_s"])


def test_a_job_too_short_to_measure_has_nulls(blank: Any) -> None:
    blank.benchmark("splits", "", "holdout", 0.02, "\t".join(["NA", "-", "", "NA", "NA", "-1", "nan", "0.01"]))
    empty = blank.benchmark("splits", "", "never", 1.0)
    empty.write_text("s\th:m:s\n")
    (line,) = gather_costs(blank.benchmarks, blank.paths.root, {})
    assert (line["rule"], line["context"], line["unit"], line["seconds"]) == ("splits", "", "holdout", 0.02)
    assert line["max_rss_mb"] is line["written_mb"] is line["mean_load"] is None
    assert line["cpu_seconds"] == 0.01


def test_a_failure_is_listed_once_by_its_first_stage(tables: dict[str, pd.DataFrame]) -> None:
    (line,) = tables["failures"].to_dict("records")
    assert (line["item"], line["stage"], line["reason_code"], line["hint"]) == (
        "broken",
        "facts",
        "truncated",
        "Copy it again",
    )


def test_failures_of_slides_of_runs_and_inherited_ones(blank: Any) -> None:
    train = {"status": "failed", "stage": "train", "code": "no_loss", "message": "nothing to learn"}
    blank.record("train", "sp/0", {"0": train})
    blank.record("maps", "sp/0", {"s1": train, "s2": train})
    maps = {"status": "failed", "stage": "maps", "code": "internal", "message": "ValueError: x", "hint": "see the log"}
    blank.record("maps", "he/0", {"s1": maps, "s2": {"status": "ok"}})
    blank.record("maps", "he/1", {"s1": maps}, "2-1")
    lost = {"status": "failed", "stage": "patches", "code": "no_image", "message": "no image"}
    blank.record("targets", "sp120", {"s2": lost, "s1": {"status": "absent", "message": "no annotation"}})
    found = gather_failures(blank.records, {"s1", "s2", "0"})
    assert [(line["item"], line["stage"], line["context"]) for line in found] == [
        ("0", "train", "sp/0"), ("s1", "maps", "he/0"), ("s1", "maps", "he/1"), ("s2", "patches", ""),
    ]  # fmt: skip
    assert [line["slide_id"] for line in found] == [None, "s1", "s1", "s2"]


def test_an_empty_study_has_empty_tables_with_all_columns(tmp_path: Path) -> None:
    tables = gather_reports("none", [], [], [], [], tmp_path, tmp_path / "reports")
    for name, schema in REPORT_TABLES.items():
        assert tables[name].num_rows == 0
        assert tables[name].column_names == list(schema.names)
        assert list(pd.read_parquet(tmp_path / "reports" / f"{name}.parquet").columns) == list(schema.names)


def test_only_what_the_records_call_done_is_gathered(cohort: Any) -> None:
    config = StudyConfig.model_validate(
        {
            "study": "x",
            "slides": "slides.tsv",
            "grids": {"g": {"image": "he", "tile_px": 64}},
            "encoders": {
                "e": {"model": "mean_marker", "grid": "g"},
                "r": {"model": "timm/x", "grid": "g", "random": 1},
            },
            "splits": {"s": {}},
            "experiments": {"good": {"encoder": "e", "split": "s"}, "poor": {"encoder": "r", "split": "s"}},
        }
    )
    ok = {"status": "ok", "digest": "d"}
    records = [
        cohort.record("metrics", "good/0", {"s0": ok, "s1": {"status": "failed"}, "bare": {"status": "absent"}}),
        cohort.record("metrics", "good/0", {"s2": ok}, "2-1"),
        cohort.record("train", "good/0", {"0": ok}, "0"),
    ]
    for record in records:
        cohort.records.remove(record)
    good, poor = runs_of(config, cohort.rows, cohort.paths, records)
    assert sorted(good.metrics) == ["s0", "s2"]
    assert good.history == cohort.paths.model("good", "0") / "history.parquet"
    assert (poor.random_weights, good.random_weights, dict(poor.metrics), poor.history) == (True, False, {}, None)
