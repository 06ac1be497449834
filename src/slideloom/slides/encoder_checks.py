"""An encoder's config against grids, splits and markers."""

from __future__ import annotations

from collections.abc import Iterator

from slideloom.config.model import EncoderConfig
from slideloom.errors import Problem
from slideloom.slides.delimited import nearest
from slideloom.slides.encoder_names import ENCODERS, EncoderKind, encoder_kind
from slideloom.slides.evidence import Evidence

__all__ = ["check_encoder"]

#: Sides of a token that the decoder can enlarge back to pixels.
_UPSAMPLING = (8, 16)
#: Markers that are named when none is near.
_SHOWN = 20


def check_encoder(evidence: Evidence, name: str, encoder: EncoderConfig) -> Iterator[Problem]:
    """Check one encoder: its grid, weights, tokens, statistics and markers."""
    path = ("encoders", name)
    yield from evidence.points_nowhere((*path, "grid"), encoder.grid, "grids")
    if encoder.statistics is not None:
        yield from evidence.points_nowhere((*path, "statistics"), encoder.statistics, "splits")
    if encoder.blocks != sorted(set(encoder.blocks)):
        yield evidence.at(*path, "blocks", what=f"{encoder.blocks} must rise, each block once")
    kind = encoder_kind(encoder.model)
    if kind is None:
        near = nearest(encoder.model, [known.removesuffix("<name>") for known in ENCODERS])
        known = f"There is: {', '.join(ENCODERS)}"
        hint = f"Did you mean {near!r}?" if near in ENCODERS else known
        yield evidence.at(*path, "model", what=f"no encoder is called {encoder.model!r}", hint=hint)
    else:
        yield from _encoder_of_kind(evidence, name, encoder, kind)
    if kind is None or not kind.rgb:
        yield from _encoder_markers(evidence, name, encoder)


def _encoder_of_kind(evidence: Evidence, name: str, encoder: EncoderConfig, kind: EncoderKind) -> Iterator[Problem]:
    path = ("encoders", name)
    grid = evidence.draft.grids.get(encoder.grid)
    wanted = "he" if kind.rgb else "sp"
    if grid and grid.image != wanted:
        reads = "RGB" if kind.rgb else "marker channels"
        what = f"{encoder.model!r} reads {reads}, but grid {encoder.grid!r} cuts {grid.image} images"
        yield evidence.at(*path, "grid", what=what, hint=f"Name a grid with 'image: {wanted}'")
    if kind.rgb and encoder.markers:
        yield evidence.at(*path, "markers", what=f"{encoder.model!r} reads RGB and no markers", hint="Remove the key")
    yield from _weights(evidence, name, encoder, kind)
    yield from _tokens(evidence, name, encoder, kind)
    yield from _statistics(evidence, name, encoder, kind)


def _weights(evidence: Evidence, name: str, encoder: EncoderConfig, kind: EncoderKind) -> Iterator[Problem]:
    path = ("encoders", name)
    if not kind.weights:
        for key in ("checkpoint", "random"):
            if getattr(encoder, key) is not None:
                yield evidence.at(*path, key, what=f"{encoder.model!r} has no weights", hint="Remove the key")
    elif encoder.checkpoint is not None and encoder.random is not None:
        hint = "Keep 'checkpoint' to use the weights, 'random' to run without"
        yield evidence.at(*path, what="gives both 'checkpoint' and 'random'", hint=hint)
    elif encoder.checkpoint is None and encoder.random is None:
        hint = "Give 'checkpoint: <file>', or 'random: 0' to run without weights, on purpose"
        yield evidence.at(*path, what=f"{encoder.model!r} needs weights", hint=hint)
    used = {experiment.encoder for experiment in evidence.draft.experiments.values()}
    if kind.weights and encoder.checkpoint is not None and name in used:
        file = evidence.base / encoder.checkpoint
        if not file.is_file():
            hint = "Nothing is ever fetched: put the file there, or give 'random: 0' to run without weights, on purpose"
            yield evidence.at(*path, "checkpoint", what=f"{str(file)!r} does not exist", hint=hint)


def _tokens(evidence: Evidence, name: str, encoder: EncoderConfig, kind: EncoderKind) -> Iterator[Problem]:
    path = ("encoders", name)
    token_px = kind.token_px
    if encoder.patch_px is not None:
        if kind.free_token:
            token_px = encoder.patch_px
        else:
            what = f"the token side of {encoder.model!r} cannot be chosen"
            yield evidence.at(*path, "patch_px", what=what, hint="Remove the key")
    if token_px is None:
        return
    if token_px not in _UPSAMPLING:
        fix = "Set patch_px to 8 or 16" if kind.free_token else "Choose a model whose name has patch8 or patch16"
        what = f"tokens of {token_px} px: the decoder enlarges 8 or 16 times"
        yield evidence.at(*path, "patch_px" if kind.free_token else "model", what=what, hint=fix)
        return
    grid = evidence.draft.grids.get(encoder.grid)
    fits = grid is not None and (grid.image == "he") == kind.rgb
    if grid and fits and grid.tile_px % token_px:
        below = grid.tile_px // token_px * token_px
        what = f"tiles of {grid.tile_px} px cannot be cut into tokens of {token_px} px"
        hint = f"Set grids.{encoder.grid}.tile_px to {f'{below} or ' if below else ''}{below + token_px}"
        yield evidence.at(*path, "grid", what=what, hint=hint)


def _statistics(evidence: Evidence, name: str, encoder: EncoderConfig, kind: EncoderKind) -> Iterator[Problem]:
    path = ("encoders", name, "statistics")
    if encoder.statistics is None:
        if not kind.rgb and encoder.normalisation.scope == "training":
            hint = "Name a split, whose training slides are measured, or set 'normalisation: {scope: slide}'"
            yield evidence.at("encoders", name, what="the key 'statistics' is missing (scope: training)", hint=hint)
        return
    if kind.rgb:
        what = f"{encoder.model!r} brings its own normalisation"
        yield evidence.at(*path, what=what, hint="Remove the key")
    elif encoder.normalisation.scope == "slide":
        what = "every slide is measured by itself (scope: slide)"
        yield evidence.at(*path, what=what, hint="Remove the key, or set 'scope: training'")
    split = evidence.draft.splits.get(encoder.statistics)
    if split and len(split.fold_names) > 1:
        what = f"split {encoder.statistics!r} has {len(split.fold_names)} folds, and each slide tests in one of them"
        hint = "Name a split with one fold, or set 'normalisation: {scope: slide}'"
        yield evidence.at(*path, what=what, hint=hint)


def _encoder_markers(evidence: Evidence, name: str, encoder: EncoderConfig) -> Iterator[Problem]:
    path = ("encoders", name, "markers")
    seen: set[str] = set()
    for index, marker in enumerate(encoder.markers):
        if marker in seen:
            yield evidence.at(*path, index, what=f"{marker!r} stands in the list twice")
        seen.add(marker)
        if evidence.markers is None or marker in evidence.markers.markers:
            continue
        channel = evidence.markers.lookup(marker)
        known = sorted(evidence.markers.markers)
        near = nearest(marker, known)
        if channel:
            hint = f"That is a channel; its marker is {channel.marker!r}"
        elif near:
            hint = f"Did you mean {near!r}?"
        else:
            hint = f"There is: {', '.join(known[:_SHOWN])}{', …' if len(known) > _SHOWN else ''}"
        yield evidence.at(*path, index, what=f"{marker!r} is no marker of {evidence.draft.markers}", hint=hint)
