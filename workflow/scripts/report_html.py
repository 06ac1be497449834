"""Write the page."""

import yaml

from slideloom.config.model import StudyConfig
from slideloom.reports.html import describe_experiments, render_report
from slideloom.reports.overlays import draw_overlays
from slideloom.reports.sources import overlay_sources
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import ClassTable
from slideloom.workflow.job import Job

job = Job.start(snakemake)
config = StudyConfig(**job.config["study"])
classes = ClassTable.from_dict(job.config["classes"])
rows = [SlideRow.from_dict(row) for row in job.config["rows"]]
scored, sources = overlay_sources(config, job.paths, rows, job.root)

render_report(
    job.paths.reports(),
    job.paths.reports() / "report.html",
    study=config.study,
    classes=classes,
    experiments=describe_experiments(config),
    overlays=draw_overlays(sources, classes, slides=scored, evaluation=config.evaluation),
    n_slides=len(rows),
    published=config.published,
    evaluation=config.evaluation,
    config_text=yaml.safe_dump(job.config["study"], sort_keys=False, allow_unicode=True),
)
