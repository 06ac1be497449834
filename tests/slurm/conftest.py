"""A Slurm of one machine, and a small study that runs on it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml

from ..workflow.conftest import REPOSITORY, Workspace
from ..workflow.undisturbed import BROKEN, write_study

__all__ = ["BROKEN", "REPOSITORY"]

TOOL = REPOSITORY / "tools" / "slurm_one_node.sh"
MODEL = "fake"
#: Up to here a study is run again to be disturbed.
LAST = "embeddings"


@dataclass(frozen=True)
class SlurmJob:
    """What the controller remembers of a job."""

    number: str
    rule: str
    state: str
    restarts: int
    partition: str
    gpus: str
    minutes: str
    memory: str


@dataclass(frozen=True)
class ClusterRun:
    """A study after ``snakemake --profile slurm``."""

    folder: Path
    done: subprocess.CompletedProcess[str]
    jobs: list[SlurmJob]
    again: subprocess.CompletedProcess[str]

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder / "results" / "reports" / f"{name}.parquet")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A running Slurm; installed first where the machine has none."""
    if not os.environ.get("SLIDELOOM_SLURM"):
        pytest.skip("installs and starts Slurm: make test-slurm runs it")
    base = tmp_path_factory.mktemp("slurm")
    # More cores and memory than the machine may have: Slurm counts them and does not look.
    settings = {"SLURM_CPUS": "16", "SLURM_MEM_MB": "512000", "SLURM_GPUS": "2", "SLURM_GPU_MODEL": MODEL}
    environment = os.environ | settings | {"SLURM_BASE": str(base)}
    may = subprocess.run([TOOL, "check"], env=environment, capture_output=True, text=True, check=False)
    if may.returncode != 0:
        pytest.skip(f"no Slurm can be started here: {may.stderr.strip()}")
    for verb in ("install", "up"):
        step = subprocess.run([TOOL, verb], env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if step.returncode != 0:
            subprocess.run([TOOL, "down"], env=environment, check=False)
            pytest.fail(f"tools/slurm_one_node.sh {verb} failed: {step.stdout}")
    yield environment
    subprocess.run([TOOL, "down"], env=environment, check=True)


@pytest.fixture(scope="session")
def run(cluster: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> ClusterRun:
    """The small study on the cluster, run once to its end and then asked what is left."""
    study = _study(tmp_path_factory.mktemp("study"))
    done = _wait(snakemake(study.folder, cluster))
    return ClusterRun(
        folder=study.folder,
        done=done,
        jobs=slurm_jobs(cluster),
        again=_wait(snakemake(study.folder, cluster, "--dry-run")),
    )


@pytest.fixture(scope="session")
def disturbed(cluster: dict[str, str], run: ClusterRun, tmp_path_factory: pytest.TempPathFactory) -> ClusterRun:
    """The first half of the study again, while the node's daemon is killed twice.

    Once alone, so that its job works on without it; once with all that runs on the node, as when the power is cut.
    """
    before = len(slurm_jobs(cluster))
    study = _study(tmp_path_factory.mktemp("disturbed"), run.folder / "cohort")
    running = snakemake(study.folder, cluster, "--until", LAST)
    try:
        for alone in (True, False):
            _until(lambda: bool(_working()), running)
            _kill_the_node(cluster, alone=alone)
            # The controller does not ask a node that comes back for jobs that are younger than this.
            time.sleep(15.0)
            subprocess.run([TOOL, "restart-node"], env=cluster, check=True)
        # Slurm lets a job that was lost with its node wait for two minutes.
        _until(lambda: any(job.restarts and job.state == "PENDING" for job in slurm_jobs(cluster)), running)
        time.sleep(3.0)  # in the second of its loss, a job's credential is still revoked
        for job in slurm_jobs(cluster):
            if job.state == "PENDING":
                release = ["scontrol", "update", f"JobId={job.number}", "StartTime=now"]
                subprocess.run(release, env=cluster, check=True)
    except BaseException:
        running.kill()
        raise
    return ClusterRun(
        folder=study.folder,
        done=_wait(running),
        jobs=slurm_jobs(cluster)[before:],
        again=_wait(snakemake(study.folder, cluster, "--until", LAST, "--dry-run")),
    )


def _study(folder: Path, cohort: Path | None = None) -> Workspace:
    """The study, and what docs/cluster.md asks for: the profile beside it, with the site's own settings."""
    study = write_study(folder, cohort, slides_per_job=8, bands=2)
    study.edit("exports", value={"geojson": True})
    study.edit("experiments", "sp", "training", "epochs", value=1)
    shutil.copytree(REPOSITORY / "profiles" / "slurm", folder / "slurm")
    site = {"cpu_partition": "cpu", "gpu_partition": "gpu", "gpu_model": MODEL, "status_command": "squeue", "jobs": 3}
    (folder / "slurm" / "site.yaml").write_text(yaml.safe_dump(site))
    return study


def _working() -> list[int]:
    """Processes of the jobs that work on slides now."""
    return [pid for pid in _of_the_node() if b".snakemake/scripts/" in _read(pid, "cmdline")]


def _of_the_node() -> list[int]:
    """The daemon's step managers and everything that runs in jobs."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        pid = int(place.name)
        if _read(pid, "comm").startswith(b"slurmstepd") or b"SLURM_CLUSTER_NAME=slideloom" in _read(pid, "environ"):
            found.append(pid)
    return found


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _kill_the_node(environment: dict[str, str], *, alone: bool) -> None:
    victims = [int((Path(environment["SLURM_BASE"]) / "run" / "slurmd.pid").read_text())]
    victims += [] if alone else _of_the_node()
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _until(condition: Callable[[], bool], running: subprocess.Popen[str]) -> None:
    start = time.monotonic()
    while not condition():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() - start < 300
        time.sleep(0.1)


def snakemake(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    """Run ``snakemake --profile slurm`` in the folder as a user would, only asking for news more often."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    command += ["--configfile", "config.yaml", "--profile", "slurm", *arguments]
    command += ["--slurm-init-seconds-before-status-checks", "5", "--seconds-between-status-checks", "5"]
    command += ["--max-status-checks-per-second", "1", "--latency-wait", "20"]
    command += ["--set-threads", *(f"{rule}=2" for rule in ("embeddings", "train", "bands", "maps"))]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait(running: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    stdout, stderr = running.communicate(timeout=1500)
    return subprocess.CompletedProcess(running.args, running.returncode, stdout, stderr)


def slurm_jobs(environment: dict[str, str]) -> list[SlurmJob]:
    """All jobs that the controller remembers, oldest first, with the rule that the executor wrote into the comment."""
    shown = subprocess.run(
        ["scontrol", "show", "jobs", "-o"], env=environment, capture_output=True, text=True, check=True
    )
    jobs = []
    for line in shown.stdout.splitlines():
        field = dict(re.findall(r"(\w+)=(\S+)", line))
        rule = re.match(r"rule_(.+?)(?:_wildcards_|$)", field["Comment"])
        assert rule, line
        jobs.append(
            SlurmJob(
                number=field["JobId"],
                rule=rule[1],
                state=field["JobState"],
                restarts=int(field["Restarts"]),
                partition=field["Partition"],
                gpus=field.get("TresPerJob", ""),
                minutes=field["TimeLimit"],
                memory=field.get("MinMemoryNode", ""),
            )
        )
    return jobs
