"""Schemas of the two tables that every evaluated slide leaves: its own figures, and a row a class."""

from __future__ import annotations

import pyarrow as pa

from slideloom.artefacts.tables import Column, TableSchema

__all__ = [
    "CLASS_FIGURES",
    "CLASS_METRICS",
    "COMPARED",
    "LESS_IS_BETTER",
    "OF_SLIDE",
    "SLIDE_FIGURES",
    "SLIDE_METRICS",
]

_TEXT, _COUNT, _REAL = pa.string(), pa.int64(), pa.float64()
_BOTH_EMPTY = "truth and prediction hold no nucleus"
_BOTH_EMPTY_PIXELS = "truth and prediction hold no nucleus pixel"
_NO_CLASSES = "no class of the slide's truth is known, or classes were not predicted"
_NO_NUCLEUS_MAP = "the maps hold no nucleus probability"
_NO_CLASS_SCORES = "no class of the slide's truth is known, or the maps hold no class probability"
_NO_CENTROID = "neither side has a nucleus"
_NO_OUTLINE = "neither side has an outline pixel"
_IOU = "IoU above evaluation.iou_threshold (or equal to it, as evaluation.convention says)"
#: Per cent of the IoU thresholds that F1 and AP are given at.
_AT = (50, 60, 70, 80, 90)

_INSTANCES: tuple[Column, ...] = (
    Column("n_gt", _COUNT, "True nuclei within that area."),
    Column("n_pred", _COUNT, "Predicted nuclei within that area."),
    Column("tp", _COUNT, f"Matched pairs: {_IOU}, classes aside."),
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
        "when classes were not predicted.",
        "truth holds no nucleus and prediction none with a class",
    ),
    Column(
        "mpq",
        _REAL,
        "Multi-class PQ: mean over the classes of the PQ within the class; a class without a true nucleus is left out "
        "(pannuke), or counts with 0 where one is predicted (stardist, instanseg).",
        f"{_NO_CLASSES}, no class counts, or evaluation.convention is instanseg_pairs",
    ),
    Column("precision", _REAL, "tp / (tp + fp).", "no predicted nucleus"),
    Column("recall", _REAL, "tp / (tp + fn).", "no true nucleus"),
    Column(
        "aji",
        _REAL,
        "Aggregated Jaccard index: a prediction may serve several true nuclei; 0 when only one side is empty.",
        _BOTH_EMPTY,
    ),
    Column("aji_plus", _REAL, "AJI+: the same, one to one.", _BOTH_EMPTY),
    Column(
        "dice_2",
        _REAL,
        "Ensemble Dice (Dice-2 of HoVer-Net): over all pairs that overlap; missed nuclei do not count.",
        "no pair overlaps",
    ),
    *(
        Column(
            f"tp_{at}", _COUNT, f"Matched pairs at IoU 0.{at // 10} (as evaluation.convention says); pooled F1 and AP."
        )
        for at in _AT
    ),
    *(Column(f"f1_{at}", _REAL, f"F1 of nuclei matched at IoU 0.{at // 10}.", _BOTH_EMPTY) for at in _AT),
    *(
        Column(
            f"ap_{at}",
            _REAL,
            f"Average precision as cell segmentation has it, tp / (tp + fp + fn) at IoU 0.{at // 10}: no area under a "
            "curve.",
            _BOTH_EMPTY,
        )
        for at in _AT
    ),
    Column("f1_mean", _REAL, "Mean of F1 at IoU 0.5, 0.6, 0.7, 0.8 and 0.9 (F1^µ).", _BOTH_EMPTY),
    Column("ap_mean", _REAL, "Mean of AP at the five thresholds.", _BOTH_EMPTY),
    Column("pq_mean", _REAL, "Mean of PQ at the five thresholds.", _BOTH_EMPTY),
    Column("sq_mean", _REAL, "Mean of SQ at those of the five thresholds where something matched.", "nothing matched"),
    Column(
        "splits",
        _COUNT,
        "True nuclei cut into two or more predicted pieces: a piece has more than half of its pixels in the nucleus "
        "and covers a tenth of it or more.",
    ),
    Column("split_pieces", _COUNT, "Predicted pieces of these."),
    Column("merges", _COUNT, "Predicted nuclei that hold two or more true ones, in the same sense."),
    Column("merged_nuclei", _COUNT, "True nuclei in these."),
    Column(
        "tp_d",
        _COUNT,
        "Detections: pairs of a true and a predicted centroid no farther apart than evaluation.detection_radius_um, "
        "one to one; as many as possible, then the least total distance.",
    ),
    Column("fp_d", _COUNT, "Predicted centroids without a partner."),
    Column("fn_d", _COUNT, "True centroids without a partner."),
    Column("f1_d", _REAL, "Detection F1: 2 tp_d / (2 tp_d + fp_d + fn_d).", _NO_CENTROID),
    Column("precision_d", _REAL, "tp_d / (tp_d + fp_d).", "no predicted nucleus"),
    Column("recall_d", _REAL, "tp_d / (tp_d + fn_d).", "no true nucleus"),
)

_PIXELS: tuple[Column, ...] = (
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
        f"no true nucleus, or {_NO_NUCLEUS_MAP}",
    ),
    Column(
        "pred_pixels_binary",
        _COUNT,
        "Pixels whose nucleus probability is at least 0.5, before instances are made.",
        _NO_NUCLEUS_MAP,
        "px",
    ),
    Column("tp_pixels_binary", _COUNT, "Those of them inside true nuclei.", _NO_NUCLEUS_MAP, "px"),
    Column("dice_binary", _REAL, "Dice of those pixels.", f"{_BOTH_EMPTY_PIXELS}, or {_NO_NUCLEUS_MAP}"),
    Column("iou_binary", _REAL, "Their IoU.", f"{_BOTH_EMPTY_PIXELS}, or {_NO_NUCLEUS_MAP}"),
    Column(
        "precision_binary",
        _REAL,
        "tp_pixels_binary / pred_pixels_binary.",
        f"no such pixel is predicted, or {_NO_NUCLEUS_MAP}",
    ),
    Column("recall_binary", _REAL, "tp_pixels_binary / gt_pixels.", f"no true nucleus, or {_NO_NUCLEUS_MAP}"),
    Column(
        "ece",
        _REAL,
        "Expected calibration error of the nucleus probability over all pixels, 15 bins of equal width. Most pixels "
        "are easy background, so it says little about nuclei by itself.",
        f"no pixel was predicted, or {_NO_NUCLEUS_MAP}",
    ),
    Column("mce", _REAL, "Greatest gap of any such bin.", f"no pixel was predicted, or {_NO_NUCLEUS_MAP}"),
    Column(
        "brier",
        _REAL,
        "Brier score: mean squared distance of the nucleus probability from the truth (0 or 1).",
        f"no pixel was predicted, or {_NO_NUCLEUS_MAP}",
    ),
)


def _macro(figure: str, meaning: str, where: str) -> tuple[Column, Column]:
    none = f"{_NO_CLASSES}, or no class {where}"
    return (
        Column(
            f"{figure}_macro",
            _REAL,
            f"Mean {meaning} of the nuclear classes that {where.replace('occurs', 'occur').replace('is ', 'are ')}, "
            "from the class map; background is not among them, and pixels of unknown class are left out.",
            none,
        ),
        Column(
            f"{figure}_macro_with_background",
            _REAL,
            "The same with the background as one more class, as the SP/H&E report averages.",
            f"{_NO_CLASSES}, or no class, the background included, {where}",
        ),
    )


_CLASSES: tuple[Column, ...] = (
    *_macro("dice", "Dice", "occurs in truth or prediction"),
    Column("dice_macro_n", _COUNT, "Nuclear classes that dice_macro and iou_macro are the mean of.", _NO_CLASSES),
    *_macro("iou", "IoU", "occurs in truth or prediction"),
    *_macro("precision", "precision of pixels", "is predicted"),
    *_macro("recall", "recall of pixels", "is true"),
    Column(
        "class_accuracy",
        _REAL,
        "Share of the pixels of known class, background included, with the right class.",
        f"{_NO_CLASSES}, or no pixel was predicted",
    ),
    Column(
        "class_accuracy_nuclei",
        _REAL,
        "The same of pixels inside true nuclei.",
        f"{_NO_CLASSES}, or no pixel is inside a nucleus of known class",
    ),
    Column(
        "ece_class",
        _REAL,
        "Expected calibration error of the predicted class's probability, 15 bins, over the pixels of known class.",
        f"{_NO_CLASS_SCORES}, or no pixel was predicted",
    ),
    Column(
        "map_won",
        _REAL,
        "Mean of ap_won over the nuclear classes that are true somewhere.",
        f"{_NO_CLASS_SCORES}, or no class is true",
    ),
)

_MAPS: tuple[Column, ...] = (
    Column(
        "boundary_f1",
        _REAL,
        "Boundary F1: harmonic mean of the two below; 0 when one side only has an outline. Outlines are the outermost "
        "pixels of every nucleus, of the label image and of the truth.",
        _NO_OUTLINE,
    ),
    Column(
        "boundary_precision",
        _REAL,
        "Share of predicted outline pixels with a true one within evaluation.boundary_tolerance_um.",
        "no predicted outline",
    ),
    Column("boundary_recall", _REAL, "Share of true outline pixels with a predicted one that near.", "no true outline"),
    Column(
        "surface_dice",
        _REAL,
        "Outline pixels of both sides that near the other's, over all of both (normalised surface distance).",
        _NO_OUTLINE,
    ),
    Column("boundary_gt_pixels", _COUNT, "True outline pixels.", unit="px"),
    Column("boundary_pred_pixels", _COUNT, "Predicted outline pixels.", unit="px"),
    Column("boundary_gt_near", _COUNT, "True outline pixels with a predicted one that near.", unit="px"),
    Column("boundary_pred_near", _COUNT, "Predicted outline pixels with a true one that near.", unit="px"),
    Column(
        "hv_mse",
        _REAL,
        "Mean squared error of the HV maps inside true nuclei, both components together; truth and prediction in steps "
        "of 1/127.",
        "no true nucleus, or the maps hold no HV maps",
    ),
    Column(
        "hv_mse_everywhere",
        _REAL,
        "The same over all pixels; the truth is 0 outside nuclei.",
        "no pixel was predicted, or the maps hold no HV maps",
    ),
    Column(
        "seam_change_rate",
        _REAL,
        "Share of nuclei that change when the tile grid is shifted by half a tile: those of both predictions without a "
        "counterpart of an IoU above 0.5 in the other, over all of both. Of the whole slide, annotated or not.",
        "inference.seam_check is off, or neither prediction has a nucleus",
    ),
)

SLIDE_FIGURES: tuple[Column, ...] = (
    Column("n_tiles", _COUNT, "Tiles the slide was cut into.", "the slide was predicted without stored patches"),
    Column("area_mm2", _REAL, "Area that was predicted and scored.", unit="mm²"),
    *_INSTANCES,
    *_PIXELS,
    *_CLASSES,
    *_MAPS,
)

#: Figures of a slide that experiments are summarised and compared by.
COMPARED: tuple[str, ...] = (
    "pq", "dq", "sq", "bpq", "mpq", "aji", "aji_plus", "dice_2", "precision", "recall",
    "f1_50", "f1_60", "f1_70", "f1_80", "f1_90", "f1_mean", "ap_50", "ap_60", "ap_70", "ap_80", "ap_90", "ap_mean",
    "pq_mean", "sq_mean", "f1_d", "precision_d", "recall_d",
    "f1_pixel", "precision_pixel", "recall_pixel", "pixel_accuracy", "map",
    "dice_binary", "iou_binary", "precision_binary", "recall_binary", "ece", "mce", "brier",
    "dice_macro", "dice_macro_with_background", "iou_macro", "iou_macro_with_background",
    "precision_macro", "precision_macro_with_background", "recall_macro", "recall_macro_with_background",
    "class_accuracy", "class_accuracy_nuclei", "ece_class", "map_won",
    "boundary_f1", "boundary_precision", "boundary_recall", "surface_dice",
    "hv_mse", "hv_mse_everywhere", "seam_change_rate",
)  # fmt: skip
#: Those of them that are better when smaller.
LESS_IS_BETTER = frozenset({"ece", "mce", "brier", "ece_class", "hv_mse", "hv_mse_everywhere", "seam_change_rate"})

_NOT_PIXELS = _NO_CLASSES
_NOT_DETECTED = f"the row is the background's, or {_NO_CLASSES}"
_NOT_NUCLEI = f"{_NOT_DETECTED}, or evaluation.convention is instanseg_pairs"

CLASS_FIGURES: tuple[Column, ...] = (
    Column("class_id", pa.uint8(), "Class; 0 is the background."),
    Column("class_name", _TEXT, "Its name."),
    Column("gt_pixels", _COUNT, "Pixels of the class in the truth.", "no class of the slide's truth is known", "px"),
    Column("pred_pixels", _COUNT, "Pixels of the class in the class map.", "classes were not predicted", "px"),
    Column("tp_pixels", _COUNT, "Pixels of the class in both.", _NOT_PIXELS, "px"),
    Column(
        "gt_fraction",
        _REAL,
        "Share of the class among the pixels whose true class is known.",
        "no class of the slide's truth is known, or no such pixel was predicted",
    ),
    Column(
        "pred_fraction",
        _REAL,
        "Share of the class among the same pixels of the class map (all pixels, when no true class is known).",
        "classes were not predicted, or there is no such pixel",
    ),
    Column("dice", _REAL, "2 tp_pixels / (gt_pixels + pred_pixels).", f"{_NOT_PIXELS}, or the class occurs in neither"),
    Column(
        "iou", _REAL, "Pixels of the class in both, over those in either.", f"{_NOT_PIXELS}, or it occurs in neither"
    ),
    Column("precision", _REAL, "Of pixels: tp_pixels / pred_pixels.", f"{_NOT_PIXELS}, or no pixel is predicted"),
    Column("recall", _REAL, "Of pixels: tp_pixels / gt_pixels.", f"{_NOT_PIXELS}, or no pixel is true"),
    Column(
        "ap_won",
        _REAL,
        "Average precision of the pixels that the class won, by its stored probability; those that another class won "
        "are never found. Not the average precision of the full probabilities, which are not stored.",
        f"{_NO_CLASS_SCORES}, or no pixel is true",
    ),
    Column("n_gt", _COUNT, "True nuclei whose majority class this is.", "as gt_pixels, or the row is the background's"),
    Column("n_pred", _COUNT, "Predicted nuclei of the class.", "as pred_pixels, or the row is the background's"),
    Column("tp", _COUNT, f"Pairs within the class: {_IOU}.", _NOT_NUCLEI),
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
        "F1 of nuclei matched within the class at IoU 0.5 (as evaluation.convention says).",
        f"{_NOT_NUCLEI}, or it has no nucleus on either side",
    ),
    Column("tp_d", _COUNT, "Detections (tp_d of the slide) of which both sides are of the class.", _NOT_DETECTED),
    Column(
        "fp_paired_d",
        _COUNT,
        "Detections of which only the prediction is; true nuclei of unknown class and their partners are left out.",
        _NOT_DETECTED,
    ),
    Column("fn_paired_d", _COUNT, "Detections of which only the true nucleus is.", _NOT_DETECTED),
    Column("fp_alone_d", _COUNT, "Predicted nuclei of the class without a partner.", _NOT_DETECTED),
    Column("fn_alone_d", _COUNT, "True nuclei of the class without a partner.", _NOT_DETECTED),
    Column(
        "f1_d",
        _REAL,
        "Detection F1 of the class, every error once: 2 tp_d / (2 tp_d + all four).",
        f"{_NOT_DETECTED}, or the class occurs on neither side",
    ),
    Column("precision_d", _REAL, "tp_d over the predicted ones.", f"{_NOT_DETECTED}, or none is predicted"),
    Column("recall_d", _REAL, "tp_d over the true ones.", f"{_NOT_DETECTED}, or none is true"),
    Column(
        "f1_d_hovernet",
        _REAL,
        "F_c of HoVer-Net, where errors of class weigh double: 2 tp_d / (2 tp_d + 2 fp_paired_d + 2 fn_paired_d + "
        "fp_alone_d + fn_alone_d).",
        f"{_NOT_DETECTED}, or the class occurs on neither side",
    ),
)

OF_SLIDE = (
    Column("slide_id", _TEXT, "The slide."),
    Column("image", _TEXT, "The image that was predicted: he or sp."),
)

SLIDE_METRICS = TableSchema(
    "slide_metrics", 2, "evaluated slide (one row a file)", ("slide_id",), (*OF_SLIDE, *SLIDE_FIGURES)
)
CLASS_METRICS = TableSchema(
    "class_metrics",
    2,
    "class of an evaluated slide, the background first",
    ("slide_id", "class_id"),
    (*OF_SLIDE, *CLASS_FIGURES),
)
