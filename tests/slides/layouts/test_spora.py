from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.data_sets import write_ome_zarr, write_spora, write_table

from slideloom.errors import SlideloomError
from slideloom.slides.annotations import read_annotations
from slideloom.slides.headers import read_facts
from slideloom.slides.layouts.choose import find_layout, read_data_set
from slideloom.slides.layouts.imported import Imported, write_tables
from slideloom.slides.open import open_image
from slideloom.slides.sheet import read_sheet
from slideloom.slides.source import parse_source
from slideloom.slides.tables import Channel, MarkerTable, read_classes, read_markers

TISSUES = ("t2", "t1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_spora(tmp_path / "set", TISSUES)
    return tmp_path / "set"


def bring_in(folder: Path, mpp_um: float | None = None) -> Imported:
    return read_data_set("spora", folder, folder.parent / "out", mpp_um)


def test_tissues_become_rows_whose_images_open(folder: Path) -> None:
    found = bring_in(folder)
    assert [row.slide_id for row in found.rows] == ["t1", "t2"]
    assert found.channels == (
        Channel("DNA", "DNA", nuclear=True),
        Channel("CD3", "CD3", "P07766"),
        Channel("blank", "blank"),
        Channel("CD4", "CD4_qc_failed"),
    )
    out = folder.parent / "out"
    for row in found.rows:
        facts = read_facts(row, out, MarkerTable(found.channels))
        image = facts.image("sp")
        assert (image.shape, image.mpp_um, image.dtype, image.channels) == ((64, 64), 1.0, "float32", found.channels)
        read = read_annotations(row, out, facts, "sp", 1.0, found.classes)
        assert read is not None
        maps, warnings = read
        assert warnings == ()
        kinds = {found.classes.names[number - 1]: int((maps.class_map == number).sum()) for number in found.classes.ids}
        assert kinds == {"B cell": 32, "T cell": 16}
        with open_image(parse_source(row.sp or "", out), "sp") as opened:
            values = opened.read(0, y=0, x=0, height=64, width=64)
        assert np.array_equal(
            values, np.random.default_rng(TISSUES.index(row.slide_id)).random((4, 64, 64), np.float32)
        )
    told = "\n".join(found.notes)
    assert "quality control are left out under their own names: CD4" in told
    assert "'markers: [CD3]'" in told


def test_tables_are_read_back(folder: Path) -> None:
    found = bring_in(folder, mpp_um=0.5)
    written = write_tables(found, folder.parent / "out" / "slides.tsv")
    rows, problems = read_sheet(written[0])
    assert (tuple(rows), problems) == (found.rows, [])
    assert {row.sp_mpp_um for row in rows} == {0.5}, "what is given counts"
    assert read_markers(written[1]) == (MarkerTable(found.channels), [])
    assert read_classes(written[2]) == (found.classes, [])


def test_channels_without_names_go_by_the_tables(tmp_path: Path) -> None:
    write_spora(tmp_path / "set", ("a", "b"), names=False)
    write_ome_zarr(tmp_path / "set" / "codex" / "1_0mpp" / "images" / "b.zarr", np.zeros((3, 64, 64), np.uint16))
    write_table(
        tmp_path / "set" / "codex" / "channels_per_tissue.parquet",
        {"tissue_id": ["a", "b"], "CD4": [True, True], "CD3": [True, True], "DNA": [True, True], "blank": [1, 0]},
    )
    first, second = bring_in(tmp_path / "set").rows
    assert first.sp_channels == ("DNA", "CD3", "blank", "CD4")
    assert second.sp_channels == ("DNA", "CD3", "CD4"), "in the order of the table of channels"


def test_each_tissue_that_lacks_something_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_spora(folder, ("a", "b", "c", "d", "e f"))
    images = folder / "codex" / "1_0mpp" / "images"
    shutil.rmtree(images / "a.zarr")
    shutil.rmtree(folder / "segmentations" / "1_0mpp" / "b.zarr")
    write_ome_zarr(folder / "segmentations" / "1_0mpp" / "c.zarr", np.zeros((30, 30), np.uint8))
    (images / "d.zarr" / "zarr.json").write_text("{")
    write_ome_zarr(folder / "he" / "1_0mpp" / "b.zarr", np.zeros((3, 64, 64), np.uint8), 1.0)
    found = bring_in(folder)
    rows = {row.slide_id: row for row in found.rows}
    assert sorted(rows) == ["b", "c", "e_f"]
    assert rows["b"].he is not None
    assert rows["b"].instances is rows["c"].instances is None
    told = "\n".join(found.notes)
    assert "a: no image, left out" in told
    assert "c: segmentations/1_0mpp/c.zarr left out, it is 30 x 30 px" in told
    assert "d: codex/1_0mpp/images/d.zarr left out" in told
    assert "e f: is called e_f in the sheet" in told
    assert "b and 1 more: no segmentation" in told


def test_classes_are_left_out_where_no_column_says_them(folder: Path) -> None:
    write_table(folder / "metadata" / "cells.parquet", {"tissue_id": ["t1"], "area": [3.0]})
    found = bring_in(folder)
    assert len(found.classes) == 0
    assert all(row.instances and not row.classes for row in found.rows)
    assert any("no column for the label and the class; its columns are tissue_id, area" in note for note in found.notes)


def test_a_wrong_folder_is_refused(folder: Path) -> None:
    assert find_layout(folder) == "spora"
    with pytest.raises(SlideloomError, match=r"the table metadata/tissues\.parquet is missing"):
        bring_in(folder / "codex")
    write_table(folder / "codex" / "channels.parquet", {"name": ["CD3"]})
    with pytest.raises(SlideloomError, match="no column 'channel_name'"):
        bring_in(folder)
    (folder / "codex" / "channels.parquet").unlink()
    with pytest.raises(SlideloomError, match=r"no folder holds a channels\.parquet"):
        bring_in(folder)
    (folder / "metadata" / "tissues.parquet").write_text("no Parquet")
    with pytest.raises(SlideloomError, match="cannot be read"):
        bring_in(folder)
