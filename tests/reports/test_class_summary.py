"""Figures by class, averaged and pooled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.reports.test_aggregate import pick

from slideloom.metrics.averaging import mean_by_class
from slideloom.metrics.detection import ClassDetection
from slideloom.metrics.panoptic import Panoptic
from slideloom.metrics.schemas import CLASS_FIGURES
from slideloom.metrics.semantic import PixelConfusion
from slideloom.reports.class_summary import CLASS_COMPARED, summarise_classes
from slideloom.reports.pooled import PooledClasses

NAMES = ("background", "tumour", "stroma", "rare")
_TYPES = {column.name: column.type for column in CLASS_FIGURES}
_COUNTED = ("gt_pixels", "pred_pixels", "tp_pixels", "tp", "fp", "fn", "iou_sum")
_DETECTED = ("tp_d", "fp_paired_d", "fn_paired_d", "fp_alone_d", "fn_alone_d")


def class_row(slide: str, patient: str, class_id: int, rng: np.random.Generator, fold: str = "0") -> dict[str, Any]:
    """A row of classes.parquet whose figures follow from its counts; class 3 is predicted and never true."""
    tp, fp, fn = (int(value) for value in rng.integers(0, 9, 3))
    tp, fn = (tp, fn) if class_id != 3 else (0, 0)
    pixels = PixelConfusion(10 * tp, 10 * fp, 10 * fn, 0)
    row = {"slide_id": slide, "patient_id": patient, "fold": fold, "class_id": class_id, "class_name": NAMES[class_id]}
    row |= {"gt_pixels": pixels.tp + pixels.fn, "pred_pixels": pixels.tp + pixels.fp, "tp_pixels": pixels.tp}
    row |= {name: getattr(pixels, name) for name in ("dice", "iou", "precision", "recall")}
    row |= {"gt_fraction": 0.1 * class_id, "pred_fraction": 0.2, "ap_won": rng.uniform() if class_id != 3 else None}
    if not class_id:
        return row
    found = Panoptic(tp, fp, fn, 0.8 * tp)
    row |= {"tp": tp, "fp": fp, "fn": fn, "iou_sum": found.iou_sum, "pq": found.pq, "dq": found.dq, "sq": found.sq}
    counts = ClassDetection(*(int(value) for value in rng.integers(0, 5, 5)))
    row |= dict(
        zip(_DETECTED, (counts.tp, counts.fp_paired, counts.fn_paired, counts.fp_alone, counts.fn_alone), strict=True)
    )
    return row | {"f1": found.dq, "f1_d": counts.f1, "f1_d_hovernet": counts.f1_hovernet} | {
        "precision_d": counts.precision, "recall_d": counts.recall,
    }  # fmt: skip


def as_table(rows: list[dict[str, Any]]) -> pa.Table:
    text = {name: pa.string() for name in ("slide_id", "patient_id", "fold")}
    return pa.Table.from_pylist(rows, pa.schema([*text.items(), *_TYPES.items()]))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(6)
    return [class_row(f"s{k}", f"P{k // 2}", class_id, rng) for k in range(6) for class_id in range(4)]


def test_pooled_figures_are_those_of_the_summed_counts(rows: list[dict[str, Any]]) -> None:
    lines, _ = summarise_classes(as_table(rows))
    for class_id in (1, 2, 3):
        own = [row for row in rows if row["class_id"] == class_id]
        total = {name: sum(row[name] for row in own) for name in (*_COUNTED, *_DETECTED)}
        pixels = PixelConfusion(
            total["tp_pixels"], total["pred_pixels"] - total["tp_pixels"], total["gt_pixels"] - total["tp_pixels"], 0
        )
        one = Panoptic(total["tp"], total["fp"], total["fn"], total["iou_sum"])
        counts = ClassDetection(*(total[name] for name in _DETECTED))
        wanted = {name: getattr(pixels, name) for name in ("dice", "iou", "precision", "recall")}
        wanted |= {"pq": one.pq, "dq": one.dq, "sq": one.sq, "f1_d": counts.f1, "f1_d_hovernet": counts.f1_hovernet}
        wanted |= {"precision_d": counts.precision, "recall_d": counts.recall}
        for metric, value in wanted.items():
            line = pick(lines, class_id=class_id, metric=metric, averaging="pooled")
            assert line["mean"] == pytest.approx(value), (class_id, metric)
            assert line["class_name"] == NAMES[class_id]
            if value is not None:
                assert (line["n"], line["n_patients"]) == (6, 3)
                assert line["ci_low"] <= line["mean"] <= line["ci_high"]
    shares = [pick(lines, class_id=k, metric="gt_fraction", averaging="pooled")["mean"] for k in range(4)]
    every = [sum(row["gt_pixels"] for row in rows if row["class_id"] == k) for k in range(4)]
    assert shares == pytest.approx((np.array(every) / sum(every)).tolist())


def test_mpq_pooled_is_the_mean_over_classes_that_the_truth_holds(rows: list[dict[str, Any]]) -> None:
    nuclei = [row for row in rows if row["class_id"]]
    images = [
        {
            row["class_id"]: Panoptic(row["tp"], row["fp"], row["fn"], row["iou_sum"])
            for row in nuclei[3 * k : 3 * k + 3]
        }
        for k in range(6)
    ]
    for convention in ("pannuke", "stardist"):
        _, over = summarise_classes(as_table(rows), convention=convention)
        wanted = mean_by_class(images, "pooled", convention=convention).mpq
        assert over["mpq"]["mean"] == pytest.approx(wanted)
        assert (over["mpq"]["n"], over["mpq"]["n_patients"]) == (6, 3)
    assert over["dice_macro"]["mean"] != pytest.approx(over["dice_macro_with_background"]["mean"])


def test_means_skip_what_is_undefined(rows: list[dict[str, Any]]) -> None:
    lines, _ = summarise_classes(as_table(rows))
    for metric in CLASS_COMPARED:
        values = [row.get(metric) for row in rows if row["class_id"] == 3]
        there = [value for value in values if value is not None]
        line = pick(lines, class_id=3, metric=metric, averaging="slide")
        assert line["n"] == len(there)
        assert line["mean"] == (pytest.approx(np.mean(there)) if there else None)
    of_background = pick(lines, class_id=0, metric="pq", averaging="patient")
    assert (of_background["n"], of_background["mean"]) == (0, None)
    assert {line["averaging"] for line in lines} == {"slide", "patient", "pooled"}


def test_folds_and_given_figures(rows: list[dict[str, Any]]) -> None:
    rng = np.random.default_rng(7)
    more = [*rows, *(class_row("s0", "P0", class_id, rng, "1") for class_id in range(4))]
    given = {"n": 6, "n_slides": 6, "n_patients": 3, "mean": 0.5, "std": None, "ci_low": None, "ci_high": None}
    lines, _ = summarise_classes(as_table(more), {(1, "ap_won"): given})
    by_fold = [
        np.mean([row["dice"] for row in more if row["class_id"] == 1 and row["fold"] == f and row["dice"] is not None])
        for f in "01"
    ]
    line = pick(lines, class_id=1, metric="dice", averaging="fold")
    assert (line["n"], line["mean"], line["ci_low"]) == (2, pytest.approx(np.mean(by_fold)), None)
    assert pick(lines, class_id=1, metric="ap_won", averaging="pooled")["mean"] == 0.5
    assert pick(lines, class_id=1, metric="dice", averaging="pooled")["n"] == 6


def test_slides_without_known_classes_play_no_part(rows: list[dict[str, Any]]) -> None:
    unknown = {name: None for name in CLASS_COMPARED} | {"gt_pixels": None, "tp_pixels": None, "tp": None, "tp_d": None}
    more = [*rows, *(row | unknown | {"slide_id": "t", "patient_id": "T"} for row in rows[:4])]
    lines, over = summarise_classes(as_table(more))
    for metric in ("dice", "pq", "f1_d"):
        line = pick(lines, class_id=1, metric=metric, averaging="pooled")
        assert (line["n"], line["n_patients"]) == (6, 3)
    assert over["mpq"]["n"] == 6
    only = summarise_classes(as_table([row | unknown for row in rows[:4]]))[0]
    line = pick(only, class_id=1, metric="dice", averaging="pooled")
    assert (line["n"], line["mean"]) == (0, None)
    assert pick(only, class_id=1, metric="pred_fraction", averaging="pooled")["mean"] is not None


def test_rows_and_tables_pool_alike(rows: list[dict[str, Any]]) -> None:
    from_rows, from_table = PooledClasses(rows), PooledClasses(as_table(rows))
    assert from_rows.ids == from_table.ids == [0, 1, 2, 3]
    for metric, class_id in (("dice", 1), ("gt_percent", 0), ("class_dice_mean", None), ("mpq", None), ("pq", 9)):
        assert from_rows.figure(metric, class_id) == from_table.figure(metric, class_id)
    assert from_rows.figure("pq", 0) == {}
    assert summarise_classes(as_table([])) == ([], {})
