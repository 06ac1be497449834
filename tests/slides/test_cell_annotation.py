"""Annotated whole cells: the column, its forms, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slideloom.errors import SlideError
from slideloom.slides.annotations import slide_annotations
from slideloom.slides.cell_annotation import cell_remarks, read_cells
from slideloom.slides.facts import ImageFacts, SlideFacts
from slideloom.slides.sheet import SlideRow, read_sheet, sheet_text
from slideloom.slides.tables import ClassTable

SHAPE = (24, 30)


def facts(**mpp_um: float) -> SlideFacts:
    images = {
        name: ImageFacts(
            "x", "r", *(round(side * 0.5 / mpp) for side in SHAPE), 1, "uint8", mpp, "sheet", (), (), False
        )
        for name, mpp in (mpp_um or {"sp": 0.5}).items()
    }
    return SlideFacts("s", images)


@pytest.fixture
def cells(tmp_path: Path) -> np.ndarray:
    labels = np.zeros(SHAPE, np.int64)
    labels[2:9, 3:12] = 40
    labels[9:16, 3:12] = 7
    labels[14:22, 18:29] = 3
    np.save(tmp_path / "cells.npy", labels)
    return labels


def test_label_image(tmp_path: Path, cells: np.ndarray) -> None:
    found = read_cells(SlideRow("s", instances="n.npy", cells="cells.npy"), tmp_path, facts(), "sp", 1.0)
    assert found is not None
    assert found.cells.dtype == np.int32
    np.testing.assert_array_equal(found.cells, cells)
    assert found.warnings == ()


def test_a_slide_without_the_column_has_none(tmp_path: Path) -> None:
    row = SlideRow("s", instances="n.npy")
    assert read_cells(row, tmp_path, facts(), "sp", 1.0) is None
    assert cell_remarks(row, tmp_path, facts(), whole=True) == ()
    assert row.as_dict() == {"slide_id": "s", "patient_id": "s", "platform": "unknown", "instances": "n.npy"}


@pytest.mark.parametrize("scale", [1.0, 2.0, 1.3])
@pytest.mark.parametrize("modality", ["sp", "he"])
def test_cells_lie_where_nuclei_of_the_same_file_would(
    tmp_path: Path, cells: np.ndarray, modality: Any, scale: float
) -> None:
    about = facts(sp=0.5, he=0.25)
    found = read_cells(SlideRow("s", instances="n.npy", cells="cells.npy"), tmp_path, about, modality, scale)
    nuclei = slide_annotations(SlideRow("s", instances="cells.npy"), tmp_path, about, modality, scale, ClassTable())
    assert found is not None
    assert nuclei is not None
    np.testing.assert_array_equal(found.cells, nuclei.instances)
    assert set(np.unique(found.cells)) == {0, 3, 7, 40}


def test_outlines_with_classes_that_the_study_does_not_have(tmp_path: Path) -> None:
    ring = [[3, 2], [12, 2], [12, 9], [3, 9], [3, 2]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "no class of ours"}},
    }
    (tmp_path / "cells.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    row = SlideRow("s", instances="n.npy", cells="cells.geojson")
    found = read_cells(row, tmp_path, facts(), "sp", 1.0)
    assert found is not None
    wanted = np.zeros(SHAPE, np.int32)
    wanted[2:9, 3:12] = 1
    np.testing.assert_array_equal(found.cells, wanted)
    assert cell_remarks(row, tmp_path, facts(), whole=False) == ()


def square(x: int, y: int, side: int) -> dict[str, Any]:
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return {"type": "Polygon", "coordinates": [ring]}


def outlines(place: Path, *features: dict[str, Any]) -> SlideRow:
    """A slide whose nuclei and cells one GeoJSON file holds, as QuPath writes it."""
    body = [{"type": "Feature", "properties": {}} | feature for feature in features]
    (place / "c.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": body}))
    return SlideRow("s", instances="c.geojson", cells="c.geojson")


def drawn(*squares: tuple[int, int, int]) -> np.ndarray:
    labels = np.zeros(SHAPE, np.int32)
    for number, (x, y, side) in enumerate(squares, 1):
        labels[y : y + side, x : x + side] = number
    return labels


@pytest.mark.parametrize("within", [False, True], ids=["beside the geometry", "among the properties"])
def test_of_an_object_with_both_outlines_the_cell_is_read(tmp_path: Path, within: bool) -> None:
    cells, nuclei = [(1, 1, 8), (12, 4, 9)], [(3, 3, 3), (14, 6, 4)]
    features = []
    for whole, inner in zip(cells, nuclei, strict=True):
        nucleus, kind = {"nucleusGeometry": square(*inner)}, {"objectType": "cell"}
        own = {"properties": kind | nucleus} if within else {"properties": kind} | nucleus
        features.append({"geometry": square(*whole)} | own)
    row = outlines(tmp_path, *features)
    found = read_cells(row, tmp_path, facts(), "sp", 1.0)
    assert found is not None
    np.testing.assert_array_equal(found.cells, drawn(*cells))
    inside = slide_annotations(row, tmp_path, facts(), "sp", 1.0, ClassTable())
    assert inside is not None
    np.testing.assert_array_equal(inside.instances, drawn(*nuclei))


def test_of_cells_and_nuclei_in_one_file_the_cells_are_read(tmp_path: Path) -> None:
    named = {"Nuclei": (3, 3, 3), "Cell": (1, 1, 8)}
    row = outlines(
        tmp_path, *({"geometry": square(*at), "properties": {"classification": name}} for name, at in named.items())
    )
    found = read_cells(row, tmp_path, facts(), "sp", 1.0)
    assert found is not None
    np.testing.assert_array_equal(found.cells, drawn(named["Cell"]))
    assert found.warnings == ("cells: c.geojson: 1 features that are nuclei beside whole cells are left aside",)


def test_outlines_name_their_image_where_there_are_two(tmp_path: Path) -> None:
    row, about = outlines(tmp_path, {"geometry": square(4, 6, 8)}), facts(sp=0.5, he=0.25)
    modality: Any
    for modality in ("sp", "he"):
        with pytest.raises(SlideError) as caught:
            read_cells(row, tmp_path, about, modality, 1.0)
        assert caught.value.code == "annotation_frame"
        assert "column cells" in caught.value.hint
    for whole in (False, True):
        (remark,) = cell_remarks(row, tmp_path, about, whole=whole)
        assert "(annotation_frame)" in remark
    row = replace(row, cells="c.geojson::he")
    for modality, scale in (("sp", 1.0), ("he", 2.0)):
        found = read_cells(row, tmp_path, about, modality, scale)
        assert found is not None
        np.testing.assert_array_equal(found.cells, drawn((2, 3, 4)))


def test_a_broken_outline_is_named(tmp_path: Path) -> None:
    broken = {"type": "Polygon", "coordinates": [[["a", 2], [9, 2], [9, 9]]]}
    row = outlines(tmp_path, {"geometry": square(4, 6, 8)}, {"geometry": broken})
    with pytest.raises(SlideError) as caught:
        read_cells(row, tmp_path, facts(), "sp", 1.0)
    assert caught.value.where == "s, cells c.geojson, feature 2"


def test_a_wrong_size_shows_in_the_header(tmp_path: Path) -> None:
    np.save(tmp_path / "cells.npy", np.zeros((7, 9), np.int32))
    row = SlideRow("s", instances="n.npy", cells="cells.npy")
    (remark,) = cell_remarks(row, tmp_path, facts(), whole=False)
    assert "7 x 9 px (annotation_shape)" in remark
    np.save(tmp_path / "cells.npy", np.zeros(SHAPE, np.int32))
    assert cell_remarks(row, tmp_path, facts(), whole=False) == ()


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (None, "annotation_missing"),
        (b"no array", "annotation_unreadable"),
        (np.zeros((7, 9), np.int32), "annotation_shape"),
        (np.full(SHAPE, -1), "annotation_negative"),
        (np.zeros(SHAPE, np.float32), "annotation_float"),
        (np.kron(np.eye(12, 15), np.array([[1, 0], [0, 0]])).astype(np.uint8), "binary_labels"),
    ],
)
def test_what_is_refused_names_the_column(tmp_path: Path, values: Any, code: str) -> None:
    if isinstance(values, bytes):
        (tmp_path / "cells.npy").write_bytes(values)
    elif values is not None:
        np.save(tmp_path / "cells.npy", values)
    row = SlideRow("s", instances="n.npy", cells="cells.npy")
    with pytest.raises(SlideError) as caught:
        read_cells(row, tmp_path, facts(), "sp", 1.0)
    assert caught.value.code == code
    assert caught.value.where == "s, cells cells.npy"
    (remark,) = cell_remarks(row, tmp_path, facts(), whole=True)
    assert f"({code})" in remark
    assert remark.endswith("no whole cells are learnt from this slide")


def test_no_cell_and_cells_in_pieces_are_told(tmp_path: Path, cells: np.ndarray) -> None:
    row = SlideRow("s", instances="n.npy", cells="cells.npy")
    cells[20:24, 0:9] = 40
    np.save(tmp_path / "cells.npy", cells)
    found = read_cells(row, tmp_path, facts(), "sp", 1.0)
    assert found is not None
    assert found.warnings == ("cells: 1 of 3 cells lie in several pieces under one id",)
    np.save(tmp_path / "cells.npy", 0 * cells)
    assert cell_remarks(row, tmp_path, facts(), whole=True) == ("cells: the annotation holds no cell",)


def test_the_sheet_gives_the_column_and_takes_it_back(tmp_path: Path) -> None:
    text = "slide_id\tsp\tinstances\tcells\na\ta.tif\tn.tif\tc.tif\nb\tb.tif\tn.tif\t\n"
    (tmp_path / "slides.tsv").write_text(text)
    rows, problems = read_sheet(tmp_path / "slides.tsv")
    assert problems == []
    assert [row.cells for row in rows] == ["c.tif", None]
    assert all(row.extra == {} for row in rows)
    assert SlideRow.from_dict(rows[0].as_dict()) == rows[0]
    assert sheet_text(rows) == text


def test_cells_need_nuclei(tmp_path: Path) -> None:
    (tmp_path / "slides.tsv").write_text("slide_id\tsp\tcells\na\ta.tif\tc.tif\n")
    _, (problem,) = read_sheet(tmp_path / "slides.tsv")
    assert "has whole cells but no instances" in problem.what
