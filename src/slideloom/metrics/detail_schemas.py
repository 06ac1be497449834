"""Schemas of what an evaluated slide leaves beside its figures: confusion matrix, scores by probability, squares."""

from __future__ import annotations

import pyarrow as pa

from slideloom.artefacts.tables import Column, TableSchema
from slideloom.metrics.schemas import OF_SLIDE

__all__ = [
    "CONFUSION",
    "CONFUSION_FIGURES",
    "SCORES",
    "SCORE_FIGURES",
    "TILES",
    "TILE_FIGURES",
]

_TEXT, _COUNT, _REAL, _CLASS = pa.string(), pa.int64(), pa.float64(), pa.uint8()

CONFUSION_FIGURES: tuple[Column, ...] = (
    Column("true_class_id", _CLASS, "True class; 0 is the background."),
    Column("true_class_name", _TEXT, "Its name."),
    Column("pred_class_id", _CLASS, "Predicted class; 0 is the background."),
    Column("pred_class_name", _TEXT, "Its name."),
    Column("pixels", _COUNT, "Pixels of that true class that the class map gives that class.", unit="px"),
    Column(
        "nuclei",
        _COUNT,
        "Matched pairs (evaluation.iou_threshold, as evaluation.convention matches) of a true nucleus of the one and a "
        "predicted one of the other class. True class 0: predicted nuclei of the class without a match. Predicted "
        "class 0: true nuclei of the class without a match, or matched to a nucleus without a class. True nuclei of "
        "unknown class, and predicted ones that match them or lie mostly on them, are left out.",
        "both classes are the background",
    ),
)

SCORE_FIGURES: tuple[Column, ...] = (
    Column(
        "of",
        _TEXT,
        "nucleus: the probability of being nucleus, of every pixel; class: the probability of the predicted class, of "
        "the pixels whose true class is known.",
    ),
    Column("class_id", _CLASS, "Class that the pixels were given; 0 is the background.", "of is nucleus"),
    Column("class_name", _TEXT, "Its name.", "of is nucleus"),
    Column("score", _CLASS, "Stored probability, 255 · p. Only those met; 255 stands even where it was not."),
    Column(
        "positive",
        _COUNT,
        "Pixels with that score that are true: inside true nuclei (nucleus), or truly of the class (class).",
        unit="px",
    ),
    Column("negative", _COUNT, "Pixels with that score that are not.", unit="px"),
    Column(
        "n_true",
        _COUNT,
        "All pixels inside true nuclei, or truly of the class, whatever was predicted; the same in every row of one "
        "of and class.",
        unit="px",
    ),
)

TILE_FIGURES: tuple[Column, ...] = (
    Column("tile", _COUNT, "Number of the square, from 0, row by row over the whole image."),
    Column("y_px", _COUNT, "First pixel row of the square in the maps.", unit="px"),
    Column("x_px", _COUNT, "First pixel column of the square in the maps.", unit="px"),
    Column("height_px", _COUNT, "Pixel rows; fewer at the lower border.", unit="px"),
    Column("width_px", _COUNT, "Pixel columns; fewer at the right border.", unit="px"),
    Column("n_gt", _COUNT, "True nuclei whose centroid lies in the square."),
    Column(
        "n_pred",
        _COUNT,
        "Predicted nuclei that belong to the square: with a match, where the true nucleus does; without, where their "
        "own centroid lies.",
    ),
    Column("tp", _COUNT, "Matched pairs (as evaluation.convention, classes aside) whose true nucleus lies there."),
    Column("fp", _COUNT, "Predicted nuclei of the square without a match."),
    Column("fn", _COUNT, "True nuclei of the square without a match."),
    Column(
        "wrong_class",
        _COUNT,
        "Those of the matched pairs whose true class is known and is not the predicted one.",
        "no class of the slide's truth is known, or classes were not predicted",
    ),
    Column("iou_sum", _REAL, "Sum of the matched pairs' IoU."),
    Column(
        "pq", _REAL, "Panoptic quality of the square's nuclei, classes aside.", "the square holds no nucleus at all"
    ),
)

CONFUSION = TableSchema(
    "slide_confusion",
    1,
    "pair of a true and a predicted class of an evaluated slide; none when classes are unknown or were not predicted",
    ("slide_id", "true_class_id", "pred_class_id"),
    (*OF_SLIDE, *CONFUSION_FIGURES),
)
SCORES = TableSchema(
    "slide_scores",
    1,
    "stored probability of an evaluated slide's nucleus map, or of a class that pixels were given; none where the map "
    "is absent, and of classes none when no true class is known",
    ("slide_id", "of", "class_id", "score"),
    (*OF_SLIDE, *SCORE_FIGURES),
)
TILES = TableSchema(
    "slide_tiles",
    1,
    "square of an evaluated slide where anything was predicted; squares have the side of the experiment's tiles (256 "
    "px without tiles) and cut the image without overlap",
    ("slide_id", "tile"),
    (*OF_SLIDE, *TILE_FIGURES),
)
