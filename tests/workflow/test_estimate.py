"""The doctor's estimate of what a run writes, against a study that was run."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from slideloom.cli.disk_estimate import estimate
from slideloom.cli.examine import examine
from slideloom.slides.study import load_study

from .conftest import Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
FACTOR = 2.0
#: What the estimate sums up under one stage.
TOGETHER = {"biology": "metrics"}


def _written(results: Path) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for path in results.rglob("*"):
        stage = path.relative_to(results).parts[0]
        sizes[TOGETHER.get(stage, stage)] += os.lstat(path).st_blocks * 512
    return sizes


def test_the_estimate_is_within_a_factor_of_two_of_what_was_written(
    finished: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.folder)
    study = load_study(finished.config_path)
    shares = estimate(study, list(examine(study, workers=1)))
    expected: Counter[str] = Counter()
    for share in shares:
        expected[share.stage] += share.size
    written = _written(study.paths.root)
    total = sum(written.values())
    assert total / FACTOR < sum(expected.values()) < total * FACTOR, (expected, written)
    for stage in ("slides", "patches", "targets", "embeddings", "maps", "labels"):
        assert written[stage] / FACTOR < expected[stage] < written[stage] * FACTOR, stage
    # How many nuclei there will be, no header tells: enough of them are counted on.
    assert written["cells"] < expected["cells"] * FACTOR
    assert sum(share.left for share in shares) == 0, "a finished study writes nothing more"
