"""Gather what the stages left behind into the report tables.

Nothing here looks for files: what to read is passed in, so that a rule's inputs decide, and a left-over of an earlier
run of a slide that now fails is not mistaken for a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slideloom.artefacts.paths import Paths
from slideloom.artefacts.tables import table_metadata, write_table
from slideloom.config.model import StudyConfig
from slideloom.reports.aggregate import summarise_experiments
from slideloom.reports.beside import published_rows
from slideloom.reports.comparisons import compare_experiments
from slideloom.reports.groups import group_table
from slideloom.reports.job_tables import gather_costs, gather_failures
from slideloom.reports.quarantine import count_left_out, learned_from
from slideloom.reports.references import reference_rows
from slideloom.reports.runs import Run, runs_of
from slideloom.reports.schemas import REPORT_TABLES, TRAINING
from slideloom.reports.slide_tables import gather_slides, note_encoders
from slideloom.reports.warned import gather_warnings
from slideloom.slides.sheet import SlideRow

__all__ = ["Run", "gather_reports", "gather_training", "runs_of"]


def gather_reports(
    study: str,
    runs: Sequence[Run],
    rows: Sequence[SlideRow],
    job_records: Iterable[Path],
    benchmarks: Iterable[Path],
    results: Path,
    place: Path,
    *,
    accounts: Mapping[tuple[str, str, str], Mapping[str, Any]] | None = None,
    made_from: Mapping[str, Any] | None = None,
    published: str | None = None,
    config: StudyConfig | None = None,
) -> dict[str, pa.Table]:
    """Write the report tables.

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
        By (rule, context, unit): what the job wrote beside its benchmark (``n_tiles``, ``gpu_seconds``, ``read_s`` …,
        ``made``).
    made_from : mapping, optional
        JSON values for the metadata of every table, beside ``encoder_weights``, ``encoder_notes`` and ``evaluation``:
        by experiment, the digests of the encoder's weights, what was noted of it, and how slides were scored, as the
        scored slides recorded them.
    published : str, optional
        The published report that the study names (``StudyConfig.published``).
    config : StudyConfig, optional
        The study's; needed for the rows of ``references.parquet``.

    Returns
    -------
    dict of str to pyarrow.Table
        By name; the files are ``{place}/{name}.parquet``. Without slides the tables are empty, columns complete.
    """
    found = gather_slides(runs, rows)
    job_records = list(job_records)
    left_out = count_left_out(config, runs, job_records) if config is not None else {}
    training = [
        row | {"n_slides_failed": left_out.get((row["experiment"], row["fold"]))}
        for row in gather_training(runs, found.recorded)
    ]
    splits = {run.experiment: run.split.stem for run in runs}
    experiments = summarise_experiments(found.slides, found.pooled)
    groups = group_table(found.slides)
    gathered: dict[str, list[dict[str, Any]] | pa.Table] = {
        "slides": found.slides,
        "experiments": experiments,
        "groups": groups,
        "experiment_classes": found.experiment_classes,
        "calibration": found.calibration,
        "comparisons": compare_experiments(found.slides, splits),
        "training": training,
        "costs": gather_costs(benchmarks, results, accounts or {}),
        "failures": gather_failures(
            job_records,
            {row.slide_id for row in rows},
            learned_from(runs),
            {"cell_targets": learned_from(_learning_cells(runs, config))},
        ),
        "warnings": gather_warnings(job_records, Paths(results)),
        **found.tables,
    }
    if published is not None:
        classes = found.tables["classes"].to_pylist() if "classes" in found.tables else []
        gathered["published"] = published_rows(published, found.slides, classes, training, splits)
    if config is not None and config.references:
        gathered["references"] = reference_rows(config, experiments, groups.to_pylist(), found.experiment_classes)
    origin = {**found.recorded, **(made_from or {})}
    return {
        name: write_table(schema, _of_study(study, gathered.get(name, [])), place / f"{name}.parquet", made_from=origin)
        for name, schema in REPORT_TABLES.items()
    }


def _of_study(study: str, rows: list[dict[str, Any]] | pa.Table) -> list[dict[str, Any]] | pa.Table:
    if isinstance(rows, pa.Table):
        return rows.append_column("study", pa.repeat(study, rows.num_rows))
    return [{"study": study} | row for row in rows]


def gather_training(
    runs: Sequence[Run], recorded: Mapping[str, dict[str, list[str]]] | None = None
) -> list[dict[str, Any]]:
    """Rows of ``training.parquet``, without the study: the history of every trained run.

    Parameters
    ----------
    runs : sequence of Run
        What was trained.
    recorded : mapping of str to dict, optional
        As :func:`~slideloom.reports.slide_tables.gather_slides` gives it; what the histories' metadata say of encoders
        is added for experiments of which no slide was scored.
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
        note_encoders(told, run.experiment, table_metadata(table).get("made_from", {}))
    for key, by_experiment in (recorded or {}).items():
        by_experiment |= {name: texts for name, texts in told.get(key, {}).items() if name not in by_experiment}
    return result


def _learning_cells(runs: Iterable[Run], config: StudyConfig | None) -> list[Run]:
    """Runs whose decoders learn whole cells: the others never ask for a slide's annotation of them."""
    own = {} if config is None else config.experiments
    return [run for run in runs if run.experiment in own and own[run.experiment].learns_cells]
