"""Files for other programs from the cell table of a slide: seconds, size and memory of each.

A table of many nuclei with 24 corners and 40 markers is drawn; each export then runs in a process of its own, so that
its peak of resident memory is its own. The SpatialData store copies a small label image.

Run: ``python benchmarks/bench_exports.py [--nuclei 500000]``
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.artefacts.tables import METADATA_KEY
from slideloom.instances.cells import CELLS
from slideloom.instances.exports.anndata import export_anndata
from slideloom.instances.exports.qupath import export_geojson
from slideloom.instances.exports.spatialdata import export_spatialdata
from slideloom.instances.labels import write_labels
from slideloom.slides.tables import ClassTable

NAMES = tuple(f"class {number}" for number in range(1, 6))
CLASSES = ClassTable((1, 2, 3, 4, 5), NAMES, ((200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (9, 9, 9)))
MARKERS = tuple(f"marker {number}" for number in range(40))
MADE_FROM = {"slide_id": "drawn", "maps": {"scale": 1.0}}
EXPORTS = {"geojson": "drawn.geojson.zip", "anndata": "drawn.h5ad", "spatialdata": "drawn.spatialdata.zarr"}
_PART = 50_000


def write_table(place: Path, n: int) -> None:
    """A seeded cell table, as the instances stage writes it."""
    rng = np.random.default_rng(0)
    schema = CELLS.arrow([f"probability_{name}" for name in NAMES] + [f"mean_{name}" for name in MARKERS])
    about = {"schema": CELLS.name, "schema_version": CELLS.version, "made_from": MADE_FROM}
    column = {"encoding": "WKB", "crs": None, "geometry_types": ["Polygon"]}
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    schema = schema.with_metadata({METADATA_KEY: json.dumps(about), "geo": json.dumps(geo)})
    turn = np.linspace(0, 2 * np.pi, 25)[:-1]
    circle = 12 * np.stack([np.cos(turn), np.sin(turn)], axis=-1)
    with pq.ParquetWriter(place, schema, compression="zstd") as writer:
        for start in range(0, n, _PART):
            count = min(_PART, n - start)
            corners = np.round(rng.uniform(0, 40_000, (count, 1, 2)) + circle)
            rings = shapely.linearrings(np.concatenate([corners, corners[:, :1]], axis=1))
            class_id = rng.integers(1, 6, count)
            known: dict[str, Any] = {
                "geometry": pa.array(shapely.to_wkb(shapely.polygons(rings)), pa.binary()),
                "cell_id": pa.array(np.arange(start + 1, start + count + 1)),
                "slide_id": pa.array(["drawn"] * count).dictionary_encode(),
                "class_id": pa.array(class_id.astype(np.uint8)),
                "class_name": pa.DictionaryArray.from_arrays(pa.array((class_id - 1).astype(np.int32)), list(NAMES)),
            }
            arrays = [
                known[field.name]
                if field.name in known
                else pa.array(rng.uniform(0, 1000, count).astype(field.type.to_pandas_dtype()))
                for field in schema
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def export(kind: str, folder: Path) -> str:
    """Run one export; its figures as a line."""
    place, cells = folder / EXPORTS[kind], folder / "cells.parquet"
    wall, cpu = time.perf_counter(), time.process_time()
    if kind == "geojson":
        export_geojson(cells, CLASSES, place)
    elif kind == "anndata":
        export_anndata(cells, CLASSES, place)
    else:
        export_spatialdata(folder / "labels", cells, 0.25, CLASSES, place)
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    size_mb = sum(path.stat().st_size for path in files) / 1e6
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    spent = f"{time.process_time() - cpu:6.1f} s CPU {time.perf_counter() - wall:6.1f} s wall"
    return f"{kind:>12} {spent} {size_mb:7.0f} MB written {peak_mb:6.0f} MB resident at most"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nuclei", type=int, default=50_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        write_table(folder / "cells.parquet", options.nuclei)
        ones = lambda box: np.ones((box.height, box.width), np.uint32)  # noqa: E731
        write_labels(folder / "labels", (600, 600), ones, 0.25, attributes={"made_from": MADE_FROM})
        print(f"{options.nuclei} nuclei, {len(MARKERS)} markers")
        for kind in EXPORTS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(export, (kind, folder)), flush=True)


if __name__ == "__main__":
    main()
