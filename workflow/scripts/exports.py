"""Write a job's nuclei as files for other programs."""

from slideloom.config.model import ExportsConfig
from slideloom.instances.exports.slide import export_slide
from slideloom.slides.facts import load_facts
from slideloom.slides.tables import ClassTable
from slideloom.workflow.job import Job

job = Job.start(snakemake)
config = ExportsConfig(**job.config["exports"])
classes = ClassTable.from_dict(job.config["classes"])
run = (job.wildcards["experiment"], job.wildcards["fold"])


def work(slide):
    facts = load_facts(job.paths.slide_facts(slide))
    labels, cells = job.paths.labels(*run, slide), job.paths.cells(*run, slide)
    folder = job.paths.exports(*run)
    return export_slide(config, slide, labels, cells, facts, classes, job.config["image"], folder)


job.run(work, requires=["facts", "instances"])
