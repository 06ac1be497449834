"""A Slurm of one machine, and a small study that runs on it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
TOOL = REPOSITORY / "tools" / "slurm_one_node.sh"
BROKEN = "broken"
MODEL = "fake"


@dataclass(frozen=True)
class SlurmJob:
    """What the controller remembers of a job."""

    rule: str
    state: str
    partition: str
    gpus: str
    minutes: str
    memory: str


@dataclass(frozen=True)
class ClusterRun:
    """The study after ``snakemake --profile slurm``."""

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
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    # The step that docs/cluster.md asks for: the profile beside the study, with the site's own settings.
    shutil.copytree(REPOSITORY / "profiles" / "slurm", folder / "slurm")
    site = {"cpu_partition": "cpu", "gpu_partition": "gpu", "gpu_model": MODEL, "status_command": "squeue", "jobs": 3}
    (folder / "slurm" / "site.yaml").write_text(yaml.safe_dump(site))
    hurry = ["--slurm-init-seconds-before-status-checks", "5", "--seconds-between-status-checks", "5"]
    hurry += ["--max-status-checks-per-second", "1", "--latency-wait", "20"]
    hurry += ["--set-threads", *(f"{rule}=2" for rule in ("embeddings", "train", "bands", "maps"))]
    done = snakemake(folder, cluster, "--profile", "slurm", *hurry)
    return ClusterRun(
        folder=folder,
        done=done,
        jobs=slurm_jobs(cluster),
        again=snakemake(folder, cluster, "--profile", "slurm", "--dry-run"),
    )


def snakemake(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in the folder as a user would, and wait for it."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    command += ["--configfile", str(folder / "config.yaml"), *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )


def slurm_jobs(environment: dict[str, str]) -> list[SlurmJob]:
    """All jobs that the controller remembers, with the rule that the executor wrote into the comment."""
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
                rule=rule[1],
                state=field["JobState"],
                partition=field["Partition"],
                gpus=field.get("TresPerJob", ""),
                minutes=field["TimeLimit"],
                memory=field.get("MinMemoryNode", ""),
            )
        )
    return jobs


def write_study(folder: Path) -> None:
    """Three slides of 192 px and one that cannot be read; one SP experiment of one epoch, predicted in two bands."""
    from slideloom.demo.cohort import write_cohort

    sheet = write_cohort(folder / "cohort", seed=3, n_slides=3, size_px=192)
    rows = pd.read_csv(sheet, sep="\t", dtype=str, keep_default_na=False)
    extra = rows.iloc[[0]].assign(slide_id=BROKEN, patient_id="none", sp="broken.ome.tif", split="train")
    (sheet.parent / "broken.ome.tif").write_bytes(b"not a slide")
    pd.concat([rows, extra]).to_csv(sheet, sep="\t", index=False)
    config = {
        "study": "slurm",
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
                "heads": ["nucleus", "hv", "classes"],
                "training": {"epochs": 1, "batch_size": 4, "lr": 1e-3, "t_0": 1, "patience": None},
            }
        },
        "exports": {"geojson": True},
        "jobs": {"slides_per_job": 8, "bands": 2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
