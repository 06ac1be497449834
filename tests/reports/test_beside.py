"""Ours beside the published figures: right numbers, right pairs, honest gaps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import permutation_test

from slideloom.artefacts.tables import write_table
from slideloom.reports.beside import published_rows
from slideloom.reports.published import REPORTS
from slideloom.reports.schemas import PUBLISHED

LEVELS = {"ce_dice": 0.45, "ce_dice_ft": 0.5, "no_skips": 0.3, "plain": 0.5, "augmented": 0.56, "he_classes": 0.25,
          "sp_classes": 0.6, "he_instances": 0.6, "sp_instances": 0.5, "mean_marker": 0.5}  # fmt: skip


@pytest.fixture(scope="module")
def made(grid: Any) -> tuple[Any, ...]:
    """Tables of a study that ran some of the experiments, and the rows beside the report."""
    study = grid(LEVELS, random_weights=("ce_dice",))
    slides, classes, training = study.rows()
    return slides, classes, training, published_rows("sp_he", slides, classes, training, study.splits)


def pick(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """The one row with these values."""
    found = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    assert len(found) == 1
    return found[0]


def test_every_figure_has_a_row_that_fits_the_schema(made: tuple[Any, ...], tmp_path: Any) -> None:
    rows = made[3]
    assert len(rows) == sum(len(table.figures) for table in REPORTS["sp_he"].tables)
    write_table(PUBLISHED, [{"study": "s"} | row for row in rows], tmp_path / "p.parquet")
    for row in rows:
        assert (row["note"] == "not run here") == (row["experiment"] is not None and row["experiment"] not in LEVELS)


def test_no_report_named_no_rows(made: tuple[Any, ...]) -> None:
    assert published_rows(None, *made[:3]) == []


def test_a_study_without_anything_has_the_published_side_only() -> None:
    rows = published_rows("sp_he", [], [], [])
    assert {row.get("mean") for row in rows} == {None}
    assert {row["note"] for row in rows if row["experiment"]} == {"not run here"}
    said = {row["finding"] for row in rows if row["finding"]}
    assert said == {"cannot be told: not measured here"}
    assert pick(rows, table="2", experiment="ce_dice_ft")["published_difference"] == pytest.approx(0.0135)


def test_means_are_over_folds_and_intervals_over_patients(made: tuple[Any, ...]) -> None:
    slides, _, _, rows = made
    row = pick(rows, table="5", experiment="augmented")
    own = [s for s in slides if s["experiment"] == "augmented"]
    means = [np.mean([s["dice_macro"] for s in own if s["fold"] == fold]) for fold in "012"]
    assert (row["n_slides"], row["n_patients"], row["n_folds"]) == (32, 16, 3)
    assert (row["mean"], row["std"]) == (pytest.approx(np.mean(means)), pytest.approx(np.std(means, ddof=1)))
    assert row["ci_low"] < row["mean"] < row["ci_high"]
    assert (row["published"], row["published_std"], row["published_n"]) == (0.5604, 0.0249, 3)
    assert row["published_low"] < 0.55 < row["published_high"]


def test_differences_are_paired_and_corrected_within_their_table(made: tuple[Any, ...]) -> None:
    slides, _, _, rows = made
    row = pick(rows, table="5", experiment="augmented")
    sums: dict[str, float] = {}
    for s in slides:
        if s["experiment"] in ("plain", "augmented"):
            sign = 1 if s["experiment"] == "augmented" else -1
            sums[s["patient_id"]] = sums.get(s["patient_id"], 0.0) + sign * s["dice_macro"]
    assert row["difference"] == pytest.approx(sum(sums.values()) / 32)
    assert row["n_paired"] == 16
    theirs = permutation_test((np.array(list(sums.values())),), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert row["p_value"] == pytest.approx(theirs.pvalue, abs=0.003)
    assert row["p_adjusted"] == row["p_value"]  # the only difference of its table
    assert row["finding"].startswith("holds: +0.0")
    sp = [pick(rows, table="6", experiment="sp_classes", metric=metric) for metric in ("dice_macro", "dice_rare")]
    assert [one["p_value"] for one in sp] == [0.125, 0.125]  # four patients
    assert [one["p_adjusted"] for one in sp] == [0.25, 0.25]
    assert "with 4 patients no p_adj is below 0.25" in sp[0]["finding"]


def test_a_pair_is_seen_from_its_own_side_whatever_the_order(made: tuple[Any, ...]) -> None:
    slides, classes, training, rows = made
    turned = published_rows("sp_he", slides[::-1], classes[::-1], training)
    for table, experiment in (("3", "ce_dice_ft"), ("6", "sp_classes")):
        one, other = (pick(r, table=table, experiment=experiment, metric="dice_macro") for r in (rows, turned))
        for name in ("difference", "difference_low", "difference_high", "p_adjusted"):
            assert one[name] == pytest.approx(other[name]), name
        assert one["difference"] > 0.1


def test_classes_are_pooled_and_matched_by_name(made: tuple[Any, ...]) -> None:
    _, classes, _, rows = made
    # Cytotoxic T is 6 in the report and 5 in the study, where it is called "Cytotoxic T cells".
    row = pick(rows, row="Virtues, 6 Cytotoxic T cell", metric="dice")
    own = [c for c in classes if c["experiment"] == "sp_classes" and c["class_id"] == 5]
    total = {name: sum(c[name] for c in own) for name in ("gt_pixels", "pred_pixels", "tp_pixels")}
    assert row["class_id"] == 5
    assert row["mean"] == pytest.approx(2 * total["tp_pixels"] / (total["gt_pixels"] + total["pred_pixels"]))
    assert row["ci_low"] < row["mean"] < row["ci_high"]
    percent = pick(rows, row="Virtues, 6 Cytotoxic T cell", metric="pred_percent")
    everything = sum(c["pred_pixels"] for c in classes if c["experiment"] == "sp_classes")
    assert percent["mean"] == pytest.approx(100 * total["pred_pixels"] / everything)
    for kind, table in (("gt_percent", "1"), ("gt_percent", "6")):
        assert sum(r["mean"] for r in rows if (r["table"], r["metric"]) == (table, kind)) == pytest.approx(100)
    dice = [r["mean"] for r in rows if r["metric"] == "dice" and r["experiment"] == "sp_classes"]
    assert len(dice) == 10
    mean = pick(rows, experiment="sp_classes", metric="class_dice_mean_with_background")
    assert mean["mean"] == pytest.approx(np.mean(dice))
    assert mean["note"] == "the published figure is the mean of the printed class Dice"


def test_classes_that_the_study_lacks_are_gaps(made: tuple[Any, ...]) -> None:
    slides, classes, training, _ = made
    fewer = [c for c in classes if c["class_name"] != "Treg"]
    row = pick(published_rows("sp_he", slides, fewer, training), row="Virtues, 8 Treg", metric="dice")
    assert (row.get("mean"), row["class_id"], row["note"]) == (None, None, "the study has no class of this name")
    assert row["published"] == 0.5117


def test_rare_classes_are_those_the_truth_says(made: tuple[Any, ...]) -> None:
    slides, classes, _, rows = made
    own = [c for c in classes if c["experiment"] == "he_classes" and c["class_id"] in (5, 6, 7, 8, 9)]
    true = sum(c["gt_pixels"] for c in classes if c["experiment"] in ("he_classes", "sp_classes"))
    cytotoxic = sum(c["gt_pixels"] for c in classes if c["experiment"] in ("he_classes", "sp_classes")
                    and c["class_id"] == 5) / true  # fmt: skip
    rare = {6, 7, 8, 9} | ({5} if cytotoxic < 0.015 else set())
    by_slide: dict[str, list[float]] = {}
    for c in own:
        if c["class_id"] in rare:
            by_slide.setdefault(c["slide_id"], []).append(c["dice"])
    row = pick(rows, experiment="he_classes", metric="dice_rare")
    assert row["mean"] == pytest.approx(np.mean([np.mean(values) for values in by_slide.values()]))
    assert row["n_slides"] == len([s for s in slides if s["experiment"] == "he_classes"]) == 8


def test_figures_of_the_training_are_told_and_not_tested(made: tuple[Any, ...]) -> None:
    _, _, training, rows = made
    own = [t for t in training if t["experiment"] == "sp_classes"]
    best = pick(rows, experiment="sp_classes", metric="val_dice_macro_best")
    mean = pick(rows, experiment="sp_classes", metric="val_dice_macro_mean")
    dice = [t["val_dice_macro"] for t in own]
    assert best["mean"] == max(dice)
    assert (mean["mean"], mean["std"]) == (pytest.approx(np.mean(dice)), pytest.approx(np.std(dice)))
    assert (mean["n_slides"], mean["n_folds"], mean.get("ci_low")) == (0, 1, None)
    loss = pick(rows, experiment="sp_instances", metric="val_loss")
    assert loss["mean"] == min(t["val_loss"] for t in training if t["experiment"] == "sp_instances")
    assert loss["p_adjusted"] is None
    assert "which no test can judge" in loss["finding"]
    silent = [t | {"val_loss": None, "val_dice_macro": None} for t in training]
    without = published_rows("sp_he", made[0], made[1], silent)
    assert pick(without, experiment="sp_instances", metric="val_loss").get("mean") is None


def test_slides_that_only_validate_are_named(made: tuple[Any, ...]) -> None:
    slides, classes, training, _ = made
    rows = published_rows(
        "sp_he", [s | {"role": "val"} for s in slides], [c | {"role": "val"} for c in classes], training
    )
    assert pick(rows, table="2", experiment="ce_dice")["note"] == "ours are of val slides"


def test_random_weights_are_marked(made: tuple[Any, ...]) -> None:
    marks = {row["experiment"]: row["random_weights"] for row in made[3]}
    assert (marks["ce_dice"], marks["plain"], marks["gamma_045"]) == (True, False, None)
