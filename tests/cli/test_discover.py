from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from slideloom.cli.discover import discover
from slideloom.errors import SlideloomError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(folder: Path) -> dict[str, dict[str, str]]:
    names = ("he", "sp", "instances", "classes")
    return {
        row.slide_id: {name: text for name in names if (text := getattr(row, name))} for row in discover(folder).rows
    }


def test_names_decide_what_belongs_together(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "case7_he.svs",
        "case7_sp.ome.tif",
        "case7_labels.tif",
        "case7_classes.csv",
        "case 8-HE.ndpi",
        "case 8-CODEX.qptiff",
        "c9_if.tif",
        "c9_if_instances.png",
        "c10.svs",
        "c10_he_labels.npy",
        "notes.txt",
        "pairs.csv",
        ".hidden.svs",
        "sub/d_mif_image.ome.tiff",
        "m.mrxs",
        "m/Data0001.tif",
    )
    assert found(tmp_path) == {
        "case7": {
            "he": "case7_he.svs",
            "sp": "case7_sp.ome.tif",
            "instances": "case7_labels.tif",
            "classes": "case7_classes.csv",
        },
        "case_8": {"he": "case 8-HE.ndpi", "sp": "case 8-CODEX.qptiff"},
        "c9": {"sp": "c9_if.tif", "instances": "c9_if_instances.png"},
        "c10": {"he": "c10.svs", "instances": "c10_he_labels.npy"},
        "d": {"sp": "sub/d_mif_image.ome.tiff"},
        "m": {"he": "m.mrxs"},
    }


def test_folders_may_say_it(tmp_path: Path) -> None:
    touch(tmp_path, "he/a.svs", "sp/a.ome.tif", "labels/a.tif", "classes/a.csv", "he/b.svs")
    assert found(tmp_path) == {
        "a": {"he": "he/a.svs", "sp": "sp/a.ome.tif", "instances": "labels/a.tif", "classes": "classes/a.csv"},
        "b": {"he": "he/b.svs"},
    }


def test_an_image_whose_name_does_not_say_is_looked_at(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((32, 40, 3), np.uint8), photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((5, 32, 40), np.uint16), photometric="minisblack")
    (tmp_path / "c.tif").write_bytes(b"nothing")
    discovery = discover(tmp_path)
    assert [(row.slide_id, bool(row.he)) for row in discovery.rows] == [("a", True), ("b", False), ("c", True)]
    assert len(discovery.notes) == 1
    assert "c.tif: cannot be opened" in discovery.notes[0]


def test_zarr_folders_are_images_not_searched(tmp_path: Path) -> None:
    touch(tmp_path, "a_sp.ome.zarr/0/c/0/0.png", "a_sp.ome.zarr/zarr.json")
    assert found(tmp_path) == {"a": {"sp": "a_sp.ome.zarr"}}


def test_one_name_in_two_folders(tmp_path: Path) -> None:
    touch(tmp_path, "p1/scan.svs", "p2/scan.svs", "p3/Scan.svs")
    assert found(tmp_path) == {
        "scan": {"he": "p1/scan.svs"},
        "p2_scan": {"he": "p2/scan.svs"},
        "p3_Scan": {"he": "p3/Scan.svs"},
    }


def test_what_is_left_aside_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "a_he.svs", "a_he.ndpi", "b_labels.tif", "nuclei_classes.csv")
    notes = discover(tmp_path).notes
    assert any("more than one file for 'he'" in note for note in notes)
    assert any("b_labels.tif: belongs to no image" in note for note in notes)
    assert any("nuclei_classes.csv" in note and "path::image" in note for note in notes)


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(SlideloomError, match="no image was found"):
        discover(tmp_path)
    with pytest.raises(SlideloomError, match="does not exist"):
        discover(tmp_path / "none")
