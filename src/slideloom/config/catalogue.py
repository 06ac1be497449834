"""The encoders that a config may name: what each takes and gives, and what its published weights are.

Plain data, read while a study is planned; nothing here imports a library of arithmetic. What a checkpoint itself says
(its depth, the classes it knows) is read where it is loaded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from slideloom.config.encoder_entries import ANY, ENTRIES
from slideloom.config.encoder_entry import EncoderEntry, Family
from slideloom.config.model import EncoderConfig, NormalisationConfig

__all__ = ["CATALOGUE", "EncoderEntry", "Family", "adapted", "complete", "find_entry", "nearest_entries"]

_PATCH = re.compile(r"patch(\d+)")

#: Every entry, by name.
CATALOGUE: Mapping[str, EncoderEntry] = MappingProxyType({entry.name: entry for entry in ENTRIES})


def find_entry(model: str) -> EncoderEntry | None:
    """The entry that a config's ``model`` names.

    Parameters
    ----------
    model : str
        Such as ``mean_marker`` or ``timm/vit_tiny_patch16_224``.

    Returns
    -------
    EncoderEntry or None
        None when no encoder has that name. Of a model of a library: with its own name, and the token side that the
        name tells.

    Examples
    --------
    >>> find_entry("timm/vit_small_patch14_dinov2").token_px
    14
    """
    if ANY in model:
        return None
    if model in CATALOGUE:
        return CATALOGUE[model]
    for entry in CATALOGUE.values():
        stem = entry.name.removesuffix(ANY)
        if entry.name.endswith(ANY) and model.startswith(stem) and len(model) > len(stem):
            patch = _PATCH.search(model)
            token_px = int(patch[1]) if patch else None
            return replace(entry, name=model, arch=model.removeprefix(stem), token_px=token_px)
    return None


def nearest_entries(model: str) -> tuple[str, ...]:
    """Names of the entries most like one that is not there; every name, when none is like it."""
    names = list(CATALOGUE)
    near = difflib.get_close_matches(model, names, 3, 0.6)
    family = [name for name in names if name.split("/")[0] == model.split("/")[0] and "/" in model]
    return tuple(dict.fromkeys([*near, *family])) or tuple(names)


#: What an adapter reads, unless the encoder's config says otherwise: as InstanSeg and ChannelNet do.
_ADAPTED = NormalisationConfig(scope="percentiles", clip="slide", clip_quantile=0.999, log1p=False)


def adapted(config: EncoderConfig) -> EncoderConfig:
    """The config of an encoder behind an adapter: the normalisation is of the channels that the adapter reads.

    Parameters
    ----------
    config : EncoderConfig
        As written.

    Returns
    -------
    EncoderConfig
        Without an open value; ``scope: percentiles`` where the config says nothing of normalisation.
    """
    given = config.normalisation.model_dump(exclude_unset=True, exclude_none=True)
    settled = NormalisationConfig(**(_ADAPTED.model_dump() | given))
    if settled.scope in ("slide", "percentiles"):
        settled = settled.model_copy(update={"clip": "slide"})
    return config.model_copy(update={"normalisation": settled})


def complete(config: EncoderConfig) -> EncoderConfig:
    """An encoder's config with every normalisation that was left open settled as its weights expect.

    Parameters
    ----------
    config : EncoderConfig
        As written.

    Returns
    -------
    EncoderConfig
        Without an open value; the same for RGB encoders, which bring their own normalisation.
    """
    entry = find_entry(config.model)
    if entry is None or entry.normalisation is None:
        return config
    own = entry.normalisation.model_dump()
    given = {name: value for name, value in config.normalisation.model_dump().items() if value is not None}
    settled = NormalisationConfig(**(own | given))
    if settled.scope in ("slide", "percentiles"):
        settled = settled.model_copy(update={"clip": "slide"})
    return config.model_copy(update={"normalisation": settled})
