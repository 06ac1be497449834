"""Many small slides, every tenth of them bad, on a disk that fills up, killed again and again: an undisturbed result.

``make soak`` runs it. ``SLIDELOOM_SOAK_SLIDES`` sets the number of slides, ``SLIDELOOM_SEED`` what is killed when.
"""

from __future__ import annotations

import csv
import importlib
import os
import pkgutil
import random
import secrets
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from slideloom.slides.sheet import COLUMNS

from .. import bad_inputs
from ..bad_inputs.kinds import Kind
from .conftest import Workspace
from .disturb import Disk, disturb, job_records, restart, wait_for_the_orphans
from .undisturbed import content, differences, write_study

SLIDES = int(os.environ.get("SLIDELOOM_SOAK_SLIDES", "200"))
SEED = int(os.environ.get("SLIDELOOM_SEED", "0")) or secrets.randbelow(2**31)
_PATIENCE_S = 3600.0

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.slow,
    pytest.mark.timeout(4 * 3600),
    pytest.mark.skipif(not os.environ.get("SLIDELOOM_SOAK"), reason="takes an hour: make soak, or set SLIDELOOM_SOAK"),
]


def test_many_slides_with_bad_ones_killed_and_out_of_disk_end_as_an_undisturbed_run(tmp_path: Path, disk: Disk) -> None:
    rng = random.Random(SEED)
    cohort = tmp_path / "cohort"
    bad = _write_cohort(cohort, SLIDES)
    jobs = {"slides_per_job": max(10, SLIDES // 10)}
    undisturbed = write_study(tmp_path / "undisturbed", cohort, **jobs)
    undisturbed.run()
    failures = pq.read_table(undisturbed.results / "reports" / "failures.parquet").to_pylist()
    assert {row["slide_id"]: row["reason_code"] for row in failures} == {name: kind.code for name, kind in bad.items()}

    study = write_study(tmp_path / "study", cohort, **jobs)
    study.edit("results", value=str(disk.place / "results"))
    disturbed = _Elsewhere(study.folder, place=disk.place / "results")
    print(f"\nseed {SEED}: {SLIDES} slides, {len(bad)} of them bad ({', '.join(sorted(map(str, bad.values())))})")
    used = _used_kib(undisturbed.results)
    disk.resize(used // 3)
    full = disturbed.run("--cores", "2", check=False)
    assert full.returncode != 0
    assert "no space left on device" in (full.stdout + full.stderr).lower()

    disk.resize(used * 4)
    n_jobs, n_done = len(job_records(undisturbed)), len(job_records(disturbed))
    print(f"the disk was full after {n_done} of {n_jobs} jobs")
    assert n_done < n_jobs
    # One job last: the others go on without it, to where they wait for it.
    kinds = [*rng.choices(("node", "snakemake"), k=3), "job"]
    sessions = []
    for kind in kinds:
        n_done = len(job_records(disturbed))
        next_one = n_done + rng.randrange(max(1, (n_jobs - n_done) // 2))
        sessions.append(disturb(disturbed, kind, next_one, rng, patience_s=_PATIENCE_S))
    restart(disturbed)
    wait_for_the_orphans(sessions)
    assert differences(content(undisturbed.results), content(disturbed.results)) == []


@dataclass
class _Elsewhere(Workspace):
    """A study whose results lie on another disk."""

    place: Path = Path()

    @property
    def results(self) -> Path:
        return self.place


def _write_cohort(folder: Path, n_slides: int) -> dict[str, Kind]:
    """A cohort of small slides, every tenth of which is bad in a way of its own; the bad ones by slide."""
    from slideloom.demo.cohort import write_cohort

    sheet = write_cohort(folder, seed=11, n_slides=n_slides, size_px=128)
    with sheet.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    kinds = _bad_slides()
    bad: dict[str, Kind] = {}
    for number, row in enumerate(rows[5::10]):
        kind = kinds[number * len(kinds) // max(1, n_slides // 10) % len(kinds)]
        place = folder / "bad" / row["slide_id"]
        place.mkdir(parents=True)
        cells = dict(kind.make(place))
        kept = {name: row[name] for name in ("slide_id", "patient_id", "platform", "split") if name in row}
        files = [name for name in ("he", "sp", "instances", "classes") if cells.get(name)]
        paths = {name: f"bad/{row['slide_id']}/{cells[name]}" for name in files}
        row.clear()
        row.update(cells | paths | kept)
        bad[row["slide_id"]] = kind
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    with sheet.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", delimiter="\t", lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return bad


def _bad_slides() -> list[Kind]:
    """Kinds of the corpus that fail alone when their headers are read."""
    found: dict[str, Kind] = {}
    for module in pkgutil.iter_modules(bad_inputs.__path__):
        if not module.name.startswith("test_"):
            kinds = getattr(importlib.import_module(f"{bad_inputs.__name__}.{module.name}"), "KINDS", ())
            found |= {kind.name: kind for kind in kinds}
    return [
        kind
        for _, kind in sorted(found.items())
        if kind.group == "slide" and kind.answer == "failed" and kind.stage == "facts"
    ]


def _used_kib(folder: Path) -> int:
    return sum(path.lstat().st_size // 4096 + 1 for path in folder.rglob("*") if path.is_file()) * 4
