"""Killed at random moments and started again: the content of an undisturbed run.

The seed of every kill is printed, and ``SLIDELOOM_SEED`` sets the first; ``SLIDELOOM_SOAK`` sets how many runs of their
own ``make soak`` kills, none when unset.
"""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import REPOSITORY, Workspace, copied, run_once
from .disturb import KINDS, PATIENCE_S, disturb, job_records, restart, wait_for_the_orphans
from .undisturbed import content, differences, run_undisturbed, write_study

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

SOAK = int(os.environ.get("SLIDELOOM_SOAK", "0"))
SEED = int(os.environ.get("SLIDELOOM_SEED", "0")) or secrets.randbelow(2**31)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Workspace:
    """The study that nobody disturbs."""
    return run_once(tmp_path_factory, worker_id, "undisturbed", run_undisturbed)


@pytest.fixture
def workspace(undisturbed: Workspace, tmp_path: Path) -> Workspace:
    """The same study, not run yet."""
    return write_study(tmp_path / "study", undisturbed.folder / "cohort")


def test_a_run_killed_twenty_times_ends_as_an_undisturbed_one(undisturbed: Workspace, workspace: Workspace) -> None:
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    wanted = {path.relative_to(undisturbed.results): path.read_bytes() for path in job_records(undisturbed)}
    sessions = []
    # Sorted, so that the kills are spread over the whole run: one that comes early finds little done.
    for n_done in sorted(rng.randrange(len(wanted) - 1) for _ in range(20)):
        kind = rng.choices(KINDS, (2, 2, 1))[0]  # after a job's death, the rest of the run goes on
        sessions.append(disturb(workspace, kind, n_done, rng))
        # A record holds the digest of what was made of each slide: whatever is vouched for is as it should be.
        for path in job_records(workspace):
            assert path.read_bytes() == wanted[path.relative_to(workspace.results)], path
    restart(workspace)
    wait_for_the_orphans(sessions)
    assert differences(content(undisturbed.results), content(workspace.results)) == []


_JOB = """
import sys
from pathlib import Path
import numpy as np
from slideloom.artefacts.files import publish, write_text
from slideloom.artefacts.paths import Paths
from slideloom.artefacts.stage import Stage
from slideloom.artefacts.zarrio import create_group, write_array

paths = Paths(Path(sys.argv[1]))

def work(slide):
    store, table = paths.patches("grid", slide), paths.slide_facts(slide)
    with publish(store) as draft:
        create_group(draft, {"slide": slide})
        for name in ("pixels", "tissue"):
            write_array(draft / name, np.random.default_rng(int(slide)).integers(0, 255, (300, 1000), np.uint8))
    write_text(table, slide)
    return [store, table]

stage = Stage(name="patches", context="grid", paths=paths, params="{}")
print("ready", flush=True)
stage.run([str(number) for number in range(40)], work, paths.job_record("patches", "grid", "0"))
"""


def test_twenty_jobs_killed_in_the_middle_of_their_slides_end_as_an_undisturbed_one(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    start = time.monotonic()
    assert _start_job(tmp_path / "undisturbed").wait(PATIENCE_S) == 0
    seconds = time.monotonic() - start
    wanted = content(tmp_path / "undisturbed")
    hit = 0
    for number in range(20):
        folder = tmp_path / str(number)
        killed = _start_job(folder)
        time.sleep(rng.uniform(0.0, seconds))
        killed.kill()
        hit += killed.wait() != 0
        done = len(list((folder / "state").rglob("items/[0-9]*.json")))
        assert _start_job(folder).wait(PATIENCE_S) == 0
        assert differences(wanted, content(folder)) == [], f"killed after {done} slides"
    assert hit >= 5, "most jobs had ended before they were killed"


def _start_job(folder: Path) -> subprocess.Popen[str]:
    """A job of forty slides, from its first slide on."""
    job = subprocess.Popen(
        [sys.executable, "-c", _JOB, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")},
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n"
    return job


@pytest.mark.skipif(not SOAK, reason="takes minutes a kill: make soak, or set SLIDELOOM_SOAK to a number of kills")
@pytest.mark.parametrize("number", range(SOAK))
def test_soak(undisturbed: Workspace, workspace: Workspace, number: int) -> None:
    rng = random.Random(SEED + number)
    print(f"seed {SEED + number}")
    session = disturb(workspace, rng.choice(KINDS), rng.randrange(len(job_records(undisturbed)) - 1), rng)
    restart(workspace)
    wait_for_the_orphans([session])
    assert differences(content(undisturbed.results), content(workspace.results)) == []


def test_the_comparison_sees_a_changed_chunk_and_a_lost_record(undisturbed: Workspace, tmp_path: Path) -> None:
    copy = copied(undisturbed, tmp_path / "copy")
    chunk = next(path for path in sorted((copy.results / "maps").rglob("c/*/*")) if path.is_file())
    raw = bytearray(chunk.read_bytes())
    raw[len(raw) // 2] ^= 1
    chunk.write_bytes(bytes(raw))
    lost = next(iter(sorted((copy.results / "state" / "facts" / "items").glob("*.json"))))
    lost.unlink()
    found = differences(content(undisturbed.results), content(copy.results))
    assert found == sorted(path.relative_to(copy.results).as_posix() for path in (chunk, lost))
