"""What befalls a run: it is killed, whole or in part, and its disk fills up."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import REPOSITORY, Workspace

__all__ = ["KINDS", "PATIENCE_S", "Disk", "disturb", "job_records", "restart", "wait_for_the_orphans"]

#: What is killed: Snakemake alone, so that its jobs work on; everything, as when a node goes down; one job.
KINDS = ("snakemake", "node", "job")
PATIENCE_S = 600


class Disk:
    """A disk of its own, in memory, whose size can be changed."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def resize(self, kib: int, *, new: bool = False) -> None:
        options = f"size={kib}k" if new else f"remount,size={kib}k"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.place)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            pytest.skip(f"mounting a small disk takes root, and a machine that allows it: {done.stderr.strip()}")


def job_records(workspace: Workspace) -> list[Path]:
    """Records of the jobs that are done."""
    return list((workspace.results / "state").rglob("jobs/*.json"))


def disturb(workspace: Workspace, kind: str, n_done: int, rng: random.Random, *, patience_s: float = PATIENCE_S) -> int:
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
        while len(job_records(workspace)) < n_done:
            assert running.poll() is None, (workspace.folder / "screen.log").read_text()[-4000:]
            assert time.monotonic() - start < patience_s
            time.sleep(0.02)
        # A run that is still planning has nothing to lose.
        while running.poll() is None and not _jobs(running.pid):
            time.sleep(0.02)
        time.sleep(delay)
        victims = {"snakemake": [running.pid], "node": _session(running.pid), "job": []}[kind]
        while kind == "job" and not victims and running.poll() is None:
            jobs = _jobs(running.pid)
            victims = [rng.choice(jobs)] if jobs else []
        told = f"{kind} after {len(job_records(workspace))} jobs and {delay:.2f} s: processes {victims}"
        print(told, "" if running.poll() is None else "(the run had ended)")
        for pid in victims:
            _kill(pid)
        running.wait(patience_s)
    except BaseException:
        for pid in _session(running.pid):
            _kill(pid)
        raise
    return running.pid


def restart(workspace: Workspace) -> None:
    """What docs/cluster.md tells a user to do."""
    _unlock(workspace)
    workspace.run("--cores", "2")


def _unlock(workspace: Workspace) -> None:
    if any((workspace.folder / ".snakemake" / "locks").glob("*")):
        workspace.run("--unlock")


def wait_for_the_orphans(sessions: list[int]) -> None:
    """Jobs that outlived their Snakemake; what they write last must be equal, too."""
    start = time.monotonic()
    while any(map(_session, sessions)):
        assert time.monotonic() - start < PATIENCE_S
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
