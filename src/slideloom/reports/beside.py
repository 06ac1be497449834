"""Rows of ``published.parquet``: each figure of a published report beside ours, and what our differences say of its."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.reports.aggregate import main_role
from slideloom.reports.comparisons import compare_experiments
from slideloom.reports.findings import finding
from slideloom.reports.pooled import PooledClasses
from slideloom.reports.published import REPORTS, Figure, PublishedTable
from slideloom.reports.resampling import draws, holm, percentiles, smallest_p

__all__ = ["published_rows"]

Rows = Sequence[Mapping[str, Any]]
Floats = NDArray[np.float64]

#: Classes below this share of the truth's pixels are rare: those that the report's H&E model never found.
_RARE = 0.015
_OF_SLIDES = ("dice_macro", "dice_binary", "hv_mse", "dice_rare")
_OF_TRAINING = ("val_loss", "val_dice_macro_best", "val_dice_macro_mean")
_POOLED = ("dice", "gt_percent", "pred_percent", "class_dice_mean", "class_dice_mean_with_background")
_NOTHING: dict[str, Any] = {"n_slides": 0, "n_patients": 0, "n_folds": 0}
_DERIVED = "the published figure is the mean of the printed class Dice"


def published_rows(
    name: str | None, slides: Rows, classes: Rows, training: Rows, splits: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Rows of ``published.parquet``, without the study.

    Parameters
    ----------
    name : str or None
        The report, as the config names it; ``None``: no rows.
    slides, classes, training : sequence of mapping
        Rows of those report tables.
    splits : mapping of str to str, optional
        Name of each experiment's split.

    Returns
    -------
    list of dict
        In the order of the report; every figure has its row, whether the study has its experiment or not.
    """
    if name is None:
        return []
    ours = _Ours(slides, classes, training, splits)
    return [row for table in REPORTS[name].tables for row in ours.beside(table)]


class _Ours:
    """The study's own figures: slides of the main role, and trainings."""

    def __init__(self, slides: Rows, classes: Rows, training: Rows, splits: Mapping[str, str] | None) -> None:
        self.role = main_role(slides)
        self.slides = [row for row in slides if row["role"] == self.role]
        self.classes = [row for row in classes if row["role"] == self.role and row["gt_pixels"] is not None]
        self.training, self.splits = training, splits
        self.random = {row["experiment"]: row["random_weights"] for row in [*training, *slides]}
        self.class_ids = {_plain(row["class_name"]): row["class_id"] for row in self.classes} | {"background": 0}

    def beside(self, table: PublishedTable) -> list[dict[str, Any]]:
        """Rows of one table."""
        rows = self._slides_with_classes(table)
        pooled = self._pooled(table)
        lines = [self._figure(figure, rows, pooled) for figure in table.figures]
        self._compare(table, lines, rows)
        for figure, line in zip(table.figures, lines, strict=True):
            line["finding"] = finding(line, figure.sign) if figure.against and figure.sign else None
        return [{"table": table.number, **line} for line in lines]

    # ---- figures --------------------------------------------------------------------------------------------------

    def _figure(
        self, figure: Figure, rows: Sequence[Mapping[str, Any]], pooled: Mapping[str | None, PooledClasses]
    ) -> dict[str, Any]:
        class_id = self.class_ids.get(_plain(figure.of_class)) if figure.of_class else None
        low, high = figure.interval or (None, None)
        line: dict[str, Any] = {
            "row": figure.row,
            "experiment": figure.experiment,
            "metric": figure.metric,
            "class_id": class_id,
            "published": figure.value,
            "published_std": figure.std,
            "published_n": figure.n_folds,
            "published_low": low,
            "published_high": high,
            "random_weights": self.random.get(figure.experiment or ""),
            "against": figure.against,
        }
        if figure.metric in _OF_TRAINING:
            found = self._trained(figure)
        elif figure.metric in _POOLED:
            own = pooled.get(figure.experiment)
            found = own.figure(figure.metric, class_id) if own and (class_id is not None or not figure.of_class) else {}
        else:
            found = _over_folds([row for row in rows if row["experiment"] == figure.experiment], figure.metric)
        return line | _NOTHING | found | {"note": self._note(figure, class_id, bool(found))}

    def _note(self, figure: Figure, class_id: int | None, found: bool) -> str:
        if not found and figure.experiment is not None and figure.experiment not in self.random:
            return "not run here"
        notes = []
        if found and self.role != "test" and figure.metric not in _OF_TRAINING:
            notes.append(f"ours are of {self.role} slides")
        if figure.of_class and class_id is None:
            notes.append("the study has no class of this name")
        if figure.metric.startswith("class_dice_mean"):
            notes.append(_DERIVED)
        return "; ".join(notes)

    def _trained(self, figure: Figure) -> dict[str, Any]:
        column = "val_loss" if figure.metric == "val_loss" else "val_dice_macro"
        folds = list(self._epochs(figure.experiment or "", column).values())
        if not folds:
            return {}
        values = [_of_epochs(figure.metric, epochs) for epochs in folds]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        if figure.metric == "val_dice_macro_mean":
            std = float(np.mean([epochs.std() for epochs in folds]))
        return {"mean": float(np.mean(values)), "std": std, "n_folds": len(values)}

    def _epochs(self, experiment: str, column: str) -> dict[str, Floats]:
        """A column of the training by fold, epochs without a value left out."""
        folds: dict[str, list[float]] = {}
        for row in self.training:
            if row["experiment"] == experiment and row.get(column) is not None:
                folds.setdefault(row["fold"], []).append(row[column])
        return {fold: np.array(values) for fold, values in folds.items()}

    def _pooled(self, table: PublishedTable) -> dict[str | None, PooledClasses]:
        if not any(figure.metric in _POOLED for figure in table.figures):
            return {}
        names = {figure.experiment for figure in table.figures if figure.metric in _POOLED} - {None}
        own: dict[str | None, PooledClasses] = {}
        for name in dict.fromkeys(row["experiment"] for row in self.classes):
            # The truth is the same whoever predicts it: that of the last of the table's experiments, else the first.
            if name in names or (not names and not own):
                rows = [row for row in self.classes if row["experiment"] == name and row["pred_pixels"] is not None]
                if rows:
                    own[name] = own[None] = PooledClasses(rows)
        return own

    # ---- differences ----------------------------------------------------------------------------------------------

    def _slides_with_classes(self, table: PublishedTable) -> list[dict[str, Any]]:
        """Slides of the table's experiments, with Dice of the rare classes and of each class as further columns."""
        names = {figure.experiment for figure in table.figures}
        rows = [dict(row) for row in self.slides if row["experiment"] in names]
        wanted = {figure.metric for figure in table.figures}
        if not wanted & {"dice_rare", "dice"}:
            return rows
        classes = [row for row in self.classes if row["experiment"] in names]
        rare = _rare_classes(classes)
        dice: dict[tuple[str, str, str], dict[int, float | None]] = {}
        for row in classes:
            key = row["experiment"], row["fold"], row["slide_id"]
            dice.setdefault(key, {})[row["class_id"]] = row["dice"]
        for one in rows:
            own = dice.get((one["experiment"], one["fold"], one["slide_id"]), {})
            of_rare = [value for k, value in own.items() if k in rare and value is not None]
            one["dice_rare"] = sum(of_rare) / len(of_rare) if of_rare else None
            one |= {f"dice:{class_id}": own.get(class_id) for class_id in self.class_ids.values()}
        return rows

    def _compare(self, table: PublishedTable, lines: list[dict[str, Any]], rows: Rows) -> None:
        """Add the differences to the lines, p values adjusted within the table; classes are a family of their own."""
        metrics = dict.fromkeys(_column(line) for line in lines if line["against"])
        tested = [metric for metric in metrics if rows and metric in rows[0]]
        pairs = {
            (line["experiment_a"], line["experiment_b"], line["metric"]): line
            for line in compare_experiments(rows, self.splits, tested)
        }
        families: dict[bool, list[dict[str, Any]]] = {}
        for figure, line in zip(table.figures, lines, strict=True):
            if figure.against is None:
                continue
            other = table.figure(figure.against, figure.metric, figure.of_class)
            both = other is not None and other.value is not None and figure.value is not None
            line["published_difference"] = figure.value - other.value if both else None  # type: ignore[union-attr,operator]
            if figure.metric in _OF_TRAINING:
                line["difference"] = self._difference_of_trainings(figure)
                continue
            line |= _difference(pairs, figure.against, figure.experiment or "", _column(line))
            if line.get("p_value") is not None:
                families.setdefault(bool(figure.of_class), []).append(line)
        for family in families.values():
            adjusted = holm([line["p_value"] for line in family])
            smallest = holm(smallest_p([line["n_paired"] for line in family]))
            for line, p, least in zip(family, adjusted, smallest, strict=True):
                line |= {"p_adjusted": float(p), "p_adjusted_smallest": float(least)}
        for line in lines:
            for column in ("difference", "difference_low", "difference_high", "p_adjusted", "p_adjusted_smallest"):
                line.setdefault(column, None)

    def _difference_of_trainings(self, figure: Figure) -> float | None:
        column = "val_loss" if figure.metric == "val_loss" else "val_dice_macro"
        a, b = (self._epochs(name or "", column) for name in (figure.against, figure.experiment))
        shared = [_of_epochs(figure.metric, b[fold]) - _of_epochs(figure.metric, a[fold]) for fold in a if fold in b]
        return float(np.mean(shared)) if shared else None


def _plain(name: str) -> str:
    """A class name as compared: "Helper T" and "helper T cells" are one."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"\bcells?\b", "", name.lower()))


def _column(line: Mapping[str, Any]) -> str:
    """Column of the slides that judges a figure's difference."""
    return f"dice:{line['class_id']}" if line["metric"] == "dice" else str(line["metric"])


def _of_epochs(metric: str, epochs: Floats) -> float:
    if metric == "val_loss":
        return float(epochs.min())
    return float(epochs.max() if metric == "val_dice_macro_best" else epochs.mean())


def _rare_classes(classes: Rows) -> set[int]:
    pixels: dict[int, int] = {}
    for row in classes:
        pixels[row["class_id"]] = pixels.get(row["class_id"], 0) + row["gt_pixels"]
    total = sum(pixels.values())
    return {class_id for class_id, count in pixels.items() if class_id and 0 < count < _RARE * total}


def _over_folds(rows: Rows, metric: str) -> dict[str, Any]:
    """Mean over folds of their slides' mean; the interval resamples patients."""
    defined = [row for row in rows if row.get(metric) is not None]
    if not defined:
        return {}
    patients, at = np.unique([str(row["patient_id"]) for row in defined], return_inverse=True)
    folds, of = np.unique([row["fold"] for row in defined], return_inverse=True)
    sums, counts = np.zeros((patients.size, folds.size)), np.zeros((patients.size, folds.size))
    np.add.at(sums, (at, of), [row[metric] for row in defined])
    np.add.at(counts, (at, of), 1.0)
    means = sums.sum(axis=0) / counts.sum(axis=0)
    line: dict[str, Any] = {
        "mean": float(means.mean()),
        "std": float(means.std(ddof=1)) if folds.size > 1 else None,
        "n_slides": len({row["slide_id"] for row in defined}),
        "n_patients": patients.size,
        "n_folds": folds.size,
    }
    if patients.size > 1:
        drawn = draws(patients.size)
        weights = drawn @ counts
        there = weights > 0
        fold_means = np.divide(drawn @ sums, weights, out=np.zeros(weights.shape), where=there)
        resampled = fold_means.sum(axis=1) / there.sum(axis=1)
        line["ci_low"], line["ci_high"] = percentiles(resampled[:, None])[:, 0].tolist()
    return line


def _difference(
    pairs: Mapping[tuple[str, str, str], Mapping[str, Any]], against: str, experiment: str, metric: str
) -> dict[str, Any]:
    """Ours less ours of the other, whichever way round the pair was worked."""
    if row := pairs.get((against, experiment, metric)):
        ends = [row["difference"], row["ci_low"], row["ci_high"]]
    elif row := pairs.get((experiment, against, metric)):
        ends = [None if row[name] is None else -row[name] for name in ("difference", "ci_high", "ci_low")]
    else:
        return {}
    named = zip(("difference", "difference_low", "difference_high"), ends, strict=True)
    return dict(named) | {"p_value": row["p_value"], "n_paired": row["n_patients"] or None}
