"""Paired comparisons over slides and folds against plain loops, and what they say in words."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from slideloom.metrics.schemas import COMPARED
from slideloom.reports.comparisons import compare_experiments, verdict
from slideloom.reports.resampling import holm, sign_flip_p


def row(experiment: str, slide: str, pq: float | None, **more: Any) -> dict[str, Any]:
    """A row of slides.parquet."""
    about = {"experiment": experiment, "fold": "0", "slide_id": slide, "patient_id": slide, "role": "test"}
    return dict.fromkeys(COMPARED) | about | {"random_weights": False, "pq": pq, **more}


def pick(lines: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """The one line with these values."""
    found = [line for line in lines if all(line[name] == value for name, value in wanted.items())]
    assert len(found) == 1
    return found[0]


def test_comparisons_are_paired_over_shared_slides_and_patients_stay_whole() -> None:
    rows = [row("a", f"s{k}", 0.5, patient_id=f"P{k // 2}") for k in range(8)]
    rows += [
        row("b", f"s{k}", 0.5 + 0.1 * (k + 1) / 8, patient_id=f"P{k // 2}", random_weights=True) for k in range(2, 8)
    ]
    rows += [row("b", "elsewhere", 0.1), row("c", "other", 0.3)]
    lines = compare_experiments(rows)
    assert {(line["experiment_a"], line["experiment_b"]) for line in lines} == {("a", "b")}
    line = pick(lines, metric="pq")
    assert (line["n"], line["n_patients"], line["random_weights"]) == (6, 3, True)
    assert line["difference"] == pytest.approx(np.mean([0.1 * (k + 1) / 8 for k in range(2, 8)]))
    assert line["mean_b"] - line["mean_a"] == pytest.approx(line["difference"])
    assert line["ci_low"] <= line["difference"] <= line["ci_high"]
    assert line["p_value"] == 0.25  # 2 of 2³ sign patterns
    empty = pick(lines, metric="aji")
    assert (empty["n"], empty["difference"], empty["p_value"]) == (0, None, None)


def test_one_patient_gives_a_difference_but_no_test() -> None:
    rows = [row(name, f"s{k}", value, patient_id="P") for name, value in (("a", 0.2), ("b", 0.5)) for k in range(3)]
    line = pick(compare_experiments(rows), metric="pq")
    assert (line["n"], line["difference"]) == (3, pytest.approx(0.3))
    assert line["ci_low"] is line["p_value"] is None
    assert verdict(line) == "cannot be told: one patient"


def test_no_slides_give_no_comparisons() -> None:
    assert compare_experiments([]) == []


def test_all_pairs_at_once_are_each_as_by_itself() -> None:
    rng = np.random.default_rng(4)
    rows = []
    for name in "abcde":
        for k in range(9):
            missing = rng.random() < 0.15
            rows.append(row(name, f"s{k}", None if missing else float(rng.normal(0.5, 0.1)), patient_id=f"P{k // 2}"))
    lines = [line for line in compare_experiments(rows, metrics=["pq"]) if line["metric"] == "pq"]
    assert len(lines) == 10
    values = {(r["experiment"], r["slide_id"]): r for r in rows if r["pq"] is not None}
    for line in lines:
        a, b = line["experiment_a"], line["experiment_b"]
        shared = [s for s in (f"s{k}" for k in range(9)) if (a, s) in values and (b, s) in values]
        sums: dict[str, float] = {}
        for slide in shared:
            patient = values[a, slide]["patient_id"]
            sums[patient] = sums.get(patient, 0.0) + values[b, slide]["pq"] - values[a, slide]["pq"]
        assert (line["n"], line["n_patients"]) == (len(shared), len(sums))
        assert line["difference"] == pytest.approx(sum(sums.values()) / len(shared))
        assert line["p_value"] == pytest.approx(sign_flip_p(np.array(list(sums.values()))))
        alone = compare_experiments([r for r in rows if r["experiment"] in (a, b)], metrics=["pq"])
        assert (alone[0]["ci_low"], alone[0]["ci_high"]) == pytest.approx((line["ci_low"], line["ci_high"]))
        assert alone[0]["p_adjusted"] == alone[0]["p_value"]
    assert [line["p_adjusted"] for line in lines] == pytest.approx(holm([line["p_value"] for line in lines]).tolist())
    assert {line["n_family"] for line in lines} == {10}


def test_a_family_is_one_role_and_metric() -> None:
    rows = [row(name, f"s{k}", k / 9 + (name == "b") / 10, role=role, aji=0.5)
            for role in ("val", "test") for name in "abc" for k in range(4)]  # fmt: skip
    lines = compare_experiments(rows)
    assert {line["n_family"] for line in lines if line["metric"] in ("pq", "aji")} == {3}
    assert {line["n_family"] for line in lines if line["metric"] == "map"} == {0}


def test_folds_are_paired_and_a_slide_counts_once() -> None:
    rng = np.random.default_rng(8)
    rows = []
    for name, gain in (("a", 0.0), ("b", 0.1)):
        for fold in "012":
            for k in range(4):
                value = float(rng.normal(0.5 + gain, 0.05))
                rows.append(row(name, f"s{fold}{k}", value, fold=fold))
    line = pick(compare_experiments(rows), metric="pq")
    means = {
        n: [np.mean([r["pq"] for r in rows if (r["experiment"], r["fold"]) == (n, f)]) for f in "012"] for n in "ab"
    }
    theirs = ttest_rel(means["b"], means["a"]).confidence_interval(0.95)
    assert (line["n"], line["n_folds"]) == (12, 3)
    assert line["fold_difference"] == pytest.approx(np.mean(means["b"]) - np.mean(means["a"]))
    assert line["fold_std"] == pytest.approx(np.std(np.subtract(means["b"], means["a"]), ddof=1))
    assert (line["fold_ci_low"], line["fold_ci_high"]) == pytest.approx((theirs.low, theirs.high))
    one = pick(compare_experiments([r for r in rows if r["fold"] == "0"]), metric="pq")
    assert (one["n_folds"], one["fold_std"], one["fold_ci_low"]) == (1, None, None)
    assert one["fold_difference"] == pytest.approx(one["difference"])


def test_a_slide_of_several_folds_is_paired_within_its_folds() -> None:
    # Fold 1 is easier, and a has it alone: the difference must not come from that.
    rows = [row("a", "s", 0.4), row("a", "s", 0.9, fold="1"), row("b", "s", 0.5)]
    rows += [row(name, "t", 0.3) for name in "ab"]
    line = pick(compare_experiments(rows), metric="pq")
    assert (line["n"], line["difference"]) == (2, pytest.approx(0.05))
    other = pick(compare_experiments(rows, {"a": "kfold", "b": "holdout"}), metric="pq")
    assert (other["n"], other["n_folds"], other["fold_difference"]) == (2, 0, None)
    assert other["difference"] == pytest.approx((0.5 - 0.65) / 2)


@pytest.mark.parametrize(("metric", "better"), [("pq", "b"), ("hv_mse", "a")])
def test_the_verdict_knows_which_way_is_better(metric: str, better: str) -> None:
    rows = [
        row(name, f"s{k}", None) | {metric: 0.3 + (name == "b") * (0.1 + k / 100)} for name in "ab" for k in range(8)
    ]
    line = pick(compare_experiments(rows), metric=metric)
    assert verdict(line) == f"{better} better, p_adj = 0.0078"
    assert verdict(pick(compare_experiments(rows), metric="aji")) == "cannot be told: no shared slide"


def test_the_verdict_says_when_nothing_could_be_shown() -> None:
    few = [row(name, f"s{k}", 0.3 + (name == "b") / 10) for name in "ab" for k in range(5)]
    line = pick(compare_experiments(few), metric="pq")
    assert (line["p_smallest"], line["p_adjusted_smallest"]) == (0.0625, 0.0625)
    assert verdict(line) == "no difference shown; none could be: with 5 patients no p is below 0.062"
    many = [row(name, f"s{k}", 0.3 + (name == "b") / 10) for name in "abcd" for k in range(6)]
    line = pick(compare_experiments(many), metric="pq", experiment_b="b")
    assert verdict(line) == "no difference shown; none could be: with 6 patients and 6 pairs no p_adj is below 0.19"
    same = [row(name, f"s{k}", k / 10) for name in "ab" for k in range(8)]
    assert verdict(pick(compare_experiments(same), metric="pq")) == "no difference shown, p_adj = 1"


def test_null_differences_are_seldom_called_real() -> None:
    called = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rows = [row(name, f"s{k}", float(rng.normal(0.5, 0.1))) for name in "abcd" for k in range(12)]
        called += any(" better" in verdict(line) for line in compare_experiments(rows, metrics=["pq"]))
    assert called <= 6  # at most 5 % of families in the long run


def test_many_experiments_take_seconds() -> None:
    rng = np.random.default_rng(0)
    rows = [
        row(f"e{e}", f"s{s}", None, fold=str(s % 3))
        | dict(zip(COMPARED, rng.normal(0.5, 0.1, len(COMPARED)).tolist(), strict=True))
        for e in range(27)
        for s in range(35)
    ]
    start = time.process_time()  # of the processor: other work on the machine is not the question
    lines = compare_experiments(rows)
    assert len(lines) == 351 * len(COMPARED)
    assert time.process_time() - start < 40
