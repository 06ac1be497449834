"""Gather what the stages left behind into the report tables.

Nothing here looks for files: what to read is passed in, so that a rule's inputs decide, and a left-over of an earlier
run of a slide that now fails is not mistaken for a result.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slideloom.artefacts.files import read_json
from slideloom.artefacts.paths import Paths
from slideloom.artefacts.stage import ItemState, load_job_states
from slideloom.artefacts.tables import read_table, table_metadata, write_table
from slideloom.config.model import StudyConfig
from slideloom.metrics.schemas import CLASS_METRICS, SLIDE_METRICS
from slideloom.reports.aggregate import summarise_experiments
from slideloom.reports.beside import published_rows
from slideloom.reports.comparisons import compare_experiments
from slideloom.reports.schemas import REPORT_TABLES, TRAINING
from slideloom.slides.folds import fold_names
from slideloom.slides.sheet import SlideRow

__all__ = [
    "Run",
    "gather_costs",
    "gather_failures",
    "gather_reports",
    "gather_slides",
    "gather_training",
    "runs_of",
]

#: Stages whose items are not slides.
_NOT_SLIDES = {"splits", "statistics", "train"}
#: What artefacts record of the encoder that they come from.
_OF_ENCODERS = ("encoder_weights", "encoder_notes")


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
        Folder with ``slide.parquet`` and ``classes.parquet``, by slide; only slides that were scored.
    """

    experiment: str
    fold: str
    random_weights: bool
    split: Path
    history: Path | None = None
    metrics: Mapping[str, Path] = field(default_factory=dict)


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
        Job records of any stages; those of ``metrics`` and ``train`` count here.

    Returns
    -------
    list of Run
        In the order of the config.
    """
    done: dict[tuple[str, str], set[str]] = {}
    for stage, context, states in _read_records(job_records):
        done.setdefault((stage, context), set()).update(item for item, state in states.items() if state.status == "ok")
    runs = []
    for name, experiment in config.experiments.items():
        random_weights = any(config.encoders[one].random is not None for one in experiment.encoder)
        for fold in fold_names(config.splits[experiment.split], rows):
            context = f"{name}/{fold}"
            live = experiment.training.input == "live"
            stage = "pretrained" if experiment.pretrained else "train_live" if live else "train"
            trained = bool(done.get((stage, context))) or fold in done.get((stage, name), ())
            history = paths.model(name, fold) / "history.parquet"
            scored = sorted(done.get(("metrics", context), ()))
            metrics = {slide: paths.metrics(name, fold, slide) for slide in scored}
            split = paths.split(experiment.split)
            runs.append(
                Run(name, fold, random_weights, split, history if trained and history.is_file() else None, metrics)
            )
    return runs


def gather_reports(
    study: str,
    runs: Sequence[Run],
    rows: Sequence[SlideRow],
    job_records: Iterable[Path],
    benchmarks: Iterable[Path],
    results: Path,
    place: Path,
    *,
    accounts: Mapping[tuple[str, str, str], Mapping[str, float]] | None = None,
    made_from: Mapping[str, Any] | None = None,
    published: str | None = None,
) -> dict[str, pa.Table]:
    """Write the eight report tables.

    Parameters
    ----------
    study : str
        Its name.
    runs : sequence of Run
        What was trained and scored, as :func:`runs_of` gives it.
    rows : sequence of SlideRow
        The sheet.
    job_records : iterable of Path
        Job records of every stage.
    benchmarks : iterable of Path
        Snakemake benchmark files, ``{results}/benchmarks/{stage}/{context}/{unit}.tsv``.
    results : Path
        The results folder.
    place : Path
        Folder to write to.
    accounts : mapping, optional
        By (rule, context, unit): ``tiles`` and ``gpu_seconds``, where a job told them.
    made_from : mapping, optional
        JSON values for the metadata of every table, beside ``encoder_weights`` and ``encoder_notes``: by experiment,
        the digests of the encoder's weights and what was noted of it, as the scored slides recorded them.
    published : str, optional
        The published report that the study names (``StudyConfig.published``).

    Returns
    -------
    dict of str to pyarrow.Table
        By name; the files are ``{place}/{name}.parquet``. Without slides the tables are empty, columns complete.
    """
    slides, classes, recorded = gather_slides(runs, rows)
    training = gather_training(runs, recorded)
    splits = {run.experiment: run.split.stem for run in runs}
    origin = {**recorded, **(made_from or {})}
    gathered: dict[str, list[dict[str, Any]]] = {
        "slides": slides,
        "classes": classes,
        "experiments": summarise_experiments(slides),
        "comparisons": compare_experiments(slides, splits),
        "training": training,
        "costs": gather_costs(benchmarks, results, accounts or {}),
        "failures": gather_failures(job_records, {row.slide_id for row in rows}),
        "published": published_rows(published, slides, classes, training, splits),
    }
    return {
        name: write_table(
            schema, [{"study": study} | row for row in gathered[name]], place / f"{name}.parquet", made_from=origin
        )
        for name, schema in REPORT_TABLES.items()
    }


def gather_slides(
    runs: Sequence[Run], rows: Sequence[SlideRow]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, dict[str, list[str]]]]:
    """Rows of ``slides.parquet`` and ``classes.parquet``, without the study, and which encoders they come from.

    Parameters
    ----------
    runs : sequence of Run
        What was scored.
    rows : sequence of SlideRow
        The sheet, for patients and platforms.

    Returns
    -------
    slides, classes : list of dict
        In the order of the runs, slides in alphabetical order.
    recorded : dict of str to dict of str to list of str
        By experiment, what its slides' maps say of the encoder. ``encoder_weights``: ``sha256:<digits>``,
        ``random:<seed>`` or ``none``, one text each unless they were made at different times from different files.
        ``encoder_notes``: what a reader must know, such as channels that were left out.
    """
    sheet = {row.slide_id: row for row in rows}
    roles: dict[Path, dict[tuple[str, str], str]] = {}
    slides: list[dict[str, Any]] = []
    classes: list[dict[str, Any]] = []
    recorded: dict[str, dict[str, list[str]]] = {key: {} for key in _OF_ENCODERS}
    for run in runs:
        if run.metrics and run.split not in roles:
            lines = pq.read_table(run.split, columns=["slide_id", "fold", "role"], partitioning=None).to_pylist()
            roles[run.split] = {(line["slide_id"], line["fold"]): line["role"] for line in lines}
        for slide, folder in sorted(run.metrics.items()):
            about = {
                "experiment": run.experiment,
                "fold": run.fold,
                "patient_id": sheet[slide].patient_id,
                "platform": sheet[slide].platform,
                "role": roles[run.split][slide, run.fold],
                "random_weights": run.random_weights,
            }
            table = read_table(SLIDE_METRICS, folder / "slide.parquet")
            slides += [about | line for line in table.to_pylist()]
            classes += [about | line for line in read_table(CLASS_METRICS, folder / "classes.parquet").to_pylist()]
            _note_encoders(recorded, run.experiment, table_metadata(table)["made_from"].get("maps", {}))
    return slides, classes, recorded


def gather_training(
    runs: Sequence[Run], recorded: Mapping[str, dict[str, list[str]]] | None = None
) -> list[dict[str, Any]]:
    """Rows of ``training.parquet``, without the study: the history of every trained run.

    Parameters
    ----------
    runs : sequence of Run
        What was trained.
    recorded : mapping of str to dict, optional
        As :func:`gather_slides` gives it; what the histories' metadata say of encoders is added for experiments of
        which no slide was scored.
    """
    kept = set(TRAINING.names) - {"study", "experiment", "fold", "random_weights", "best"}
    told: dict[str, dict[str, list[str]]] = {}
    result = []
    for run in runs:
        if run.history is None:
            continue
        about = {"experiment": run.experiment, "fold": run.fold, "random_weights": run.random_weights}
        table = pq.read_table(run.history, partitioning=None)
        for line in table.to_pylist():
            known = {name: value for name, value in line.items() if name in kept or TRAINING.open_for(name)}
            result.append(about | {"best": line.get("is_best")} | known)
        _note_encoders(told, run.experiment, table_metadata(table).get("made_from", {}))
    for key, by_experiment in (recorded or {}).items():
        by_experiment |= {name: texts for name, texts in told.get(key, {}).items() if name not in by_experiment}
    return result


def _note_encoders(recorded: dict[str, dict[str, list[str]]], experiment: str, about: Mapping[str, Any]) -> None:
    """Add what an artefact says of its encoder to what is known of the experiment, each text once."""
    for key in _OF_ENCODERS:
        if key in about:
            texts = about[key] if isinstance(about[key], list) else [about[key]]
            own = recorded.setdefault(key, {})
            own[experiment] = list(dict.fromkeys([*own.get(experiment, []), *map(str, texts)]))


#: Columns of the costs by what a job's account calls them.
_STALLS = {
    "wait_read_s": "read_s",
    "copy_s": "copy_s",
    "compute_s": "forward_s",
    "blend_s": "blend_s",
    "wait_write_s": "write_s",
}


def gather_costs(
    benchmarks: Iterable[Path], results: Path, accounts: Mapping[tuple[str, str, str], Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Rows of ``costs.parquet``, without the study, from Snakemake's benchmark files and the jobs' own accounts."""
    root = results / "benchmarks"
    lines = []
    for path in sorted(set(benchmarks)):
        rule, *context_parts = path.relative_to(root).parent.parts
        context, unit = "/".join(context_parts), path.stem
        with path.open(newline="", encoding="utf-8") as handle:
            measured = list(csv.DictReader(handle, delimiter="\t"))
        if not measured:
            continue
        last = measured[-1]  # a job that was tried again is told by its last attempt
        seconds = _number(last.get("s")) or 0.0
        account = accounts.get((rule, context, unit), {})
        tiles = account.get("n_tiles")
        lines.append(
            {
                "rule": rule,
                "context": context,
                "unit": unit,
                "wildcards": json.dumps({"context": context, "unit": unit}, ensure_ascii=False),
                "seconds": seconds,
                "cpu_seconds": _number(last.get("cpu_time")),
                "max_rss_mb": _number(last.get("max_rss")),
                "mean_load": _number(last.get("mean_load")),
                "gpu_seconds": account.get("gpu_seconds"),
                **{column: account.get(name) for column, name in _STALLS.items()},
                "tiles_per_s": tiles / seconds if tiles and seconds else None,
                "read_mb": _number(last.get("io_in")),
                "written_mb": _number(last.get("io_out")),
            }
        )
    return lines


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:  # Snakemake writes NA or - where it could not measure
        return None
    return value if 0 <= value < float("inf") else None


def gather_failures(job_records: Iterable[Path], slide_ids: set[str]) -> list[dict[str, Any]]:
    """Rows of ``failures.parquet``, without the study: every failure once, where it first happened.

    Parameters
    ----------
    job_records : iterable of Path
        Job records of every stage; stages after the failing one repeat its state, which is not listed again.
    slide_ids : set of str
        Slides of the sheet.
    """
    own: dict[tuple[str, str, str], dict[str, Any]] = {}
    inherited: dict[tuple[str, str, str], dict[str, Any]] = {}
    for stage, context, states in _read_records(job_records):
        for item, state in states.items():
            if state.status != "failed":
                continue
            here = state.stage == stage
            key = (item, state.stage, context if here else "")
            (own if here else inherited)[key] = {
                "slide_id": item if item in slide_ids and not (here and stage in _NOT_SLIDES) else None,
                "item": item,
                "stage": state.stage,
                "context": key[2],
                "reason_code": state.code,
                "message": state.message,
                "hint": state.hint,
            }
    # A failure is inherited by other items, too: every slide of an experiment whose training failed.
    told = {(row["stage"], row["reason_code"], row["message"]) for row in own.values()}
    own |= {
        key: row for key, row in inherited.items() if (row["stage"], row["reason_code"], row["message"]) not in told
    }
    return [own[key] for key in sorted(own)]


def _read_records(job_records: Iterable[Path]) -> list[tuple[str, str, dict[str, ItemState]]]:
    """Stage, context and states of each job record."""
    found = []
    for record in sorted(set(job_records)):
        body = read_json(record)
        found.append((body["stage"], body["context"], load_job_states([record])))
    return found
