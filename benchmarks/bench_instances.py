"""Maps to described nuclei: the package against the textbook way that looks for every nucleus in the full image.

Both take the same maps of one 1024 × 1024 tile with 2000 nuclei to instances, areas, centroids, outlines and classes.

* Full masks: the HV watershed as published, then ``labels == id`` over the whole tile for every nucleus, its box from
  that mask, and inside the box a contour, moments and a class vote.
* Slideloom: the spanning forest of the fixed-scale relief, one pass of sums, and outlines chained together.

CPU seconds in one thread, the least of several rounds that take turns, compiled code loaded before. The instances of
the two agree (PQ is printed). A second table shows the fixed scale against the original's extremes on blurred, noisy
maps of nuclei of mixed sizes.

Run: ``python benchmarks/bench_instances.py --tiles <bench_tiles.npz>`` (options: ``--help``). Without the fixture a
tile is drawn.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.config.model import InstancesConfig
from slideloom.instances.measure import measure
from slideloom.instances.parity import parity_watershed
from slideloom.instances.whole import hv_watershed
from slideloom.instances.windows import Box, label_table
from slideloom.metrics.contingency import contingency
from slideloom.metrics.panoptic import panoptic
from slideloom.patches.hv import hv_map

N_CLASSES = 6


def draw(seed: int, side: int, count: int, radius: tuple[float, float]) -> NDArray[np.int32]:
    """Discs on a jittered lattice, many of them touching."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((side, side), np.int32)
    per_row = int(np.sqrt(count))
    step = side / per_row
    for number in range(per_row**2):
        y, x = (np.array(divmod(number, per_row)) + 0.5 + rng.uniform(-0.3, 0.3, 2)) * step
        mask = np.zeros_like(labels, np.uint8)
        cv2.circle(mask, (round(x), round(y)), round(rng.uniform(*radius)), 1, -1)
        labels[(mask > 0) & (labels == 0)] = number + 1
    return labels


def full_masks(binary: NDArray[Any], hv: NDArray[np.float32], types: NDArray[np.uint8]) -> list[tuple[Any, ...]]:
    """Instances and their description: each nucleus's mask and box from the whole tile, then worked on in the box."""
    instances = parity_watershed(binary, hv).instances
    nuclei: list[tuple[Any, ...]] = []
    for number in np.unique(instances)[1:]:
        mask = instances == number
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        crop = mask[box].astype(np.uint8)
        contour = cv2.findContours(crop, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0][0] + (columns[0], rows[0])
        sums = cv2.moments(crop)
        centre = sums["m10"] / sums["m00"] + columns[0], sums["m01"] / sums["m00"] + rows[0]
        votes = np.bincount(types[box][crop > 0])
        nuclei.append((int(sums["m00"]), centre, contour, int(votes.argmax())))
    return nuclei


def slideloom(nucleus: NDArray[np.uint8], hv: NDArray[np.int8], maps: dict[str, NDArray[np.uint8]]) -> Any:
    """The same, as the package does it."""
    labels = hv_watershed(nucleus, hv)
    table = label_table(labels, int(labels.max()), Box(0, 0, *labels.shape), labels.shape[1])
    return measure(labels, {"nucleus": nucleus, **maps}, table, n_classes=N_CLASSES)


def least_cpu(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Least CPU seconds of each way, the ways taking turns."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, work in ways.items():
            start = time.process_time()
            work()
            best[name] = min(best[name], time.process_time() - start)
    return best


def pq(truth: NDArray[Any], found: NDArray[Any]) -> float:
    return float(panoptic(contingency(truth, found)).pq or 0.0)


def compare_scales(seeds: int) -> None:
    """PQ of fixed scales and of the tile's extremes, mean and worst over drawn tiles."""
    print("\nPQ against the truth, 0.5 µm/px, nuclei of 5 and 13 px radius; mean (worst) of", seeds, "tiles")
    print(f"{'blur px':>8} {'noise':>6} {'fixed scale':>18} {'extremes':>18}")
    for blur, noise in ((0.0, 0.0), (1.0, 0.1), (1.0, 0.15), (1.0, 0.2)):
        scores = []
        for seed in range(seeds):
            small, large = draw(seed, 300, 500, (4, 6)), draw(seed + 100, 300, 90, (11, 15))
            truth = np.concatenate([small, np.where(large > 0, large + 10_000, 0)], axis=1)
            rng = np.random.default_rng(seed)
            planes = [*hv_map(truth), (truth > 0).astype(np.float32)]
            for index, plane in enumerate(planes):
                smooth = cv2.GaussianBlur(plane, (0, 0), blur) if blur else plane
                grain = cv2.GaussianBlur(rng.normal(size=truth.shape).astype(np.float32), (0, 0), 2)
                planes[index] = smooth + noise * grain / grain.std()
            hv, probability = np.clip(np.stack(planes[:2]), -1, 1), planes[2]
            ours = hv_watershed(probability, hv, mpp_um=0.5, config=InstancesConfig())
            theirs = parity_watershed(probability >= 0.5, hv.astype(np.float32), magnification=20).instances
            scores.append((pq(truth, ours), pq(truth, theirs)))
        mean, worst = np.mean(scores, axis=0), np.min(scores, axis=0)
        columns = " ".join(f"{mean[k]:>10.3f} ({worst[k]:.3f})" for k in (0, 1))
        print(f"{blur:>8} {noise:>6} {columns}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, help="bench_tiles.npz of the CellViT fixtures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    if options.tiles:
        with np.load(options.tiles) as tiles:
            truth, types = tiles["tile2000/inst"].astype(np.int32), tiles["tile2000/type_map"]
    else:
        truth = draw(0, 1024, 2000, (6, 10))
        types = (truth % (N_CLASSES - 1) + 1).astype(np.uint8) * (truth > 0)
    binary, hv = truth > 0, hv_map(truth)
    nucleus, codes = binary.astype(np.uint8) * 255, np.rint(hv * 127).astype(np.int8)
    maps = {"class_id": types, "class_probability": np.full(types.shape, 200, np.uint8)}
    ways: dict[str, Callable[[], Any]] = {
        "full masks": lambda: full_masks(binary, hv, types),
        "slideloom": lambda: slideloom(nucleus, codes, maps),
    }
    found = {name: work() for name, work in ways.items()}
    agreement = pq(parity_watershed(binary, hv).instances, hv_watershed(nucleus, codes))
    best = least_cpu(ways, options.rounds)
    print(f"{len(np.unique(truth)) - 1} nuclei on {truth.shape[0]} x {truth.shape[1]} px; agreement PQ {agreement:.4f}")
    for name, seconds in best.items():
        count = len(found[name]) if name == "full masks" else len(found[name].area) - 1
        print(f"{name:>12}: {seconds:7.3f} s CPU, {count / seconds:8.0f} nuclei/s, {count} nuclei")
    print(f"ratio {best['full masks'] / best['slideloom']:.1f}")
    compare_scales(options.seeds)


if __name__ == "__main__":
    main()
