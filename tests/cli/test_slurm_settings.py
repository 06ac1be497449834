"""The doctor's questions to Slurm, answered by small programs in its place."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from slideloom.cli import slurm_settings, surroundings
from slideloom.cli.slurm_settings import find_site, slurm
from slideloom.cli.surroundings import Finding
from slideloom.slides.study import load_study

PROFILE = Path(__file__).resolve().parents[2] / "profiles" / "slurm"
SINFO = """\
cpu|up|infinite|(null)
gpu|up|2-00:00:00|gpu:h100:4(S:0-1),gpu:a100:2
gpu|up|2-00:00:00|gpu:h100:8
short|up|4:00:00|gpu:a100:2
old|down|infinite|gpu:2
"""
ACCOUNTS = "lab|normal,high\ncourse|normal\n"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH; files in it answer."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("getpass.getuser", lambda: "anna")
    return folder


def program(folder: Path, name: str, answer: str = "", *, complaint: str = "", code: int = 0) -> None:
    place = folder / name
    lines = (f"sys.stdout.write({answer!r})", f"sys.stderr.write({complaint!r})", f"sys.exit({code})")
    place.write_text("\n".join((f"#!{sys.executable}", "import sys", *lines)) + "\n")
    place.chmod(0o755)


@pytest.fixture
def cluster(programs: Path) -> Path:
    program(programs, "sinfo", SINFO)
    program(programs, "sacctmgr", ACCOUNTS)
    program(programs, "sacct")
    program(programs, "squeue")
    return programs


def asked(study: Path, **site: str) -> list[Finding]:
    shutil.copytree(PROFILE, "mine", dirs_exist_ok=True)
    text = "".join(
        f"{key}: {value}\n" for key, value in ({"cpu_partition": "cpu", "gpu_partition": "gpu"} | site).items()
    )
    Path("mine", "site.yaml").write_text(text)
    return slurm(load_study(study), "mine")


def told(found: list[Finding], state: str) -> list[str]:
    return [f"{one.text} {one.hint}" for one in found if one.state == state]


def test_settings_that_the_cluster_knows(study: Path, cluster: Path) -> None:
    found = asked(study, gpu_model="h100", account="lab", qos="high")
    assert [one.state for one in found] == ["fine"]
    assert "cpu_partition cpu, gpu_partition gpu, account lab, qos high, gpu_model h100" in found[0].text


@pytest.mark.parametrize(
    ("site", "words"),
    [
        ({"gpu_partition": "gpus"}, "gpu_partition: there is no partition 'gpus' There is: cpu, gpu, short, old"),
        ({"gpu_partition": "gpu,gone"}, "gpu_partition: there is no partition 'gone'"),
        ({"cpu_partition": "all"}, "cpu_partition: there is no partition 'all'"),
        ({"gpu_partition": "cpu"}, "no node of cpu has a GPU"),
        ({"gpu_model": "v100"}, "no node of gpu has a GPU called 'v100' There is: a100, h100; empty: any"),
        ({"account": "labs"}, "account: anna may not use 'labs' anna has: course, lab"),
        ({"account": "course", "qos": "high"}, "qos: anna may not use 'high' There is: normal"),
        ({"qos": "urgent"}, "qos: anna may not use 'urgent' There is: high, normal"),
        ({"status_command": "sstat"}, "status_command: 'sstat' is not known sacct, or squeue"),
        ({"gpu_partition": "short"}, "jobs of train ask for 1440 minutes, short gives 240: they would wait for ever"),
    ],
)
def test_settings_that_the_cluster_does_not_know(study: Path, cluster: Path, site: dict[str, str], words: str) -> None:
    (line,) = told(asked(study, **site), "wrong")
    assert words in line


def test_a_limit_of_time_comes_with_the_option_that_meets_it(study: Path, cluster: Path) -> None:
    (line,) = told(asked(study, gpu_partition="short"), "wrong")
    assert "--set-resources 'train:runtime=240'" in line
    assert told(asked(study, gpu_partition="short,gpu"), "wrong") == [], "one of them is long enough"


def test_accounts_of_jobs_that_are_not_kept(study: Path, cluster: Path) -> None:
    program(cluster, "sacct", complaint="Slurm accounting storage is disabled\n", code=1)
    (line,) = told(asked(study), "wrong")
    assert "sacct says 'Slurm accounting storage is disabled'" in line
    assert "status_command: squeue" in line
    assert told(asked(study, status_command="squeue"), "wrong") == []


def test_a_partition_that_is_down_and_a_key_that_is_none(study: Path, cluster: Path) -> None:
    lines = told(asked(study, gpu_partition="old", partition="gpu"), "note")
    assert any("the partition 'old' is down" in line for line in lines)
    assert any("partition is no key of it" in line for line in lines)


def test_what_cannot_be_looked_at_is_said(study: Path, programs: Path) -> None:
    assert "sinfo is not on PATH" in told(asked(study), "skipped")[0]
    program(programs, "sinfo", complaint="slurm_load_partitions: Unable to contact slurm controller\n", code=1)
    assert "sinfo says 'slurm_load_partitions: Unable to contact" in told(asked(study), "skipped")[0]
    program(programs, "sinfo", SINFO)
    program(programs, "sacct")
    found = asked(study, account="lab")
    assert any("sacctmgr is not on PATH" in line for line in told(found, "skipped"))
    program(programs, "sacctmgr", complaint="no database\n", code=1)
    assert any("sacctmgr says 'no database'" in line for line in told(asked(study, account="lab"), "skipped"))


def test_a_program_that_hangs_is_left_alone(study: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_PATIENCE_S", 0.2)
    (programs / "sinfo").write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    (programs / "sinfo").chmod(0o755)
    assert "no answer within 0.2 s" in told(asked(study), "skipped")[0]


@pytest.mark.parametrize("text", ["a: [", "- cpu\n", "!!python/object/apply:os.system ['true']\n"])
def test_a_site_file_that_is_none(study: Path, cluster: Path, text: str) -> None:
    shutil.copytree(PROFILE, "mine")
    Path("mine", "site.yaml").write_text(text)
    (line,) = told(slurm(load_study(study), "mine"), "wrong")
    assert "mine/site.yaml" in line


def test_an_executor_that_is_not_installed(study: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_settings.importlib.util, "find_spec", lambda name: None)
    assert "executor for Slurm is not installed" in told(asked(study), "wrong")[0]


def test_a_profile_that_nobody_named_keeps_no_run_from_starting(study: Path, cluster: Path) -> None:
    assert slurm(load_study(study)) == [], "there is none here"
    shutil.copytree(PROFILE, "profiles/slurm")
    Path("profiles/slurm/site.yaml").write_text("cpu_partition: nowhere\n")
    (found,) = [one for one in slurm(load_study(study)) if "nowhere" in one.text]
    assert found.state == "note"


def test_which_site_file_counts(study: Path, programs: Path, tmp_path: Path) -> None:
    assert find_site(None) is None
    shutil.copytree(PROFILE, "profiles/slurm")
    assert find_site(None) == Path("profiles/slurm/site.yaml")
    linked = tmp_path / "xdg" / "snakemake" / "slurm"
    shutil.copytree(PROFILE, linked)
    assert find_site(None) == linked / "site.yaml"
    assert find_site("slurm") == linked / "site.yaml"
    assert find_site("profiles/slurm") == Path("profiles/slurm/site.yaml")
    assert "not a profile for Slurm" in told(slurm(load_study(study), "profiles/local"), "skipped")[0]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("infinite", None),
        ("30", 30),
        ("30:00", 30),
        ("12:00:00", 720),
        ("2-00:00:00", 2880),
        ("1-12", 2160),
        ("n/a", None),
    ],
)
def test_limits_of_time(text: str, minutes: int | None) -> None:
    assert slurm_settings._minutes(text) == minutes


def test_the_keys_are_those_of_the_shipped_file() -> None:
    import yaml

    assert set(yaml.safe_load((PROFILE / "site.yaml").read_text())) == set(slurm_settings._KEYS)
