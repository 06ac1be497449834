"""The lines of docs/questions.md run, pandas and DuckDB agree, and plain loops give the same answers."""

from __future__ import annotations

import ast
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.reports.conftest import GRID_CLASSES

from slideloom.artefacts.tables import TableSchema, write_table
from slideloom.metrics.detail_schemas import TILES
from slideloom.reports.schemas import REPORT_TABLES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "questions.md"
SECTIONS = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
LEVELS = {"plain": 0.55, "augmented": 0.3, "sp_classes": 0.62, "he_classes": 0.27, "sp_16": 0.5}
NAMES = ("background", *GRID_CLASSES.names[:4])
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


def filled(schema: TableSchema, **known: Any) -> dict[str, Any]:
    """A row with these values; elsewhere null, or something where null may not be."""
    plain = {pa.string(): "x", pa.bool_(): False, pa.float64(): 0.5}
    return {column.name: None if column.null else plain.get(column.type, 1) for column in schema.columns} | known


@pytest.fixture(scope="module")
def study(grid: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of five experiments, with two platforms, failures, costs and biology."""
    root = tmp_path_factory.mktemp("study")
    reports = root / "results" / "reports"
    grid(LEVELS, random_weights=("sp_16",)).write(reports)
    rng = np.random.default_rng(2)

    def write(name: str, rows: Rows) -> None:
        write_table(REPORT_TABLES[name], rows, reports / f"{name}.parquet")

    rows = {name: pq.read_table(reports / f"{name}.parquet").to_pylist() for name in ("experiments", "comparisons")}
    # One whose p value is small, and whose interval holds 0.
    row = next(row for row in rows["comparisons"] if row["metric"] == "dice_macro" and row["p_adjusted"] >= 0.05)
    row |= {"p_adjusted": 0.01, "ci_low": -1.0, "ci_high": 1.0}
    # Validation, which no answer may mix with the test.
    for name, own in rows.items():
        write(name, own + [row | {"role": "val"} for row in own[::2]])

    write("groups", [
        filled(REPORT_TABLES["groups"], experiment=experiment, role=role, by=by, group=group, metric=metric,
               mean=rng.random(), n=int(rng.integers(1, 9)), ci_low=rng.random() if group == "a" else None)
        for experiment in LEVELS for role in ("test", "val") for by in ("platform", "tissue") for group in "ba"
        for metric in ("pq", "aji")
    ])  # fmt: skip
    write("experiment_classes", [
        filled(REPORT_TABLES["experiment_classes"], experiment=experiment, role=role, class_id=number, class_name=name,
               metric=metric, averaging=averaging, mean=None if name == "Macrophage" else rng.random())
        for experiment in LEVELS for role in ("test", "val") for number, name in enumerate(NAMES)
        for metric in ("dice", "iou") for averaging in ("pooled", "slide")
    ])  # fmt: skip
    write("confusion", [
        filled(REPORT_TABLES["confusion"], experiment=experiment, fold=fold, slide_id=slide, role=role,
               true_class_id=true, true_class_name=NAMES[true], pred_class_id=pred, pred_class_name=NAMES[pred],
               nuclei=None if true == pred == 0 else int(rng.integers(0, 60 if true == pred else 9)))
        for experiment in ("sp_classes", "plain")
        for slide, fold, role in (("s0", "0", "test"), ("s0", "1", "test"), ("s1", "0", "test"), ("s2", "0", "val"))
        for true in range(5) for pred in range(5)
    ])  # fmt: skip
    write("curves", [
        filled(REPORT_TABLES["curves"], experiment=experiment, role=role, of=of, threshold=threshold / 255,
               class_id=number, class_name=None if number is None else NAMES[number], exact=threshold > 127,
               precision=float(np.clip(threshold / 240 + rng.normal(0, 0.05) - (number or 0) / 9, 0, 1)),
               recall=1 - threshold / 255)
        for experiment in ("sp_classes", "plain") for role in ("test", "val")
        for of, number in (("nucleus", None), *(("class", number) for number in range(5)))
        for threshold in range(0, 256, 3)
    ])  # fmt: skip
    failed = [("s1", "facts", "truncated"), ("s2", "facts", "truncated"), ("s5", "facts", "lost"), ("s3", "split", "x")]
    write("failures", [
        filled(REPORT_TABLES["failures"], item=slide, stage=stage, reason_code=code) for slide, stage, code in failed
    ])  # fmt: skip
    spent = [("maps", 7200.0, 900.0), ("maps", 1800.0, 700.0), ("facts", 3.0, None), ("tissue", 9.0, 80.0)]
    write("costs", [
        filled(REPORT_TABLES["costs"], rule=rule, unit=f"{number}-0", seconds=seconds, max_rss_mb=memory)
        for number, (rule, seconds, memory) in enumerate(spent)
    ])  # fmt: skip
    of_slides = [("sp_classes", "0", "s0"), ("sp_classes", "1", "s0"), ("sp_classes", "0", "s1"), ("plain", "0", "s0")]
    write("biology", [
        filled(REPORT_TABLES["biology"], experiment=experiment, fold=fold, slide_id=slide,
               scope="class" if name else "all", class_id=NAMES.index(name) if name else None,
               class_name=name or "all", n=int(rng.integers(0, 50)),
               density_per_mm2=None if slide == "s1" else rng.random(), area_median_um2=rng.random())
        for experiment, fold, slide in of_slides for name in (*NAMES, "")
    ])  # fmt: skip
    write("neighbours", [
        filled(REPORT_TABLES["neighbours"], experiment=experiment, fold=fold, slide_id=slide, scope="class",
               class_id=NAMES.index(name), class_name=name, to_class_id=NAMES.index(other), to_class_name=other,
               distance_median_um=None if fold == "1" else 9 * rng.random())
        for experiment, fold, slide in of_slides for name in NAMES[1:4] for other in NAMES[1:]
    ])  # fmt: skip
    tested = [row["slide_id"] for row in pq.read_table(reports / "slides.parquet").to_pylist()
              if row["experiment"] == "sp_classes" and row["role"] == "test"]  # fmt: skip
    for slide in (tested[0], tested[1], "not_tested"):
        tiles = []
        for number in range(8):
            tp, fp, fn = rng.integers(0, 4, 3).tolist()
            tiles.append(
                filled(TILES, slide_id=slide, tile=number, y_px=256 * number, n_gt=tp + fn, n_pred=tp + fp, tp=tp)
                | {"fp": fp, "fn": fn, "pq": 0.8 * tp / (tp + (fp + fn) / 2) if tp + fp + fn else None}
            )
        write_table(TILES, tiles, root / "results" / "metrics" / "sp_classes" / "0" / slide / "tiles.parquet")
    return root


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are not null."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def ours(rows: Rows, **wanted: Any) -> Rows:
    """Rows of one experiment with these values."""
    wanted = {"experiment": "sp_classes"} | wanted
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def picked(rows: Rows, *names: str) -> Rows:
    """These columns."""
    return [{name: row[name] for name in names} for row in rows]


Tables = Callable[[str], Rows]


def _best(tables: Tables) -> Rows:
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


def _shown(tables: Tables) -> Rows:
    rows = [row for row in tables("comparisons") if row["metric"] == "dice_macro" and row["role"] == "test"]
    rows.sort(key=lambda row: (row["p_value"], row["experiment_a"], row["experiment_b"]))
    found = []
    for row in rows:
        shown = row["p_adjusted"] < 0.05 and row["ci_low"] * row["ci_high"] > 0
        pair = {name: row[name] for name in ("experiment_a", "experiment_b")}
        found.append(pair | {"shown": shown, "could_be": row["p_adjusted_smallest"] < 0.05})
    assert {row["shown"] for row in found} == {True, False}, "both are asked for"
    return found


def _platforms(tables: Tables) -> Rows:
    found = [row for row in tables("groups") if (row["role"], row["by"], row["metric"]) == ("test", "platform", "pq")]
    assert len(found) == 10
    return picked(sorted(found, key=lambda row: (row["experiment"], row["group"])), "group", "n", "mean", "ci_low")


def _worst(tables: Tables) -> Rows:
    tested = {row["slide_id"] for row in ours(tables("slides"), role="test", fold="0")}
    tiles = [row | {"wrong": row["fp"] + row["fn"]} for row in tables("tiles") if row["slide_id"] in tested]
    tiles = [row for row in tiles if row["n_gt"] + row["n_pred"] > 2]
    tiles.sort(key=lambda row: (row["pq"], -row["wrong"], row["slide_id"], row["tile"]))
    return picked(tiles[:5], "slide_id", "y_px", "wrong", "pq")


def _classes(tables: Tables) -> Rows:
    rows = ours(tables("experiment_classes"), role="test", metric="dice", averaging="pooled")
    rows = [row for row in rows if row["class_id"]]
    rows.sort(key=lambda row: (row["mean"] is None, row["mean"]))
    assert rows[-1]["mean"] is None, "the undefined one comes last"
    return picked(rows, "class_name", "mean", "n_slides")


def _confused(tables: Tables) -> Rows:
    pairs: Counter[tuple[str, str]] = Counter()
    for row in ours(tables("confusion"), role="test"):
        if row["true_class_id"]:
            pairs[row["true_class_name"], row["pred_class_name"]] += row["nuclei"]
    whole: Counter[str] = Counter()
    for (true, _), n in pairs.items():
        whole[true] += n
    found = [
        {"true_class_name": true, "pred_class_name": pred, "nuclei": n, "share": n / whole[true]}
        for (true, pred), n in pairs.items()
        if true != pred and n
    ]
    return sorted(found, key=lambda row: (-row["share"], row["true_class_name"], row["pred_class_name"]))[:5]


def _thresholds(tables: Tables) -> Rows:
    found: dict[int, dict[str, Any]] = {}
    for row in ours(tables("curves"), role="val", of="class", exact=True):
        if row["class_id"] and row["precision"] >= 0.8:
            found.setdefault(row["class_id"], row)
            if row["threshold"] < found[row["class_id"]]["threshold"]:
                found[row["class_id"]] = row
    assert 0 < len(found) < 4, "some class never gets there"
    return picked([found[number] for number in sorted(found)], "class_name", "threshold", "precision", "recall")


def _converged(tables: Tables) -> Rows:
    found = []
    for key in sorted({(row["experiment"], row["fold"]) for row in tables("training")}):
        rows = [row for row in tables("training") if (row["experiment"], row["fold"]) == key]
        (best,) = [row for row in rows if row["best"]]
        found.append({"experiment": key[0], "fold": key[1], "epoch": best["epoch"], "val_loss": best["val_loss"]})
        found[-1]["last_epoch"] = max(row["epoch"] for row in rows)
    return found


def _costs(tables: Tables) -> Rows:
    return [
        {"stage": "maps", "jobs": 2, "hours": 2.5, "max_rss_mb": 900, "failed": 0, "reasons": None},
        {"stage": "tissue", "jobs": 1, "hours": 0.0025, "max_rss_mb": 80, "failed": 0},
        {"stage": "facts", "jobs": 1, "hours": 3 / 3600, "max_rss_mb": None, "failed": 3, "reasons": "lost, truncated"},
        {"stage": "split", "jobs": 0, "hours": None, "failed": 1, "reasons": "x"},
    ]


def _densities(tables: Tables) -> Rows:
    found = []
    for row in sorted(ours(tables("biology"), scope="class"), key=lambda r: (r["fold"], r["slide_id"], r["class_id"])):
        if row["class_id"]:
            wanted = {name: row[name] for name in ("fold", "slide_id", "class_id")} | {"to_class_name": "Tumor"}
            near = [one["distance_median_um"] for one in ours(tables("neighbours"), **wanted)]
            found += picked([row], "slide_id", "class_name", "n", "density_per_mm2")
            found[-1]["distance_median_um"] = near[0] if near else None
    assert {row["distance_median_um"] is None for row in found} == {True, False}
    return found


ANSWERS = (_best, _shown, _platforms, _worst, _classes, _confused, _thresholds, _converged, _costs, _densities)


def test_the_page_asks_ten_questions_twice() -> None:
    assert [section.split(".")[0] for section in SECTIONS[1:]] == [str(number) for number in range(1, 11)]
    assert [len(blocks(section)) for section in SECTIONS] == [1] + [2] * 10
    for section in SECTIONS[1:]:
        by_pandas, by_duckdb = blocks(section)
        assert "pd." in by_pandas
        assert "duckdb" not in by_pandas
        assert by_duckdb.startswith('duckdb.sql(f"""')
        assert "pd." not in by_duckdb


@pytest.mark.parametrize("number", range(1, 11))
def test_both_ways_answer_alike_and_as_a_plain_loop_does(
    number: int, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study)
    names: dict[str, Any] = {}
    run(blocks(SECTIONS[0])[0], names)
    by_pandas, by_duckdb = (run(code, names) for code in blocks(SECTIONS[number]))
    assert isinstance(by_pandas, pd.DataFrame)
    assert isinstance(by_duckdb, pd.DataFrame)
    assert len(by_pandas)
    by_pandas = by_pandas.reset_index(drop=True)
    pd.testing.assert_frame_equal(by_pandas, by_duckdb, check_dtype=False, rtol=1e-12, atol=0)

    def tables(name: str) -> Rows:
        folder = study / "results"
        places = [folder / "reports" / f"{name}.parquet"] if name != "tiles" else sorted(folder.rglob("tiles.parquet"))
        return [row for place in places for row in pq.read_table(place).to_pylist()]

    wanted = ANSWERS[number - 1](tables)
    assert len(wanted) == len(by_pandas)
    for row, found in zip(wanted, by_pandas.to_dict("records"), strict=True):
        for name, value in row.items():
            if value is None:
                assert found[name] is None or math.isnan(found[name]), name
            else:
                assert found[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), name
