from __future__ import annotations

from pathlib import Path

import pytest
from tests.data_sets import write_orion_subset, write_spora
from typer.testing import CliRunner, Result

from slideloom.cli.main import app
from slideloom.slides.headers import read_facts
from slideloom.slides.study import study_from_mapping

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
