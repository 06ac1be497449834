"""What an experiment that takes a published model over needs, as far as config and folders tell it.

What the file itself says (classes, widths, heads, pixel size) is compared where it is read.
"""

from __future__ import annotations

from collections.abc import Iterator

from slideloom.config.catalogue import adapted, find_entry
from slideloom.config.model import EncoderConfig, ExperimentConfig
from slideloom.config.texts import absence
from slideloom.errors import Problem
from slideloom.slides.evidence import Evidence

__all__ = ["check_published"]

#: The encoder before a whole network, which reads none of its tokens.
_PLAIN = "mean_rgb"
_OF_TRAINING = ("loss", "sampling", "augmentation", "training")
#: Keys of the decoder that a published model may be asked for; its file decides whether it is so.
_DECODER: dict[str, frozenset[str]] = {
    "cellvit": frozenset(),
    "instanseg": frozenset({"kind", "widths", "multihead"}),
    "hovernet": frozenset({"kind", "mode", "width"}),
}
_HEADS: dict[str, tuple[str, ...]] = {
    "cellvit": ("nucleus", "hv", "classes"),
    "instanseg": ("instanseg", "instanseg_cells"),
    "hovernet": ("nucleus", "hv", "classes"),
}
_NAMES = {"cellvit": "CellViT", "instanseg": "InstanSeg", "hovernet": "HoVer-Net"}
#: Pixel sizes for which every published HoVer-Net was made (×40), µm.
_HOVERNET_UM = (0.2, 0.3)


def check_published(evidence: Evidence, name: str, experiment: ExperimentConfig) -> Iterator[Problem]:
    """Check an experiment with ``pretrained`` or ``torchscript``.

    Parameters
    ----------
    evidence : Evidence
        What was read of the study.
    name : str
        The experiment.
    experiment : ExperimentConfig
        Its part of the config.

    Yields
    ------
    Problem
        Each mistake. The file is not opened.
    """
    key = "pretrained" if experiment.torchscript is None else "torchscript"
    path, kind, file = ("experiments", name), experiment.decoder.kind, experiment.published
    assert file is not None
    encoder = evidence.draft.encoders.get(experiment.first_encoder)
    if why := absence(evidence.base / file) or ("" if (evidence.base / file).is_file() else "is no file"):
        hint = "Nothing is ever fetched: put the published file there"
        yield evidence.at(*path, key, what=f"{str(evidence.base / file)!r} {why}", hint=hint)
    elif len(experiment.encoder) > 1:
        if experiment.decoder.whole:
            what, hint = "a whole network reads the image alone, and one grid", f"Name one encoder of model {_PLAIN}"
        else:
            what, hint = "a published model reads the tokens of its own encoder only", "Name the one in the file"
        yield evidence.at(*path, key, what=what, hint=hint)
    elif encoder is not None and not experiment.decoder.whole and key == "pretrained" and encoder.checkpoint != file:
        hint = f"Set 'encoders.{experiment.first_encoder}.checkpoint: {file}'"
        yield evidence.at(*path, key, what="its encoder does not come from the same file", hint=hint)
    for part in _OF_TRAINING:
        if part in experiment.model_fields_set:
            what = "plays no part: a published model is used as it is"
            yield evidence.at(*path, part, what=what, hint=f"Remove the key, or remove {key!r} to train")
    yield from _decoder(evidence, name, experiment, key)
    if kind in _HEADS:
        yield from _heads(evidence, name, experiment)
    if encoder is not None and kind in ("instanseg", "hovernet") and len(experiment.encoder) == 1:
        yield from _input(evidence, name, experiment, encoder)


def _decoder(evidence: Evidence, name: str, experiment: ExperimentConfig, key: str) -> Iterator[Problem]:
    path, decoder = ("experiments", name, "decoder"), experiment.decoder
    if key == "torchscript" and decoder.kind != "instanseg":
        hint = "Set 'decoder: {kind: instanseg}', or name a checkpoint as 'pretrained'"
        what = f"torchscript is for programs of InstanSeg, not for a decoder of kind {decoder.kind!r}"
        yield evidence.at(*path, "kind", what=what, hint=hint)
    elif decoder.kind not in _DECODER:
        hint = f"Kinds with published models are {', '.join(_DECODER)}; or remove {key!r} to train"
        yield evidence.at(*path, "kind", what=f"there is no published model of kind {decoder.kind!r}", hint=hint)
    elif decoder.kind == "cellvit":
        if "decoder" in experiment.model_fields_set:
            what = "plays no part: a published model is used as it is"
            yield evidence.at(*path, what=what, hint=f"Remove the key, or remove {key!r} to train")
    else:
        known = frozenset({"kind"}) if key == "torchscript" else _DECODER[decoder.kind]
        for extra in sorted(decoder.model_fields_set - known):
            what = "plays no part: a published model is used as it is"
            yield evidence.at(*path, extra, what=what, hint="Remove the key")


def _heads(evidence: Evidence, name: str, experiment: ExperimentConfig) -> Iterator[Problem]:
    path, kind = ("experiments", name, "heads"), experiment.decoder.kind
    known = _HEADS[kind]
    absent = [head for head in experiment.heads if head not in known]
    if absent:
        what = f"a published {_NAMES[kind]} has no head {', '.join(map(repr, absent))}"
        hint = f"Set 'heads: [{known[0]}]', or with whole cells '[{', '.join(known)}]'"
        yield evidence.at(*path, what=what, hint=hint if kind == "instanseg" else f"It has: {', '.join(known)}")
    elif kind == "instanseg" and "instanseg" not in experiment.heads:
        yield evidence.at(*path, what="whole cells belong to nuclei", hint=f"Set 'heads: [{', '.join(known)}]'")


def _input(evidence: Evidence, name: str, experiment: ExperimentConfig, encoder: EncoderConfig) -> Iterator[Problem]:
    """What the network is given: the image alone, normalised and as large as it was trained on."""
    first, kind = experiment.first_encoder, experiment.decoder.kind
    path = ("encoders", first)
    entry = find_entry(encoder.model)
    if entry is not None and entry.name != _PLAIN:
        what = f"a published {_NAMES[kind]} reads the image and no tokens, so {first!r} ({entry.name}) plays no part"
        hint = f"Name an encoder of model {_PLAIN} on the same grid"
        yield evidence.at("experiments", name, "encoder", what=what, hint=hint)
        return
    grid = evidence.draft.grids.get(encoder.grid)
    if kind == "instanseg":
        own = adapted(encoder).normalisation
        if (own.scope, own.clip_quantile, own.log1p) != ("percentiles", 0.999, False):
            what = "a published InstanSeg reads channels between each slide's own quantiles 0.001 and 0.999"
            yield evidence.at(*path, "normalisation", what=what, hint="Remove the key")
    elif grid is not None and grid.image == "he" and not encoder.off_resolution:
        low, high = _HOVERNET_UM
        if grid.mpp_um is None or not low <= grid.mpp_um <= high:
            has = "takes every image's own" if grid.mpp_um is None else f"has {grid.mpp_um:g}"
            what = f"published HoVer-Nets were made for {low:g} to {high:g} um/px, and grid {encoder.grid!r} {has}"
            hint = f"Set 'grids.{encoder.grid}.mpp_um: 0.25', or the encoder's 'off_resolution: true' to use it so"
            yield evidence.at(*path, "grid", what=what, hint=hint)
