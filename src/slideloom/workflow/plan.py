"""From a study to jobs: which slides a job holds, which config a stage depends on, which records it reads.

Everything here is plain data worked out from the config and the sheet in milliseconds: no slide is opened, no folder is
listed, so that a thousand slides plan in seconds.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from slideloom import reports
from slideloom.artefacts.keys import canonical, code_fingerprint, digest_file
from slideloom.artefacts.paths import Paths
from slideloom.config.catalogue import complete, find_entry
from slideloom.config.model import ExperimentConfig
from slideloom.slides.folds import fold_names
from slideloom.slides.sheet import SlideRow
from slideloom.slides.sides import take_sides
from slideloom.slides.source import parse_source
from slideloom.slides.study import Study

__all__ = ["SLIDE_STAGES", "Plan"]

#: Sheet columns that each stage on slides reads; an edit of another column leaves the stage alone.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "facts": ("he", "sp", "instances", "classes", "he_mpp_um", "sp_mpp_um", "sp_channels"),
    "tissue": ("he", "sp"),
    "patches": ("he", "sp"),
    "targets": ("he", "sp", "instances", "classes"),
    "embeddings": (),
    "bands": ("he", "sp"),
    "maps": ("he", "sp"),
    "instances": (),
    "exports": (),
    "metrics": ("he", "sp", "instances", "classes"),
}
SLIDE_STAGES = tuple(_COLUMNS)
#: Stages that work through the slides of an experiment's fold.
_OF_RUNS = ("bands", "maps", "instances", "exports", "metrics")
#: Keys of an encoder that name files. Where a file lies is no part of a result: its content is.
_FILE_KEYS = ("checkpoint", "marker_embeddings")


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
    def slides(self, images: tuple[str, ...] = (), platforms: tuple[str, ...] = ()) -> frozenset[str]:
        """Slides that have all of the images and are of the platforms (all, when empty)."""
        return frozenset(
            row.slide_id
            for row in self.study.rows
            if all(getattr(row, image) for image in images) and (not platforms or row.platform in platforms)
        )

    def _population(self, stage: str, context: Sequence[str]) -> frozenset[str]:
        if stage in ("patches", "targets"):
            return self.slides((self.config.grids[context[0]].image,))
        if stage == "embeddings":
            return self.slides((self.study.image_of(context[0]),))
        if stage in _OF_RUNS:
            platforms = self.config.splits[self.config.experiments[context[0]].split].platforms
            return self.slides(self.study.images_of(context[0]), tuple(platforms))
        return self.slides()

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
            for fold in fold_names(self.config.splits[experiment.split], self.study.rows)
        ]

    def used_encoders(self) -> list[str]:
        """Encoders that some experiment uses; the others cost nothing."""
        return sorted({encoder for experiment in self.config.experiments.values() for encoder in experiment.encoder})

    def stored_encoders(self, experiment: str, stage: str) -> tuple[str, ...]:
        """Encoders whose stored tokens a stage of an experiment reads: ``train`` or ``maps``.

        A published model is not trained, and live training encodes as it goes. Tiles that are encoded on the fly need
        the stored tokens of the further encoders only: the first one's are made as they are needed.
        """
        config = self.config.experiments[experiment]
        if stage == "train":
            return () if config.pretrained or config.training.input == "live" else config.encoder
        return config.encoder[1:] if self.predicted_live(experiment) else config.encoder

    def predicted_live(self, experiment: str) -> bool:
        """Whether tiles are encoded as they are predicted: the config says so, or the encoder was trained, too."""
        training = self.config.experiments[experiment].training
        return self.config.inference.source == "live" or training.unfreeze_epoch is not None

    def embedded_encoders(self) -> list[str]:
        """Encoders whose tokens are stored."""
        stages = ("train", "maps")
        return sorted(
            {e for name in self.config.experiments for stage in stages for e in self.stored_encoders(name, stage)}
        )

    def used_grids(self) -> list[str]:
        """Grids that some used encoder reads."""
        return sorted({self.config.encoders[name].grid for name in self.used_encoders()})

    def target_grids(self) -> list[str]:
        """Grids whose tiles some experiment is trained or scored on."""
        return sorted({self.study.grid_of(name) for name in self.config.experiments})

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
            records += self.records("patches", grid)
        for grid in self.target_grids():
            records += self.records("targets", grid)
        records += [str(self.paths.job_record("splits", "", split)) for split in self.used_splits()]
        records += [str(self.paths.job_record("statistics", "", name)) for name in self.pooled_encoders()]
        for name in self.embedded_encoders():
            records += self.records("embeddings", name)
        for experiment, fold in self.runs():
            records.append(str(self.paths.job_record("train", experiment, fold)))
            for stage in ("maps", "instances", "metrics", *(["exports"] if self.exports else [])):
                records += self.records(stage, experiment, fold)
            for band in self.bands:
                records += self.records("bands", experiment, fold, band)
        return records

    @property
    def bands(self) -> list[str]:
        """Bands of rows that every slide is predicted in; none where each is predicted whole."""
        count = self.config.jobs.bands
        return [str(band) for band in range(count)] if count > 1 else []

    @property
    def exports(self) -> bool:
        """Whether files for other programs are wanted."""
        return any(self.config.exports.model_dump().values())

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

    def weight_files(self, encoders: Iterable[str]) -> list[str]:
        """Files that encoders are made from: their weights, and embeddings of markers."""
        files = {path for name in encoders for path in self._files(name).values()}
        return sorted(files)

    def pretrained(self, experiment: str) -> list[str]:
        """The published checkpoint of an experiment that is not trained."""
        path = self.config.experiments[experiment].pretrained
        return [str(path)] if path else []

    def _files(self, encoder: str) -> dict[str, str]:
        config = self.config.encoders[encoder]
        return {key: str(path) for key in _FILE_KEYS if (path := getattr(config, key)) is not None}

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
        if files := self._named_files(stage, context):
            body["files"] = files
        if stage == "report_html":
            templates = sorted((Path(reports.__file__).parent / "template").glob("*.j2"))
            body["template"] = [digest_file(path) for path in templates]
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
            "embeddings": lambda encoder: self._encoder(encoder),
            "train": self._train_slice,
            "train_live": self._train_slice,
            "pretrained": self._pretrained_slice,
            "bands": lambda experiment, fold, band: {
                **self._maps_slice(experiment, fold),
                "bands": self.config.jobs.bands,
            },
            "maps": self._maps_slice,
            "instances": lambda experiment, fold: {
                "instances": self.config.instances,
                "image": self.study.images_of(experiment)[0],
                "grid": self.study.grid_of(experiment),
                "classes": self._classes(),
            },
            "exports": lambda experiment, fold: {
                "exports": self.config.exports,
                "image": self.study.images_of(experiment)[0],
                "classes": self._classes(colours=True),
            },
            "metrics": lambda experiment, fold: {
                "evaluation": self.config.evaluation,
                "image": self.study.images_of(experiment)[0],
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

    def _named_files(self, stage: str, context: Sequence[str]) -> dict[str, Any]:
        """Files that a stage opens, by encoder and key; they stand beside the config, not in it."""
        if stage == "embeddings":
            encoders: tuple[str, ...] = (context[0],)
        elif stage in ("train_live", "pretrained", "bands", "maps"):
            encoders = self.config.experiments[context[0]].encoder
        else:
            return {}
        files: dict[str, Any] = {name: found for name in encoders if (found := self._files(name))}
        if stage == "pretrained" and (path := self.pretrained(context[0])):
            files["pretrained"] = path[0]
        return files

    def _encoder(self, name: str) -> dict[str, Any]:
        """All of an encoder's config that its tokens depend on, its files apart."""
        config = complete(self.config.encoders[name])
        body: dict[str, Any] = {"encoder": config.model_dump(mode="json", exclude=set(_FILE_KEYS))}
        entry = find_entry(config.model)
        if entry is not None and entry.embedding:
            body["uniprot"] = {one.marker: one.uniprot for one in self.study.markers.channels if one.uniprot}
        return body

    def _encoders(self, experiment: str) -> list[dict[str, Any]]:
        return [{"name": name, **self._encoder(name)} for name in self.config.experiments[experiment].encoder]

    def _split_slice(self, split: str) -> dict[str, Any]:
        columns = ("slide_id", "patient_id", "platform", "split", "instances")
        config = self.config.splits[split]
        read = [config.column, *([config.stratify] if config.stratify else [])]
        rows = [_pick(row, columns) | {"extra": _extra(row, read)} for row in self.study.rows]
        return {"split": config, "rows": sorted(rows, key=lambda row: str(row["slide_id"]))}

    def _statistics_slice(self, encoder: str) -> dict[str, Any]:
        config = complete(self.config.encoders[encoder])
        body = config.model_dump(mode="json", include={"markers", "normalisation", "grid"})
        return {**body, "split": config.statistics}

    @cache  # noqa: B019
    def _sides(self, split: str) -> dict[str, dict[str, str]]:
        """Roles of the slides by fold."""
        return take_sides(self.study.rows, self.config.splits[split]).folds

    def _train_slice(self, experiment: str, fold: str) -> dict[str, Any]:
        config: ExperimentConfig = self.config.experiments[experiment]
        body: dict[str, Any] = {}
        if config.sampling.gamma > 0 and "group" in config.sampling.by:
            roles, column = self._sides(config.split).get(fold, {}), config.sampling.column
            training = [row for row in self.study.rows if roles.get(row.slide_id) == "train"]
            body["groups"] = {row.slide_id: row.column(column) or "" for row in training}
        return body | {
            "experiment": config.model_dump(mode="json", exclude={"encoder", "split", "pretrained"}),
            "encoders": self._encoders(experiment),
            "grid": self.config.grids[self.study.grid_of(experiment)],
            "split": config.split,
            "classes": self._classes(),
        }

    def _pretrained_slice(self, experiment: str, fold: str) -> dict[str, Any]:
        """What is not trained has no optimiser, no loss and no split."""
        slice_ = self._train_slice(experiment, fold)
        return {name: slice_[name] for name in ("encoders", "grid", "classes")} | {
            "heads": slice_["experiment"]["heads"]
        }

    def _maps_slice(self, experiment: str, fold: str) -> dict[str, Any]:
        live = self.predicted_live(experiment)
        body: dict[str, Any] = {"inference": self.config.inference, "encoders": self._encoders(experiment)}
        body["split"] = self.config.experiments[experiment].split
        return body | ({"grid": self.config.grids[self.study.grid_of(experiment)]} if live else {})

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


def _extra(row: SlideRow, columns: Iterable[str]) -> dict[str, str]:
    return {column: row.extra[column] for column in columns if column in row.extra}
