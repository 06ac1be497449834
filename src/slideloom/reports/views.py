"""What the report shows, worked out from the tables: plain values and charts, no markup of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from slideloom.reports.plots import Dot, Line, class_bars, frequency_chart, hex_colour, interval_chart, line_chart
from slideloom.slides.tables import ClassTable

__all__ = ["HEADLINES", "Costs", "class_charts", "comparison_rows", "cost_rows", "experiment_rows", "interval_figure",
           "main_role", "training_charts"]  # fmt: skip

Rows = Sequence[Mapping[str, Any]]

#: Figures of the report's first chart and tables: column and how people call it.
HEADLINES: tuple[tuple[str, str], ...] = (
    ("pq", "PQ"),
    ("dq", "DQ"),
    ("sq", "SQ"),
    ("f1_mean", "F1, IoU 0.5 to 0.9"),
    ("aji", "AJI"),
    ("mpq", "mPQ, over classes"),
    ("dice_binary", "Dice, nucleus map"),
    ("dice_macro", "Dice, mean of classes"),
    ("map", "AP, nucleus pixels"),
)


def main_role(rows: Rows) -> str:
    """The role that charts show: test where anything was tested, else val, else whatever there is."""
    present = {row["role"] for row in rows}
    return next((role for role in ("test", "val", *sorted(present)) if role in present), "")


def experiment_rows(experiments: Rows, role: str) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Summaries over slides of one role, by experiment and metric."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in experiments:
        if row["role"] == role and row["averaging"] == "slide":
            found.setdefault(row["experiment"], {})[row["metric"]] = row
    return found


def interval_figure(experiments: Rows, role: str, series: Mapping[str, int]) -> Markup | None:
    """Chart of the headline figures with their intervals; ``None`` when nothing is defined."""
    found = experiment_rows(experiments, role)
    blocks = []
    for metric, name in HEADLINES:
        dots = []
        for experiment, metrics in found.items():
            row = metrics[metric]
            note = f"{row['n_slides']} slides, {row['n_patients']} patients"
            dots.append(Dot(series[experiment], experiment, row["mean"], row["ci_low"], row["ci_high"], note))
        if any(dot.value is not None for dot in dots):
            blocks.append((name, dots))
    return interval_chart(blocks) if blocks else None


def comparison_rows(comparisons: Rows, role: str) -> list[dict[str, Any]]:
    """Comparisons of the headline figures, with readable names; those without a slide are left out."""
    names = dict(HEADLINES)
    order = list(names)
    told = [row for row in comparisons if row["role"] == role and row["metric"] in names and row["n"]]
    pairs = list(dict.fromkeys((row["experiment_a"], row["experiment_b"]) for row in told))
    told.sort(key=lambda row: (pairs.index((row["experiment_a"], row["experiment_b"])), order.index(row["metric"])))
    return [{**row, "name": names[row["metric"]]} for row in told]


def class_charts(
    classes: Rows, role: str, table: ClassTable, series: Mapping[str, int]
) -> tuple[Markup | None, list[tuple[str, Markup]]]:
    """Chart of each class's Dice, and of true against predicted frequency, a chart an experiment.

    Dice is the mean over the slides where it is defined; frequencies are summed over the same role's slides.
    """
    rows = [row for row in classes if row["role"] == role]
    present = list(dict.fromkeys(row["experiment"] for row in rows))
    ids = [
        (0, "background", ""),
        *((i, n, hex_colour(c)) for i, n, c in zip(table.ids, table.names, table.colours, strict=True)),
    ]
    by_class: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_class.setdefault((row["experiment"], row["class_id"]), []).append(row)
    bars = []
    for class_id, name, colour in ids:
        dots = []
        for experiment in present:
            values = [row["dice"] for row in by_class.get((experiment, class_id), []) if row["dice"] is not None]
            mean = sum(values) / len(values) if values else None
            dots.append(Dot(series[experiment], f"{experiment}, {name}", mean, note=f"{len(values)} slides"))
        bars.append((name, colour, dots))
    any_dice = any(dot.value is not None for _, _, dots in bars for dot in dots)
    frequencies = []
    for experiment in present:
        lines = []
        total = {"gt_pixels": 0, "pred_pixels": 0}
        for column in total:
            total[column] = sum(
                row[column] or 0 for key, group in by_class.items() if key[0] == experiment for row in group
            )
        for class_id, name, colour in ids:
            group = by_class.get((experiment, class_id), [])
            shares = []
            for column, whole in total.items():
                known = [row[column] for row in group if row[column] is not None]
                shares.append(sum(known) / whole if known and whole else None)
            lines.append((name, colour, shares[0], shares[1]))
        if any(share is not None for line in lines for share in line[2:]):
            frequencies.append((experiment, frequency_chart(lines, series[experiment])))
    return (class_bars(bars) if any_dice else None), frequencies


def training_charts(training: Rows, series: Mapping[str, int]) -> list[tuple[str, list[Markup]]]:
    """Loss and validation scores over epochs, by experiment."""
    result = []
    for experiment in dict.fromkeys(row["experiment"] for row in training):
        own = [row for row in training if row["experiment"] == experiment]
        losses: list[Line] = []
        scores: list[Line] = []
        for fold in dict.fromkeys(row["fold"] for row in own):
            rows = sorted((row for row in own if row["fold"] == fold), key=lambda row: row["epoch"])
            best = next((float(row["epoch"]) for row in rows if row.get("best")), None)
            for group, column, name, dashed in (
                (losses, "train_loss", "training", True),
                (losses, "val_loss", "validation", False),
                (scores, "val_dice_binary", "nucleus", False),
                (scores, "val_dice_macro", "classes", True),
            ):
                points = [(float(row["epoch"]), float(row[column])) for row in rows if row.get(column) is not None]
                mark = best if not dashed else None
                group.append(Line(series[experiment], f"fold {fold}, {name}", points, dashed, mark))
        charts = [line_chart(losses, "loss: validation —, training ┄")]
        if any(line.points for line in scores):
            charts.append(line_chart(scores, "validation Dice: nucleus —, classes ┄"))
        result.append((experiment, charts))
    return result


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
    """

    rule: str
    jobs: int
    seconds: float
    cpu_seconds: float
    longest_s: float
    max_rss_mb: float | None
    share: float


def cost_rows(costs: Rows) -> list[Costs]:
    """Costs summed by rule, the dearest first."""
    total = sum(row["seconds"] for row in costs)
    result = []
    for rule in dict.fromkeys(row["rule"] for row in costs):
        own = [row for row in costs if row["rule"] == rule]
        memory = [row["max_rss_mb"] for row in own if row["max_rss_mb"] is not None]
        seconds = sum(row["seconds"] for row in own)
        result.append(
            Costs(
                rule=rule,
                jobs=len(own),
                seconds=seconds,
                cpu_seconds=sum(row["cpu_seconds"] or 0.0 for row in own),
                longest_s=max(row["seconds"] for row in own),
                max_rss_mb=max(memory, default=None),
                share=seconds / total if total else 0.0,
            )
        )
    return sorted(result, key=lambda cost: (-cost.seconds, cost.rule))
