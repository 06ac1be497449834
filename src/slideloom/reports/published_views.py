"""The tables of a published report beside ours, as the page shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slideloom.reports.findings import published_notes
from slideloom.reports.published import OWN, REPORTS

__all__ = ["ClassLine", "PublishedView", "published_caution", "published_views"]

Rows = Sequence[Mapping[str, Any]]

#: How people call the metrics.
_NAMES = {
    "dice_macro": "Dice, mean of classes",
    "dice_binary": "Dice, nucleus map",
    "hv_mse": "HV error",
    "val_loss": "best validation loss",
    "val_dice_macro_best": "best validation Dice",
    "val_dice_macro_mean": "its mean over epochs",
    "dice_rare": "Dice, rare classes",
    "class_dice_mean": "mean of class Dice, pooled",
    "class_dice_mean_with_background": "the same with background",
    "gt_percent": "truth, % of pixels",
    "pred_percent": "predicted, %",
    "dice": "Dice",
}


@dataclass(frozen=True)
class ClassLine:
    """A class in the report's Table 6, or Table 1.

    Attributes
    ----------
    name : str
        As the report has it.
    cells : tuple
        Rows of ``published.parquet`` in the order of the table's columns; ``None`` where there is none.
    finding : str
        What its difference says.
    """

    name: str
    cells: tuple[Mapping[str, Any] | None, ...]
    finding: str


@dataclass(frozen=True)
class PublishedView:
    """One table.

    Attributes
    ----------
    number, title, claim : str
        As in :class:`slideloom.reports.published.PublishedTable`; number is empty for rows of our own.
    rows : list of mapping
        Its rows that are not about a class, with ``name``: the metric in words.
    columns : tuple of str
        Headings of ``classes``.
    classes : list of ClassLine
        Its rows about classes.
    notes : list of str
        What must be known of it.
    n_run, n_asked : int
        Experiments of the table that were run, and all.
    """

    number: str
    title: str
    claim: str
    rows: list[dict[str, Any]]
    columns: tuple[str, ...]
    classes: list[ClassLine]
    notes: list[str]
    n_run: int
    n_asked: int


def published_views(name: str, rows: Rows) -> tuple[str, list[str], list[PublishedView]]:
    """What the page shows of a published report.

    Parameters
    ----------
    name : str
        The report.
    rows : sequence of mapping
        Rows of ``published.parquet``.

    Returns
    -------
    title : str
    notes : list of str
        What must be known of all of it.
    tables : list of PublishedView
    """
    report = REPORTS[name]
    notes = published_notes(report)
    views = []
    for table in report.tables:
        own = [row for row in rows if row["table"] == table.number]
        of_class = {figure.row for figure in table.figures if figure.of_class}
        plain = [{**row, "name": _NAMES[row["metric"]]} for row in own if row["row"] not in of_class]
        columns, classes = _classes([row for row in own if row["row"] in of_class])
        asked = {figure.experiment for figure in table.figures} - {None}
        run = {row["experiment"] for row in own if row["experiment"] and row["mean"] is not None}
        views.append(
            PublishedView(
                "" if table.number == OWN else table.number,
                table.title,
                table.claim,
                plain,
                columns,
                classes,
                notes.get(table.number, []),
                len(run),
                len(asked),
            )
        )
    return report.title, notes[""], views


def _classes(rows: Rows) -> tuple[tuple[str, ...], list[ClassLine]]:
    """Rows about classes, a line a class: columns are who (the part before the comma) and what."""
    placed: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        who, _, name = row["row"].rpartition(", ")
        what = _NAMES[row["metric"]]
        column = what if row["metric"] == "gt_percent" else f"{who}: {what}"
        placed.setdefault(name, {})[column] = row
    columns = tuple(dict.fromkeys(column for line in placed.values() for column in line))
    lines = []
    for name, line in placed.items():
        finding = next((row["finding"] for row in line.values() if row["finding"]), "")
        lines.append(ClassLine(name, tuple(line.get(column) for column in columns), finding))
    return columns, lines


def published_caution(rows: Rows, slides: Rows) -> str:
    """Why ours cannot be compared with the published figures in size; empty when nothing speaks against it.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of ``published.parquet``.
    slides : sequence of mapping
        Rows of ``slides.parquet``.
    """
    reasons = []
    ran = {row["experiment"] for row in rows if row["random_weights"] is not None}
    chance = {row["experiment"] for row in rows if row["random_weights"]}
    if chance:
        which = "all" if chance == ran else f"{len(chance)} of {len(ran)}"
        reasons.append(f"the encoders of {which} experiments ran with random weights")
    if slides and all(row["platform"].startswith("synthetic") for row in slides):
        reasons.append("the slides are synthetic, not the report's")
    if not reasons:
        return ""
    return (
        f"Ours are not to be compared with the published figures in size: {' and '.join(reasons)}. "
        "Only directions within a table may be read, and they are those of this data."
    )
