"""Turn a job's maps into nuclei: label images and cell tables."""

from slideloom.config.model import InstancesConfig
from slideloom.instances.segment import segment_slide
from slideloom.patches.store import PatchStore
from slideloom.slides.facts import load_facts
from slideloom.slides.tables import ClassTable
from slideloom.workflow.job import Job
from slideloom.workflow.refiners import refiners_of, verifier_digest

job = Job.start(snakemake)
config = InstancesConfig(**job.config["instances"], window_px=snakemake.config["window_px"])
classes = ClassTable.from_dict(job.config["classes"])
run = (job.wildcards["experiment"], job.wildcards["fold"])


def work(slide):
    facts = load_facts(job.paths.slide_facts(slide))
    patches = PatchStore(job.paths.patches(job.config["grid"], slide)) if job.config["image"] == "sp" else None
    labels, cells = job.paths.labels(*run, slide), job.paths.cells(*run, slide)
    maps = job.paths.maps(*run, slide)
    refiners = refiners_of(job)
    segment_slide(maps, config, classes, facts, patches, labels, cells, refiners=refiners, workers=job.threads)
    return [labels, cells]


job.run(work, requires=["facts", "patches", "maps"], shared=verifier_digest(job))
