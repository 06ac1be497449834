"""Tables are what their schema says, or are refused with a reason; what is written reads back the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slideloom._version import __version__
from slideloom.artefacts.tables import (
    Column,
    OpenColumns,
    TableSchema,
    read_table,
    table_metadata,
    write_table,
)
from slideloom.errors import SlideloomError

SCHEMA = TableSchema(
    "animals",
    3,
    "animal",
    ("name",),
    (
        Column("name", pa.string(), "Name."),
        Column("legs", pa.int64(), "Legs."),
        Column("mass_kg", pa.float64(), "Mass.", "it would not stand still", "kg"),
    ),
    (OpenColumns("seen_", pa.float64(), "Times seen, by place.", "never been there"),),
)
ROWS = [{"name": "cat", "legs": 4, "mass_kg": 4.5, "seen_garden": 3.0}, {"legs": 2, "name": "hen"}]


def test_rows_read_back_with_types_units_and_provenance(tmp_path: Path) -> None:
    write_table(SCHEMA, ROWS, tmp_path / "a.parquet", made_from={"farm": "Øst"})
    table = read_table(SCHEMA, tmp_path / "a.parquet")
    assert table.to_pylist()[1] == {"name": "hen", "legs": 2, "mass_kg": None, "seen_garden": None}
    about = table_metadata(table)
    assert about["schema_version"] == 3
    assert about["slideloom_version"] == __version__
    assert about["units"] == {"mass_kg": "kg"}
    assert about["made_from"] == {"farm": "Øst"}
    assert table.schema.field("mass_kg").metadata == {b"meaning": b"Mass.", b"unit": b"kg"}
    assert not table.schema.field("name").nullable
    assert pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0).column(0).compression == "ZSTD"
    frame = pd.read_parquet(tmp_path / "a.parquet")
    assert frame["legs"].dtype == np.int64
    assert frame["mass_kg"].isna().tolist() == [False, True]


def test_equal_tables_are_equal_bytes_and_the_order_of_columns_is_the_schemas(tmp_path: Path) -> None:
    frame = pa.table({"legs": [4, 2], "seen_garden": [3.0, np.nan], "name": ["cat", "hen"], "mass_kg": [4.5, np.nan]})
    write_table(SCHEMA, ROWS, tmp_path / "a.parquet")
    write_table(SCHEMA, frame, tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_no_rows_still_have_columns(tmp_path: Path) -> None:
    table = write_table(SCHEMA, [], tmp_path / "a.parquet")
    assert table.num_rows == 0
    assert read_table(SCHEMA, tmp_path / "a.parquet").column_names == ["name", "legs", "mass_kg"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"name": "cat"}], "legs holds 1 nulls"),
        ([{"name": "cat", "legs": 4, "wings": 0}], "'wings' is not declared"),
        ([{"name": "cat", "legs": "four"}], "column legs"),
        ([{"name": "cat", "legs": 4, "mass_kg": float("inf")}], "NaN or an infinity"),
        ([{"name": "cat", "legs": 4}, {"name": "cat", "legs": 3}], "1 rows repeat a key"),
        ([{"name": "cat", "legs": float("nan")}], "legs holds 1 nulls"),
    ],
)
def test_what_is_not_as_declared_is_refused_and_nothing_is_written(tmp_path: Path, rows: list, said: str) -> None:
    with pytest.raises(SlideloomError, match=said) as caught:
        write_table(SCHEMA, rows, tmp_path / "a.parquet")
    assert caught.value.code == "table_schema"
    assert list(tmp_path.iterdir()) == []


def test_another_schema_is_told_by_name(tmp_path: Path) -> None:
    write_table(SCHEMA, ROWS, tmp_path / "a.parquet")
    newer = TableSchema("animals", 4, "animal", (), SCHEMA.columns)
    with pytest.raises(SlideloomError, match="animals version 3"):
        read_table(newer, tmp_path / "a.parquet")
    pq.write_table(pa.table({"name": ["cat"]}), tmp_path / "b.parquet")
    with pytest.raises(SlideloomError, match="table None"):
        read_table(SCHEMA, tmp_path / "b.parquet")


def test_wrong_types_in_a_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SlideloomError, match="column legs"):
        write_table(SCHEMA, pa.table({"name": ["cat"], "legs": ["x"]}), tmp_path / "a.parquet")
