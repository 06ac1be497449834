"""Biology of a slide's cell table: seconds and memory, and the neighbours against a search among all pairs.

Run ``python benchmarks/bench_biology.py`` from the repository; it prints what it measured on this machine, in one run.

1. Nearest neighbours of ``--compare`` nuclei of 9 classes: the trees against distances of all pairs, in blocks of
   rows; the figures agree.
2. ``--nuclei`` nuclei of 9 classes with ``--markers`` markers: both tables from Parquet to Parquet, beside one plain
   reading of the same columns. For its memory leave the first part out: ``--compare 0``.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.artefacts.tables import METADATA_KEY
from slideloom.instances.cells import CELLS
from slideloom.metrics.biology import slide_biology
from slideloom.metrics.cell_groups import Nuclei
from slideloom.metrics.neighbours import neighbour_rows
from slideloom.metrics.tissue_area import PredictedTissue

NAMES = ("background", *(f"class {number}" for number in range(1, 10)))
#: Shares of the classes, the background first: from common to rare.
SHARES = np.array([0.01, 0.4, 0.25, 0.12, 0.08, 0.06, 0.04, 0.02, 0.015, 0.005])


def nuclei(n: int, seed: int) -> Nuclei:
    """Nuclei at random, 5000 a mm², in raster order of strips as a cell table has them."""
    rng = np.random.default_rng(seed)
    side_um = float(np.sqrt(n / 5000) * 1000)
    x, y = rng.uniform(0, side_um, (2, n))
    order = np.lexsort((x, y))
    kinds = rng.choice(len(NAMES), n, p=SHARES).astype(np.uint8)
    return Nuclei(x[order], y[order], rng.gamma(6, 8, n), kinds, NAMES)


def write(place: Path, n: int, markers: int) -> None:
    """A cell table with what the figures are made of, 20 000 rows a row group."""
    cells, rng = nuclei(n, 2), np.random.default_rng(1)
    columns: dict[str, Any] = {
        "x_um": cells.x_um,
        "y_um": cells.y_um,
        "area_um2": cells.area_um2,
        "class_id": cells.class_id,
        **{f"probability_{name}": pa.nulls(n, pa.float32()) for name in NAMES[1:]},
    }
    means = {f"mean_M{number}": rng.gamma(2, 500, n).astype(np.float32) for number in range(markers)}
    about = {"schema": CELLS.name, "schema_version": CELLS.version, "made_from": {"slide_id": "s"}}
    table = pa.table(columns | means).replace_schema_metadata({METADATA_KEY: json.dumps(about)})
    pq.write_table(table, place, compression="zstd", row_group_size=20_000)


def all_pairs(cells: Nuclei) -> dict[tuple[int, int], float]:
    """Mean distance from each class to each, from all distances, 500 nuclei at a time."""
    places = np.stack([cells.x_um, cells.y_um], axis=1)
    found: dict[tuple[int, int], float] = {}
    assert cells.class_id is not None
    for one in range(1, len(NAMES)):
        for other in range(1, len(NAMES)):
            points, targets = places[cells.class_id == one], places[cells.class_id == other]
            nearest = []
            for start in range(0, len(points), 500):
                part = points[start : start + 500]
                squares = ((part[:, None] - targets[None]) ** 2).sum(axis=2)
                if one == other:
                    squares[np.arange(len(part)), start + np.arange(len(part))] = np.inf
                nearest.append(np.sqrt(squares.min(axis=1)))
            found[one, other] = float(np.concatenate(nearest).mean())
    return found


def compare(n: int) -> None:
    """Part 1."""
    cells = nuclei(n, 0)
    start = time.perf_counter()
    rows = neighbour_rows(cells)
    own = time.perf_counter() - start
    start = time.perf_counter()
    wanted = all_pairs(cells)
    plain = time.perf_counter() - start
    for row in rows[1:]:
        np.testing.assert_allclose(row["distance_mean_um"], wanted[row["class_id"], row["to_class_id"]], rtol=1e-12)
    print(f"{n} nuclei, neighbours: {own:.2f} s; all pairs {plain:.2f} s: {plain / own:.0f} times; same figures")


def whole(n: int, markers: int, workers: int) -> None:
    """Part 2."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        # By another process, so that this one's highest memory is that of the measured call.
        maker = get_context("spawn").Process(target=write, args=(place / "cells.parquet", n, markers))
        maker.start()
        maker.join()
        side_um = float(np.sqrt(n / 5000) * 1000)
        tissue = PredictedTissue(
            side_um**2 / 1e6 / 2, shapely.Point(side_um / 2, side_um / 2).buffer(side_um / 2.5, 500)
        )
        shapely.prepare(tissue.region)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        slide_biology(place / "cells.parquet", "sp", tissue, place, workers=workers)
        seconds = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        with pq.ParquetFile(place / "cells.parquet") as file:
            for name in ("x_um", "y_um", "area_um2", "class_id", *(f"mean_M{k}" for k in range(markers))):
                file.read([name], use_threads=False)
        reading = time.perf_counter() - start
    print(
        f"{n} nuclei, {markers} markers, {workers} threads: {seconds:.2f} s, of which one plain reading of the columns "
        f"takes {reading:.2f} s; highest memory {after / 1024:.0f} MB, {before / 1024:.0f} MB of them before"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nuclei", type=int, default=500_000)
    parser.add_argument("--markers", type=int, default=40)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--compare", type=int, default=10_000, help="nuclei of the first part; 0: leave it out")
    options = parser.parse_args()
    if options.compare:
        compare(options.compare)
    whole(options.nuclei, options.markers, options.workers)


if __name__ == "__main__":
    main()
