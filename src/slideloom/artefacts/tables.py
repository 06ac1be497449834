"""Parquet tables with a declared schema: names, types, units, meanings, and when a value is null.

A table is written only if it is what its schema says; it carries the schema's version, the units and what it was made
from in the file's metadata. An undefined value is null: NaN becomes null on the way in, an infinity is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slideloom._version import __version__
from slideloom.artefacts.files import publish
from slideloom.errors import SlideloomError

__all__ = ["Column", "OpenColumns", "TableSchema", "check_table", "read_table", "table_metadata", "write_table"]

METADATA_KEY = b"slideloom"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes
    ----------
    name : str
        Its name.
    type : pyarrow.DataType
        Its type.
    meaning : str
        What the value says.
    null : str
        When the value is null; empty: never, and a null is refused.
    unit : str
        Unit; empty for counts, shares, scores and text.
    """

    name: str
    type: pa.DataType
    meaning: str
    null: str = ""
    unit: str = ""


@dataclass(frozen=True)
class OpenColumns:
    """Columns whose names the data decide, all with one prefix and one type.

    Attributes
    ----------
    prefix : str
        Their names start with it.
    type : pyarrow.DataType
        Their type.
    meaning : str
        What they say.
    null : str
        When a value is null.
    """

    prefix: str
    type: pa.DataType
    meaning: str
    null: str


@dataclass(frozen=True)
class TableSchema:
    """What a table holds.

    Attributes
    ----------
    name : str
        Its name.
    version : int
        Raised when a column changes its name, type or meaning; not when one is added.
    row : str
        What one row stands for.
    key : tuple of str
        Columns that together name a row; no two rows share them.
    columns : tuple of Column
        In order.
    open_columns : tuple of OpenColumns
        Further columns, in the order in which the data bring them.
    """

    name: str
    version: int
    row: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    open_columns: tuple[OpenColumns, ...] = field(default=())

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the declared columns."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def _fields(self) -> tuple[pa.Field, ...]:
        return tuple(_field(c.name, c.type, bool(c.null), c.meaning, c.unit) for c in self.columns)

    def open_for(self, name: str) -> OpenColumns | None:
        """The open group that a column name belongs to, if any."""
        return next((group for group in self.open_columns if name.startswith(group.prefix)), None)

    def arrow(self, extra: Sequence[str] = ()) -> pa.Schema:
        """The Arrow schema.

        Parameters
        ----------
        extra : sequence of str
            Open columns to append.

        Returns
        -------
        pyarrow.Schema
            Each field carries its meaning and unit as metadata.
        """
        fields = list(self._fields)
        for name in extra:
            group = self.open_for(name)
            if group is None:
                raise self._error(f"column {name!r} is not declared", f"one of {', '.join(self.names)}")
            fields.append(_field(name, group.type, True, group.meaning, ""))
        return pa.schema(fields)

    def _error(self, what: str, expected: str = "") -> SlideloomError:
        return SlideloomError(what, where=f"table {self.name}", expected=expected, code="table_schema")


def _field(name: str, kind: pa.DataType, nullable: bool, meaning: str, unit: str) -> pa.Field:
    metadata = {"meaning": meaning, **({"unit": unit} if unit else {})}
    return pa.field(name, kind, nullable=nullable, metadata=metadata)


def write_table(
    schema: TableSchema,
    rows: Iterable[Mapping[str, Any]] | pa.Table,
    place: Path,
    *,
    made_from: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Check a table against its schema and write it, whole or not at all.

    Parameters
    ----------
    schema : TableSchema
        What it must be.
    rows : iterable of mapping, or pyarrow.Table
        Rows by column name, or a table with the same columns in any order. A column that may be null can be left out.
    place : Path
        Parquet file, zstd-compressed.
    made_from : mapping, optional
        JSON values that say what the table was made from; kept in the file's metadata.

    Returns
    -------
    pyarrow.Table
        What was written.

    Raises
    ------
    SlideloomError
        Code ``table_schema``: a column is missing, unknown, of another type, null where it may not be, infinite, or two
        rows share a key.
    """
    table = _from_table(schema, rows) if isinstance(rows, pa.Table) else _from_rows(schema, list(rows))
    check_table(schema, table)
    extra = [name for name in table.column_names if name not in schema.names]
    about = {
        "schema": schema.name,
        "schema_version": schema.version,
        "slideloom_version": __version__,
        "units": {column.name: column.unit for column in schema.columns if column.unit},
        "made_from": dict(made_from or {}),
    }
    text = json.dumps(about, sort_keys=True, ensure_ascii=False)
    table = table.cast(schema.arrow(extra)).replace_schema_metadata({METADATA_KEY: text.encode()})
    with publish(place) as draft:
        pq.write_table(table, draft, compression="zstd")
    return table


def read_table(schema: TableSchema, place: Path) -> pa.Table:
    """Read a table and check that it is what its schema says.

    Raises
    ------
    SlideloomError
        Code ``table_schema``, as in :func:`write_table`; or the file was written for another version of the schema.
    """
    # Straight from the file: a dataset would cost more than the reading of the small files that reports gather.
    with pq.ParquetFile(place) as file:
        table = file.read(use_threads=False)
    about = table_metadata(table)
    if about.get("schema") != schema.name or about.get("schema_version") != schema.version:
        found = f"{about.get('schema')} version {about.get('schema_version')}"
        raise SlideloomError(
            f"the file holds table {found}",
            where=str(place),
            expected=f"{schema.name} version {schema.version}",
            hint="Remove it and run the stage that writes it again",
            code="table_schema",
        )
    check_table(schema, table)
    return table


def table_metadata(table: pa.Table) -> dict[str, Any]:
    """What Slideloom wrote into a table's metadata; empty for a table of another program."""
    raw = (table.schema.metadata or {}).get(METADATA_KEY)
    body: dict[str, Any] = json.loads(raw) if raw else {}
    return body


def check_table(schema: TableSchema, table: pa.Table) -> None:
    """Check names, order, types, nulls, finiteness and the key of a table.

    Raises
    ------
    SlideloomError
        Code ``table_schema``.
    """
    known = set(schema.names)
    extra = [name for name in table.column_names if name not in known]
    wanted = schema.arrow(extra)
    if table.column_names != wanted.names:
        missing = [name for name in wanted.names if name not in table.column_names]
        what = f"columns {', '.join(missing)} are missing" if missing else f"column order {table.column_names}"
        raise schema._error(what, ", ".join(wanted.names))
    for about in wanted:
        column = table.column(about.name)
        if column.type != about.type:
            raise schema._error(f"column {about.name} has type {column.type}", str(about.type))
        if not about.nullable and column.null_count:
            raise schema._error(f"column {about.name} holds {column.null_count} nulls", "none")
        if pa.types.is_floating(about.type) and not pc.all(pc.is_finite(column), min_count=0).as_py():
            raise schema._error(f"column {about.name} holds NaN or an infinity", "finite numbers; null where undefined")
    if schema.key and table.num_rows > 1:
        unique = table.select(list(schema.key)).group_by(list(schema.key)).aggregate([]).num_rows
        if unique != table.num_rows:
            raise schema._error(f"{table.num_rows - unique} rows repeat a key", f"unique {', '.join(schema.key)}")


def _from_rows(schema: TableSchema, rows: list[Mapping[str, Any]]) -> pa.Table:
    known = set(schema.names)
    extra = list(dict.fromkeys(name for row in rows for name in row if name not in known))
    wanted = schema.arrow(extra)
    columns = []
    for about in wanted:
        values = [_null_for_nan(row.get(about.name)) for row in rows]
        try:
            columns.append(pa.array(values, type=about.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise schema._error(f"column {about.name}: {error}", str(about.type)) from error
    return pa.table(columns, schema=_lenient(wanted))


def _from_table(schema: TableSchema, table: pa.Table) -> pa.Table:
    extra = [name for name in table.column_names if name not in schema.names]
    wanted = schema.arrow(extra)
    columns = []
    for about in wanted:
        if about.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, about.type))
            continue
        column = table.column(about.name)
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        try:
            columns.append(column.cast(about.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise schema._error(f"column {about.name}: {error}", str(about.type)) from error
    return pa.table(columns, schema=_lenient(wanted))


def _lenient(schema: pa.Schema) -> pa.Schema:
    """The schema with every column nullable: nulls are refused by name later, by :func:`check_table`."""
    return pa.schema([about.with_nullable(True) for about in schema])


def _null_for_nan(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value
