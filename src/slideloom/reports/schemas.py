"""Schemas of the report tables: the stable contract that people read with pandas; ``docs/tables.md`` shows them."""

from __future__ import annotations

from slideloom.artefacts.tables import Column, OpenColumns, TableSchema
from slideloom.metrics.biology_schemas import BIOLOGY_FIGURES, MARKER_FIGURES, NEIGHBOUR_FIGURES
from slideloom.metrics.detail_schemas import CONFUSION_FIGURES
from slideloom.metrics.schemas import CLASS_FIGURES, SLIDE_FIGURES
from slideloom.reports.columns import COUNT, FLAG, METRIC, OF_RUN, OF_SLIDE, RANDOM, REAL, ROLE, STUDY, TEXT
from slideloom.reports.reference_schema import REFERENCES
from slideloom.reports.summary_schemas import CALIBRATION, CURVES, EXPERIMENT_CLASSES, EXPERIMENTS, GROUPS

__all__ = ["BIOLOGY", "CALIBRATION", "CLASSES", "COMPARISONS", "CONFUSION", "COSTS", "CURVES", "EXPERIMENTS",
           "EXPERIMENT_CLASSES", "FAILURES", "GROUPS", "NEIGHBOURS", "PUBLISHED", "REFERENCES", "REPORT_TABLES",
           "SLIDES", "TRAINING", "WARNINGS"]  # fmt: skip

_TEXT, _COUNT, _REAL, _FLAG = TEXT, COUNT, REAL, FLAG
_STUDY, _RUN, _ROLE, _METRIC = STUDY, OF_RUN, ROLE, METRIC
_IMAGE = Column("image", TEXT, "The image that was predicted: he or sp.")
_SLIDE = (
    *OF_SLIDE,
    Column("role", TEXT, "What the slide is to this fold: train, val or test."),
    Column("random_weights", FLAG, "True: the encoder ran with random weights, and the figures say nothing about it."),
    _IMAGE,
)
_PREDICTED = (
    *OF_SLIDE,
    Column(
        "role", TEXT, "What the slide is to this fold: train, val, test or infer.", "the split does not name the slide"
    ),
    RANDOM,
    _IMAGE,
)

SLIDES = TableSchema(
    "slides", 2, "experiment, fold and evaluated slide", ("experiment", "fold", "slide_id"), (*_SLIDE, *SLIDE_FIGURES)
)

CLASSES = TableSchema(
    "classes",
    2,
    "experiment, fold, evaluated slide and class (the background is class 0)",
    ("experiment", "fold", "slide_id", "class_id"),
    (*_SLIDE, *CLASS_FIGURES),
)

CONFUSION = TableSchema(
    "confusion",
    1,
    "experiment, fold, evaluated slide and pair of a true and a predicted class; none where classes are unknown or not "
    "predicted",
    ("experiment", "fold", "slide_id", "true_class_id", "pred_class_id"),
    (*_SLIDE, *CONFUSION_FIGURES),
)

BIOLOGY = TableSchema(
    "biology",
    1,
    "experiment, fold, predicted slide and class, and one for all its nuclei",
    ("experiment", "fold", "slide_id", "scope", "class_name"),
    (*_PREDICTED, *BIOLOGY_FIGURES),
    MARKER_FIGURES,
)

NEIGHBOURS = TableSchema(
    "neighbours",
    1,
    "experiment, fold, predicted slide and ordered pair of classes, and one for all its nuclei",
    ("experiment", "fold", "slide_id", "scope", "class_name", "to_class_name"),
    (*_PREDICTED, *NEIGHBOUR_FIGURES),
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
        Column(
            "n",
            _COUNT,
            "Slides on which both experiments have a value. A slide counts once: its folds are averaged first, those "
            "that both experiments have when they share their split.",
        ),
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
        Column(
            "p_adjusted",
            _REAL,
            "p_value after Holm's correction within its family: all pairs of experiments of the same role and metric.",
            "as p_value",
        ),
        Column("n_family", _COUNT, "Tests in the family."),
        Column(
            "p_smallest",
            _REAL,
            "The smallest p_value that so many patients can give, whatever their differences: 2 / 2ⁿ. At 0.05 or more "
            "no difference could have been shown.",
            "as p_value",
        ),
        Column("p_adjusted_smallest", _REAL, "The same of p_adjusted, were every test at its smallest.", "as p_value"),
        Column(
            "n_folds",
            _COUNT,
            "Folds in which both experiments have a value on a shared slide; 0 when their splits differ.",
        ),
        Column("fold_difference", _REAL, "Mean over these folds of the mean difference b - a.", "n_folds is 0"),
        Column("fold_std", _REAL, "Standard deviation of the folds' differences (n - 1).", "n_folds is less than 2"),
        Column(
            "fold_ci_low",
            _REAL,
            "Lower end of Student's 95 % interval over folds. Folds that share training slides are not independent: "
            "it is too narrow for them.",
            "n_folds is less than 2",
        ),
        Column("fold_ci_high", _REAL, "Upper end.", "as fold_ci_low"),
    ),
)

_NO_NOTE = "a version of Slideloom ran that did not note it"

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
        Column("encoder_lr", _REAL, "Learning rate of the encoder's weights.", "they were not trained"),
        Column(
            "grad_norm",
            _REAL,
            "Length of the gradient before clipping, mean over the epoch's steps.",
            "no step had a finite gradient, or the training did not say",
        ),
        Column("skipped_steps", _COUNT, "Steps not taken for want of a finite gradient.", "the training did not say"),
        Column("wait_share", _REAL, "Part of the training's time spent waiting for patches.", "it did not say"),
        Column("encode_share", _REAL, "Part of it that the encoder's forward passes took.", "tokens were read"),
        Column("n_slides_train", _COUNT, "Slides that were learned from.", _NO_NOTE),
        Column("n_slides_val", _COUNT, "Slides that were validated on.", _NO_NOTE),
        Column(
            "n_slides_failed",
            _COUNT,
            "Slides that the split gives to training or validation and that failed before: they were left out. "
            "failures.parquet says why.",
            "the experiment's split has no table, or a stage before the training left no record",
        ),
    ),
    (
        OpenColumns(
            "train_",
            _REAL,
            "Training loss (train_loss) and each of its unweighted terms, such as train_nucleus_dice; and the rate "
            "(train_patches_per_s).",
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

_NO_ACCOUNT = "the stage keeps no such account"

COSTS = TableSchema(
    "costs",
    2,
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
        Column("wait_read_s", _REAL, "Of the wall time: waiting for what is read.", _NO_ACCOUNT, "s"),
        Column("copy_s", _REAL, "Copying to the device and back.", _NO_ACCOUNT, "s"),
        Column("compute_s", _REAL, "Networks' forward passes.", _NO_ACCOUNT, "s"),
        Column("blend_s", _REAL, "Blending and quantising tiles.", _NO_ACCOUNT, "s"),
        Column("wait_write_s", _REAL, "Of the wall time: waiting for what is written.", _NO_ACCOUNT, "s"),
        Column(
            "tiles_per_s", _REAL, "Tiles a second of wall time.", "the job is not about tiles, or did not say", "1/s"
        ),
        Column("read_mb", _REAL, "Bytes read from storage.", "the system does not tell", "MB"),
        Column("written_mb", _REAL, "Bytes written to storage.", "the system does not tell", "MB"),
        Column("host", _TEXT, "Name of the machine that it ran on.", _NO_NOTE),
        Column("device", _TEXT, "What it computed on: cpu, or the GPUs' name.", _NO_NOTE),
        Column("slideloom_version", _TEXT, "Version of Slideloom that ran.", _NO_NOTE),
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
        Column(
            "trained_on",
            _FLAG,
            "True: the slide failed after a decoder of the study had learned from it, or chosen its epoch by it. "
            "False: it failed before, or plays another part; no decoder has seen it.",
            "what failed is not a slide, or a version of Slideloom trained that did not note its slides",
        ),
    ),
)

WARNINGS = TableSchema(
    "warnings",
    1,
    "slide, stage and warning: what was put up with, and is worth a look",
    ("slide_id", "stage", "context", "message"),
    (
        _STUDY,
        Column("slide_id", _TEXT, "The slide."),
        Column(
            "stage",
            _TEXT,
            "Stage that wrote it down: facts (headers), patches (pixels), targets (annotation), cell_targets "
            "(annotation of whole cells), imported (labels of another program), "
            "statistics (a training slide that does not count in the channel statistics).",
        ),
        Column("context", _TEXT, "Grid, encoder, or experiment/fold of that stage; empty where there is only one."),
        Column("message", _TEXT, "What was found, and what was done about it."),
    ),
)

_NOT_RUN = "the study has no such experiment, or none of its slides has the figure"
_NO_PAIR = "against is null, or one of the two experiments has no value"
_UNTESTED = f"{_NO_PAIR}; fewer than 2 patients; or a figure of the training, which has no slides"

PUBLISHED = TableSchema(
    "published",
    1,
    "figure of the published report that the study's config names, or of the rows that were added to it",
    ("table", "row", "metric"),
    (
        _STUDY,
        Column("table", _TEXT, "Number of the report's table; own: rows that the report does not have."),
        Column("row", _TEXT, "Its row, in the report's words."),
        Column("experiment", _TEXT, "The experiment that stands beside it.", "the row is about the data"),
        Column(
            "metric",
            _TEXT,
            "dice_macro, dice_binary, hv_mse: columns of slides.parquet; val_loss: best validation loss; "
            "val_dice_macro_best, val_dice_macro_mean: best epoch, and mean over epochs, of the validation; dice_rare: "
            "mean Dice of the classes below 1.5 % of the truth's pixels; dice, gt_percent, pred_percent: of the class "
            "that the row names, all slides pooled; class_dice_mean, class_dice_mean_with_background: mean of those "
            "Dice.",
        ),
        Column(
            "class_id",
            _COUNT,
            "The study's class of that name.",
            "the row is not about a class, or the study has no class of its name",
        ),
        Column("published", _REAL, "The published figure.", "the report does not give it"),
        Column("published_std", _REAL, "Its ± as printed: over folds, n in the denominator.", "the report gives none"),
        Column("published_n", _COUNT, "Folds behind it.", "the report does not say, or it is not over folds"),
        Column(
            "published_low",
            _REAL,
            "Lower end of Student's 95 % interval of the published mean over its folds.",
            "published_n or published_std is null",
        ),
        Column("published_high", _REAL, "Upper end.", "as published_low"),
        Column("mean", _REAL, "Ours: mean over folds of their slides' mean, or the pooled figure.", _NOT_RUN),
        Column(
            "std",
            _REAL,
            "Standard deviation over folds (n - 1); of val_dice_macro_mean over epochs (n), as the report has it.",
            "one fold, or a pooled figure",
        ),
        Column(
            "ci_low",
            _REAL,
            "Lower end of the 95 % bootstrap interval: patients resampled with all their slides.",
            "fewer than 2 patients, or a figure of the training",
        ),
        Column("ci_high", _REAL, "Upper end.", "as ci_low"),
        Column("n_slides", _COUNT, "Slides behind ours; 0 for a figure of the training."),
        Column("n_patients", _COUNT, "Their patients."),
        Column("n_folds", _COUNT, "Folds behind ours."),
        Column("random_weights", _FLAG, "True: the encoder ran with random weights.", "the experiment was not run"),
        Column("against", _TEXT, "Experiment that the row is set against.", "it is what others are set against"),
        Column("published_difference", _REAL, "Published figure less that of against.", "either is not published"),
        Column(
            "difference",
            _REAL,
            "Ours less ours of against: mean over shared slides (of a class: of each slide's Dice), or over folds for "
            "a figure of the training.",
            _NO_PAIR,
        ),
        Column("n_paired", _COUNT, "Patients behind the difference.", f"{_NO_PAIR}, or a figure of the training"),
        Column("difference_low", _REAL, "Lower end of its 95 % bootstrap interval over patients.", _UNTESTED),
        Column("difference_high", _REAL, "Upper end.", _UNTESTED),
        Column("p_value", _REAL, "As in comparisons.parquet.", _UNTESTED),
        Column(
            "p_adjusted",
            _REAL,
            "After Holm's correction within its family: the differences of the same table (Table 6: the classes are a "
            "family of their own). These comparisons were laid down before anything ran; comparisons.parquet corrects "
            "for all pairs.",
            _UNTESTED,
        ),
        Column("p_adjusted_smallest", _REAL, "The smallest p_adjusted that so many patients can give.", _UNTESTED),
        Column("finding", _TEXT, "What the difference says of the report's.", "the report states no difference"),
        Column("note", _TEXT, "What must be known to read the row; may be an empty text."),
    ),
)

#: The report tables by file name, in the order of the report.
REPORT_TABLES: dict[str, TableSchema] = {
    table.name: table
    for table in (
        SLIDES, CLASSES, EXPERIMENTS, GROUPS, EXPERIMENT_CLASSES, CONFUSION, CURVES, CALIBRATION, COMPARISONS,
        PUBLISHED, REFERENCES, BIOLOGY, NEIGHBOURS, TRAINING, COSTS, FAILURES,
        WARNINGS,
    )
}  # fmt: skip
