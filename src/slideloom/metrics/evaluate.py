"""Score one slide: its maps and labels against its annotation, over the area that was predicted."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.artefacts.tables import write_table
from slideloom.artefacts.zarrio import open_array, read_attributes
from slideloom.config.model import EvaluationConfig, Modality
from slideloom.errors import SlideError
from slideloom.instances.labels import open_labels
from slideloom.metrics.contingency import Contingency, PairCounter, blocks, majority
from slideloom.metrics.panoptic import Panoptic, aji, class_panoptic, mean_defined, panoptic, panoptic_at
from slideloom.metrics.schemas import CLASS_METRICS, SLIDE_METRICS
from slideloom.metrics.semantic import UNKNOWN, ClassConfusion, HvError, PixelConfusion, ScoreHistogram
from slideloom.patches.hv import hv_map_int8
from slideloom.patches.store import PatchStore
from slideloom.slides.annotations import slide_annotations
from slideloom.slides.facts import SlideFacts
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import ClassTable

__all__ = ["evaluate_slide"]

_LOG = logging.getLogger(__name__)
#: Side of the blocks that are read at a time; bounds memory, changes no figure.
_BLOCK_PX = 2048


@dataclass
class _Tally:
    """All that one pass over a slide's pixels gathers."""

    overlap: PairCounter = field(default_factory=PairCounter)
    gt_classes: PairCounter = field(default_factory=PairCounter)
    pred_classes: PairCounter = field(default_factory=PairCounter)
    scores: ScoreHistogram = field(default_factory=ScoreHistogram)
    classes: ClassConfusion = field(default_factory=ClassConfusion)
    gt_pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    hv: HvError = field(default_factory=HvError)
    n_pixels: int = 0


def evaluate_slide(
    maps_path: Path,
    labels_path: Path,
    row: SlideRow,
    root: Path,
    facts: SlideFacts,
    image: Modality,
    scale: float,
    classes: ClassTable,
    config: EvaluationConfig,
    patches: PatchStore | None,
    place: Path,
) -> bool:
    """Write a slide's ``slide.parquet`` and ``classes.parquet``.

    Only pixels where a tile looked count; a nucleus that reaches beyond them counts with the part inside.

    Parameters
    ----------
    maps_path : Path
        Zarr group of the slide's maps.
    labels_path : Path
        OME-Zarr label image of the slide's nuclei; its attributes tell how many of them tile seams change.
    row, root, facts
        The slide's sheet row, the folder its paths start from, and its facts.
    image : {"he", "sp"}
        The image that was predicted.
    scale : float
        Level-0 pixels per pixel of the maps.
    classes : ClassTable
        Nuclear classes.
    config : EvaluationConfig
        IoU threshold.
    patches : PatchStore or None
        The slide's tiles; ``None`` when it was predicted without storing them.
    place : Path
        Folder to write to.

    Returns
    -------
    bool
        ``False``: the slide has no annotation, and nothing was written.

    Raises
    ------
    SlideError
        ``maps_shape``: annotation, maps and labels are not of one size.

    Notes
    -----
    Definitions stand with the columns in :mod:`slideloom.metrics.schemas` and in ``docs/tables.md``.
    """
    annotation = slide_annotations(row, root, facts, image, scale, classes)
    if annotation is None:
        return False
    instances, class_map = annotation
    attributes = read_attributes(maps_path)
    tally = _scan(maps_path, labels_path, instances, class_map, row.slide_id)
    table = Contingency.from_counter(tally.overlap)
    gt_class = majority(*tally.gt_classes.pairs(), table.gt_ids)
    has_classes = (maps_path / "class_id").is_dir()
    pred_class = _predicted_class(tally.pred_classes, table.pred_ids) if has_classes else None
    known = bool(np.isin(gt_class, list(classes.ids)).any()) or (not table.gt_ids.size and bool(row.classes))

    of_slide = {"slide_id": row.slide_id, "image": image}
    per_class = _class_rows(tally, table, gt_class, pred_class, known, classes, config.iou_threshold)
    n_tiles = patches.n if patches is not None else None
    area_mm2 = tally.n_pixels * float(attributes["mpp_um"]) ** 2 / 1e6
    figures = {
        "n_tiles": n_tiles,
        "area_mm2": area_mm2,
        **_slide_figures(tally, table, pred_class, config.iou_threshold),
        "seam_change_rate": _seam_change_rate(labels_path),
    }
    if known and has_classes:
        present = [line for line in per_class if line["class_id"] != 0]
        figures["mpq"] = mean_defined([line["pq"] for line in present if line["n_gt"]])
        figures["dice_macro"] = mean_defined([line["dice"] for line in present])
        figures["dice_macro_with_background"] = mean_defined([line["dice"] for line in per_class])
    made_from = {
        "slide_id": row.slide_id,
        "image": image,
        "evaluation": config.model_dump(mode="json"),
        "scale": scale,
        "maps": attributes,  # they name the decoder and the encoder's weights
    }
    write_table(CLASS_METRICS, [of_slide | line for line in per_class], place / "classes.parquet", made_from=made_from)
    write_table(SLIDE_METRICS, [of_slide | figures], place / "slide.parquet", made_from=made_from)
    _LOG.info(
        "%s: %d true and %d predicted nuclei, PQ %s",
        row.slide_id,
        table.gt_ids.size,
        table.pred_ids.size,
        figures["pq"],
    )
    return True


def _scan(
    maps_path: Path, labels_path: Path, instances: NDArray[np.int32], class_map: NDArray[np.uint8], slide_id: str
) -> _Tally:
    covered = open_array(maps_path / "covered")
    arrays = {
        name: open_array(maps_path / name) for name in ("nucleus", "class_id", "hv") if (maps_path / name).is_dir()
    }
    arrays["labels"] = open_labels(labels_path)
    shape = instances.shape
    for name, array in [("covered", covered), *arrays.items()]:
        if tuple(array.shape[-2:]) != shape:
            raise SlideError(
                f"array {name} is {tuple(array.shape[-2:])} pixels, the annotation {shape} (height, width)",
                where=slide_id,
                expected="one size",
                hint="Remove the slide's maps and labels and run again",
                code="maps_shape",
            )
    true_hv = hv_map_int8(instances) if "hv" in arrays else None
    tally = _Tally()
    for window in blocks((shape[0], shape[1]), _BLOCK_PX):
        seen = np.asarray(covered[window]) == 1
        gt, gt_classes = instances[window], class_map[window]
        labels = np.asarray(arrays["labels"][window])
        nucleus = seen & (gt > 0)
        tally.n_pixels += int(seen.sum())
        tally.overlap.add(gt, labels, None if seen.all() else seen)
        tally.gt_classes.add(gt, gt_classes, nucleus)
        tally.gt_pixels += np.bincount(gt_classes[seen], minlength=256)
        tally.scores.add(np.asarray(arrays["nucleus"][window])[seen], gt[seen] > 0)
        if "class_id" in arrays:
            predicted = np.asarray(arrays["class_id"][window])
            tally.classes.add(gt_classes[seen], predicted[seen])
            tally.pred_classes.add(labels, predicted, seen & (labels > 0))
        if true_hv is not None and nucleus.any():
            tally.hv.add(np.asarray(arrays["hv"][:, *window]), true_hv[:, *window], nucleus)
    return tally


def _seam_change_rate(labels_path: Path) -> float | None:
    """What the label image says about a second prediction with shifted tiles; the annotation plays no part in it."""
    measured = read_attributes(labels_path).get("slideloom", {}).get("seam_change") or {}
    rate = measured.get("rate")
    return None if rate is None else float(rate)


def _predicted_class(counter: PairCounter, pred_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Class of each predicted nucleus: the commonest foreground class of its pixels, background if there is none."""
    ids, values, counts = counter.pairs()
    foreground = values > 0
    return majority(ids[foreground], values[foreground], counts[foreground], pred_ids)


def _slide_figures(
    tally: _Tally, table: Contingency, pred_class: NDArray[np.int64] | None, threshold: float
) -> dict[str, Any]:
    matched = panoptic(table, threshold)
    sweep = panoptic_at(table)
    gt_pixels, pred_pixels = int(table.gt_area.sum()), int(table.pred_area.sum())
    both = table.tp_pixels
    pixels = PixelConfusion(both, pred_pixels - both, gt_pixels - both, tally.n_pixels - gt_pixels - pred_pixels + both)
    return {
        "n_gt": int(table.gt_ids.size),
        "n_pred": int(table.pred_ids.size),
        "tp": matched.tp,
        "fp": matched.fp,
        "fn": matched.fn,
        "iou_sum": matched.iou_sum,
        "pq": matched.pq,
        "dq": matched.dq,
        "sq": matched.sq,
        "bpq": matched.pq if pred_class is None else _typed(table, pred_class, threshold).pq,
        "mpq": None,
        "aji": aji(table),
        "f1_50": sweep[0].dq,
        "f1_mean": mean_defined([each.dq for each in sweep]),
        "sq_mean": mean_defined([each.sq for each in sweep]),
        "precision": matched.precision,
        "recall": matched.recall,
        "gt_pixels": gt_pixels,
        "pred_pixels": pred_pixels,
        "tp_pixels": both,
        "f1_pixel": pixels.dice,
        "precision_pixel": pixels.precision,
        "recall_pixel": pixels.recall,
        "pixel_accuracy": pixels.accuracy,
        "map": tally.scores.average_precision,
        "dice_binary": tally.scores.confusion(128).dice,
        "dice_macro": None,
        "dice_macro_with_background": None,
        "hv_mse": tally.hv.value,
    }


def _typed(table: Contingency, pred_class: NDArray[np.int64], threshold: float) -> Panoptic:
    """All truth against the predictions that have a foreground class."""
    typed = (pred_class > 0).astype(np.int64)
    return class_panoptic(table, np.ones(table.gt_ids.size, np.int64), typed, [1], threshold)[1]


def _class_rows(
    tally: _Tally,
    table: Contingency,
    gt_class: NDArray[np.int64],
    pred_class: NDArray[np.int64] | None,
    known: bool,
    classes: ClassTable,
    threshold: float,
) -> list[dict[str, Any]]:
    counts = tally.classes.known if known else tally.classes.counts
    total = int(counts.sum())
    wanted = list(classes.ids)
    nobody = np.zeros(table.pred_ids.size, np.int64)
    predicted = nobody if pred_class is None else pred_class
    at = {t: class_panoptic(table, gt_class, predicted, wanted, t, unknown=UNKNOWN) for t in {0.5, threshold}}
    known_pixels = int(tally.gt_pixels.sum()) - int(tally.gt_pixels[UNKNOWN])
    lines: list[dict[str, Any]] = []
    for class_id, name in [(0, "background"), *zip(classes.ids, classes.names, strict=True)]:
        line: dict[str, Any] = {"class_id": class_id, "class_name": name}
        if known:
            line["gt_pixels"] = int(tally.gt_pixels[class_id])
            line["gt_fraction"] = line["gt_pixels"] / known_pixels if known_pixels else None
            line["n_gt"] = int((gt_class == class_id).sum()) if class_id else None
        if pred_class is not None:
            line["pred_pixels"] = int(counts[:, class_id].sum())
            line["pred_fraction"] = line["pred_pixels"] / total if total else None
            line["n_pred"] = int((pred_class == class_id).sum()) if class_id else None
        if known and pred_class is not None:
            pixels = tally.classes.of(class_id)
            line["tp_pixels"] = pixels.tp
            line |= {"dice": pixels.dice, "iou": pixels.iou, "precision": pixels.precision, "recall": pixels.recall}
            if class_id:
                found = at[threshold][class_id]
                line |= {"tp": found.tp, "fp": found.fp, "fn": found.fn, "iou_sum": found.iou_sum}
                line |= {"pq": found.pq, "dq": found.dq, "sq": found.sq, "f1": at[0.5][class_id].dq}
        lines.append({column: line.get(column) for column in CLASS_METRICS.names[2:]})
    return lines
