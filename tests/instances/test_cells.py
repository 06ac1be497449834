"""The cell table as its readers see it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely

from slideloom.artefacts.tables import read_table, table_metadata
from slideloom.instances.cells import CELLS, MarkerMeans, cell_classes, write_cells
from slideloom.instances.measure import Figures
from slideloom.slides.tables import Channel, ClassTable


def _figures(n: int, classes: int = 4) -> Figures:
    box = np.array([[0, 0, 0, 0], *([10 * k, 5, 10 * k + 4, 8] for k in range(n))], np.int64)
    polygon = np.array([None, *(shapely.box(5, 10 * k, 8, 10 * k + 4, ccw=True) for k in range(n))], object)
    centroid = np.array([[np.nan] * 2, *([6.5, 10 * k + 2] for k in range(n))])
    pixels = np.zeros((n + 1, classes), np.int64)
    weight = np.zeros((n + 1, classes), np.int64)
    if n and classes:
        pixels[1:], weight[1:] = [4, 3, 5, 0], [400, 100, 500, 0]
    return Figures(np.array([0, *[12] * n]), box, centroid, np.array([0, *[12 * 204] * n]), pixels, weight, polygon)


def _write(place: Path, n: int, classes: ClassTable | None, markers: MarkerMeans | None = None) -> Any:
    figures = _figures(n, 4 if classes else 0)
    options: dict[str, Any] = {"scale": 2.0, "image_mpp_um": 0.25, "made_from": {"slide_id": "s1"}}
    return write_cells(place, "s1", figures, classes, markers, **options)


def test_class_is_the_commonest_and_background_only_alone() -> None:
    pixels = np.array([[0, 0, 0], [9, 1, 2], [9, 0, 0], [1, 3, 3], [0, 1, 2]])
    weight = np.array([[0, 0, 0], [90, 30, 80], [9, 0, 0], [10, 30, 60], [0, 0, 0]])
    figures = Figures(
        pixels.sum(1), np.zeros((5, 4)), np.zeros((5, 2)), pixels.sum(1), pixels, weight, np.empty(5, object)
    )
    class_id, share = cell_classes(figures)
    assert class_id.dtype == np.uint8
    assert class_id[1:].tolist() == [2, 0, 1, 2]
    np.testing.assert_allclose(share[1:], [[0.45, 0.15, 0.4], [1, 0, 0], [0.1, 0.3, 0.6], [0, 1 / 3, 2 / 3]])


def test_geopandas_reads_it(tmp_path: Path, classes: ClassTable) -> None:
    channels = [Channel("a", "DNA"), Channel("b", "CD3"), Channel("c", "CD3")]
    sums, pixels = np.array([[0, 0, 0], [24, 36, 12], [0, 0, 0]]), np.array([0, 12, 0])
    _write(tmp_path / "cells.parquet", 2, classes, MarkerMeans.of(channels, sums, pixels))
    frame = geopandas.read_parquet(tmp_path / "cells.parquet")
    assert frame.crs is None
    assert frame.geometry.area.tolist() == [12.0, 12.0]
    assert frame["cell_id"].tolist() == [1, 2]
    assert frame["cell_id"].dtype == np.int64
    assert frame["class_id"].dtype == np.uint8
    assert frame["slide_id"].dtype.name == frame["class_name"].dtype.name == "category"
    first = frame.iloc[0]
    assert (first["x_px"], first["y_px"], first["x_um"], first["y_um"]) == (13.0, 4.0, 3.25, 1.0)
    assert first[["bbox_xmin_px", "bbox_ymin_px", "bbox_xmax_px", "bbox_ymax_px"]].tolist() == [10, 0, 16, 8]
    assert (first["area_px"], first["area_um2"]) == (12, 3.0)
    assert (first["class_id"], first["class_name"]) == (2, "stroma")
    assert first["class_probability"] == pytest.approx(0.5)
    assert first[["probability_tumour", "probability_stroma", "probability_immune"]].tolist() == pytest.approx(
        [0.1, 0.5, 0]
    )
    assert first["nucleus_probability"] == pytest.approx(0.8)
    assert first[["mean_DNA", "mean_CD3_b", "mean_CD3_c"]].tolist() == [2, 3, 1]
    assert frame[["mean_DNA", "mean_CD3_b", "mean_CD3_c"]].iloc[1].isna().all()


def test_metadata_is_geoparquet(tmp_path: Path, classes: ClassTable) -> None:
    table = _write(tmp_path / "cells.parquet", 3, classes)
    geo = json.loads(pq.read_schema(tmp_path / "cells.parquet").metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    column = geo["columns"][geo["primary_column"]]
    assert column["encoding"] == "WKB"
    assert column["geometry_types"] == ["Polygon"]
    assert column["bbox"] == [5, 0, 8, 24]
    about = table_metadata(table)
    assert about["made_from"] == {"slide_id": "s1"}
    assert about["units"]["area_um2"] == "µm²"


@pytest.mark.parametrize("n", [0, 3])
def test_schema_holds_with_and_without_rows(tmp_path: Path, n: int, classes: ClassTable) -> None:
    markers = MarkerMeans(("mean_DNA",), np.ones((n + 1, 1)))
    written = _write(tmp_path / "cells.parquet", n, classes, markers)
    table = read_table(CELLS, tmp_path / "cells.parquet")
    assert table.num_rows == n
    names = ["probability_tumour", "probability_stroma", "probability_immune", "mean_DNA"]
    assert table.column_names == [*CELLS.names, *names] == written.column_names
    frame = geopandas.read_parquet(tmp_path / "cells.parquet")
    assert len(frame) == n


def test_without_a_class_map_classes_are_null(tmp_path: Path) -> None:
    _write(tmp_path / "cells.parquet", 2, None)
    frame = pd.read_parquet(tmp_path / "cells.parquet")
    assert frame[["class_id", "class_name", "class_probability"]].isna().all(axis=None)
    assert not [name for name in frame if name.startswith("probability_")]
