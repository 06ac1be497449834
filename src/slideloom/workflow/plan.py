"""From a study to jobs: which slides a job holds, which config a stage depends on, which records it reads.

Everything here is plain data worked out from the config and the sheet in milliseconds: no slide is opened, no folder is
listed, so that a thousand slides plan in seconds.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from slideloom import reports
from slideloom.artefacts.files import read_json
from slideloom.artefacts.keys import canonical, code_fingerprint, digest_file
from slideloom.artefacts.paths import Paths
from slideloom.config.model import ExperimentConfig
from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import parse_source
from slideloom.slides.study import Study

__all__ = ["SLIDE_STAGES", "Plan", "forget_broken_records", "share_package"]

#: Sheet columns that each stage on slides reads; an edit of another column leaves the stage alone.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "facts": ("he", "sp", "instances", "classes", "he_mpp_um", "sp_mpp_um", "sp_channels"),
    "tissue": ("he", "sp"),
    "patches": ("he", "sp"),
    "targets": ("he", "sp", "instances", "classes"),
    "embeddings": (),
    "maps": ("he", "sp"),
    "instances": (),
    "metrics": ("he", "sp", "instances", "classes"),
}
SLIDE_STAGES = tuple(_COLUMNS)


class Plan:
    """The jobs of a study.

    Parameters
    ----------
    study : Study
        The checked study.
    scripts : Path
        Folder of the rules' scripts, one a stage, named after it.
    """

    def __init__(self, study: Study, scripts: Path) -> None:
        self.study = study
        self.config = study.config
        self.paths: Paths = study.paths
        self._scripts = scripts
        self._rows = {row.slide_id: row for row in study.rows}

    # ---- slides to jobs -------------------------------------------------------------------------------------------

    @cached_property
    def jobs(self) -> dict[str, tuple[str, ...]]:
        """Slides of each job, by the job's name.

        A slide's job follows from its own id and from a power of two that grows with the cohort, so that a new slide
        joins one job and moves no other.
        """
        wanted = len(self._rows) / self.config.jobs.slides_per_job
        count = 2 ** max(0, math.ceil(math.log2(wanted))) if wanted > 1 else 1
        width = len(str(count - 1))
        jobs: dict[str, list[str]] = {}
        for slide in sorted(self._rows):
            index = zlib.crc32(slide.encode()) % count
            jobs.setdefault(f"{count}-{index:0{width}d}", []).append(slide)
        return {name: tuple(jobs[name]) for name in sorted(jobs)}

    @cache  # noqa: B019 - one plan lives as long as the process
    def slides(self, image: str | None, platforms: tuple[str, ...] = ()) -> frozenset[str]:
        """Slides that have an image (any, when None) and are of the platforms (all, when empty)."""
        return frozenset(
            row.slide_id
            for row in self.study.rows
            if (image is None or getattr(row, image)) and (not platforms or row.platform in platforms)
        )

    def _population(self, stage: str, context: Sequence[str]) -> frozenset[str]:
        if stage in ("patches", "targets"):
            return self.slides(self.config.grids[context[0]].image)
        if stage == "embeddings":
            return self.slides(self.study.image_of(context[0]))
        if stage in ("maps", "instances", "metrics"):
            experiment = self.config.experiments[context[0]]
            platforms = tuple(self.config.splits[experiment.split].platforms)
            return self.slides(self.study.image_of(experiment.encoder), platforms)
        return self.slides(None)

    def job_slides(self, stage: str, context: Sequence[str], job: str) -> tuple[str, ...]:
        """Slides that a job of a stage works through."""
        population = self._population(stage, context)
        return tuple(slide for slide in self.jobs[job] if slide in population)

    def records(self, stage: str, *context: str) -> list[str]:
        """Job records of a stage in one context."""
        join = "/".join(context)
        return [
            str(self.paths.job_record(stage, join, job)) for job in self.jobs if self.job_slides(stage, context, job)
        ]

    # ---- contexts and targets -------------------------------------------------------------------------------------

    def runs(self) -> list[tuple[str, str]]:
        """Every experiment with each of its folds."""
        return [
            (name, fold)
            for name, experiment in self.config.experiments.items()
            for fold in self.config.splits[experiment.split].fold_names
        ]

    def used_encoders(self) -> list[str]:
        """Encoders that some experiment uses; the others cost nothing."""
        return sorted({experiment.encoder for experiment in self.config.experiments.values()})

    def used_grids(self) -> list[str]:
        """Grids that some used encoder reads."""
        return sorted({self.config.encoders[name].grid for name in self.used_encoders()})

    def used_splits(self) -> list[str]:
        """Splits that some experiment or the statistics of a used encoder need."""
        names = {experiment.split for experiment in self.config.experiments.values()}
        names |= {self.config.encoders[name].statistics or "" for name in self.used_encoders()} - {""}
        return sorted(names)

    def pooled_encoders(self) -> list[str]:
        """Used encoders that are normalised with statistics of training slides."""
        return [name for name in self.used_encoders() if self.config.encoders[name].statistics]

    def all_records(self) -> list[str]:
        """Job records of every stage: all are targets, so that a deleted one is made again."""
        records = [*self.records("facts"), *self.records("tissue")]
        for grid in self.used_grids():
            records += [*self.records("patches", grid), *self.records("targets", grid)]
        records += [str(self.paths.job_record("splits", "", split)) for split in self.used_splits()]
        records += [str(self.paths.job_record("statistics", "", name)) for name in self.pooled_encoders()]
        for name in self.used_encoders():
            records += self.records("embeddings", name)
        for experiment, fold in self.runs():
            records.append(str(self.paths.job_record("train", experiment, fold)))
            for stage in ("maps", "instances", "metrics"):
                records += self.records(stage, experiment, fold)
        return records

    # ---- what a rule reads ----------------------------------------------------------------------------------------

    def sources(self, job: str) -> list[str]:
        """Files that the sheet names for the slides of a job, and that exist."""
        texts = {
            text
            for slide in self.jobs[job]
            for column in ("he", "sp", "instances", "classes")
            if (text := getattr(self._rows[slide], column))
        }
        paths = {parse_source(text, self.study.data_root).path for text in texts}
        return sorted(str(path) for path in paths if path.exists())

    def checkpoint(self, encoder: str) -> list[str]:
        """The encoder's weights, when it has any."""
        path = self.config.encoders[encoder].checkpoint
        return [str(path)] if path else []

    # ---- what a rule is keyed by ----------------------------------------------------------------------------------

    def spec(self, stage: str, context: Sequence[str] = (), job: str = "") -> str:
        """Canonical text of all that a job's result depends on, apart from the files it reads.

        Parameters
        ----------
        stage : str
            Name of the stage and of its script.
        context : sequence of str
            Grid, encoder, or experiment and fold.
        job : str
            Name of the job; empty for stages that are not worked slide by slide.
        """
        body: dict[str, Any] = {"stage": stage, "context": "/".join(context), "code": self._code(stage)}
        body["config"] = self._slices[stage](*context)
        if stage == "report_html":
            body["template"] = digest_file(Path(reports.__file__).parent / "template" / "report.html.j2")
        if stage in _COLUMNS:
            slides = self.job_slides(stage, context, job)
            body["items"] = {slide: _pick(self._rows[slide], _COLUMNS[stage]) for slide in slides}
        if stage == "patches":
            body["edited"] = {slide: digest for slide in body["items"] if (digest := self._edited_tissue(slide))}
        return canonical(body)

    @cache  # noqa: B019
    def _code(self, stage: str) -> str:
        return code_fingerprint([self._scripts / f"{stage}.py"])

    @property
    def _slices(self) -> dict[str, Callable[..., dict[str, Any]]]:
        return {
            "facts": lambda: {"markers": self.study.markers.as_dict()},
            "tissue": lambda: {"tissue": self.config.tissue},
            "patches": lambda grid: {"grid": self.config.grids[grid]},
            "targets": lambda grid: {"classes": self._classes()},
            "splits": self._split_slice,
            "statistics": self._statistics_slice,
            "embeddings": lambda encoder: {"encoder": self._encoder(encoder)},
            "train": self._train_slice,
            "maps": self._maps_slice,
            "instances": lambda experiment, fold: {
                "instances": self.config.instances,
                "image": self.study.image_of(self.config.experiments[experiment].encoder),
                "grid": self.study.grid_of(experiment),
                "classes": self._classes(),
            },
            "metrics": lambda experiment, fold: {
                "evaluation": self.config.evaluation,
                "image": self.study.image_of(self.config.experiments[experiment].encoder),
                "grid": self.study.grid_of(experiment),
                "split": self.config.experiments[experiment].split,
                "classes": self._classes(),
            },
            "reports": self._report_slice,
            "report_html": self._report_slice,
        }

    def _classes(self, *, colours: bool = False) -> dict[str, Any]:
        table = self.study.classes.as_dict()
        return table if colours else {**table, "colours": {key: [0, 0, 0] for key in table["colours"]}}

    def _encoder(self, name: str) -> dict[str, Any]:
        return self.config.encoders[name].model_dump(mode="json")

    def _split_slice(self, split: str) -> dict[str, Any]:
        columns = ("slide_id", "patient_id", "platform", "split", "instances")
        config = self.config.splits[split]
        rows = [_pick(row, columns) | {"extra": _extra(row, config.column)} for row in self.study.rows]
        return {"split": config, "rows": sorted(rows, key=lambda row: str(row["slide_id"]))}

    def _statistics_slice(self, encoder: str) -> dict[str, Any]:
        config = self.config.encoders[encoder]
        body = config.model_dump(mode="json", include={"markers", "normalisation", "grid"})
        return {**body, "split": config.statistics}

    def _train_slice(self, experiment: str, fold: str) -> dict[str, Any]:
        config: ExperimentConfig = self.config.experiments[experiment]
        return {
            "experiment": config.model_dump(mode="json", exclude={"encoder", "split"}),
            "encoder": self._encoder(config.encoder),
            "encoder_name": config.encoder,
            "grid": self.config.grids[self.config.encoders[config.encoder].grid],
            "split": config.split,
            "classes": self._classes(),
        }

    def _maps_slice(self, experiment: str, fold: str) -> dict[str, Any]:
        config = self.config.experiments[experiment]
        encoder = config.encoder
        live = self.config.inference.source == "live"
        body: dict[str, Any] = {"inference": self.config.inference, "encoder": self._encoder(encoder)}
        body |= {"encoder_name": encoder, "split": config.split}
        return body | ({"grid": self.config.grids[self.config.encoders[encoder].grid]} if live else {})

    def _report_slice(self) -> dict[str, Any]:
        columns = ("slide_id", "patient_id", "platform", "he", "sp", "instances", "classes")
        study = self.config.model_dump(mode="json", exclude={"results", "data_root", "jobs"})
        for table in ("slides", "markers", "classes"):  # a study that was moved is the same study
            study[table] = Path(study[table]).name if study[table] else None
        return {
            "study": study,
            "classes": self._classes(colours=True),
            "rows": [_pick(row, columns) for row in self.study.rows],
        }

    def _edited_tissue(self, slide: str) -> str:
        """Digest of a tissue outline that a person has edited or brought; empty while it is as it was made."""
        outline = self.paths.tissue(slide)
        if not outline.is_file():
            return ""
        made = outline.with_suffix(".made")
        digest = digest_file(outline)
        return "" if made.is_file() and digest == made.read_text(encoding="utf-8").strip() else digest


def _pick(row: SlideRow, columns: Iterable[str]) -> dict[str, Any]:
    return {column: value for column in columns if (value := getattr(row, column)) is not None}


def _extra(row: SlideRow, column: str) -> dict[str, str]:
    return {column: row.extra[column]} if column in row.extra else {}


def share_package() -> None:
    """Make the package importable in the jobs that this process starts, wherever the clone lies."""
    source = str(Path(__file__).resolve().parents[2])
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != source]
    os.environ["PYTHONPATH"] = os.pathsep.join([source, *others])


def forget_broken_records(records: Iterable[str], root: Path) -> list[str]:
    """Remove job records that promise an artefact which is no longer there, so that its job runs again.

    Snakemake itself does not notice a deleted intermediate artefact whose successors are up to date.

    Parameters
    ----------
    records : iterable of str
        Job records of the study.
    root : Path
        The results folder.

    Returns
    -------
    list of str
        A sentence for each record removed.
    """
    notes = []
    for text in records:
        record = Path(text)
        if not record.is_file():
            continue
        missing = _first_missing(record, root)
        if missing:
            record.unlink()
            notes.append(f"{missing} is gone: its job runs again ({record.relative_to(root)})")
    return notes


def _first_missing(record: Path, root: Path) -> str:
    try:
        body = read_json(record)
        for item, state in body["items"].items():
            if state["status"] != "ok":
                continue
            note = Paths(root).record(body["stage"], body["context"], item)
            if not note.is_file():
                return str(note)
            for output in read_json(note)["outputs"]:
                if not (root / output).exists():
                    return str(root / output)
    except (OSError, ValueError, KeyError, TypeError):
        return str(record)
    return ""
