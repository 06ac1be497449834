"""The encoders that a config may name. Importing this loads neither torch nor timm; building one does."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from slideloom.config.model import EncoderConfig
from slideloom.encoders.base import RGB, Encoder, channel_label
from slideloom.errors import SlideloomError
from slideloom.slides.tables import Channel

__all__ = ["EncoderEntry", "build_encoder", "find_encoder", "list_encoders"]

Build = Callable[[EncoderConfig, Sequence[Channel]], Encoder]
_ANY = "<name>"


def _mean_marker(config: EncoderConfig, channels: Sequence[Channel]) -> Encoder:
    from slideloom.encoders.mean_marker import build_mean_marker

    return build_mean_marker(config, channels)


def _timm(config: EncoderConfig, channels: Sequence[Channel]) -> Encoder:
    from slideloom.encoders.timm_vit import build_timm

    return build_timm(config)


@dataclass(frozen=True)
class EncoderEntry:
    """One line of the registry.

    Attributes
    ----------
    name : str
        What the config's ``model`` says; ``<name>`` stands for a model's own name.
    kind : {"rgb", "markers"}
        What it reads.
    weights : bool
        Whether it needs a checkpoint, or a seed to run without.
    summary, licence, source : str
        For people.
    build : callable
        Makes one from its config and a slide's channels.
    """

    name: str
    kind: Literal["rgb", "markers"]
    weights: bool
    summary: str
    licence: str
    source: str
    build: Build

    def matches(self, model: str) -> bool:
        """Whether ``model`` names this entry."""
        if self.name.endswith(_ANY):
            family = self.name.removesuffix(_ANY)
            return model.startswith(family) and len(model) > len(family)
        return model == self.name


_ENTRIES = (
    EncoderEntry(
        name="mean_marker",
        kind="markers",
        weights=False,
        summary="mean of each normalised marker in squares of patch_px (8 or 16): the baseline",
        licence="none",
        source="Slideloom",
        build=_mean_marker,
    ),
    EncoderEntry(
        name="timm/<name>",
        kind="rgb",
        weights=True,
        summary="any plain vision transformer of timm with tokens of 8 or 16 px",
        licence="depends on the weights",
        source="https://github.com/huggingface/pytorch-image-models",
        build=_timm,
    ),
)


def list_encoders() -> tuple[EncoderEntry, ...]:
    """Every entry."""
    return _ENTRIES


def find_encoder(model: str) -> EncoderEntry:
    """The entry that a config's ``model`` names.

    Raises
    ------
    SlideloomError
        ``encoder_model``: there is none.
    """
    for entry in _ENTRIES:
        if entry.matches(model):
            return entry
    names = [entry.name for entry in _ENTRIES]
    near = difflib.get_close_matches(model.split("/")[0], [name.split("/")[0] for name in names], 1, 0.5)
    likely = [name for name in names if near and name.split("/")[0] == near[0]]
    raise SlideloomError(f"there is no encoder {model!r}", expected=" or ".join(likely or names), code="encoder_model")


def build_encoder(config: EncoderConfig, channels: Sequence[Channel]) -> Encoder:
    """Build an encoder once; every slide of a job then goes through it.

    Parameters
    ----------
    config : EncoderConfig
        The entry. A relative ``checkpoint`` is looked up from the working directory.
    channels : sequence of Channel
        Of a slide of the study. They settle the markers of a marker encoder whose config leaves them open, so give the
        same slide's (the first of the sheet) in every job.

    Returns
    -------
    Encoder
        On the CPU, in evaluation mode, weights frozen.

    Raises
    ------
    SlideloomError
        ``encoder_model``: no such encoder. ``encoder_weights``: neither checkpoint nor seed, or both, or one too many.
        ``encoder_channels``: an RGB encoder on an image that is not RGB, or with markers. Others as its own builder
        says.
    """
    entry = find_encoder(config.model)
    given = sum(value is not None for value in (config.checkpoint, config.random))
    if given != int(entry.weights):
        raise SlideloomError(
            "checkpoint and random are both set" if given == 2 else f"{'some' if given else 'no'} weights are named",
            where=config.model,
            expected="checkpoint or random, one of them" if entry.weights else "neither checkpoint nor random",
            code="encoder_weights",
        )
    names = tuple(channel_label(channel) for channel in channels)
    if entry.kind == "rgb" and (names != RGB or config.markers):
        raise SlideloomError(
            f"markers {config.markers}" if config.markers else f"the image has the channels {', '.join(names)}",
            where=config.model,
            expected="red, green and blue only",
            hint="Give it a grid of an RGB image and no markers",
            code="encoder_channels",
        )
    return entry.build(config, channels)
