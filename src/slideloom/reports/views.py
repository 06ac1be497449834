"""What the report shows, worked out from the tables: plain values and charts, no markup of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from slideloom.reports.plots import (
    SERIES_COLOURS,
    Dot,
    Line,
    class_bars,
    frequency_chart,
    hex_colour,
    interval_chart,
    interval_grid,
    line_chart,
)
from slideloom.slides.tables import ClassTable

__all__ = ["FEW", "HEADLINES", "ClassHeat", "Costs", "Trained", "class_charts", "class_heat", "cost_rows",
           "experiment_rows", "interval_figure", "trained_rows", "training_charts"]  # fmt: skip

Rows = Sequence[Mapping[str, Any]]

#: Up to so many experiments each has a colour of its own, and charts show them side by side.
FEW = SERIES_COLOURS
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
    few = len(series) <= FEW
    blocks = []
    for metric, name in HEADLINES:
        dots = []
        for experiment, metrics in found.items():
            row = metrics[metric]
            note = f"{row['n_slides']} slides, {row['n_patients']} patients"
            colour = series[experiment] if few else 0
            dots.append(Dot(colour, experiment, row["mean"], row["ci_low"], row["ci_high"], note))
        if any(dot.value is not None for dot in dots):
            blocks.append((name, dots))
    if not blocks:
        return None
    return interval_chart(blocks) if few else interval_grid(blocks)


@dataclass(frozen=True)
class ClassHeat:
    """Classes of many experiments: a line an experiment, a column a class.

    Attributes
    ----------
    columns : tuple of (str, str)
        Name and colour (``#rrggbb``, or empty) of each class, the background first.
    lines : tuple of (str, tuple of (float or None, float or None, float or None))
        Experiment, and for each class its Dice, its true and its predicted share of the pixels.
    """

    columns: tuple[tuple[str, str], ...]
    lines: tuple[tuple[str, tuple[tuple[float | None, float | None, float | None], ...]], ...]


class _Classes:
    """Rows of one role by experiment and class."""

    def __init__(self, classes: Rows, role: str, table: ClassTable) -> None:
        self.ids = [
            (0, "background", ""),
            *((i, n, hex_colour(c)) for i, n, c in zip(table.ids, table.names, table.colours, strict=True)),
        ]
        self._rows: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
        for row in classes:
            if row["role"] == role:
                self._rows.setdefault(row["experiment"], {}).setdefault(row["class_id"], []).append(row)
        self.experiments = list(self._rows)

    def dice(self, experiment: str, class_id: int) -> tuple[float | None, int]:
        """Mean over the slides where it is defined, and their number."""
        rows = self._rows[experiment].get(class_id, [])
        values = [row["dice"] for row in rows if row["dice"] is not None]
        return (sum(values) / len(values) if values else None), len(values)

    def shares(self, experiment: str) -> list[tuple[float | None, float | None]]:
        """True and predicted share of each class, all slides together."""
        columns = []
        for column in ("gt_pixels", "pred_pixels"):
            own = self._rows[experiment]
            whole = sum(row[column] or 0 for rows in own.values() for row in rows)
            shares = []
            for class_id, _, _ in self.ids:
                known = [row[column] for row in own.get(class_id, []) if row[column] is not None]
                shares.append(sum(known) / whole if known and whole else None)
            columns.append(shares)
        return list(zip(*columns, strict=True))


def class_charts(
    classes: Rows, role: str, table: ClassTable, series: Mapping[str, int]
) -> tuple[Markup | None, list[tuple[str, Markup]]]:
    """Chart of each class's Dice, and of true against predicted frequency, a chart an experiment.

    Dice is the mean over the slides where it is defined; frequencies are summed over the same role's slides. Many
    experiments have no chart of Dice, see :func:`class_heat`.
    """
    found = _Classes(classes, role, table)
    few = len(series) <= FEW
    bars = []
    for class_id, name, colour in found.ids:
        dots = []
        for experiment in found.experiments:
            mean, n = found.dice(experiment, class_id)
            dots.append(Dot(series[experiment], f"{experiment}, {name}", mean, note=f"{n} slides"))
        bars.append((name, colour, dots))
    any_dice = any(dot.value is not None for _, _, dots in bars for dot in dots)
    frequencies = []
    for experiment in found.experiments:
        shares = found.shares(experiment)
        lines = [(name, colour, *own) for (_, name, colour), own in zip(found.ids, shares, strict=True)]
        if any(share is not None for own in shares for share in own):
            frequencies.append((experiment, frequency_chart(lines, series[experiment] if few else 0)))
    return (class_bars(bars) if any_dice and few else None), frequencies


def class_heat(classes: Rows, role: str, table: ClassTable) -> ClassHeat | None:
    """Dice and shares of each class for many experiments; ``None`` when no class has a Dice."""
    found = _Classes(classes, role, table)
    lines = []
    for experiment in found.experiments:
        shares = found.shares(experiment)
        dice = [found.dice(experiment, class_id)[0] for class_id, _, _ in found.ids]
        if any(value is not None for value in dice):
            lines.append((experiment, tuple((d, *own) for d, own in zip(dice, shares, strict=True))))
    return ClassHeat(tuple((name, colour) for _, name, colour in found.ids), tuple(lines)) if lines else None


def training_charts(training: Rows, series: Mapping[str, int]) -> list[tuple[str, list[Markup]]]:
    """Loss and validation scores over epochs, by experiment; of many experiments, folds have the colours."""
    few = len(series) <= FEW
    result = []
    for experiment in dict.fromkeys(row["experiment"] for row in training):
        own = [row for row in training if row["experiment"] == experiment]
        losses: list[Line] = []
        scores: list[Line] = []
        for number, fold in enumerate(dict.fromkeys(row["fold"] for row in own)):
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
                group.append(Line(series[experiment] if few else number, f"fold {fold}, {name}", points, dashed, mark))
        charts = [line_chart(losses, "loss: validation —, training ┄")]
        if any(line.points for line in scores):
            charts.append(line_chart(scores, "validation Dice: nucleus —, classes ┄"))
        result.append((experiment, charts))
    return result


@dataclass(frozen=True)
class Trained:
    """One training in a line.

    Attributes
    ----------
    experiment, fold : str
        Which.
    epochs : int
        Epochs that it ran.
    best_epoch : int or None
        Whose weights were kept.
    train_loss, val_loss, val_dice_binary, val_dice_macro : float or None
        Of that epoch, or of the last when none is marked.
    seconds : float
        All epochs together.
    """

    experiment: str
    fold: str
    epochs: int
    best_epoch: int | None
    train_loss: float | None
    val_loss: float | None
    val_dice_binary: float | None
    val_dice_macro: float | None
    seconds: float


def trained_rows(training: Rows) -> list[Trained]:
    """A line a training, in the order of the table."""
    runs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in training:
        runs.setdefault((row["experiment"], row["fold"]), []).append(row)
    result = []
    for (experiment, fold), rows in runs.items():
        best = next((row for row in rows if row.get("best")), None)
        at = best or max(rows, key=lambda row: row["epoch"])
        result.append(
            Trained(
                experiment=experiment,
                fold=fold,
                epochs=len(rows),
                best_epoch=None if best is None else best["epoch"],
                train_loss=at.get("train_loss"),
                val_loss=at.get("val_loss"),
                val_dice_binary=at.get("val_dice_binary"),
                val_dice_macro=at.get("val_dice_macro"),
                seconds=sum(row["seconds"] or 0.0 for row in rows),
            )
        )
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
