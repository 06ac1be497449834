"""The jobs of a plan and what each reads: the workflow's graph as plain data, without Snakemake.

The rules below ``workflow/rules`` are what runs. This is the same graph for those who explain it; a test compares the
two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from slideloom.reports.figures import FIGURES
from slideloom.reports.schemas import REPORT_TABLES
from slideloom.workflow.plan import SLIDE_STAGES, Plan

__all__ = ["REPORT_STAGES", "PlannedJob", "planned_jobs"]

REPORT_STAGES = ("reports", "report_html", "report_figures")


@dataclass(frozen=True)
class PlannedJob:
    """One job of a plan.

    Attributes
    ----------
    stage : str
        Name of its rule.
    context : tuple of str
        Grid, encoder, split, or experiment and fold; ``bands`` have the band, too.
    unit : str
        Which job of the stage in its context: a bin of slides, a split, an encoder, a fold; the stage for reports.
    record : Path
        Its job record, or the first of a report's files.
    reads : tuple of str
        Records of the jobs that it reads.
    files : tuple of Path
        Other files that it reads: slides, weights, labels of another program.
    also : tuple of Path
        Further files that it writes.
    """

    stage: str
    context: tuple[str, ...]
    unit: str
    record: Path
    reads: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    also: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """The job in a line: stage, context and unit."""
        return " ".join((self.stage, *(["/".join(self.context)] if self.context else []), self.unit))

    def spec(self, plan: Plan) -> str:
        """What the job is keyed by now."""
        return plan.spec(self.stage, self.context, self.unit if self.stage in SLIDE_STAGES else "")


def planned_jobs(plan: Plan) -> list[PlannedJob]:
    """Every job of a study, each after those that it reads.

    Parameters
    ----------
    plan : Plan
        The plan.

    Returns
    -------
    list of PlannedJob
        Those of the report last.
    """
    jobs = [*_of_slides(plan), *_of_encoders(plan)]
    for run in plan.runs():
        jobs += _of_run(plan, *run)
    folder = plan.paths.reports()
    everything = tuple(str(job.record) for job in jobs)
    tables = [folder / "slides.parquet", *(folder / f"{name}.parquet" for name in REPORT_TABLES if name != "slides")]
    figures = [folder / "figures" / f"{name}.svg" for name in FIGURES]
    read = (str(tables[0]),)
    jobs.append(PlannedJob("reports", (), "reports", tables[0], everything, also=tuple(tables[1:])))
    jobs.append(PlannedJob("report_html", (), "report_html", folder / "report.html", read))
    jobs.append(PlannedJob("report_figures", (), "report_figures", figures[0], read, also=tuple(figures[1:])))
    return jobs


def _bins(
    plan: Plan, rule: str, context: tuple[str, ...], reads: Iterable[tuple[str, ...]], shared: Iterable[str] = ()
) -> Iterator[PlannedJob]:
    """Jobs of a stage on slides: each reads the records of the same bin of other stages, and what all of them read."""
    shared, reads = tuple(shared), tuple(reads)
    stage = "instances" if rule == "imported" else rule
    for record in plan.records(stage, *context):
        unit = Path(record).stem
        same = [_record(plan, *other, unit=unit) for other in reads]
        files: list[str] = []
        if rule == "facts":
            files = plan.sources(unit)
        elif rule == "cell_targets":
            files = plan.cell_files(context[0], unit)
        elif rule == "embeddings":
            files = plan.slices.weight_files([context[0]])
        elif rule in ("maps", "bands"):
            files = plan.slices.weight_files([plan.config.experiments[context[0]].first_encoder])
        elif rule == "imported":
            files = plan.external_files(context[0], unit)
        yield PlannedJob(rule, context, unit, Path(record), (*shared, *same), tuple(map(Path, files)))


def _record(plan: Plan, stage: str, *context: str, unit: str) -> str:
    return str(plan.paths.job_record(stage, "/".join(context), unit))


def _of_slides(plan: Plan) -> Iterator[PlannedJob]:
    yield from _bins(plan, "facts", (), ())
    yield from _bins(plan, "tissue", (), [("facts",)])
    for grid in plan.used_grids():
        yield from _bins(plan, "patches", (grid,), [("facts",), ("tissue",)])
    for grid in plan.target_grids():
        yield from _bins(plan, "targets", (grid,), [("facts",), ("patches", grid)])
    for grid in plan.cell_grids():
        yield from _bins(plan, "cell_targets", (grid,), [("facts",), ("patches", grid)])


def _of_encoders(plan: Plan) -> Iterator[PlannedJob]:
    for split in plan.used_splits():
        yield PlannedJob("splits", (split,), split, Path(_record(plan, "splits", unit=split)))
    for encoder in plan.pooled_encoders():
        config = plan.config.encoders[encoder]
        reads = (_record(plan, "splits", unit=str(config.statistics)), *plan.records("patches", config.grid))
        yield PlannedJob("statistics", (encoder,), encoder, Path(_record(plan, "statistics", unit=encoder)), reads)
    for encoder in plan.embedded_encoders():
        config = plan.config.encoders[encoder]
        yield from _bins(plan, "embeddings", (encoder,), [("patches", config.grid)], _statistics(plan, encoder))


def _of_run(plan: Plan, experiment: str, fold: str) -> Iterator[PlannedJob]:
    run, config = (experiment, fold), plan.config.experiments[experiment]
    grid, split = plan.study.grid_of(experiment), _record(plan, "splits", unit=config.split)
    maps = []
    if config.labels is None:
        yield _training(plan, experiment, fold)
        encoders = plan.stored_encoders(experiment, "maps")
        model = _record(plan, "train", experiment, unit=fold)
        shared = [split, model, *_statistics(plan, config.first_encoder)]
        tokens = [("patches", one) for one in _grids(plan, experiment, "maps")]
        tokens += [("embeddings", encoder) for encoder in encoders]
        bands = [("bands", *run, band) for band in plan.bands]
        for band in plan.bands:
            yield from _bins(plan, "bands", (*run, band), [("facts",), *tokens], shared)
        yield from _bins(plan, "maps", run, [("facts",), *tokens, *bands], shared)
        verifier = plan.verifier_record(experiment, fold)
        for record in verifier:
            judged = (one for stage in ("facts", "maps") for one in plan.judged_records(stage, *run))
            yield PlannedJob("verifier", run, fold, Path(record), (split, *judged))
        yield from _bins(plan, "instances", run, [("facts",), ("patches", grid), ("maps", *run)], verifier)
        maps = [("maps", *run)]
    else:
        yield from _bins(plan, "imported", run, [("facts",), ("patches", grid)], [split])
    found = [*maps, ("instances", *run)]
    yield from _bins(plan, "biology", run, [("facts",), ("tissue",), *found])
    if plan.exports:
        yield from _bins(plan, "exports", run, [("facts",), ("instances", *run)])
    yield from _bins(plan, "metrics", run, [("facts",), ("targets", grid), *found], [split])


def _training(plan: Plan, experiment: str, fold: str) -> PlannedJob:
    config, record = plan.config.experiments[experiment], Path(_record(plan, "train", experiment, unit=fold))
    files = plan.slices.weight_files([config.first_encoder])
    if config.published is not None:
        files += plan.slices.published(experiment)
        return PlannedJob("pretrained", (experiment, fold), fold, record, (), tuple(map(Path, files)))
    reads = [_record(plan, "splits", unit=config.split)]
    for grid in _grids(plan, experiment, "train"):
        reads += plan.records("patches", grid)
    reads += [*plan.records("targets", plan.study.grid_of(experiment)), *plan.cell_target_records(experiment)]
    if config.training.input == "live":
        reads += _statistics(plan, config.first_encoder)
        return PlannedJob("train_live", (experiment, fold), fold, record, tuple(reads), tuple(map(Path, files)))
    for encoder in plan.stored_encoders(experiment, "train"):
        reads += plan.records("embeddings", encoder)
    return PlannedJob("train", (experiment, fold), fold, record, tuple(reads))


def _statistics(plan: Plan, encoder: str) -> list[str]:
    return [_record(plan, "statistics", unit=encoder)] if plan.config.encoders[encoder].statistics else []


def _grids(plan: Plan, experiment: str, stage: str) -> list[str]:
    """Grids of the tokens that a stage of an experiment reads, its own first."""
    others = [plan.config.encoders[name].grid for name in plan.stored_encoders(experiment, stage)]
    return list(dict.fromkeys([plan.study.grid_of(experiment), *others]))
