"""InstanSeg's maps to nuclei: the package against the same rules written with whole arrays of windows.

Both take the same five maps of one tile, 1024 × 1024 pixels with some 1800 nuclei, to a label image, with the published
models' constants and clean-up.

* ``windows``: every seed's window cut from the maps, the classifier on all of them at once, pieces and holes found by
  3 × 3 maximum filters until nothing changes, pixels given away by sorting, overlaps counted as a sparse product.
  PyTorch and SciPy.
* ``slideloom``: only pixels that a seed can walk to are classified; fills are queues; overlaps are counted on runs.

CPU seconds in one thread, the least of several rounds that take turns, compiled code loaded before. ``F1`` says how
many nuclei of the two agree at an IoU above 0.5, ``equal`` how many pixels have the same nucleus. The lines ``slide``
stitch a larger slide, the tile repeated, in windows of 2048 pixels with one and with two threads.

Run: ``python benchmarks/bench_instanseg.py`` (options: ``--help``).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.instances.instanseg import OFFSET_CODES, SEED_CODES, SIGMA_CODES, InstanSegParams, local_maxima
from slideloom.instances.instanseg_classifier import SeedClassifier
from slideloom.instances.instanseg_stitch import segment_arrays, stitch_instanseg
from slideloom.instances.stitch import SlideMaps


def classifier() -> SeedClassifier:
    """A pixel belongs to a seed if their embeddings are near; the first sigma says how near."""
    one = np.array([[1, 0, 0, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, -1, 0, 0], [0, 0, 1, 0]], np.float32)
    two = np.array([[1, 1, 1, 1, 0], [0, 0, 0, 0, 1], *np.zeros((3, 5))], np.float32)
    last = np.array([[-10, 1, 0, 0, 0]], np.float32)
    zeros = np.zeros(5, np.float32)
    return SeedClassifier((one, two, last), (zeros, zeros, np.zeros(1, np.float32)))


def draw(seed: int, side: int, count: int) -> NDArray[np.float32]:
    """Maps (5, side, side) as a trained network gives them: ellipses on a jittered lattice, many of them touching."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((side, side), np.int32)
    per_row = round(count**0.5)
    step = side / per_row
    for number in range(per_row**2):
        y, x = (np.array(divmod(number, per_row)) + 0.5 + rng.uniform(-0.25, 0.25, 2)) * step
        mask = np.zeros_like(labels, np.uint8)
        axes = tuple(round(axis) for axis in rng.uniform(0.3, 0.55, 2) * step)
        cv2.ellipse(mask, (round(x), round(y)), axes, rng.uniform(0, 180), 0, 360, 1, -1)
        labels[(mask > 0) & (labels == 0)] = number + 1
    maps = np.zeros((5, side, side), np.float32)
    edges = np.zeros_like(labels, np.uint8)
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edges[1:] |= labels[1:] != labels[:-1]
    away = cv2.distanceTransform(((labels > 0) & (edges == 0)).astype(np.uint8), cv2.DIST_L2, 5) + (labels > 0)
    flat = labels.ravel()
    most = np.zeros(flat.max() + 1, np.float32)
    np.maximum.at(most, flat, away.ravel())
    area = np.maximum(np.bincount(flat), 1)
    y, x = np.mgrid[:side, :side]
    for row, place in enumerate((x, y)):
        middle = np.bincount(flat, place.ravel()) / area
        wanted = (middle[labels] - place) / 4
        maps[row] = np.where(labels > 0, np.clip(wanted, -4, 4), 0) + rng.normal(0, 0.05, labels.shape)
    maps[2] = np.where(labels > 0, 5, 1) + rng.normal(0, 0.5, labels.shape)
    maps[3] = rng.normal(0, 1, labels.shape)
    maps[4] = np.where(labels > 0, away / np.maximum(most[labels], 1), 0)
    maps[4] = cv2.GaussianBlur(maps[4], (3, 3), 0) + rng.normal(0, 0.01, labels.shape)
    return maps


def encode(maps: NDArray[np.float32]) -> NDArray[np.int16]:
    """Maps as they are kept on disk."""
    codes = np.array([OFFSET_CODES, OFFSET_CODES, SIGMA_CODES, SIGMA_CODES, SEED_CODES])[:, None, None]
    limits = np.array([4, 4, 8, 8, 2])[:, None, None]
    return np.rint(np.clip(maps, -limits, limits) * codes).astype(np.int16)


def windows(maps: NDArray[np.float32], network: SeedClassifier, params: InstanSegParams) -> NDArray[np.int32]:
    """The same rules on an array (seeds, window, window)."""
    height, width = maps.shape[1:]
    seeds = torch.from_numpy(local_maxima(maps[4], params.seed_threshold, params.peak_distance_px))
    side, n = params.side_px((height, width)), len(seeds)
    limits = torch.tensor([height, width]) - side
    starts = torch.minimum((seeds - side // 2).clamp_min(0), limits)
    steps = torch.arange(side)
    rows = (starts[:, :1] + steps)[:, :, None].expand(n, side, side)
    columns = (starts[:, 1:] + steps)[:, None, :].expand(n, side, side)
    field = torch.from_numpy(maps[:4].copy())
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    field[0] += x * params.unit
    field[1] += y * params.unit
    features = field[:, rows, columns]
    features[:2] -= field[:2, seeds[:, 0], seeds[:, 1]][:, :, None, None]
    found = features.flatten(1).T
    for weight, bias in zip(network.weights[:2], network.biases[:2], strict=True):
        found = torch.relu(torch.nn.functional.linear(found, torch.from_numpy(weight), torch.from_numpy(bias)))
    found = torch.nn.functional.linear(found, torch.from_numpy(network.weights[2]), torch.from_numpy(network.biases[2]))
    chance = torch.sigmoid(found).reshape(n, side, side)
    above = chance >= params.mask_threshold
    start = torch.zeros_like(above)
    at = seeds - starts
    start[torch.arange(n), at[:, 0], at[:, 1]] = True
    kept = _grown(start, above)
    near = torch.nn.functional.max_pool2d(kept[:, None].float(), 7, 1, 3)[:, 0] > 0
    hole = ~kept & ~_grown(~near, ~kept)
    chance[~kept] = 0
    chance[hole] = params.mask_threshold
    claimed = kept | hole
    seed, place = torch.nonzero(claimed)[:, 0], (rows * width + columns)[claimed]
    order = torch.argsort(chance[claimed], descending=True, stable=True)
    order = order[torch.argsort(place[order], stable=True)]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = place[order][1:] != place[order][:-1]
    labels = torch.zeros(height * width, dtype=torch.int64)
    labels[place[order][first]] = seed[order][first] + 1
    ones = np.ones(len(seed), np.float32)
    claims = sparse.csr_array((ones, (seed.numpy(), place.numpy())), shape=(n, height * width))
    shared = (claims @ claims.T).tocoo()
    area = claims.sum(axis=1)
    union = area[shared.row] + area[shared.col] - shared.data
    joined = shared.data / union > params.overlap_threshold
    graph = sparse.coo_array((ones[:1].repeat(joined.sum()), (shared.row[joined], shared.col[joined])), shape=(n, n))
    _, part = connected_components(graph, directed=False)
    return _in_order(np.concatenate([[0], part + 1])[labels.numpy()].reshape(height, width))


def _grown(start: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """What is reached from a start, diagonally too."""
    while True:
        wider = (torch.nn.functional.max_pool2d(start[:, None].float(), 3, 1, 1)[:, 0] > 0) & inside
        if torch.equal(wider, start):
            return start
        start = wider


def _in_order(labels: NDArray[Any]) -> NDArray[np.int32]:
    """Labels numbered by their first pixels."""
    values, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    number = np.zeros(len(values), np.int32)
    order = np.argsort(first)
    order = order[values[order] != 0]
    number[order] = np.arange(1, len(order) + 1)
    return number[inverse].reshape(labels.shape)


def agreement(one: NDArray[np.int32], other: NDArray[np.int32]) -> float:
    """F1 at an IoU above 0.5, where a pair is one to one."""
    both = sparse.coo_array((np.ones(one.size), (one.ravel(), other.ravel()))).tocsr()[1:, 1:].tocoo()
    areas = [np.bincount(labels.ravel())[1:] for labels in (one, other)]
    iou = both.data / (areas[0][both.row] + areas[1][both.col] - both.data)
    return float(2 * (iou > 0.5).sum() / max(one.max() + other.max(), 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="of the tile, pixels")
    parser.add_argument("--count", type=int, default=1800, help="nuclei that are drawn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slide", type=int, default=4096, help="side of the slide for workers; 0: none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network, params = classifier(), InstanSegParams.preset("torchscript")
    maps = draw(1, options.side, options.count)
    ways: dict[str, Callable[[], NDArray[np.int32]]] = {
        "slideloom": lambda: segment_arrays(maps[:2], maps[2:4], maps[4], network, params),
        "windows": lambda: windows(maps, network, params),
    }
    ways["slideloom"]()
    times: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for _ in range(options.rounds):
        for name, way in ways.items():
            before = time.process_time()
            results[name] = way()
            times[name].append(time.process_time() - before)
    best = {name: min(spent) for name, spent in times.items()}
    mine, theirs = results["slideloom"], results["windows"]
    print(
        f"tile side={options.side} nuclei={mine.max()} windows_cpu_s={best['windows']:.3f} "
        f"slideloom_cpu_s={best['slideloom']:.3f} times={best['windows'] / best['slideloom']:.1f} "
        f"F1={agreement(mine, theirs):.4f} equal={(mine == theirs).mean():.6f}",
        flush=True,
    )
    if options.slide:
        repeats = options.slide // options.side
        codes = np.tile(encode(maps), (1, repeats, repeats))
        small = SlideMaps({"instanseg": codes[:, :256, :256].copy()})
        for workers in (1, 2):
            with tempfile.TemporaryDirectory() as folder:  # compiles what is compiled
                stitch_instanseg(small, params, network, Path(folder), window_px=128)
            with tempfile.TemporaryDirectory() as folder:
                wall, cpu = time.perf_counter(), time.process_time()
                slide = SlideMaps({"instanseg": codes})
                found = stitch_instanseg(slide, params, network, Path(folder), workers=workers)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(
                f"slide side={codes.shape[1]} nuclei={found.n} workers={workers} wall_s={wall:.2f} "
                f"cpu_s_per_mpx={cpu / codes[0].size * 1e6:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
