"""What is installed: digests of the lock files, and the question after advisories, answered or not."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"program_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def audit() -> ModuleType:
    return load(ROOT / "tools" / "audit.py")


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "envs")
    return load(ROOT / "envs" / "lock.py")


def fine(name: str, *advisories: str) -> dict[str, Any]:
    vulns = [{"id": one, "fix_versions": ["2.0"], "aliases": [f"CVE-{one}"]} for one in advisories]
    return {"name": name, "version": "1.0", "vulns": vulns}


def skipped(name: str) -> dict[str, Any]:
    return {"name": name, "skip_reason": "not found"}


def test_an_advisory_ends_the_check(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"dependencies": [fine("a"), fine("b", "PYSEC-1")]}
    lines, code = audit.judge([(["a==1.0", "b==1.0"], answer)])
    assert code == 1
    assert lines[0] == "b 1.0: PYSEC-1; mended in 2.0"
    assert lines[-1] == "Advisories: 2 packages looked up, 1 with an advisory, 0 not looked up."
    monkeypatch.setattr(audit, "ACCEPTED", {"CVE-PYSEC-1": "we never call it"})
    lines, code = audit.judge([(["b==1.0"], answer)])
    assert code == 0
    assert "accepted: we never call it" in lines[0]


def test_no_answer_is_no_clean_bill(audit: ModuleType) -> None:
    lines, code = audit.judge([(["a==1"], {"dependencies": [skipped("a")]}), (["b==1", "c==1"], None)])
    assert code == 0
    assert lines[0] == "NOT CHECKED, the advisory service gave no answer: 3 of 3: a, b==1, c==1"
    assert "0 packages looked up" in lines[-1]
    lines, code = audit.judge([(["a==1", "b==1"], {"dependencies": [skipped("a"), fine("b", "X")]})])
    assert code == 1, "what was found counts, whatever else is unknown"


def test_who_does_not_answer_is_asked_once(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(audit, "ask", lambda pins: asked.append(list(pins)))
    for name, pins in (("a", "x==1 \\\n    --hash=sha256:00\n"), ("b", "--constraint c\nx==1\ny==2\n")):
        (tmp_path / name).write_text(f"# of the run\n{pins}")
    assert audit.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert asked == [["x==1"]]
    assert "2 of 2: x==1, y==2" in capsys.readouterr().out


def test_failures_of_the_program_are_no_answer(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(outcome: object) -> Any:
        def fake(command: list[str], **_: object) -> SimpleNamespace:
            assert isinstance(command, list)
            place = Path(command[command.index("--output") + 1])
            if isinstance(outcome, Exception):
                raise outcome
            if isinstance(outcome, tuple):
                place.write_text(outcome[1])
                return SimpleNamespace(returncode=outcome[0])
            return SimpleNamespace(returncode=outcome)

        monkeypatch.setattr(audit.subprocess, "run", fake)
        return audit.ask(["a==1"])

    assert run(1) is None
    assert run((2, "{}")) is None
    assert run((0, "<html>")) is None
    assert run(subprocess.TimeoutExpired("pip-audit", 1)) is None
    found = {"dependencies": [fine("a", "X")]}
    assert run((1, json.dumps(found))) == found


def test_locks_read_alike(audit: ModuleType, lock: ModuleType) -> None:
    for name in lock.HEADS:
        text = (ROOT / name).read_text()
        assert audit.read_pins(text) == lock.read_pins(text)
        assert len(lock.read_pins(text)) == text.count("==") - sum(
            line.count("==") for line in text.splitlines() if line.startswith("#")
        )


def test_a_lock_is_written_from_pins_and_digests(lock: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "ELSEWHERE", {"torch==1": {"cc": "torch-1+cpu.whl"}})
    digests = {"torch": ("torch==1", ["aa", "bb"]), "a-b": ("a-b==2", ["dd"])}
    text = lock.lock_text("requirements.lock", ["A_b==2", "torch==1"], digests)
    assert text.splitlines()[2:] == [
        "# Of torch==1 also torch-1+cpu.whl, which PyPI does not hold.",
        "--constraint requirements-cuda.lock",
        "A_b==2 \\", "    --hash=sha256:dd",
        "torch==1 \\", "    --hash=sha256:aa \\", "    --hash=sha256:bb \\", "    --hash=sha256:cc",
    ]  # fmt: skip
    assert lock.read_pins(text) == ["A_b==2", "torch==1"]


def test_both_builds_of_pytorch_stand_in_the_lock(lock: ModuleType) -> None:
    text = (ROOT / "requirements.lock").read_text()
    for pin, files in lock.ELSEWHERE.items():
        entry = text.split(f"\n{pin} ")[1].split("\n", 1)[1].split("==")[0]
        digests = entry.count("--hash=")
        assert digests > len(files), "PyPI's, too"
        for digest in files:
            assert f"--hash=sha256:{digest}" in entry
