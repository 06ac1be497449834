"""Cut the annotations of a job's slides into targets."""

from slideloom.patches.store import PatchStore
from slideloom.patches.targets import cut_targets
from slideloom.slides.facts import load_facts
from slideloom.slides.tables import ClassTable
from slideloom.workflow.job import Job

job = Job.start(snakemake)
classes = ClassTable.from_dict(job.config["classes"])


def work(slide):
    facts = load_facts(job.paths.slide_facts(slide))
    grid = job.wildcards["grid"]
    place = job.paths.targets(grid, slide)
    patches = PatchStore(job.paths.patches(grid, slide))
    made = cut_targets(job.rows[slide], job.root, facts, patches, classes, place)
    return [place] if made else "no annotation"


job.run(work, requires=["facts", "patches"])
