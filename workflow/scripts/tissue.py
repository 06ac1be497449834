"""Outline the tissue of a job's slides."""

from slideloom.config.model import TissueConfig
from slideloom.slides.facts import load_facts
from slideloom.slides.tissue import write_tissue
from slideloom.workflow.job import Job

job = Job.start(snakemake)
config = TissueConfig(**job.config["tissue"])


def work(slide):
    facts = load_facts(job.paths.slide_facts(slide))
    place = job.paths.tissue(slide)
    write_tissue(facts, job.rows[slide], job.root, config, place, job.paths.thumbnail(slide))
    return [place]


job.run(work, requires=["facts"])
