from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from tests.annotated_sets import Study, rgb, save

from slideloom.errors import SlideError, SlideloomError
from slideloom.slides.layouts.choose import find_layout, read_data_set
from slideloom.slides.layouts.lizard import CLASSES

SIZE = 48
#: Number in the map: top, left, class. Numbers have gaps, and 'id' lists them in another order.
NUCLEI = {7: (2, 2, 6), 2: (2, 20, 1), 11: (20, 2, 3)}


def drawn() -> tuple[np.ndarray, np.ndarray]:
    nuclei, types = np.zeros((2, SIZE, SIZE), np.int32)
    for number, (top, left, kind) in NUCLEI.items():
        nuclei[top : top + 12, left : left + 12] = number
        types[top : top + 12, left : left + 12] = kind
    return nuclei, types


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "lizard"
    labels = place / "Lizard_Labels"
    (labels / "Labels").mkdir(parents=True)
    lines = ["Filename,Source,Split"]
    for split, name in enumerate(("consep_1", "crag_2", "glas_3"), 1):
        part = "Lizard_Images1" if split < 3 else "Lizard_Images2"
        save(place / part / part / f"{name}.png", rgb(SIZE, SIZE, split))
        held = {
            "inst_map": drawn()[0].astype(np.float64),
            "id": np.array([[number] for number in NUCLEI]),
            "class": np.array([[kind] for *_, kind in NUCLEI.values()]),
            "centroid": np.zeros((3, 2)),
        }
        scipy.io.savemat(labels / "Labels" / f"{name}.mat", held, do_compression=True)
        lines.append(f"{name},{name.partition('_')[0]},{split}")
    (labels / "info.csv").write_text("\n".join(lines))
    return place


def bring_in(folder: Path, layout: str = "lizard") -> Study:
    out = folder.parent / "out"
    return Study(read_data_set(layout, folder, out), out)


def test_classes_go_by_the_numbers_that_id_lists(folder: Path) -> None:
    assert find_layout(folder) == "lizard"
    study = bring_in(folder)
    nuclei, classes = study.maps("crag_2")
    assert np.array_equal(nuclei, drawn()[0])
    assert np.array_equal(classes, drawn()[1])
    row = study.rows["crag_2"]
    assert (row.platform, row.he_mpp_um, row.extra["fold"]) == ("crag", 0.5, "2")
    assert "Lizard_Labels/info.csv" in study.file_list(folder)
    assert len(study.file_list(folder)) == 7


def test_each_fold_tests_once_and_the_roles_are_shared_out(folder: Path) -> None:
    rows = bring_in(folder).rows.values()
    table = {row.extra["fold"]: [row.extra[f"test_{one}"] for one in (1, 2, 3)] for row in rows}
    assert table == {"1": ["test", "train", "val"], "2": ["val", "test", "train"], "3": ["train", "val", "test"]}


def test_what_is_missing_or_odd_is_named(folder: Path) -> None:
    labels = folder / "Lizard_Labels" / "Labels"
    scipy.io.savemat(labels / "crag_2.mat", {"inst_map": drawn()[0], "id": np.array([[7]])})
    held = {"inst_map": drawn()[0], "id": np.array([[7], [2], [99]]), "class": np.array([[9], [1], [2]])}
    scipy.io.savemat(labels / "consep_1.mat", held)
    (folder / "Lizard_Images2" / "Lizard_Images2" / "glas_3.png").unlink()
    study = bring_in(folder)
    assert list(study.rows) == ["consep_1"]
    assert "crag_2 (crag_2.mat): left out, the variable 'class' is missing" in study.notes
    assert "consep_1.mat: 1 entries name no nucleus of the map" in study.notes
    assert "consep_1.mat: classes 9 are not of Lizard and left aside" in study.notes
    assert "glas_3: labels without a picture" in study.notes
    _, classes = study.maps("consep_1")
    assert (classes[3, 3], classes[3, 21], classes[21, 3]) == (255, 1, 255)
    (folder / "Lizard_Labels" / "info.csv").write_text("Name,Source\n")
    with pytest.raises(SlideError, match="no column 'Filename'"):
        bring_in(folder)
    (folder / "Lizard_Labels" / "info.csv").unlink()
    study = bring_in(folder)
    assert "info.csv is missing" in study.notes
    assert "fold" not in study.rows["consep_1"].extra


@pytest.fixture
def conic(tmp_path: Path) -> Path:
    place = tmp_path / "conic" / "data"
    place.mkdir(parents=True)
    nuclei, types = drawn()
    labels = np.zeros((3, SIZE, SIZE, 2), np.uint16)
    labels[0, ..., 0], labels[0, ..., 1] = nuclei, types
    labels[2] = labels[0]
    np.save(place / "images.npy", np.stack([rgb(SIZE, SIZE, seed) for seed in range(3)]))
    np.save(place / "labels.npy", labels)
    (place / "patch_info.csv").write_text("patch_info\nglas_3-0000\nglas_3-0001\ncrag_2-0000\n")
    header = ",".join(name.lower() for name in CLASSES.names)
    (place / "counts.csv").write_text(f"{header}\n1,0,1,0,0,1\n0,0,0,0,0,0\n1,0,0,0,0,0\n")
    return place.parent


def test_conic_tiles_of_one_picture_share_their_patient(conic: Path) -> None:
    assert find_layout(conic) == "conic"
    study = bring_in(conic, "conic")
    assert {name: (row.patient_id, row.platform) for name, row in study.rows.items()} == {
        "crag_2-0000": ("crag_2", "crag"),
        "glas_3-0000": ("glas_3", "glas"),
        "glas_3-0001": ("glas_3", "glas"),
    }
    for index, name in enumerate(("glas_3-0000", "glas_3-0001", "crag_2-0000")):
        assert np.array_equal(study.picture(name), rgb(SIZE, SIZE, index))
    nuclei, classes = study.maps("glas_3-0000")
    assert np.array_equal(nuclei, drawn()[0])
    assert np.array_equal(classes, drawn()[1])
    assert not study.maps("glas_3-0001").instances.any()
    assert "counts.csv counts more" not in study.notes
    kinds = ("images.npy", "labels.npy", "patch_info.csv", "counts.csv")
    assert study.file_list(conic) == {f"data/{kind}" for kind in kinds}


def test_conic_tables_that_do_not_belong_to_the_arrays(conic: Path) -> None:
    place = conic / "data"
    (place / "counts.csv").write_text("neutrophil,plasma\n2,0\n0,0\n0,0\n")
    assert "1 of 3 tiles: counts.csv counts more nuclei of a class than are drawn" in bring_in(conic, "conic").notes
    (place / "patch_info.csv").write_text("patch_info\nglas_3-0000\n")
    with pytest.raises(SlideError, match=r"1 rows, images\.npy 3 tiles"):
        bring_in(conic, "conic")
    (place / "patch_info.csv").unlink()
    study = bring_in(conic, "conic")
    assert "which tiles are of one picture is not known" in study.notes
    assert list(study.rows) == ["tile_0000", "tile_0001", "tile_0002"]
    np.save(place / "labels.npy", np.zeros((2, SIZE, SIZE, 2), np.uint16))
    with pytest.raises(SlideError, match=r"labels.npy has the shape \(2, 48, 48, 2\)"):
        bring_in(conic, "conic")
    empty = conic.parent / "empty"
    empty.mkdir()
    with pytest.raises(SlideloomError, match="no slide was found"):
        read_data_set("conic", empty, conic)
