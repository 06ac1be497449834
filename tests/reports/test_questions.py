"""The lines of docs/questions.md run, both ways of each question agree, and plain loops give the same answers."""

from __future__ import annotations

import ast
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from slideloom.artefacts.tables import write_table
from slideloom.metrics.biology import biology_rows
from slideloom.metrics.biology_schemas import BIOLOGY
from slideloom.metrics.cell_groups import Nuclei
from slideloom.metrics.tissue_area import PredictedTissue
from slideloom.reports.schemas import CLASSES, COMPARISONS, COSTS, EXPERIMENTS, FAILURES, SLIDES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "questions.md"
SECTIONS = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
LEVELS = {"plain": 0.55, "augmented": 0.3, "sp_classes": 0.62, "he_classes": 0.27, "sp_16": 0.5}
Rows = list[dict[str, Any]]


def blocks(section: str) -> list[str]:
    """Python blocks of a section of the page."""
    return re.findall(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)


def run(code: str, names: dict[str, Any]) -> Any:
    """What the last line of a block evaluates to; None when it is no expression."""
    body = ast.parse(code)
    last = body.body.pop() if isinstance(body.body[-1], ast.Expr) else None
    exec(compile(body, PAGE.name, "exec"), names)
    return eval(compile(ast.Expression(last.value), PAGE.name, "eval"), names) if isinstance(last, ast.Expr) else None


@pytest.fixture(scope="module")
def study(grid: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of five experiments, with two platforms, failures, costs and biology."""
    root = tmp_path_factory.mktemp("study")
    reports = root / "results" / "reports"
    grid(LEVELS, random_weights=("sp_16",)).write(reports)
    slides = pq.read_table(reports / "slides.parquet").to_pylist()
    for row in slides:
        row["platform"] = "a" if row["slide_id"] < "slide_20" else "b"
        if row["slide_id"] == "slide_25":
            row["pq"] = None
    # A slide that a second fold predicted, too.
    slides.append(slides[0] | {"fold": "9", "pq": 0.1})
    write_table(SLIDES, slides, reports / "slides.parquet")
    # Validation, which no answer may mix with the test.
    for schema in (SLIDES, CLASSES, EXPERIMENTS, COMPARISONS):
        rows = pq.read_table(reports / f"{schema.name}.parquet").to_pylist()
        if schema is COMPARISONS:
            # One whose p value is small, and whose interval holds 0.
            row = next(row for row in rows if row["metric"] == "dice_macro" and row["p_adjusted"] >= 0.05)
            row |= {"p_adjusted": 0.01, "ci_low": -1.0, "ci_high": 1.0}
        of_slide = "slide_id" in schema.names
        rows += [row | {"role": "val"} | ({"slide_id": f"v{row['slide_id']}"} if of_slide else {}) for row in rows[::2]]
        write_table(schema, rows, reports / f"{schema.name}.parquet")
    failed = [
        ("s1", "facts", "truncated", "Copy it again"),
        ("s2", "facts", "truncated", ""),
        ("s3", "maps", "lost", "x"),
    ]
    failures = [
        {"study": "grid", "slide_id": slide, "item": slide, "stage": stage, "context": "", "reason_code": code}
        | {"message": "It is", "hint": hint}
        for slide, stage, code, hint in failed
    ]
    write_table(FAILURES, failures, reports / "failures.parquet")
    spent = [
        ("maps", 7200.0, 900.0, 1800.0),
        ("maps", 1800.0, 700.0, None),
        ("facts", 3.0, 80.0, None),
        ("facts", 3.0, None, None),
    ]
    costs = [
        {"study": "grid", "rule": rule, "context": "", "unit": f"{number}-0", "wildcards": "{}", "seconds": seconds}
        | {"max_rss_mb": memory, "gpu_seconds": gpu}
        for number, (rule, seconds, memory, gpu) in enumerate(spent)
    ]
    write_table(COSTS, costs, reports / "costs.parquet")
    rng = np.random.default_rng(2)
    for number, n in enumerate((40, 0, 25)):
        x, y = rng.uniform(0, 1000, (2, n))
        cells = Nuclei(x, y, rng.uniform(5, 99, n), rng.integers(0, 3, n).astype(np.uint8), ("background", "T", "B"))
        tissue = PredictedTissue(0.5, shapely.box(0, 0, 500, 1000)) if number == 2 else None
        place = root / "results" / "metrics" / "sp_classes" / "0" / f"s{number}" / "biology.parquet"
        rows = biology_rows(cells, tissue, [(f"M{number}", x)])
        write_table(BIOLOGY, [{"slide_id": f"s{number}", "image": "sp"} | row for row in rows], place)
    return root


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are not null."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _best(tables: Callable[[str], Rows]) -> Rows:
    slides = [row for row in tables("slides") if row["experiment"] != "sp_16"]
    found = []
    for name in {row["experiment"] for row in slides}:
        by_patient = defaultdict(lambda: defaultdict(list))
        for row in slides:
            if row["experiment"] == name:
                by_patient[row["patient_id"]][row["slide_id"]].append(row["dice_macro"])
        of_patients = [mean(map(mean, values.values())) for values in by_patient.values()]
        found.append({"experiment": name, "mean": mean(of_patients), "n_patients": len(of_patients)})
    return sorted(found, key=lambda row: -row["mean"])


def _shown(tables: Callable[[str], Rows]) -> Rows:
    rows = [row for row in tables("comparisons") if row["metric"] == "dice_macro"]
    rows.sort(key=lambda row: (row["p_value"], row["experiment_a"], row["experiment_b"]))
    found = []
    for row in rows:
        shown = row["p_adjusted"] < 0.05 and row["ci_low"] * row["ci_high"] > 0
        pair = {name: row[name] for name in ("experiment_a", "experiment_b")}
        found.append(pair | {"shown": shown, "could_be": row["p_adjusted_smallest"] < 0.05})
    assert {row["shown"] for row in found} == {True, False}, "both are asked for"
    return found


def _platforms(tables: Callable[[str], Rows]) -> Rows:
    of: dict[tuple[str, str], dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for row in tables("slides"):
        of[row["experiment"], row["platform"]][row["slide_id"]].append(row["pq"])
    means = {key: [mean(values) for values in slides.values()] for key, slides in sorted(of.items())}
    return [
        {"experiment": one, "platform": two, "pq": mean(values), "n_slides": len(values) - values.count(None)}
        for (one, two), values in means.items()
    ]


def _worst(tables: Callable[[str], Rows]) -> Rows:
    rows = [row for row in tables("slides") if row["experiment"] == "sp_classes" and row["pq"] is not None]
    return [{name: row[name] for name in ("slide_id", "pq")} for row in sorted(rows, key=lambda row: row["pq"])[:5]]


def _sums(tables: Callable[[str], Rows]) -> dict[str, np.ndarray]:
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3))
    for row in tables("classes"):
        if row["experiment"] == "sp_classes":
            sums[row["class_name"]] += [row["tp_pixels"], row["gt_pixels"], row["pred_pixels"]]
    return sums


def _classes(tables: Callable[[str], Rows]) -> Rows:
    found = [
        {"class_name": name, "gt_pixels": true, "dice": 2 * both / (true + predicted)}
        for name, (both, true, predicted) in _sums(tables).items()
        if name != "background"
    ]
    return sorted(found, key=lambda row: row["dice"])


def _shares(tables: Callable[[str], Rows]) -> Rows:
    sums = _sums(tables)
    total = sum(sums.values())
    return [
        {"class_name": name, "true_percent": 100 * true / total[1], "predicted_percent": 100 * predicted / total[2]}
        for name, (_, true, predicted) in sums.items()
    ]


def _converged(tables: Callable[[str], Rows]) -> Rows:
    found = []
    for key in sorted({(row["experiment"], row["fold"]) for row in tables("training")}):
        rows = [row for row in tables("training") if (row["experiment"], row["fold"]) == key]
        (best,) = [row for row in rows if row["best"]]
        found.append({"experiment": key[0], "fold": key[1], "epoch": best["epoch"], "val_loss": best["val_loss"]})
        found[-1]["last_epoch"] = max(row["epoch"] for row in rows)
    return found


def _failed(tables: Callable[[str], Rows]) -> Rows:
    return [
        {"stage": "facts", "reason_code": "truncated", "n": 2},
        {"stage": "maps", "reason_code": "lost", "n": 1, "hint": "x"},
    ]


def _costs(tables: Callable[[str], Rows]) -> Rows:
    return [
        {"rule": "maps", "jobs": 2, "hours": 2.5, "max_rss_mb": 900, "gpu_hours": 0.5},
        {"rule": "facts", "jobs": 2, "hours": 6 / 3600, "max_rss_mb": 80, "gpu_hours": None},
    ]


def _densities(tables: Callable[[str], Rows]) -> Rows:
    rng = np.random.default_rng(2)
    found: Rows = []
    for number, n in enumerate((40, 0, 25)):
        x, _ = rng.uniform(0, 1000, (2, n))
        areas, kinds = rng.uniform(5, 99, n), rng.integers(0, 3, n)
        for kind, name in ((1, "T"), (2, "B")):
            own = areas[kinds == kind].tolist()
            row = {"slide_id": f"s{number}", "class_name": name, "n": len(own)}
            row["density_per_mm2"] = float(2 * (x[kinds == kind] <= 500).sum()) if number == 2 else None
            found.append(row | {"area_median_um2": statistics.median(own) if own else None})
    return found


ANSWERS = (_best, _shown, _platforms, _worst, _classes, _shares, _converged, _failed, _costs, _densities)


def test_the_page_asks_ten_questions_twice() -> None:
    assert [section.split(".")[0] for section in SECTIONS[1:]] == [str(number) for number in range(1, 11)]
    assert [len(blocks(section)) for section in SECTIONS] == [1] + [2] * 10


@pytest.mark.parametrize("number", range(1, 11))
def test_both_ways_answer_alike_and_as_a_plain_loop_does(
    number: int, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study)
    names: dict[str, Any] = {}
    run(blocks(SECTIONS[0])[0], names)
    by_pandas, by_arrow = (run(code, names) for code in blocks(SECTIONS[number]))
    assert isinstance(by_pandas, pd.DataFrame)
    assert isinstance(by_arrow, pa.Table)
    assert len(by_pandas)
    by_pandas = by_pandas.reset_index(drop=True)
    pd.testing.assert_frame_equal(by_pandas, by_arrow.to_pandas(), check_dtype=False, rtol=1e-12, atol=0)

    def tables(name: str) -> Rows:
        rows = pq.read_table(study / "results" / "reports" / f"{name}.parquet").to_pylist()
        return [row for row in rows if row.get("role", "test") == "test"]

    wanted = ANSWERS[number - 1](tables)
    assert len(wanted) == len(by_pandas)
    for row, found in zip(wanted, by_pandas.to_dict("records"), strict=True):
        for name, value in row.items():
            if value is None:
                assert math.isnan(found[name]), name
            else:
                assert found[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), name
