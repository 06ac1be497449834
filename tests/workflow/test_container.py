"""Jobs go into the image that ``SLIDELOOM_CONTAINER`` names, and only when Snakemake is told to use one.

A stand-in takes Apptainer's place: it notes how it was called and runs the command outside.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from slideloom.artefacts.files import read_json
from slideloom.demo.cohort import write_cohort

from .conftest import Workspace

pytestmark = pytest.mark.workflow

APPTAINER = """\
#!/bin/bash
if [ "$1" = --version ]; then echo "apptainer version 1.3.4"; exit 0; fi
printf '%s\\n' "$*" >> {calls}
PATH={python}:$PATH exec bash -c "${{@: -1}}"
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    sheet = write_cohort(tmp_path / "cohort", n_slides=2, size_px=128)
    config = {
        "study": "s",
        "slides": str(sheet),
        "markers": str(sheet.parent / "markers.tsv"),
        "classes": str(sheet.parent / "classes.tsv"),
        "results": str(tmp_path / "results"),
        "grids": {"sp": {"image": "sp", "tile_px": 64}},
        "encoders": {"mean": {"model": "mean_marker", "grid": "sp", "normalisation": {"scope": "slide"}}},
        "splits": {"holdout": {}},
        "experiments": {"sp": {"encoder": "mean", "split": "holdout", "heads": ["nucleus", "hv"]}},
    }
    workspace = Workspace(tmp_path)
    workspace.config_path.write_text(yaml.safe_dump(config, sort_keys=False))
    program = tmp_path / "bin" / "apptainer"
    program.parent.mkdir()
    program.write_text(APPTAINER.format(calls=tmp_path / "calls", python=Path(sys.executable).parent))
    program.chmod(0o755)
    (tmp_path / "slideloom.sif").touch()
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("SLIDELOOM_CONTAINER", str(tmp_path / "slideloom.sif"))
    return workspace


def test_jobs_run_in_the_image_when_asked(study: Workspace) -> None:
    study.run("--until", "facts")
    assert not (study.folder / "calls").exists()
    (record,) = (study.results / "state" / "facts" / "jobs").glob("*.json")
    before = read_json(record)
    record.unlink()
    study.run("--until", "tissue", "--sdm", "apptainer", "--apptainer-args=--nv")
    calls = (study.folder / "calls").read_text().splitlines()
    assert len(calls) == 2
    for call in calls:
        assert call.startswith("exec ")
        assert " --nv " in call
        assert f" {study.folder / 'slideloom.sif'} bash -c " in call
    # The image changes where a job runs, not what is known of it.
    assert read_json(record) == before
