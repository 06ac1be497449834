"""The whole pipeline, run through Snakemake on a small synthetic cohort."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from slideloom.artefacts.tables import check_table
from slideloom.reports.schemas import REPORT_TABLES

from .conftest import Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]


def _read(workspace: Workspace, table: str) -> pd.DataFrame:
    return pd.read_parquet(workspace.results / "reports" / f"{table}.parquet")


def _means(workspace: Workspace, experiment: str) -> pd.Series:
    slides = _read(workspace, "slides").query("experiment == @experiment and role == 'test'")
    assert len(slides) >= 1
    return slides[["pq", "dice_macro"]].mean()


def test_every_stage_left_its_artefacts(finished: Workspace) -> None:
    expected = {
        "slides/*/slide.json": 6,
        "slides/*/tissue.geojson": 6,
        "patches/*/*.zarr": 12,
        "targets/*/*.zarr": 12,
        "embeddings/*/*.zarr": 12,
        "statistics/*.json": 1,
        "splits/*.parquet": 1,
        "models/*/0/decoder.safetensors": 3,
        "models/*/0/history.parquet": 3,
    }
    found = {pattern: len(list(finished.results.glob(pattern))) for pattern in expected}
    assert found == expected
    predicted = len(_read(finished, "slides"))
    made = ("maps/*/0/*.zarr", "labels/*/0/*.ome.zarr", "cells/*/0/*/cells.parquet", "metrics/*/0/*/slide.parquet")
    for pattern in made:
        assert len(list(finished.results.glob(pattern))) == predicted, pattern


def test_what_was_learnt_from_true_targets_is_far_above_what_was_learnt_from_shuffled_ones(finished: Workspace) -> None:
    true, shuffled = _means(finished, "sp"), _means(finished, "sp_shuffled")
    assert true["pq"] >= 0.4
    assert true["dice_macro"] >= 0.3
    assert shuffled["pq"] <= 0.5 * true["pq"]
    assert shuffled["dice_macro"] <= 0.5 * true["dice_macro"]


@pytest.mark.parametrize("name", sorted(REPORT_TABLES))
def test_tables_meet_their_schemas(finished: Workspace, name: str) -> None:
    path = finished.results / "reports" / f"{name}.parquet"
    check_table(REPORT_TABLES[name], pq.read_table(path))
    frame = pd.read_parquet(path)
    assert set(column.name for column in REPORT_TABLES[name].columns) <= set(frame.columns)
    if name not in ("failures", "warnings", "comparisons", "published", "references"):
        assert len(frame) > 0


def test_random_weights_are_shouted(finished: Workspace) -> None:
    slides = _read(finished, "slides")
    assert slides.groupby("experiment")["random_weights"].all().to_dict() == {
        "he": True,
        "sp": False,
        "sp_shuffled": False,
    }
    assert "random" in (finished.results / "reports" / "report.html").read_text().lower()


def test_cells_open_as_one_dataset(finished: Workspace) -> None:
    cells = pd.read_parquet(finished.results / "cells" / "sp" / "0")
    assert {"slide_id", "cell_id", "x_px", "y_px", "area_um2", "class_name"} <= set(cells.columns)
    assert len(cells) > 50
    assert not cells.duplicated(["slide_id", "cell_id"]).any()


def test_nothing_holds_a_place_of_this_machine(finished: Workspace) -> None:
    place = str(finished.folder).encode()
    kinds = ("state", "slides", "patches", "targets", "embeddings", "statistics", "splits", "models", "maps", "labels")
    hits = [path for kind in kinds for path in (finished.results / kind).rglob("*") if _mentions(path, place)]
    assert hits == []


def _mentions(path: Path, text: bytes) -> bool:
    kinds = (".json", ".geojson", ".parquet", ".safetensors")
    return path.is_file() and path.suffix in kinds and text in path.read_bytes()
