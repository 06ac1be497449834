from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from tests.annotated_sets import Study, rgb, save

from slideloom.errors import SlideloomError
from slideloom.slides.layouts.choose import find_layout, read_data_set

SIZE = 40


def labels(shift: int = 0) -> np.ndarray:
    drawn = np.zeros((SIZE, SIZE), np.uint16)
    drawn[2 : 10 + shift, 2:10], drawn[20:30, 20:30] = 3, 8
    return drawn


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for organ in ("human bladder", "mouse liver"):
        place = tmp_path / "NuInsSeg" / organ
        for kind in ("label masks", "label masks modify"):
            (place / kind).mkdir(parents=True)
        for number in (1, 2):
            name = f"{organ.replace(' ', '_')}_{number:02d}"
            save(place / "tissue images" / f"{name}.png", rgb(SIZE, SIZE, number))
            tifffile.imwrite(place / "label masks modify" / f"{name}.tif", labels())
            tifffile.imwrite(place / "label masks" / f"{name}.tif", labels(shift=5))
        vague = np.zeros((SIZE, SIZE), np.uint8)
        save(place / "vague areas" / "mask binary" / f"{organ.replace(' ', '_')}_01.png", vague)
    return tmp_path / "NuInsSeg"


def bring_in(folder: Path, mpp_um: float | None = 0.25) -> Study:
    out = folder.parent / "out"
    return Study(read_data_set("nuinsseg", folder, out, mpp_um), out)


def test_organs_and_species_and_the_modified_labels(folder: Path) -> None:
    assert find_layout(folder) == "nuinsseg"
    study = bring_in(folder)
    assert {name: (row.platform, row.extra["tissue"]) for name, row in study.rows.items()} == {
        "human_bladder_01": ("human", "bladder"),
        "human_bladder_02": ("human", "bladder"),
        "mouse_liver_01": ("mouse", "liver"),
        "mouse_liver_02": ("mouse", "liver"),
    }
    assert np.array_equal(study.maps("mouse_liver_02").instances, labels())
    assert np.array_equal(study.picture("mouse_liver_02"), rgb(SIZE, SIZE, 2))
    assert len(study.file_list(folder)) == 4 * 2 + 2
    assert not (folder.parent / "out" / "imported").exists(), "label images are named where they lie"


def test_vague_areas_are_named(folder: Path) -> None:
    study = bring_in(folder)
    named = {name: row.extra.get("vague") for name, row in study.rows.items()}
    assert named["human_bladder_02"] is None
    assert (folder.parent / "out" / str(named["human_bladder_01"])).is_file()
    assert "2 pictures have a map of vague areas" in study.notes


def test_other_forms_of_labels(folder: Path) -> None:
    place = folder / "mouse liver"
    (place / "label masks modify" / "mouse_liver_01.tif").unlink()
    tifffile.imwrite(place / "label masks modify" / "mouse_liver_02.tif", labels().astype(np.float32))
    binary = folder / "human bladder" / "label masks modify" / "human_bladder_01.tif"
    tifffile.imwrite(binary, np.where(labels() > 0, 255, 0).astype(np.uint8))
    tifffile.imwrite(binary.with_name("human_bladder_02.tif"), rgb(SIZE, SIZE, 1))
    study = bring_in(folder)
    assert np.array_equal(study.maps("mouse_liver_01").instances, labels(shift=5))
    assert "mouse_liver_01: 'label masks' is taken, 'label masks modify' has no such file" in study.notes
    assert np.array_equal(study.maps("mouse_liver_02").instances, labels()), "whole numbers saved as fractions"
    assert study.rows["human_bladder_01"].instances is study.rows["human_bladder_02"].instances is None
    assert "human_bladder_01.tif: a mask with one number for all nuclei" in study.notes
    assert "human_bladder_02.tif left aside, 3 values a pixel are a picture" in study.notes


def test_the_pixel_size_must_be_given(folder: Path) -> None:
    study = bring_in(folder, None)
    assert "give --mpp" in study.notes
    assert study.rows["mouse_liver_01"].he_mpp_um is None
    with pytest.raises(SlideloomError, match=r"no slide was found .*'label masks modify'"):
        read_data_set("nuinsseg", folder / "mouse liver" / "label masks", folder.parent / "out")


def test_nothing_is_looked_for_outside_of_the_folder(folder: Path) -> None:
    place = folder / "mouse liver" / "tissue images"
    assert find_layout(place) is None
    with pytest.raises(SlideloomError, match="no slide was found"):
        read_data_set("nuinsseg", place, folder.parent / "out")
