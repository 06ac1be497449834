"""A study small enough to be run many times, and what of its results must be equal however it was run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from .conftest import Workspace

#: The slide that cannot be read.
BROKEN = "slide_03"
#: What tells of a run, not of the study: logs, benchmarks, what is drawn or gathered from them, what was remembered of
#: the code for the next process, and notes of what each job read (the page reads the costs).
ACCOUNTS = {
    "state/fingerprints.json",
    "reports/costs.parquet",
    "reports/report.html",
    "reports/figures/costs.svg",
    "reports/figures/stalls.svg",
}
ACCOUNT_FOLDERS = {"logs", "benchmarks"}
NOTES = "why"
#: Columns of wall time in tables that are results otherwise.
CLOCKS = {
    "history.parquet": {"seconds", "train_patches_per_s", "wait_share", "encode_share"},
    "reports/training.parquet": {"seconds", "train_patches_per_s", "wait_share", "encode_share"},
}


def write_study(folder: Path, cohort: Path | None = None, **jobs: Any) -> Workspace:
    """Five slides, one of them broken, and one experiment of three epochs; not run yet.

    Studies that are compared share one ``cohort``: the broken slide's message names its file.
    """
    from slideloom.demo.cohort import write_cohort

    if cohort is None:
        sheet = write_cohort(folder / "cohort", seed=11, n_slides=5, size_px=192)
        broken = sheet.parent / "sp" / f"{BROKEN}.ome.tif"
        broken.write_bytes(broken.read_bytes()[:5000])
    else:
        folder.mkdir(parents=True, exist_ok=True)
        sheet = cohort / "slides.tsv"
    config = {
        "study": "undisturbed",
        "slides": str(sheet),
        "markers": str(sheet.parent / "markers.tsv"),
        "classes": str(sheet.parent / "classes.tsv"),
        "results": "results",
        "grids": {"sp64": {"image": "sp", "tile_px": 64}},
        "encoders": {"mean": {"model": "mean_marker", "grid": "sp64", "statistics": "holdout"}},
        "splits": {"holdout": {"scheme": "column"}},
        "experiments": {
            "sp": {
                "encoder": "mean",
                "split": "holdout",
                "decoder": {"width": 0.0625, "branches": "shared"},
                "training": {"epochs": 3, "batch_size": 4, "lr": 3e-3, "t_0": 3, "patience": None},
            }
        },
        "jobs": {"slides_per_job": 3} | jobs,
    }
    workspace = Workspace(folder)
    workspace.config_path.write_text(yaml.safe_dump(config, sort_keys=False))
    return workspace


def run_undisturbed(folder: Path) -> None:
    """The study, run from its first job to its last."""
    write_study(folder).run()


def content(results: Path, *, without: Iterable[str] = ()) -> dict[str, str]:
    """Digest of every artefact by its path below the results folder; accounts of time are left out.

    ``without`` names folders to leave out, too. Nothing may be left that begins with a dot: that would be a draft.
    """
    skipped = ACCOUNT_FOLDERS | set(without)
    found = {}
    for path in sorted(results.rglob("*")):
        name = path.relative_to(results).as_posix()
        told = name in ACCOUNTS or name.split("/")[0] in skipped or path.parent.name == NOTES
        if path.is_file() and not told:
            assert not any(part.startswith(".") and part != ".snakemake_timestamp" for part in name.split("/")), name
            found[name] = _digest(path, name)
    return found


def _digest(path: Path, name: str) -> str:
    for ending, columns in CLOCKS.items():
        if name.endswith(ending):
            table = pq.read_table(path)
            assert columns <= set(table.column_names), name
            return hashlib.sha256(repr(table.drop_columns(sorted(columns)).to_pydict()).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Paths that only one of two results has, or whose bytes differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
