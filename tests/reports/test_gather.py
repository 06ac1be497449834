"""The report tables, gathered from a small cohort on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.reports.conftest import blobs, worsen

from slideloom.artefacts.tables import read_table, table_metadata
from slideloom.config.model import StudyConfig
from slideloom.errors import SlideloomError
from slideloom.reports.gather import Run, gather_reports, gather_training, runs_of
from slideloom.reports.job_tables import gather_costs, gather_failures
from slideloom.reports.schemas import REPORT_TABLES
from slideloom.reports.slide_tables import gather_slides


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
        # The study names no published report, and no literature.
        assert (table.num_rows > 0) == (name not in ("published", "references")), name
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


def test_large_tables_are_those_of_the_slides_one_after_another(cohort: Any, tables: dict[str, pd.DataFrame]) -> None:
    for name, folder in (("confusion", "metrics"), ("biology", "biology"), ("neighbours", "biology")):
        parts = []
        for run in cohort.runs.values():
            for slide, place in sorted(getattr(run, folder).items()):
                part = pd.read_parquet(place / f"{name}.parquet")
                parts.append(part.assign(experiment=run.experiment, slide_id=slide))
        wanted = pd.concat(parts, ignore_index=True)
        pd.testing.assert_frame_equal(tables[name][wanted.columns.tolist()], wanted, check_like=True)
    biology = tables["biology"].query("scope == 'all'").set_index(["experiment", "slide_id"])
    assert len(biology) == 9  # also the slide without annotation
    assert biology.loc[("good", "bare"), ["patient_id", "role"]].tolist() == ["bare", "infer"]
    assert biology.loc[("good", "s0"), ["role", "tissue", "fold"]].tolist() == ["val", "Colon", "0"]
    assert biology["tissue"].isna().tolist() == [slide == "bare" for _, slide in biology.index]
    assert {"mean_DNA", "weighted_mean_CD3"} <= set(biology.columns)


def test_the_confusion_tells_what_the_classes_tell(tables: dict[str, pd.DataFrame]) -> None:
    whose = ["experiment", "slide_id"]
    by_true = tables["confusion"].groupby([*whose, "true_class_id"])["pixels"].sum()
    classes = tables["classes"].set_index([*whose, "class_id"])["gt_pixels"]
    assert by_true.tolist() == classes.sort_index().tolist()
    right = tables["confusion"].query("true_class_id == pred_class_id").groupby("experiment")["pixels"].sum()
    every = tables["confusion"].groupby("experiment")["pixels"].sum()
    own = tables["confusion"].query("role == 'test' and experiment == 'good'")
    pooled = tables["experiments"].query("averaging == 'pooled' and metric == 'class_accuracy' and role == 'test'")
    share = own.query("true_class_id == pred_class_id")["pixels"].sum() / own["pixels"].sum()
    assert pooled.query("experiment == 'good'")["mean"].item() == pytest.approx(share)
    assert (right / every)["good"] > (right / every)["poor"]


def test_curves_and_calibration_agree_with_the_slides(tables: dict[str, pd.DataFrame]) -> None:
    for whose, own in tables["slides"].groupby(["experiment", "role"]):
        curves, calibration, experiments = (
            tables[name].set_index(["experiment", "role"]).loc[[whose]]
            for name in ("curves", "calibration", "experiments")
        )
        pooled = experiments.query("averaging == 'pooled'").set_index("metric")["mean"]
        line = curves.query("of == 'nucleus'")
        assert line["n_true"].unique().tolist() == [own["gt_pixels"].sum()]
        assert line["n_slides"].unique().tolist() == [len(own)]
        half = line.query("threshold >= 0.5").iloc[-1]
        assert half["tp"] == own["tp_pixels_binary"].sum()
        assert half["tp"] + half["fp"] == own["pred_pixels_binary"].sum()
        steps = np.diff(line["recall"], prepend=0) * line["precision"]
        assert steps.sum() == pytest.approx(pooled["map"])
        bins = calibration.query("of == 'nucleus'")
        assert bins["pixels"].sum() == len(own) * 96 * 96
        gaps = (bins["true_share"] - bins["mean_probability"]).abs() * bins["pixels"]
        assert gaps.sum() / bins["pixels"].sum() == pytest.approx(pooled["ece"])


def test_groups_and_classes_are_summarised(tables: dict[str, pd.DataFrame]) -> None:
    groups = (
        tables["groups"].query("experiment == 'good' and role == 'test' and metric == 'pq'").set_index(["by", "group"])
    )
    slides = tables["slides"].query("experiment == 'good' and role == 'test'")
    for by, column in (("platform", "platform"), ("tissue", "tissue"), ("patient", "patient_id"), ("fold", "fold")):
        for group, value in slides.groupby(column)["pq"].mean().items():
            assert groups.loc[(by, group), "mean"] == pytest.approx(value)
    lines = tables["experiment_classes"].query("experiment == 'good' and role == 'test' and metric == 'dice'")
    classes = tables["classes"].query("experiment == 'good' and role == 'test'")
    means = classes.groupby("class_id")["dice"].mean()
    found = lines.query("averaging == 'slide'").set_index("class_id")["mean"]
    assert found.sort_index().tolist() == pytest.approx(means.tolist(), nan_ok=True)
    assert tables["experiments"].query("metric == 'mpq' and averaging == 'pooled'")["mean"].notna().all()


def test_labels_of_another_program_are_gathered_like_any_others(tmp_path: Path, cohort: Any) -> None:
    whole = type(cohort)(tmp_path)
    rng = np.random.default_rng(1)
    for number in range(2):
        image, labels, classes = blobs(rng)
        row = whole.add_slide(f"s{number}", image, labels, classes)
        whole.predict("mesmer", row, *worsen(rng, labels, classes), external=True)
    whole.split({"s0": "test", "s1": "test"})
    place = whole.paths.reports()
    gather_reports("x", list(whole.runs.values()), whole.rows, [], [], whole.paths.root, place)
    frames = {name: pd.read_parquet(place / f"{name}.parquet") for name in REPORT_TABLES}
    assert frames["slides"]["tissue"].isna().all()
    assert frames["slides"][["map", "hv_mse", "ece", "dice_binary"]].isna().all(axis=None)
    assert frames["slides"][["pq", "f1_d", "dice_macro"]].notna().all(axis=None)
    assert len(frames["confusion"]) == 2 * 16
    assert frames["curves"].empty
    assert frames["calibration"].empty
    pooled = frames["experiments"].query("averaging == 'pooled'").set_index("metric")["mean"]
    assert pooled[["map", "ece", "map_won", "dice_binary"]].isna().all()
    assert pooled[["pq", "f1_d", "mpq", "dice_macro", "class_accuracy"]].notna().all()
    recorded = table_metadata(pq.read_table(place / "slides.parquet"))["made_from"]
    assert recorded["encoder_weights"] == {"mesmer": ["labels"]}
    assert recorded["evaluation"]["mesmer"]["convention"] == "pannuke"


def test_a_file_of_another_version_is_told(tmp_path: Path, cohort: Any) -> None:
    run = cohort.runs["good"]
    for name in ("slide", "classes", "confusion", "scores"):
        table = pq.read_table(run.metrics["s1"] / f"{name}.parquet")
        about = json.loads(table.schema.metadata[b"slideloom"])
        about |= {"schema_version": 99} if name == "confusion" else {}
        pq.write_table(table.replace_schema_metadata({"slideloom": json.dumps(about)}), tmp_path / f"{name}.parquet")
    with pytest.raises(SlideloomError, match="slide_confusion version 99"):
        gather_slides([replace(run, metrics={"s1": tmp_path}, biology={})], cohort.rows)


def test_the_tables_do_not_depend_on_the_order_of_slides(cohort: Any, tmp_path: Path) -> None:
    turned = [
        replace(run, metrics=dict(reversed(run.metrics.items())), biology=dict(reversed(run.biology.items())))
        for run in cohort.runs.values()
    ]
    for name, runs in (("a", list(cohort.runs.values())), ("b", turned)):
        gather_reports("study", runs, cohort.rows, [], [], cohort.paths.root, tmp_path / name)
    for name in REPORT_TABLES:
        first, second = ((tmp_path / place / f"{name}.parquet").read_bytes() for place in "ab")
        assert first == second, name


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
        cohort.record("biology", "good/0", {"s0": ok, "s1": {"status": "failed"}}),
    ]
    for record in records:
        cohort.records.remove(record)
    good, poor = runs_of(config, cohort.rows, cohort.paths, records)
    assert sorted(good.metrics) == ["s0", "s2"]
    assert good.history == cohort.paths.model("good", "0") / "history.parquet"
    assert (poor.random_weights, good.random_weights, dict(poor.metrics), poor.history) == (True, False, {}, None)
    assert dict(good.biology) == {"s0": cohort.paths.biology("good", "0", "s0")}
    assert dict(poor.biology) == {}


def test_labels_of_another_program_have_neither_encoder_nor_history(cohort: Any) -> None:
    config = StudyConfig.model_validate(
        {
            "study": "x",
            "slides": "slides.tsv",
            "grids": {"g": {"image": "he", "tile_px": 64}},
            "splits": {"s": {}},
            # Its name is that of a run that was trained.
            "experiments": {"good": {"labels": "mesmer/{slide}.tif", "grid": "g", "split": "s"}},
        }
    )
    ok = {"status": "ok", "digest": "d"}
    records = [cohort.record(stage, "good/0", {"s1": ok}, "9-9") for stage in ("metrics", "biology", "train")]
    for record in records:
        cohort.records.remove(record)
    (run,) = runs_of(config, cohort.rows, cohort.paths, records)
    assert (run.random_weights, run.history) == (False, None)
    assert (list(run.metrics), list(run.biology)) == (["s1"], ["s1"])
