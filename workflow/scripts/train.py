"""Train one fold of one experiment."""

import logging

import torch

from slideloom.artefacts.keys import canonical
from slideloom.config.model import DecoderConfig, EncoderConfig, GridConfig, LossConfig, TrainingConfig
from slideloom.errors import SlideError, SlideloomError
from slideloom.slides.tables import ClassTable
from slideloom.training.job import TrainJob
from slideloom.training.loop import train
from slideloom.training.splits import read_split, slides_with_role
from slideloom.training.stored import SlideData
from slideloom.workflow.job import Job

job = Job.start(snakemake)
experiment, fold = job.wildcards["experiment"], job.wildcards["fold"]
config, grid = job.config["experiment"], job.config["encoder"]["grid"]
states = {stage: job.states(stage) for stage in ("patches", "targets", "embeddings")}
split = read_split(job.paths.split(job.config["split"]))


def usable(role):
    slides = [slide for slide in slides_with_role(split, fold, role) if slide in states["embeddings"]]
    good = [slide for slide in slides if all(found[slide].status == "ok" for found in states.values())]
    if len(good) < len(slides):
        left_out = ", ".join(sorted(set(slides) - set(good)))
        logging.warning("%s/%s: %d of %d %s slides left out: %s", experiment, fold, len(slides) - len(good), len(slides), role, left_out)  # fmt: skip
    return good


def data(slides):
    encoder = job.config["encoder_name"]
    paths = job.paths
    return tuple(SlideData(s, paths.patches(grid, s), paths.targets(grid, s), paths.embeddings(encoder, s)) for s in slides)  # fmt: skip


roles = {role: usable(role) for role in ("train", "val")}
inputs = canonical({role: {s: [found[s].digest for found in states.values()] for s in roles[role]} for role in roles})


def work(_):
    place = job.paths.model(experiment, fold)
    asked = TrainJob(
        study="",  # the study's name is no part of what a decoder is made from
        experiment=experiment,
        fold=fold,
        grid=GridConfig(**job.config["grid"]),
        classes=ClassTable.from_dict(job.config["classes"]),
        decoder=DecoderConfig(**config["decoder"]),
        heads=tuple(config["heads"]),
        loss=LossConfig(**config["loss"]),
        training=TrainingConfig(**config["training"]),
        train=data(roles["train"]),
        val=data(roles["val"]),
        place=place,
        device="cuda" if torch.cuda.is_available() else "cpu",
        threads=job.threads,
        inputs_key=inputs,
    )
    try:
        return [train(asked)]
    except SlideloomError as error:  # one experiment fails, the others go on
        raise SlideError(error.what, where=error.where, expected=error.expected, hint=error.hint, code=error.code) from error


job.run(work, items=[fold], shared=inputs)
