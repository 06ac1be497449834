"""Columns that several report tables share."""

from __future__ import annotations

import pyarrow as pa

from slideloom.artefacts.tables import Column

__all__ = ["COUNT", "EXPERIMENT", "FLAG", "METRIC", "OF_RUN", "OF_SLIDE", "RANDOM", "REAL", "ROLE", "STUDY", "TEXT"]

TEXT, COUNT, REAL, FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()

STUDY = Column("study", TEXT, "Name of the study.")
EXPERIMENT = Column("experiment", TEXT, "Name of the experiment.")
#: Whose row it is: a fold of an experiment.
OF_RUN = (STUDY, EXPERIMENT, Column("fold", TEXT, "Fold of the experiment's split."))
#: Whose row it is: a slide that a fold predicted.
OF_SLIDE = (
    *OF_RUN,
    Column("slide_id", TEXT, "The slide, as in the sheet."),
    Column("patient_id", TEXT, "Its patient, as in the sheet."),
    Column("platform", TEXT, "Its platform, as in the sheet."),
    Column(
        "tissue", TEXT, "Its organ: the sheet's column tissue.", "the sheet has no column tissue, or it is empty there"
    ),
)
#: Role of a row that stands for several slides.
ROLE = Column("role", TEXT, "Role of the slides that count; val and test are never mixed.")
METRIC = Column("metric", TEXT, "Column of slides.parquet that is summarised.")
RANDOM = Column("random_weights", FLAG, "True: the encoder ran with random weights, and the figures say nothing of it.")
