"""Decide who trains, validates and tests, before anything trains."""

from slideloom.config.model import SplitConfig
from slideloom.slides.sheet import SlideRow
from slideloom.training.splits import write_split
from slideloom.workflow.job import Job

job = Job.start(snakemake)
rows = [SlideRow.from_dict(row) for row in job.config["rows"]]
annotated = {row.slide_id for row in rows if row.instances}


def work(split):
    place = job.paths.split(split)
    write_split(rows, SplitConfig(**job.config["split"]), annotated, place)
    return [place]


job.run(work, items=[job.wildcards["split"]])
