"""An .h5ad file as the anndata package sees it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import h5py
import numpy as np
import pytest

from slideloom.instances.exports import anndata, hierarchy
from slideloom.instances.exports.anndata import export_anndata
from slideloom.slides.tables import ClassTable


def test_anndata_reads_it(
    made: Callable[..., Any], classes: ClassTable, tmp_path: Path, seen_by: Callable[..., Any]
) -> None:
    slide = made(6)
    export_anndata(slide.cells_path, classes, tmp_path / "x.h5ad")
    (seen,) = seen_by("anndata", tmp_path / "x.h5ad")
    cells = geopandas.read_parquet(slide.cells_path)
    assert seen["shape"] == [6, 3]
    assert seen["dtype"] == "float32"
    assert seen["var_names"] == ["DNA", "CD3", "HLA-DR/β 2"]
    assert seen["var_column"] == ["mean_DNA", "mean_CD3", "mean_HLA-DR/β 2"]
    np.testing.assert_array_equal(np.array(seen["X"], np.float32), cells[seen["var_column"]].to_numpy(np.float32))
    assert seen["X"][0] == [None] * 3, "no tile covers it: NaN, not 0"
    assert seen["obs_names"] == [f"s-1-{number}" for number in cells["cell_id"]]
    obs, kinds = seen["obs"], seen["obs_dtypes"]
    assert obs["cell_id"] == cells["cell_id"].tolist()
    assert kinds["cell_id"] == kinds["area_px"] == "int64"
    assert set(obs["slide_id"]) == {"s-1"}
    assert obs["class"] == cells["class_name"].tolist()
    assert kinds["class"] == kinds["slide_id"] == "category"
    assert seen["categories"] == ["background", "T cell", "tumour/µ"]
    assert obs["class_id"] == cells["class_id"].tolist()
    for name in ("area_px", "area_um2", "nucleus_probability", "class_probability"):
        np.testing.assert_array_equal(np.array(obs[name], cells[name].dtype), cells[name])
    np.testing.assert_array_equal(np.array(obs["probability_T_cell"], np.float32), cells["probability_T cell"])
    np.testing.assert_array_equal(np.array(obs["probability_tumour_µ"], np.float32), cells["probability_tumour/µ"])
    np.testing.assert_array_equal(seen["obsm"]["spatial"], cells[["x_um", "y_um"]])
    np.testing.assert_array_equal(seen["obsm"]["spatial_px"], cells[["x_px", "y_px"]])
    assert seen["uns"]["class_colors"] == ["#808080", "#ff000a", "#00ff00"]
    about = seen["uns"]["slideloom"]
    assert about["slide_id"] == "s-1"
    assert about["units"]["area_um2"] == "µm²"
    assert json.loads(about["made_from"]) == {"slide_id": "s-1", "maps": {"scale": 2.0}}


def test_what_is_missing(made_in: Callable[..., Any], tmp_path: Path, seen_by: Callable[..., Any]) -> None:
    cases: list[tuple[int, dict[str, bool], int]] = [
        (0, {}, 3),
        (3, {"sp": False}, 0),
        (2, {"heads": False, "sp": False}, 0),
        (0, {"heads": False, "sp": False}, 0),
    ]
    places = []
    for number, (n, options, _) in enumerate(cases):
        (tmp_path / str(number)).mkdir()
        places.append(tmp_path / f"{number}.h5ad")
        export_anndata(made_in(tmp_path / str(number), n, **options).cells_path, None, places[-1])
    for (n, options, width), seen in zip(cases, seen_by("anndata", *places), strict=True):
        assert seen["shape"] == [n, width]
        assert len(seen["obs_names"]) == len(seen["obsm"]["spatial"]) == n
        assert ("class" in seen["obs"]) == options.get("heads", True) == ("class_colors" in seen["uns"])


def test_pieces_and_hours_change_no_byte(
    made: Callable[..., Any], classes: ClassTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = made(30)
    export_anndata(slide.cells_path, classes, tmp_path / "a.h5ad")
    time.sleep(1.1)  # HDF5 would record whole seconds
    export_anndata(slide.cells_path, classes, tmp_path / "b.h5ad")
    assert (tmp_path / "a.h5ad").read_bytes() == (tmp_path / "b.h5ad").read_bytes()
    monkeypatch.setattr(anndata, "ROWS", 7)
    monkeypatch.setattr(hierarchy, "ROWS", 7)
    export_anndata(slide.cells_path, classes, tmp_path / "c.h5ad")
    with h5py.File(tmp_path / "a.h5ad") as whole, h5py.File(tmp_path / "c.h5ad") as pieces:
        assert pieces["X"].chunks == (7, 3)
        np.testing.assert_array_equal(whole["X"], pieces["X"])


def test_a_failure_leaves_nothing(made: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = made(3)
    monkeypatch.setattr(anndata, "_mapping", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_anndata(slide.cells_path, None, tmp_path / "out" / "x.h5ad")
    assert list((tmp_path / "out").iterdir()) == []
