"""What was trained, predicted and scored: the runs of a study, as its job records tell them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slideloom.artefacts.files import read_json
from slideloom.artefacts.paths import Paths
from slideloom.artefacts.stage import ItemState, load_job_states
from slideloom.config.model import StudyConfig
from slideloom.slides.folds import fold_names
from slideloom.slides.sheet import SlideRow

__all__ = ["Run", "read_records", "runs_of"]


@dataclass(frozen=True)
class Run:
    """One fold of one experiment and what it left.

    Attributes
    ----------
    experiment, fold : str
        Which.
    random_weights : bool
        Its encoder ran with random weights.
    split : Path
        Parquet file with slide_id, fold, role.
    history : Path or None
        Its training history; ``None`` when the training failed.
    metrics : mapping of str to Path
        Folder with ``slide.parquet`` and its kin, by slide; only slides that were scored.
    biology : mapping of str to Path
        Folder with ``biology.parquet`` and ``neighbours.parquet``, by slide; those that were predicted, annotated or
        not.
    """

    experiment: str
    fold: str
    random_weights: bool
    split: Path
    history: Path | None = None
    metrics: Mapping[str, Path] = field(default_factory=dict)
    biology: Mapping[str, Path] = field(default_factory=dict)


def runs_of(config: StudyConfig, rows: Sequence[SlideRow], paths: Paths, job_records: Iterable[Path]) -> list[Run]:
    """Runs of a study, with the slides that its job records call scored.

    Parameters
    ----------
    config : StudyConfig
        The study.
    rows : sequence of SlideRow
        The sheet.
    paths : Paths
        Of its artefacts.
    job_records : iterable of Path
        Job records of any stages; those of ``metrics``, ``biology`` and the trainings count here.

    Returns
    -------
    list of Run
        In the order of the config. Labels of another program have no encoder, and no history.
    """
    done: dict[tuple[str, str], set[str]] = {}
    for stage, context, states in read_records(job_records):
        done.setdefault((stage, context), set()).update(item for item, state in states.items() if state.status == "ok")
    runs = []
    for name, experiment in config.experiments.items():
        random_weights = any(config.encoders[one].random is not None for one in experiment.encoder)
        for fold in fold_names(config.splits[experiment.split], rows):
            context = f"{name}/{fold}"
            live = experiment.training.input == "live"
            stage = "pretrained" if experiment.published else "train_live" if live else "train"
            trained = bool(done.get((stage, context))) or fold in done.get((stage, name), ())
            history = paths.model(name, fold) / "history.parquet"
            there = experiment.labels is None and trained and history.is_file()
            runs.append(
                Run(
                    name,
                    fold,
                    random_weights,
                    paths.split(experiment.split),
                    history if there else None,
                    {slide: paths.metrics(name, fold, slide) for slide in sorted(done.get(("metrics", context), ()))},
                    {slide: paths.biology(name, fold, slide) for slide in sorted(done.get(("biology", context), ()))},
                )
            )
    return runs


def read_records(job_records: Iterable[Path]) -> list[tuple[str, str, dict[str, ItemState]]]:
    """Stage, context and states of the items of each job record, in the order of the paths."""
    found = []
    for record in sorted(set(job_records)):
        body = read_json(record)
        found.append((body["stage"], body["context"], load_job_states([record])))
    return found
