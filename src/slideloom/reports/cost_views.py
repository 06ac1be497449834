"""What the jobs cost and where their time went, summed by rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from slideloom.reports.matrix_plots import Stack, stacked_chart
from slideloom.reports.svg import series_class
from slideloom.reports.views import Rows, grouped

__all__ = ["STALLS", "Costs", "Devices", "cost_chart", "cost_rows", "device_rows", "duration", "stall_chart"]

#: Parts of a job's time that it may tell: column of ``costs.parquet`` and what people call it.
STALLS: tuple[tuple[str, str], ...] = (
    ("wait_read_s", "waiting for what is read"),
    ("copy_s", "copying to the device"),
    ("compute_s", "networks"),
    ("blend_s", "blending"),
    ("wait_write_s", "waiting for what is written"),
)
_REST = "anything else"


@dataclass(frozen=True)
class Costs:
    """What the jobs of one rule cost together.

    Attributes
    ----------
    rule : str
        The rule.
    jobs : int
        Number of jobs.
    seconds, cpu_seconds : float
        Sums.
    longest_s : float
        Wall time of the longest job.
    max_rss_mb : float or None
        Highest of all.
    share : float
        Of all rules' wall time.
    tiles_per_s : float or None
        Tiles of the jobs that told of them, over those jobs' wall time.
    """

    rule: str
    jobs: int
    seconds: float
    cpu_seconds: float
    longest_s: float
    max_rss_mb: float | None
    share: float
    tiles_per_s: float | None = None


def cost_rows(costs: Rows) -> list[Costs]:
    """Costs summed by rule, the dearest first."""
    total = sum(row["seconds"] for row in costs)
    result = []
    for (rule,), own in grouped(costs, "rule").items():
        memory = [row["max_rss_mb"] for row in own if row["max_rss_mb"] is not None]
        seconds = sum(row["seconds"] for row in own)
        tiled = [row for row in own if row.get("tiles_per_s") is not None]
        tiled_s = sum(row["seconds"] for row in tiled)
        result.append(
            Costs(
                rule=rule,
                jobs=len(own),
                seconds=seconds,
                cpu_seconds=sum(row["cpu_seconds"] or 0.0 for row in own),
                longest_s=max(row["seconds"] for row in own),
                max_rss_mb=max(memory, default=None),
                share=seconds / total if total else 0.0,
                tiles_per_s=sum(row["tiles_per_s"] * row["seconds"] for row in tiled) / tiled_s if tiled_s else None,
            )
        )
    return sorted(result, key=lambda cost: (-cost.seconds, cost.rule))


@dataclass(frozen=True)
class Devices:
    """What the jobs of one kind of device cost together.

    Attributes
    ----------
    device : str
        As ``costs.parquet`` names it; empty where jobs did not note it.
    versions : tuple of str
        Versions of Slideloom that ran, sorted.
    hosts, jobs : int
        Machines of that kind, and jobs that ran on them.
    seconds : float
        Sum of the jobs' wall time.
    gpu_seconds : float or None
        Time that GPUs computed, of the jobs that told; ``None`` when none did.
    """

    device: str
    versions: tuple[str, ...]
    hosts: int
    jobs: int
    seconds: float
    gpu_seconds: float | None


def device_rows(costs: Rows) -> list[Devices]:
    """Costs summed by what the jobs computed on, the dearest first; of no job that noted it, nothing."""
    result = []
    for (device,), own in grouped(costs, "device").items():
        told = [row["gpu_seconds"] for row in own if row["gpu_seconds"] is not None]
        result.append(
            Devices(
                device=device or "",
                versions=tuple(sorted({row["slideloom_version"] for row in own} - {None})),
                hosts=len({row["host"] for row in own} - {None}),
                jobs=len(own),
                seconds=sum(row["seconds"] for row in own),
                gpu_seconds=sum(told) if told else None,
            )
        )
    result.sort(key=lambda row: (-row.seconds, row.device))
    return result if any(row.device for row in result) else []


def cost_chart(costs: Rows) -> Markup | None:
    """Each rule's share of the wall time of all jobs."""
    rows = [
        Stack(
            cost.rule,
            (cost.share,),
            (f"{cost.rule}: {duration(cost.seconds)} in {cost.jobs} job{'' if cost.jobs == 1 else 's'}",),
            duration(cost.seconds),
        )
        for cost in cost_rows(costs)
    ]
    if not rows:
        return None
    return stacked_chart([("wall time", series_class(0))], rows, "Share of the jobs' wall time, by rule")


def stall_chart(costs: Rows) -> Markup | None:
    """Where the wall time went, of the rules whose jobs tell it.

    Notes
    -----
    Shares are of the wall time of the jobs that kept an account. Parts that ran beside each other can sum to more than
    it; they are then shares of their sum.
    """
    rows = []
    for (rule,), own in grouped(costs, "rule").items():
        told = [row for row in own if any(row.get(column) is not None for column, _ in STALLS)]
        if not told:
            continue
        parts = {name: sum(row.get(column) or 0.0 for row in told) for column, name in STALLS}
        seconds = sum(row["seconds"] for row in told)
        parts[_REST] = max(0.0, seconds - sum(parts.values()))
        rows.append((seconds, _stack(rule, parts, seconds)))
    if not rows:
        return None
    rows.sort(key=lambda row: (-row[0], row[1].name))
    names = [(name, series_class(number)) for number, name in enumerate((*dict(STALLS).values(), _REST))]
    # The rest is the quietest colour.
    names[-1] = (_REST, series_class(7))
    return stacked_chart(names, [row for _, row in rows], "Where the time of a stage's jobs went")


def _stack(rule: str, parts: Mapping[str, float], seconds: float) -> Stack:
    whole = sum(parts.values()) or 1.0
    titles = (f"{rule}, {name}: {duration(value)}, {100 * value / whole:.0f} %" for name, value in parts.items())
    return Stack(rule, tuple(value / whole for value in parts.values()), tuple(titles), duration(seconds))


def duration(seconds: float | None) -> str:
    """A time as people say it: 1.5 s, 2 min 5 s, 3 h 20 min."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
