"""Averages and intervals against plain loops and known limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slideloom.metrics.schemas import SCORES
from slideloom.reports.aggregate import main_role, summarise_experiments

COUNTS = ("tp", "fp", "fn", "iou_sum", "gt_pixels", "pred_pixels", "tp_pixels")


def row(experiment: str, slide: str, pq: float | None, **more: Any) -> dict[str, Any]:
    """A row of slides.parquet."""
    base = dict.fromkeys(SCORES) | dict.fromkeys(COUNTS, 0)
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
