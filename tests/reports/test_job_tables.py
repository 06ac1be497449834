"""Where a job ran stands in ``costs.parquet``, with null where it was not noted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from slideloom.artefacts.paths import Paths
from slideloom.artefacts.provenance import made_here
from slideloom.artefacts.tables import write_table
from slideloom.reports.cost_views import Devices, device_rows
from slideloom.reports.job_tables import gather_costs
from slideloom.reports.schemas import COSTS


def _benchmark(paths: Paths, stage: str, context: str, unit: str) -> Path:
    place = paths.benchmark(stage, context, unit)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("s\tmax_rss\tcpu_time\n12.5\t300\t11.0\n")
    return place


def test_a_job_says_where_it_ran(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    benchmarks = [
        _benchmark(paths, *job) for job in (("maps", "sp/0", "2-0"), ("maps", "sp/0", "2-1"), ("facts", "", "2-0"))
    ]
    gpu = {"host": "gpu07", "device": "NVIDIA H100 80GB HBM3", "versions": {"slideloom": "0.9.1", "torch": "2.13.0"}}
    accounts = {
        ("maps", "sp/0", "2-0"): {"n_tiles": 25, "made": gpu},
        ("maps", "sp/0", "2-1"): {"n_tiles": 25},  # of a version that noted nothing
        ("facts", "", "2-0"): {"made": made_here()},
    }
    rows = {(row["rule"], row["unit"]): row for row in gather_costs(benchmarks, tmp_path, accounts)}
    where = {key: (row["host"], row["device"], row["slideloom_version"]) for key, row in rows.items()}
    here = made_here()
    assert where == {
        ("maps", "2-0"): ("gpu07", "NVIDIA H100 80GB HBM3", "0.9.1"),
        ("maps", "2-1"): (None, None, None),
        ("facts", "2-0"): (here["host"], here["device"], here["versions"]["slideloom"]),
    }
    assert [row["tiles_per_s"] for row in rows.values()] == [None, 2.0, 2.0]
    table = write_table(COSTS, [{"study": "s"} | row for row in rows.values()], tmp_path / "costs.parquet")
    assert [table.schema.field(name).type for name in ("host", "device", "slideloom_version")] == [pa.string()] * 3
    assert table.column("host").null_count == 1


def _row(device: str | None, host: str | None, seconds: float, **more: Any) -> dict[str, Any]:
    return {"device": device, "host": host, "seconds": seconds, "gpu_seconds": None, "slideloom_version": "2"} | more


def test_the_page_sums_jobs_by_device() -> None:
    rows = [
        _row("cpu", "n1", 5.0),
        _row("NVIDIA X", "g1", 30.0, gpu_seconds=20.0, slideloom_version="1"),
        _row(None, None, 1.0, slideloom_version=None),
        _row("cpu", "n1", 7.0),
        _row("NVIDIA X", "g2", 40.0, gpu_seconds=30.0),
        _row("NVIDIA X", "g2", 50.0),  # a training does not tell how long the GPU computed
    ]
    assert device_rows(rows) == [
        Devices("NVIDIA X", ("1", "2"), 2, 3, 120.0, 50.0),
        Devices("cpu", ("2",), 1, 2, 12.0, None),
        Devices("", (), 0, 1, 1.0, None),
    ]
    assert device_rows(rows[2:3]) == device_rows([]) == []
