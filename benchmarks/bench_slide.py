"""A whole slide from maps to labels and cells: peak memory and time by step.

The maps (``synthetic_slide.py``: noisy, crowded, some 310 nuclei a megapixel) are written first, then a process of its
own makes the label image and the cell table of them, as the workflow does. Its peak resident memory, libraries and
all, is what the system says of it when it has ended. At 40 000 × 40 000 pixels with half a million nuclei it is to stay
under 3 GB.

Run: ``python benchmarks/bench_slide.py --side 40000 --workers 1 2`` (options: ``--help``; 15 GB of disk). The default
is a small slide.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import pyarrow.parquet as pq
from synthetic_slide import CLASSES, facts_of, write_maps

from slideloom.artefacts.keys import digest_tree
from slideloom.artefacts.zarrio import read_attributes
from slideloom.config.model import InstancesConfig
from slideloom.instances.segment import segment_slide

WANTED_GB = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=6000, help="side of the slide, pixels")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--method", default="hv_watershed")
    parser.add_argument("--window", type=int, default=InstancesConfig().window_px)
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the slide")
    parser.add_argument("--maps", type=Path, default=None, help="maps to take, or to write there and keep")
    parser.add_argument("--child", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        logging.basicConfig(level=logging.INFO, format="step %(message)s", stream=sys.stdout)
        _segment(options.maps, options.child, options.method, options.window, options.workers[0])
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        maps = options.maps or Path(name) / "maps.zarr"
        if not maps.exists():
            write_maps(maps, options.side, options.side)
        digests = set()
        for workers in options.workers:
            out = Path(name) / "out"
            command = [sys.executable, __file__, "--child", str(out), "--maps", str(maps), "--workers", str(workers)]
            command += ["--method", options.method, "--window", str(options.window)]
            start = time.perf_counter()
            child = subprocess.Popen(command)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode:
                sys.exit(f"the process ended with {child.returncode}")
            seconds, peak_gb = time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9
            about = read_attributes(maps)
            area = about["height_px"] * about["width_px"] / 1e6
            cpu = usage.ru_utime + usage.ru_stime
            print(
                f"slide mpx={area:.0f} nuclei={pq.read_metadata(out / 'cells.parquet').num_rows} workers={workers} "
                f"wall_s={seconds:.1f} cpu_s={cpu:.1f} cpu_s_per_mpx={cpu / area:.4f} peak_rss_gb={peak_gb:.2f} "
                f"wanted={WANTED_GB:g} {'met' if peak_gb < WANTED_GB else 'MISSED'}",
                flush=True,
            )
            digests.add((digest_tree(out / "labels.ome.zarr"), digest_tree(out / "cells.parquet")))
            shutil.rmtree(out)
    print(f"slide bytes_of_all_runs_equal={len(digests) == 1}")
    if len(digests) != 1:
        sys.exit("the number of workers changed labels or cells")


def _segment(maps: Path, out: Path, method: str, window_px: int, workers: int) -> None:
    about = read_attributes(maps)
    config = InstancesConfig(method=method, window_px=window_px)  # type: ignore[arg-type]
    facts = facts_of(about["height_px"], about["width_px"])
    labels, cells = out / "labels.ome.zarr", out / "cells.parquet"
    segment_slide(maps, config, CLASSES, facts, None, labels, cells, workers=workers)


if __name__ == "__main__":
    main()
