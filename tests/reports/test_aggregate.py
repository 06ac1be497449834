"""Averages and intervals against plain loops and known limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slideloom.metrics.averaging import mean_panoptic
from slideloom.metrics.detection import Detection
from slideloom.metrics.panoptic import Panoptic
from slideloom.metrics.schemas import COMPARED
from slideloom.metrics.semantic import PixelConfusion
from slideloom.reports.aggregate import main_role, summarise_experiments

COUNTS = ("tp", "fp", "fn", "iou_sum", "gt_pixels", "pred_pixels", "tp_pixels")


def row(experiment: str, slide: str, pq: float | None, **more: Any) -> dict[str, Any]:
    """A row of slides.parquet."""
    base = dict.fromkeys(COMPARED) | dict.fromkeys(COUNTS, 0)
    about = {"experiment": experiment, "fold": "0", "slide_id": slide, "patient_id": slide, "role": "test"}
    return {**base, **about, "random_weights": False, "pq": pq, **more}


def pick(lines: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """The one line with these values."""
    found = [line for line in lines if all(line[name] == value for name, value in wanted.items())]
    assert len(found) == 1
    return found[0]


def test_averages_name_what_was_averaged() -> None:
    rows = [row("a", "s1", 0.2, patient_id="P"), row("a", "s2", 0.4, patient_id="P"), row("a", "s3", 0.9)]
    lines = summarise_experiments([*rows, row("a", "s4", None), row("a", "s5", 0.1, role="val")])
    slide = pick(lines, metric="pq", averaging="slide", role="test")
    assert (slide["n"], slide["n_slides"], slide["n_patients"]) == (3, 3, 2)
    assert slide["mean"] == pytest.approx(0.5)
    assert slide["std"] == pytest.approx(np.std([0.2, 0.4, 0.9], ddof=1))
    patient = pick(lines, metric="pq", averaging="patient", role="test")
    assert (patient["n"], patient["mean"]) == (2, pytest.approx(0.6))
    one = pick(lines, metric="pq", averaging="slide", role="val")
    assert (one["n"], one["std"], one["ci_low"], one["ci_high"]) == (1, None, None, None)
    nothing = pick(lines, metric="aji", averaging="slide", role="test")
    assert (nothing["n"], nothing["mean"]) == (0, None)
    assert not [line for line in lines if line["averaging"] == "fold"]


def test_folds_are_averaged_when_there_are_several() -> None:
    rows = [row("a", "s1", 0.2), row("a", "s2", 0.4), row("a", "s3", 0.9, fold="1")]
    line = pick(summarise_experiments(rows), metric="pq", averaging="fold")
    assert (line["n"], line["mean"]) == (2, pytest.approx(0.6))


def test_pooled_figures_come_from_summed_counts() -> None:
    rows = [
        row("a", "s1", None, tp=8, fp=2, fn=0, iou_sum=6.0, gt_pixels=80, pred_pixels=90, tp_pixels=70),
        row("a", "s2", None, tp=0, fp=0, fn=10, iou_sum=0.0, gt_pixels=100, pred_pixels=0, tp_pixels=0),
    ]
    lines = summarise_experiments(rows)
    values = {m: pick(lines, metric=m, averaging="pooled")["mean"] for m in ("pq", "dq", "sq", "precision", "recall")}
    expected = {"pq": 6 / 14, "dq": 8 / 14, "sq": 0.75, "precision": 0.8, "recall": 8 / 18}
    assert values == pytest.approx(expected)
    assert pick(lines, metric="f1_pixel", averaging="pooled")["mean"] == pytest.approx(140 / 270)
    interval = pick(lines, metric="pq", averaging="pooled")
    assert (interval["ci_low"], interval["ci_high"]) == (0.0, pytest.approx(2 * 6 / 18))


def of_counts(tp: int, fp: int, fn: int, iou_sum: float) -> dict[str, Any]:
    """Columns of a slide with these matches."""
    one = Panoptic(tp, fp, fn, iou_sum)
    counts = {"n_gt": tp + fn, "n_pred": tp + fp, "tp": tp, "fp": fp, "fn": fn, "iou_sum": iou_sum}
    return counts | {"pq": one.pq, "dq": one.dq, "sq": one.sq, "bpq": one.pq}


def test_image_and_tissue_averaging_are_pannukes() -> None:
    rng = np.random.default_rng(3)
    images, tissues, rows = [], [], []
    for k in range(12):
        tp, fp, fn = (int(value) for value in rng.integers(0, 6, 3))
        tp, fn = (0, 0) if k % 4 == 0 else (tp, fn)  # an image without true nuclei
        images.append(Panoptic(tp, fp, fn, tp * 0.7))
        tissues.append("Colon" if k < 5 else "Breast" if k < 8 else "Skin")
        rows.append(row("a", f"s{k:02}", None) | of_counts(tp, fp, fn, tp * 0.7) | {"tissue": tissues[-1]})
    lines = summarise_experiments(rows)
    for averaging in ("image", "tissue"):
        wanted = mean_panoptic(images, averaging, tissues=tissues)
        found = {metric: pick(lines, metric=metric, averaging=averaging) for metric in ("pq", "dq", "sq", "bpq")}
        means = {metric: line["mean"] for metric, line in found.items()}
        assert means == pytest.approx({"pq": wanted.pq, "dq": wanted.dq, "sq": wanted.sq, "bpq": wanted.pq})
        assert found["pq"]["n_slides"] == wanted.n
        assert found["pq"]["ci_low"] < found["pq"]["mean"] < found["pq"]["ci_high"]
    assert pick(lines, metric="pq", averaging="tissue")["n"] == 3
    assert not [line for line in lines if line["averaging"] in ("image", "tissue") and line["metric"] == "aji"]
    without = summarise_experiments([one | {"tissue": None} for one in rows])
    assert {line["averaging"] for line in without} == {"slide", "patient", "pooled", "image"}


def test_pooled_figures_of_every_kind_are_those_of_one_large_slide() -> None:
    rng = np.random.default_rng(4)
    names = [
        "n_gt", "n_pred", "tp_50", "tp_60", "tp_70", "tp_80", "tp_90", "tp_d", "fp_d", "fn_d", "gt_pixels",
        "pred_pixels_binary", "tp_pixels_binary", "boundary_gt_pixels", "boundary_pred_pixels", "boundary_gt_near",
        "boundary_pred_near",
    ]  # fmt: skip
    rows = []
    for k in range(6):
        counts = dict(zip(names, (int(value) for value in rng.integers(1, 9, len(names))), strict=True))
        counts |= {"n_gt": counts["n_gt"] + 20, "n_pred": counts["n_pred"] + 20, "tp": 4}
        counts |= {"fp": counts["n_pred"] - 4, "fn": counts["n_gt"] - 4}
        rows.append(row("a", f"s{k}", None, **counts))
    total = {name: sum(one[name] for one in rows) for name in names}
    lines = summarise_experiments(rows)
    found = {line["metric"]: line["mean"] for line in lines if line["averaging"] == "pooled"}
    for iou in (50, 60, 70, 80, 90):
        tp = total[f"tp_{iou}"]
        one = Panoptic(tp, total["n_pred"] - tp, total["n_gt"] - tp, 0.0)
        assert (found[f"f1_{iou}"], found[f"ap_{iou}"]) == (pytest.approx(one.dq), pytest.approx(one.ap))
    assert found["f1_mean"] == pytest.approx(np.mean([found[f"f1_{iou}"] for iou in (50, 60, 70, 80, 90)]))
    assert found["ap_mean"] == pytest.approx(np.mean([found[f"ap_{iou}"] for iou in (50, 60, 70, 80, 90)]))
    detected = Detection(total["tp_d"], total["fp_d"], total["fn_d"])
    wanted = {"f1_d": detected.f1, "precision_d": detected.precision, "recall_d": detected.recall}
    tp = total["tp_pixels_binary"]
    pixels = PixelConfusion(tp, total["pred_pixels_binary"] - tp, total["gt_pixels"] - tp, 0)
    wanted |= {f"{figure}_binary": getattr(pixels, figure) for figure in ("dice", "iou", "precision", "recall")}
    precision = total["boundary_pred_near"] / total["boundary_pred_pixels"]
    recall = total["boundary_gt_near"] / total["boundary_gt_pixels"]
    near = total["boundary_gt_near"] + total["boundary_pred_near"]
    both = total["boundary_gt_pixels"] + total["boundary_pred_pixels"]
    wanted |= {"boundary_precision": precision, "boundary_recall": recall, "surface_dice": near / both}
    wanted |= {"boundary_f1": 2 * precision * recall / (precision + recall)}
    assert {metric: found[metric] for metric in wanted} == pytest.approx(wanted)


def test_pooled_f1_is_left_out_where_pairs_count_twice() -> None:
    counts = {"n_gt": 3, "n_pred": 4, "tp": 3, "fp": 2, "fn": 1, **dict.fromkeys(("tp_50", "tp_60"), 3)}
    lines = summarise_experiments([row("a", "s1", None, **counts)])
    line = pick(lines, metric="f1_50", averaging="pooled")
    assert (line["mean"], line["n"]) == (None, 0)
    assert pick(lines, metric="dq", averaging="pooled")["mean"] == pytest.approx(6 / 9)


def test_an_outline_on_one_side_alone_is_a_boundary_f1_of_nought() -> None:
    counts = {"boundary_gt_pixels": 9, "boundary_pred_pixels": 0, "boundary_gt_near": 0, "boundary_pred_near": 0}
    lines = summarise_experiments([row("a", "s1", None, **counts)])
    found = {line["metric"]: line["mean"] for line in lines if line["averaging"] == "pooled"}
    assert (found["boundary_f1"], found["boundary_recall"], found["boundary_precision"]) == (0.0, 0.0, None)


def test_figures_of_other_tables_are_pooled_where_they_are_given() -> None:
    given = {"n": 2, "n_slides": 2, "n_patients": 1, "mean": 0.4, "std": None, "ci_low": None, "ci_high": None}
    lines = summarise_experiments([row("a", "s1", 0.5), row("b", "s1", 0.5)], {("a", "test", "map"): given})
    (line,) = [line for line in lines if line["metric"] == "map" and line["averaging"] == "pooled"]
    about = {"experiment": "a", "role": "test", "random_weights": False, "metric": "map", "averaging": "pooled"}
    assert line == about | given


def test_the_interval_is_the_bootstrap_over_patients() -> None:
    rng = np.random.default_rng(0)
    patients = [f"P{k % 12}" for k in range(30)]
    values = rng.normal(0.6, 0.1, 30)
    rows = [row("a", f"s{k}", float(v), patient_id=p) for k, (v, p) in enumerate(zip(values, patients, strict=True))]
    line = pick(summarise_experiments(rows), metric="pq", averaging="slide")
    own = [values[k::12] for k in range(12)]
    means = [np.concatenate([own[d] for d in rng.choice(12, 12)]).mean() for _ in range(4000)]
    assert (line["ci_low"], line["ci_high"]) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.006)
    assert line == pick(summarise_experiments(rows[::-1]), metric="pq", averaging="slide") | {
        "mean": pytest.approx(line["mean"]), "std": pytest.approx(line["std"]),
        "ci_low": pytest.approx(line["ci_low"]), "ci_high": pytest.approx(line["ci_high"]),
    }  # fmt: skip


def test_a_slide_of_several_folds_is_one_slide() -> None:
    rows = [row("a", "s1", 0.2), row("a", "s1", 0.6, fold="1"), row("a", "s2", 0.8, tp=1)]
    lines = summarise_experiments(rows)
    slide = pick(lines, metric="pq", averaging="slide")
    assert (slide["n"], slide["n_slides"], slide["mean"]) == (2, 2, pytest.approx(0.6))
    assert pick(lines, metric="pq", averaging="pooled")["n_slides"] == 2
    assert pick(lines, metric="pq", averaging="fold")["mean"] == pytest.approx(0.55)


def test_no_slides_give_no_rows() -> None:
    assert summarise_experiments([]) == []
    assert main_role([]) == ""
    assert main_role([{"role": "train"}, {"role": "val"}]) == "val"


def test_intervals_cover_at_about_their_level() -> None:
    hits = 0
    for seed in range(60):
        values = np.random.default_rng(seed).normal(0.5, 0.1, 25)
        rows = [row("a", f"s{k}", float(v)) for k, v in enumerate(values)]
        line = pick(summarise_experiments(rows), metric="pq", averaging="slide")
        hits += line["ci_low"] <= 0.5 <= line["ci_high"]
    assert hits >= 50
