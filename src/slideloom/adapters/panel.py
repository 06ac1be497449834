"""Which channels of a slide an adapter is given, and what they are normalised with."""

from __future__ import annotations

from slideloom.adapters.channels import too_many_channels
from slideloom.config.catalogue import adapted
from slideloom.config.model import EncoderConfig
from slideloom.encoders.base import channel_label
from slideloom.errors import SlideError, SlideloomError
from slideloom.patches.panels import marker_indices
from slideloom.patches.statistics import ChannelStatistics, channel_statistics, for_slide
from slideloom.patches.store import PatchStore

__all__ = ["adapter_channels", "adapter_statistics"]


def adapter_channels(config: EncoderConfig, patches: PatchStore, most: int | None = None) -> list[int]:
    """Channels of a slide that the adapter reads.

    Parameters
    ----------
    config : EncoderConfig
        Of the encoder behind the adapter: its ``markers``, in this order; every channel where it names none.
    patches : PatchStore
        Of the slide.
    most : int, optional
        Channels that the adapter reads at most.

    Raises
    ------
    SlideError
        ``missing_marker``, ``adapter_channels``.
    """
    try:
        channels = marker_indices(patches.channels, config.markers)
    except SlideError as error:
        raise SlideError(
            error.what, where=patches.slide_id, expected=error.expected, hint=error.hint, code=error.code
        ) from error
    if most is not None and len(channels) > most:
        raise too_many_channels(len(channels), most, patches.slide_id)
    return channels


def adapter_statistics(
    config: EncoderConfig, patches: PatchStore, given: ChannelStatistics | None
) -> ChannelStatistics:
    """What these channels are normalised with.

    Parameters
    ----------
    config : EncoderConfig
        Of the encoder behind the adapter; see :func:`~slideloom.config.catalogue.adapted`.
    patches : PatchStore
        Of the slide; read through where it is measured by itself.
    given : ChannelStatistics or None
        Of the training slides, with ``scope: training`` or ``clip: training``.

    Raises
    ------
    SlideloomError
        ``encoder_statistics``: there should be some.
    SlideError
        ``missing_marker``, ``no_patches``, ``non_finite_pixels``.
    """
    settled = adapted(config).normalisation
    if "training" not in (settled.scope, settled.clip):
        return channel_statistics([patches], config.markers, settled)
    if given is None:
        raise SlideloomError(
            "no channel statistics given",
            where=patches.slide_id,
            expected="those of the training slides (scope: training)",
            code="encoder_statistics",
        )
    names = [channel_label(patches.channels[index]) for index in adapter_channels(config, patches)]
    return for_slide(given.select(names), patches, settled)
