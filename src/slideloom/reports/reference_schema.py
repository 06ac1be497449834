"""Schema of ``references.parquet``: figures of the public literature, and ours where the protocol is the same."""

from __future__ import annotations

from slideloom.artefacts.tables import Column, TableSchema
from slideloom.reports.columns import COUNT, FLAG, REAL, STUDY, TEXT

__all__ = ["REFERENCES"]

_NOT_BESIDE = "comparable is false, or ours has no such value"

REFERENCES = TableSchema(
    "references",
    1,
    "published figure of the literature that the config's references name, and experiment that could stand beside it",
    ("figure", "experiment"),
    (
        STUDY,
        Column("reference", TEXT, "The literature, as the config names it: pannuke, cpdmi or stain_agnostic."),
        Column("figure", TEXT, "Name of the published figure; the same in every study."),
        Column("source", TEXT, "Who published it."),
        Column("place", TEXT, "Where in the source: a table, a text, a file."),
        Column("dataset", TEXT, "Data that it was measured on."),
        Column(
            "split",
            TEXT,
            "Part of the data. split_1, split_2, split_3: one of PanNuke's three; mean_of_splits: mean over them; "
            "fold_3: the images of that fold; validation; test; codex: the images of that platform.",
        ),
        Column("role", TEXT, "Role of that part: test or val. Ours are figures of slides of the same role."),
        Column("model", TEXT, "What made the predictions."),
        Column("metric", TEXT, "The column of slides.parquet or classes.parquet that means the same."),
        Column(
            "averaging",
            TEXT,
            "image, tissue, slide, pooled: as in experiments.parquet; unknown: the source does not say. For a figure "
            "of one tissue: over the images of that tissue.",
        ),
        Column("class_name", TEXT, "The class that it is about.", "it is about all nuclei"),
        Column("tissue", TEXT, "The tissue that it is about.", "it is about all tissues"),
        Column("published", REAL, "The published figure."),
        Column("published_std", REAL, "Its standard deviation over splits (n - 1).", "one split, or not told"),
        Column("published_n", COUNT, "Splits that it is the mean of."),
        Column("image", TEXT, "The image that was predicted: he or sp."),
        Column(
            "convention",
            TEXT,
            "How instances matched, as evaluation.convention names it.",
            "the figure matches no instances by IoU, or the source does not say",
        ),
        Column("iou_threshold", REAL, "IoU from or above which they matched.", "as convention, or several IoU"),
        Column("detection_radius_um", REAL, "Radius of a detection.", "not a detection by distance", "µm"),
        Column("tile_px", COUNT, "Side of the images that were predicted.", "not told", "px"),
        Column("mpp_um", REAL, "Their resolution.", "not told, or not the same for all", "µm/px"),
        Column("n_images", COUNT, "Images of that part of the data.", "not told"),
        Column(
            "protocol_known",
            FLAG,
            "False: the source, or what is known of it here, leaves something out that the figure depends on.",
        ),
        Column("caveat", TEXT, "What must be known to read the figure; may be an empty text."),
        Column(
            "experiment",
            TEXT,
            "Experiment of ours on the same kind of image (he or sp), with figures.",
            "the study has none",
        ),
        Column("random_weights", FLAG, "True: its encoder ran with random weights.", "experiment is null"),
        Column("comparable", FLAG, "True: its protocol is the figure's in every respect that is checked."),
        Column("differs", TEXT, "Every respect in which it is not, with both values; empty where comparable."),
        Column("mean", REAL, "Ours.", _NOT_BESIDE),
        Column("std", REAL, "Its standard deviation over what was averaged.", f"{_NOT_BESIDE}; n is 1; or pooled"),
        Column("ci_low", REAL, "Lower end of its 95 % interval over patients.", f"{_NOT_BESIDE}; or fewer than 2"),
        Column("ci_high", REAL, "Upper end.", "as ci_low"),
        Column("n", COUNT, "What was averaged.", _NOT_BESIDE),
    ),
)
