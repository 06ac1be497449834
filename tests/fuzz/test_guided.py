"""Files fuzzed by coverage: the same cases every time, or other ones for ``SLIDELOOM_FUZZ_S`` seconds each group."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .targets import GROUPS
from .worker import REPOSITORY, environment

FUZZ_S = float(os.environ.get("SLIDELOOM_FUZZ_S", "0"))
_SECONDS = FUZZ_S or 120.0
#: What one run goes through where no time is given: chance decides nothing then.
_CASES = 0 if FUZZ_S else 800


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed (it is for Linux)")
@pytest.mark.parametrize("group", GROUPS if FUZZ_S else ["all"])
def test_fuzzed_by_coverage(group: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.guided", group, str(_SECONDS), str(tmp_path), str(_CASES)]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300 + 2 * _SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{sorted(path.name for path in tmp_path.glob('*-*'))}\n{done.stderr[-4000:]}"
    report = json.loads((tmp_path / "report.json").read_text())
    print(f"\n{group}: {report['cases']} cases, {len(report['wrong'])} ways to go wrong, {report['outcomes']}")
    assert report["cases"] >= 20
    assert report["wrong"] == {}, "\n\n".join(report["wrong"].values())
