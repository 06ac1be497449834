"""Schemas of the two tables of a slide's biology: a row a class, and a row a pair of classes."""

from __future__ import annotations

import pyarrow as pa

from slideloom.artefacts.tables import Column, OpenColumns, TableSchema
from slideloom.metrics.schemas import SLIDE_METRICS

__all__ = ["BIOLOGY", "BIOLOGY_FIGURES", "MARKER_FIGURES", "NEIGHBOURS", "NEIGHBOUR_FIGURES"]

_TEXT, _COUNT, _REAL, _CLASS = pa.string(), pa.int64(), pa.float64(), pa.uint8()
_NO_NUCLEUS = "the slide has no nucleus"
_NONE_SUCH = "n is 0"
_NO_TISSUE = "the slide's tissue is not known"
_NO_MARKER = (
    "n is 0, no tile covers any pixel of such a nucleus, or the image has no such marker (none at all, when it is H&E)"
)
_NO_PAIR = "n or n_to is 0; of a class to itself also when n is 1"

_GROUP = (
    Column("scope", _TEXT, "all: every nucleus; class: those of one class."),
    Column("class_id", _CLASS, "Class; 0 is the background: nuclei without a pixel of any class.", "scope is all"),
    Column("class_name", _TEXT, "Its name; all where scope is all."),
)

BIOLOGY_FIGURES: tuple[Column, ...] = (
    *_GROUP,
    Column("n", _COUNT, "Predicted nuclei, also those outside the tissue."),
    Column("count_fraction", _REAL, "Their share among all nuclei of the slide.", _NO_NUCLEUS),
    Column("area_fraction", _REAL, "Their area over that of all nuclei of the slide.", _NO_NUCLEUS),
    Column(
        "tissue_mm2",
        _REAL,
        "Area of the slide's tissue where a tile looked; the same in every row of the slide.",
        _NO_TISSUE,
        "mm²",
    ),
    Column("n_in_tissue", _COUNT, "Those of the nuclei whose centroid lies in the tissue.", _NO_TISSUE),
    Column(
        "density_per_mm2", _REAL, "n_in_tissue / tissue_mm2.", f"{_NO_TISSUE}, or none of it was predicted", "1/mm²"
    ),
    Column("area_total_um2", _REAL, "Sum of the nuclei's areas.", unit="µm²"),
    Column("area_mean_um2", _REAL, "Mean area of a nucleus.", _NONE_SUCH, "µm²"),
    Column("area_median_um2", _REAL, "Median area of a nucleus.", _NONE_SUCH, "µm²"),
    Column("area_std_um2", _REAL, "Standard deviation of the areas (n - 1).", "n is less than 2", "µm²"),
)

MARKER_FIGURES: tuple[OpenColumns, ...] = (
    OpenColumns(
        "mean_",
        _REAL,
        "Mean over the nuclei of their mean raw intensity of the marker; every nucleus counts once. Those that no tile "
        "covers are left out.",
        _NO_MARKER,
    ),
    OpenColumns(
        "weighted_mean_",
        _REAL,
        "The same, every nucleus weighted by its area: the mean raw intensity of their pixels, taken together.",
        _NO_MARKER,
    ),
)

NEIGHBOUR_FIGURES: tuple[Column, ...] = (
    Column("scope", _TEXT, "all: from any nucleus to any other; class: from one class to one class."),
    Column("class_id", _CLASS, "Class of the nuclei that look; never the background.", "scope is all"),
    Column("class_name", _TEXT, "Its name; all where scope is all."),
    Column("to_class_id", _CLASS, "Class of the nuclei that are looked for.", "scope is all"),
    Column("to_class_name", _TEXT, "Its name; all where scope is all."),
    Column("n", _COUNT, "Nuclei that look."),
    Column("n_to", _COUNT, "Nuclei that are looked for; of a class to itself, a nucleus does not find itself."),
    Column(
        "distance_mean_um",
        _REAL,
        "Mean over the nuclei that look of the distance from their centroid to the nearest centroid that is looked "
        "for. Nothing corrects for the border of what was predicted.",
        _NO_PAIR,
        "µm",
    ),
    Column("distance_median_um", _REAL, "Median of the same distances.", _NO_PAIR, "µm"),
)

_OF_SLIDE = SLIDE_METRICS.columns[:2]

BIOLOGY = TableSchema(
    "biology",
    1,
    "class of a predicted slide, and one for all its nuclei (that one alone without a classes head)",
    ("slide_id", "scope", "class_name"),
    (*_OF_SLIDE, *BIOLOGY_FIGURES),
    MARKER_FIGURES,
)
NEIGHBOURS = TableSchema(
    "neighbours",
    1,
    "ordered pair of classes of a predicted slide, and one for all its nuclei (that one alone without a classes head)",
    ("slide_id", "scope", "class_name", "to_class_name"),
    (*_OF_SLIDE, *NEIGHBOUR_FIGURES),
)
