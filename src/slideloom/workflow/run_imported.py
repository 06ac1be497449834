"""The job of the rule ``imported``: nuclei that another program found, in the place of predicted ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from slideloom.instances.imported import import_slide
from slideloom.patches.store import PatchStore
from slideloom.slides.external import external_row
from slideloom.slides.facts import load_facts
from slideloom.slides.tables import ClassTable
from slideloom.training.splits import roles_of_fold
from slideloom.workflow.job import Job

__all__ = ["run_imported"]


def run_imported(job: Job) -> None:
    """Take over the slides whose role asks for it; one whose file is missing or wrong fails alone."""
    experiment, fold = job.wildcards["experiment"], job.wildcards["fold"]
    roles = roles_of_fold(job.paths.split(job.config["split"]), fold)
    classes = ClassTable.from_dict(job.config["classes"])
    patterns = job.files["labels"], job.files["label_classes"]
    rows = {slide: external_row(row, *patterns) for slide, row in job.rows.items()}
    digests = job.source_digests(rows)
    about = {
        "experiment": experiment,
        "fold": fold,
        "encoder_notes": [f"nuclei of another program: {' + '.join(filter(None, patterns))}"],
    }

    def work(slide: str) -> Iterable[Path] | str:
        if slide not in roles:
            return "it plays no part in this fold"
        if roles[slide] not in job.config["roles"]:
            return f"the role {roles[slide]} is not predicted"
        facts = load_facts(job.paths.slide_facts(slide))
        patches = PatchStore(job.paths.patches(job.config["grid"], slide))
        made = [paths(experiment, fold, slide) for paths in (job.paths.maps, job.paths.labels, job.paths.cells)]
        import_slide(
            rows[slide],
            job.root,
            facts,
            job.config["image"],
            patches.scale,
            patches,
            classes,
            *made,
            about={**about, "labels_digest": digests[slide]},
            workers=job.threads,
        )
        return made

    job.run(
        work,
        requires=["facts", "patches"],
        per_item={slide: str(roles.get(slide)) + digests[slide] for slide in job.rows},
    )
