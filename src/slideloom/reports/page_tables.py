"""The report tables as the page needs them: rows of the small ones, sums of the large ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from slideloom.artefacts.tables import read_table, table_metadata
from slideloom.reports.schemas import REPORT_TABLES

__all__ = ["PageTables", "read_page_tables", "series_numbers"]

_CONFUSED = ("study", "experiment", "role", "true_class_id", "true_class_name", "pred_class_id", "pred_class_name")


@dataclass(frozen=True)
class PageTables:
    """What the page is made from.

    Attributes
    ----------
    rows : dict of str to list of dict
        Rows of each report table. Of ``confusion`` there is one for each experiment, role and pair of classes, all
        slides summed; ``biology`` has no columns of markers; ``neighbours`` has no rows.
    counts : dict of str to int
        Rows of each table as it lies in its file.
    made_from : dict
        What the tables say they were made from.
    biology, neighbours : pyarrow.Table
        Those tables whole.
    """

    rows: dict[str, list[dict[str, Any]]]
    counts: dict[str, int]
    made_from: dict[str, Any]
    biology: pa.Table
    neighbours: pa.Table


def read_page_tables(tables: Path) -> PageTables:
    """Read the report tables.

    Parameters
    ----------
    tables : Path
        Folder with ``slides.parquet`` and the others.

    Notes
    -----
    A hundred slides of twenty experiments have hundreds of thousands of pairs of classes: those are summed, or kept,
    as columns, and never become rows.
    """
    read = {name: read_table(schema, tables / f"{name}.parquet") for name, schema in REPORT_TABLES.items()}
    short = dict(read)
    short["confusion"] = _summed(read["confusion"], _CONFUSED, ("pixels", "nuclei"))
    short["biology"] = read["biology"].select(list(REPORT_TABLES["biology"].names))
    short["neighbours"] = read["neighbours"].slice(0, 0)
    return PageTables(
        rows={name: table.to_pylist() for name, table in short.items()},
        counts={name: table.num_rows for name, table in read.items()},
        made_from=table_metadata(read["slides"])["made_from"],
        biology=read["biology"],
        neighbours=read["neighbours"],
    )


def _summed(table: pa.Table, keys: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """Sums of columns by keys, in the order of the table; null where all are null."""
    summed = table.group_by(list(keys), use_threads=False).aggregate([(column, "sum") for column in columns])
    names = {f"{column}_sum": column for column in columns}
    return summed.rename_columns([names.get(name, name) for name in summed.column_names])


def series_numbers(rows: dict[str, list[dict[str, Any]]], described: Sequence[str] = ()) -> dict[str, int]:
    """Number of each experiment: those that are described first, then as the tables bring them.

    Parameters
    ----------
    rows : dict of str to list of dict
        Rows of the report tables.
    described : sequence of str
        Experiments of the config, in its order.
    """
    found = (row["experiment"] for table in ("slides", "training", "biology") for row in rows.get(table, ()))
    return {name: number for number, name in enumerate(dict.fromkeys((*described, *found)))}
