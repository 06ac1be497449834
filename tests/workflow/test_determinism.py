"""One study, run twice in different ways: equal tables, equal labels, equal stores."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from .conftest import Workspace, run_once
from .undisturbed import content, differences, run_undisturbed, write_study

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

#: All but the stage that trains, whose sums on a CPU depend on the number of threads.
THREADS = ["embeddings=3", "maps=3", "instances=3", "biology=3", "metrics=3", "patches=2", "targets=2"]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Workspace:
    """The study run by two workers, in the scheduler's own order."""
    return run_once(tmp_path_factory, worker_id, "undisturbed", run_undisturbed)


def test_workers_threads_order_and_bins_change_no_byte(undisturbed: Workspace, tmp_path: Path) -> None:
    other = write_study(tmp_path / "study", undisturbed.folder / "cohort", slides_per_job=8)
    facts = sorted(path.stem for path in (undisturbed.results / "state/facts/jobs").glob("*.json"))
    # Other bins, workers and threads, and another order: some stages to their end first, then the rest.
    other.run("--until", "targets", "--cores", "1", "--scheduler", "greedy")
    other.run("--cores", "3", "--scheduler", "greedy", "--set-threads", *THREADS)
    assert sorted(path.stem for path in (other.results / "state/facts/jobs").glob("*.json")) != facts

    # Job records are named by their bins, and carry the states of these.
    mine, yours = (
        {name: digest for name, digest in content(one.results).items() if "/jobs/" not in name or "train" in name}
        for one in (undisturbed, other)
    )
    assert differences(mine, yours) == []
    kinds = {name.split("/")[0] for name in mine}
    assert kinds >= {"slides", "patches", "targets", "embeddings", "models", "maps", "labels", "cells", "reports"}


def test_what_is_left_out_of_the_comparison_is_what_time_is_in(undisturbed: Workspace) -> None:
    """The columns that are left out hold seconds, and the failed slide is in the tables that are compared."""
    training = pd.read_parquet(undisturbed.results / "reports" / "training.parquet")
    assert (training["seconds"] > 0).all()
    failures = pd.read_parquet(undisturbed.results / "reports" / "failures.parquet")
    assert failures["slide_id"].tolist() == ["slide_03"]
    assert {"reports/failures.parquet", "reports/training.parquet"} <= set(content(undisturbed.results))
