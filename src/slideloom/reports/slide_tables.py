"""Gather what scored and predicted slides left behind: a table of each kind, and what all slides together say.

A slide's large tables stay tables: they are put one after another, and their rows never become Python objects. Scores
by probability are added up slide by slide, so that one experiment's are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slideloom.artefacts.tables import TableSchema, read_table, table_metadata
from slideloom.metrics.biology_schemas import BIOLOGY, NEIGHBOURS
from slideloom.metrics.conventions import DEFAULT
from slideloom.metrics.detail_schemas import CONFUSION, SCORES
from slideloom.metrics.schemas import CLASS_METRICS, SLIDE_METRICS
from slideloom.reports.aggregate import pooled_line
from slideloom.reports.averages import divide
from slideloom.reports.class_summary import summarise_classes
from slideloom.reports.curves import PooledScores
from slideloom.reports.runs import Run
from slideloom.slides.sheet import SlideRow

__all__ = ["Gathered", "gather_slides", "note_encoders"]

#: What artefacts record of the encoder that they come from.
_OF_ENCODERS = ("encoder_weights", "encoder_notes")
#: Report table, schema of the slide's file, and the file; of scored and of predicted slides.
_SCORED = (("classes", CLASS_METRICS, "classes.parquet"), ("confusion", CONFUSION, "confusion.parquet"))
_PREDICTED = (("biology", BIOLOGY, "biology.parquet"), ("neighbours", NEIGHBOURS, "neighbours.parquet"))
_FLAGS = ("random_weights",)


@dataclass
class Gathered:
    """Rows of report tables, without the study.

    Attributes
    ----------
    slides : list of dict
        In the order of the runs, slides in alphabetical order.
    tables : dict of str to pyarrow.Table
        ``classes``, ``confusion``, ``biology``, ``neighbours`` and ``curves``; one that nothing is known of is missing.
    calibration, experiment_classes : list of dict
        Likewise, of experiments.
    pooled : dict
        By experiment, role and column of ``slides.parquet``: pooled figures for
        :func:`~slideloom.reports.aggregate.summarise_experiments`.
    recorded : dict of str to dict
        By experiment, what its slides' files say. ``encoder_weights``: ``sha256:<digits>``, ``random:<seed>``,
        ``labels`` or ``none``, one text each unless they were made at different times from different files.
        ``encoder_notes``: what a reader must know, such as channels that were left out. ``evaluation``: the config's
        section of that name, as the slides were scored.
    """

    slides: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, pa.Table] = field(default_factory=dict)
    calibration: list[dict[str, Any]] = field(default_factory=list)
    experiment_classes: list[dict[str, Any]] = field(default_factory=list)
    pooled: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    recorded: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {key: {} for key in (*_OF_ENCODERS, "evaluation")}
    )


def gather_slides(runs: Sequence[Run], rows: Sequence[SlideRow]) -> Gathered:
    """Read every slide's files, and sum them up by experiment and role.

    Parameters
    ----------
    runs : sequence of Run
        What was predicted and scored.
    rows : sequence of SlideRow
        The sheet, for patients, platforms and tissues.

    Returns
    -------
    Gathered
    """
    sheet = _Sheet(rows)
    found = Gathered()
    parts: dict[str, list[pa.Table]] = {}
    for experiment in dict.fromkeys(run.experiment for run in runs):
        own = [run for run in runs if run.experiment == experiment]
        of_scored = _scored(own, sheet, found)
        of_predicted = [
            (sheet.about(run, slide), folder) for run in own for slide, folder in sorted(run.biology.items())
        ]
        tables = of_scored | {name: _joined(schema, file, of_predicted) for name, schema, file in _PREDICTED}
        for name, table in tables.items():
            if table is not None:
                parts.setdefault(name, []).append(table)
    found.tables = {name: pa.concat_tables(own, promote_options="default") for name, own in parts.items()}
    return found


class _Sheet:
    """What the sheet and the splits say of slides."""

    def __init__(self, rows: Sequence[SlideRow]) -> None:
        self._rows = {row.slide_id: row for row in rows}
        self._roles: dict[Path, dict[tuple[str, str], str]] = {}

    def about(self, run: Run, slide: str) -> dict[str, Any]:
        """Columns that say whose row it is; the role is None where the split does not name the slide."""
        if run.split not in self._roles:
            lines = pq.read_table(run.split, columns=["slide_id", "fold", "role"], partitioning=None).to_pylist()
            self._roles[run.split] = {(line["slide_id"], line["fold"]): line["role"] for line in lines}
        row = self._rows[slide]
        return {
            "experiment": run.experiment,
            "fold": run.fold,
            "patient_id": row.patient_id,
            "platform": row.platform,
            "tissue": row.column("tissue") or None,
            "role": self._roles[run.split].get((slide, run.fold)),
            "random_weights": run.random_weights,
        }


def _scored(runs: Sequence[Run], sheet: _Sheet, found: Gathered) -> dict[str, pa.Table | None]:
    """The scored slides of one experiment: their tables; the rest goes to ``found``."""
    slides = [(sheet.about(run, slide), slide, folder) for run in runs for slide, folder in sorted(run.metrics.items())]
    scores: dict[str, PooledScores] = {}
    of_slides: list[pa.Table] = []
    convention = DEFAULT.name
    for about, slide, folder in slides:
        table, made_from = _read(SLIDE_METRICS, folder / "slide.parquet")
        of_slides.append(table)
        note_encoders(found.recorded, about["experiment"], made_from.get("maps", {}))
        if "evaluation" in made_from:
            found.recorded["evaluation"][about["experiment"]] = made_from["evaluation"]
            convention = made_from["evaluation"].get("convention", convention)
        pixels, _ = _read(SCORES, folder / "scores.parquet")
        scores.setdefault(about["role"], PooledScores()).add(pixels, slide, about["patient_id"])
    if of_slides:
        lines = pa.concat_tables(of_slides).to_pylist()
        found.slides += [about | line for (about, _, _), line in zip(slides, lines, strict=True)]
    tables = {name: _joined(schema, file, [(about, at) for about, _, at in slides]) for name, schema, file in _SCORED}
    curves = []
    for role, pixels_of_role in scores.items():
        experiment = runs[0].experiment
        whose = {"experiment": experiment, "role": role, "random_weights": runs[0].random_weights}
        own = {name: _of_role(table, role) for name, table in tables.items() if table is not None}
        classes, over_classes = summarise_classes(own["classes"], pixels_of_role.class_figures(), convention)
        found.experiment_classes += [whose | line for line in classes]
        found.calibration += [whose | line for line in pixels_of_role.calibration()]
        figures = over_classes | pixels_of_role.figures() | _class_accuracy(own["confusion"])
        found.pooled |= {(experiment, role, metric): line for metric, line in figures.items()}
        points = pixels_of_role.curves()
        curves.append(_with(points, {name: [value] for name, value in whose.items()}, np.zeros(points.num_rows, int)))
    return tables | {"curves": pa.concat_tables(curves) if curves else None}


def _of_role(table: pa.Table, role: str) -> pa.Table:
    return table.filter(pc.equal(table["role"], role))


def _class_accuracy(confusion: pa.Table) -> dict[str, dict[str, Any]]:
    """Share of all pixels with the right class: of those of known class, and of those inside nuclei."""
    true, predicted = (confusion[name].to_numpy() for name in ("true_class_id", "pred_class_id"))
    pixels = confusion["pixels"].to_numpy().astype(np.float64)
    right = pixels * (true == predicted)
    counts = np.stack([right, pixels, right * (true > 0), pixels * (true > 0)], axis=1)
    lines = pooled_line(
        counts,
        confusion["patient_id"].to_pylist(),
        pc.count_distinct(confusion["slide_id"]).as_py(),
        lambda c: divide(c[:, ::2], c[:, 1::2]),
    )
    return dict(zip(("class_accuracy", "class_accuracy_nuclei"), lines, strict=True))


def _joined(schema: TableSchema, file: str, items: Sequence[tuple[Mapping[str, Any], Path]]) -> pa.Table | None:
    """The files of some slides, one after another, each under whose it is; None without any."""
    if not items:
        return None
    tables = [_read(schema, folder / file)[0] for _, folder in items]
    whose = {name: [about[name] for about, _ in items] for name in items[0][0]}
    at = np.repeat(np.arange(len(tables)), [table.num_rows for table in tables])
    # In one piece: thousands of small arrays would weigh more than what is in them.
    return _with(pa.concat_tables(tables, promote_options="default").combine_chunks(), whose, at)


def _with(table: pa.Table, whose: Mapping[str, Sequence[Any]], at: Any) -> pa.Table:
    """A table with more columns: row k has the values number ``at[k]``."""
    taken = pa.array(at, pa.int64())
    for name, values in whose.items():
        column = pa.array(values, pa.bool_() if name in _FLAGS else pa.string()).take(taken)
        table = table.append_column(name, column)
    return table


def _read(schema: TableSchema, place: Path) -> tuple[pa.Table, dict[str, Any]]:
    """A slide's table and what it was made from. Its values are checked once, as the report table is written."""
    with pq.ParquetFile(place) as file:
        table = file.read(use_threads=False)
    about = table_metadata(table)
    if (about.get("schema"), about.get("schema_version")) != (schema.name, schema.version):
        read_table(schema, place)  # says what is wrong
    return table.replace_schema_metadata(None), about["made_from"]


def note_encoders(recorded: dict[str, dict[str, Any]], experiment: str, about: Mapping[str, Any]) -> None:
    """Add what an artefact says of its encoder to what is known of the experiment, each text once.

    Parameters
    ----------
    recorded : dict of str to dict
        By key and experiment; see :class:`Gathered`. Added to.
    experiment : str
        The experiment.
    about : mapping
        Attributes of an artefact.
    """
    for key in _OF_ENCODERS:
        if key in about:
            texts = about[key] if isinstance(about[key], list) else [about[key]]
            own = recorded.setdefault(key, {})
            own[experiment] = list(dict.fromkeys([*own.get(experiment, []), *map(str, texts)]))
