"""The job of the rule ``train``: one fold of one experiment."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from slideloom.artefacts.keys import canonical
from slideloom.artefacts.stage import ItemState
from slideloom.config.model import DecoderConfig, GridConfig, LossConfig, TrainingConfig
from slideloom.errors import SlideError, SlideloomError
from slideloom.slides.tables import ClassTable
from slideloom.training.job import TrainJob
from slideloom.training.loop import train
from slideloom.training.splits import read_split, slides_with_role
from slideloom.training.stored import SlideData
from slideloom.workflow.job import Job

__all__ = ["run_train"]

_LOG = logging.getLogger(__name__)


def run_train(job: Job) -> None:
    """Train on the slides of the split that have patches, targets and tokens; say which have not."""
    experiment, fold = job.wildcards["experiment"], job.wildcards["fold"]
    # By grid or encoder: an experiment on both images of a slide needs the stores of each.
    stages = [job.states_by_context(stage) for stage in ("patches", "targets", "embeddings")]
    states = [found for contexts in stages for found in contexts.values()]
    split = read_split(job.paths.split(job.config["split"]))
    roles: dict[str, list[str]] = {}
    for role in ("train", "val"):
        wanted = [slide for slide in slides_with_role(split, fold, role) if all(slide in found for found in states)]
        roles[role] = [slide for slide in wanted if all(found[slide].status == "ok" for found in states)]
        if left_out := sorted(set(wanted) - set(roles[role])):
            told = ", ".join(left_out)
            _LOG.warning("%s: %d of %d %s slides left out: %s", job.context, len(left_out), len(wanted), role, told)
    inputs = canonical({role: {slide: _digests(states, slide) for slide in roles[role]} for role in roles})

    def work(_: str) -> Iterable[Path]:
        config = job.config["experiment"]
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
            train=_data(job, roles["train"]),
            val=_data(job, roles["val"]),
            place=job.paths.model(experiment, fold),
            device="cuda" if torch.cuda.is_available() else "cpu",
            threads=job.threads,
            inputs_key=inputs,
        )
        try:
            return [train(asked)]
        except SlideloomError as error:  # one experiment fails, the others go on
            raise SlideError.of(error) from error

    job.run(work, items=[fold], shared=inputs)


def _digests(states: Iterable[Mapping[str, ItemState]], slide: str) -> list[str]:
    return [found[slide].digest for found in states]


def _data(job: Job, slides: Iterable[str]) -> tuple[SlideData, ...]:
    paths = job.paths
    encoders = [(one["name"], one["encoder"]["grid"]) for one in job.config["encoders"]]
    (name, grid), others = encoders[0], encoders[1:]
    return tuple(
        SlideData(
            slide,
            paths.patches(grid, slide),
            paths.targets(grid, slide),
            paths.embeddings(name, slide),
            tuple((paths.patches(other, slide), paths.embeddings(further, slide)) for further, other in others),
        )
        for slide in slides
    )
