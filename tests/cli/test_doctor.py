"""The doctor as a command: what it prints, and what its exit code says."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from slideloom.cli import surroundings
from slideloom.cli.doctor import look_after
from slideloom.cli.main import app
from slideloom.slides.study import load_study


def doctor(*words: object) -> Result:
    return CliRunner().invoke(app, ["doctor", *map(str, words), "--workers", "1"])


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(autouse=True)
def _bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of its own: no Slurm, no driver, no settings of a person."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nothing"))


def test_a_study_that_may_start(study: Path) -> None:
    result = doctor(study)
    text = flat(result.output)
    assert result.exit_code == 0, result.output
    assert text.index("broken he") < text.index("good he"), "bad ones first"
    for words in (
        "Besides the slides",
        "disk fine about",
        "weights note encoders.vit: runs WITHOUT WEIGHTS",
        "GPU note",
    ):
        assert words in text
    assert "Slurm" not in text, "no profile is here"
    assert "1 of 3 slides can run, 2 will fail; the others finish without them." in text
    assert "experiment sp, experiment he: none of 2 slides to predict is good: there will be no results" in text
    assert text.endswith("The run may start.")
    assert result.stderr == "", "no progress where there is no terminal"


def test_without_a_slide_to_train_on_the_run_should_not_start(study: Path) -> None:
    sheet = Path("slides.tsv")
    sheet.write_text(sheet.read_text().replace("good_he.png\tgood_sp.tif", "broken_he.png\tgood_sp.tif"))
    result = doctor(study)
    assert result.exit_code == 1
    text = flat(result.output)
    assert "0 of 3 slides can run" in text
    assert "experiment sp, experiment he: none of 1 slides to train on is good" in text
    assert "encoder mm: none of 1 slides to take its statistics from is good" in text


def test_a_disk_that_is_too_small_keeps_the_run_from_starting(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(surroundings.shutil, "disk_usage", lambda place: usage)
    result = doctor(study)
    assert result.exit_code == 1
    text = flat(result.output)
    assert "disk wrong about" in text
    assert "1 kB are free" in text
    assert "→ Name another folder as the config's 'results'" in text
    assert text.endswith("The run should not start: • disk: see above")


def test_missing_weights_keep_the_run_from_starting(study: Path) -> None:
    Path("vit.pth").write_bytes(b"PK\x03\x04 cut short")
    study.write_text(study.read_text().replace("random: 0", "checkpoint: vit.pth"))
    result = doctor(study)
    assert result.exit_code == 1
    assert "• weights: see above" in flat(result.output)


def test_progress_is_shown_on_a_terminal(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, width=100)
    monkeypatch.setattr("slideloom.cli.doctor.console", lambda stderr=False: terminal)
    look_after(load_study(study), workers=1)
    assert "reading headers" in stream.getvalue()
    assert "3/3" in stream.getvalue()


def test_a_named_profile_is_looked_at(study: Path) -> None:
    result = doctor(study, "--profile", "profiles/slurm")
    assert result.exit_code == 0
    assert "Slurm not looked at the profile profiles/slurm has no site.yaml" in flat(result.output)


def test_every_slide_of_a_large_study_stands_in_the_table(study: Path) -> None:
    header, good, *_ = Path("slides.tsv").read_text().splitlines()
    cells = good.split("\t")
    rows = ["\t".join([f"s{number:03}", f"P{number}", *cells[2:]]) for number in range(60)]
    rows += ["\t".join([f"b{number:03}", f"Q{number}", *cells[2:]]).replace("0.5", "") for number in range(3)]
    Path("slides.tsv").write_text("\n".join([header, *rows]) + "\n")
    Path("classes.csv").write_text("image,label_id,class\ngood,1,tumour\ngood,2,stroma\ngood,7,tumour\n")
    result = doctor(study, "--table", "findings.parquet")
    assert result.exit_code == 0, result.output
    frame = pd.read_parquet("findings.parquet")
    assert frame.groupby("status")["slide_id"].nunique().to_dict() == {"fails": 3, "ok": 60}
    assert "s001" not in result.output
    assert len(result.output.splitlines()) < 45
    assert "60 unknown he 128 × 96 0.5 RGB uint8 60" in flat(result.output)
    assert doctor(study, "--strict").exit_code == 1
