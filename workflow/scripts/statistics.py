"""Pool the channel statistics of the training slides."""

import logging

from slideloom.artefacts.files import write_json
from slideloom.artefacts.keys import canonical
from slideloom.config.model import NormalisationConfig
from slideloom.errors import SlideError
from slideloom.patches.pooling import find_poolable
from slideloom.patches.statistics import channel_statistics
from slideloom.patches.store import PatchStore
from slideloom.training.splits import read_split, slides_with_role
from slideloom.workflow.job import Job

job = Job.start(snakemake)
encoder, grid = job.wildcards["encoder"], job.config["grid"]
patches = job.states("patches")
split = read_split(job.paths.split(job.config["split"]))
slides = [slide for slide in slides_with_role(split, "0", "train") if slide in patches]
good = [slide for slide in slides if patches[slide].status == "ok"]
if len(good) < len(slides):
    logging.warning("%d of %d training slides failed earlier and are left out", len(slides) - len(good), len(slides))


def work(name):
    if not good:
        raise SlideError("no training slide has patches", where=f"encoder {name}", code="no_training_slides")
    job.check("patches", good)
    stores = [PatchStore(job.paths.patches(grid, slide)) for slide in good]
    pool = find_poolable(stores, job.config["markers"])
    if pool.left_out:
        logging.warning("%d of %d training slides do not count: %s", len(pool.left_out), len(stores), pool.told)
    found = channel_statistics(pool.stores, job.config["markers"], NormalisationConfig(**job.config["normalisation"]))
    logging.info("the statistics of %d slides are for pixels of type %s", len(pool.stores), found.dtype)
    # No part of the outputs: a slide that did not count and is taken out of the study changes no figure.
    failed = sorted(set(slides) - set(good))
    write_json(job.paths.statistics_slides(name), {**pool.as_dict(), "failed_earlier": failed})
    place = job.paths.statistics(name)
    write_json(place, found.as_dict())
    return [place]


job.run(work, items=[encoder], shared=canonical({slide: patches[slide].digest for slide in good}))
