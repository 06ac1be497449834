"""From a config's entry to an encoder. Importing this loads neither torch nor timm; building one does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from slideloom.config.catalogue import EncoderEntry, Family, find_entry, nearest_entries
from slideloom.config.model import EncoderConfig
from slideloom.encoders.base import RGB, Encoder, channel_label
from slideloom.errors import SlideloomError
from slideloom.slides.tables import Channel

__all__ = ["build_encoder", "find_encoder"]

Build = Callable[[EncoderConfig, EncoderEntry, Sequence[Channel]], Encoder]


def _mean_marker(config: EncoderConfig, entry: EncoderEntry, channels: Sequence[Channel]) -> Encoder:
    from slideloom.encoders.mean_marker import build_mean_marker, build_mean_rgb

    return build_mean_rgb(config, entry) if entry.kind == "rgb" else build_mean_marker(config, channels)


def _virtues(config: EncoderConfig, entry: EncoderEntry, channels: Sequence[Channel]) -> Encoder:
    from slideloom.encoders.virtues.encoder import build_virtues

    return build_virtues(config, entry, channels)


def _cellvit(config: EncoderConfig, entry: EncoderEntry, channels: Sequence[Channel]) -> Encoder:
    from slideloom.encoders.cellvit.encoder import build_cellvit

    return build_cellvit(config, entry)


def _timm(config: EncoderConfig, entry: EncoderEntry, channels: Sequence[Channel]) -> Encoder:
    from slideloom.encoders.timm_models.vit import build_timm

    return build_timm(config, entry)


_BUILDERS: Mapping[Family, Build] = {
    "mean_marker": _mean_marker,
    "virtues": _virtues,
    "cellvit": _cellvit,
    "timm": _timm,
}


def find_encoder(model: str) -> EncoderEntry:
    """The catalogue's entry that a config's ``model`` names.

    Raises
    ------
    SlideloomError
        ``encoder_model``: there is none.
    """
    entry = find_entry(model)
    if entry is None:
        expected = " or ".join(nearest_entries(model))
        raise SlideloomError(f"there is no encoder {model!r}", expected=expected, code="encoder_model")
    return entry


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
    return _BUILDERS[entry.family](config, entry, channels)
