from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from tests.annotated_sets import Study, rgb

from slideloom.errors import SlideError, SlideloomError
from slideloom.slides.layouts.choose import find_layout, read_data_set
from slideloom.slides.layouts.monuseg import read_outlines

SIZE = 60
TRAIN, TEST = "TCGA-18-5592-01Z-00-DX1", "TCGA-2Z-A9J9-01A-01-TS1"


def square(left: float, top: float, size: float) -> list[tuple[float, float]]:
    return [(left, top), (left + size, top), (left + size, top + size), (left, top + size)]


#: In drawing order: the second overlaps the first, the fourth lies under it, and two outline nothing.
REGIONS = (square(5, 5, 20), square(20, 5, 20), square(50, 50, 0), square(8, 8, 4), [(3.0, 3.0)], square(40, 40, 30))


def xml(regions: tuple[list[tuple[float, float]], ...], negative: int = 0) -> str:
    parts = []
    for number, corners in enumerate(regions, 1):
        vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in corners)
        mark = 1 if number == negative else 0
        parts.append(
            f'<Region Id="{number}" NegativeROA="{mark}"><Attributes/><Vertices>{vertices}</Vertices></Region>'
        )
    head = '<?xml version="1.0" encoding="UTF-8"?>\r\n<Annotations MicronsPerPixel="0.252000"><Annotation Id="1">'
    foot = "</Annotation></Annotations>"
    return f"{head}<Attributes/><Regions><RegionAttributeHeaders/>{''.join(parts)}</Regions>{foot}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train, test = tmp_path / "set" / "MoNuSeg 2018 Training Data", tmp_path / "set" / "MoNuSegTestData"
    for place in (train / "Tissue Images", train / "Annotations", test):
        place.mkdir(parents=True)
    tifffile.imwrite(train / "Tissue Images" / f"{TRAIN}.tif", rgb(SIZE, SIZE, 0), photometric="rgb")
    tifffile.imwrite(test / f"{TEST}.tif", rgb(SIZE, SIZE, 1), photometric="rgb")
    (train / "Annotations" / f"{TRAIN}.xml").write_text(xml(REGIONS))
    (test / f"{TEST}.xml").write_text(xml((square(0, 0, 10),)))
    return tmp_path / "set"


def bring_in(folder: Path) -> Study:
    out = folder.parent / "out"
    return Study(read_data_set("monuseg", folder, out), out)


def test_outlines_become_nuclei_the_first_of_two_counts(folder: Path) -> None:
    assert find_layout(folder) == "monuseg"
    study = bring_in(folder)
    row = study.rows[TRAIN]
    assert (row.patient_id, row.split, row.he_mpp_um) == ("TCGA-18-5592", "train", 0.25)
    assert (study.rows[TEST].split, study.rows[TEST].patient_id) == ("test", "TCGA-2Z-A9J9")
    expected = np.zeros((SIZE, SIZE), int)
    for number in (6, 2, 1):
        (left, top), *_, (_, bottom) = REGIONS[number - 1]
        size = bottom - top
        expected[int(top) : int(top + size), int(left) : int(left + size)] = number
    nuclei, classes = study.maps(TRAIN)
    assert np.array_equal(nuclei, expected)
    assert np.array_equal(classes, np.where(expected > 0, 255, 0)), "there are no classes"
    assert np.array_equal(study.picture(TRAIN), rgb(SIZE, SIZE, 0))
    told = (
        "7 regions: 2 hold no pixel and are dropped, 1 lie under others; 116 px lie in several and count for the first"
    )
    assert told in study.notes
    assert len(study.file_list(folder)) == 4


def test_regions_that_are_cut_out_are_left_aside(folder: Path) -> None:
    place = folder / "MoNuSegTestData" / f"{TEST}.xml"
    place.write_text(xml((square(0, 0, 10), square(2, 2, 3)), negative=2))
    study = bring_in(folder)
    assert np.count_nonzero(study.maps(TEST).instances == 1) == 100
    assert "1 regions are marked as cut out" in study.notes


def test_bad_outlines_are_named_and_the_others_go_on(folder: Path) -> None:
    place = folder / "MoNuSegTestData" / f"{TEST}.xml"
    entities = '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><Annotations>&d;</Annotations>'
    for text, told in (
        (xml(REGIONS)[:-30], "cannot be parsed"),
        (entities, "declares a document type"),
        (xml((square(0, 0, 10),)).replace('X="10"', 'X="ten"', 1), "a corner of region '1' has X 'ten'"),
        (xml((square(0, 0, 10),)).replace('X="10"', 'X="inf"', 1), "has X 'inf'"),
        ("<Annotations>" + "<Vertex/>" * 300_000 + "</Annotations>", "tags"),
    ):
        place.write_text(text)
        with pytest.raises(SlideError, match=told):
            read_outlines(place)
        study = bring_in(folder)
        assert list(study.rows) == [TRAIN]
        assert f"{TEST} ({TEST}.xml): left out" in study.notes
    place.unlink()
    study = bring_in(folder)
    assert study.rows[TEST].instances is None
    assert f"{TEST}: no annotation" in study.notes


def test_a_wrong_folder_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", rgb(SIZE, SIZE, 0))
    (tmp_path / "a.xml").write_text("<other/>")
    assert find_layout(tmp_path) is None
    (tmp_path / "a.tif").unlink()
    with pytest.raises(SlideloomError, match="no slide was found"):
        read_data_set("monuseg", tmp_path, tmp_path / "out")
