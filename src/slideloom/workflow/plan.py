"""From a study to jobs: which slides a job holds, which config a stage depends on, which records it reads.

Everything here is plain data worked out from the config, the sheet and the sizes of files: no slide is opened, no
folder is listed, so that a thousand slides plan in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from slideloom import reports
from slideloom.artefacts.keys import canonical, digest_file
from slideloom.artefacts.paths import Paths
from slideloom.slides.external import external_sources
from slideloom.slides.folds import fold_names
from slideloom.slides.source import parse_source
from slideloom.slides.study import Study
from slideloom.workflow.bins import Load, gather_bins, load_of, weigh_slides
from slideloom.workflow.fingerprints import stage_fingerprints
from slideloom.workflow.slices import Slices, pick

__all__ = ["SLIDE_STAGES", "Plan"]

#: Sheet columns that each stage on slides reads; an edit of another column leaves the stage alone.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "facts": ("he", "sp", "instances", "classes", "he_mpp_um", "sp_mpp_um", "sp_channels"),
    "tissue": ("he", "sp"),
    "patches": ("he", "sp"),
    "targets": ("he", "sp", "instances", "classes"),
    "cell_targets": ("cells",),
    "embeddings": (),
    "bands": ("he", "sp"),
    "maps": ("he", "sp"),
    "instances": (),
    "imported": (),
    "biology": (),
    "exports": (),
    "metrics": ("he", "sp", "instances", "classes"),
}
SLIDE_STAGES = tuple(_COLUMNS)
#: Columns of the slides that a verifier is fitted on.
_JUDGED_BY = ("patient_id", "he", "sp", "instances", "classes")
#: Files of the package's reports that a stage reads, though it imports none of them.
_PACKAGE_DATA = {"reports": "data/*.csv", "report_html": "template/*.j2"}
#: Stages that work through the slides of an experiment's fold.
_OF_RUNS = ("bands", "maps", "instances", "imported", "biology", "exports", "metrics")


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
        self.slices = Slices(study)
        self._scripts = scripts
        self._rows = {row.slide_id: row for row in study.rows}

    # ---- slides to jobs -------------------------------------------------------------------------------------------

    @cached_property
    def weights(self) -> dict[str, int]:
        """Size of the image files of each slide, bytes."""
        return weigh_slides(self.study.rows, self.study.data_root)

    @cached_property
    def jobs(self) -> dict[str, tuple[str, ...]]:
        """Slides of each job, by the job's name; see :func:`slideloom.workflow.bins.gather_bins`."""
        return gather_bins(self.weights, self.config.jobs.slides_per_job, self.config.jobs.gb_per_job)

    @cache  # noqa: B019 - one plan lives as long as the process
    def load(self, stage: str, context: tuple[str, ...], job: str) -> Load:
        """What is before a job; before one that is not worked slide by slide, the whole cohort.

        Parameters
        ----------
        stage : str
            Name of the stage.
        context : tuple of str
            As :meth:`spec` has it.
        job : str
            Name of the job; empty for stages that are not worked slide by slide.
        """
        slides = self.job_slides(stage, context, job) if stage in _COLUMNS else tuple(self._rows)
        return load_of(slides, self.weights)

    @cache  # noqa: B019
    def slides(self, images: tuple[str, ...] = (), platforms: tuple[str, ...] = ()) -> frozenset[str]:
        """Slides that have all of the images, or files of other columns, and are of the platforms (all, when empty)."""
        return frozenset(
            row.slide_id
            for row in self.study.rows
            if all(getattr(row, image) for image in images) and (not platforms or row.platform in platforms)
        )

    @cache  # noqa: B019
    def _population(self, stage: str, context: tuple[str, ...]) -> frozenset[str]:
        if stage in ("patches", "targets"):
            return self.slides((self.config.grids[context[0]].image,))
        if stage == "cell_targets":
            return self.slides((self.config.grids[context[0]].image, "cells"))
        if stage == "embeddings":
            return self.slides((self.study.image_of(context[0]),))
        if stage in _OF_RUNS:
            platforms = self.config.splits[self.config.experiments[context[0]].split].platforms
            return self.slides(self.study.images_of(context[0]), tuple(platforms))
        return self.slides()

    def job_slides(self, stage: str, context: Sequence[str], job: str) -> tuple[str, ...]:
        """Slides that a job of a stage works through."""
        population = self._population(stage, tuple(context))
        return tuple(slide for slide in self.jobs[job] if slide in population)

    @cache  # noqa: B019
    def records(self, stage: str, *context: str) -> tuple[str, ...]:
        """Job records of a stage in one context."""
        join = "/".join(context)
        return tuple(
            str(self.paths.job_record(stage, join, job)) for job in self.jobs if self.job_slides(stage, context, job)
        )

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
            return () if config.published or config.training.input == "live" else config.encoder
        return config.encoder[1:] if self.slices.predicted_live(experiment) else config.encoder

    def embedded_encoders(self) -> list[str]:
        """Encoders whose tokens are stored."""
        stages = ("train", "maps")
        return sorted(
            {e for name in self.config.experiments for stage in stages for e in self.stored_encoders(name, stage)}
        )

    def used_grids(self) -> list[str]:
        """Grids that some used encoder reads, or labels of another program lie on."""
        return sorted({*(self.config.encoders[name].grid for name in self.used_encoders()), *self.target_grids()})

    def target_grids(self) -> list[str]:
        """Grids whose tiles some experiment is trained or scored on."""
        return sorted({self.study.grid_of(name) for name in self.config.experiments})

    def cell_grids(self) -> list[str]:
        """Grids on whose tiles some experiment learns whole cells."""
        return sorted({self.study.grid_of(name) for name, one in self.config.experiments.items() if one.learns_cells})

    def cell_target_records(self, experiment: str) -> tuple[str, ...]:
        """Records of the targets of whole cells that an experiment is trained on; none where it learns no cells."""
        learns = self.config.experiments[experiment].learns_cells
        return self.records("cell_targets", self.study.grid_of(experiment)) if learns else ()

    def verifier_record(self, experiment: str, fold: str) -> list[str]:
        """Record of what verifies an experiment's nuclei; none where nothing does."""
        verified = self.config.experiments[experiment].verified
        return [str(self.paths.job_record("verifier", experiment, fold))] if verified else []

    def judged_records(self, stage: str, experiment: str, fold: str) -> tuple[str, ...]:
        """Records of the jobs of ``facts`` or ``maps`` that hold slides which an experiment's verifier is fitted on."""
        judging = {row.slide_id for row in self.slices.judging(experiment, fold)}
        context = "" if stage == "facts" else f"{experiment}/{fold}"
        jobs = (job for job, slides in self.jobs.items() if judging.intersection(slides))
        return tuple(str(self.paths.job_record(stage, context, job)) for job in jobs)

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
        for grid in self.cell_grids():
            records += self.records("cell_targets", grid)
        records += [str(self.paths.job_record("splits", "", split)) for split in self.used_splits()]
        records += [str(self.paths.job_record("statistics", "", name)) for name in self.pooled_encoders()]
        for name in self.embedded_encoders():
            records += self.records("embeddings", name)
        for experiment, fold in self.runs():
            stages = ["instances", "biology", "metrics", *(["exports"] if self.exports else [])]
            if experiment not in self.external:
                records.append(str(self.paths.job_record("train", experiment, fold)))
                stages.append("maps")
                for band in self.bands:
                    records += self.records("bands", experiment, fold, band)
            records += self.verifier_record(experiment, fold)
            for stage in stages:
                records += self.records(stage, experiment, fold)
        return records

    @cached_property
    def external(self) -> tuple[str, ...]:
        """Experiments whose nuclei another program found."""
        return tuple(name for name, one in self.config.experiments.items() if one.labels is not None)

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
        return self._files_of(self.jobs[job], ("he", "sp", "instances", "classes"))

    def cell_files(self, grid: str, job: str) -> list[str]:
        """Annotations of whole cells that the sheet names for the slides of a job, and that exist."""
        return self._files_of(self.job_slides("cell_targets", (grid,), job), ("cells",))

    def _files_of(self, slides: Sequence[str], columns: Sequence[str]) -> list[str]:
        texts = {text for slide in slides for column in columns if (text := getattr(self._rows[slide], column))}
        paths = {parse_source(text, self.study.data_root).path for text in texts}
        return sorted(str(path) for path in paths if path.exists())

    def external_files(self, experiment: str, job: str) -> list[str]:
        """Files of another program for the slides of a job, those that exist."""
        paths = {
            source.path
            for slide in self.job_slides("imported", (experiment,), job)
            for source in external_sources(self._rows[slide], *self.slices.labels(experiment), self.study.data_root)
        }
        return sorted(str(path) for path in paths if path.exists())

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
        body["config"] = self.slices.of(stage, *context)
        if files := self.slices.files(stage, context):
            body["files"] = files
        if stage in _PACKAGE_DATA:
            data = sorted(Path(reports.__file__).parent.glob(_PACKAGE_DATA[stage]))
            body["package_data"] = [digest_file(path) for path in data]
        if stage in _COLUMNS:
            slides = self.job_slides(stage, context, job)
            body["items"] = {slide: pick(self._rows[slide], _COLUMNS[stage]) for slide in slides}
        if stage == "verifier":
            judging = self.slices.judging(*context)
            body["items"] = {row.slide_id: pick(row, _JUDGED_BY) for row in judging}
        if stage in ("patches", "biology"):
            body["edited"] = {slide: digest for slide in body["items"] if (digest := self._edited_tissue(slide))}
        return canonical(body)

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        return stage_fingerprints(self._scripts, self.paths.root)

    def _code(self, stage: str) -> str:
        return self._fingerprints[stage]

    def _edited_tissue(self, slide: str) -> str:
        """Digest of a tissue outline that a person has edited or brought; empty while it is as it was made."""
        outline = self.paths.tissue(slide)
        if not outline.is_file():
            return ""
        made = outline.with_suffix(".made")
        digest = digest_file(outline)
        return "" if made.is_file() and digest == made.read_text(encoding="utf-8").strip() else digest
