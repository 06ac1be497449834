"""A SpatialData store as the spatialdata package sees it."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import geopandas
import numpy as np

from slideloom.instances.exports.spatialdata import export_spatialdata
from slideloom.slides.tables import ClassTable


def _matrix(factor: float) -> list[list[float]]:
    return np.diag([factor, factor, 1.0]).tolist()


CASES: list[tuple[int, dict[str, Any]]] = [(6, {}), (1, {"sp": False}), (3, {"shape": (200, 300), "heads": False})]


def test_spatialdata_reads_it(
    made_in: Callable[..., Any], classes: ClassTable, tmp_path: Path, seen_by: Callable[..., Any]
) -> None:
    slides, places = [], []
    for n, options in [*CASES, (0, {})]:
        (tmp_path / str(n)).mkdir()
        slides.append(made_in(tmp_path / str(n), n, **options))
        places.append(tmp_path / f"{n}.spatialdata.zarr")
        export_spatialdata(slides[-1].labels_path, slides[-1].cells_path, 0.25, classes, places[-1])
    *seen_with, empty = seen_by("spatialdata", *places)
    for slide, seen in zip(slides[:-1], seen_with, strict=True):
        cells = geopandas.read_parquet(slide.cells_path)
        assert seen["elements"] == ["labels/nuclei_labels", "shapes/nuclei", "tables/table"]
        assert seen["warnings"] == []
        assert seen["systems"] == ["global", "micrometers"]
        assert seen["labels"] == {"global": _matrix(2.0), "micrometers": _matrix(0.5)}, (
            "grid pixels to level-0 pixels, µm"
        )
        assert seen["shapes"] == {"global": _matrix(1.0), "micrometers": _matrix(0.25)}
        assert seen["dtype"] == "uint32"
        pyramid = [slide.labels]
        while max(pyramid[-1].shape) >= 512:
            pyramid.append(pyramid[-1][::2, ::2])
        assert seen["levels"] == [sha256(np.ascontiguousarray(level).tobytes()).hexdigest() for level in pyramid]
        ids = cells["cell_id"].tolist()
        assert seen["ids"] == ids == np.unique(slide.labels)[1:].tolist()
        assert seen["joined"] == [ids, ids], "the package finds a row of the table for each outline"
        np.testing.assert_allclose(seen["areas"], cells.geometry.area)
        assert seen["annotates"] == {"region": "nuclei", "region_key": "region", "instance_key": "cell_id"}
        assert seen["table"] == [len(cells), len([name for name in cells if name.startswith("mean_")])]
        assert seen["attrs"] == ["slideloom"]
    assert empty["elements"] == ["labels/nuclei_labels", "tables/table"]
    assert empty["table"] == [0, 3]
    assert empty["annotates"] is None


def test_equal_bytes_and_no_link_to_the_label_image(
    made: Callable[..., Any], classes: ClassTable, tmp_path: Path
) -> None:
    slide = made(40)
    trees = []
    for name in ("a.zarr", "b.zarr"):
        export_spatialdata(slide.labels_path, slide.cells_path, 0.25, classes, tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        assert all(path.stat().st_nlink == 1 for path in files)
        trees.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    assert trees[0] == trees[1]
    before = (slide.labels_path / "0" / "c" / "0" / "0").read_bytes()
    assert (tmp_path / "a.zarr" / "labels" / "nuclei_labels" / "0" / "c" / "0" / "0").read_bytes() == before
