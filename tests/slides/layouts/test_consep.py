from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from tests.annotated_sets import Study, rgb, save
from typer.testing import CliRunner

from slideloom.cli.main import app
from slideloom.errors import SlideError, SlideloomError
from slideloom.slides.labels import label_shape
from slideloom.slides.layouts.choose import find_layout, read_data_set
from slideloom.slides.layouts.consep import TYPES
from slideloom.slides.source import Source

SIZE = 64
#: Top, left, type of each nucleus; the numbers leave out 3.
NUCLEI = {1: (2, 2, 1), 2: (2, 20, 2), 4: (20, 2, 3), 5: (20, 20, 4), 6: (40, 2, 5), 7: (40, 20, 6), 8: (40, 40, 7)}
#: What the literature makes of the seven.
MERGED = {1: 1, 2: 2, 3: 3, 4: 3, 5: 4, 6: 4, 7: 4}


def maps() -> dict[str, np.ndarray]:
    nuclei, types = np.zeros((2, SIZE, SIZE))
    for number, (top, left, kind) in NUCLEI.items():
        nuclei[top : top + 10, left : left + 10] = number
        types[top : top + 10, left : left + 10] = kind
    return {"inst_map": nuclei, "type_map": types, "inst_type": np.array([[kind] for *_, kind in NUCLEI.values()])}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "CoNSeP"
    for part, name in (("Train", "train_1"), ("Train", "train_2"), ("Test", "test_1")):
        save(place / part / "Images" / f"{name}.png", rgb(SIZE, SIZE, len(name)))
        (place / part / "Labels").mkdir(exist_ok=True)
        scipy.io.savemat(place / part / "Labels" / f"{name}.mat", maps(), do_compression=part == "Test")
    return place


def bring_in(folder: Path, mpp_um: float | None = None) -> Study:
    out = folder.parent / "out"
    return Study(read_data_set("consep", folder, out, mpp_um), out)


def test_pictures_nuclei_and_the_sets_own_split(folder: Path) -> None:
    assert find_layout(folder) == "consep"
    study = bring_in(folder)
    assert {name: row.split for name, row in study.rows.items()} == {
        "test_1": "test",
        "train_1": "train",
        "train_2": "train",
    }
    assert {row.he_mpp_um for row in study.rows.values()} == {0.25}
    nuclei, _ = study.maps("test_1")
    assert np.array_equal(nuclei, maps()["inst_map"])
    names = ("Train/{}/train_1", "Train/{}/train_2", "Test/{}/test_1")
    kinds = (("Images", "png"), ("Labels", "mat"))
    assert study.file_list(folder) == {f"{name.format(kind)}.{end}" for name in names for kind, end in kinds}
    assert bring_in(folder, 0.275).rows["test_1"].he_mpp_um == 0.275


def test_seven_types_are_kept_and_read_as_the_four_that_are_scored(folder: Path) -> None:
    study = bring_in(folder)
    _, classes = study.maps("train_1")
    types = maps()["type_map"].astype(int)
    assert np.array_equal(classes, np.vectorize({0: 0, **MERGED}.get)(types))
    table = (folder.parent / "out" / (study.rows["train_1"].classes or "")).read_text().splitlines()
    assert table == ["instance_id\tclass", *(f"{one}\t{TYPES[kind - 1]}" for one, (*_, kind) in NUCLEI.items())]


def test_most_pixels_of_a_nucleus_count_and_what_disagrees_is_counted(folder: Path) -> None:
    held = maps()
    held["type_map"][2:5, 2:12] = 7
    held["inst_type"][1] = 5
    scipy.io.savemat(folder / "Train" / "Labels" / "train_1.mat", held)
    study = bring_in(folder)
    _, classes = study.maps("train_1")
    assert classes[3, 3] == classes[10, 10] == 1
    assert classes[3, 21] == 2
    assert "train_1.mat: 1 nuclei have pixels of more than one class, 1 another one in inst_type" in study.notes
    del held["type_map"]
    scipy.io.savemat(folder / "Train" / "Labels" / "train_1.mat", held)
    _, classes = bring_in(folder).maps("train_1")
    assert classes[3, 21] == 4, "without a map, inst_type counts, in the order of the numbers"
    assert classes[21, 3] == 3


def test_what_is_missing_is_named_and_the_others_go_on(folder: Path) -> None:
    scipy.io.savemat(folder / "Train" / "Labels" / "train_1.mat", {"type_map": maps()["type_map"]})
    (folder / "Train" / "Labels" / "train_2.mat").unlink()
    study = bring_in(folder)
    assert set(study.rows) == {"test_1", "train_2"}
    assert "train_1 (train_1.mat): left out, the variable 'inst_map' is missing" in study.notes
    assert study.rows["train_2"].instances is None
    assert "train_2: no annotation" in study.notes
    held = maps()
    held["inst_map"] = held["inst_map"][:50]
    held["type_map"] = held["type_map"][:50]
    scipy.io.savemat(folder / "Train" / "Labels" / "train_1.mat", held)
    study = bring_in(folder)
    assert "train_1: its annotation is left out, it has 50 x 64 px, its image has 64 x 64" in study.notes
    with pytest.raises(SlideloomError, match="no slide was found"):
        read_data_set("consep", folder / "Train" / "Labels", folder.parent / "out")


def test_nothing_is_looked_for_outside_of_the_folder(folder: Path) -> None:
    place = folder / "Train" / "Images"
    assert find_layout(place) is None
    with pytest.raises(SlideloomError, match="no slide was found"):
        read_data_set("consep", place, folder.parent / "out")


def test_a_matlab_file_in_the_sheet_is_answered_with_the_command_that_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    label = Path("FOLDER/Labels/a.mat")
    save(Path("FOLDER/Images/a.png"), rgb(SIZE, SIZE, 1))
    label.parent.mkdir()
    scipy.io.savemat(label, {"inst_map": maps()["inst_map"]})
    with pytest.raises(SlideError) as told:
        label_shape(Source(label))
    commands = re.findall("`slideloom (.*?)`", told.value.hint)
    assert len(commands) == 1
    done = CliRunner().invoke(app, commands[0].split())
    assert done.exit_code == 0, done.output
    assert Path("FOLDER/slides.tsv").is_file()
    assert label_shape(Source(Path("FOLDER/imported/instances/a.tif"))) == (SIZE, SIZE)
    with pytest.raises(SlideloomError, match="slideloom sheet FOLDER --layout consep"):
        label_shape(Source(label.rename("FOLDER/Labels/a.tif")))
