"""Time instance metrics from one contingency table against the same figures from full-image masks.

Run ``python benchmarks/bench_metrics.py`` from the repository; it prints what it measured on this machine, in one run.

1. 1024 × 1024 pixels, 500 nuclei: the contingency table against one mask of the whole image per nucleus, as the
   reference programs of HoVer-Net, PanNuke and CellViT do it. Both give the same PQ and AJI; the ratio is printed.
2. 3000 × 3000 pixels, 10 000 against 10 000 nuclei: all instance figures by the table, seconds and peak memory.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.metrics.contingency import contingency
from slideloom.metrics.panoptic import aji, panoptic, panoptic_at

Labels = NDArray[np.int32]


def nuclei(size: int, count: int, seed: int) -> Labels:
    """Label image of discs on a jittered lattice, a few of them touching."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(count)))
    pitch = size / side
    cells = rng.permutation(side * side)[:count]
    centre_y, centre_x = (cells // side + 0.5) * pitch, (cells % side + 0.5) * pitch
    centre_y, centre_x = centre_y + rng.normal(0, pitch / 10, count), centre_x + rng.normal(0, pitch / 10, count)
    radius = rng.uniform(0.25, 0.5, count) * pitch
    labels = np.zeros((size, size), np.int32)
    for label, (y, x, r) in enumerate(zip(centre_y, centre_x, radius, strict=True), 1):
        top, left = max(0, int(y - r)), max(0, int(x - r))
        yy, xx = np.mgrid[top : min(size, int(y + r) + 2), left : min(size, int(x + r) + 2)]
        inside = (yy - y) ** 2 + (xx - x) ** 2 < r * r
        labels[yy[inside], xx[inside]] = label
    return labels


def sparse(gt: Labels, pred: Labels) -> dict[str, Any]:
    """All instance figures of a slide by the contingency table."""
    table = contingency(gt, pred)
    found = panoptic(table)
    sweep = panoptic_at(table)
    return {"pq": found.pq, "aji": aji(table), "f1_mean": float(np.mean([each.dq or 0 for each in sweep]))}


def full_masks(gt: Labels, pred: Labels) -> dict[str, Any]:
    """PQ and AJI with a mask of the whole image for every nucleus."""
    gt_ids, pred_ids = (np.unique(labels)[np.unique(labels) > 0] for labels in (gt, pred))
    gt_masks, pred_masks = [gt == i for i in gt_ids], [pred == i for i in pred_ids]
    overlap = np.zeros((len(gt_ids), len(pred_ids)))
    union = np.ones_like(overlap)
    at = {int(label): k for k, label in enumerate(pred_ids)}
    for i, mask in enumerate(gt_masks):
        for label in np.unique(pred[mask]):
            if label:
                other = pred_masks[at[int(label)]]
                overlap[i, at[int(label)]] = (mask & other).sum()
                union[i, at[int(label)]] = (mask | other).sum()
    iou = overlap / union
    matched = iou > 0.5
    pq = 2 * iou[matched].sum() / (len(gt_ids) + len(pred_ids))
    best = iou.argmax(axis=1)
    hit = iou[np.arange(len(gt_ids)), best] > 0
    shared = overlap[np.arange(len(gt_ids)), best][hit].sum()
    total = union[np.arange(len(gt_ids)), best][hit].sum() + sum(gt_masks[i].sum() for i in np.flatnonzero(~hit))
    total += sum(pred_masks[j].sum() for j in set(range(len(pred_ids))) - set(best[hit].tolist()))
    return {"pq": float(pq), "aji": float(shared / total)}


def best_of(work: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """Shortest of several runs in seconds, and the result."""
    seconds, result = [], None
    for _ in range(rounds):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of the fast side; the shortest counts")
    rounds = parser.parse_args().rounds
    gt, pred = nuclei(1024, 500, 0), np.roll(nuclei(1024, 500, 0), (2, 3), (0, 1))
    fast, ours = best_of(lambda: sparse(gt, pred), rounds)
    slow, theirs = best_of(lambda: full_masks(gt, pred), 1)
    if abs(ours["pq"] - theirs["pq"]) > 1e-12 or abs(ours["aji"] - theirs["aji"]) > 1e-12:
        raise SystemExit(f"the two formulations disagree: {ours} {theirs}")
    print(
        f"1024 x 1024, 500 nuclei: table {fast * 1e3:.1f} ms, full masks {slow * 1e3:.0f} ms, ratio {slow / fast:.0f}"
    )
    gt, pred = nuclei(3000, 10_000, 1), np.roll(nuclei(3000, 10_000, 1), (3, 4), (0, 1))
    seconds, figures = best_of(lambda: sparse(gt, pred), rounds)
    tracemalloc.start()
    sparse(gt, pred)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    count = np.unique(gt).size - 1
    print(
        f"3000 x 3000, {count} against {count} nuclei: {seconds:.2f} s, peak {peak:.0f} MiB above the images, {figures}"
    )


if __name__ == "__main__":
    main()
