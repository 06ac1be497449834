"""Draw the figures of Snakemake's report."""

from slideloom.config.model import StudyConfig
from slideloom.reports.standalone import write_figures
from slideloom.slides.tables import ClassTable
from slideloom.workflow.job import Job

job = Job.start(snakemake)
config = StudyConfig(**job.config["study"])
classes = ClassTable.from_dict(job.config["classes"])
folder = job.paths.reports()
write_figures(folder, folder / "figures", classes, config.study, tuple(config.experiments))
