"""What a megapixel costs from maps to instances, labels and cells, on slides from small to whole; and what threads win.

Maps are noisy and crowded (``synthetic_slide.py``), written to a temporary folder, as the inference lays them out.
Lines:

* ``flat``: CPU and wall seconds a megapixel by the slide's size: ``stitch``, from maps to instances, and ``slide``,
  from maps to the label image and the cell table on disk. One worker; the least of several rounds. ``spread`` is the
  dearest over the cheapest size; flat means 1.2 at most.
* ``workers``: wall seconds with one and with two workers that take turns, the least of several rounds, and how many
  times faster two are; at least 1.7 is wanted, where two cores are free. ``others`` is how many cores other programs
  kept busy meanwhile (Linux): above 0.1 or so the figure says little.

Run: ``python benchmarks/bench_stitch.py`` (options: ``--help``; all sizes: ``--most 1600``, 20 GB of disk).
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from synthetic_slide import CLASSES, facts_of, write_maps

from slideloom.artefacts.zarrio import open_array, read_attributes
from slideloom.config.model import InstancesConfig
from slideloom.instances.finding import choose_method, one_thread_a_worker
from slideloom.instances.segment import segment_slide
from slideloom.instances.stitch import SlideMaps, stitch

SIZES_MPX = (4, 16, 64, 256, 1600)
STEPS = ("stitch", "slide")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=float, default=64, help="largest slide, megapixels")
    parser.add_argument("--method", default="hv_watershed")
    parser.add_argument("--window", type=int, default=InstancesConfig().window_px)
    parser.add_argument("--rounds", type=int, default=3, help="of slides of up to 64 Mpx; larger ones have one")
    parser.add_argument("--workers-at", type=float, default=64, help="size for the comparison of workers, megapixels")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the slides")
    options = parser.parse_args()
    config = InstancesConfig(method=options.method, window_px=options.window)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        maps = _maps(folder, 1)
        for step in STEPS:  # compiles what is compiled
            _run(step, maps, config, folder, 1)
        costs: dict[str, list[tuple[float, float]]] = {step: [] for step in STEPS}
        for size in [size for size in SIZES_MPX if size <= options.most]:
            maps = _maps(folder, size)
            for step in STEPS:
                rounds = [_run(step, maps, config, folder, 1) for _ in range(options.rounds if size <= 64 else 1)]
                area = math.prod(_shape(maps)) / 1e6
                cpu, wall = (min(times) / area for times in zip(*(spent[:2] for spent in rounds), strict=True))
                costs[step].append((cpu, wall))
                print(
                    f"flat step={step} mpx={size} nuclei={rounds[0][2]} cpu_s_per_mpx={cpu:.4f} "
                    f"wall_s_per_mpx={wall:.4f} rounds={len(rounds)}",
                    flush=True,
                )
        for step, found in costs.items():
            for clock, values in zip(("cpu", "wall"), zip(*found, strict=True), strict=True):
                spread = max(values) / min(values)
                print(f"flat step={step} clock={clock} spread={spread:.3f} wanted=1.2 {_verdict(spread <= 1.2)}")
        maps = _maps(folder, options.workers_at)
        for step in STEPS:
            walls: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
            for _ in range(options.rounds):
                for workers, spent in walls.items():
                    before = _busy_s()
                    cpu, wall, _ = _run(step, maps, config, folder, workers)
                    spent.append((wall, (_busy_s() - before - cpu) / wall))
            (one, beside_one), (two, beside_two) = (min(spent) for spent in walls.values())
            print(
                f"workers step={step} mpx={options.workers_at:g} one_s={one:.2f} two_s={two:.2f} "
                f"times={one / two:.2f} wanted=1.7 {_verdict(one / two >= 1.7)} "
                f"others={max(beside_one, beside_two, 0.0):.2f}",
                flush=True,
            )


def _verdict(good: bool) -> str:
    return "met" if good else "MISSED"


def _busy_s() -> float:
    """CPU seconds of all programs since the machine started; NaN where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return math.nan
    user, nice, system, _, _, irq, soft_irq = map(int, stat.read_text().split()[1:8])
    return (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")


def _maps(folder: Path, size_mpx: float) -> Path:
    """Maps of a square slide; those of another size go."""
    place = folder / f"{size_mpx:g}.zarr"
    if not place.exists():
        for other in folder.glob("*.zarr"):
            shutil.rmtree(other)
        side = round(math.sqrt(size_mpx * 1e6))
        write_maps(place, side, side)
    return place


def _shape(maps: Path) -> tuple[int, int]:
    about = read_attributes(maps)
    return about["height_px"], about["width_px"]


def _run(step: str, maps: Path, config: InstancesConfig, folder: Path, workers: int) -> tuple[float, float, int]:
    """CPU and wall seconds, and the number of nuclei."""
    ways: dict[str, Callable[[Path], int]] = {
        "stitch": lambda out: _stitch(maps, config, out, workers),
        "slide": lambda out: _slide(maps, config, out, workers),
    }
    with tempfile.TemporaryDirectory(dir=folder) as out:
        cpu, wall = time.process_time(), time.perf_counter()
        found = ways[step](Path(out))
        return time.process_time() - cpu, time.perf_counter() - wall, found


def _stitch(maps: Path, config: InstancesConfig, out: Path, workers: int) -> int:
    about: dict[str, Any] = read_attributes(maps)
    method = choose_method(config, about["mpp_um"], tuple(about["heads"]))
    arrays = SlideMaps({name: open_array(maps / name) for name in ("nucleus", *method.reads)})
    with one_thread_a_worker():
        return stitch(arrays, method, out, window_px=config.window_px, workers=workers).n


def _slide(maps: Path, config: InstancesConfig, out: Path, workers: int) -> int:
    labels, cells = out / "labels.ome.zarr", out / "cells.parquet"
    return segment_slide(maps, config, CLASSES, facts_of(*_shape(maps)), None, labels, cells, workers=workers)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main()
