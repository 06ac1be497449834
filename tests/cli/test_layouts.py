from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.data_sets import write_orion_subset, write_spora
from typer.testing import CliRunner, Result

from slideloom.cli.main import app
from slideloom.slides.headers import read_facts
from slideloom.slides.layouts.choose import LAYOUTS
from slideloom.slides.sheet import read_sheet
from slideloom.slides.study import study_from_mapping
from slideloom.slides.tables import read_markers

IDS = ("orion_aaaaaaaa_0", "orion_bbbbbbbb_0")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_orion_subset(Path("pairs"), IDS)
    write_spora(Path("spora"), ("t1", "t2"))


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["sheet", *words])


@pytest.mark.parametrize(
    ("folder", "layout", "options", "channels"),
    [("pairs", "orion_subset", ["--mpp", "0.325"], 16), ("spora", "spora", [], 4)],
)
@pytest.mark.parametrize("auto", [True, False])
def test_the_sheet_and_its_tables_make_a_study(
    folder: str, layout: str, options: list[str], channels: int, auto: bool
) -> None:
    done = run(folder, "--layout", "auto" if auto else layout, "--out", "made/slides.tsv", *options)
    assert done.exit_code == 0, done.output
    assert f"2 slides of the layout {layout} in made/slides.tsv, made/markers.tsv, made/classes.tsv" in done.output
    study = study_from_mapping(
        {
            "study": "s",
            "slides": "made/slides.tsv",
            "markers": "made/markers.tsv",
            "classes": "made/classes.tsv",
            "grids": {"sp": {"image": "sp", "tile_px": 32}},
            "encoders": {"mm": {"model": "mean_marker", "grid": "sp", "normalisation": {"scope": "slide"}}},
            "splits": {"two": {"scheme": "kfold", "folds": 2}},
            "experiments": {"e": {"encoder": "mm", "split": "two"}},
        },
        Path(),
    )
    for row in study.rows:
        facts = read_facts(row, study.data_root, study.markers)
        assert facts.image("sp").n_channels == channels
        assert facts.annotations.keys() == {"instances", "classes"}
    assert run(folder, "--layout", layout, "--out", "made/slides.tsv", *options).exit_code == 1, "nothing is replaced"
    assert run(folder, "--layout", layout, "--out", "made/slides.tsv", "--force", *options).exit_code == 0


def test_names_are_gone_by_unless_a_layout_is_asked_for() -> None:
    done = run("pairs")
    assert done.exit_code == 0
    assert "this folder has the layout orion_subset: --layout orion_subset knows it better" in done.output
    Path("plain").mkdir()
    Path("plain/case7_he.svs").touch()
    done = run("plain", "--layout", "auto", "--mpp", "0.5")
    assert "case7\tcase7_he.svs\t0.5" in done.output


def test_what_is_wrong_is_told() -> None:
    assert "the layout spora gives tables beside the sheet (expected the option --out)" in run(
        "spora", "--layout", "spora"
    ).output.replace("\n", " ")
    assert "no file is of a tissue of this set" in run("spora", "--layout", "orion_subset", "--out", "x.tsv").output
    assert not Path("x.tsv").exists()
    assert "tissues.parquet is missing" in run("pairs", "--layout", "spora", "--out", "x.tsv").output.replace("\n", " ")


def test_every_layout_is_offered_and_others_are_refused() -> None:
    shown = run("--help").output
    assert all(f"{name}," in shown or f"{name}." in shown for name in ("names", "auto", *LAYOUTS))
    refused = run("spora", "--layout", "spora2", "--out", "x.tsv")
    assert refused.exit_code == 2
    assert "'spora2' is none of names, auto, spora" in " ".join(refused.output.split())


def _stains(folder: Path) -> None:
    """A picture, a nuclear stain and a membrane stain in the form of CellBinDB's demo images."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    labels = np.zeros((40, 48), np.uint16)
    labels[4:10, 4:10], labels[20:30, 20:30] = 1, 2
    Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(folder / "he_image.tif")
    for stain in ("dapi", "mif"):
        tifffile.imwrite(folder / f"{stain}_image.tif", rng.integers(0, 999, (40, 48), dtype=np.uint16))
    for stain in ("he", "dapi", "mif"):
        tifffile.imwrite(folder / f"{stain}_labels.tif", labels)


def test_one_modality_moves_pictures_in_both_sheets() -> None:
    _stains(Path("stains"))
    done = run("stains", "--layout", "cellbindb", "--one-modality", "--out", "made/slides.tsv")
    assert done.exit_code == 0, done.output
    for name in ("slides.tsv", "markers.tsv", "cells.tsv", "files.tsv"):
        assert f"made/{name}" in done.output
    markers, problems = read_markers(Path("made/markers.tsv"))
    assert problems == []
    for name in ("slides.tsv", "cells.tsv"):
        rows, problems = read_sheet(Path("made") / name)
        assert problems == []
        assert [row.he for row in rows] == [None] * 3
        channels = {row.slide_id: read_facts(row, Path("made"), markers).image("sp").n_channels for row in rows}
        assert channels == {"cellbindb_dapi": 1, "cellbindb_he": 3, "cellbindb_mif": 1}
        marked = {row.slide_id for row in rows if row.instances}
        assert marked == ({"cellbindb_mif"} if name == "cells.tsv" else {"cellbindb_dapi", "cellbindb_he"})
    plain = run("stains", "--layout", "cellbindb", "--out", "other/slides.tsv")
    assert plain.exit_code == 0
    assert {row.he is None for row in read_sheet(Path("other/slides.tsv"))[0]} == {True, False}


@pytest.mark.parametrize("name", ["cells.tsv", "files.tsv"])
def test_tables_of_a_person_are_not_replaced_unless_forced(name: str) -> None:
    _stains(Path("stains"))
    Path("made").mkdir()
    own = Path("made", name)
    own.write_text("mine\n")
    refused = run("stains", "--layout", "cellbindb", "--out", "made/slides.tsv")
    assert refused.exit_code == 1
    assert "exists already" in refused.output
    assert [path.name for path in Path("made").iterdir()] == [name]
    assert own.read_text() == "mine\n"
    assert run("stains", "--layout", "cellbindb", "--out", "made/slides.tsv", "--force").exit_code == 0
    assert own.read_text() != "mine\n"


def test_what_an_importer_did_not_write_is_left_and_told() -> None:
    Path("made").mkdir()
    Path("made/cells.tsv").write_text("of another set\n")
    options = ("--layout", "spora", "--one-modality", "--out", "made/slides.tsv", "--force")
    done = run("spora", *options)
    assert done.exit_code == 0, done.output
    assert "made/cells.tsv is of an earlier import, and no part of this one" in " ".join(done.output.split())
    assert Path("made/cells.tsv").read_text() == "of another set\n"


def test_one_modality_needs_a_layout_and_sheets_have_names_of_their_own() -> None:
    Path("plain").mkdir()
    Path("plain/case7_he.svs").touch()
    done = run("plain", "--one-modality")
    assert done.exit_code == 1
    assert "Name it with --layout" in done.output
    _stains(Path("stains"))
    done = run("stains", "--layout", "cellbindb", "--out", "cells.tsv")
    assert done.exit_code == 1
    assert "cells.tsv is what importers call another of their tables" in " ".join(done.output.split())
