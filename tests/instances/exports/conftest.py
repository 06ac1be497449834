"""Cell tables and label images to export, and the real readers that open what was exported."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from numpy.typing import NDArray

from slideloom.artefacts.tables import METADATA_KEY, check_table
from slideloom.instances.cells import CELLS
from slideloom.instances.labels import write_labels
from slideloom.slides.facts import ImageFacts, SlideFacts
from slideloom.slides.image import Level
from slideloom.slides.tables import Channel, ClassTable

REPOSITORY = Path(__file__).resolve().parents[3]
READERS = REPOSITORY / ".venv-readers" / "bin" / "python"
SCALE, MPP_UM = 2.0, 0.25
CLASSES = ClassTable((1, 2), ("T cell", "tumour/µ"), ((255, 0, 10), (0, 255, 0)))
CHANNELS = (Channel("DAPI-01", "DNA"), Channel("CD3e", "CD3"), Channel("x", "HLA-DR/β 2"))


@dataclass(frozen=True)
class Exported:
    """What an export is made from."""

    labels_path: Path
    cells_path: Path
    labels: NDArray[np.uint32]
    facts: SlideFacts


def make(
    folder: Path, n: int, *, heads: bool = True, sp: bool = True, shape: tuple[int, int] = (700, 1300)
) -> Exported:
    """A slide of squares with a hole, the last in two parts; the first was never imaged, the second has no class."""
    labels = np.zeros(shape, np.uint32)
    box = np.zeros((n + 1, 4), np.int64)
    polygon = np.full(n + 1, None, object)
    for number in range(1, n + 1):
        row, column = divmod(number - 1, shape[1] // 12)
        top, left = 10 * row, 12 * column
        parts = [(top, left, top + 7, left + 6)]
        if number == n and n > 2:
            parts.append((top, left + 8, top + 2, left + 10))
        squares = []
        for y0, x0, y1, x1 in parts:
            labels[y0:y1, x0:x1] = number
            squares.append(shapely.box(SCALE * x0, SCALE * y0, SCALE * x1, SCALE * y1, ccw=True))
        hole = shapely.box(SCALE * (left + 2), SCALE * (top + 2), SCALE * (left + 4), SCALE * (top + 3), ccw=False)
        labels[top + 2 : top + 3, left + 2 : left + 4] = 0
        squares[0] = shapely.Polygon(squares[0].exterior, [hole.exterior])
        polygon[number] = squares[0] if len(squares) == 1 else shapely.MultiPolygon(squares)
        box[number] = (top, left, top + 7, left + 6 if len(squares) == 1 else left + 10)
    made_from = {"slide_id": "s-1", "maps": {"scale": SCALE}}
    cells_path, labels_path = folder / "cells.parquet", folder / "s-1.ome.zarr"
    _write_cells(cells_path, labels, box, polygon, made_from, heads=heads, sp=sp)
    about = {"made_from": made_from}
    write_labels(labels_path, shape, lambda box: labels[box.slices], SCALE * MPP_UM, attributes=about)
    lv0 = (round(shape[0] * SCALE), round(shape[1] * SCALE))
    image = ImageFacts(
        source="s.tif",
        reader="test",
        height_px=lv0[0],
        width_px=lv0[1],
        n_channels=len(CHANNELS),
        dtype="uint16",
        mpp_um=MPP_UM,
        mpp_source="sheet",
        levels=(Level(*lv0, 1.0),),
        channels=CHANNELS,
        is_rgb=False,
    )
    return Exported(labels_path, cells_path, labels, SlideFacts("s-1", {"sp": image}))


def _write_cells(
    place: Path,
    labels: NDArray[np.uint32],
    box: NDArray[np.int64],
    polygon: NDArray[Any],
    made_from: dict[str, Any],
    *,
    heads: bool,
    sp: bool,
) -> None:
    """A cell table by its schema alone, whatever writes the real ones."""
    n = len(polygon) - 1
    rng = np.random.default_rng(n)
    ids = np.arange(1, n + 1)
    area = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    x, y = (np.bincount(labels.ravel(), at.ravel(), n + 1)[1:] / area + 0.5 for at in np.indices(labels.shape)[::-1])
    top, left, bottom, right = box[1:].T * SCALE
    names = ["background", *CLASSES.names]
    share = rng.dirichlet(np.ones(len(names)), n)
    share[1:2] = [1, 0, 0]
    class_id = share.argmax(axis=1)
    columns: dict[str, Any] = {
        "slide_id": pa.array(["s-1"] * n, pa.string()).dictionary_encode(),
        "cell_id": ids,
        **{"x_px": x * SCALE, "y_px": y * SCALE, "x_um": x * SCALE * MPP_UM, "y_um": y * SCALE * MPP_UM},
        **{"bbox_xmin_px": left, "bbox_ymin_px": top, "bbox_xmax_px": right, "bbox_ymax_px": bottom},
        **{"area_px": area, "area_um2": area * (SCALE * MPP_UM) ** 2, "nucleus_probability": rng.uniform(size=n)},
        "geometry": pa.array(shapely.to_wkb(polygon[1:]), pa.binary()),
    }
    if heads:
        columns |= {"class_id": class_id, "class_probability": share.max(axis=1)}
        columns["class_name"] = pa.array(np.array(names, object)[class_id], pa.string()).dictionary_encode()
        columns |= {f"probability_{name}": share[:, number] for number, name in enumerate(names) if number}
    if sp:
        means = np.where(ids == 1, np.nan, rng.uniform(0, 1e5, (len(CHANNELS), n)))
        columns |= {f"mean_{channel.marker}": row for channel, row in zip(CHANNELS, means, strict=True)}
    arrow = CELLS.arrow([name for name in columns if name not in CELLS.names])
    arrays = [
        pa.array(columns[about.name], from_pandas=True).cast(about.type)
        if about.name in columns
        else pa.nulls(n, about.type)
        for about in arrow
    ]
    about = {"schema": CELLS.name, "schema_version": CELLS.version, "made_from": made_from}
    kinds = sorted(set(shapely.get_type_id(polygon[1:]).tolist()))
    geometry = {"encoding": "WKB", "crs": None, "geometry_types": [{3: "Polygon", 6: "MultiPolygon"}[k] for k in kinds]}
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    table = pa.Table.from_arrays(arrays, schema=arrow)
    check_table(CELLS, table)
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(about), "geo": json.dumps(geo)})
    pq.write_table(table, place, row_group_size=8)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Exported]:
    return lambda n, **options: make(tmp_path, n, **options)


@pytest.fixture
def made_in() -> Callable[..., Exported]:
    return make


@pytest.fixture(scope="session")
def classes() -> ClassTable:
    return CLASSES


@pytest.fixture(scope="session")
def seen_by() -> Callable[..., list[dict[str, Any]]]:
    """What a program of tests/readers saw in some files, opened with the real libraries in one process."""
    if not READERS.exists():
        pytest.skip("no .venv-readers: run make readers")

    def see(program: str, *places: Path) -> list[dict[str, Any]]:
        script = REPOSITORY / "tests" / "readers" / f"read_{program}.py"
        done = subprocess.run([READERS, script, *places], capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return found

    return see
