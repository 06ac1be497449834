"""An encoder's config against grids, splits and markers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from slideloom.config.catalogue import CATALOGUE, EncoderEntry, adapted, complete, find_entry, nearest_entries
from slideloom.config.model import EncoderConfig
from slideloom.config.texts import absence
from slideloom.errors import Problem
from slideloom.slides.delimited import nearest
from slideloom.slides.evidence import Evidence
from slideloom.slides.folds import fold_names

__all__ = ["check_encoder"]

#: Sides of a token that the decoder can enlarge back to pixels; tiles of 14 px tokens are resized to fit.
_TOKENS_PX = (8, 14, 16)
_RESIZED_PX = 14
_UNIPROT = re.compile(r"[A-Z0-9]{6,10}(-\d+)?")
#: Markers that are named when none is near.
_SHOWN = 20


def check_encoder(evidence: Evidence, name: str, encoder: EncoderConfig) -> Iterator[Problem]:
    """Check one encoder: its grid, weights, tokens, statistics and markers."""
    path = ("encoders", name)
    yield from evidence.points_nowhere((*path, "grid"), encoder.grid, "grids")
    if encoder.statistics is not None:
        yield from evidence.points_nowhere((*path, "statistics"), encoder.statistics, "splits")
    if encoder.blocks != sorted(set(encoder.blocks)):
        hint = f"Write {sorted(set(encoder.blocks))}"
        yield evidence.at(*path, "blocks", what=f"{encoder.blocks} must rise, each block once", hint=hint)
    entry = find_entry(encoder.model)
    if entry is None:
        near = nearest(encoder.model, [name for name in CATALOGUE if "<" not in name])
        hint = f"Did you mean {near!r}?" if near else f"There is: {', '.join(nearest_entries(encoder.model))}"
        yield evidence.at(*path, "model", what=f"no encoder is called {encoder.model!r}", hint=hint)
    else:
        yield from _encoder_of_entry(evidence, name, encoder, entry)
    if entry is None or entry.kind == "markers":
        yield from _encoder_markers(evidence, name, encoder)


def _encoder_of_entry(evidence: Evidence, name: str, encoder: EncoderConfig, entry: EncoderEntry) -> Iterator[Problem]:
    path = ("encoders", name)
    grid = evidence.draft.grids.get(encoder.grid)
    wanted = "he" if entry.kind == "rgb" else "sp"
    behind = _behind_adapters(evidence, name)
    if grid and grid.image != wanted and not (behind and entry.kind == "rgb"):
        reads = "RGB" if entry.kind == "rgb" else "marker channels"
        what = f"{encoder.model!r} reads {reads}, but grid {encoder.grid!r} cuts {grid.image} images"
        yield evidence.at(*path, "grid", what=what, hint=f"Name a grid with 'image: {wanted}'")
    elif grid and grid.mpp_um and entry.mpp_um and not encoder.off_resolution:
        low, high = entry.mpp_um
        if not low <= grid.mpp_um <= high:
            what = (
                f"{encoder.model!r} was made for {low:g} to {high:g} um/px, grid {encoder.grid!r} has {grid.mpp_um:g}"
            )
            hint = "Change the grid's mpp_um, or set 'off_resolution: true' to use it so on purpose"
            yield evidence.at(*path, "grid", what=what, hint=hint)
    if entry.kind == "rgb" and encoder.markers and not behind:
        yield evidence.at(*path, "markers", what=f"{encoder.model!r} reads RGB and no markers", hint="Remove the key")
    rising = encoder.blocks == sorted(set(encoder.blocks))
    if entry.depth is not None and encoder.blocks and rising and encoder.blocks[-1] > entry.depth:
        what = f"{encoder.model!r} has {entry.depth} blocks, not {max(encoder.blocks)}"
        yield evidence.at(*path, "blocks", what=what, hint=f"Blocks are counted from 1 to {entry.depth}")
    if encoder.final_norm and entry.family == "mean_marker":
        what = f"{encoder.model!r} has no final normalisation"
        yield evidence.at(*path, "final_norm", what=what, hint="Remove the key")
    elif encoder.final_norm and entry.depth is not None and encoder.blocks and entry.depth not in encoder.blocks:
        what = f"only block {entry.depth}, the last, has a final normalisation, and 'blocks' leaves it out"
        yield evidence.at(*path, "final_norm", what=what, hint=f"Add {entry.depth} to blocks, or remove the key")
    yield from _weights(evidence, name, encoder, entry)
    yield from _tokens(evidence, name, encoder, entry)
    yield from _statistics(evidence, name, encoder, entry)
    yield from _embeddings(evidence, name, encoder, entry)


def _behind_adapters(evidence: Evidence, name: str) -> bool:
    """Whether an encoder is used, and always behind an adapter, which reads any channels."""
    uses = [one.adapted for one in evidence.draft.experiments.values() if name in one.encoder]
    return bool(uses) and all(uses)


def _weights(evidence: Evidence, name: str, encoder: EncoderConfig, entry: EncoderEntry) -> Iterator[Problem]:
    path = ("encoders", name)
    if not entry.weights:
        for key in ("checkpoint", "random"):
            if getattr(encoder, key) is not None:
                yield evidence.at(*path, key, what=f"{encoder.model!r} has no weights", hint="Remove the key")
    elif encoder.checkpoint is not None and encoder.random is not None:
        hint = "Keep 'checkpoint' to use the weights, 'random' to run without"
        yield evidence.at(*path, what="gives both 'checkpoint' and 'random'", hint=hint)
    elif encoder.checkpoint is None and encoder.random is None:
        hint = "Give 'checkpoint: <file>', or 'random: 0' to run without weights, on purpose"
        yield evidence.at(*path, what=f"{encoder.model!r} needs weights", hint=hint)
    used = {one for experiment in evidence.draft.experiments.values() for one in experiment.encoder}
    if entry.weights and encoder.checkpoint is not None and name in used:
        file = evidence.base / encoder.checkpoint
        if why := absence(file) or ("" if file.is_file() else "is no file"):
            hint = "Nothing is ever fetched: put the file there, or give 'random: 0' to run without weights, on purpose"
            yield evidence.at(*path, "checkpoint", what=f"{str(file)!r} {why}", hint=hint)


def _tokens(evidence: Evidence, name: str, encoder: EncoderConfig, entry: EncoderEntry) -> Iterator[Problem]:
    path = ("encoders", name)
    token_px = entry.token_px
    if encoder.patch_px is not None:
        if entry.free_token:
            token_px = encoder.patch_px
        else:
            what = f"the token side of {encoder.model!r} cannot be chosen"
            yield evidence.at(*path, "patch_px", what=what, hint="Remove the key")
    if token_px is None:
        return
    allowed = tuple(side for side in _TOKENS_PX if not (entry.free_token and side == _RESIZED_PX))
    if token_px not in allowed:
        sides = f"{', '.join(map(str, allowed[:-1]))} or {allowed[-1]}"
        fix = f"Set patch_px to {sides}" if entry.free_token else "Choose a model whose name has patch8, 14 or 16"
        what = f"tokens of {token_px} px: the decoder enlarges tokens of {sides} px"
        yield evidence.at(*path, "patch_px" if entry.free_token else "model", what=what, hint=fix)
        return
    grid = evidence.draft.grids.get(encoder.grid)
    fits = grid is not None and (grid.image == "he") == (entry.kind == "rgb")
    if grid and fits and token_px != _RESIZED_PX and grid.tile_px % token_px:
        below = grid.tile_px // token_px * token_px
        what = f"tiles of {grid.tile_px} px cannot be cut into tokens of {token_px} px"
        hint = f"Set grids.{encoder.grid}.tile_px to {f'{below} or ' if below else ''}{below + token_px}"
        yield evidence.at(*path, "grid", what=what, hint=hint)
    elif grid and fits and grid.tile_px < token_px:
        what = f"tiles of {grid.tile_px} px are smaller than a token of {token_px} px"
        yield evidence.at(*path, "grid", what=what, hint=f"Raise grids.{encoder.grid}.tile_px")


def _statistics(evidence: Evidence, name: str, encoder: EncoderConfig, entry: EncoderEntry) -> Iterator[Problem]:
    path = ("encoders", name, "statistics")
    behind = _behind_adapters(evidence, name)
    own = (adapted if behind else complete)(encoder).normalisation
    pooled = next((f"{key}: training" for key in ("scope", "clip") if getattr(own, key) == "training"), "")
    alone = "scope: clip, clip: slide" if own.scope == "clip" else "scope: slide"
    if encoder.normalisation.scope == "slide" and encoder.normalisation.clip == "training":
        what = "'clip: training' needs 'scope: training': with 'scope: slide' nothing is taken from other slides"
        hint = "Set 'scope: training', or 'clip: slide'"
        yield evidence.at("encoders", name, "normalisation", "clip", what=what, hint=hint)
    if encoder.statistics is None:
        if (entry.kind == "markers" or behind) and pooled:
            hint = f"Name a split, whose training slides are measured, or set 'normalisation: {{{alone}}}'"
            yield evidence.at("encoders", name, what=f"the key 'statistics' is missing ({pooled})", hint=hint)
        return
    if entry.kind == "rgb" and not behind:
        what = f"{encoder.model!r} brings its own normalisation"
        yield evidence.at(*path, what=what, hint="Remove the key")
    elif not pooled and encoder.normalisation.clip != "training":
        what = f"every slide is measured by itself ({alone})"
        yield evidence.at(*path, what=what, hint="Remove the key, or set 'scope: training'")
    split = evidence.draft.splits.get(encoder.statistics)
    if split and len(folds := fold_names(split, evidence.rows or ())) > 1:
        what = f"split {encoder.statistics!r} has {len(folds)} folds, and each slide tests in one of them"
        hint = f"Name a split with one fold, or set 'normalisation: {{{alone}}}'"
        yield evidence.at(*path, what=what, hint=hint)


#: Keys that only encoders with protein embeddings read, and the value that says nothing.
_EMBEDDING_KEYS: Mapping[str, object] = {
    "context": "tile",
    "marker_embeddings": None,
    "marker_ids": {},
    "unknown_markers": "error",
}


def _embeddings(evidence: Evidence, name: str, encoder: EncoderConfig, entry: EncoderEntry) -> Iterator[Problem]:
    path = ("encoders", name)
    if not entry.embedding:
        for key, nothing in _EMBEDDING_KEYS.items():
            if getattr(encoder, key) != nothing:
                yield evidence.at(*path, key, what=f"plays no part in {encoder.model!r}", hint="Remove the key")
        return
    if encoder.marker_embeddings is None:
        if encoder.checkpoint is not None:
            hint = "Give 'marker_embeddings: <folder of UniProt.pt files, or a safetensors file>'"
            yield evidence.at(*path, what=f"{encoder.model!r} needs protein embeddings of its markers", hint=hint)
    elif why := absence(file := evidence.base / encoder.marker_embeddings):
        hint = "Nothing is ever fetched: put the embeddings there; docs/encoders.md says how they are made"
        yield evidence.at(*path, "marker_embeddings", what=f"{str(file)!r} {why}", hint=hint)
    for marker, accession in encoder.marker_ids.items():
        if evidence.markers is not None and marker not in evidence.markers.markers:
            near = nearest(marker, sorted(evidence.markers.markers))
            hint = f"Did you mean {near!r}?" if near else "Markers stand in its column 'marker'"
            yield evidence.at(
                *path, "marker_ids", what=f"{marker!r} is no marker of {evidence.draft.markers}", hint=hint
            )
        if not _UNIPROT.fullmatch(accession):
            what = f"{accession!r} is not a UniProt accession"
            yield evidence.at(*path, "marker_ids", marker, what=what, hint="It looks like P68431")
    if encoder.unknown_markers == "error" and evidence.markers is not None:
        known = {channel.marker for channel in evidence.markers.channels if channel.uniprot} | set(encoder.marker_ids)
        lacking = [marker for marker in encoder.markers if marker in evidence.markers.markers and marker not in known]
        if lacking:
            what = f"no UniProt accession is known of {', '.join(lacking)}"
            hint = f"Fill the column uniprot, or set 'marker_ids: {{{lacking[0]}: P68431}}', or 'unknown_markers: drop'"
            yield evidence.at(*path, "markers", what=what, hint=hint)


def _encoder_markers(evidence: Evidence, name: str, encoder: EncoderConfig) -> Iterator[Problem]:
    path = ("encoders", name, "markers")
    seen: set[str] = set()
    for index, marker in enumerate(encoder.markers):
        if marker in seen:
            yield evidence.at(*path, index, what=f"{marker!r} stands in the list twice", hint="Remove one of them")
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
