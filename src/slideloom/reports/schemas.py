"""Schemas of the report tables: the stable contract that people read with pandas; ``docs/tables.md`` shows them."""

from __future__ import annotations

import pyarrow as pa

from slideloom.artefacts.tables import Column, OpenColumns, TableSchema
from slideloom.metrics.schemas import CLASS_FIGURES, SLIDE_FIGURES

__all__ = ["CLASSES", "COMPARISONS", "COSTS", "EXPERIMENTS", "FAILURES", "REPORT_TABLES", "SLIDES", "TRAINING"]

_TEXT, _COUNT, _REAL, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()

_STUDY = Column("study", _TEXT, "Name of the study.")
_RUN = (
    _STUDY,
    Column("experiment", _TEXT, "Name of the experiment."),
    Column("fold", _TEXT, "Fold of the experiment's split."),
)
_SLIDE = (
    *_RUN,
    Column("slide_id", _TEXT, "The slide, as in the sheet."),
    Column("patient_id", _TEXT, "Its patient, as in the sheet."),
    Column("platform", _TEXT, "Its platform, as in the sheet."),
    Column("role", _TEXT, "What the slide is to this fold: train, val or test."),
    Column("random_weights", _FLAG, "True: the encoder ran with random weights, and the figures say nothing about it."),
    Column("image", _TEXT, "The image that was predicted: he or sp."),
)

SLIDES = TableSchema(
    "slides", 1, "experiment, fold and evaluated slide", ("experiment", "fold", "slide_id"), (*_SLIDE, *SLIDE_FIGURES)
)

CLASSES = TableSchema(
    "classes",
    1,
    "experiment, fold, evaluated slide and class (the background is class 0)",
    ("experiment", "fold", "slide_id", "class_id"),
    (*_SLIDE, *CLASS_FIGURES),
)

_ROLE = Column("role", _TEXT, "Role of the slides that count; val and test are never mixed.")
_METRIC = Column("metric", _TEXT, "Column of slides.parquet that is summarised.")

EXPERIMENTS = TableSchema(
    "experiments",
    1,
    "experiment, role, metric and averaging",
    ("experiment", "role", "metric", "averaging"),
    (
        _STUDY,
        Column("experiment", _TEXT, "Name of the experiment."),
        _ROLE,
        _METRIC,
        Column(
            "averaging",
            _TEXT,
            "slide: mean over slides; patient: mean over patients of their slides' means; pooled: one figure from the "
            "summed counts of all slides; fold: mean over folds of their slides' means (two folds or more).",
        ),
        Column("random_weights", _FLAG, "True: the encoder ran with random weights."),
        Column("n", _COUNT, "What was averaged: slides (slide, pooled), patients, folds; those with a value."),
        Column("n_slides", _COUNT, "Slides behind the figure, those with a value."),
        Column("n_patients", _COUNT, "Patients behind the figure; the interval resamples them."),
        Column("mean", _REAL, "The average, or the pooled figure.", "no slide has a value"),
        Column("std", _REAL, "Standard deviation over what was averaged (n - 1).", "n is less than 2, or pooled"),
        Column(
            "ci_low",
            _REAL,
            "Lower end of the 95 % bootstrap interval: patients resampled with all their slides; percentiles.",
            "fewer than 2 patients, or averaging over folds",
        ),
        Column("ci_high", _REAL, "Upper end.", "as ci_low"),
    ),
)

COMPARISONS = TableSchema(
    "comparisons",
    1,
    "pair of experiments, role and metric",
    ("experiment_a", "experiment_b", "role", "metric"),
    (
        _STUDY,
        Column("experiment_a", _TEXT, "First experiment."),
        Column("experiment_b", _TEXT, "Second experiment."),
        _ROLE,
        _METRIC,
        Column("random_weights", _FLAG, "True: one of the two encoders, or both, ran with random weights."),
        Column("n", _COUNT, "Slides on which both experiments have a value, each slide's folds averaged first."),
        Column("n_patients", _COUNT, "Their patients."),
        Column("mean_a", _REAL, "Mean of the first over these slides.", "n is 0"),
        Column("mean_b", _REAL, "Mean of the second over these slides.", "n is 0"),
        Column("difference", _REAL, "Mean of b - a over these slides.", "n is 0"),
        Column(
            "ci_low",
            _REAL,
            "Lower end of the 95 % bootstrap interval of the difference: patients resampled with all their slides.",
            "fewer than 2 patients",
        ),
        Column("ci_high", _REAL, "Upper end.", "as ci_low"),
        Column(
            "p_value",
            _REAL,
            "Two-sided sign-flip permutation test; a patient's slides flip together. Exact up to 12 patients, else "
            "from 20 000 random flips with a fixed seed.",
            "fewer than 2 patients",
        ),
    ),
)

TRAINING = TableSchema(
    "training",
    1,
    "experiment, fold and epoch",
    ("experiment", "fold", "epoch"),
    (
        *_RUN,
        Column("random_weights", _FLAG, "True: the encoder ran with random weights."),
        Column("epoch", _COUNT, "Epoch, from 0 or 1 as the training counts."),
        Column("lr", _REAL, "Learning rate during the epoch."),
        Column("seconds", _REAL, "Duration of the epoch, validation included.", unit="s"),
        Column("best", _FLAG, "True for the epoch whose weights were kept.", "the training did not say"),
    ),
    (
        OpenColumns(
            "train_",
            _REAL,
            "Training loss (train_loss) and each of its unweighted terms, such as train_nucleus_dice.",
            "the experiment has no such term",
        ),
        OpenColumns(
            "val_",
            _REAL,
            "Validation loss, its terms and scores (val_dice_binary, val_dice_macro, val_hv_mse).",
            "the experiment has no such term, no slide validates, or the score is undefined",
        ),
    ),
)

COSTS = TableSchema(
    "costs",
    1,
    "job of the workflow",
    ("rule", "context", "unit"),
    (
        _STUDY,
        Column("rule", _TEXT, "Stage that the job ran."),
        Column("context", _TEXT, "Grid, encoder, or experiment/fold; empty where there is only one."),
        Column("unit", _TEXT, "The job's name: a bundle of slides, a split, a fold."),
        Column("wildcards", _TEXT, "The same as JSON object."),
        Column("seconds", _REAL, "Wall time.", unit="s"),
        Column("cpu_seconds", _REAL, "Processor time over all threads.", "the job was too short to be measured", "s"),
        Column("max_rss_mb", _REAL, "Highest resident memory.", "the job was too short to be measured", "MB"),
        Column("mean_load", _REAL, "Processor time over wall time, percent.", "the job was too short", "%"),
        Column("gpu_seconds", _REAL, "Time that a GPU computed.", "the job did not report it", "s"),
        Column(
            "tiles_per_s", _REAL, "Tiles a second of wall time.", "the job is not about tiles, or did not say", "1/s"
        ),
        Column("read_mb", _REAL, "Bytes read from storage.", "the system does not tell", "MB"),
        Column("written_mb", _REAL, "Bytes written to storage.", "the system does not tell", "MB"),
    ),
)

FAILURES = TableSchema(
    "failures",
    1,
    "slide (or other item) and stage that failed; stages that only inherited the failure are not listed",
    ("item", "stage", "context"),
    (
        _STUDY,
        Column("slide_id", _TEXT, "The slide that failed.", "what failed is not a slide: a fold, a split, an encoder"),
        Column("item", _TEXT, "What failed; for a slide, its id."),
        Column("stage", _TEXT, "Stage where it first failed."),
        Column("context", _TEXT, "Grid, encoder, or experiment/fold of that stage; empty where there is only one."),
        Column("reason_code", _TEXT, "Stable reason code."),
        Column("message", _TEXT, "What was wrong, where, and what was expected."),
        Column("hint", _TEXT, "How to mend it; may be an empty text."),
    ),
)

#: The report tables by file name, in the order of the report.
REPORT_TABLES: dict[str, TableSchema] = {
    table.name: table for table in (SLIDES, CLASSES, EXPERIMENTS, COMPARISONS, TRAINING, COSTS, FAILURES)
}
