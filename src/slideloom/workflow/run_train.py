"""The job of the rules ``train`` and ``train_live``: one fold of one experiment."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from slideloom.artefacts.keys import canonical
from slideloom.artefacts.stage import ItemState
from slideloom.config.model import (
    AdapterConfig,
    AugmentationConfig,
    DecoderConfig,
    GridConfig,
    LossConfig,
    RefineNetworkConfig,
    SamplingConfig,
    TrainingConfig,
)
from slideloom.encoders.checkpoints.digests import file_digests
from slideloom.errors import SlideError, SlideloomError
from slideloom.slides.tables import ClassTable
from slideloom.training.job import BuildEncoder, LiveEncoder, TrainJob
from slideloom.training.loop import train
from slideloom.training.splits import read_split, slides_with_role
from slideloom.training.stored import SlideData
from slideloom.workflow.job import Job

__all__ = ["run_train"]

_LOG = logging.getLogger(__name__)
#: Slides that a line of the log names.
_NAMED = 20


def run_train(job: Job, build: BuildEncoder | None = None) -> None:
    """Train on the slides of the split that have all their stores; say which have not.

    Parameters
    ----------
    job : Job
        Of the rule ``train``, or of ``train_live``, whose encoder runs in every step.
    build : callable, optional
        Makes that encoder. It is given and not imported: training on stored tokens depends on no encoder's code.
    """
    experiment, fold = job.wildcards["experiment"], job.wildcards["fold"]
    # By grid or encoder: an experiment on both images of a slide needs the stores of each.
    read = [stage for stage in ("patches", "targets", "embeddings") if job.inputs.get(stage)]
    states = [found for stage in read for found in job.states_by_context(stage).values()]
    cells: Mapping[str, ItemState] = job.states("cells") if job.inputs.get("cells") else {}
    if cells:  # whose cells nobody annotated lacks nothing; whose annotation cannot be read is left out
        states.append({slide: cells.get(slide, ItemState("ok")) for slide in states[0]})
    split = read_split(job.paths.split(job.config["split"]))
    roles: dict[str, list[str]] = {}
    for role in ("train", "val"):
        wanted = [slide for slide in slides_with_role(split, fold, role) if all(slide in found for found in states)]
        roles[role] = [slide for slide in wanted if all(found[slide].status == "ok" for found in states)]
        for told in _left_out(states, wanted, role):
            _LOG.warning("%s: %s", f"{experiment}/{fold}", told)
    live, encoder_files = _live(job, build) if build else (None, {})
    digests = {role: {slide: _digests(states, slide) for slide in roles[role]} for role in roles}
    inputs = canonical({**digests, **encoder_files})

    def work(_: str) -> Iterable[Path]:
        if encoder_files.get("statistics") == "":
            what = "the encoder has no channel statistics"
            raise SlideError(what, where=job.context, code="no_statistics", hint="Mend the training slides first")
        # A store that lost a chunk would be learned from as if it held zeros there.
        for stage in read:
            job.check(stage, (*roles["train"], *roles["val"]))
        if cells:
            job.check("cells", [slide for role in roles.values() for slide in role if slide in cells])
        config, network = job.config["experiment"], job.config.get("network")
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
            train=_data(job, roles["train"], cells),
            val=_data(job, roles["val"], cells),
            place=job.paths.model(experiment, fold),
            device="cuda" if torch.cuda.is_available() else "cpu",
            threads=job.threads,
            inputs_key=inputs,
            sampling=SamplingConfig(**config["sampling"]),
            groups=job.config.get("groups", {}),
            augmentation=AugmentationConfig(**config["augmentation"]),
            network=RefineNetworkConfig(**network) if network else None,
            live=live,
            # A device each, and enough patches each for batch normalisation.
            processes=max(1, min(torch.cuda.device_count(), config["training"]["batch_size"] // 2)),
            # A GPU outruns one reader; on a CPU, readers only take cores from the arithmetic.
            read_threads=max(1, job.threads - 1) if torch.cuda.is_available() else 1,
        )
        try:
            return [train(asked)]
        except SlideloomError as error:  # one experiment fails, the others go on
            raise SlideError.of(error) from error

    job.run(work, items=[fold], shared=inputs)


def _live(job: Job, build: BuildEncoder) -> tuple[LiveEncoder, dict[str, str]]:
    """The encoder that runs in every step, and digests of the files it is made from."""
    name = job.config["encoders"][0]["name"]
    config, uniprot = job.encoder_config(name), job.uniprot(name)
    digests, statistics = file_digests(config, uniprot), None
    if config.statistics:
        pooled, statistics = job.states("statistics")[name], job.paths.statistics(name)
        digests["statistics"] = pooled.digest if pooled.status == "ok" else ""
    adapter = job.config["experiment"].get("adapter")
    return LiveEncoder(config, uniprot, statistics, AdapterConfig(**adapter) if adapter else None, build=build), digests


def _left_out(states: Sequence[Mapping[str, ItemState]], wanted: Sequence[str], role: str) -> list[str]:
    """Sentences on the slides that cannot be used: those that failed, and those that have nothing to learn from."""
    failed, without = [], []
    for slide in wanted:
        worst = [state for found in states if (state := found[slide]).status != "ok"]
        if lost := [state for state in worst if state.status == "failed"]:  # news, whatever else it lacks
            failed.append(f"{slide} ({lost[0].code} at {lost[0].stage})")
        elif worst:
            without.append(f"{slide} ({worst[0].message})")
    of = f"of {len(wanted)} {'training' if role == 'train' else 'validation'} slides"
    told = [f"{len(failed)} {of} FAILED, left out: {_listed(failed)}"] if failed else []
    return told + ([f"{len(without)} {of} left out: {_listed(without)}"] if without else [])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _digests(states: Iterable[Mapping[str, ItemState]], slide: str) -> list[str]:
    return [found[slide].digest for found in states]


def _data(job: Job, slides: Iterable[str], cells: Container[str]) -> tuple[SlideData, ...]:
    paths = job.paths
    encoders = [(one["name"], one["encoder"]["grid"]) for one in job.config["encoders"]]
    (name, grid), others = encoders[0], encoders[1:]
    stored = job.config["experiment"]["training"]["input"] == "stored"
    return tuple(
        SlideData(
            slide,
            paths.patches(grid, slide),
            paths.targets(grid, slide),
            paths.embeddings(name, slide) if stored else None,
            tuple((paths.patches(other, slide), paths.embeddings(further, slide)) for further, other in others),
            paths.cell_targets(grid, slide) if slide in cells else None,
        )
        for slide in slides
    )
