"""What stands behind the figures, in words: experiments, encoders, and how nuclei were matched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slideloom.config.model import EvaluationConfig, ExperimentConfig, HeadLossConfig, InstancesConfig, StudyConfig

__all__ = ["EXTERNAL", "Origin", "describe_evaluation", "describe_experiments", "origins"]

#: What experiments whose nuclei another program found are called.
EXTERNAL = "labels of another program"


def describe_experiments(config: StudyConfig) -> dict[str, str]:
    """A line about each experiment: encoder, image, grid, heads, split, loss, and whatever else is switched on.

    Parameters
    ----------
    config : StudyConfig
        The study.

    Returns
    -------
    dict of str to str
        By experiment, in the order of the config.
    """
    result = {}
    for name, experiment in config.experiments.items():
        if experiment.labels is not None:
            result[name] = _external(config, experiment)
            continue
        grid = config.grids[config.encoders[experiment.first_encoder].grid]
        resolution = f" at {grid.mpp_um:g} µm/px" if grid.mpp_um else ""
        encoders = [(one, config.encoders[one]) for one in experiment.encoder]
        parts = [
            f"encoder {' + '.join(f'{one} ({encoder.model})' for one, encoder in encoders)}",
            f"{'H&E' if grid.image == 'he' else 'multiplexed'} tiles of {grid.tile_px} px{resolution}",
            f"heads {', '.join(experiment.heads)}",
            f"split {experiment.split}",
            *_before_and_after(experiment, config.instances_of(name)),
            *_choices(experiment),
        ]
        if seeds := [f"{one} seed {encoder.random}" for one, encoder in encoders if encoder.random is not None]:
            parts.insert(1, f"RANDOM WEIGHTS: {', '.join(seeds)}")
        if off := [one for one, encoder in encoders if encoder.off_resolution]:
            parts.append(f"off the resolution that weights were made for, on purpose: {', '.join(off)}")
        if experiment.published is not None:
            parts.append(f"published model {experiment.published.name}, not trained here")
        if experiment.training.shuffle_targets:
            parts.append("control: SHUFFLED TARGETS")
        result[name] = " · ".join(parts)
    return result


def _before_and_after(experiment: ExperimentConfig, instances: InstancesConfig) -> list[str]:
    """What stands before the network, the network where it is a whole one, and what finds nuclei in its maps."""
    parts = []
    if (adapter := experiment.adapter) is not None:
        way = {
            "channelnet": f"ChannelNet ({'no exchange' if adapter.aggregation == 'none' else adapter.aggregation})",
            "channel_adapter": f"channel adapter of {adapter.in_channels}",
            "pass_through": "channels as they are",
        }
        parts.append(f"{way[adapter.kind]} before it")
    networks = {
        "unet": f"U-Net on {experiment.decoder.backbone}",
        "hovernet": f"HoVer-Net, {experiment.decoder.mode}",
        "instanseg": "InstanSeg's network",
    }
    if experiment.published is None and experiment.decoder.kind in networks:
        parts.append(networks[experiment.decoder.kind])
    if instances.method != "auto":
        parts.append(f"nuclei by {instances.method.replace('_', ' ')}")
    if experiment.published is None and experiment.training.seed:
        parts.append(f"training seed {experiment.training.seed}")
    return parts


def _choices(experiment: ExperimentConfig) -> list[str]:
    """What sets an experiment apart: its decoder, loss, sampling, augmentation and training, where not plain."""
    decoder, loss, training = experiment.decoder, experiment.loss, experiment.training
    variants = {
        "linear decoder": decoder.kind == "linear",
        "no skips": not decoder.skips,
        "no image skip": not decoder.image_skip,
        "global context": decoder.global_context,
        "masked attention": decoder.masked_attention,
    }
    if (refine := experiment.refine) is not None:
        variants |= {
            "maps mended by a network": refine.network is not None,
            "merged nuclei split": refine.split is not None,
            "nuclei verified": refine.verify is not None,
        }
    parts = [name for name, chosen in variants.items() if chosen]
    if experiment.published is not None:
        return parts
    terms = {name: getattr(loss, name) for name in HeadLossConfig.model_fields}
    terms |= {name: getattr(loss, name) for name in ("hv_mse", "hv_msge") if "hv" in experiment.heads}
    terms |= {"boundary": loss.boundary} if "boundary" in experiment.heads else {}
    told = [f"{weight:g} {name}" for name, weight in terms.items() if weight]
    told += [f"{head} on its own weights" for head in loss.heads if head in experiment.heads]
    parts.append("loss " + " + ".join(told) + (", class weights" if loss.class_weights else ""))
    if experiment.sampling.gamma:
        parts.append(f"oversampling γ {experiment.sampling.gamma:g} by {experiment.sampling.by}")
    chances = ("flips", "turns", "colour_jitter", "stain_jitter", "channel_dropout", "intensity_scaling")
    if chosen := [f"{name} {value:g}" for name in chances if (value := getattr(experiment.augmentation, name))]:
        parts.append(f"augmentation {', '.join(chosen)}")
    if training.input == "live":
        trained = (
            "" if training.unfreeze_epoch is None else f", the encoder trained from epoch {training.unfreeze_epoch}"
        )
        parts.append(f"encoded in every step{trained}")
    return [part.replace("_", " ") for part in parts]


def _external(config: StudyConfig, experiment: ExperimentConfig) -> str:
    """Where the labels of another program lie, and what they are scored on."""
    parts = [EXTERNAL, f"labels {experiment.labels}"]
    if experiment.label_classes is not None:
        parts.append(f"classes {experiment.label_classes}")
    if experiment.grid is not None:
        grid = config.grids[experiment.grid]
        resolution = f" at {grid.mpp_um:g} µm/px" if grid.mpp_um else ""
        parts.append(f"scored on the {'H&E' if grid.image == 'he' else 'multiplexed'} image{resolution}")
    parts.append(f"split {experiment.split}")
    return " · ".join(parts)


@dataclass(frozen=True)
class Origin:
    """What an experiment's figures come from.

    Attributes
    ----------
    experiment : str
        Which.
    line : str
        What the config says of it; may be empty.
    weights : tuple of str
        SHA-256 of the checkpoints of its encoder, as the maps recorded them.
    notes : tuple of str
        What was noted of the encoder, such as channels that were left out.
    external : bool
        Another program found its nuclei.
    """

    experiment: str
    line: str
    weights: tuple[str, ...]
    notes: tuple[str, ...]
    external: bool


def origins(
    experiments: Sequence[str], described: Mapping[str, str], made_from: Mapping[str, Any]
) -> dict[str, Origin]:
    """What each experiment's figures come from.

    Parameters
    ----------
    experiments : sequence of str
        Which.
    described : mapping of str to str
        A line about each, as :func:`describe_experiments` makes it.
    made_from : mapping
        What the report tables say they were made from: ``encoder_weights`` and ``encoder_notes`` by experiment.
    """
    weights, notes = made_from.get("encoder_weights", {}), made_from.get("encoder_notes", {})
    result = {}
    for name in experiments:
        told = weights.get(name, ())
        # Of random weights and of none, the line tells already.
        digests = dict.fromkeys(part for text in told for part in text.split(" + ") if part.startswith("sha256:"))
        line = described.get(name, "")
        external = "labels" in told or line.startswith(EXTERNAL)
        result[name] = Origin(name, line, tuple(digests), tuple(notes.get(name, ())), external)
    return result


def describe_evaluation(config: EvaluationConfig) -> list[tuple[str, str]]:
    """How predictions were compared with the truth: what was chosen, and its value.

    Parameters
    ----------
    config : EvaluationConfig
        The study's.
    """
    names = {
        "convention": "matching of nuclei",
        "iou_threshold": "IoU threshold",
        "detection_radius_um": "radius of a detection",
        "boundary_tolerance_um": "tolerance at boundaries",
    }
    told = []
    for name, value in config.model_dump(mode="json").items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        told.append((names.get(name, name.replace("_", " ")), f"{text} µm" if name.endswith("_um") else text))
    return told
