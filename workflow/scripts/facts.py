"""Read the headers of a job's slides."""

from slideloom.slides.headers import write_facts
from slideloom.slides.tables import MarkerTable
from slideloom.workflow.job import Job

job = Job.start(snakemake)
markers = MarkerTable.from_dict(job.config["markers"])


def work(slide):
    place = job.paths.slide_facts(slide)
    write_facts(job.rows[slide], job.root, markers, place)
    return [place]


# Slide files are read through their content: an edited header, a replaced file and a moved folder are told apart.
job.run(work, per_item=job.source_digests())
