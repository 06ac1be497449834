"""Schemas of the report tables that sum slides up: experiments, groups, classes, curves, calibration."""

from __future__ import annotations

import pyarrow as pa

from slideloom.artefacts.tables import Column, TableSchema
from slideloom.reports.columns import COUNT, EXPERIMENT, FLAG, METRIC, RANDOM, REAL, ROLE, STUDY, TEXT

__all__ = ["CALIBRATION", "CURVES", "EXPERIMENTS", "EXPERIMENT_CLASSES", "GROUPS"]

_ONE_PATIENT = "fewer than 2 patients"
_INTERVAL = "Lower end of the 95 % bootstrap interval: patients resampled with all their slides; percentiles."
_CLASS = (
    Column("class_id", pa.uint8(), "Class; 0 is the background."),
    Column("class_name", TEXT, "Its name."),
)

EXPERIMENTS = TableSchema(
    "experiments",
    1,
    "experiment, role, metric and averaging",
    ("experiment", "role", "metric", "averaging"),
    (
        STUDY,
        EXPERIMENT,
        ROLE,
        METRIC,
        Column(
            "averaging",
            TEXT,
            "slide: mean over slides; patient: mean over patients of their slides' means; fold: mean over folds of "
            "their slides' means (two folds or more); pooled: one figure from the summed counts of all slides. Of pq, "
            "dq, sq, bpq and mpq also image: mean over the slides whose truth holds a nucleus; tissue: mean over such "
            "slides of a tissue, then over the tissues, as PanNuke's figures are published (where the sheet has "
            "tissues).",
        ),
        RANDOM,
        Column(
            "n",
            COUNT,
            "What was averaged: slides (slide, image, pooled), patients, folds, tissues; those with a value. A slide "
            "that several folds predicted is one slide, with the mean of its figures (pooled: with the sum of its "
            "counts).",
        ),
        Column("n_slides", COUNT, "Slides behind the figure, those with a value."),
        Column("n_patients", COUNT, "Patients behind the figure; the interval resamples them."),
        Column(
            "mean",
            REAL,
            "The average, or the pooled figure.",
            "no slide has a value; pooled F1 and AP by IoU also where evaluation.convention is instanseg_pairs",
        ),
        Column("std", REAL, "Standard deviation over what was averaged (n - 1).", "n is less than 2, or pooled"),
        Column("ci_low", REAL, _INTERVAL, f"{_ONE_PATIENT}, averaging over folds, or pooled map_won"),
        Column("ci_high", REAL, "Upper end.", "as ci_low"),
    ),
)

GROUPS = TableSchema(
    "groups",
    1,
    "experiment, role, group of slides and metric; groups without any value have none",
    ("experiment", "role", "by", "group", "metric"),
    (
        STUDY,
        EXPERIMENT,
        ROLE,
        Column("by", TEXT, "What slides are grouped by: platform, tissue, patient or fold."),
        Column("group", TEXT, "Which platform, tissue, patient or fold."),
        METRIC,
        RANDOM,
        Column(
            "n",
            COUNT,
            "Slides of the group with a value. One that several folds predicted counts once, with the mean of its "
            "figures.",
        ),
        Column("n_patients", COUNT, "Their patients; the interval resamples them."),
        Column("mean", REAL, "Mean over these slides."),
        Column("std", REAL, "Standard deviation over these slides (n - 1).", "n is less than 2"),
        Column("ci_low", REAL, _INTERVAL, _ONE_PATIENT),
        Column("ci_high", REAL, "Upper end.", "as ci_low"),
    ),
)

EXPERIMENT_CLASSES = TableSchema(
    "experiment_classes",
    1,
    "experiment, role, class, metric and averaging (the background is class 0)",
    ("experiment", "role", "class_id", "metric", "averaging"),
    (
        STUDY,
        EXPERIMENT,
        ROLE,
        *_CLASS,
        Column("metric", TEXT, "Column of classes.parquet that is summarised."),
        Column(
            "averaging",
            TEXT,
            "slide, patient, fold: as in experiments.parquet; pooled: one figure from the class's summed counts, for "
            "the metrics that follow from counts.",
        ),
        RANDOM,
        Column("n", COUNT, "What was averaged: slides (slide, pooled), patients, folds; those with a value."),
        Column("n_slides", COUNT, "Slides behind the figure."),
        Column("n_patients", COUNT, "Patients behind the figure; the interval resamples them."),
        Column("mean", REAL, "The average, or the pooled figure.", "no slide has a value"),
        Column("std", REAL, "Standard deviation over what was averaged (n - 1).", "n is less than 2, or pooled"),
        Column("ci_low", REAL, _INTERVAL, f"{_ONE_PATIENT}, averaging over folds, or pooled ap_won"),
        Column("ci_high", REAL, "Upper end.", "as ci_low"),
    ),
)

_OF = Column(
    "of",
    TEXT,
    "nucleus: the probability of being nucleus; class: the probability of the predicted class.",
)

CURVES = TableSchema(
    "curves",
    1,
    "experiment, role, nucleus map or class, and threshold; none where no pixel is true",
    ("experiment", "role", "of", "class_id", "threshold"),
    (
        STUDY,
        EXPERIMENT,
        ROLE,
        RANDOM,
        _OF,
        Column("class_id", pa.uint8(), "Class of the curve, against all others; 0 is the background.", "of is nucleus"),
        Column("class_name", TEXT, "Its name.", "of is nucleus"),
        Column(
            "threshold",
            REAL,
            "Probability that a pixel must have at least: every stored value (a 255th) that some pixel has.",
        ),
        Column("precision", REAL, "tp / (tp + fp)."),
        Column("recall", REAL, "tp / n_true."),
        Column(
            "tp",
            COUNT,
            "True pixels at or above the threshold, all slides of the role together (a slide of several folds once a "
            "fold).",
            unit="px",
        ),
        Column("fp", COUNT, "Other pixels there.", unit="px"),
        Column("n_true", COUNT, "True pixels, at any probability.", unit="px"),
        Column(
            "exact",
            FLAG,
            "False: of a class, at one half and below. The maps keep the probability of the winning class alone, so "
            "pixels that another class won are missing there.",
        ),
        Column("n_slides", COUNT, "Slides behind the curve."),
    ),
)

CALIBRATION = TableSchema(
    "calibration",
    1,
    "experiment, role, nucleus map or classes, and bin of the probability",
    ("experiment", "role", "of", "bin"),
    (
        STUDY,
        EXPERIMENT,
        ROLE,
        RANDOM,
        Column(
            "of",
            TEXT,
            "nucleus: the probability of being nucleus; class: that of the predicted class, all classes together.",
        ),
        Column("bin", COUNT, "Number of the bin, from 0."),
        Column("low", REAL, "Its lowest probability."),
        Column("high", REAL, "Its upper end, not part of it but for the last one's."),
        Column("pixels", COUNT, "Pixels in it, all slides of the role together.", unit="px"),
        Column("mean_probability", REAL, "Their mean probability.", "pixels is 0"),
        Column("true_share", REAL, "Share of them that are nucleus, or of the class that was said.", "pixels is 0"),
    ),
)
