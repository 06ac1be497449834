from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from slideloom.errors import SlideloomError
from slideloom.slides.headers import read_facts
from slideloom.slides.labels import read_instances
from slideloom.slides.layouts.choose import find_layout, read_data_set
from slideloom.slides.layouts.imported import Imported
from slideloom.slides.layouts.multiplexed import in_one_modality
from slideloom.slides.open import open_image
from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import parse_source
from slideloom.slides.tables import MarkerTable

SIZE = 40
SQUARES = ((2, 2), (2, 12), (20, 4))


def identity(name: str) -> str:
    """An id as the set has them: 64 hexadecimal digits."""
    return hashlib.sha256(name.encode()).hexdigest()


def nuclei() -> list[NDArray[np.uint8]]:
    masks = []
    for y, x in SQUARES:
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[y : y + 8, x : x + 8] = 255
        masks.append(mask)
    return masks


def put(stage: Path, name: str, picture: NDArray[np.uint8], masks: list[NDArray[np.uint8]]) -> str:
    """A sample as published: a picture with a fourth sample, and one mask a nucleus."""
    sample = stage / identity(name)
    for part in ("images", "masks"):
        (sample / part).mkdir(parents=True)
    opaque = np.dstack([picture, np.full((SIZE, SIZE), 255, np.uint8)])
    Image.fromarray(opaque).save(sample / "images" / f"{sample.name}.png")
    for number, mask in enumerate(masks):
        Image.fromarray(mask).save(sample / "masks" / f"{number:03d}.png")
    return sample.name


def grey(background: int, seed: int) -> NDArray[np.uint8]:
    plane = np.random.default_rng(seed).integers(background, background + 20, (SIZE, SIZE), dtype=np.uint8)
    return plane[..., None].repeat(3, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stage = tmp_path / "set" / "stage1_train"
    put(stage, "dark", grey(5, 0), nuclei())
    put(stage, "bright", grey(200, 1), nuclei()[:2])
    purple = np.random.default_rng(2).integers(90, 250, (SIZE, SIZE, 3), dtype=np.uint8)
    put(stage, "purple", purple, nuclei())
    return tmp_path / "set"


def bring_in(folder: Path, mpp_um: float | None = None) -> Imported:
    return read_data_set("dsb2018", folder, folder.parent / "out", mpp_um)


def rows_by_name(found: Imported, *names: str) -> list[SlideRow]:
    rows = {row.extra["image_id"]: row for row in found.rows}
    return [rows[identity(name)] for name in names]


def test_grey_on_black_is_fluorescence_and_the_rest_is_stained(folder: Path) -> None:
    assert find_layout(folder) == find_layout(folder / "stage1_train") == "dsb2018"
    found = bring_in(folder)
    out, markers = folder.parent / "out", MarkerTable(found.channels)
    dark, bright, purple = rows_by_name(found, "dark", "bright", "purple")
    assert (dark.he, bright.sp, purple.sp) == (None, None, None)
    assert (dark.platform, bright.platform) == ("dsb_fluorescence", "dsb_brightfield")
    facts = read_facts(dark, out, markers).image("sp")
    assert [(one.marker, one.nuclear) for one in facts.channels] == [("DNA", True)]
    for row, modality, expected in ((dark, "sp", grey(5, 0)[..., :1]), (bright, "he", grey(200, 1))):
        with open_image(parse_source((row.sp or row.he) or "", out), "sp" if modality == "sp" else "he") as image:
            assert np.array_equal(image.read(0, 0, 0, SIZE, SIZE), expected.transpose(2, 0, 1))
    assert "grey with a bright background" in "\n".join(found.notes)
    assert "8 nuclei in 1 fluorescence and 2 stained images" in found.notes[0]


def test_masks_become_one_label_image_and_the_last_counts_where_they_overlap(folder: Path) -> None:
    masks = nuclei()
    masks[1][:] = 0
    masks[1][4:12, 4:12] = 255
    masks += [np.zeros((SIZE, SIZE), np.uint8)]
    put(folder / "stage1_train", "overlap", grey(3, 3), masks)
    found = bring_in(folder)
    (row,) = rows_by_name(found, "overlap")
    drawn = read_instances(parse_source(row.instances or "", folder.parent / "out"))
    expected = np.zeros((SIZE, SIZE), np.int32)
    for number, mask in enumerate(masks, start=1):
        expected[mask > 0] = number
    assert np.array_equal(drawn, expected)
    assert drawn[5, 5] == 2
    told = "\n".join(found.notes)
    assert "masks overlap in 36 pixels, where the last by name counts" in told
    assert "003.png: an empty mask" in told
    assert "1 of 4 masks are empty, or wholly hidden by others" in told


def test_the_pixel_size_is_nominal_and_loudly_told(folder: Path) -> None:
    found = bring_in(folder)
    assert {row.he_mpp_um or row.sp_mpp_um for row in found.rows} == {0.5}
    assert any(note.startswith("NOBODY RECORDED THE PIXEL SIZE") for note in found.notes)
    given = bring_in(folder, 0.3)
    assert {row.he_mpp_um or row.sp_mpp_um for row in given.rows} == {0.3}
    assert not any("NOBODY" in note for note in given.notes)


def test_sides_depend_on_the_ids_alone(tmp_path: Path) -> None:
    for number in range(10):
        put(tmp_path / "set" / "stage1_train", f"n{number}", grey(4, number), nuclei())
    found = bring_in(tmp_path / "set")
    ordered = sorted(found.rows, key=lambda row: hashlib.sha256(row.extra["image_id"].encode()).digest())
    assert [row.split for row in ordered] == ["val"] * 2 + ["train"] * 8


def test_samples_that_lack_something_are_told_and_the_others_go_on(folder: Path) -> None:
    stage = folder / "stage1_train"
    bare = put(stage, "bare", grey(3, 4), [])
    odd = put(stage, "odd", grey(3, 5), [np.full((8, 8), 255, np.uint8)])
    torn = put(stage, "torn", grey(3, 6), nuclei())
    (stage / torn / "images" / f"{torn}.png").write_bytes(b"")
    told = "\n".join((found := bring_in(folder)).notes)
    assert f"{bare}: left out, no picture in masks/" in told
    assert f"{odd}: left out" in told
    assert "the mask 000.png has 8 x 8 px, its image 40 x 40" in told
    assert f"{torn}: left out" in told
    assert len(found.rows) == 3


def pack(place: Path, **changed: Any) -> None:
    labels = np.zeros((3, SIZE, SIZE), np.uint16)
    labels[:, 2:8, 2:8], labels[:2, 12:18, 2:8] = 1, 2
    arrays = {
        "images": np.random.default_rng(0).integers(0, 255, (3, SIZE, SIZE), dtype=np.uint8),
        "labels": labels,
        "ids": np.array([identity(f"{place.stem}{k}") for k in range(3)]),
        "val": np.array([False, True, False]),
    } | changed
    place.parent.mkdir(parents=True, exist_ok=True)
    np.savez(place, **{name: value for name, value in arrays.items() if value is not None})


def test_packed_images_are_named_where_they_lie(tmp_path: Path) -> None:
    pack(tmp_path / "set" / "dsb2018_fluorescence" / "dsb2018_fluo_40x40.npz")
    pictures = np.random.default_rng(1).integers(0, 255, (3, SIZE, SIZE, 3), dtype=np.uint8)
    brightfield = tmp_path / "set" / "dsb2018_brightfield"
    pack(brightfield / "dsb2018_brightfield_40x40.npz", images=pictures, kind=np.array(["pink", "lilac", "pink"]))
    assert find_layout(brightfield) == "dsb2018"
    found = bring_in(tmp_path / "set")
    out = tmp_path / "out"
    assert "10 nuclei in 3 fluorescence and 3 stained images" in found.notes[0]
    assert Counter(row.split for row in found.rows) == {"train": 4, "val": 2}
    for row in found.rows:
        facts = read_facts(row, out, MarkerTable(found.channels))
        assert facts.image("he" if row.he else "sp").shape == (SIZE, SIZE)
        assert "::images[" in (row.he or row.sp or "")
        assert set(np.unique(read_instances(parse_source(row.instances or "", out)))) <= {0, 1, 2}
    (row,) = rows_by_name(found, "dsb2018_brightfield_40x401")
    assert (row.extra["kind"], row.split) == ("lilac", "val")
    with open_image(parse_source(row.he or "", out), "he") as image:
        assert np.array_equal(image.read(0, 0, 0, SIZE, SIZE), pictures[1].transpose(2, 0, 1))
    assert sorted(path.name for path in out.iterdir()) == ["files.tsv"]


def test_pictures_may_stand_among_the_channels(tmp_path: Path) -> None:
    pack(tmp_path / "set" / "dsb2018_a.npz")
    pictures = np.random.default_rng(1).integers(0, 255, (3, SIZE, SIZE, 3), dtype=np.uint8)
    pack(tmp_path / "set" / "dsb2018_b.npz", images=pictures)
    found = in_one_modality(bring_in(tmp_path / "set"))
    assert not any(row.he for row in found.rows)
    markers = MarkerTable(found.channels)
    panels = Counter()
    for row in found.rows:
        facts = read_facts(row, tmp_path / "out", markers).image("sp")
        panels[tuple(one.marker for one in facts.channels)] += 1
    assert panels == {("DNA",): 3, ("red", "green", "blue"): 3}
    (row,) = rows_by_name(found, "dsb2018_b2")
    with open_image(parse_source(row.sp or "", tmp_path / "out"), "sp") as image:
        assert np.array_equal(image.read(0, 0, 0, SIZE, SIZE), pictures[2].transpose(2, 0, 1))


def test_packed_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    place = tmp_path / "set"
    pack(place / "dsb2018_a.npz", val=None)
    pack(place / "dsb2018_b.npz", ids=None)
    pack(place / "dsb2018_c.npz", labels=np.zeros((3, 8, 8), np.uint16))
    pack(place / "dsb2018_d.npz", ids=np.array([None] * 3))
    (place / "dsb2018_e.npz").write_bytes(b"PK\3\4")
    found = bring_in(place)
    assert len(found.rows) == 3
    assert {row.split for row in found.rows} == {None}
    told = "\n".join(found.notes)
    assert "dsb2018_a.npz: no array val" in told
    assert "dsb2018_b.npz: left out, no array ids" in told
    for name in "cde":
        assert f"dsb2018_{name}.npz: left out, " in told


def test_a_wrong_folder_is_refused(tmp_path: Path) -> None:
    assert find_layout(tmp_path) is None
    with pytest.raises(SlideloomError, match=r"neither stage1_train/ nor dsb2018_\*\.npz"):
        bring_in(tmp_path)
    (tmp_path / "stage1_train").mkdir()
    with pytest.raises(SlideloomError, match="no image with masks was found"):
        bring_in(tmp_path)


def test_the_real_set_has_the_nuclei_that_its_notes_count(shared: Path, tmp_path: Path) -> None:
    found = read_data_set("dsb2018", shared / "data", tmp_path)
    counted: Counter[str] = Counter()
    for row in sorted(found.rows, key=lambda row: row.instances or ""):  # each file is decoded once
        drawn = read_instances(parse_source(row.instances or "", tmp_path))
        size = "x".join(map(str, drawn.shape))
        counted[f"{row.platform.removeprefix('dsb_')} {size}"] += np.unique(drawn).size - 1
    assert counted == {
        "brightfield 256x320": 4550,
        "fluorescence 256x256": 4387,
        "fluorescence 256x320": 107,
        "fluorescence 260x347": 336,
        "fluorescence 360x360": 1058,
        "fluorescence 512x640": 411,
        "fluorescence 520x696": 4864,
    }
    assert Counter((row.platform, row.split) for row in found.rows)["dsb_brightfield", "val"] == 22
    assert len(found.rows) == 367
