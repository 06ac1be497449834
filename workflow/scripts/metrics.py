"""Score a job's nuclei against their annotations."""

from slideloom.config.model import EvaluationConfig
from slideloom.metrics.evaluate import evaluate_slide
from slideloom.patches.store import PatchStore
from slideloom.slides.facts import load_facts
from slideloom.slides.tables import ClassTable
from slideloom.training.splits import roles_of_fold
from slideloom.workflow.job import Job

job = Job.start(snakemake)
config = EvaluationConfig(**job.config["evaluation"])
classes = ClassTable.from_dict(job.config["classes"])
run = (job.wildcards["experiment"], job.wildcards["fold"])
roles = roles_of_fold(job.paths.split(job.config["split"]), run[1])


def work(slide):
    if slide not in roles:
        return "it plays no part in this fold"
    if roles[slide] not in config.roles:
        return f"the role {roles[slide]} is not scored"
    facts = load_facts(job.paths.slide_facts(slide))
    patches = PatchStore(job.paths.patches(job.config["grid"], slide))
    maps, labels, place = (paths(*run, slide) for paths in (job.paths.maps, job.paths.labels, job.paths.metrics))
    image, row = job.config["image"], job.rows[slide]
    scored = evaluate_slide(maps, labels, row, job.root, facts, image, patches.scale, classes, config, patches, place)
    return [place] if scored else "no annotation"


own = {slide: str(roles.get(slide)) for slide in job.rows}
maps = ["maps"] if job.inputs["maps"] else []
job.run(work, requires=["facts", "targets", *maps, "instances"], per_item=own)
