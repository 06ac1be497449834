"""A small study that the workflow tests run through Snakemake."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from filelock import FileLock

if TYPE_CHECKING:
    from .disturb import Disk

REPOSITORY = Path(__file__).resolve().parents[2]
RULES = [
    "facts", "tissue", "patches", "targets", "splits", "statistics", "embeddings", "train", "maps", "instances",
    "biology", "metrics", "reports", "report_html", "report_figures",
]  # fmt: skip
#: Of studies that the small one is not.
OTHER_RULES = ["cell_targets", "train_live", "pretrained", "bands", "exports", "imported", "verifier"]


@dataclass
class Workspace:
    """A folder with a config, from which Snakemake is run as a user would."""

    folder: Path
    repository: Path = REPOSITORY

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def config_path(self) -> Path:
        return self.folder / "config.yaml"

    def config(self) -> dict[str, Any]:
        mapping: dict[str, Any] = yaml.safe_load(self.config_path.read_text())
        return mapping

    def edit(self, *path: str, value: Any) -> None:
        """Set one value of the config."""
        mapping = whole = self.config()
        for key in path[:-1]:
            mapping = mapping.setdefault(key, {})
        mapping[path[-1]] = value
        self.config_path.write_text(yaml.safe_dump(whole, sort_keys=False))

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``snakemake --profile profiles/local`` on the config."""
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(self.repository / "Snakefile")]
        command += ["--profile", str(self.repository / "profiles" / "local"), "--configfile", str(self.config_path)]
        done = subprocess.run(
            [*command, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command[1:])} failed:\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}")
        return done

    def would_run(self) -> dict[str, int]:
        """Jobs by rule that a run would start now."""
        done = self.run("--dry-run", "--quiet", "rules")
        screen = done.stdout + done.stderr
        counts = {}
        for line in screen.splitlines():
            words = line.split()
            if len(words) == 2 and words[0] in (*RULES, *OTHER_RULES) and words[1].isdigit():
                counts[words[0]] = int(words[1])
        assert counts or "Nothing to be done" in screen
        return counts


def run_once(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str, name: str, run: Callable[[Path], None]
) -> Workspace:
    """A study run to its end once, whatever the number of pytest's workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "finished").exists():
            run(folder)
            (folder / "finished").touch()
    return Workspace(folder)


def copied(study: Workspace, place: Path) -> Workspace:
    """A copy of a finished study that a test may edit."""
    shutil.copytree(study.folder, place, symlinks=True)
    copy = Workspace(place)
    copy.config_path.write_text(copy.config_path.read_text().replace(str(study.folder), str(place)))
    return copy


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Workspace:
    """The small study."""
    return run_once(tmp_path_factory, worker_id, "study", _run_study)


def _run_study(folder: Path) -> None:
    """One SP experiment, its control on shuffled targets, one on H&E."""
    from slideloom.demo.cohort import write_cohort

    sheet = write_cohort(folder / "cohort", seed=7, n_slides=6, size_px=480)
    training = {"epochs": 24, "batch_size": 4, "lr": 3e-3, "t_0": 24, "patience": None}
    narrow = {"width": 0.125, "branches": "shared"}
    loss = {"cross_entropy": 1.5, "dice": 1.5, "focal_tversky": 0.5, "hv_mse": 2.0, "hv_msge": 0.4}
    loss["class_weights"] = True
    sp = {"encoder": "mean", "split": "holdout", "decoder": narrow, "loss": loss, "training": training}
    config = {
        "study": "small",
        "slides": str(sheet),
        "markers": str(sheet.parent / "markers.tsv"),
        "classes": str(sheet.parent / "classes.tsv"),
        "results": "results",
        "grids": {"sp120": {"image": "sp", "tile_px": 120}, "he128": {"image": "he", "tile_px": 128}},
        "encoders": {
            "mean": {"model": "mean_marker", "grid": "sp120", "statistics": "holdout"},
            "vit": {"model": "timm/vit_tiny_patch16_224", "grid": "he128", "random": 0},
        },
        "splits": {"holdout": {"scheme": "column"}},
        "experiments": {
            "sp": sp,
            "sp_shuffled": sp | {"training": training | {"shuffle_targets": True}},
            "he": {
                "encoder": "vit",
                "split": "holdout",
                "decoder": narrow | {"width": 0.0625},
                "training": training | {"epochs": 1},
            },
        },
        "jobs": {"slides_per_job": 4},
    }
    workspace = Workspace(folder)
    workspace.config_path.write_text(yaml.safe_dump(config, sort_keys=False))
    workspace.run()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 1 MiB."""
    from .disturb import Disk  # which imports this module

    place = tmp_path / "disk"
    place.mkdir()
    disk = Disk(place)
    try:
        disk.resize(1024, new=True)
    except FileNotFoundError:
        pytest.skip("there is no mount program here")
    yield disk
    subprocess.run(["umount", "--lazy", str(place)], check=True)
