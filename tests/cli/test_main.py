from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from slideloom._version import __version__
from slideloom.cli.main import app
from slideloom.errors import ConfigError
from slideloom.slides.sheet import read_sheet

SOURCE = Path(__file__).resolve().parents[2] / "src"


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def flat(text: str) -> str:
    return " ".join(text.split())


def process(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-X", "importtime", "-m", "slideloom.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)


def test_version_and_help() -> None:
    assert run("--version").output.strip() == f"slideloom {__version__}"
    text = run("--help").output
    assert all(name in text for name in ("sheet", "weights", "check", "doctor", "demo", "show", "schema"))
    assert "..." not in text.partition("Commands:")[2], "no command's summary is cut"


@pytest.mark.parametrize("words", [("--help",), ("check", "config.yaml")])
def test_nothing_heavy_is_imported(study: Path, words: tuple[str, ...]) -> None:
    done = process(*words)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time" in line}
    assert done.returncode == 0, done.stderr
    assert not imported & {"torch", "timm", "pandas", "numpy", "pyarrow", "matplotlib", "tensorstore"}


def test_check_of_a_right_study(study: Path) -> None:
    result = run("check", study)
    assert result.exit_code == 0, result.output
    for words in (
        "fine study small",
        "3 of 3 patients: 3 with he, 3 with sp",
        "2, of these nuclear: DNA",
        "tumour, stroma",
    ):
        assert words in flat(result.output)
    assert "runs WITHOUT WEIGHTS (random: 0)" in flat(result.output)


def test_five_mistakes_are_on_one_screen_in_seconds(study: Path) -> None:
    text = study.read_text()
    text = text.replace("tile_px: 64}\n  he64", "tile_px: 64, strid_px: 32}\n  he64")
    text = text.replace("[DNA, CD3e]", "[DNA, CD8]")
    study.write_text(text + "  third: {encoder: virtues, split: holdout}\n")
    sheet = Path("slides.tsv")
    sheet.write_text(sheet.read_text() + sheet.read_text().splitlines()[1] + "\n")
    Path("few_sp.tif").unlink()
    start = time.perf_counter()
    done = process("check", "config.yaml")
    seconds = time.perf_counter() - start
    screen = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("import time"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert "5 mistakes; nothing was run." in screen
    for words in (
        "config.yaml:6: grids.sp64.strid_px unknown key 'strid_px' → Did you mean 'stride_px'?",
        "config.yaml:9: encoders.mm.markers[1] 'CD8' is no marker of markers.tsv",
        "config.yaml:16: experiments.third.encoder encoders has no entry 'virtues'",
        "slides.tsv:3: sp 'few_sp.tif' does not exist (slide 'few')",
        "slides.tsv:5: slide_id 'good' is the id of line 2 already",
    ):
        assert words in flat(screen), screen
    assert len(screen.splitlines()) < 24, "one screen"
    assert "Traceback" not in screen
    assert seconds < 10


def test_traceback_may_stand_anywhere(study: Path) -> None:
    study.write_text("study: [\n")
    assert isinstance(run("check", study).exception, SystemExit)
    assert isinstance(run("--traceback", "check", study).exception, ConfigError)
    assert isinstance(run("check", study, "--traceback").exception, ConfigError)


def test_unforeseen_errors_end_without_a_traceback(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise ZeroDivisionError("one by nought")

    monkeypatch.setattr("slideloom.slides.study.load_study", fail)
    result = run("check", study)
    assert result.exit_code == 2
    assert "unforeseen error: ZeroDivisionError: one by nought" in result.output
    assert "--traceback" in result.output


def test_doctor_lists_slides_and_says_what_is_wrong(study: Path) -> None:
    result = run("doctor", study, "--workers", "1", "--table", "findings.parquet")
    assert result.exit_code == 0, result.output
    text = flat(result.output)
    assert "good he 128 × 96 0.5 sheet RGB uint8 128 × 96 ok" in text
    assert "sp 128 × 96 0.5 sheet 2 uint16: DAPI, CD3" in text
    assert "fails: missing_marker" in text
    assert "1 of 3 slides can run, 2 will fail" in text
    assert len(pd.read_parquet("findings.parquet")) == 6
    assert run("doctor", study, "--workers", "1", "--strict").exit_code == 1


def test_doctor_without_a_good_slide(study: Path) -> None:
    sheet = Path("slides.tsv")
    sheet.write_text(sheet.read_text().replace("0.5\tDAPI", "\tDAPI"))
    result = run("doctor", study, "--workers", "1")
    assert result.exit_code == 1
    assert "0 of 3 slides can run, 3 will fail" in flat(result.output)


def test_doctor_tells_the_configs_mistakes_first(study: Path) -> None:
    study.write_text(study.read_text().replace("random: 0", "randm: 0"))
    result = run("doctor", study)
    assert result.exit_code == 1
    assert "unknown key 'randm'" in result.output


def test_sheet_is_printed_or_written_with_paths_that_hold(study: Path) -> None:
    os.mkdir("images")
    for name in ("good_he.png", "good_sp.tif", "good_labels.tif"):
        Path(name).rename(Path("images") / name)
    printed = CliRunner().invoke(app, ["sheet", "images"])
    assert printed.stdout == ("slide_id\the\tsp\tinstances\ngood\tgood_he.png\tgood_sp.tif\tgood_labels.tif\n")
    assert "1 slide found" in printed.stderr
    result = run("sheet", "images", "--out", "sheets/new.tsv")
    assert result.exit_code == 0, result.output
    rows, problems = read_sheet(Path("sheets/new.tsv"))
    assert problems == []
    assert (Path("sheets") / str(rows[0].he)).is_file()
    assert run("sheet", "images", "--out", "sheets/new.tsv").exit_code == 1
    assert run("sheet", "images", "--out", "sheets/new.tsv", "--force").exit_code == 0


def test_schema_is_json(tmp_path: Path) -> None:
    assert json.loads(run("schema").output)["title"] == "StudyConfig"
    assert "README.md" in run("schema", "--write", tmp_path).output
    assert (tmp_path / "schema" / "config.schema.json").is_file()


def test_show_prints_the_tables(tmp_path: Path) -> None:
    reports = tmp_path / "results" / "reports"
    reports.mkdir(parents=True)
    frame = pd.DataFrame({"experiment": ["sp"], "fold": ["0"], "slide_id": ["a"], "n_gt": [12], "pq": [0.51234]})
    frame.assign(dice_macro=[None], seconds=[1.0]).astype({"dice_macro": float}).to_parquet(reports / "slides.parquet")
    failures = pd.DataFrame({"slide_id": ["b"], "stage": ["facts"], "code": ["truncated"], "message": ["[too] short"]})
    failures.to_parquet(reports / "failures.parquet")
    (reports / "report.html").touch()
    result = run("show", tmp_path / "results")
    assert result.exit_code == 0, result.output
    text = flat(result.output)
    assert "experiment fold slide_id n_gt pq dice_macro sp 0 a 12 0.512 –" in text
    assert "1 failed" in text
    assert "b facts truncated [too] short" in text
    assert str(reports / "report.html") in result.output


def test_show_without_results(tmp_path: Path) -> None:
    result = run("show", tmp_path)
    assert result.exit_code == 1
    assert "no slides table here" in result.output


def test_demo_hands_its_options_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def write_cohort(folder: Path, *, seed: int, n_slides: int, size_px: int) -> Path:
        asked.update(folder=folder, seed=seed, n_slides=n_slides, size_px=size_px)
        return folder / "slides.tsv"

    monkeypatch.setattr("slideloom.demo.cohort.write_cohort", write_cohort)
    result = run("demo", tmp_path, "--seed", 3, "--slides", 2, "--size", 256)
    assert result.exit_code == 0, result.output
    assert asked == {"folder": tmp_path, "seed": 3, "n_slides": 2, "size_px": 256}
    assert str(tmp_path / "slides.tsv") in result.output.replace("\n", "")


def test_demo_writes_platforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def write_platforms(folder: Path, *, seed: int, n_slides: int, size_px: int) -> Path:
        asked.append((folder, seed, n_slides, size_px))
        return folder / "slides.tsv"

    monkeypatch.setattr("slideloom.demo.platforms.write_platforms", write_platforms)
    result = run("demo", tmp_path, "--platforms")
    assert result.exit_code == 0, result.output
    assert "6 slides of 3 platforms" in result.output
    assert run("demo", tmp_path, "--platforms", "--seed", 1, "--slides", 3, "--size", 256).exit_code == 0
    assert asked == [(tmp_path, 0, 2, 384), (tmp_path, 1, 3, 256)]


def test_demo_by_default_is_the_paired_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    monkeypatch.setattr("slideloom.demo.cohort.write_cohort", lambda folder, **given: asked.update(given) or folder)
    assert run("demo", tmp_path).exit_code == 0
    assert asked == {"seed": 0, "n_slides": 8, "size_px": 960}
