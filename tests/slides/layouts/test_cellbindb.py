from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from slideloom.errors import SlideloomError
from slideloom.slides.headers import read_facts
from slideloom.slides.labels import read_instances
from slideloom.slides.layouts.choose import find_layout, read_data_set
from slideloom.slides.layouts.imported import Imported
from slideloom.slides.open import open_image
from slideloom.slides.sheet import SlideRow, read_sheet
from slideloom.slides.source import parse_source
from slideloom.slides.tables import MarkerTable

SIZE = 48


def labels(n: int) -> NDArray[np.uint16]:
    drawn = np.zeros((SIZE, SIZE), np.uint16)
    for number in range(n):
        y, x = 6 * (number // 7), 6 * (number % 7)
        drawn[y : y + 5, x : x + 5] = number + 1
    return drawn


def put(place: Path, image: NDArray[np.generic], n: int, byteorder: str = "<") -> None:
    place.mkdir(parents=True)
    drawn = labels(n)
    kind = "rgb" if image.ndim == 3 else "minisblack"
    tifffile.imwrite(place / f"{place.name}-img.tif", image, photometric=kind, byteorder=byteorder)
    tifffile.imwrite(place / f"{place.name}-instancemask.tif", drawn)
    tifffile.imwrite(place / f"{place.name}-mask.tif", (drawn > 0).astype(np.uint8) * 255)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The deposit: the folder of the archive around those of the stains."""
    top = tmp_path / "set" / "CellBinDB"
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    deep = rng.integers(0, 60_000, (SIZE, SIZE), dtype=np.uint16)
    put(top / "10×Genomics_HE" / "human_lung_1", picture, 5)
    put(top / "10×Genomics_DAPI" / "human_skin_1", deep, 6)
    put(top / "HE" / "mouse_1", picture, 7)
    put(top / "DAPI" / "mouse_1", deep, 8, ">")
    put(top / "ssDNA" / "mouse_1", deep.astype(np.uint8), 9)
    put(top / "mIF" / "human_tonsil_1", picture[..., :1].repeat(3, 2), 10)
    return tmp_path / "set"


def bring_in(folder: Path, mpp_um: float | None = None) -> tuple[dict[str, SlideRow], dict[str, SlideRow], Imported]:
    found = read_data_set("cellbindb", folder, folder.parent / "out", mpp_um)
    cells, problems = read_sheet(folder.parent / "out" / "cells.tsv")
    assert problems == []
    return {row.slide_id: row for row in found.rows}, {row.slide_id: row for row in cells}, found


def test_the_deposit_by_stain(folder: Path) -> None:
    assert find_layout(folder) == find_layout(folder / "CellBinDB") == "cellbindb"
    nuclei, cells, found = bring_in(folder)
    out, markers = folder.parent / "out", MarkerTable(found.channels)
    expected = {
        "cellbindb_10x_he_human_lung_1": ("cellbindb_10x_he", "he", 5),
        "cellbindb_10x_dapi_human_skin_1": ("cellbindb_10x_dapi", "sp", 6),
        "cellbindb_he_mouse_1": ("cellbindb_he", "he", 7),
        "cellbindb_dapi_mouse_1": ("cellbindb_dapi", "sp", 8),
        "cellbindb_ssdna_mouse_1": ("cellbindb_ssdna", "sp", 9),
        "cellbindb_mif_human_tonsil_1": ("cellbindb_mif", "sp", 10),
    }
    assert nuclei.keys() == cells.keys() == expected.keys()
    for slide, (platform, modality, n) in expected.items():
        row = nuclei[slide]
        assert row.platform == platform
        assert bool(row.he) is (modality == "he")
        marked = cells[slide] if platform == "cellbindb_mif" else row
        other = row if platform == "cellbindb_mif" else cells[slide]
        assert (other.instances, other.split, marked.split) == (None, "infer", "test")
        drawn = read_instances(parse_source(marked.instances or "", out))
        assert np.unique(drawn).size - 1 == n
        facts = read_facts(row, out, markers).image("he" if modality == "he" else "sp")
        assert facts.mpp_um == 0.5
        if modality == "sp":
            assert [one.nuclear for one in facts.channels] == [platform != "cellbindb_mif"]
    told = "\n".join(found.notes)
    assert "THE FILES DO NOT HOLD THEIR PIXEL SIZE" in told
    assert "a grey image stored in colours: written as one channel" in told
    assert not any("PIXEL SIZE" in note for note in bring_in(folder, 0.4)[2].notes)


def test_a_grey_image_in_colours_keeps_its_values(folder: Path) -> None:
    nuclei, _, _ = bring_in(folder)
    source = folder / "CellBinDB" / "mIF" / "human_tonsil_1" / "human_tonsil_1-img.tif"
    with open_image(parse_source(nuclei["cellbindb_mif_human_tonsil_1"].sp or "", folder.parent / "out"), "sp") as one:
        assert one.channel_names == ("membrane",)
        assert np.array_equal(one.read(0, 0, 0, SIZE, SIZE)[0], tifffile.imread(source)[..., 0])


def test_damaged_images_are_told_and_the_others_go_on(folder: Path) -> None:
    top = folder / "CellBinDB"
    image = top / "HE" / "mouse_1" / "mouse_1-img.tif"
    image.write_bytes(image.read_bytes()[:-500])
    tifffile.imwrite(top / "ssDNA" / "mouse_1" / "mouse_1-instancemask.tif", labels(3)[:40])
    (top / "DAPI" / "mouse_1" / "mouse_1-instancemask.tif").unlink()
    nuclei, _, found = bring_in(folder)
    assert sorted(row.platform for row in nuclei.values()) == [
        "cellbindb_10x_dapi",
        "cellbindb_10x_he",
        "cellbindb_mif",
    ]
    told = "\n".join(found.notes)
    assert told.count("mouse_1: left out") == 3
    assert "the annotation is 40 x 48 px" in told


def test_a_wrong_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "HE").mkdir()
    assert find_layout(tmp_path) is None
    with pytest.raises(SlideloomError, match=r"no image with its outlines was found .*-instancemask\.tif"):
        read_data_set("cellbindb", tmp_path, tmp_path)
    put(tmp_path / "HE" / "a", np.zeros((SIZE, SIZE, 3), np.uint8), 1)
    (tmp_path / "HE" / "a" / "a-img.tif").write_bytes(b"")
    with pytest.raises(SlideloomError, match="none of 1 images can be used"):
        read_data_set("cellbindb", tmp_path, tmp_path)


def test_the_demo_images_have_the_objects_that_their_notes_count(shared: Path, tmp_path: Path) -> None:
    place = shared / "data" / "cellbindb_demo"
    assert find_layout(place) == "cellbindb"
    found = read_data_set("cellbindb", place, tmp_path)
    cells, _ = read_sheet(tmp_path / "cells.tsv")
    counted = {
        row.slide_id.removeprefix("cellbindb_"): np.unique(read_instances(parse_source(row.instances, tmp_path))).size
        - 1
        for row in (*found.rows, *cells)
        if row.instances
    }
    assert counted == {"he": 356, "tenx_he": 79, "dapi": 58, "tenx_dapi": 73, "ssdna": 121, "mif": 48}
    markers = MarkerTable(found.channels)
    assert all(read_facts(row, tmp_path, markers) for row in found.rows)
    assert {row.platform for row in found.rows if row.he} == {"cellbindb_he", "cellbindb_10x_he"}
