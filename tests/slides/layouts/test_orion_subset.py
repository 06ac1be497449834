from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage
from tests.data_sets import class_map, write_orion_subset

from slideloom.errors import SlideloomError
from slideloom.slides.headers import read_facts
from slideloom.slides.layouts.choose import find_layout, read_data_set
from slideloom.slides.layouts.imported import Imported, write_tables
from slideloom.slides.layouts.orion_subset import CLASSES, PANEL, SCANNED
from slideloom.slides.open import open_image
from slideloom.slides.sheet import read_sheet
from slideloom.slides.source import parse_source
from slideloom.slides.tables import MarkerTable, read_classes, read_markers

IDS = ("orion_zzzzzzzz_0", "orion_abcdefgh_0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_orion_subset(tmp_path / "set", IDS)
    return tmp_path / "set"


def bring_in(folder: Path, mpp_um: float | None = 0.325) -> Imported:
    return read_data_set("orion_subset", folder, folder.parent / "out", mpp_um)


def test_pairs_become_rows_whose_images_open(folder: Path) -> None:
    found = bring_in(folder)
    assert [row.slide_id for row in found.rows] == sorted(IDS)
    markers, out = MarkerTable(found.channels), folder.parent / "out"
    for row in found.rows:
        facts = read_facts(row, out, markers)
        assert facts.image("sp").shape == facts.image("he").shape == (64, 64)
        assert facts.image("sp").mpp_um == facts.image("he").mpp_um == 0.325
        assert facts.image("sp").channels == PANEL
        with open_image(parse_source(row.sp or "", out), "sp") as image:
            stored = np.load(folder / "sp" / f"{row.slide_id}.npy")
            assert np.array_equal(image.read(0, y=0, x=0, height=64, width=64), stored)
    assert any("touch are one there" in note for note in found.notes)


def test_nuclei_are_connected_pixels_of_one_class(folder: Path) -> None:
    bring_in(folder)
    drawn = class_map(64, 1)
    made = tifffile.imread(folder.parent / "out" / "instances" / f"{IDS[1]}.tif")
    expected = sum(ndimage.label(drawn == number)[1] for number in range(1, 10))
    assert made.max() == expected == np.unique(made[made > 0]).size
    assert np.array_equal(made > 0, drawn > 0)
    for number in range(1, expected + 1):
        assert np.unique(drawn[made == number]).size == 1, "a nucleus has one class"
        assert ndimage.label(made == number)[1] == 1
    assert len({made[4, 4], made[8, 8], made[4, 8]}) == 3, (
        "a shared corner does not join, nor does a side of two classes"
    )


def test_tables_are_read_back(folder: Path) -> None:
    sheet = folder.parent / "out" / "slides.tsv"
    found = bring_in(folder)
    written = write_tables(found, sheet)
    assert [path.name for path in written] == ["slides.tsv", "markers.tsv", "classes.tsv"]
    rows, problems = read_sheet(sheet)
    assert (tuple(rows), problems) == (found.rows, [])
    markers, problems = read_markers(written[1])
    assert (markers.channels, problems) == (PANEL, [])
    classes, problems = read_classes(written[2])
    assert (classes, problems) == (CLASSES, [])


def test_folders_that_carry_the_id_and_files_in_any_form(tmp_path: Path) -> None:
    place = tmp_path / "set" / "tissues" / IDS[1]
    place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    np.save(place / "channels.npy", rng.random((19, 48, 64)).astype(np.float32))
    Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(place / "he.jpg")
    drawn = class_map(64, 0)[:48]
    tifffile.imwrite(place / "types.tif", drawn)
    Image.fromarray(drawn[..., None].repeat(3, 2) * 25).save(place / "overview.png")
    nuclei = np.asarray(ndimage.label(drawn > 0)[0], np.uint16)
    Image.fromarray(nuclei).save(place / "nuclei.png")
    np.save(place / "tokens.npy", rng.random((36, 512)).astype(np.float32))
    found = bring_in(tmp_path / "set")
    (row,) = found.rows
    names = {"he": "he.jpg", "sp": "channels.npy", "instances": "nuclei.png", "classes": "types.tif"}
    assert {column: Path(getattr(row, column)).name for column in names} == names
    assert found.channels == SCANNED
    assert row.sp_channels == tuple(channel.name for channel in SCANNED)
    assert not (tmp_path / "out" / "instances").exists(), "nuclei that are there are used"
    told = "\n".join(found.notes)
    assert "overview.png: left aside: a drawing of few colours" in told
    assert "tokens.npy: left aside: one channel of float32" in told
    assert "19 channels" in told


def test_each_tissue_that_lacks_something_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    ids = tuple(f"orion_tissue{letter}{letter}_0" for letter in "abcdefg")
    folder = tmp_path / "set"
    write_orion_subset(folder, ids)
    (folder / "sp" / f"{ids[0]}.npy").unlink()
    (folder / "he" / f"{ids[1]}.png").unlink()
    (folder / "masks" / f"{ids[2]}.npy").unlink()
    np.save(folder / "masks" / f"{ids[3]}.npy", class_map(40, 0))
    (folder / "sp" / f"{ids[4]}.npy").write_bytes(b"")
    (folder / "he" / f"{ids[4]}.png").unlink()
    np.save(folder / "sp" / f"{ids[5]}.npy", np.zeros((16, 64, 64)))
    np.save(folder / "sp" / f"{ids[6]}.npy", np.zeros((5, 64, 64), np.uint16))
    found = bring_in(folder, mpp_um=None)
    rows = {row.slide_id: row for row in found.rows}
    assert sorted(rows) == [name for name in ids if name != ids[4]]
    told = "\n".join(found.notes)
    assert f"{ids[0]}: no SP image" in told
    assert rows[ids[0]].sp is None
    assert rows[ids[0]].classes is not None
    assert f"{ids[1]}: no H&E picture" in told
    assert f"{ids[2]}: no class map; it can be predicted, not learnt from" in told
    assert rows[ids[2]].instances is None
    assert f"{ids[3]}: masks/{ids[3]}.npy left aside, 40 x 40 px, the tissue's images have 64 x 64" in told
    assert f"sp/{ids[4]}.npy: left aside: it cannot be read (empty_file)" in told
    assert f"{ids[4]}: neither an SP nor an H&E image, left out" in told
    assert f"{ids[5]}: {ids[5]}.npy left out, channels of float64 samples" in told
    assert rows[ids[5]].sp is None
    assert f"{ids[6]}: 5 channels are neither the report's 16 nor Orion's 19" in told
    assert rows[ids[6]].sp_channels is None
    assert "give --mpp, or fill in mpp_um" in told


def test_a_second_look_does_not_take_what_was_made_for_what_was_given(folder: Path) -> None:
    first = read_data_set("orion_subset", folder, folder, 0.5)
    assert (folder / "instances").is_dir()
    assert read_data_set("orion_subset", folder, folder, 0.5) == first


def test_a_wrong_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "case7_he.png").touch()
    assert find_layout(tmp_path) is None
    with pytest.raises(SlideloomError, match=r"no file is of a tissue of this set .*orion_abcdefgh_0"):
        bring_in(tmp_path)
    (tmp_path / f"{IDS[0]}.png").touch()
    assert find_layout(tmp_path) == "orion_subset"
    with pytest.raises(SlideloomError, match="none of 1 tissues has an image"):
        bring_in(tmp_path)
    with pytest.raises(SlideloomError, match="does not exist"):
        bring_in(tmp_path / "nowhere")
