from __future__ import annotations

import gzip
import json
import zipfile

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slideloom.errors import SlideError
from slideloom.slides import geojson_text
from slideloom.slides.geojson import class_ids, read_nuclei
from slideloom.slides.geojson_text import is_geojson, read_features
from slideloom.slides.source import Source
from slideloom.slides.tables import ClassTable

CLASSES = ClassTable((1, 2), ("Tumour", "T cell"), ((0, 0, 0),) * 2, (("cancer",), ("t: pos",)))


def _ring(x, y, side=2):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def _feature(geometry, **properties):
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": properties}


def _polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


def _detection(x, y, **properties):
    return _feature(_polygon(_ring(x, y)), objectType="detection", **properties)


def _named(name):
    return {"classification": {"name": name, "color": [1, 2, 3]}}


@pytest.fixture
def read(tmp_path):
    def read(value, name="n.geojson"):
        (tmp_path / name).write_text(value if isinstance(value, str) else json.dumps(value))
        return read_nuclei(Source(tmp_path / name))

    return read


def _collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


def _shapes(nuclei):
    """Each nucleus as its rings."""
    rings = np.split(nuclei.corners, nuclei.rings[1:-1])
    return [[rings[k].tolist() for k in range(a, b)] for a, b in zip(nuclei.nuclei, nuclei.nuclei[1:], strict=False)]


@pytest.mark.parametrize("form", ["collection", "list", "features last", "byte order mark", "trailing comma"])
def test_collections_and_lists(read, tmp_path, form):
    features = [_detection(0, 0, **_named("Tumour")), _detection(4.5, 2.25), _detection(9, 9, **_named("T cell"))]
    value = {"type": "FeatureCollection", "bbox": [0, 1.5, -2e1, None, True], "features": features}
    text = {
        "collection": json.dumps(value, indent=1),
        "list": json.dumps(features),
        "features last": json.dumps({"features": features, "note": {"features": [1]}, "type": "FeatureCollection"}),
        "byte order mark": "\ufeff" + json.dumps(value),
        "trailing comma": json.dumps(features)[:-1] + ",]",
    }[form]
    nuclei = read(text)
    assert _shapes(nuclei) == [[_ring(0, 0)], [_ring(4.5, 2.25)], [_ring(9, 9)]]
    assert [nuclei.words[k] if k >= 0 else None for k in nuclei.word] == ["Tumour", None, "T cell"]
    assert nuclei.boxes().tolist() == [[0, 0, 2, 2], [4.5, 2.25, 6.5, 4.25], [9, 9, 11, 11]]
    assert nuclei.warnings == ()
    assert class_ids(nuclei, CLASSES, "n", 255).tolist() == [1, 255, 2]
    assert class_ids(nuclei, ClassTable(), "n", 255).tolist() == [255] * 3, "a study without classes asks for none"


def test_packed_files(tmp_path):
    one, two = _collection(_detection(0, 0)), [_detection(4, 4), _detection(8, 8)]
    with gzip.open(tmp_path / "n.geojson.gz", "wt") as file:
        json.dump(two, file)
    with zipfile.ZipFile(tmp_path / "n.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.geojson", json.dumps(two))
        archive.writestr("readme.txt", "no GeoJSON")
        archive.writestr("a.json", json.dumps(one))
    assert [int(one[0]) for one in read_nuclei(Source(tmp_path / "n.geojson.gz")).boxes()] == [4, 8]
    assert [int(one[0]) for one in read_nuclei(Source(tmp_path / "n.zip")).boxes()] == [0, 4, 8], (
        "in the order of names"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.geojson", True),
        ("A.GeoJSON.GZ", True),
        ("a.zip", True),
        ("a.json", True),
        ("a.npz", False),
        ("a.tif", False),
    ],
)
def test_which_files_are_geojson(tmp_path, name, expected):
    assert is_geojson(Source(tmp_path / name)) is expected


def test_no_nuclei(read):
    assert len(read(_collection())) == 0
    assert len(read([])) == 0
    assert read([]).boxes().shape == (0, 4)


def test_one_feature_or_a_bare_geometry(read):
    assert len(read(_detection(0, 0))) == 1
    assert len(read(_polygon(_ring(0, 0)))) == 1
    assert len(read([_polygon(_ring(0, 0)), _polygon(_ring(4, 0))])) == 2
    two = {"type": "MultiPolygon", "coordinates": [[_ring(0, 0)], [_ring(8, 0)]]}
    assert len(read({"type": "GeometryCollection", "geometries": [two, _polygon(_ring(4, 4))]})) == 1


def test_the_nucleus_of_a_cell_counts(read):
    inner = _polygon(_ring(2, 2))
    outside = _feature(_polygon(_ring(0, 0, 6)), objectType="cell")
    assert _shapes(read([{**outside, "nucleusGeometry": inner}])) == [[_ring(2, 2)]]
    within = _feature(_polygon(_ring(0, 0, 6)), objectType="cell", nucleusGeometry=inner)
    assert _shapes(read([within])) == [[_ring(2, 2)]]
    assert _shapes(read([outside])) == [[_ring(0, 0, 6)]], "a cell of which no nucleus is known"


def test_detections_beside_annotations_and_what_is_no_nucleus(read):
    region = _feature(_polygon(_ring(0, 0, 100)), objectType="annotation", **_named("Tissue"))
    old = _feature(_polygon(_ring(4, 4)), object_type="PathDetectionObject")
    point = _feature({"type": "Point", "coordinates": [1, 1]}, objectType="detection")
    tile = _feature(_polygon(_ring(0, 0, 50)), objectType="tile")
    nothing = _feature(None, objectType="detection")
    line = _feature(_polygon([[0, 0], [1, 1]]), objectType="detection")
    nuclei = read([region, old, point, tile, nothing, line])
    assert _shapes(nuclei) == [[_ring(4, 4)]]
    text = " | ".join(nuclei.warnings)
    for what in ("annotations beside detections", "Point", "tile", "without a geometry", "fewer than three corners"):
        assert what in text
    assert class_ids(nuclei, CLASSES, "n", 255).tolist() == [255], "the class of what is left aside does not matter"
    assert _shapes(read([region])) == [[_ring(0, 0, 100)]], "drawn by hand: where nothing is a detection"


def test_multipolygons(read):
    several = {"type": "MultiPolygon", "coordinates": [[_ring(0, 0)], [_ring(8, 0, 6), _ring(10, 2)]]}
    # As CellViT writes nuclei: a feature a class.
    classes = [_feature(several, objectType="annotation", **_named("Tumour")), _detection(0, 0, **_named("T cell"))]
    classes[1]["properties"]["objectType"] = "annotation"
    nuclei = read(classes)
    assert _shapes(nuclei) == [[_ring(0, 0)], [_ring(8, 0, 6), _ring(10, 2)], [_ring(0, 0)]]
    assert nuclei.word.tolist() == [0, 0, 1]
    assert "a nucleus a polygon" in nuclei.warnings[0]
    for properties in ({"objectType": "detection"}, {}):
        assert len(_shapes(read([_feature(several, **properties)]))) == 1, "one nucleus in two parts"


@pytest.mark.parametrize(
    ("classification", "expected"),
    [
        ({"name": "tumour"}, 1),
        ({"name": " Cancer "}, 1),
        ("T cell", 2),
        ({"names": ["T", "Pos"], "color": [0, 0, 0]}, 2),
        ({"name": "Nuclei"}, 255),
        ({"name": "Unclassified"}, 255),
        ({"name": None}, 255),
        ({}, 255),
        (None, 255),
    ],
)
def test_names_of_classes(read, classification, expected):
    assert class_ids(read([_detection(0, 0, classification=classification)]), CLASSES, "n", 255).tolist() == [expected]


def test_a_name_that_no_class_has_is_refused(read):
    with pytest.raises(SlideError) as caught:
        class_ids(read([_detection(0, 0, **_named("Stroma"))]), CLASSES, "n.geojson", 255)
    assert caught.value.code == "unknown_class"
    assert "'Stroma'" in caught.value.message
    assert "aliases" in caught.value.hint


def test_cells_beside_nuclei_are_left_aside_and_alone_they_count(read):
    nuclei, cells = _detection(2, 2, classification="Nuclei"), _detection(0, 0, classification="Cells")
    found = read([cells, nuclei, cells])
    assert _shapes(found) == [[_ring(2, 2)]]
    assert "2 features that are whole cells beside nuclei" in found.warnings[0]
    assert len(read([cells, cells])) == 2


def test_heights_of_places_are_passed_over(read):
    ring = [[x, y, 7.5] for x, y in _ring(1, 2)]
    assert _shapes(read([_feature(_polygon(ring))])) == [[_ring(1, 2)]]


@pytest.mark.parametrize(
    ("feature", "what"),
    [
        (5, "JSON int"),
        (_feature([1]), "geometry that is a JSON list"),
        (_feature({"type": "Circle", "coordinates": []}), "'Circle'"),
        (_feature({"type": "Polygon", "coordinates": 3}), "coordinates"),
        (_feature({"type": "Polygon", "coordinates": [3]}), "coordinates"),
        (_feature({"type": "MultiPolygon", "coordinates": [_ring(0, 0)]}), "those of a MultiPolygon"),
        (_feature(_polygon([[0, 0], [1, "1"], [1, 2]])), "ring"),
        (_feature(_polygon([[0, 0], [1], [1, 2]])), "ring"),
        (_feature(_polygon([1, 2, 3])), "coordinates"),
        (_feature(_polygon([[0, 0], 2, 3])), "ring"),
        (_feature(_polygon([[0, 0], [1, 0], [1, float("nan")]])), "corner at (1, nan)"),
        (_feature(_polygon([[0, 0], [1, 0], [1, 1e300]])), "corner"),
        ({**_feature(_polygon(_ring(0, 0))), "properties": [1]}, "properties"),
        (_detection(0, 0, classification=5), "classification"),
    ],
)
def test_features_that_are_no_geojson_are_refused_with_their_place(read, feature, what):
    with pytest.raises(SlideError) as caught:
        read([_detection(0, 0), feature])
    assert caught.value.code == "annotation_unreadable"
    assert what in caught.value.message
    assert caught.value.where == "n.geojson, feature 2"
    assert caught.value.hint


def test_centres_without_outlines_are_refused(read):
    with pytest.raises(SlideError) as caught:
        read([_feature({"type": "MultiPoint", "coordinates": [[1, 1], [2, 2]]})])
    assert caught.value.code == "annotation_no_polygons"


def test_missing_and_damaged_files(tmp_path):
    whole = json.dumps(_collection(_detection(0, 0), _detection(4, 4))).encode()
    damaged = {
        "none.geojson": None,
        "empty.geojson": b"",
        "text.geojson": b"hello",
        "other.geojson": b'{"type": "cells", "cells": []}',
        "latin.geojson": whole.replace(b'"x"', b'"\xe9"'),
        "more.geojson": whole + b"]",
        "cut.geojson.gz": gzip.compress(whole)[:-20],
        "bad.geojson.gz": gzip.compress(whole)[:-6] + b"123456",
        "cut.zip": b"PK\x03\x04" + bytes(40),
    }
    for name, content in damaged.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(SlideError) as caught:
            read_nuclei(Source(tmp_path / name))
        assert caught.value.code == ("annotation_missing" if content is None else "annotation_unreadable"), name
        assert name in caught.value.where
        assert caught.value.hint
    with zipfile.ZipFile(tmp_path / "n.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(SlideError, match=r"no \.geojson"):
        read_nuclei(Source(tmp_path / "n.zip"))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(tmp_path, data):
    text = json.dumps(_collection(_detection(0, 0), _detection(4, 4, **_named("Tumour"))))
    (tmp_path / "n.geojson").write_text(text[: data.draw(st.integers(0, len(text) - 1))])
    with pytest.raises(SlideError) as caught:
        read_nuclei(Source(tmp_path / "n.geojson"))
    assert caught.value.code == "annotation_unreadable"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3), max_size=4),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    foreign=JSON,
)
def test_features_come_as_a_json_parser_has_them_whatever_is_read_at_once(
    tmp_path, monkeypatch, values, chunk, indent, ascii_only, foreign
):
    monkeypatch.setattr(geojson_text, "_CHUNK", chunk)
    features = [{**value, "geometry": None} for value in values]
    whole = {"before": foreign, "features": features, "after": foreign, "type": "FeatureCollection"}
    for value in (whole, features):
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
        (tmp_path / "n.geojson").write_text(text, encoding="utf-8", errors="surrogatepass")
        found = list(read_features(Source(tmp_path / "n.geojson")))
        assert [feature.value for feature in found] == json.loads(text)["features" if value is whole else slice(None)]
        assert [feature.where for feature in found] == [f"n.geojson, feature {n + 1}" for n in range(len(features))]


def test_nuclei_are_those_that_shapely_reads(read):
    rng = np.random.default_rng(5)
    polygons = []
    for _ in range(40):
        angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
        shell = 50 * rng.uniform(size=2) + rng.uniform(1, 9, (len(angle), 1)) * np.stack(
            [np.cos(angle), np.sin(angle)], 1
        )
        polygons.append(shapely.Polygon(shell))
    value = {
        "type": "FeatureCollection",
        "features": [_feature(json.loads(shapely.to_geojson(one))) for one in polygons],
    }
    read_back = shapely.from_geojson(json.dumps(value)).geoms
    assert [[ring for ring in nucleus] for nucleus in _shapes(read(value))] == [
        [list(map(list, one.exterior.coords))] for one in read_back
    ]
