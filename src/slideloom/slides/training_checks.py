"""What an experiment asks of its training, against encoders, heads and sheet."""

from __future__ import annotations

from collections.abc import Iterator

from slideloom.config.catalogue import find_entry
from slideloom.config.model import EncoderConfig, ExperimentConfig, HeadLossConfig, LossConfig
from slideloom.errors import Problem
from slideloom.slides.delimited import nearest
from slideloom.slides.evidence import Evidence

__all__ = ["check_training"]

#: Changes of a picture's look that one kind of image knows, and probability 0 switches off.
_LOOKS = {"he": ("colour_jitter", "stain_jitter"), "sp": ("channel_dropout", "intensity_scaling")}
_OF_IMAGE = {"he": "stained (RGB) images", "sp": "marker channels"}
#: The head that a monitored figure is worked out from.
_JUDGED = {"dice_macro": "classes", "dice_binary": "nucleus", "hv_mse": "hv"}


def check_training(evidence: Evidence, name: str, experiment: ExperimentConfig) -> Iterator[Problem]:
    """Check how an experiment is trained: decoder, losses, monitor, input, augmentation, sampling."""
    yield from _decoder(evidence, name, experiment)
    yield from _adapter(evidence, name, experiment)
    yield from _losses(evidence, name, experiment)
    yield from _input(evidence, name, experiment)
    yield from _augmentation(evidence, name, experiment)
    yield from _sampling(evidence, name, experiment)
    head = _JUDGED.get(experiment.training.monitor)
    if head is not None and head not in experiment.heads:
        others = ", ".join(["loss", *(figure for figure, needs in _JUDGED.items() if needs in experiment.heads)])
        what = f"{experiment.training.monitor} needs the head {head!r}"
        hint = f"Add the head, or monitor {others}"
        yield evidence.at("experiments", name, "training", "monitor", what=what, hint=hint)


def _decoder(evidence: Evidence, name: str, experiment: ExperimentConfig) -> Iterator[Problem]:
    path, decoder = ("experiments", name, "decoder"), experiment.decoder
    if decoder.whole and experiment.training.unfreeze_epoch is not None:
        what = f"a decoder of kind {decoder.kind!r} reads no tokens: training the encoder would change nothing"
        yield evidence.at(*path, "kind", what=what, hint="Remove training.unfreeze_epoch")
    if decoder.kind != "linear":
        return
    for key in ("global_context", "masked_attention"):
        if getattr(decoder, key):
            what, hint = f"the linear decoder has no {key}", "Remove the key, or set 'kind: cellvit'"
            yield evidence.at("experiments", name, "decoder", key, what=what, hint=hint)


def _adapter(evidence: Evidence, name: str, experiment: ExperimentConfig) -> Iterator[Problem]:
    path = ("experiments", name, "adapter")
    if experiment.adapter is None:
        return
    if experiment.training.input != "live":
        what = "an adapter is trained, so tokens cannot be stored"
        yield evidence.at(*path, what=what, hint="Set 'training: {input: live}'")
    encoder = evidence.draft.encoders.get(experiment.first_encoder)
    entry = find_entry(encoder.model) if encoder else None
    if entry and entry.kind != "rgb":
        what = f"the encoder {experiment.first_encoder!r} ({entry.name}) reads markers as they are"
        hint = "Name an RGB encoder, or mean_rgb for a network that reads the image alone; or remove the key"
        yield evidence.at(*path, what=what, hint=hint)
    elif entry and experiment.adapter.out_channels != 3 and not experiment.decoder.whole:
        what = f"an RGB encoder reads 3 channels, not {experiment.adapter.out_channels}"
        yield evidence.at(*path, "out_channels", what=what, hint="Remove the key")


def _losses(evidence: Evidence, name: str, experiment: ExperimentConfig) -> Iterator[Problem]:
    path, loss = ("experiments", name, "loss"), experiment.loss
    for head, weights in loss.heads.items():
        if head not in experiment.heads:
            what, hint = f"the experiment has no head {head!r}", f"It has: {', '.join(experiment.heads)}"
            yield evidence.at(*path, "heads", head, what=what, hint=hint)
        if head == "classes" and weights.lovasz_hinge > 0:
            what = "the Lovász-hinge is for two classes"
            yield evidence.at(*path, "heads", head, "lovasz_hinge", what=what, hint="Use lovasz_softmax")
    for one in experiment.heads:
        if not _weighs(loss, one):
            what = f"every loss term of the head {one!r} has weight 0"
            yield evidence.at(*path, what=what, hint="Raise a weight or drop the head")


def _weighs(loss: LossConfig, head: str) -> bool:
    """Whether some term of a head counts."""
    if head == "hv":
        return loss.hv_mse > 0 or loss.hv_msge > 0
    own: LossConfig | HeadLossConfig | None = next((terms for key, terms in loss.heads.items() if key == head), None)
    if head in ("instanseg", "instanseg_cells"):
        return loss.instanseg_instance > 0 or loss.instanseg_seed > 0
    if head in ("distance", "three_class") or (own is None and head == "boundary"):
        return bool(getattr(loss, head) > 0)
    terms = set(HeadLossConfig.model_fields) - ({"lovasz_hinge"} if head == "classes" else set())
    return any(getattr(own or loss, term) > 0 for term in terms)


def _input(evidence: Evidence, name: str, experiment: ExperimentConfig) -> Iterator[Problem]:
    path, training = ("experiments", name, "training"), experiment.training
    live = training.input == "live"
    if live and len(experiment.encoder) > 1:
        what = f"live input takes one encoder, not {len(experiment.encoder)}"
        yield evidence.at(*path, "input", what=what, hint="Set 'input: stored'")
    if training.unfreeze_epoch is None:
        return
    encoder = evidence.draft.encoders.get(experiment.first_encoder)
    entry = find_entry(encoder.model) if encoder else None
    if not live:
        what = "stored tokens are of the frozen encoder: it cannot be trained on them"
        yield evidence.at(*path, "unfreeze_epoch", what=what, hint="Set 'input: live', or remove the key")
    elif entry and not entry.weights:
        what = f"the encoder {experiment.first_encoder!r} ({entry.name}) has no weights to train"
        yield evidence.at(*path, "unfreeze_epoch", what=what, hint="Remove the key")


def _augmentation(evidence: Evidence, name: str, experiment: ExperimentConfig) -> Iterator[Problem]:
    path, config = ("experiments", name, "augmentation"), experiment.augmentation
    live = experiment.training.input == "live"
    encoders = {one: entry for one in experiment.encoder if (entry := evidence.draft.encoders.get(one))}
    image = "sp" if experiment.adapter else _image(evidence, next(iter(encoders.values()), None))
    for kind, keys in _LOOKS.items():
        for key in keys:
            if getattr(config, key) == 0:
                continue
            if not live:
                what = f"{key} cannot be had on stored tokens, which are made of patches as they are"
                yield evidence.at(*path, key, what=what, hint="Set 'training: {input: live}', or remove the key")
            elif image is not None and kind != image:
                what = f"{key} is for {_OF_IMAGE[kind]}; the encoder reads {_OF_IMAGE[image]}"
                yield evidence.at(*path, key, what=what, hint="Remove the key")
    if live or not (config.flips or config.turns):
        return
    key = "flips" if config.flips else "turns"
    if len(experiment.encoder) > 1:
        what = f"{key}: the stored tokens of several encoders can be neither flipped nor turned together"
        yield evidence.at(*path, key, what=what, hint="Remove the key")
    elif encoders and not next(iter(encoders.values())).symmetries:
        what = f"{key} needs the tokens of flipped and turned tiles, which are not stored"
        hint = f"Set 'encoders.{experiment.first_encoder}.symmetries: true', or 'training: {{input: live}}'"
        yield evidence.at(*path, key, what=what, hint=hint)


def _image(evidence: Evidence, encoder: EncoderConfig | None) -> str | None:
    grid = evidence.draft.grids.get(encoder.grid) if encoder else None
    return grid.image if grid else None


def _sampling(evidence: Evidence, name: str, experiment: ExperimentConfig) -> Iterator[Problem]:
    path, sampling = ("experiments", name, "sampling"), experiment.sampling
    if sampling.gamma == 0:
        return
    if "classes" in sampling.by and not evidence.draft.gives("classes"):
        hint = "Name a table of classes, or set 'by: group'"
        yield evidence.at(*path, "by", what="sampling by classes needs the key 'classes'", hint=hint)
    rows = evidence.rows or ()
    if "group" in sampling.by and rows and not any(row.column(sampling.column) for row in rows):
        columns = sorted({"platform", "patient_id"} | {key for row in rows for key in row.extra})
        near = nearest(sampling.column, columns)
        hint = f"Did you mean {near!r}?" if near else f"The sheet has: {', '.join(columns)}"
        what = f"no slide has a value in the sheet's column {sampling.column!r}"
        yield evidence.at(*path, "column", what=what, hint=hint)
