from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.annotated_sets import Study, rgb, save

from slideloom.errors import SlideError, SlideloomError
from slideloom.slides.layouts.choose import find_layout, read_data_set
from slideloom.slides.layouts.pannuke import SPLITS

SIZE = 32
TISSUES = ("Breast", "Adrenal_gland", "Colon")


def masks() -> np.ndarray:
    """Three tiles: two classes that use the same number and overlap; none; a nucleus that another one hides."""
    drawn = np.zeros((3, SIZE, SIZE, 6))
    drawn[0, 2:10, 2:10, 0] = 5
    drawn[0, 20:28, 20:28, 0] = 9
    drawn[0, 6:14, 6:14, 2] = 5
    drawn[2, 4:8, 4:8, 1] = 1
    drawn[2, 2:12, 2:12, 4] = 1
    drawn[..., 5] = (drawn[..., :5] == 0).all(-1)
    return drawn


def write_fold(folder: Path, fold: int) -> np.ndarray:
    folder.mkdir(parents=True)
    pictures = np.stack([rgb(SIZE, SIZE, 10 * fold + index) for index in range(3)])
    np.save(folder / "images.npy", pictures.astype(np.float64))
    np.save(folder / "masks.npy", masks())
    np.save(folder / "types.npy", np.array(TISSUES))
    return pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for fold in (1, 2, 3):
        write_fold(tmp_path / "set" / f"fold{fold}", fold)
    return tmp_path / "set"


def bring_in(folder: Path) -> Study:
    out = folder.parent / "out"
    return Study(read_data_set("pannuke", folder, out), out)


def test_tiles_become_slides_with_fold_tissue_and_the_three_splits(folder: Path) -> None:
    assert find_layout(folder) == "pannuke"
    study = bring_in(folder)
    assert list(study.rows) == [f"fold{fold}_{index:04d}" for fold in (1, 2, 3) for index in range(3)]
    for name, row in study.rows.items():
        fold, index = int(name[4]), int(name[-1])
        assert row.he_mpp_um == 0.25
        assert row.extra["fold"] == str(fold)
        assert row.extra["tissue"] == TISSUES[index]
        assert np.array_equal(study.picture(name), rgb(SIZE, SIZE, 10 * fold + index))
    roles = {
        name: {str(f): row.extra[name] for f, row in ((r.extra["fold"], r) for r in study.rows.values())}
        for name in SPLITS
    }
    assert roles == {
        "split_1": {"1": "train", "2": "val", "3": "test"},
        "split_2": {"1": "val", "2": "train", "3": "test"},
        "split_3": {"1": "test", "2": "val", "3": "train"},
    }
    kinds = ("images", "masks", "types")
    assert study.file_list(folder) == {f"fold{fold}/{kind}.npy" for fold in (1, 2, 3) for kind in kinds}


def test_a_number_that_two_classes_use_is_two_nuclei_and_the_later_channel_lies_above(folder: Path) -> None:
    study = bring_in(folder)
    nuclei, classes = study.maps("fold1_0000")
    drawn = masks()[0]
    expected = np.zeros((SIZE, SIZE), int)
    for number in range(5):
        expected[drawn[..., number] > 0] = number + 1
    assert np.array_equal(classes, expected)
    assert len({nuclei[3, 3], nuclei[24, 24], nuclei[12, 12], 0}) == 4
    assert np.array_equal(nuclei == nuclei[12, 12], drawn[..., 2] > 0)
    assert np.count_nonzero(nuclei == nuclei[3, 3]) == 64 - 16
    overlaid = 16 + 16  # px of the two overlaps of a fold: tile 0, and the hidden nucleus of tile 2
    assert (
        study.notes.count(f"{overlaid} px belong to nuclei of two classes and count for the later one, 1 nuclei") == 3
    )


def test_tiles_without_nuclei_stay_and_can_be_learnt_from(folder: Path) -> None:
    study = bring_in(folder)
    nuclei, classes = study.maps("fold2_0001")
    assert not nuclei.any()
    assert not classes.any()
    assert "fold 2: 1 tiles without nuclei are kept" in study.notes
    nuclei, classes = study.maps("fold2_0002")
    assert np.unique(nuclei).size == 2, "the hidden nucleus is gone, and its row of the class table with it"
    assert set(np.unique(classes)) == {0, 5}


def test_types_as_objects_are_refused_with_a_way_out_and_never_unpickled(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    np.save(folder / "fold2" / "types.npy", np.array([Trap(), "Colon", "Colon"], object), allow_pickle=True)
    with pytest.raises(SlideError, match=r"types.npy: it holds Python objects.*astype\(str\)") as caught:
        bring_in(folder)
    assert caught.value.code == "pickled"
    assert not (tmp_path / "ran").exists()


def test_the_published_nesting_and_folds_that_lack_something(tmp_path: Path) -> None:
    write_fold(tmp_path / "set" / "Fold 1" / "images" / "fold1", 1)
    other = tmp_path / "set" / "Fold 3"
    write_fold(other / "images" / "fold3", 3)
    (other / "masks" / "fold3").mkdir(parents=True)
    (other / "images" / "fold3" / "masks.npy").rename(other / "masks" / "fold3" / "masks.npy")
    (other / "images" / "fold3" / "types.npy").unlink()
    study = bring_in(tmp_path / "set")
    assert len(study.rows) == 6
    assert "fold 3: types.npy missing" in study.notes
    assert "fold 2 is not there" in study.notes
    assert "tissue" not in study.rows["fold3_0000"].extra
    (tmp_path / "set" / "Fold 1" / "images" / "fold1" / "masks.npy").unlink()
    study = bring_in(tmp_path / "set")
    assert study.rows["fold1_0000"].instances is None
    assert "fold 1: masks.npy missing" in study.notes


def test_pictures_are_not_altered_and_arrays_must_belong_together(folder: Path) -> None:
    np.save(folder / "fold1" / "images.npy", np.full((3, SIZE, SIZE, 3), 0.5))
    study = bring_in(folder)
    assert len(study.rows) == 6
    assert "fold1_0000 and 2 more: left out" in study.notes
    assert "whole numbers from 0 to 255" in study.notes
    np.save(folder / "fold1" / "images.npy", np.zeros((2, SIZE, SIZE, 3)))
    with pytest.raises(SlideError, match=r"masks.npy of fold 1 has the shape \(3, 32, 32, 6\)"):
        bring_in(folder)


def test_cellvits_folders_with_labels_saved_again(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    nuclei, types = np.zeros((2, SIZE, SIZE), np.int32)
    nuclei[2:10, 2:10], types[2:10, 2:10] = 1, 2
    types[2:3, 2:10] = 3
    for fold in (0, 1, 2):
        for index in (0, 1):
            save(folder / f"fold{fold}" / "images" / f"{fold}_{index}.png", rgb(SIZE, SIZE, index))
        labels = folder / f"fold{fold}" / "labels"
        labels.mkdir()
        np.save(labels / f"{fold}_0.npy", np.array({"inst_map": nuclei}, object), allow_pickle=True)
        np.savez_compressed(labels / f"{fold}_0.npz", inst_map=nuclei, type_map=types)
        np.save(labels / f"{fold}_1.npy", np.array({"inst_map": nuclei}, object), allow_pickle=True)
        (folder / f"fold{fold}" / "types.csv").write_text(f"img,type\n{fold}_0.png,Skin\n{fold}_1.png,Uterus\n")
    assert find_layout(folder) == "pannuke"
    study = bring_in(folder)
    assert [row.extra["split_1"] for row in study.rows.values()] == ["train"] * 2 + ["val"] * 2 + ["test"] * 2
    assert [row.extra["fold"] for row in study.rows.values()] == ["1", "1", "2", "2", "3", "3"]
    first, second = (study.rows[f"fold1_0_{index}"] for index in (0, 1))
    assert (first.extra["tissue"], second.extra["tissue"]) == ("Skin", "Uterus")
    assert second.instances is None
    drawn, classes = study.maps("fold1_0_0")
    assert np.array_equal(drawn, nuclei)
    assert np.array_equal(classes, np.where(nuclei > 0, 2, 0)), "most pixels of a nucleus count"
    assert "1 labels, such as 0_1.npy, hold Python objects and are left aside" in study.notes
    assert "savez_compressed" in study.notes


def test_a_wrong_folder_is_refused(tmp_path: Path) -> None:
    assert find_layout(tmp_path) is None
    with pytest.raises(SlideloomError, match=r"no slide was found .*images.npy, masks.npy"):
        read_data_set("pannuke", tmp_path, tmp_path / "out")
