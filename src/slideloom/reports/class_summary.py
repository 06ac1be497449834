"""From the classes of slides to those of experiments: averages with intervals, and pooled figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from slideloom.metrics.conventions import DEFAULT
from slideloom.reports.averages import SlideValues, columns_of
from slideloom.reports.pooled import CLASS_METRICS_OF_COUNTS, MACRO_METRICS_OF_COUNTS, PooledClasses

__all__ = ["CLASS_COMPARED", "summarise_classes"]

#: Figures of a class that experiments are summarised by: columns of ``classes.parquet``.
CLASS_COMPARED = (
    "dice", "iou", "precision", "recall", "ap_won", "gt_fraction", "pred_fraction", "pq", "dq", "sq", "f1",
    "f1_d", "precision_d", "recall_d", "f1_d_hovernet",
)  # fmt: skip
_UNDEFINED: dict[str, Any] = {
    "n": 0, "n_slides": 0, "n_patients": 0, "mean": None, "std": None, "ci_low": None, "ci_high": None,
}  # fmt: skip


def summarise_classes(
    classes: pa.Table, pooled: dict[tuple[int, str], dict[str, Any]] | None = None, convention: str = DEFAULT.name
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Rows of ``experiment_classes.parquet`` of one experiment and role.

    Parameters
    ----------
    classes : pyarrow.Table
        Its rows of ``classes.parquet``.
    pooled : dict, optional
        Pooled figures that these rows do not tell, by class and metric.
    convention : str
        How instances matched (``evaluation.convention``).

    Returns
    -------
    rows : list of dict
        One per class, metric and averaging; without study, experiment and role.
    over_classes : dict of str to dict
        Pooled means over classes, by column of ``slides.parquet``, for
        :func:`~slideloom.reports.aggregate.summarise_experiments`.
    """
    if not classes.num_rows:
        return [], {}
    ids, values = _by_class(classes)
    names = dict(zip(classes["class_id"].to_pylist(), classes["class_name"].to_pylist(), strict=True))
    averagings = {"slide": values.over_slides(), "patient": values.over_patients()}
    if pc.count_distinct(classes["fold"]).as_py() > 1:
        averagings["fold"] = values.over_folds()
    counts = PooledClasses(classes, convention)
    rows = []
    for c, class_id in enumerate(ids):
        about = {"class_id": class_id, "class_name": names[class_id]}
        for m, metric in enumerate(CLASS_COMPARED):
            own = about | {"metric": metric}
            k = c * len(CLASS_COMPARED) + m
            rows += [own | {"averaging": averaging, **found.row(k)} for averaging, found in averagings.items()]
            if metric in CLASS_METRICS_OF_COUNTS:
                rows.append(own | {"averaging": "pooled", **_line(counts.figure(metric, class_id))})
            elif (class_id, metric) in (pooled or {}):
                rows.append(own | {"averaging": "pooled", **(pooled or {})[class_id, metric]})
    return rows, {metric: _line(counts.figure(metric, None)) for metric in MACRO_METRICS_OF_COUNTS}


def _line(figure: dict[str, Any]) -> dict[str, Any]:
    """A pooled figure as columns of a report table."""
    line = _UNDEFINED | {name: value for name, value in figure.items() if name in _UNDEFINED}
    return line | {"n": line["n_slides"]}


def _by_class(classes: pa.Table) -> tuple[list[int], SlideValues]:
    """Classes, and the figures of each slide, one after another: (slides, classes · metrics)."""
    ids, of_class = np.unique(classes["class_id"].to_numpy(), return_inverse=True)
    whose = [(str(row["slide_id"]), str(row["fold"])) for row in classes.select(["slide_id", "fold"]).to_pylist()]
    at = {key: number for number, key in enumerate(dict.fromkeys(whose))}
    values = np.full((len(at), ids.size, len(CLASS_COMPARED)), np.nan)
    row_of = np.array([at[key] for key in whose], np.intp)
    values[row_of, of_class] = columns_of(classes, CLASS_COMPARED)
    patients = dict(zip(classes["slide_id"].to_pylist(), classes["patient_id"].to_pylist(), strict=True))
    slides = [slide for slide, _ in at]
    return [int(one) for one in ids], SlideValues(
        slides, [str(patients[slide]) for slide in slides], [fold for _, fold in at], values.reshape(len(at), -1)
    )
