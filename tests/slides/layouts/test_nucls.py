from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.annotated_sets import Study, rgb, save

from slideloom.errors import SlideError, SlideloomError
from slideloom.slides.layouts.choose import find_layout, read_data_set
from slideloom.slides.layouts.nucls import CLASSES

SIZE = 60
FIELD = "TCGA-A1-A0SP-DX1_id-5ea4_left-7053_top-53024_bottom-53311_right-7331"
OTHER = "TCGA-E2-A14X-DX1_id-1_left-1_top-2_bottom-3_right-4"
HEADER = "raw_classification,main_classification,super_classification,type,xmin,ymin,xmax,ymax,coords_x,coords_y"
ROWS = (
    'fov,fov,fov,rectangle,0,0,60,60,"0,60,60,0","0,0,60,60"',
    'tumor,tumor,tumor_any,polyline,10,10,30,30,"10,30,30,10","10,10,30,30"',
    "lymphocyte,lymphocyte,sTIL,rectangle,25,10,45,30,,",
    'lymphocyte,lymphocyte,sTIL,rectangle,2,40,12,50,"2,12,12,2","40,40,50,50"',
    'unlabeled,unlabeled,AMBIGUOUS,polyline,40,40,50,50,"40,50,50,40","40,40,50,50"',
    'tumor,tumor,tumor_any,polyline,70,70,80,80,"70,80,80","70,70,80"',
    'apoptosis,other,other_nucleus,polyline,20,20,26,26,"20,26,26,20","20,20,26,26"',
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "nucls"
    for name in (FIELD, OTHER):
        save(place / "rgb" / f"{name}.png", rgb(SIZE, SIZE, len(name)))
    (place / "csv").mkdir()
    (place / "csv" / f"{FIELD}.csv").write_text("\n".join((HEADER, *ROWS)))
    (place / "csv" / f"{OTHER}.csv").write_text(f"{HEADER}\n")
    splits = place / "train_test_splits"
    splits.mkdir()
    (splits / "fold_1_train.csv").write_text(",slide_name,hospital\n0,TCGA-A1-A0SP-DX1,A1\n")
    (splits / "fold_1_test.csv").write_text(",slide_name,hospital\n0,TCGA-E2-A14X-DX1,E2\n")
    return place


def bring_in(folder: Path) -> Study:
    out = folder.parent / "out"
    return Study(read_data_set("nucls", folder, out), out)


def test_outlines_lie_over_boxes_and_later_outlines_over_earlier(folder: Path) -> None:
    assert find_layout(folder) == "nucls"
    study = bring_in(folder)
    nuclei, classes = study.maps(FIELD)
    y, x = np.indices((SIZE, SIZE)) + 0.5
    expected = np.zeros((SIZE, SIZE), int)
    expected[((x - 35) / 10) ** 2 + ((y - 20) / 10) ** 2 < 1] = 3
    expected[((x - 7) / 5) ** 2 + ((y - 45) / 5) ** 2 < 1] = 3
    expected[10:30, 10:30] = 1
    expected[20:26, 20:26] = 4
    expected[40:50, 40:50] = 255
    assert np.count_nonzero(classes != expected) <= 4, "a corner or two of the ellipses"
    assert np.unique(nuclei).size == 6
    assert "6 nuclei: 2 have a box alone and are drawn as the ellipse in it, under the others; 1 hold" in study.notes
    assert "1 have no class of the four" in study.notes
    assert "beyond the field" not in study.notes
    assert not study.maps(OTHER).instances.any()


def test_patient_hospital_and_published_folds(folder: Path) -> None:
    study = bring_in(folder)
    first, second = study.rows[FIELD], study.rows[OTHER]
    assert (first.patient_id, first.he_mpp_um, first.extra["site"]) == ("TCGA-A1-A0SP", 0.2, "A1")
    assert (first.extra["fold_1"], second.extra["fold_1"]) == ("train", "test")
    assert len(study.file_list(folder)) == 6


def test_bad_rows_are_named_and_the_others_go_on(folder: Path) -> None:
    place = folder / "csv" / f"{FIELD}.csv"
    for row, told in (
        ('t,t,tumor_any,polyline,1,1,5,5,"1,5,5","1,1"', "3 numbers in coords_x, 2 in coords_y"),
        ('t,t,tumor_any,polyline,1,1,5,5,"1,x,5","1,1,5"', "could not convert"),
        ("t,t,tumor_any,rectangle,1,1,inf,5,,", "a coordinate that is not finite"),
        ("t,t,tumor_any,rectangle,1,1,,5,,", "a box of 3 numbers"),
    ):
        place.write_text(f"{HEADER}\n{row}\n")
        study = bring_in(folder)
        assert list(study.rows) == [OTHER]
        assert told in study.notes
    place.write_text("\n".join((HEADER, ROWS[0].replace("0,0,60,60", "10,0,60,60", 1), *ROWS[1:])))
    assert "1 pictures reach beyond the field that was annotated" in bring_in(folder).notes
    place.write_text("a,b\n1,2\n")
    assert "no column 'super_classification'" in bring_in(folder).notes
    with pytest.raises(SlideloomError, match=r"no slide was found .*nuclei_classes.csv"):
        read_data_set("nucls", folder / "csv", folder.parent / "out")


@pytest.fixture
def pointed(tmp_path: Path) -> Path:
    place = tmp_path / "small"
    drawn = np.zeros((SIZE, SIZE), np.uint16)
    drawn[5:15, 5:15], drawn[20:30, 25:35], drawn[40:50, 40:50] = 1, 2, 3
    for name in ("train_01", "test_01"):
        save(place / f"{name}_image.png", rgb(SIZE, SIZE, 0))
        save(place / f"{name}_labels.png", drawn)
    lines = ["image,x,y,class_id,label_id", "train_01,34,29,2,2", "train_01,30,20,2,2", "train_01,31,22,0,2"]
    lines += ["train_01,14,5,3,1", "train_01,15,5,3,0", "train_01,200,5,3,0", "test_01,5,5,1,2", "gone,1,1,1,0"]
    (place / "nuclei_classes.csv").write_text("\n".join(lines))
    return place


def test_the_class_of_a_point_is_that_of_the_nucleus_under_it(pointed: Path) -> None:
    assert find_layout(pointed) == "nucls"
    study = bring_in(pointed)
    _, classes = study.maps("train_01")
    assert (classes[6, 6], classes[25, 30], classes[45, 45]) == (4, 3, 255), "columns are x, and most points count"
    assert study.maps("test_01").class_map[6, 6] == 2
    assert (study.rows["train_01"].split, study.rows["test_01"].split) == ("train", "test")
    assert "6 nuclei; 7 points, 5 of them on a nucleus; 3 nuclei have no point, and no class" in study.notes
    assert "1 nuclei have points of several classes" in study.notes
    assert "1 points name another nucleus in 'label_id' than lies under them" in study.notes
    assert "gone: points without a picture" in study.notes
    (pointed / "nuclei_classes.csv").write_text("image,x,y,class_id\ntrain_01,5,5,7\n")
    assert "the class 7 (expected 0 to 3)" in bring_in(pointed).notes
    (pointed / "nuclei_classes.csv").write_text("image,x,y\ntrain_01,5,5\n")
    with pytest.raises(SlideError, match="no column 'class_id'"):
        bring_in(pointed)


def test_the_published_patches(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "nucls_he_15"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    study = Study(read_data_set("nucls", folder, tmp_path / "out"), tmp_path / "out")
    assert "640 nuclei; 584 points, 525 of them on a nucleus" in study.notes
    assert "name another nucleus" not in study.notes
    assert Counter(row.split for row in study.rows.values()) == {"train": 10, "test": 5}
    with (folder / "nuclei_classes.csv").open(newline="") as text:
        points = list(csv.DictReader(text))
    assert Counter(int(row["class_id"]) for row in points) == {0: 89, 1: 95, 2: 323, 3: 77}
    told = {name: {} for name in study.rows}
    for row in points:
        if row["label_id"] != "0":
            told[row["image"]].setdefault(int(row["label_id"]), Counter())[int(row["class_id"]) + 1] += 1
    n_nuclei = 0
    for name, of_nucleus in told.items():
        nuclei, classes = study.maps(name)
        ids, first = np.unique(nuclei, return_index=True)
        n_nuclei += ids.size - 1
        for one, place in zip(ids[1:].tolist(), first[1:].tolist(), strict=True):
            votes = of_nucleus.get(one)
            expected = 255 if votes is None else min(votes, key=lambda number: (-votes[number], number))
            assert classes.flat[place] == expected
    assert n_nuclei == 640
    assert CLASSES.names == ("tumor_any", "nonTIL_stromal", "sTIL", "other_nucleus")
    assert len(study.file_list(folder)) == 31
