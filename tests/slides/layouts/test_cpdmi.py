from __future__ import annotations

import hashlib
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from slideloom.errors import SlideloomError
from slideloom.slides.headers import read_facts
from slideloom.slides.labels import read_instances
from slideloom.slides.layouts.choose import find_layout, read_data_set
from slideloom.slides.layouts.cpdmi_channels import codex_names, markers_of, vectra_mpp, vectra_names, zeiss_names
from slideloom.slides.layouts.cpdmi_files import find_samples
from slideloom.slides.layouts.imported import Imported, write_tables
from slideloom.slides.open import open_image
from slideloom.slides.sheet import SlideRow, read_sheet
from slideloom.slides.source import parse_source
from slideloom.slides.tables import MarkerTable, is_accession, read_markers

SHAPE = (48, 56)
#: Value of every pixel of the nuclear stain, so that its place in an image can be told.
DAPI = 4321
VECTRA = (
    *("CD8 (Opal 520)", "PD-L1 (Opal 540)", "CD68 (Opal 570)", "FoxP3 (Opal 620)", "PD-1 (Opal 650)"),
    *("DAPI", "PanCK (Opal 690)", "Autofluorescence"),
)
PAIRED = "P11-10003(58107.9239)0,1200"
CUT = "P02-10006(55163.20460)18,10"
FINE = "P05-10008(53049.13410)2000,400"
CORRUPT = "P13-10002(45819.10401)2250,500"
TWO = "ZP-10002(0,0)30,20"
LYMPH = "CODEX_LN(2400,800)"
TONSIL = "CODEX_Tnsl(4200,5200)"
BARE = "CODEX_Tnsl(5600,4700)"


def info(names: tuple[str, ...], px_per_cm: float) -> str:
    """The text as Bio-Formats gives it to ImageJ: keys sorted, channels counted from 1, #10 before #2."""
    lines = [f"Name #{number} = {name}" for number, name in enumerate(names, start=1)]
    before, behind = ["MetaDataPhotometricInterpretation = Monochrome"], ["NewSubfileType = 0"]
    return "\n".join([*before, *sorted(lines), *behind, f"XResolution = {px_per_cm}"])


def stack(n: int, nuclear: tuple[int, ...], shape: tuple[int, int] = SHAPE) -> NDArray[np.uint16]:
    """Channels of noise, those of the nuclear stain of one value."""
    planes = np.random.default_rng(n).integers(0, 4000, (n, *shape), dtype=np.uint16)
    planes[list(nuclear)] = DAPI
    return planes


def mask(seed: int, shape: tuple[int, int] = SHAPE) -> NDArray[np.uint8]:
    """Squares with gaps, two that touch by a corner, and a snake of one pixel's width that is 500 pixels long."""
    drawn = np.zeros(shape, np.uint8)
    for row in range(0, 20, 2):
        drawn[row, 1:-1] = 255
        drawn[row + 1, -2 if row % 4 == 0 else 1] = 255
    drawn[22:26, 2:6] = drawn[26:30, 6:10] = 255
    rng = np.random.default_rng(seed)
    for x in range(14, shape[1] - 6, 8):
        drawn[32 : 32 + int(rng.integers(2, 6)), x : x + 5] = 255
    return drawn


def put(folder: Path, image: NDArray[Any] | None, masks: dict[str, NDArray[np.uint8]], **options: Any) -> None:
    folder.mkdir(parents=True)
    name = folder.name
    if image is not None:
        tifffile.imwrite(folder / f"{name}-Crop_Tif.tif", image, **options)
    for kind, drawn in masks.items():
        Image.fromarray(drawn).save(folder / f"{name}-Crop_{kind}_Mask_Png.png")
        Image.fromarray(drawn).save(folder / f"{name}-Crop_{kind}_Png.png")


def vectra(px_per_cm: float) -> dict[str, Any]:
    return {"imagej": True, "metadata": {"axes": "ZYX", "Info": info(VECTRA, px_per_cm)}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "set"
    put(top / "Vectra" / "P11" / PAIRED, stack(8, (5,)), {"Cell": mask(1), "Dapi": mask(2)}, **vectra(20154.0))
    put(top / "Vectra" / "P02" / CUT, stack(8, (5,), (80, 90)), {"Cell": mask(3)}, **vectra(20154.0))
    put(top / "Vectra" / "P05" / FINE, stack(8, (5,)), {"Dapi": mask(4)}, **vectra(40000.0))
    put(top / "Vectra" / "P13" / CORRUPT, stack(8, (5,)), {"Cell": mask(5)}, **vectra(20154.0))
    two = top / "Zeiss" / TWO
    put(two, stack(7, (2,), (100, 120)), {"Cell": mask(6)}, photometric="minisblack")
    tifffile.imwrite(two / f"{TWO}-Crop_Cell_Tif.tif", stack(7, (2,)), photometric="minisblack")
    put(top / "Zeiss" / "PDAC(35000,27720)6800,3050", stack(5, (0,)), {"Cell": mask(7)}, photometric="minisblack")
    cycles = stack(28, tuple(range(0, 28, 4))).reshape(7, 4, *SHAPE)
    both = {"Cell": mask(8), "Dapi": mask(9)}
    put(top / "CODEX" / LYMPH, cycles, both, imagej=True, metadata={"axes": "TCYX"})
    tonsil = stack(32, tuple(range(0, 32, 4))).reshape(8, 4, *SHAPE)
    put(top / "CODEX" / TONSIL, np.ascontiguousarray(tonsil.transpose(0, 2, 3, 1)), both)
    put(top / "CODEX" / BARE, tonsil, {"Dapi": mask(10)}, photometric="minisblack")
    # Names begin with blanks, and are written otherwise than their folder's.
    for path in (top / "CODEX" / TONSIL).iterdir():
        path.rename(path.with_name(" " + path.name.replace("CODEX", "Codex")))
    return top


def bring_in(folder: Path, out: str = "out", mpp_um: float | None = None) -> Imported:
    return read_data_set("cpdmi", folder, folder.parent / out, mpp_um)


def both_sheets(folder: Path) -> tuple[dict[str, SlideRow], dict[str, SlideRow], Imported]:
    found = bring_in(folder)
    cells, problems = read_sheet(folder.parent / "out" / "cells.tsv")
    assert problems == []
    return {row.slide_id: row for row in found.rows}, {row.slide_id: row for row in cells}, found


def test_the_layout_is_known(folder: Path) -> None:
    assert find_layout(folder) == "cpdmi"
    assert find_layout(folder / "Vectra") is None


def test_every_image_opens_and_its_nuclear_channels_are_the_right_ones(folder: Path) -> None:
    nuclei, cells, found = both_sheets(folder)
    out, markers = folder.parent / "out", MarkerTable(found.channels)
    nuclear = {"vectra": {5}, "CODEX_LN": set(range(0, 28, 4)), "CODEX_Tnsl": set(range(0, 32, 4))}
    nuclear |= {"zeiss_ZP": {2}, "zeiss_PDAC": {0}}
    for slide, row in nuclei.items():
        facts = read_facts(row, out, markers)
        places = next(places for name, places in nuclear.items() if slide.startswith(name))
        assert {k for k, channel in enumerate(facts.image("sp").channels) if channel.nuclear} == places
        for sheet in (row, cells[slide]):
            with open_image(parse_source(sheet.sp or "", out), "sp") as image:
                assert (image.height_px, image.width_px) == SHAPE
                pixels = image.read(0, y=0, x=0, height=SHAPE[0], width=SHAPE[1])
            assert {k for k, plane in enumerate(pixels) if (plane == DAPI).all()} == places
    assert len(nuclei) == 8


def test_pixel_sizes_are_those_of_the_platforms_unless_one_is_given(folder: Path) -> None:
    found = {row.slide_id: row.sp_mpp_um for row in bring_in(folder).rows}
    assert found["vectra_P11-10003_58107.9239_0_1200"] == pytest.approx(10_000 / 20_154, abs=1e-5)
    assert found["vectra_P05-10008_53049.13410_2000_400"] == 0.25
    assert found["zeiss_ZP-10002_0_0_30_20"] == 0.325
    assert found["CODEX_LN_2400_800"] == 0.377
    assert {row.sp_mpp_um for row in bring_in(folder, "given", 0.7).rows} == {0.7}


def test_nuclei_and_cells_stand_in_sheets_of_their_own(folder: Path) -> None:
    nuclei, cells, found = both_sheets(folder)
    out = folder.parent / "out"
    marked = {slide for slide, row in nuclei.items() if row.instances}
    assert marked == {
        *("vectra_P11-10003_58107.9239_0_1200", "vectra_P05-10008_53049.13410_2000_400"),
        *("CODEX_LN_2400_800", "CODEX_Tnsl_4200_5200", "CODEX_Tnsl_5600_4700"),
    }
    lacking = {slide for slide, row in cells.items() if not row.instances}
    assert lacking == {"vectra_P05-10008_53049.13410_2000_400", "CODEX_Tnsl_5600_4700"}
    assert nuclei.keys() == cells.keys()
    assert {slide for slide, row in nuclei.items() if "cells" in row.extra} == marked - lacking
    for slide in marked - lacking:
        assert (out / nuclei[slide].extra["cells"]).samefile(out / (cells[slide].instances or ""))
        assert nuclei[slide].instances != cells[slide].instances
    for sheet in (nuclei, cells):
        assert {row.split for row in sheet.values() if not row.instances} == {"infer"}
    told = "\n".join(found.notes)
    assert "no mask of whole cells: CODEX_Tnsl_5600_4700, vectra_P05-10008_53049.13410_2000_400" in told
    assert "3 slides have whole cells only, as all of Zeiss" in told


def test_objects_are_connected_pixels_however_long(folder: Path) -> None:
    nuclei, cells, found = both_sheets(folder)
    out = folder.parent / "out"
    expected = 0
    for sheet, seeds in ((nuclei, {PAIRED: 2, FINE: 4}), (cells, {PAIRED: 1, CUT: 3})):
        for slide, row in sheet.items():
            for name, seed in seeds.items():
                if slide.endswith(name.translate(str.maketrans("(),", "___"))) and row.instances:
                    drawn = mask(seed)
                    oracle, n = ndimage.label(drawn, np.ones((3, 3)))
                    made = read_instances(parse_source(row.instances, out))
                    assert np.array_equal(made > 0, drawn > 0)
                    assert np.unique(np.stack([made, oracle])[:, drawn > 0], axis=1).shape[1] == n == made.max()
                    assert (made == made[0, 1]).sum() > 500, "the snake is one"
                    assert made[25, 5] == made[26, 6], "a corner joins"
                    expected += 1
    assert expected == 4
    n_cells = sum(ndimage.label(mask(seed), np.ones((3, 3)))[1] for seed in (1, 3, 6, 7, 8, 8))
    assert f"{n_cells} outlined cells on 6 of 8 slides (2 vectra, 2 zeiss, 2 codex)" in "\n".join(found.notes)


def test_a_crop_is_cut_at_the_place_that_its_name_gives(folder: Path) -> None:
    nuclei, _, found = both_sheets(folder)
    out = folder.parent / "out"
    whole = tifffile.imread(folder / "Vectra" / "P02" / CUT / f"{CUT}-Crop_Tif.tif")
    row = nuclei["vectra_P02-10006_55163.20460_18_10"]
    assert row.sp == "imported/images/vectra_P02-10006_55163.20460_18_10.ome.tif"
    assert np.array_equal(tifffile.imread(out / row.sp), whole[:, 10 : 10 + SHAPE[0], 18 : 18 + SHAPE[1]])
    with open_image(parse_source(row.sp, out), "sp") as image:
        assert image.channel_names == VECTRA
        assert image.mpp_um == pytest.approx((10_000 / 20_154,) * 2, abs=1e-5)
    assert "its image is cut to the crop that is annotated" in "\n".join(found.notes)
    assert {path.name.partition("_")[0] for path in (out / "imported" / "images").iterdir()} == {"vectra", "CODEX"}


def test_of_two_images_that_of_the_masks_size_is_used_and_none_is_removed(folder: Path) -> None:
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
    nuclei, _, _ = both_sheets(folder)
    assert (nuclei["zeiss_ZP-10002_0_0_30_20"].sp or "").endswith("-Crop_Cell_Tif.tif")
    assert before == {
        path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()
    }
    (folder / "Zeiss" / TWO / f"{TWO}-Crop_Cell_Tif.tif").unlink()
    row = {row.slide_id: row for row in bring_in(folder, "cut").rows}["zeiss_ZP-10002_0_0_30_20"]
    full = tifffile.imread(folder / "Zeiss" / TWO / f"{TWO}-Crop_Tif.tif")
    cut = tifffile.imread(folder.parent / "cut" / (row.sp or ""))
    assert np.array_equal(cut, full[:, 20 : 20 + SHAPE[0], 30 : 30 + SHAPE[1]])


def test_what_cannot_be_used_is_told_and_the_others_go_on(folder: Path) -> None:
    (folder / "Zeiss" / "PDAC(35000,27720)6800,3050" / "PDAC(35000,27720)6800,3050-Crop_Tif.tif").write_bytes(b"II*\0")
    put(folder / "Vectra" / "P01" / "P01-10001(1.2)60,60", stack(8, (5,)), {"Cell": mask(1, (40, 44))}, **vectra(2e4))
    put(folder / "Vectra" / "P01" / "P01-10002(1.2)0,0", None, {"Cell": mask(1)})
    put(folder / "Vectra" / "P01" / "P01-10003(1.2)0,0", stack(8, (5,)), {}, **vectra(2e4))
    put(folder / "Vectra" / "P01" / "P01-10004(1.2)0,0", stack(6, (5,)), {"Dapi": mask(1)}, **vectra(5.0))
    odd = {"Dapi": mask(1), "Cell": mask(1, (47, 90))}
    put(folder / "Vectra" / "P01" / "P01-10005(1.2)0,0", stack(8, (5,)), odd, **vectra(2e4))
    found = bring_in(folder)
    told = "\n".join(found.notes)
    assert f"vectra {CORRUPT}: left out, it is known to be corrupt" in told
    assert "zeiss PDAC(35000,27720)6800,3050: left out" in told
    assert "P01-10001(1.2)60,60: left out" in told
    assert "48 x 56 px, cut at (60, 60)" in told
    assert "P01-10002(1.2)0,0: no image, a file such as …-Crop_Tif.tif" in told
    assert "P01-10003(1.2)0,0: neither …-Crop_Dapi_Mask_Png.png nor …-Crop_Cell_Mask_Png.png" in told
    assert "5 px/cm in its text is no pixel size of a Vectra: 0.5 µm is taken" in told
    assert (
        "vectra_P01-10005_1.2_0_0: a mask is left out, P01-10005(1.2)0,0: no image fits its mask of 47 x 90 px" in told
    )
    rows = {row.slide_id: row for row in found.rows}
    assert len(rows) == 9
    assert rows["vectra_P01-10004_1.2_0_0"].sp_channels == tuple(f"unnamed_{k}" for k in range(1, 7))
    assert "its channels have no names that fit their number" in told


def test_no_specimen_stands_on_both_sides_and_no_order_plays_a_part(tmp_path: Path) -> None:
    names = [f"P{panel:02d}-{10_000 + k}(1.2){crop},0" for panel in (1, 2) for k in range(10) for crop in (0, 40)]
    for turn, order in (("a", names), ("b", names[::-1])):
        for name in order:
            put(tmp_path / turn / "Vectra" / name[:3] / name, stack(8, (5,)), {"Dapi": mask(1)}, **vectra(2e4))
    first, second = (bring_in(tmp_path / turn, f"out_{turn}") for turn in "ab")
    assert [row.split for row in first.rows] == [row.split for row in second.rows]
    by_specimen = {
        specimen: {row.split for row in first.rows if row.patient_id == specimen}
        for specimen in {row.patient_id for row in first.rows}
    }
    assert len(by_specimen) == 20
    assert all(len(sides) == 1 for sides in by_specimen.values())
    ordered = sorted(by_specimen, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert [next(iter(by_specimen[name])) for name in ordered] == ["val"] * 4 + ["train"] * 16


def test_codex_is_test_and_the_others_are_shared_out(folder: Path) -> None:
    nuclei, cells, _ = both_sheets(folder)
    sides = {(row.platform, row.split) for sheet in (nuclei, cells) for row in sheet.values() if row.instances}
    assert sides == {("vectra", "train"), ("vectra", "val"), ("zeiss", "train"), ("zeiss", "val"), ("codex", "test")}


def test_a_tonsil_has_every_nuclear_channel_and_tells_what_is_not_known(folder: Path) -> None:
    nuclei, _, found = both_sheets(folder)
    names = nuclei["CODEX_Tnsl_4200_5200"].sp_channels or ()
    assert len(names) == 32
    assert [k for k, name in enumerate(names) if name.startswith("DAPI")] == list(range(0, 32, 4))
    assert names[13:16] == ("unnamed_4_2", "unnamed_4_3", "unnamed_4_4")
    assert names[18:20] == ("CD68", "CD31")
    assert any("the fourth cycle lacks one" in note for note in found.notes)
    with open_image(parse_source(nuclei["CODEX_Tnsl_5600_4700"].sp or "", folder.parent / "out"), "sp") as flat:
        again = flat.read(0, y=0, x=0, height=SHAPE[0], width=SHAPE[1])
    with open_image(parse_source(nuclei["CODEX_Tnsl_4200_5200"].sp or "", folder.parent / "out"), "sp") as last:
        assert np.array_equal(last.read(0, y=0, x=0, height=SHAPE[0], width=SHAPE[1]), again)


def test_files_that_were_used_are_listed(folder: Path) -> None:
    bring_in(folder)
    lines = [line.split("\t") for line in (folder.parent / "out" / "files.tsv").read_text().splitlines()]
    assert lines[0] == ["path", "size", "sha256"]
    for path, size, digest in lines[1:]:
        data = (folder / path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (int(size), digest)
    listed = [line[0] for line in lines[1:]]
    assert f"Zeiss/{TWO}/{TWO}-Crop_Cell_Tif.tif" in listed
    assert f"Zeiss/{TWO}/{TWO}-Crop_Tif.tif" not in listed
    assert not any(CORRUPT in path or path.endswith("_Cell_Png.png") for path in listed)
    assert listed == sorted(listed)


def test_a_second_run_gives_equal_bytes(folder: Path) -> None:
    tables = []
    for out in ("out", "again"):
        write_tables(bring_in(folder, out), folder.parent / out / "slides.tsv")
        place = folder.parent / out
        tables.append({path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()})
    assert tables[0] == tables[1]
    channels, problems = read_markers(folder.parent / "out" / "markers.tsv")
    assert problems == []
    assert channels.lookup("CD8 (Opal 520)") is not None


def test_a_wrong_folder_is_refused_and_what_is_missing_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SlideloomError, match=r"no crop was found; missing folders: vectra, zeiss, codex .*Crop_Tif"):
        bring_in(tmp_path / "set" / "Vectra")
    for place in ("Vectra", "CODEX", "Zeiss"):
        shutil.rmtree(folder / place)
    put(folder / "Vectra" / "P13" / CORRUPT, stack(8, (5,)), {"Cell": mask(5)}, **vectra(20154.0))
    with pytest.raises(SlideloomError, match=r"none of 1 crops has an image"):
        bring_in(folder)


def test_masks_of_any_colours_give_the_same_objects(folder: Path) -> None:
    place = folder / "Vectra" / "P05" / FINE / f"{FINE}-Crop_Dapi_Mask_Png.png"
    expected = None
    drawn = mask(4)
    palette = Image.fromarray((drawn > 0).astype(np.uint8))
    palette.putpalette([0, 0, 0, 200, 10, 10])
    opaque = np.dstack([drawn, drawn, drawn, np.full_like(drawn, 255)])
    for picture in (Image.fromarray(drawn), Image.fromarray(drawn > 0), palette, Image.fromarray(opaque)):
        picture.save(place)
        bring_in(folder)
        made = tifffile.imread(
            folder.parent / "out" / "imported" / "nuclei" / "vectra_P05-10008_53049.13410_2000_400.tif"
        )
        expected = made if expected is None else expected
        assert made.any()
        assert np.array_equal(made, expected), picture.mode


def test_folders_say_what_a_crop_is(folder: Path) -> None:
    found = {sample.name: sample for sample in find_samples(folder)}
    assert (found[PAIRED].panel, found[PAIRED].specimen, found[PAIRED].offset) == ("P11", "P11-10003", (1200, 0))
    assert (found[TWO].panel, found[TWO].offset, len(found[TWO].images)) == ("ZP-10002", (20, 30), 2)
    assert (found[TONSIL].panel, found[TONSIL].offset) == ("Tnsl", None)


def test_names_of_a_vectra_are_read_in_the_order_of_their_numbers() -> None:
    names = tuple(f"marker {k}" for k in range(1, 13))
    text = info(names, 2e4)
    assert text.index("Name #10") < text.index("Name #2"), "as text they are sorted otherwise"
    assert vectra_names(text, 12) == names
    assert vectra_names(text, 11) is None
    assert vectra_names("", 3) is None
    assert vectra_names("Name #1 = CD8\r\nName #2 = CD8\r\n", 2) == ("CD8", "CD8 #2")


@pytest.mark.parametrize(
    ("text", "mpp_um", "sound"),
    [
        ("XResolution = 20154.0", 0.49618, True),
        ("  XResolution = 40000", 0.25, True),
        ("XResolution = 72.0", 0.5, False),
        ("XResolution = 31000", 0.25, False),
        ("nothing", 0.5, False),
    ],
)
def test_pixel_size_of_a_vectra(text: str, mpp_um: float, sound: bool) -> None:
    found, why = vectra_mpp(text)
    assert found == mpp_um
    assert (why == "") is sound


def test_orders_of_channels() -> None:
    assert (zeiss_names("ZP-10002", 7) or ()).index("DAPI") == 2
    assert zeiss_names("ZP-10002", 5) is None
    assert zeiss_names("elsewhere", 5) is None
    names, known = codex_names("Spleen", 12)
    assert not known
    assert [name for name in names if name.startswith("DAPI")] == ["DAPI1", "DAPI2", "DAPI3"]
    assert len(set(names)) == 12
    lymph, known = codex_names("LN", 28)
    assert known
    assert (lymph[5], lymph[22], lymph[27]) == ("CD8", "HLA-DR", "blank_7_4")


def test_markers_are_known_by_their_names_with_and_without_a_dye() -> None:
    channels = {one.name: one for one in markers_of(["CD8 (Opal 520)", "PanCK", "DAPI7", "Opal 570 CD3", "blank_1_2"])}
    assert channels["CD8 (Opal 520)"].uniprot == "P01732"
    assert (channels["DAPI7"].marker, channels["DAPI7"].nuclear) == ("DNA", True)
    assert channels["Opal 570 CD3"].marker == "CD3e"
    assert channels["blank_1_2"].marker == "blank_1_2"
    every = markers_of(name for tissue, n in (("LN", 28), ("Tnsl", 32)) for name in codex_names(tissue, n)[0])
    assert all(one.uniprot == "" or is_accession(one.uniprot) for one in every)
    assert all(first.name < second.name for first, second in pairwise(every))
