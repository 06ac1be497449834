"""GeoJSON as QuPath reads it: PathObjectTypeAdapters and PathIO of QuPath 0.4 to 0.6 say what is looked at."""

from __future__ import annotations

import json
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from shapely.geometry import shape

from slideloom.instances.exports import qupath
from slideloom.instances.exports.qupath import cell_uuid, export_geojson
from slideloom.slides.tables import ClassTable


def _read(place: Path) -> list[dict[str, Any]]:
    with zipfile.ZipFile(place) as archive:
        assert archive.namelist() == ["s-1.geojson"], "QuPath reads what ends in .geojson"
        body = archive.read("s-1.geojson")
    assert body.isascii(), "QuPath reads it in the system's encoding"
    value = json.loads(body, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert list(value) == ["type", "features"]
    assert value["type"] == "FeatureCollection"
    features: list[dict[str, Any]] = value["features"]
    return features


def test_a_feature_a_cell(made: Callable[..., Any], classes: ClassTable, tmp_path: Path) -> None:
    slide = made(7)
    export_geojson(slide.cells_path, classes, tmp_path / "x.geojson.zip")
    cells = geopandas.read_parquet(slide.cells_path)
    features = _read(tmp_path / "x.geojson.zip")
    assert len(features) == len(cells) == 7
    assert len({uuid.UUID(feature["id"]) for feature in features}) == 7
    colours = {"T cell": [255, 0, 10], "tumour/µ": [0, 255, 0]}
    for feature, (_, cell) in zip(features, cells.iterrows(), strict=True):
        assert set(feature) == {"type", "id", "geometry", "properties"}
        assert feature["type"] == "Feature"
        geometry, properties = shape(feature["geometry"]), feature["properties"]
        assert geometry.equals_exact(cell["geometry"])
        assert all(ring[0] == ring[-1] for polygon in _parts(feature["geometry"]) for ring in polygon)
        assert properties["objectType"] == "detection"
        assert properties["name"] == str(properties["cell_id"]) == str(cell["cell_id"])
        if cell["class_id"]:
            name = cell["class_name"]
            assert properties["classification"] == {"name": name, "color": colours[name]}
        else:
            assert "classification" not in properties
        measured = properties["measurements"]
        assert all(isinstance(value, (int, float)) for value in measured.values())
        assert measured["Area µm^2"] == cell["area_um2"]
        assert np.float32(measured["Nucleus probability"]) == np.float32(cell["nucleus_probability"])
        assert np.float32(measured["Probability: T cell"]) == np.float32(cell["probability_T cell"])
        if np.isnan(cell["mean_CD3"]):
            assert "CD3: Mean" not in measured
        else:
            assert np.float32(measured["CD3: Mean"]) == np.float32(cell["mean_CD3"])
    assert {feature["geometry"]["type"] for feature in features} == {"Polygon", "MultiPolygon"}
    assert sum("classification" not in feature["properties"] for feature in features) >= 1


def _parts(geometry: dict[str, Any]) -> list[Any]:
    return [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]


def test_pieces_and_hours_change_no_byte(
    made: Callable[..., Any], classes: ClassTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = made(50)
    found = set()
    for rows in (1, 7, 8192):
        monkeypatch.setattr(qupath, "_ROWS", rows)
        export_geojson(slide.cells_path, classes, tmp_path / "x.zip")
        found.add((tmp_path / "x.zip").read_bytes())
    assert len(found) == 1
    (info,) = zipfile.ZipFile(tmp_path / "x.zip").infolist()
    assert info.date_time == (1980, 1, 1, 0, 0, 0)


@pytest.mark.parametrize("options", [{"heads": False, "sp": False}, {"heads": False}, {"sp": False}])
def test_without_classes_or_markers(options: dict[str, bool], made: Callable[..., Any], tmp_path: Path) -> None:
    slide = made(3, **options)
    export_geojson(slide.cells_path, None, tmp_path / "x.zip")
    for feature in _read(tmp_path / "x.zip"):
        properties = feature["properties"]
        classification = properties.get("classification", {})
        assert "color" not in classification
        if "heads" in options:
            assert not classification
            assert not [name for name in properties["measurements"] if "robability:" in name]
        if "sp" in options:
            assert not [name for name in properties["measurements"] if name.endswith(": Mean")]


def test_no_nuclei(made: Callable[..., Any], classes: ClassTable, tmp_path: Path) -> None:
    export_geojson(made(0).cells_path, classes, tmp_path / "x.zip")
    assert _read(tmp_path / "x.zip") == []


def test_ids_depend_on_slide_and_cell_alone() -> None:
    assert cell_uuid("s-1", 1) == cell_uuid("s-1", 1)
    assert len({cell_uuid(slide, cell) for slide in ("a", "b", "a/1") for cell in (1, 2, 11)}) == 9


def test_gdal_reads_it(
    made: Callable[..., Any], classes: ClassTable, tmp_path: Path, seen_by: Callable[..., Any]
) -> None:
    slide = made(9)
    export_geojson(slide.cells_path, classes, tmp_path / "x.geojson.zip")
    (seen,) = seen_by("geojson", tmp_path / "x.geojson.zip")
    assert (seen["n"], seen["valid"]) == (9, True)
    outlines = shapely.from_wkb(geopandas.read_parquet(slide.cells_path).geometry.to_wkb())
    np.testing.assert_allclose(seen["area"], shapely.area(outlines), rtol=1e-12)
    assert {"objectType", "classification", "measurements", "name"} <= set(seen["columns"])
