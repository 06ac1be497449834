"""Cut a job's slides into patches."""

from slideloom.config.model import GridConfig
from slideloom.patches.cut import cut_patches
from slideloom.slides.facts import load_facts
from slideloom.workflow.job import Job

job = Job.start(snakemake)
grid = GridConfig(**job.config["grid"])


def work(slide):
    facts = load_facts(job.paths.slide_facts(slide))
    place = job.paths.patches(job.wildcards["grid"], slide)
    cut_patches(job.rows[slide], job.root, facts, job.paths.tissue(slide), grid, place)
    return [place]


job.run(work, requires=["facts", "tissue"], per_item=job.edited)
