"""Rows of ``costs.parquet`` and ``failures.parquet``: what the jobs say of themselves."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from slideloom.reports.quarantine import Learned
from slideloom.reports.runs import read_records

__all__ = ["gather_costs", "gather_failures"]

#: Stages whose items are not slides.
_NOT_SLIDES = {"splits", "statistics", "train", "verifier"}
#: Columns of the costs by what a job's account calls them.
_STALLS = {
    "wait_read_s": "read_s",
    "copy_s": "copy_s",
    "compute_s": "forward_s",
    "blend_s": "blend_s",
    "wait_write_s": "write_s",
}


def gather_costs(
    benchmarks: Iterable[Path], results: Path, accounts: Mapping[tuple[str, str, str], Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of ``costs.parquet``, without the study, from Snakemake's benchmark files and the jobs' own accounts."""
    root = results / "benchmarks"
    lines = []
    for path in sorted(set(benchmarks)):
        rule, *context_parts = path.relative_to(root).parent.parts
        context, unit = "/".join(context_parts), path.stem
        with path.open(newline="", encoding="utf-8") as handle:
            measured = list(csv.DictReader(handle, delimiter="\t"))
        if not measured:
            continue
        last = measured[-1]  # a job that was tried again is told by its last attempt
        seconds = _number(last.get("s")) or 0.0
        account = accounts.get((rule, context, unit), {})
        tiles, made = account.get("n_tiles"), account.get("made", {})
        lines.append(
            {
                "rule": rule,
                "context": context,
                "unit": unit,
                "wildcards": json.dumps({"context": context, "unit": unit}, ensure_ascii=False),
                "seconds": seconds,
                "cpu_seconds": _number(last.get("cpu_time")),
                "max_rss_mb": _number(last.get("max_rss")),
                "mean_load": _number(last.get("mean_load")),
                "gpu_seconds": account.get("gpu_seconds"),
                **{column: account.get(name) for column, name in _STALLS.items()},
                "tiles_per_s": tiles / seconds if tiles and seconds else None,
                "read_mb": _number(last.get("io_in")),
                "written_mb": _number(last.get("io_out")),
                "host": made.get("host"),
                "device": made.get("device"),
                "slideloom_version": made.get("versions", {}).get("slideloom"),
            }
        )
    return lines


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:  # Snakemake writes NA or - where it could not measure
        return None
    return value if 0 <= value < float("inf") else None


def gather_failures(
    job_records: Iterable[Path],
    slide_ids: set[str],
    learned_from: Learned | None = None,
    of_stage: Mapping[str, Learned] | None = None,
) -> list[dict[str, Any]]:
    """Rows of ``failures.parquet``, without the study: every failure once, where it first happened.

    Parameters
    ----------
    job_records : iterable of Path
        Job records of every stage; stages after the failing one repeat its state, which is not listed again.
    slide_ids : set of str
        Slides of the sheet.
    learned_from : Learned, optional
        What the study's decoders were trained on; none were, when left out.
    of_stage : mapping of str to Learned, optional
        By stage, what those decoders were trained on that read it, where not all do.
    """
    learned_from = learned_from or Learned()
    own: dict[tuple[str, str, str], dict[str, Any]] = {}
    inherited: dict[tuple[str, str, str], dict[str, Any]] = {}
    for stage, context, states in read_records(job_records):
        for item, state in states.items():
            if state.status != "failed":
                continue
            here = state.stage == stage
            key = (item, state.stage, context if here else "")
            (own if here else inherited)[key] = {
                "slide_id": item if item in slide_ids and not (here and stage in _NOT_SLIDES) else None,
                "item": item,
                "stage": state.stage,
                "context": key[2],
                "reason_code": state.code,
                "message": state.message,
                "hint": state.hint,
            }
    # A failure is inherited by other items, too: every slide of an experiment whose training failed.
    told = {(row["stage"], row["reason_code"], row["message"]) for row in own.values()}
    own |= {
        key: row for key, row in inherited.items() if (row["stage"], row["reason_code"], row["message"]) not in told
    }
    by_stage = of_stage or {}
    return [
        row | {"trained_on": by_stage.get(row["stage"], learned_from).saw(row["slide_id"])}
        for row in (own[key] for key in sorted(own))
    ]
