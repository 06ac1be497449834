"""Figures by platform, tissue, patient and fold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from slideloom.metrics.schemas import COMPARED
from slideloom.reports.aggregate import rows_by, slide_values
from slideloom.reports.averages import Averages, columns_of
from slideloom.reports.summary_schemas import GROUPS

__all__ = ["GROUPED_BY", "group_table"]

Rows = Sequence[Mapping[str, Any]]

#: What slides are grouped by, and the column that says it.
GROUPED_BY: dict[str, str] = {"platform": "platform", "tissue": "tissue", "patient": "patient_id", "fold": "fold"}
_FIGURES = ("n", "n_patients", "mean", "std", "ci_low", "ci_high")


def group_table(slides: Rows) -> pa.Table:
    """Rows of ``groups.parquet``.

    Parameters
    ----------
    slides : sequence of mapping
        Rows of ``slides.parquet``.

    Returns
    -------
    pyarrow.Table
        One row per experiment, role, group and metric that a slide of the group has; without the study. Groups in
        alphabetical order.
    """
    parts = []
    for (experiment, role), rows in rows_by(slides, "experiment", "role").items():
        about = {"experiment": experiment, "role": role, "random_weights": bool(rows[0]["random_weights"])}
        parts += [_rows(about | {"by": by, "group": group}, found) for by, group, found in _groups(rows)]
    columns = [column for column in GROUPS.columns if column.name != "study"]
    if not parts:
        return pa.table({column.name: pa.array([], column.type) for column in columns})
    return pa.concat_tables(parts).combine_chunks().select([column.name for column in columns])


def _groups(rows: Rows) -> Iterator[tuple[str, str, Averages]]:
    values = columns_of(rows, COMPARED)
    for by, column in GROUPED_BY.items():
        named = np.array([str(row.get(column) or "") for row in rows], np.str_)
        for group in np.unique(named).tolist():
            if group:
                at = np.flatnonzero(named == group).tolist()
                yield by, group, slide_values([rows[k] for k in at], values[at]).over_slides()


def _rows(about: Mapping[str, Any], found: Averages) -> pa.Table:
    """The metrics that have a value, under what they are of."""
    there = np.flatnonzero(found.n > 0)
    columns: dict[str, pa.Array] = {name: pa.repeat(value, there.size) for name, value in about.items()}
    columns["metric"] = pa.array([COMPARED[k] for k in there], pa.string())
    for name in _FIGURES:
        values = getattr(found, name)[there]
        columns[name] = pa.array(values, from_pandas=True)
    return pa.table(columns)
