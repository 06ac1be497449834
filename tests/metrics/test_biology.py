"""Biology of a slide against plain loops over its nuclei."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.artefacts.tables import METADATA_KEY, check_table, read_table, table_metadata
from slideloom.errors import SlideloomError
from slideloom.instances.cells import CELLS
from slideloom.metrics.biology import biology_rows, slide_biology
from slideloom.metrics.biology_schemas import BIOLOGY, NEIGHBOURS
from slideloom.metrics.cell_groups import Nuclei
from slideloom.metrics.tissue_area import PredictedTissue

NAMES = ("background", "tumour", "all", "rare")
#: Half of the square in which nuclei lie.
TISSUE = PredictedTissue(0.25, shapely.box(0, 0, 500, 1000))


def nuclei(n: int, seed: int = 0, classes: bool = True) -> Nuclei:
    """Nuclei at random, none of the class rare."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, 1000, (2, n))
    kinds = rng.integers(0, 3, n).astype(np.uint8) if classes else None
    return Nuclei(x, y, rng.uniform(5, 200, n), kinds, NAMES if classes else ())


def stains(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Marker means; the second is known of few nuclei, the third of none."""
    rng = np.random.default_rng(seed + 1)
    some = np.where(rng.random(n) < 0.2, rng.uniform(0, 9, n), np.nan)
    return {"DNA": rng.uniform(0, 1e5, n), "um2": some, "lost": np.full(n, np.nan)}


def write(place: Path, cells: Nuclei, markers: dict[str, np.ndarray], row_group: int, **columns: Any) -> Path:
    """A cell table by its schema, whatever writes the real ones."""
    n = len(cells)
    values: dict[str, Any] = {name: np.zeros(n) for name in CELLS.names} | {
        "slide_id": pa.array(["s-1"] * n, pa.string()).dictionary_encode(),
        "cell_id": np.arange(1, n + 1),
        "x_um": cells.x_um,
        "y_um": cells.y_um,
        "area_um2": cells.area_um2,
        "geometry": pa.array([b""] * n, pa.binary()),
        **{f"mean_{name}": stain for name, stain in markers.items()},
    }
    if cells.class_id is None:
        values |= {name: pa.nulls(n) for name in ("class_id", "class_name", "class_probability")}
    else:
        values |= {"class_id": cells.class_id, "class_name": pa.array(np.array(NAMES, object)[cells.class_id])}
        values |= {f"probability_{name}": np.zeros(n) for name in NAMES[1:]}
    values |= columns
    schema = CELLS.arrow([name for name in values if name not in CELLS.names])
    arrays = [pa.array(values[about.name], from_pandas=True).cast(about.type) for about in schema]
    table = pa.Table.from_arrays(arrays, schema=schema)
    check_table(CELLS, table)
    about = {"schema": CELLS.name, "schema_version": CELLS.version, "made_from": {"slide_id": "s-1", "maps": {"a": 1}}}
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(about)}), place, row_group_size=row_group)
    return place


def by_hand(cells: Nuclei, markers: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The rows, nucleus by nucleus, with sums that do not round."""
    kinds = [None] if cells.class_id is None else [None, *range(len(NAMES))]
    areas = cells.area_um2.tolist()
    rows = []
    for kind in kinds:
        members = [k for k in range(len(cells)) if kind is None or cells.class_id[k] == kind]
        own = [areas[k] for k in members]
        inside = sum(cells.x_um[k] <= 500 for k in members)
        row = {"scope": "class" if kind is not None else "all", "class_id": kind, "n": len(members)}
        row |= {"class_name": "all" if kind is None else NAMES[kind], "n_in_tissue": inside, "tissue_mm2": 0.25}
        row |= {"density_per_mm2": inside * 4, "area_total_um2": math.fsum(own)}
        row["count_fraction"] = len(members) / len(cells) if len(cells) else None
        row["area_fraction"] = math.fsum(own) / math.fsum(areas) if len(cells) else None
        row["area_mean_um2"] = statistics.fmean(own) if own else None
        row["area_median_um2"] = statistics.median(own) if own else None
        row["area_std_um2"] = statistics.stdev(own) if len(own) > 1 else None
        for name, values in markers.items():
            found = [(float(values[k]), areas[k]) for k in members if values[k] == values[k]]
            row[f"mean_{name}"] = statistics.fmean(value for value, _ in found) if found else None
            weighted = (
                math.fsum(value * area for value, area in found) / math.fsum(area for _, area in found) if found else 0
            )
            row[f"weighted_mean_{name}"] = weighted if found else None
        rows.append(row)
    return rows


def alike(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Rows agree: floats but for rounding, all else exactly."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            assert one[name] == (pytest.approx(value, rel=1e-12, abs=0) if isinstance(value, float) else value), name


@pytest.mark.parametrize("classes", [True, False])
@pytest.mark.parametrize("n", [0, 1, 2, 300])
def test_rows_are_those_of_a_plain_loop(n: int, classes: bool) -> None:
    cells, markers = nuclei(n, n, classes), stains(n, n)
    alike(biology_rows(cells, TISSUE, markers.items()), by_hand(cells, markers))


def test_figures_of_a_handful_of_nuclei() -> None:
    cells = Nuclei(
        np.array([10.0, 20.0, 900.0]), np.zeros(3), np.array([10.0, 30.0, 60.0]), np.array([1, 1, 2], np.uint8), NAMES
    )
    rows = {
        row["class_name"] + row["scope"]: row for row in biology_rows(cells, TISSUE, [("A", np.array([4.0, 8, 1]))])
    }
    assert list(rows) == ["allall", "backgroundclass", "tumourclass", "allclass", "rareclass"]
    tumour = rows["tumourclass"]
    assert (tumour["n"], tumour["n_in_tissue"], tumour["density_per_mm2"]) == (2, 2, 8)
    assert (tumour["count_fraction"], tumour["area_fraction"]) == (2 / 3, 0.4)
    assert (tumour["area_mean_um2"], tumour["area_median_um2"], tumour["area_std_um2"]) == (20, 20, math.sqrt(200))
    assert (tumour["mean_A"], tumour["weighted_mean_A"]) == (6, 7)
    # A class that is called all is not taken for all of them, and lies outside the tissue here.
    other = rows["allclass"]
    assert (other["n"], other["n_in_tissue"], other["density_per_mm2"], other["area_std_um2"]) == (1, 0, 0, None)
    assert rows["allall"]["density_per_mm2"] == 8
    rare = rows["rareclass"]
    assert (rare["n"], rare["count_fraction"], rare["area_fraction"], rare["density_per_mm2"]) == (0, 0, 0, 0)
    assert [rare[name] for name in ("area_mean_um2", "area_median_um2", "mean_A", "weighted_mean_A")] == [None] * 4


def test_without_tissue_nothing_has_a_density() -> None:
    unknown = biology_rows(nuclei(20), None)
    assert not [row for row in unknown if {"tissue_mm2", "n_in_tissue", "density_per_mm2"} & row.keys()]
    none = biology_rows(nuclei(20), PredictedTissue(0.0, shapely.box(0, 0, 500, 1000)))
    assert {row["density_per_mm2"] for row in none} == {None}
    assert {row["tissue_mm2"] for row in none} == {0.0}


@given(st.integers(0, 60), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_the_parts_make_the_whole(n: int, seed: int) -> None:
    whole, *parts = biology_rows(nuclei(n, seed), TISSUE, stains(n, seed).items())
    for name in ("n", "n_in_tissue", "area_total_um2", "density_per_mm2"):
        assert sum(row[name] for row in parts) == pytest.approx(whole[name], rel=1e-12)
    for name in ("count_fraction", "area_fraction"):
        assert whole[name] == (1 if n else None)
        assert not n or sum(row[name] for row in parts) == pytest.approx(1, rel=1e-12)
    for by, name in (("n", "mean_DNA"), ("area_total_um2", "weighted_mean_DNA")):
        held = [row for row in parts if row["n"]]
        assert not n or sum(row[by] * row[name] for row in held) == pytest.approx(whole[by] * whole[name], rel=1e-12)


@given(st.integers(2, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_order_and_names_of_classes_play_no_part(n: int, seed: int) -> None:
    cells, values = nuclei(n, seed), stains(n, seed)["DNA"]
    turn = np.random.default_rng(seed).permutation(n)
    assert cells.class_id is not None
    moved = Nuclei(cells.x_um[turn], cells.y_um[turn], cells.area_um2[turn], 3 - cells.class_id[turn], NAMES)
    before = biology_rows(cells, TISSUE, [("A", values)])
    after = biology_rows(moved, TISSUE, [("A", values[turn])])
    for row in (*before, *after):
        del row["class_id"], row["class_name"]
    alike(before, [after[0], *after[:0:-1]])


@pytest.mark.parametrize("n", [0, 257])
def test_tables_are_written_and_do_not_depend_on_row_groups_or_threads(tmp_path: Path, n: int) -> None:
    cells, markers = nuclei(n), stains(n)
    written = []
    for row_group, workers in ((7, 1), (100, 2), (1 << 20, 1)):
        place = tmp_path / f"{row_group}"
        place.mkdir()
        path = write(place / "cells.parquet", cells, markers, row_group)
        slide_biology(path, "sp", TISSUE, place, made_from={"tissue": "d1"}, workers=workers)
        written.append([(place / f"{name}.parquet").read_bytes() for name in ("biology", "neighbours")])
    assert written[0] == written[1] == written[2]
    table = read_table(BIOLOGY, tmp_path / "7" / "biology.parquet")
    assert table_metadata(table)["made_from"] == {"cells": {"slide_id": "s-1", "maps": {"a": 1}}, "tissue": "d1"}
    rows = table.to_pylist()
    assert {(row.pop("slide_id"), row.pop("image")) for row in rows} == {("s-1", "sp")}
    # The cell table has its intensities as float32.
    alike(rows, by_hand(cells, {name: stain.astype(np.float32) for name, stain in markers.items()}))
    pairs = read_table(NEIGHBOURS, tmp_path / "7" / "neighbours.parquet").to_pylist()
    assert [(pair["class_name"], pair["to_class_name"]) for pair in pairs][:4] == [
        ("all", "all"), ("tumour", "tumour"), ("tumour", "all"), ("tumour", "rare")
    ]  # fmt: skip
    assert len(pairs) == 10


def test_without_classes_or_markers_one_row_is_left(tmp_path: Path) -> None:
    path = write(tmp_path / "cells.parquet", nuclei(9, classes=False), {}, 4)
    slide_biology(path, "he", None, tmp_path)
    (row,) = read_table(BIOLOGY, tmp_path / "biology.parquet").to_pylist()
    assert (row["scope"], row["class_id"], row["n"], row["tissue_mm2"], row["n_in_tissue"]) == (
        "all",
        None,
        9,
        None,
        None,
    )
    assert not [name for name in row if name.startswith(("mean_", "weighted_"))]
    assert read_table(NEIGHBOURS, tmp_path / "neighbours.parquet").num_rows == 1


@pytest.mark.parametrize(("kinds", "what"), [([1, 4], "class 4"), ([1, None], "without a class")])
def test_a_class_that_the_table_does_not_name_is_refused(tmp_path: Path, kinds: list[int | None], what: str) -> None:
    path = write(tmp_path / "cells.parquet", nuclei(2), {}, 9, class_id=pa.array(kinds, pa.uint8()))
    with pytest.raises(SlideloomError, match=what) as caught:
        slide_biology(path, "he", None, tmp_path)
    assert caught.value.code == "unknown_class"
    assert "tumour" in caught.value.expected


def test_another_table_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "cells.parquet")
    with pytest.raises(SlideloomError) as caught:
        slide_biology(tmp_path / "cells.parquet", "he", None, tmp_path)
    assert caught.value.code == "table_schema"


def test_every_column_has_a_meaning_and_keys_are_never_null() -> None:
    for schema in (BIOLOGY, NEIGHBOURS):
        assert all(column.meaning.endswith(".") for column in schema.columns)
        assert not [column.name for column in schema.columns if column.name in schema.key and column.null]
        assert set(schema.key) <= set(schema.names)
    # A marker of whatever name lands in an open column.
    assert not [name for name in BIOLOGY.names if BIOLOGY.open_for(name)]
