"""Cut the annotated whole cells of a job's slides into targets."""

from slideloom.patches.cell_targets import cut_cell_targets
from slideloom.patches.store import PatchStore
from slideloom.slides.facts import load_facts
from slideloom.workflow.job import Job

job = Job.start(snakemake)


def work(slide):
    facts = load_facts(job.paths.slide_facts(slide))
    grid = job.wildcards["grid"]
    place = job.paths.cell_targets(grid, slide)
    patches = PatchStore(job.paths.patches(grid, slide))
    made = cut_cell_targets(job.rows[slide], job.root, facts, patches, place)
    return [place] if made else "no annotated cells"


# The facts know nothing of this annotation: it is read through its content here.
job.run(work, requires=["facts", "patches"], per_item=job.source_digests())
