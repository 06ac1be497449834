"""The profile for Slurm: what it asks for, and a small study run through it on a Slurm of one machine."""

from __future__ import annotations

import glob
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..workflow.undisturbed import content, differences
from .conftest import BROKEN, MODEL, REPOSITORY, TOOL, ClusterRun

GPU_RULES = {"embeddings", "train", "train_live", "bands", "maps"}
STAGES = {
    *("facts", "tissue", "patches", "targets", "splits", "statistics", "embeddings", "train", "bands", "maps"),
    *("instances", "biology", "metrics", "exports", "reports", "report_html", "report_figures"),
}


def _rules() -> set[str]:
    text = "".join(path.read_text() for path in (REPOSITORY / "workflow" / "rules").glob("*.smk"))
    return set(re.findall(r"^rule (\w+):", text, flags=re.MULTILINE))


def _profile(place: Path, monkeypatch: pytest.MonkeyPatch, **site: Any) -> dict[str, Any]:
    """The profile's settings as Snakemake gets them, for a site."""
    from snakemake.profiles import ProfileConfigFileParser

    shutil.copytree(REPOSITORY / "profiles" / "slurm", place / "slurm", dirs_exist_ok=True)
    shipped = yaml.safe_load((place / "slurm" / "site.yaml").read_text())
    assert set(site) <= set(shipped)
    (place / "slurm" / "site.yaml").write_text(yaml.safe_dump(shipped | site))
    monkeypatch.setattr(sys, "argv", ["snakemake", "--profile", str(place / "slurm")])
    with (place / "slurm" / "profile.yaml").open() as stream:
        return dict(ProfileConfigFileParser().parse(stream))


def test_shipped_site_asks_for_gpus_and_for_nothing_else_that_a_site_must_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = _profile(tmp_path, monkeypatch)
    asked = profile["set-resources"]
    assert {text.split(":")[0] for text in asked} == GPU_RULES <= _rules()
    assert {text.split(":", 1)[1] for text in asked} == {"gpu=1", "slurm_partition='gpu'"}
    assert {text.split("=")[0] for text in profile["set-threads"]} <= _rules()
    named = {text.split("=")[0] for text in profile["default-resources"]}
    assert named == {"slurm_partition", "mem_mb", "runtime"}
    assert "slurm-array-jobs" not in profile
    assert "slurm-no-account" not in profile
    assert profile["rerun-triggers"] == ["mtime", "params"]


def test_settings_of_the_site_reach_the_executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = {"cpu_partition": "all", "gpu_partition": "a100-long", "account": "0012", "qos": "high", "gpu_model": "a100"}
    site |= {"extra": "--mail-type=FAIL", "gpu_extra": "--exclusive", "jobs": 7, "status_command": "squeue"}
    profile = _profile(tmp_path, monkeypatch, **site)
    # A word that is also a Python name or a number stays a word.
    defaults = dict(text.split("=", 1) for text in profile["default-resources"])
    assert defaults["slurm_partition"] == "'all'"
    assert defaults["slurm_account"] == "'0012'"
    assert defaults["qos"] == "'high'"
    assert defaults["slurm_extra"] == "'--mail-type=FAIL'"
    assert "train:gpu_model='a100'" in profile["set-resources"]
    assert "train:slurm_partition='a100-long'" in profile["set-resources"]
    assert "train:slurm_extra='--mail-type=FAIL --exclusive'" in profile["set-resources"]
    assert profile["jobs"] == "7"
    assert profile["slurm-status-command"] == "squeue"
    assert "slurm-no-account" not in profile


def test_arrays_lift_the_limit_of_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = _profile(tmp_path, monkeypatch, arrays="facts,tissue", jobs=3)
    assert profile["slurm-array-jobs"] == "facts,tissue"
    assert int(profile["jobs"]) >= 100_000


@pytest.mark.parametrize("gpus", [[], ["/dev/nvidia0", "/dev/nvidia1"]])
def test_a_workstation_gives_its_gpu_to_one_job_at_a_time(gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from snakemake.profiles import ProfileConfigFileParser

    monkeypatch.setattr(glob, "glob", lambda pattern: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with (REPOSITORY / "profiles" / "local" / "profile.yaml").open() as stream:
        profile = dict(ProfileConfigFileParser().parse(stream))
    assert profile["rerun-triggers"] == ["mtime", "params"]
    threads = dict(text.split("=") for text in profile["set-threads"])
    assert set(threads) == GPU_RULES
    assert profile.get("resources") == (["gpu=1"] if gpus else None)
    assert set(profile.get("set-resources", ())) == ({f"{rule}:gpu=1" for rule in GPU_RULES} if gpus else set())
    if not gpus:
        assert set(threads.values()) == {"1"}


def test_a_profile_without_its_site_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _profile(tmp_path, monkeypatch)
    (tmp_path / "slurm" / "site.yaml").unlink()
    from snakemake.profiles import ProfileConfigFileParser

    monkeypatch.chdir(tmp_path)
    with (tmp_path / "slurm" / "profile.yaml").open() as stream, pytest.raises(SystemExit, match=r"site\.yaml"):
        ProfileConfigFileParser().parse(stream)


def test_the_script_says_why_it_does_nothing(tmp_path: Path) -> None:
    unknown = subprocess.run(
        [TOOL, "dance"], env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "SLURM_BASE": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert unknown.returncode == 1
    assert "slurm_one_node.sh:" in unknown.stderr


@pytest.mark.slow
@pytest.mark.workflow
class TestOnSlurm:
    def test_it_ends_well(self, run: ClusterRun) -> None:
        assert run.done.returncode == 0, run.done.stdout[-4000:] + run.done.stderr[-8000:]

    def test_every_stage_ran_as_a_slurm_job(self, run: ClusterRun) -> None:
        assert {job.rule for job in run.jobs} == STAGES
        assert {job.state for job in run.jobs} == {"COMPLETED"}

    def test_stages_on_gpus_asked_for_one_and_others_for_none(self, run: ClusterRun) -> None:
        for job in run.jobs:
            on_gpu = job.rule in GPU_RULES
            assert job.partition == ("gpu" if on_gpu else "cpu"), job
            assert job.gpus == (f"gres:gpu:{MODEL}:1" if on_gpu else ""), job

    def test_every_job_asked_for_memory_and_time(self, run: ClusterRun) -> None:
        for job in run.jobs:
            assert re.fullmatch(r"[\d.]+[MGT]?", job.memory), job
            assert job.memory != "0", job
            assert job.minutes != "UNLIMITED", job
            # The partition's own limit would mean that nothing was asked for.
            assert job.minutes != "2-00:00:00" or job.rule.startswith("train"), job

    def test_the_broken_slide_failed_alone(self, run: ClusterRun) -> None:
        failures = run.table("failures")
        assert set(failures["slide_id"]) == {BROKEN}
        slides = run.table("slides")
        assert len(slides) >= 1
        assert BROKEN not in set(slides.loc[slides["pq"].notna(), "slide_id"])

    def test_tables_and_page_are_written(self, run: ClusterRun) -> None:
        reports = run.folder / "results" / "reports"
        assert {"experiments.parquet", "costs.parquet", "report.html"} <= {path.name for path in reports.iterdir()}
        costs = run.table("costs")
        assert STAGES - {"reports", "report_html", "report_figures"} <= set(costs["rule"])

    def test_nothing_is_left_to_do(self, run: ClusterRun) -> None:
        assert run.again.returncode == 0, run.again.stderr[-4000:]
        assert "Nothing to be done" in run.again.stdout + run.again.stderr

    def test_a_node_that_is_killed_twice_changes_no_result(self, run: ClusterRun, disturbed: ClusterRun) -> None:
        assert disturbed.done.returncode == 0, disturbed.done.stdout[-4000:] + disturbed.done.stderr[-8000:]
        assert re.search(r"^total +0$", disturbed.again.stdout + disturbed.again.stderr, re.MULTILINE)
        # Slurm starts a lost job again; one that it gives up, Snakemake submits again.
        last = {job.rule: job.state for job in disturbed.jobs}
        assert set(last.values()) == {"COMPLETED"}, last
        assert all(job.restarts for job in disturbed.jobs if job.state != "COMPLETED"), "others were lost"
        assert sum(job.restarts for job in disturbed.jobs) >= 1, "the job that ran when the power was cut"
        ended, whole = (content(one.folder / "results") for one in (disturbed, run))
        assert {name.split("/")[0] for name in ended} >= {"slides", "patches", "embeddings", "state"}
        assert differences(ended, {name: whole.get(name, "") for name in ended}) == []
