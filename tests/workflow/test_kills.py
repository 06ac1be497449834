"""Killed at random moments and started again: the content of an undisturbed run.

The seed of every kill is printed, and ``SLIDELOOM_SEED`` sets the first; ``SLIDELOOM_SOAK`` sets how many runs of their
own ``make soak`` kills, none when unset.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import REPOSITORY, Workspace, copied, run_once
from .undisturbed import content, differences, run_undisturbed, write_study

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

#: What is killed: Snakemake alone, so that its jobs work on; everything, as when a node goes down; one job.
KINDS = ("snakemake", "node", "job")
SOAK = int(os.environ.get("SLIDELOOM_SOAK", "0"))
SEED = int(os.environ.get("SLIDELOOM_SEED", "0")) or secrets.randbelow(2**31)
_PATIENCE_S = 600


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
    wanted = {path.relative_to(undisturbed.results): path.read_bytes() for path in _job_records(undisturbed)}
    sessions = []
    # Sorted, so that the kills are spread over the whole run: one that comes early finds little done.
    for n_done in sorted(rng.randrange(len(wanted) - 1) for _ in range(20)):
        kind = rng.choices(KINDS, (2, 2, 1))[0]  # after a job's death, the rest of the run goes on
        sessions.append(_disturb(workspace, kind, n_done, rng))
        # A record holds the digest of what was made of each slide: whatever is vouched for is as it should be.
        for path in _job_records(workspace):
            assert path.read_bytes() == wanted[path.relative_to(workspace.results)], path
    _restart(workspace)
    _wait_for_the_orphans(sessions)
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
    assert _start_job(tmp_path / "undisturbed").wait(_PATIENCE_S) == 0
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
        assert _start_job(folder).wait(_PATIENCE_S) == 0
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
    session = _disturb(workspace, rng.choice(KINDS), rng.randrange(len(_job_records(undisturbed)) - 1), rng)
    _restart(workspace)
    _wait_for_the_orphans([session])
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


def _job_records(workspace: Workspace) -> list[Path]:
    return list((workspace.results / "state").rglob("jobs/*.json"))


def _disturb(workspace: Workspace, kind: str, n_done: int, rng: random.Random) -> int:
    """Run, and kill when so many jobs are done, one runs and a moment has passed; the number of the run's session."""
    _unlock(workspace)
    delay = rng.uniform(0.0, 3.0)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--cores", "2"]
    command += ["--profile", str(REPOSITORY / "profiles" / "local"), "--configfile", str(workspace.config_path)]
    with (workspace.folder / "screen.log").open("ab") as screen:
        running = subprocess.Popen(
            command,
            cwd=workspace.folder,
            stdout=screen,
            stderr=screen,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
            start_new_session=True,
        )
    try:
        start = time.monotonic()
        while len(_job_records(workspace)) < n_done:
            assert running.poll() is None, (workspace.folder / "screen.log").read_text()[-4000:]
            assert time.monotonic() - start < _PATIENCE_S
            time.sleep(0.02)
        # A run that is still planning has nothing to lose.
        while running.poll() is None and not _jobs(running.pid):
            time.sleep(0.02)
        time.sleep(delay)
        victims = {"snakemake": [running.pid], "node": _session(running.pid), "job": []}[kind]
        while kind == "job" and not victims and running.poll() is None:
            jobs = _jobs(running.pid)
            victims = [rng.choice(jobs)] if jobs else []
        told = f"{kind} after {len(_job_records(workspace))} jobs and {delay:.2f} s: processes {victims}"
        print(told, "" if running.poll() is None else "(the run had ended)")
        for pid in victims:
            _kill(pid)
        running.wait(_PATIENCE_S)
    except BaseException:
        for pid in _session(running.pid):
            _kill(pid)
        raise
    return running.pid


def _restart(workspace: Workspace) -> None:
    """What docs/cluster.md tells a user to do."""
    _unlock(workspace)
    workspace.run("--cores", "2")


def _unlock(workspace: Workspace) -> None:
    if any((workspace.folder / ".snakemake" / "locks").glob("*")):
        workspace.run("--unlock")


def _wait_for_the_orphans(sessions: list[int]) -> None:
    """Jobs that outlived their Snakemake; what they write last must be equal, too."""
    start = time.monotonic()
    while any(map(_session, sessions)):
        assert time.monotonic() - start < _PATIENCE_S
        time.sleep(0.1)


def _session(number: int) -> list[int]:
    """Living processes of a session, the leader first."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == number and fields[0] != "Z":
            found.append(int(place.parent.name))
    return sorted(found)


def _jobs(session: int) -> list[int]:
    return [pid for pid in _session(session) if _is_job(pid)]


def _is_job(pid: int) -> bool:
    try:
        return b".snakemake/scripts/" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
