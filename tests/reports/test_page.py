"""The page of a hundred slides and twenty experiments: of a bearable size, made in bearable time, whole."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from slideloom.artefacts.tables import Column, TableSchema, write_table
from slideloom.metrics.schemas import COMPARED
from slideloom.reports.html import render_report
from slideloom.reports.page_tables import read_page_tables, series_numbers
from slideloom.reports.schemas import REPORT_TABLES
from slideloom.slides.tables import ClassTable

N_SLIDES, N_EXPERIMENTS = 100, 20
NAMES = ("Stroma", "Tumor", "Macrophage", "Helper T", "Cytotoxic T", "Endothelia", "Other", "Treg", "B cells")
CLASSES = ClassTable(
    tuple(range(1, 10)), NAMES, tuple((25 * k, 90, 250 - 25 * k) for k in range(1, 10)), tuple(() for _ in NAMES)
)
IDS = tuple(range(10))
NAMED = ("background", *NAMES)
EXPERIMENTS = tuple(f"experiment_{k:02}" for k in range(N_EXPERIMENTS))
SLIDES = tuple(f"slide_{k:03}" for k in range(N_SLIDES))
#: Channels of the multiplexed images.
MARKERS = tuple(f"mean_marker_{k:02}" for k in range(40))


def filled(
    schema: TableSchema, known: Mapping[str, Sequence[Any]], extra: Sequence[str] = (), seed: int = 0
) -> pa.Table:
    """A table with these columns, the others drawn: shares, counts, the same text."""
    rng = np.random.default_rng(seed)
    n = len(next(iter(known.values()))) if known else 0
    columns: dict[str, pa.Array] = {}
    for column in (*schema.columns, *(Column(name, pa.float64(), "", "x") for name in extra)):
        if column.name in known:
            columns[column.name] = pa.array(known[column.name], column.type)
        elif pa.types.is_floating(column.type):
            columns[column.name] = pa.array(rng.uniform(0, 1, n))
        elif pa.types.is_integer(column.type):
            columns[column.name] = pa.array(rng.integers(0, 200, n), column.type)
        elif pa.types.is_boolean(column.type):
            columns[column.name] = pa.array(np.zeros(n, bool))
        else:
            columns[column.name] = pa.array(["x"] * n)
    return pa.table(columns)


def crossed(**axes: Sequence[Any]) -> dict[str, list[Any]]:
    """Columns of all combinations."""
    rows = list(itertools.product(*axes.values()))
    return {name: [row[k] for row in rows] for k, name in enumerate(axes)}


def tables() -> dict[str, pa.Table]:
    """Every report table, full."""
    run: dict[str, Sequence[Any]] = {"experiment": EXPERIMENTS, "fold": ["0"], "role": ["test"]}
    each = run | {"slide_id": SLIDES}
    by_class = crossed(**each, class_id=IDS)
    pairs = crossed(**each, true_class_id=IDS, pred_class_id=IDS)
    near = crossed(**each, class_id=IDS[1:], to_class_id=IDS[1:])
    metrics = COMPARED
    levels = [k / 255 for k in range(256)]
    curves = crossed(experiment=EXPERIMENTS, role=["test"], line=range(11), threshold=levels)
    lines = curves.pop("line")
    about = {"of": ["nucleus" if line == 0 else "class" for line in lines],
             "class_id": [None if line == 0 else line - 1 for line in lines],
             "recall": [(1 - level) ** 2 for level in curves["threshold"]],
             "precision": [1 - 0.3 * (1 - level) ** 3 for level in curves["threshold"]]}  # fmt: skip
    couples = list(itertools.combinations(EXPERIMENTS, 2))
    compared = [(a, b, metric) for (a, b), metric in itertools.product(couples, metrics)]
    found = {
        "slides": crossed(**each) | {"platform": ["AB"[k % 2] for k in range(N_SLIDES * N_EXPERIMENTS)]},
        "classes": by_class | {"class_name": [NAMED[k] for k in by_class["class_id"]]},
        "experiments": crossed(
            experiment=EXPERIMENTS, role=["test"], metric=metrics, averaging=["slide", "patient", "pooled"]
        ),
        "groups": crossed(
            experiment=EXPERIMENTS, role=["test"], by=["tissue"], group=[f"tissue {k}" for k in range(19)],
            metric=metrics,
        ),
        "experiment_classes": crossed(
            experiment=EXPERIMENTS, role=["test"], class_id=IDS, metric=["dice", "pq", "f1_d"], averaging=["slide"]
        ),
        "confusion": pairs,
        "curves": curves | about,
        "calibration": crossed(experiment=EXPERIMENTS, role=["test"], of=["nucleus", "class"], bin=range(15)),
        "comparisons": {
            "experiment_a": [row[0] for row in compared],
            "experiment_b": [row[1] for row in compared],
            "metric": [row[2] for row in compared],
            "role": ["test"] * len(compared),
        },
        "biology": by_class | {"scope": ["class"] * len(by_class["role"]),
                               "class_name": [NAMED[k] for k in by_class["class_id"]]},
        "neighbours": near | {"scope": ["class"] * len(near["role"]),
                              "class_name": [NAMED[k] for k in near["class_id"]],
                              "to_class_name": [NAMED[k] for k in near["to_class_id"]]},
        "training": crossed(experiment=EXPERIMENTS, fold=["0", "1", "2", "3", "4"], epoch=range(60)),
        "costs": crossed(rule=["maps", "patches", "metrics"], context=EXPERIMENTS, unit=[str(k) for k in range(10)]),
        "failures": crossed(item=[f"lost_{k}" for k in range(300)], stage=["tissue"], context=[""]),
        "warnings": crossed(slide_id=[f"s_{k}" for k in range(300)], stage=["facts"], context=[""], message=["x", "y"]),
    }  # fmt: skip
    more = {"biology": MARKERS, "training": ("train_loss", "val_loss", "val_dice_macro", "val_dice_binary")}
    return {name: filled(schema, found.get(name, {}), more.get(name, ())) for name, schema in REPORT_TABLES.items()}


@pytest.fixture(scope="module")
def full() -> dict[str, pa.Table]:
    return tables()


@pytest.fixture(scope="module")
def large(full: dict[str, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("large")
    for name, table in full.items():
        write_table(REPORT_TABLES[name], table, place / f"{name}.parquet")
    return place


@pytest.fixture(scope="module")
def written(large: Path) -> str:
    """The page; pictures have a budget of their own (9 MB)."""
    start = time.process_time()
    render_report(large, large / "report.html", study="large", classes=CLASSES, n_slides=N_SLIDES)
    assert time.process_time() - start < 30
    return (large / "report.html").read_text(encoding="utf-8")


def test_it_leaves_room_for_pictures(written: str) -> None:
    assert len(written.encode()) < 10_000_000
    # More elements than this take a browser seconds to lay out.
    assert len(re.findall(r"<[a-z]", written)) < 150_000


def test_everything_is_there(written: str) -> None:
    navigation = written[written.index("<nav") : written.index("</nav>")]
    for section in ("cohort", "failures", "experiments", "comparisons", "slides", "classes", "curves", "biology",
                    "training", "costs", "provenance"):  # fmt: skip
        assert written.count(f'<section id="{section}"') == 1, section
        assert navigation.count(f'<a href="#{section}"') == 1, section
    slides = re.search(r'id="slide-table".*?</table>', written, re.DOTALL)
    assert slides
    assert slides.group().count("<tr>") == 1 + N_SLIDES * N_EXPERIMENTS
    for name in (*EXPERIMENTS, *NAMED):
        assert name in written


def test_long_tables_are_folded(written: str) -> None:
    """No table of more than 200 rows stands open, and none is lost."""
    depth, long = 0, []
    for part in re.split(r"(?=<details|</details|<table)", written):
        depth += part.startswith("<details") - part.startswith("</details")
        if part.startswith("<table") and part.count("<tr>") > 200:
            long.append(depth)
    assert depth == 0
    assert len(long) == 2
    assert min(long) > 0


def test_large_tables_are_summed_as_columns(full: dict[str, pa.Table], large: Path) -> None:
    found = read_page_tables(large)
    assert found.counts["confusion"] == N_EXPERIMENTS * N_SLIDES * 100
    assert len(found.rows["confusion"]) == N_EXPERIMENTS * 100
    assert sum(row["pixels"] for row in found.rows["confusion"]) == sum(full["confusion"]["pixels"].to_pylist())
    # Rows lie by experiment, slide, true and predicted class.
    nuclei = np.array(full["confusion"]["nuclei"].to_pylist()).reshape(N_EXPERIMENTS, N_SLIDES, 10, 10)
    cell = next(row for row in found.rows["confusion"] if row["experiment"] == EXPERIMENTS[3]
                and (row["true_class_id"], row["pred_class_id"]) == (2, 7))  # fmt: skip
    assert cell["nuclei"] == nuclei[3, :, 2, 7].sum()
    assert found.rows["neighbours"] == []
    assert "mean_marker_00" not in found.rows["biology"][0]
    assert list(series_numbers(found.rows, ["experiment_19"])) == ["experiment_19", *EXPERIMENTS[:-1]]
