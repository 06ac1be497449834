"""The cell table as its readers see it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slideloom.artefacts.tables import read_table, table_metadata
from slideloom.instances.cells import CELLS, MarkerMeans, cell_classes, write_cells
from slideloom.instances.contours import find_sides
from slideloom.instances.measure import Figures
from slideloom.instances.outlines import outlines
from slideloom.instances.windows import LabelTable
from slideloom.slides.tables import Channel, ClassTable


def _figures(n: int, classes: int = 4, first: int = 1) -> Figures:
    """Boxes of 3 × 4 pixels, one below the other."""
    labels = np.zeros((10 * (first + n), 20), np.uint32)
    for number in range(first, first + n):
        labels[10 * (number - 1) : 10 * (number - 1) + 4, 5:8] = number
    box = np.array([[10 * (k - 1), 5, 10 * (k - 1) + 4, 8] for k in range(first, first + n)], np.int64).reshape(n, 4)
    centroid = (box[:, [1, 0]] + box[:, [3, 2]]) / 2
    pixels, weight = np.zeros((2, n, classes), np.int64)
    if n and classes:
        pixels[:], weight[:] = [4, 3, 5, 0][:classes], [400, 100, 500, 0][:classes]
    polygons = outlines(find_sides(labels, 0, 0, 20), 20, 2.0)
    return Figures(first, np.full(n, 12), box, centroid, np.full(n, 12 * 204), pixels, weight, polygons)


def _at(figures: list[Figures]) -> LabelTable:
    """Where the nuclei of some parts lie."""
    box = np.concatenate([np.zeros((1, 4), np.int64), *(part.box for part in figures)])
    return LabelTable(20 * box[:, 0] + box[:, 1], np.full(len(box), 12), box)


def _write(
    place: Path, n: int, classes: ClassTable | None, markers: MarkerMeans | None = None, parts: tuple[int, ...] = ()
) -> pa.Table:
    """Write n nuclei, the first of them in parts of their own; the table as it is read back."""
    ends = [*np.cumsum((0, *parts)).tolist(), n]
    figures = [_figures(stop - start, 4 if classes else 0, start + 1) for start, stop in itertools.pairwise(ends)]
    options: dict[str, Any] = {"scale": 2.0, "image_mpp_um": 0.25, "made_from": {"slide_id": "s1"}}
    write_cells(place, "s1", _at(figures), figures, classes, markers, **options)
    return pq.read_table(place, partitioning=None)


def test_class_is_the_commonest_and_background_only_alone() -> None:
    pixels = np.array([[9, 1, 2], [9, 0, 0], [1, 3, 3], [0, 1, 2]])
    weight = np.array([[90, 30, 80], [9, 0, 0], [10, 30, 60], [0, 0, 0]])
    some = _figures(4, 3)
    figures = dataclasses.replace(some, area=pixels.sum(1), class_pixels=pixels, class_weight=weight)
    class_id, share = cell_classes(figures)
    assert class_id.dtype == np.uint8
    assert class_id.tolist() == [2, 0, 1, 2]
    np.testing.assert_allclose(share, [[0.45, 0.15, 0.4], [1, 0, 0], [0.1, 0.3, 0.6], [0, 1 / 3, 2 / 3]])


def test_geopandas_reads_it(tmp_path: Path, classes: ClassTable) -> None:
    channels = [Channel("a", "DNA"), Channel("b", "CD3"), Channel("c", "CD3")]
    sums, pixels = np.array([[0, 0, 0], [24, 36, 12], [0, 0, 0]]), np.array([0, 12, 0])
    _write(tmp_path / "cells.parquet", 2, classes, MarkerMeans.of(channels, sums, pixels))
    frame = geopandas.read_parquet(tmp_path / "cells.parquet")
    assert frame.crs is None
    # Four corners of half a grid pixel's triangle are cut off.
    assert frame.geometry.area.tolist() == [46.0, 46.0]
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
    assert column["bbox"] == [10, 0, 16, 48] == geopandas.read_parquet(tmp_path / "cells.parquet").total_bounds.tolist()
    about = table_metadata(table)
    assert about["made_from"] == {"slide_id": "s1"}
    assert about["units"]["area_um2"] == "µm²"


@pytest.mark.parametrize("n", [0, 3])
def test_schema_holds_with_and_without_rows(tmp_path: Path, n: int, classes: ClassTable) -> None:
    markers = MarkerMeans(("mean_DNA",), np.arange(n + 1.0)[:, None])
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


def test_parts_are_row_groups_and_change_no_value(tmp_path: Path, classes: ClassTable) -> None:
    markers = MarkerMeans(("mean_DNA",), np.arange(8.0)[:, None])
    whole = _write(tmp_path / "whole.parquet", 7, classes, markers)
    parts = _write(tmp_path / "parts.parquet", 7, classes, markers, (3, 2))
    assert [pq.ParquetFile(tmp_path / "parts.parquet").metadata.row_group(k).num_rows for k in range(3)] == [3, 2, 2]
    assert parts.equals(whole, check_metadata=True)
    assert parts["mean_DNA"].to_pylist() == [1, 2, 3, 4, 5, 6, 7]
    read_table(CELLS, tmp_path / "parts.parquet")


def test_parts_that_lack_nuclei_are_refused_and_leave_nothing(tmp_path: Path, classes: ClassTable) -> None:
    options: dict[str, Any] = {"scale": 2.0, "image_mpp_um": 0.25, "made_from": {}}
    with pytest.raises(ValueError, match="figures of 3 instances, not of 5"):
        write_cells(tmp_path / "x.parquet", "s1", _at([_figures(5)]), [_figures(3)], classes, None, **options)
    assert not list(tmp_path.iterdir())


def test_nuclei_may_lie_in_pieces_and_anothers_have_no_probabilities(tmp_path: Path, classes: ClassTable) -> None:
    labels = np.zeros((10, 20), np.uint32)
    labels[1:4, 5:8] = labels[6, 5:8] = 1
    pieces = outlines(find_sides(labels, 0, 0, 20), 20, 2.0)
    figures = dataclasses.replace(_figures(1), outlines=pieces)
    options: dict[str, Any] = {"scale": 2.0, "image_mpp_um": 0.25, "made_from": {"slide_id": "s1"}}
    place = tmp_path / "cells.parquet"
    write_cells(place, "s1", _at([figures, _figures(1, 0, 2)]), [figures, _figures(1, 0, 2)], None, None, **options)
    assert geopandas.read_parquet(place).geom_type.tolist() == ["MultiPolygon", "Polygon"]
    about = json.loads(pq.read_schema(place).metadata[b"geo"])
    assert about["columns"]["geometry"]["geometry_types"] == ["Polygon", "MultiPolygon"]
    write_cells(place, "s1", _at([figures]), [figures], classes, None, **options, foreign=True)
    cells = geopandas.read_parquet(place)
    assert cells.geom_type.tolist() == ["MultiPolygon"]
    assert cells["class_name"].tolist() == ["stroma"]
    shares = ["class_probability", "probability_tumour", "probability_stroma", "probability_immune"]
    assert cells[["nucleus_probability", *shares]].isna().all(axis=None)
    geo = json.loads(pq.read_schema(place).metadata[b"geo"])
    assert geo["columns"]["geometry"]["geometry_types"] == ["MultiPolygon"]
