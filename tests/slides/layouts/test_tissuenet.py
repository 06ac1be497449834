from __future__ import annotations

from pathlib import Path
from typing import Any

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
from slideloom.slides.sheet import read_sheet
from slideloom.slides.source import parse_source
from slideloom.slides.tables import MarkerTable

HEADER = ("filename", "experiment", "pixel_size", "screening", "time_step", "specimen")


def pixels(n: int, size: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Images whose channels can be told apart, and labels: whole cells first, a nucleus inside each."""
    rng = np.random.default_rng(seed)
    images = rng.random((n, size, size, 2), np.float32) * 100
    images[..., 1] += 1000
    labels = np.zeros((n, size, size, 2), np.int32)
    for index in range(n):
        for number, x in enumerate(range(2, size - 10, 12), start=1):
            labels[index, 2:12, x : x + 10, 0] = number
            labels[index, 4:8, x + 2 : x + 6, 1] = number
    return images, labels


def table(sizes: tuple[float, ...]) -> NDArray[Any]:
    rows = [(f"image_{k}.tif", f"batch {k % 2}", str(size), "", "0", "breast") for k, size in enumerate(sizes)]
    return np.array([HEADER, *rows])


def write(folder: Path, split: str, sizes: tuple[float, ...], size: int = 32, **arrays: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = pixels(len(sizes), size, len(split))
    place = folder / f"tissuenet_v1.1_{split}.npz"
    every = {"X": images, "y": labels, "meta": table(sizes)} | arrays
    np.savez_compressed(place, **{name: value for name, value in every.items() if value is not None})
    return place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "set"
    write(place, "train", (0.5, 0.377, 1.0), size=64)
    write(place, "val", (0.65,))
    write(place, "test", (0.5,))
    return place


def bring_in(folder: Path, mpp_um: float | None = None) -> Imported:
    return read_data_set("tissuenet", folder, folder.parent / "out", mpp_um)


def test_images_become_slides_with_the_row_of_the_table_that_is_theirs(folder: Path) -> None:
    assert find_layout(folder) == "tissuenet"
    found = bring_in(folder)
    sizes = {row.slide_id: row.sp_mpp_um for row in found.rows}
    assert sizes == {
        "tissuenet_test_0000": 0.5,
        "tissuenet_train_0000": 0.5,
        "tissuenet_train_0001": 0.377,
        "tissuenet_train_0002": 1.0,
        "tissuenet_val_0000": 0.65,
    }, "the first row of the table names its columns"
    assert [row.split for row in found.rows] == ["test", "train", "train", "train", "val"]
    extra = found.rows[2].extra
    assert (extra["tissue"], extra["experiment"]) == ("breast", "batch 1")


def test_channels_and_labels_are_not_mixed_up(folder: Path) -> None:
    found = bring_in(folder)
    out = folder.parent / "out"
    cells, problems = read_sheet(out / "cells.tsv")
    assert problems == []
    assert [row.slide_id for row in cells] == [row.slide_id for row in found.rows]
    images, labels = pixels(3, 64, len("train"))
    markers = MarkerTable(found.channels)
    for row, of_cells in zip(found.rows[1:4], cells[1:4], strict=True):
        index = int(row.slide_id[-1])
        facts = read_facts(row, out, markers).image("sp")
        assert [(one.name, one.marker, one.nuclear) for one in facts.channels] == [
            ("nuclear", "DNA", True),
            ("membrane", "membrane", False),
        ]
        with open_image(parse_source(row.sp or "", out), "sp") as image:
            assert np.array_equal(image.read(0, 0, 0, 64, 64), images[index].transpose(2, 0, 1))
        nuclei = read_instances(parse_source(row.instances or "", out))
        whole = read_instances(parse_source(of_cells.instances or "", out))
        assert np.array_equal(nuclei, labels[index, ..., 1])
        assert np.array_equal(whole, labels[index, ..., 0])
        assert (nuclei > 0).sum() < (whole > 0).sum()


def test_whole_numbers_are_stored_as_such(folder: Path) -> None:
    images = np.arange(2 * 32 * 32 * 2, dtype=np.float64).reshape(2, 32, 32, 2)
    images[1, 0, 0, 0] = 0.1
    images[0, ..., 1] = 7
    write(folder, "val", (0.5, 0.5), X=images)
    found = bring_in(folder)
    out = folder.parent / "out" / "imported" / "images"
    stored = tifffile.imread(out / "tissuenet_val_0000.ome.tif")
    assert stored.dtype == np.uint16
    assert np.array_equal(stored, images[0].transpose(2, 0, 1))
    told = "\n".join(found.notes)
    assert "tissuenet_val_0001: left out" in told, "0.1 is no float32"
    assert "tissuenet_val_0000: its membrane channel is blank" in told


def test_pickled_tables_are_not_read(folder: Path) -> None:
    write(folder, "train", (0.5, 0.4), meta=table((0.5, 0.4)).astype(object))
    found = bring_in(folder)
    told = "\n".join(found.notes)
    assert "meta is stored as Python objects: it is not read, because such a file may run any program" in told
    assert "tissuenet_train_0000 and 1 more: no pixel size is known" in told
    assert [row.sp_mpp_um for row in found.rows] == [0.5, None, None, 0.65]
    assert {row.sp_mpp_um for row in bring_in(folder, 0.4).rows} == {0.4}


@pytest.mark.parametrize("meta", [table((0.5, 0.4))[1:], table((0.5,)), np.zeros((3, 2)), np.array(["x"])])
def test_a_table_that_fits_no_image_is_left_aside(folder: Path, meta: NDArray[Any]) -> None:
    write(folder, "train", (0.5, 0.4), meta=meta)
    found = bring_in(folder)
    assert [row.sp_mpp_um for row in found.rows] == [0.5, None, None, 0.65]
    assert "it is left aside" in "\n".join(found.notes)


def test_the_older_version_has_lists_and_no_pixel_size(tmp_path: Path) -> None:
    lists = {"tissue_list": np.array(["skin", "lung"]), "platform_list": np.array(["codex", "mibi"])}
    place = write(tmp_path / "set", "train", (0.5, 0.5), meta=None, **lists)
    place.rename(place.with_name("tissuenet_v1.0_train.npz"))
    found = bring_in(tmp_path / "set", 0.5)
    assert [row.extra["tissue"] for row in found.rows] == ["skin", "lung"]
    assert [row.extra["imaged_on"] for row in found.rows] == ["codex", "mibi"]
    assert any("no file of the split val and test" in note for note in found.notes)


def test_images_without_a_nucleus_stay_and_are_told(folder: Path) -> None:
    labels = np.zeros((1, 32, 32, 2), np.int64)
    write(folder, "val", (0.5,), y=labels)
    found = bring_in(folder)
    assert "tissuenet_val_0000: no nuclei at all" in "\n".join(found.notes)
    assert found.rows[-1].instances is not None


def test_what_is_missing_or_damaged_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SlideloomError, match=r"no file is a split's .*tissuenet_v1\.1_train\.npz"):
        bring_in(tmp_path)
    write(folder, "val", (0.5,), y=None)
    with pytest.raises(SlideloomError, match=r"no array y .*It holds X, meta"):
        bring_in(folder)
    write(folder, "val", (0.5,), y=np.zeros((1, 32, 32, 1), np.int32))
    with pytest.raises(SlideloomError, match=r"y \(1, 32, 32, 1\)"):
        bring_in(folder)
    write(folder, "val", (0.5,), X=np.full((1, 32, 32, 2), None))
    with pytest.raises(SlideloomError, match="X is stored as Python objects"):
        bring_in(folder)
    place = write(folder, "val", (0.5,))
    place.write_bytes(place.read_bytes()[:-200])
    with pytest.raises(SlideloomError, match=r"the file is damaged.*Copy it again"):
        bring_in(folder)
    write(folder, "train", (0.5,), y=np.zeros((1, 32, 32, 1), np.int32))
    (folder / "tissuenet_v1.1_test.npz").unlink()
    assert find_layout(folder) is None
