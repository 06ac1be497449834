"""What the report shows, worked out from the tables: plain values and charts, no markup of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from slideloom.reports.plots import Dot, interval_chart, interval_grid
from slideloom.reports.svg import SERIES_COLOURS, hex_colour
from slideloom.slides.tables import ClassTable

__all__ = ["FEW", "HEADLINES", "ClassHeat", "Rows", "Trained", "class_heat", "class_names", "experiment_rows",
           "grouped", "interval_figure", "pixel_shares", "trained_rows"]  # fmt: skip

Rows = Sequence[Mapping[str, Any]]

#: Up to so many experiments each has a colour of its own, and charts show them side by side.
FEW = SERIES_COLOURS
#: Figures of the report's first chart and tables: column and how people call it.
HEADLINES: tuple[tuple[str, str], ...] = (
    ("pq", "PQ"),
    ("dq", "DQ"),
    ("sq", "SQ"),
    ("f1_mean", "F1, IoU 0.5 to 0.9"),
    ("f1_d", "F1 of detection"),
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
            colour, row = series[experiment] if few else 0, metrics.get(metric)
            if row is None:
                dots.append(Dot(colour, experiment, None))
                continue
            note = f"{row['n_slides']} slides, {row['n_patients']} patients"
            dots.append(Dot(colour, experiment, row["mean"], row["ci_low"], row["ci_high"], note))
        if any(dot.value is not None for dot in dots):
            blocks.append((name, dots))
    if not blocks:
        return None
    return interval_chart(blocks) if few else interval_grid(blocks)


def grouped(rows: Rows, *keys: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Rows by the values of these columns, in the order in which they first come."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def class_names(table: ClassTable) -> list[tuple[int, str, str]]:
    """Number, name and colour (``#rrggbb``, or empty) of each class, the background first."""
    own = zip(table.ids, table.names, table.colours, strict=True)
    return [(0, "background", ""), *((class_id, name, hex_colour(colour)) for class_id, name, colour in own)]


def pixel_shares(rows: Rows, table: ClassTable) -> list[tuple[float | None, float | None]]:
    """True and predicted share of the pixels of each class, all rows together.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of ``classes.parquet`` of one experiment and role.
    table : ClassTable
        The classes.

    Returns
    -------
    list of (float or None, float or None)
        In the order of :func:`class_names`; ``None`` where no row knows the class's pixels.
    """
    by_class = grouped(rows, "class_id")
    columns = []
    for column in ("gt_pixels", "pred_pixels"):
        whole = sum(row[column] or 0 for row in rows)
        shares = []
        for class_id, _, _ in class_names(table):
            known = [row[column] for row in by_class.get((class_id,), ()) if row[column] is not None]
            shares.append(sum(known) / whole if known and whole else None)
        columns.append(shares)
    return list(zip(*columns, strict=True))


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


def class_heat(classes: Rows, role: str, table: ClassTable) -> ClassHeat | None:
    """Dice and shares of each class for many experiments; ``None`` when no class has a Dice."""
    lines = []
    for (experiment,), own in grouped([row for row in classes if row["role"] == role], "experiment").items():
        by_class = grouped([row for row in own if row["dice"] is not None], "class_id")
        dice: list[float | None] = []
        for class_id, _, _ in class_names(table):
            values = [row["dice"] for row in by_class.get((class_id,), ())]
            dice.append(sum(values) / len(values) if values else None)
        if any(value is not None for value in dice):
            cells = zip(dice, pixel_shares(own, table), strict=True)
            lines.append((experiment, tuple((value, *shares) for value, shares in cells)))
    return ClassHeat(tuple((name, colour) for _, name, colour in class_names(table)), tuple(lines)) if lines else None


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
    n_slides, n_failed : int or None
        Slides that were learned from, and those that had failed and were left out; None where it is not known.
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
    n_slides: int | None = None
    n_failed: int | None = None


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
                n_slides=at.get("n_slides_train"),
                n_failed=at.get("n_slides_failed"),
            )
        )
    return result
