"""Time instance metrics from one contingency table against the same figures from full-image masks.

Run ``python benchmarks/bench_metrics.py`` from the repository; it prints what it measured on this machine, in one run.

1. 1024 × 1024 pixels, 500 nuclei: the contingency table against one mask of the whole image per nucleus, as the
   reference programs of HoVer-Net, PanNuke and CellViT do it. Both give the same PQ and AJI; the ratio is printed.
   Then the table, alone and with every instance figure, against one bare ``np.unique`` over the packed pairs of pixels.
2. 3000 × 3000 pixels, 10 000 against 10 000 nuclei: every instance figure, detection included; seconds and memory.
3. With ``--slide SIDE``: a pair of label images of that side, 500 nuclei per 1024 × 1024 pixels, read from Zarr in a
   process of its own; seconds and the greatest memory of that process. 40000 is a whole slide; it is not the default.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from slideloom.artefacts.zarrio import create_array, open_array
from slideloom.metrics.contingency import contingency
from slideloom.metrics.figures import instance_figures
from slideloom.metrics.panoptic import aji, panoptic

Labels = NDArray[np.int32]
#: Radius of a detection, px.
RADIUS_PX = 12.0
#: Side of the piece that a large slide repeats, px, and nuclei in it.
_PIECE_PX, _PIECE_NUCLEI = 4096, 8000


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
    """PQ and AJI by the contingency table."""
    table = contingency(gt, pred)
    return {"pq": panoptic(table).pq, "aji": aji(table)}


def every_figure(gt: Any, pred: Any) -> dict[str, Any]:
    """All instance figures by the contingency table."""
    return instance_figures(contingency(gt, pred), radius_px=RADIUS_PX)


def unique_pairs(gt: Labels, pred: Labels) -> int:
    """One bare pass of np.unique over the pairs of pixels."""
    keys, _ = np.unique((gt.astype(np.uint64) << np.uint64(32)) | pred.astype(np.uint64), return_counts=True)
    return int(keys.size)


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


def small(rounds: int) -> None:
    """Against full masks and against np.unique."""
    gt, pred = nuclei(1024, 500, 0), np.roll(nuclei(1024, 500, 0), (2, 3), (0, 1))
    every_figure(gt, pred)  # compiled code is made, or loaded, before anything is timed
    fast, ours = best_of(lambda: sparse(gt, pred), rounds)
    bare, _ = best_of(lambda: unique_pairs(gt, pred), rounds)
    table, _ = best_of(lambda: contingency(gt, pred), rounds)
    figures, _ = best_of(lambda: every_figure(gt, pred), rounds)
    slow, theirs = best_of(lambda: full_masks(gt, pred), 1)
    if abs(ours["pq"] - theirs["pq"]) > 1e-12 or abs(ours["aji"] - theirs["aji"]) > 1e-12:
        raise SystemExit(f"the two formulations disagree: {ours} {theirs}")
    print(
        f"1024 x 1024, 500 nuclei: PQ and AJI by table {fast * 1e3:.1f} ms, by full masks {slow * 1e3:.0f} ms, "
        f"ratio {slow / fast:.0f}"
    )
    print(
        f"  np.unique over the pairs {bare * 1e3:.1f} ms; the table {table * 1e3:.1f} ms ({table / bare:.2f} times), "
        f"table and every figure {figures * 1e3:.1f} ms ({figures / bare:.2f} times)"
    )


def medium(rounds: int) -> None:
    """Every figure of 10 000 against 10 000 nuclei."""
    gt, pred = nuclei(3000, 10_000, 1), np.roll(nuclei(3000, 10_000, 1), (3, 4), (0, 1))
    seconds, figures = best_of(lambda: every_figure(gt, pred), rounds)
    start = time.process_time()
    every_figure(gt, pred)
    cpu = time.process_time() - start
    tracemalloc.start()
    every_figure(gt, pred)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    print(
        f"3000 x 3000, {figures['n_gt']} against {figures['n_pred']} nuclei: every figure {seconds:.2f} s "
        f"({cpu:.2f} s CPU), peak {peak:.0f} MiB above the images"
    )
    print("  " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if value is not None))


def write_slide(folder: Path, side: int) -> None:
    """A pair of label images on disk, written piece by piece."""
    piece = nuclei(_PIECE_PX, _PIECE_NUCLEI, 2).astype(np.uint32)
    moved = np.roll(piece, (2, 3), (0, 1))
    for name, labels in (("gt", piece), ("pred", moved)):
        chunk, shard = (512, 512), (_PIECE_PX, _PIECE_PX)
        array = create_array(folder / name, (side, side), np.uint32, chunk=chunk, shard=shard, codec="labels")
        number = 0
        for y in range(0, side, _PIECE_PX):
            for x in range(0, side, _PIECE_PX):
                part = labels[: min(_PIECE_PX, side - y), : min(_PIECE_PX, side - x)]
                numbered = np.where(part > 0, part + np.uint32(number * _PIECE_NUCLEI), np.uint32(0))
                array[y : y + part.shape[0], x : x + part.shape[1]].write(numbered).result()
                number += 1


def score_slide(folder: Path) -> None:
    """Every figure of the pair in a folder, and what it took."""
    start = time.perf_counter()
    figures = every_figure(open_array(folder / "gt"), open_array(folder / "pred"))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    side = open_array(folder / "gt").shape[0]
    print(
        f"{side} x {side} from Zarr, {figures['n_gt']} against {figures['n_pred']} nuclei: {seconds:.1f} s "
        f"({side * side / 1e6 / seconds:.0f} megapixels a second), greatest memory of the process {peak:.2f} GiB"
    )
    print(f"  pq {figures['pq']:.4f}, aji {figures['aji']:.4f}, f1_d {figures['f1_d']:.4f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of the fast side; the shortest counts")
    parser.add_argument("--slide", type=int, metavar="SIDE", help="measure a slide of this side in pixels instead")
    parser.add_argument("--score", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.score:
        score_slide(chosen.score)
    elif chosen.slide:
        with tempfile.TemporaryDirectory() as folder:
            write_slide(Path(folder), chosen.slide)
            subprocess.run([sys.executable, __file__, "--score", folder], check=True)
    else:
        small(chosen.rounds)
        medium(chosen.rounds)


if __name__ == "__main__":
    main()
