"""What exports read of a cell table."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slideloom.errors import SlideloomError
from slideloom.instances.exports.cell_file import CellFile, safe_names


def test_it_knows_classes_and_markers(made: Callable[..., Any]) -> None:
    source = CellFile.open(made(4).cells_path)
    assert (source.n, source.slide_id) == (4, "s-1")
    assert source.class_names == ("background", "T cell", "tumour/µ")
    assert source.markers == ("DNA", "CD3", "HLA-DR/β 2")
    frame = pd.read_parquet(source.place)
    assert {*source.probability_columns, *source.mean_columns} <= set(frame.columns)
    np.testing.assert_array_equal(source.column("mean_CD3"), frame["mean_CD3"])
    assert np.isnan(source.column("mean_CD3")[0]), "no tile covers it"


def test_pieces_make_up_the_table(made: Callable[..., Any]) -> None:
    source = CellFile.open(made(11).cells_path)
    parts = [batch.column("cell_id").to_pylist() for batch in source.batches(["cell_id"], 4)]
    assert [len(part) for part in parts] == [4, 4, 3]
    assert [number for part in parts for number in part] == list(range(1, 12))


def test_heads_and_markers_may_be_missing(made: Callable[..., Any]) -> None:
    source = CellFile.open(made(2, heads=False, sp=False).cells_path)
    assert source.class_names == source.markers == source.probability_columns == ()


def test_another_table_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"cell_id": [1]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(SlideloomError) as caught:
        CellFile.open(tmp_path / "x.parquet")
    assert caught.value.code == "table_schema"


@given(st.lists(st.text(string.ascii_letters + string.digits + "_-. /µ", min_size=1, max_size=4), max_size=12))
def test_safe_names_are_safe_and_differ(names: list[str]) -> None:
    safe = safe_names(names)
    assert len({name.lower() for name in safe}) == len(names)
    assert all(letter.isalnum() or letter in "_-." for name in safe for letter in name)
    distinct = len({name.lower() for name in names}) == len(names)
    if distinct and all(letter.isalnum() for name in names for letter in name):
        assert safe == names
