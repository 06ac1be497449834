"""Score one slide: its maps and labels against its annotation, over the area that was predicted."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.artefacts.tables import write_table
from slideloom.artefacts.zarrio import read_attributes
from slideloom.config.model import EvaluationConfig, Modality
from slideloom.errors import SlideError
from slideloom.metrics.boundary import BoundaryDistances, tolerance_px
from slideloom.metrics.class_figures import class_means, class_rows, nucleus_classes
from slideloom.metrics.contingency import Contingency
from slideloom.metrics.conventions import convention_named
from slideloom.metrics.detail_schemas import CONFUSION, SCORES, TILES
from slideloom.metrics.details import SQUARE_PX, Matches, confusion_rows, score_rows, tile_table
from slideloom.metrics.figures import detected_pairs, instance_figures
from slideloom.metrics.panoptic import Panoptic, matched_pairs
from slideloom.metrics.probability import brier_score, calibration
from slideloom.metrics.scan import SlideMaps, Tally, scan
from slideloom.metrics.schemas import CLASS_METRICS, SLIDE_METRICS
from slideloom.metrics.semantic import PixelConfusion, ScoreHistogram
from slideloom.patches.store import PatchStore
from slideloom.slides.annotations import Annotation, open_annotations
from slideloom.slides.facts import SlideFacts
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import ClassTable

__all__ = ["evaluate_slide"]

_LOG = logging.getLogger(__name__)
#: Score that stands for a probability of one half, rounded up.
_HALF = 128


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
    """Write a slide's ``slide``, ``classes``, ``confusion``, ``scores`` and ``tiles`` tables.

    Only pixels where a tile looked count; a nucleus that reaches beyond them counts with the part inside. Maps,
    labels and annotation are read window by window: memory grows with the number of nuclei, not with the pixels.

    Parameters
    ----------
    maps_path : Path
        Zarr group of the slide's maps. Of ``nucleus``, ``class_id``, ``class_probability`` and ``hv`` any may be
        absent; figures of what is absent are null.
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
        Convention and IoU threshold of matches, radius of detections, tolerance of outlines.
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
        ``maps_shape``: annotation, maps and labels are not of one size. ``binary_labels``: the annotation is a mask or
        a class map, which cannot be scored as instances. ``boundary_tolerance``: the tolerance is too many pixels. And
        those of :func:`~slideloom.slides.annotations.open_annotations` and its windows.

    Notes
    -----
    Definitions stand with the columns in :mod:`slideloom.metrics.schemas`, :mod:`slideloom.metrics.detail_schemas` and
    in ``docs/tables.md``.
    """
    annotation = open_annotations(row, root, facts, image, scale, classes)
    if annotation is None:
        return False
    attributes = read_attributes(maps_path)
    mpp_um = float(attributes["mpp_um"])
    tolerance = _tolerance(config, mpp_um, row.slide_id)
    square_px = SQUARE_PX if patches is None else patches.tile_px
    with annotation:
        tally = scan(SlideMaps(maps_path, labels_path), annotation, mpp_um, tolerance, square_px)
    about = {"slide_id": row.slide_id, "image": image}
    made_from = {
        **about,
        "evaluation": config.model_dump(mode="json"),
        "scale": scale,
        "maps": attributes,  # they name the decoder and the encoder's weights
    }
    first = {
        "n_tiles": None if patches is None else patches.n,
        "area_mm2": tally.n_pixels * mpp_um**2 / 1e6,
        "seam_change_rate": _seam_change_rate(labels_path),
    }
    figures = _write(tally, annotation, classes, config, tolerance, mpp_um, square_px, about, first, place, made_from)
    _LOG.info(
        "%s: %d true and %d predicted nuclei, PQ %s", row.slide_id, figures["n_gt"], figures["n_pred"], figures["pq"]
    )
    return True


def _write(
    tally: Tally,
    annotation: Annotation,
    classes: ClassTable,
    config: EvaluationConfig,
    tolerance: float,
    mpp_um: float,
    square_px: int,
    about: dict[str, str],
    first: dict[str, Any],
    place: Path,
    made_from: dict[str, Any],
) -> dict[str, Any]:
    """From counts to tables; the slide's row is given back."""
    rule, threshold = convention_named(config.convention), config.iou_threshold
    table = Contingency.from_counter(tally.overlap)
    detected = detected_pairs(table, config.detection_radius_um / mpp_um)
    matches = Matches(table, matched_pairs(table, threshold, convention=rule))
    of = nucleus_classes(tally, table, classes, annotation.has_classes)
    per_class = class_rows(tally, table, of, classes, threshold, rule, detected)
    figures = dict.fromkeys(SLIDE_METRICS.names) | about | first
    figures |= instance_figures(table, threshold=threshold, convention=rule, detected=detected)
    figures["bpq"] = figures["pq"] if of.pred is None else _typed(matches, of.pred > 0).pq
    figures |= _pixel_figures(tally, table) | class_means(tally, of, per_class, rule)
    figures |= _outline_figures(tally.outlines, tolerance)
    write_table(CLASS_METRICS, [about | line for line in per_class], place / "classes.parquet", made_from=made_from)
    confusion = [about | line for line in confusion_rows(tally, matches, of, classes)]
    write_table(CONFUSION, confusion, place / "confusion.parquet", made_from=made_from)
    scores = [about | line for line in score_rows(tally, of, classes)]
    write_table(SCORES, scores, place / "scores.parquet", made_from=made_from)
    tiles = tile_table(about, tally, matches, of, annotation.shape, square_px)
    write_table(TILES, tiles, place / "tiles.parquet", made_from=made_from)
    write_table(SLIDE_METRICS, [figures], place / "slide.parquet", made_from=made_from)
    return figures


def _tolerance(config: EvaluationConfig, mpp_um: float, slide_id: str) -> float:
    """The tolerance of outlines in pixels, refused before anything is read when it is too great."""
    tolerance = tolerance_px(config.boundary_tolerance_um, mpp_um)
    try:
        BoundaryDistances(tolerance)
    except ValueError as error:
        raise SlideError(
            f"evaluation.boundary_tolerance_um of {config.boundary_tolerance_um} µm is {tolerance:.1f} px of {mpp_um} "
            "µm",
            where=slide_id,
            expected="32 px at most",
            hint="Lower it, or predict on a grid of larger pixels",
            code="boundary_tolerance",
        ) from error
    return tolerance


def _seam_change_rate(labels_path: Path) -> float | None:
    """What the label image says about a second prediction with shifted tiles; the annotation plays no part in it."""
    measured = read_attributes(labels_path).get("slideloom", {}).get("seam_change") or {}
    rate = measured.get("rate")
    return None if rate is None else float(rate)


def _typed(matches: Matches, typed: NDArray[np.bool_]) -> Panoptic:
    """All truth against the predictions that have a foreground class."""
    kept = typed[matches.pred]
    gt, pred = matches.gt[kept], matches.pred[kept]
    fp, fn = int(typed.sum()) - np.unique(pred).size, matches.table.gt_ids.size - np.unique(gt).size
    return Panoptic(gt.size, fp, fn, math.fsum(matches.table.iou[matches.at[kept]]))


def _pixel_figures(tally: Tally, table: Contingency) -> dict[str, Any]:
    """What is counted in pixels, classes aside: the label image, the nucleus map, the HV maps."""
    gt_pixels, pred_pixels, both = int(table.gt_area.sum()), int(table.pred_area.sum()), table.tp_pixels
    pixels = PixelConfusion(both, pred_pixels - both, gt_pixels - both, tally.n_pixels - gt_pixels - pred_pixels + both)
    figures = {
        "gt_pixels": gt_pixels,
        "pred_pixels": pred_pixels,
        "tp_pixels": both,
        "f1_pixel": pixels.dice,
        "precision_pixel": pixels.precision,
        "recall_pixel": pixels.recall,
        "pixel_accuracy": pixels.accuracy,
    }
    if tally.scores is not None:
        figures |= _score_figures(tally.scores)
    if tally.hv is not None:
        figures |= {"hv_mse": tally.hv.inside.value, "hv_mse_everywhere": tally.hv.everywhere.value}
    return figures


def _score_figures(scores: ScoreHistogram) -> dict[str, Any]:
    binary, bins = scores.confusion(_HALF), calibration(scores)
    return {
        "map": scores.average_precision,
        "pred_pixels_binary": binary.tp + binary.fp,
        "tp_pixels_binary": binary.tp,
        "dice_binary": binary.dice,
        "iou_binary": binary.iou,
        "precision_binary": binary.precision,
        "recall_binary": binary.recall,
        "ece": bins.ece,
        "mce": bins.mce,
        "brier": brier_score(scores),
    }


def _outline_figures(outlines: BoundaryDistances, tolerance: float) -> dict[str, Any]:
    # Distances were counted up to the tolerance; the last entry is all that lie farther.
    return {
        "boundary_f1": outlines.f1(tolerance),
        "boundary_precision": outlines.precision(tolerance),
        "boundary_recall": outlines.recall(tolerance),
        "surface_dice": outlines.surface_dice(tolerance),
        "boundary_gt_pixels": int(outlines.gt.sum()),
        "boundary_pred_pixels": int(outlines.pred.sum()),
        "boundary_gt_near": int(outlines.gt[:-1].sum()),
        "boundary_pred_near": int(outlines.pred[:-1].sum()),
    }
