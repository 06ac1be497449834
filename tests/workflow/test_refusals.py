"""What a user sees who made mistakes: all of them, on one screen, before any job."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from .conftest import REPOSITORY, Workspace

pytestmark = pytest.mark.workflow


def test_five_mistakes_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.tif").touch()
    (tmp_path / "slides.tsv").write_text(
        "slide_id\tsp\tinstances\tmpp_um\tsplit\n"
        "s1\ta.tif\ta.tif\t0.5\ttrain\n"
        "s2\tgone.tif\ta.tif\t0.5\ttest\n"
        "s1\ta.tif\ta.tif\t0.5\ttest\n"
    )
    (tmp_path / "markers.tsv").write_text("channel\tmarker\tuniprot\tnuclear\nDAPI\tDNA\t\tyes\n")
    (tmp_path / "classes.tsv").write_text("id\tname\tcolour\n1\tTumour\t#ff0000\n")
    config = {
        "study": "s",
        "slides": "slides.tsv",
        "markers": "markers.tsv",
        "classes": "classes.tsv",
        "grids": {"sp": {"image": "sp", "tile_px": 64, "strid_px": 64}},
        "encoders": {"mean": {"model": "mean_marker", "grid": "sp", "markers": ["CD99"], "statistics": "holdout"}},
        "splits": {"holdout": {}},
        "experiments": {
            "one": {"encoder": "mean", "split": "holdout", "heads": ["nucleus", "hv"]},
            "two": {"encoder": "virtue", "split": "holdout", "heads": ["nucleus", "hv"]},
        },
    }
    workspace = Workspace(tmp_path)
    workspace.config_path.write_text(yaml.safe_dump(config, sort_keys=False))
    start = time.perf_counter()
    done = workspace.run(check=False)
    took = time.perf_counter() - start
    screen = done.stdout + done.stderr
    assert done.returncode != 0
    for words in ("strid_px", "stride_px", "gone.tif", "'s1'", "CD99", "virtue"):
        assert words in screen
    assert "5 mistakes" in screen
    assert "Traceback" not in screen
    assert len(screen.splitlines()) <= 40
    assert took < 10
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("study", ["demo", "real", "paired"])
def test_shipped_studies_are_well_formed(study: str) -> None:
    from slideloom.config.load import read_config

    checked = read_config(REPOSITORY / "config" / "studies" / f"{study}.yaml")
    assert list(checked.problems) == []
