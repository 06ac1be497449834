"""Slides that failed and the trainings: which were left out, and which failed after a decoder had learned from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from slideloom.artefacts.stage import ItemState
from slideloom.artefacts.tables import table_metadata
from slideloom.config.model import StudyConfig
from slideloom.reports.runs import Run, read_records
from slideloom.training.splits import read_split, slides_with_role

__all__ = ["Learned", "count_left_out", "learned_from"]


@dataclass(frozen=True)
class Learned:
    """What the decoders of a study were trained on.

    Attributes
    ----------
    slides : frozenset of str
        Slides that some decoder learned from, or chose its epoch by.
    complete : bool
        Whether every decoder told its slides.
    """

    slides: frozenset[str] = frozenset()
    complete: bool = True

    def saw(self, slide: str | None) -> bool | None:
        """Whether a decoder has seen a slide; None for what is no slide, and where a decoder does not tell."""
        if slide is None:
            return None
        return True if slide in self.slides else False if self.complete else None


def learned_from(runs: Iterable[Run]) -> Learned:
    """Slides that the decoders of runs were trained on, as their histories tell."""
    slides: set[str] = set()
    complete = True
    for run in runs:
        if run.history is None:
            continue
        with pq.ParquetFile(run.history) as file:
            about = table_metadata(file.schema_arrow.empty_table()).get("made_from", {})
            trained = file.metadata.num_rows > 0
        if not trained:  # a published model: it has no epoch here
            continue
        if "slides" in about:
            slides.update(*about["slides"].values())
        else:
            complete = False
    return Learned(frozenset(slides), complete)


def count_left_out(config: StudyConfig, runs: Iterable[Run], job_records: Iterable[Path]) -> dict[tuple[str, str], int]:
    """By experiment and fold, how many slides of the training and validation failed before the training.

    Parameters
    ----------
    config : StudyConfig
        The study.
    runs : iterable of Run
        What was trained.
    job_records : iterable of Path
        Job records of every stage.

    Returns
    -------
    dict of (str, str) to int
        A run whose split has no table is left out, and one of whose stages nothing is known.
    """
    states: dict[tuple[str, str], dict[str, ItemState]] = {}
    for stage, context, items in read_records(job_records):
        states.setdefault((stage, context), {}).update(items)
    counts = {}
    for run in runs:
        read = [found for key in _read_by(config, run.experiment) if (found := states.get(key))]
        if not read or not run.split.is_file():
            continue
        split = read_split(run.split)
        wanted = [slide for role in ("train", "val") for slide in slides_with_role(split, run.fold, role)]
        failed = {slide for found in read for slide, state in found.items() if state.status == "failed"}
        counts[run.experiment, run.fold] = len(failed.intersection(wanted))
    return counts


def _read_by(config: StudyConfig, experiment: str) -> Sequence[tuple[str, str]]:
    """Stages and contexts that a training reads; one that encodes as it goes reads no tokens, and none are stored."""
    own = config.experiments[experiment]
    encoders = own.encoder
    grids = [config.encoders[name].grid for name in encoders]
    stages = [("patches", grid) for grid in grids] + [("targets", grid) for grid in grids[:1]]
    stages += [("cell_targets", grid) for grid in grids[:1] if own.learns_cells]
    return stages + [("embeddings", name) for name in encoders]
