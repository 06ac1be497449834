"""Which figures the metric tables show, in groups that a switch chooses from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slideloom.reports.views import Rows, grouped

__all__ = ["GROUPS", "MAIN", "GroupTable", "MetricGroup", "SummaryLine", "group_rules", "group_tables", "groups_of",
           "summary_lines"]  # fmt: skip

#: Column, heading, digits (0: a count with thin spaces).
Figure = tuple[str, str, int]


@dataclass(frozen=True)
class MetricGroup:
    """Columns that are shown together.

    Attributes
    ----------
    key, title : str
        Name in the page, and what people read.
    figures : tuple of (str, str, int)
        Column, heading, digits.
    """

    key: str
    title: str
    figures: tuple[Figure, ...]


#: The groups, in the order of the switch.
GROUPS: tuple[MetricGroup, ...] = (
    MetricGroup(
        "instance",
        "Instances",
        (
            ("n_gt", "true nuclei", 0), ("n_pred", "predicted", 0), ("pq", "PQ", 3), ("dq", "DQ", 3), ("sq", "SQ", 3),
            ("bpq", "bPQ", 3), ("mpq", "mPQ", 3), ("pq_mean", "PQ mean", 3), ("aji", "AJI", 3), ("aji_plus", "AJI+", 3),
            ("dice_2", "ensemble Dice", 3), ("f1_50", "F1 at\u00a00.5", 3), ("f1_70", "F1 at\u00a00.7", 3),
            ("f1_90", "F1 at\u00a00.9", 3), ("f1_mean", "F1 mean", 3), ("ap_50", "AP at\u00a00.5", 3),
            ("ap_mean", "AP mean", 3), ("sq_mean", "SQ mean", 3), ("precision", "precision", 3),
            ("recall", "recall", 3), ("splits", "split", 0), ("merges", "merges", 0),
            ("seam_change_rate", "seam changes", 4),
        ),
    ),
    MetricGroup(
        "detection",
        "Detection",
        (
            ("tp_d", "found", 0), ("fp_d", "false", 0), ("fn_d", "missed", 0), ("f1_d", "F1", 3),
            ("precision_d", "precision", 3), ("recall_d", "recall", 3),
        ),
    ),
    MetricGroup(
        "classes",
        "Classes",
        (
            ("dice_macro", "Dice", 3), ("dice_macro_n", "of classes", 0), ("iou_macro", "IoU", 3),
            ("precision_macro", "precision", 3), ("recall_macro", "recall", 3),
            ("dice_macro_with_background", "Dice with background", 3),
            ("iou_macro_with_background", "IoU with background", 3), ("class_accuracy", "accuracy of pixels", 3),
            ("class_accuracy_nuclei", "accuracy of nuclei", 3), ("map_won", "AP", 3), ("ece_class", "ECE", 3),
        ),
    ),
    MetricGroup(
        "pixels",
        "Pixels",
        (
            ("dice_binary", "Dice", 3), ("iou_binary", "IoU", 3), ("precision_binary", "precision", 3),
            ("recall_binary", "recall", 3), ("map", "AP", 3), ("f1_pixel", "F1 of labels", 3),
            ("pixel_accuracy", "accuracy of labels", 3), ("boundary_f1", "boundary F1", 3),
            ("surface_dice", "surface Dice", 3), ("ece", "ECE", 3), ("mce", "MCE", 3), ("brier", "Brier", 4),
            ("hv_mse", "HV error", 4), ("hv_mse_everywhere", "HV error everywhere", 4), ("area_mm2", "area mm²", 3),
        ),
    ),
)  # fmt: skip


#: Figures of tables that are too long for all of them.
MAIN = frozenset({
    "n_gt", "n_pred", "pq", "dq", "sq", "mpq", "aji", "f1_50", "f1_mean", "f1_d", "precision_d", "recall_d",
    "dice_macro", "iou_macro", "class_accuracy", "map_won", "dice_binary", "map", "boundary_f1", "ece", "hv_mse",
    "area_mm2",
})  # fmt: skip


def groups_of(defined: Callable[[str], bool]) -> list[MetricGroup]:
    """The groups with those figures that tell anything; groups without any are left out.

    Parameters
    ----------
    defined : callable
        Whether a column has a value anywhere.
    """
    kept = [
        MetricGroup(group.key, group.title, tuple(figure for figure in group.figures if defined(figure[0])))
        for group in GROUPS
    ]
    return [group for group in kept if group.figures]


def group_rules(table: str, fixed: int, groups: Sequence[MetricGroup]) -> str:
    """Style rules that show one group of a table's columns: that of its attribute ``data-group``, or all.

    Parameters
    ----------
    table : str
        Id of the table.
    fixed : int
        Columns before the first group; always shown.
    groups : sequence of MetricGroup
        In the order of the columns.
    """
    rules, first = [], fixed + 1
    for group in groups:
        last = first + len(group.figures) - 1
        others = f'#{table}:not([data-group="{group.key}"]):not([data-group="all"])'
        rules.append(f"{others} tr>:nth-child(n+{first}):nth-child(-n+{last}){{display:none}}")
        first = last + 1
    return "\n".join(rules)


@dataclass(frozen=True)
class SummaryLine:
    """An experiment under one averaging.

    Attributes
    ----------
    experiment, averaging : str
        Which.
    n : int
        Most that any figure is an average of: slides, patients, folds or tissues.
    n_patients : int
        Most patients behind any figure.
    figures : dict of str to mapping
        Row of ``experiments.parquet`` by metric.
    """

    experiment: str
    averaging: str
    n: int
    n_patients: int
    figures: dict[str, Mapping[str, Any]]


def summary_lines(experiments: Rows, role: str) -> list[SummaryLine]:
    """Averages of each experiment over the slides of one role, averagings in the order of the table."""
    lines = []
    own = [row for row in experiments if row["role"] == role]
    for (averaging,), rows in grouped(own, "averaging").items():
        for (experiment,), figures in grouped(rows, "experiment").items():
            most = max(row["n"] for row in figures), max(row["n_patients"] for row in figures)
            if most[0]:
                lines.append(SummaryLine(experiment, averaging, *most, {row["metric"]: row for row in figures}))
    return lines


@dataclass(frozen=True)
class GroupTable:
    """One figure by groups of slides: a row an experiment, a column a group.

    Attributes
    ----------
    by, metric : str
        What slides are grouped by, and the figure, as people call them.
    groups : tuple of str
        The columns.
    lines : list of (str, list of mapping or None)
        Experiment, and its row of ``groups.parquet`` for each group.
    """

    by: str
    metric: str
    groups: tuple[str, ...]
    lines: list[tuple[str, list[Mapping[str, Any] | None]]]


def group_tables(rows: Rows, role: str, metrics: Sequence[tuple[str, str]]) -> list[GroupTable]:
    """Figures by platform and by tissue, where there are several of them.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of ``groups.parquet``.
    role : str
        Of the slides.
    metrics : sequence of (str, str)
        Figures and what people call them.
    """
    tables = []
    for by in ("platform", "tissue"):
        own = [row for row in rows if row["role"] == role and row["by"] == by]
        names = tuple(sorted({row["group"] for row in own}))
        if len(names) < 2:
            continue
        for metric, title in metrics:
            found = grouped([row for row in own if row["metric"] == metric], "experiment")
            lines = []
            for (experiment,), figures in found.items():
                by_group = {row["group"]: row for row in figures}
                lines.append((experiment, [by_group.get(name) for name in names]))
            if lines:
                tables.append(GroupTable(by, title, names, lines))
    return tables
