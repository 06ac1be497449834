"""Schemas of the two tables that every evaluated slide leaves: its own figures, and a row a class."""

from __future__ import annotations

import pyarrow as pa

from slideloom.artefacts.tables import Column, TableSchema

__all__ = ["CLASS_FIGURES", "CLASS_METRICS", "SCORES", "SLIDE_FIGURES", "SLIDE_METRICS"]

_TEXT, _COUNT, _REAL = pa.string(), pa.int64(), pa.float64()
_BOTH_EMPTY = "truth and prediction hold no nucleus"
_BOTH_EMPTY_PIXELS = "truth and prediction hold no nucleus pixel"
_NO_CLASSES = "no class of the slide's truth is known, or the decoder has no classes head"

SLIDE_FIGURES: tuple[Column, ...] = (
    Column("n_tiles", _COUNT, "Tiles the slide was cut into.", "the slide was predicted without stored patches"),
    Column("area_mm2", _REAL, "Area that was predicted and scored.", unit="mm²"),
    Column("n_gt", _COUNT, "True nuclei within that area."),
    Column("n_pred", _COUNT, "Predicted nuclei within that area."),
    Column("tp", _COUNT, "Matched pairs: IoU strictly greater than evaluation.iou_threshold, classes aside."),
    Column("fp", _COUNT, "Predicted nuclei without a match."),
    Column("fn", _COUNT, "True nuclei without a match."),
    Column("iou_sum", _REAL, "Sum of the matched pairs' IoU; what pooled PQ and SQ are made from."),
    Column("pq", _REAL, "Panoptic quality, classes aside: iou_sum / (tp + fp/2 + fn/2).", _BOTH_EMPTY),
    Column("dq", _REAL, "Detection quality: tp / (tp + fp/2 + fn/2).", _BOTH_EMPTY),
    Column("sq", _REAL, "Segmentation quality: mean IoU of the matched pairs.", "nothing matched"),
    Column(
        "bpq",
        _REAL,
        "Binary PQ in PanNuke's sense: as pq, but predicted nuclei whose class is background do not count. Equal to pq "
        "when the decoder has no classes head.",
        "truth holds no nucleus and prediction none with a class",
    ),
    Column(
        "mpq",
        _REAL,
        "Multi-class PQ: mean over the classes that the truth holds of the PQ within the class.",
        f"{_NO_CLASSES}, or the truth holds no nucleus of a known class",
    ),
    Column("aji", _REAL, "Aggregated Jaccard index; 0 when only one side is empty.", _BOTH_EMPTY),
    Column("f1_50", _REAL, "F1 of nuclei matched at IoU > 0.5.", _BOTH_EMPTY),
    Column("f1_mean", _REAL, "Mean of F1 at IoU > 0.5, 0.6, 0.7, 0.8 and 0.9 (F1^µ).", _BOTH_EMPTY),
    Column("sq_mean", _REAL, "Mean of SQ at those of the five thresholds where something matched.", "nothing matched"),
    Column("precision", _REAL, "tp / (tp + fp).", "no predicted nucleus"),
    Column("recall", _REAL, "tp / (tp + fn).", "no true nucleus"),
    Column("gt_pixels", _COUNT, "Pixels inside true nuclei.", unit="px"),
    Column("pred_pixels", _COUNT, "Pixels inside predicted nuclei (label image).", unit="px"),
    Column("tp_pixels", _COUNT, "Pixels inside both.", unit="px"),
    Column("f1_pixel", _REAL, "F1 of nucleus pixels, label image against truth.", _BOTH_EMPTY_PIXELS),
    Column("precision_pixel", _REAL, "tp_pixels / pred_pixels.", "no predicted nucleus"),
    Column("recall_pixel", _REAL, "tp_pixels / gt_pixels.", "no true nucleus"),
    Column(
        "pixel_accuracy", _REAL, "Share of pixels that are nucleus in both or in neither.", "no pixel was predicted"
    ),
    Column(
        "map",
        _REAL,
        "Average precision of the nucleus probability over all pixels (256 levels): Σ (Rₙ - Rₙ₋₁) Pₙ.",
        "no true nucleus",
    ),
    Column(
        "dice_binary",
        _REAL,
        "Dice of the nucleus map itself, probability at least 0.5, before instances are made.",
        _BOTH_EMPTY_PIXELS,
    ),
    Column(
        "dice_macro",
        _REAL,
        "Mean Dice of the nuclear classes that occur in truth or prediction, from the class map; background is not "
        "among them, and pixels of unknown class are left out.",
        f"{_NO_CLASSES}, or no class occurs",
    ),
    Column(
        "dice_macro_with_background",
        _REAL,
        "The same with the background as one more class, as the SP/H&E report averages.",
        _NO_CLASSES,
    ),
    Column(
        "hv_mse",
        _REAL,
        "Mean squared error of the HV maps inside true nuclei, both components together; truth and prediction in steps "
        "of 1/127.",
        "no true nucleus, or the decoder has no hv head",
    ),
    Column(
        "seam_change_rate",
        _REAL,
        "Share of nuclei that change when the tile grid is shifted by half a tile: those of both predictions without a "
        "counterpart of an IoU above 0.5 in the other, over all of both. Of the whole slide, annotated or not.",
        "inference.seam_check is off, or neither prediction has a nucleus",
    ),
)

#: Figures of a slide that experiments are compared by; greater is better but for hv_mse and seam_change_rate.
SCORES: tuple[str, ...] = (
    "pq", "dq", "sq", "bpq", "mpq", "aji", "f1_50", "f1_mean", "sq_mean", "precision", "recall", "f1_pixel",
    "precision_pixel", "recall_pixel", "pixel_accuracy", "map", "dice_binary", "dice_macro",
    "dice_macro_with_background", "hv_mse", "seam_change_rate",
)  # fmt: skip

_NOT_PIXELS = _NO_CLASSES
_NOT_NUCLEI = f"the row is the background's, or {_NO_CLASSES}"

CLASS_FIGURES: tuple[Column, ...] = (
    Column("class_id", pa.uint8(), "Class; 0 is the background."),
    Column("class_name", _TEXT, "Its name."),
    Column("gt_pixels", _COUNT, "Pixels of the class in the truth.", "no class of the slide's truth is known", "px"),
    Column("pred_pixels", _COUNT, "Pixels of the class in the class map.", "the decoder has no classes head", "px"),
    Column("tp_pixels", _COUNT, "Pixels of the class in both.", _NOT_PIXELS, "px"),
    Column(
        "gt_fraction",
        _REAL,
        "Share of the class among the pixels whose true class is known.",
        "no class of the slide's truth is known",
    ),
    Column(
        "pred_fraction",
        _REAL,
        "Share of the class among the same pixels of the class map (all pixels, when no true class is known).",
        "the decoder has no classes head, or no pixel was predicted",
    ),
    Column("dice", _REAL, "2 tp_pixels / (gt_pixels + pred_pixels).", f"{_NOT_PIXELS}, or the class occurs in neither"),
    Column(
        "iou", _REAL, "Pixels of the class in both, over those in either.", f"{_NOT_PIXELS}, or it occurs in neither"
    ),
    Column("precision", _REAL, "Of pixels: tp_pixels / pred_pixels.", f"{_NOT_PIXELS}, or no pixel is predicted"),
    Column("recall", _REAL, "Of pixels: tp_pixels / gt_pixels.", f"{_NOT_PIXELS}, or no pixel is true"),
    Column("n_gt", _COUNT, "True nuclei whose majority class this is.", "as gt_pixels, or the row is the background's"),
    Column("n_pred", _COUNT, "Predicted nuclei of the class.", "as pred_pixels, or the row is the background's"),
    Column("tp", _COUNT, "Pairs within the class, IoU strictly above evaluation.iou_threshold.", _NOT_NUCLEI),
    Column(
        "fp",
        _COUNT,
        "Predicted nuclei of the class without such a match; those mostly on nuclei of unknown class are left out.",
        _NOT_NUCLEI,
    ),
    Column("fn", _COUNT, "True nuclei of the class without such a match.", _NOT_NUCLEI),
    Column("iou_sum", _REAL, "Sum of the matched pairs' IoU.", _NOT_NUCLEI),
    Column("pq", _REAL, "Panoptic quality within the class.", f"{_NOT_NUCLEI}, or it has no nucleus on either side"),
    Column("dq", _REAL, "Detection quality within the class.", f"{_NOT_NUCLEI}, or it has no nucleus on either side"),
    Column("sq", _REAL, "Segmentation quality within the class.", f"{_NOT_NUCLEI}, or nothing matched"),
    Column(
        "f1",
        _REAL,
        "F1 of nuclei matched within the class at IoU > 0.5.",
        f"{_NOT_NUCLEI}, or it has no nucleus on either side",
    ),
)

_OF_SLIDE = (
    Column("slide_id", _TEXT, "The slide."),
    Column("image", _TEXT, "The image that was predicted: he or sp."),
)

SLIDE_METRICS = TableSchema(
    "slide_metrics", 1, "evaluated slide (one row a file)", ("slide_id",), (*_OF_SLIDE, *SLIDE_FIGURES)
)
CLASS_METRICS = TableSchema(
    "class_metrics",
    1,
    "class of an evaluated slide, the background first",
    ("slide_id", "class_id"),
    (*_OF_SLIDE, *CLASS_FIGURES),
)
