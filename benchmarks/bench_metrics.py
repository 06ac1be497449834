"""Time instance metrics from one contingency table against the same figures from full-image masks.

Run ``python benchmarks/bench_metrics.py`` from the repository; it prints what it measured on this machine, in one run.

1. 1024 × 1024 pixels, 500 nuclei: the contingency table against one mask of the whole image per nucleus, as the
   reference programs of HoVer-Net, PanNuke and CellViT do it. Both give the same PQ and AJI; the ratio is printed.
   Then the table, alone and with every instance figure, against one bare ``np.unique`` over the packed pairs of pixels.
2. 3000 × 3000 pixels, 10 000 against 10 000 nuclei: every instance figure, detection included; seconds and memory.
3. With ``--slide SIDE``: all five tables of a slide of that side, 500 nuclei per 1024 × 1024 pixels, from its maps
   (nucleus, classes and their probability, HV), labels and annotation in Zarr, in a process of its own; seconds, and
   the greatest memory of that process. 40000 is a whole slide: some minutes and 3 GB of disk; it is not the default.
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

from slideloom.artefacts.tables import read_table
from slideloom.artefacts.zarrio import create_array, create_group
from slideloom.config.model import EvaluationConfig
from slideloom.metrics.contingency import contingency
from slideloom.metrics.evaluate import evaluate_slide
from slideloom.metrics.figures import detected_pairs, instance_figures
from slideloom.metrics.panoptic import aji, panoptic
from slideloom.metrics.schemas import SLIDE_METRICS
from slideloom.patches.hv import hv_map_int8
from slideloom.slides.facts import ImageFacts, SlideFacts
from slideloom.slides.image import Level
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import ClassTable

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
    table = contingency(gt, pred)
    return instance_figures(table, detected=detected_pairs(table, RADIUS_PX))


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
    """Annotation, labels and maps of a slide on disk, written piece by piece."""
    truth = nuclei(_PIECE_PX, _PIECE_NUCLEI, 2)
    labels = np.roll(truth, (2, 3), (0, 1))
    noise = np.random.default_rng(3).integers(0, 50, truth.shape, dtype=np.uint8)
    pieces: dict[str, NDArray[Any]] = {
        "truth.zarr/instances": truth.astype(np.uint32),
        "truth.zarr/classes": _classes_of(truth, 0),
        "labels.ome.zarr/0": labels.astype(np.uint32),
        "maps.zarr/covered": np.ones(truth.shape, np.uint8),
        "maps.zarr/nucleus": np.where(labels > 0, 200, 10).astype(np.uint8) + noise,
        "maps.zarr/class_id": _classes_of(labels, 1),
        "maps.zarr/class_probability": np.uint8(255) - noise,
        "maps.zarr/hv": hv_map_int8(labels),
    }
    create_group(folder / "truth.zarr", {})
    create_group(folder / "maps.zarr", {"mpp_um": 0.25, "scale": 1.0})
    create_group(folder / "labels.ome.zarr", {"ome": {"multiscales": [{"datasets": [{"path": "0"}]}]}})
    for name, piece in pieces.items():
        lead = piece.shape[:-2]
        inner, rows = (256, 1024) if name.startswith("maps") else (512, _PIECE_PX)  # as our own stages write them
        chunk, shard = (*(1 for _ in lead), inner, inner), (*lead, rows, _PIECE_PX)
        array = create_array(folder / name, (*lead, side, side), piece.dtype, chunk=chunk, shard=shard, codec="labels")
        number = 0
        for y in range(0, side, _PIECE_PX):
            for x in range(0, side, _PIECE_PX):
                part = piece[..., : min(_PIECE_PX, side - y), : min(_PIECE_PX, side - x)]
                if piece.dtype == np.uint32:
                    part = np.where(part > 0, part + np.uint32(number * _PIECE_NUCLEI), np.uint32(0))
                array[..., y : y + part.shape[-2], x : x + part.shape[-1]].write(part).result()
                number += 1


def _classes_of(labels: Labels, every: int) -> NDArray[np.uint8]:
    """Five classes by number; with ``every``, one nucleus in ten gets the next one."""
    numbers = labels + every * (labels % 10 == 0)
    return np.where(labels > 0, numbers % 5 + 1, 0).astype(np.uint8)


def score_slide(folder: Path, side: int) -> None:
    """All tables of the slide in a folder, and what they took."""
    names = ("one", "two", "three", "four", "five")
    classes = ClassTable((1, 2, 3, 4, 5), names, ((0, 0, 0),) * 5, ((),) * 5)
    row = SlideRow("slide", instances="truth.zarr::instances", classes="truth.zarr::classes")
    image = ImageFacts("he.zarr", "zarr", side, side, 3, "uint8", 0.25, "sheet", (Level(side, side, 1.0),), (), True)
    start = time.perf_counter()
    evaluate_slide(
        folder / "maps.zarr",
        folder / "labels.ome.zarr",
        row,
        folder,
        SlideFacts("slide", {"he": image}),
        "he",
        1.0,
        classes,
        EvaluationConfig(),
        None,
        folder / "tables",
    )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures = read_table(SLIDE_METRICS, folder / "tables" / "slide.parquet").to_pylist()[0]
    print(
        f"{side} x {side} from Zarr, {figures['n_gt']} against {figures['n_pred']} nuclei: five tables in "
        f"{seconds:.1f} s ({side * side / 1e6 / seconds:.0f} megapixels a second), greatest memory of the process "
        f"{peak:.2f} GiB"
    )
    shown = ("pq", "mpq", "aji", "f1_d", "dice_macro", "boundary_f1", "hv_mse", "ece")
    print("  " + ", ".join(f"{name} {figures[name]:.4f}" for name in shown))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of the fast side; the shortest counts")
    parser.add_argument("--slide", type=int, metavar="SIDE", help="measure a slide of this side in pixels instead")
    parser.add_argument("--score", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.score:
        score_slide(chosen.score, chosen.slide)
    elif chosen.slide:
        with tempfile.TemporaryDirectory() as folder:
            write_slide(Path(folder), chosen.slide)
            command = [sys.executable, __file__, "--slide", str(chosen.slide), "--score", folder]
            subprocess.run(command, check=True)
    else:
        small(chosen.rounds)
        medium(chosen.rounds)


if __name__ == "__main__":
    main()
