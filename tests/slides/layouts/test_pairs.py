from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from tests.annotated_sets import Study, rgb, save

from slideloom.errors import SlideloomError
from slideloom.slides.layouts.choose import find_layout, read_data_set

SIZE = 40


def labels() -> np.ndarray:
    drawn = np.zeros((SIZE, SIZE), np.uint16)
    drawn[2:10, 2:10], drawn[20:30, 20:30] = 1, 300
    return drawn


def bring_in(folder: Path, mpp_um: float | None = 0.5) -> Study:
    out = folder.parent / "out"
    return Study(read_data_set("pairs", folder, out, mpp_um), out)


@pytest.mark.parametrize("kind", ["labels", "masks", "Instances"])
@pytest.mark.parametrize("end", ["", "_mask"])
def test_pictures_and_labels_of_the_same_name(tmp_path: Path, kind: str, end: str) -> None:
    folder = tmp_path / "set"
    for name in ("a", "b"):
        save(folder / "images" / f"{name}.png", rgb(SIZE, SIZE, 0))
    (folder / kind).mkdir()
    tifffile.imwrite(folder / kind / f"a{end}.tif", labels())
    tifffile.imwrite(folder / kind / f"c{end}.tif", labels())
    assert find_layout(folder) == "pairs"
    study = bring_in(folder)
    assert np.array_equal(study.maps("a").instances, labels())
    assert study.rows["b"].instances is None
    assert f"{kind}/c{end}.tif: a label image without a picture" in study.notes
    assert study.file_list(folder) == {"images/a.png", "images/b.png", f"{kind}/a{end}.tif"}
    assert study.rows["a"].he_mpp_um == 0.5


def test_parts_give_the_split_and_names_that_repeat_stay_apart(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for part in ("train", "Validation", "test"):
        save(folder / part / "images" / "x.png", rgb(SIZE, SIZE, len(part)))
        save(folder / part / "masks" / "x.png", labels())
    study = bring_in(folder)
    assert {name: row.split for name, row in study.rows.items()} == {
        "Validation_x": "val",
        "test_x": "test",
        "train_x": "train",
    }
    assert np.array_equal(study.picture("test_x"), rgb(SIZE, SIZE, 4))


def test_images_of_channels_and_labels_of_other_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    channels = np.random.default_rng(0).integers(0, 4000, (5, SIZE, SIZE)).astype(np.uint16)
    for name in ("a", "b", "c", "d"):
        tifffile.imwrite(
            folder / "images" / f"{name}.ome.tif", channels, photometric="minisblack", metadata={"axes": "CYX"}
        )
    np.save(folder / "labels" / "a.npy", labels().astype(np.float64))
    np.save(folder / "labels" / "b.npy", labels() / 7)
    np.save(folder / "labels" / "c.npy", labels()[:30])
    save(folder / "labels" / "d.png", np.where(labels() > 0, 255, 0).astype(np.uint8))
    (folder / "images" / "e.tif").write_bytes(b"")
    study = bring_in(folder)
    assert set(study.rows) == {"a", "b", "c", "d"}
    assert study.rows["a"].he is None
    assert study.rows["a"].sp_mpp_um == 0.5
    assert "a.ome.tif and 3 more: is no RGB of 8 bits and goes to 'sp'" in study.notes
    made = tifffile.imread(folder.parent / "out" / (study.rows["a"].instances or ""))
    assert np.array_equal(made, labels())
    assert [study.rows[name].instances for name in "bcd"] == [None] * 3
    assert "labels/b.npy left aside, the label image holds fractions" in study.notes
    assert "c: its annotation is left out, it has 30 x 40 px, its image has 40 x 40" in study.notes
    assert "labels/d.png: a mask with one number for all nuclei" in study.notes
    assert "images/e.tif (" in study.notes
    assert "left out, the file is empty" in study.notes


def test_one_nucleus_alone_is_no_mask(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    save(folder / "images" / "a.png", rgb(SIZE, SIZE, 0))
    save(folder / "labels" / "a.png", np.where(labels() == 1, 1, 0).astype(np.uint8))
    assert bring_in(folder).rows["a"].instances is not None


def test_made_beside_the_set_is_not_taken_for_the_set(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    save(folder / "images" / "a.png", rgb(SIZE, SIZE, 0))
    (folder / "labels").mkdir()
    np.save(folder / "labels" / "a.npy", labels().astype(np.float64))
    first = read_data_set("pairs", folder, folder, 0.5)
    assert (folder / "imported" / "instances" / "a.tif").is_file()
    assert (folder / "files.tsv").read_bytes().count(b"\n") == 3
    assert read_data_set("pairs", folder, folder, 0.5) == first


def test_a_wrong_folder_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png", rgb(SIZE, SIZE, 0))
    assert find_layout(tmp_path) is None
    with pytest.raises(SlideloomError, match=r"no slide was found .*'images' beside one of 'labels'"):
        read_data_set("pairs", tmp_path, tmp_path / "out")
