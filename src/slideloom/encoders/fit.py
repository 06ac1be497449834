"""Whether a slide fits an encoder: its channels, its resolution, and what its intensities are normalised with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from slideloom.config.catalogue import complete
from slideloom.config.model import EncoderConfig
from slideloom.encoders.base import Encoder, channel_label, check_tile
from slideloom.errors import SlideError, SlideloomError
from slideloom.patches.panels import marker_indices
from slideloom.patches.statistics import ChannelStatistics, channel_statistics, for_slide
from slideloom.patches.store import PatchStore
from slideloom.slides.tables import Channel

__all__ = ["check_fit", "choose_channels", "marker_panel", "slide_panel", "used_statistics"]

#: Pixel sizes in file headers are rounded.
_LEEWAY = 0.01


def marker_panel(markers: Iterable[str], uniprot: Mapping[str, str]) -> tuple[Channel, ...]:
    """Markers as the channels of a panel, to build an encoder for.

    Parameters
    ----------
    markers : iterable of str
        In order.
    uniprot : mapping of str to str
        Accessions by marker; a marker may have none.
    """
    return tuple(Channel(marker, marker, uniprot.get(marker, "")) for marker in markers)


def slide_panel(
    patches: PatchStore, statistics: ChannelStatistics | None, uniprot: Mapping[str, str]
) -> tuple[Channel, ...]:
    """The panel that an encoder of a slide is built for.

    Parameters
    ----------
    patches : PatchStore
        Of the slide.
    statistics : ChannelStatistics or None
        Of the training slides; their markers are then everyone's panel, in every job.
    uniprot : mapping of str to str
        Accessions by marker, over those of the slide's own channels.
    """
    if patches.is_rgb:
        return tuple(patches.channels)
    if statistics is not None:
        return marker_panel(statistics.markers, uniprot)
    own = {channel.marker: channel.uniprot for channel in patches.channels if channel.uniprot}
    return marker_panel([channel_label(channel) for channel in patches.channels], {**own, **uniprot})


def choose_channels(encoder: Encoder, config: EncoderConfig, patches: PatchStore) -> list[int]:
    """Which channels of a slide the encoder is given, in its own order.

    Parameters
    ----------
    encoder : Encoder
        Its ``markers`` are wanted; those that it dropped may be there.
    config : EncoderConfig
        With ``markers`` empty, the slide's panel must be exactly the encoder's: no channel is dropped in silence.
    patches : PatchStore
        Of the slide.

    Raises
    ------
    SlideError
        ``missing_marker``, or ``panel_mismatch``: the slide has channels that the encoder neither reads nor dropped
        and that the config does not leave out by naming markers.
    """
    names = tuple(channel_label(channel) for channel in patches.channels)
    read = [index for index, name in enumerate(names) if name not in encoder.dropped]
    if not config.markers and tuple(names[index] for index in read) == encoder.markers:
        return read
    try:
        chosen = marker_indices(patches.channels, encoder.markers)
    except SlideError as error:
        raise SlideError(
            error.what, where=patches.slide_id, expected=error.expected, hint=error.hint, code=error.code
        ) from error
    extra = [names[index] for index in read if index not in chosen]
    if not config.markers and extra:
        raise SlideError(
            f"{encoder.spec.name} does not read {', '.join(extra)}",
            where=patches.slide_id,
            expected=f"the panel {', '.join(encoder.markers)}",
            hint="Name the markers that all slides share under the encoder's key markers",
            code="panel_mismatch",
        )
    return chosen


def used_statistics(
    encoder: Encoder, config: EncoderConfig, patches: PatchStore, given: ChannelStatistics | None
) -> ChannelStatistics | None:
    """Statistics that a slide's channels are normalised with: those of the training slides, its own, or none for RGB.

    Parameters
    ----------
    encoder : Encoder
        Its ``markers`` are normalised.
    config : EncoderConfig
        Whose statistics, and who clips.
    patches : PatchStore
        Of the slide; read through where it has statistics or clipping points of its own.
    given : ChannelStatistics or None
        Of the training slides, with ``scope: training`` or ``clip: training``; they may hold more markers than the
        encoder reads.

    Raises
    ------
    SlideloomError
        ``encoder_statistics``: there should be some.
    SlideError
        ``mixed_dtypes``: its pixels are of another type than those of the training slides. ``missing_marker``,
        ``no_patches``, ``non_finite_pixels``.
    """
    if encoder.spec.kind == "rgb":
        return None
    settled = complete(config).normalisation
    if "training" in (settled.scope, settled.clip):
        if given is None:
            key = "scope" if settled.scope == "training" else "clip"
            raise SlideloomError(
                "no channel statistics given",
                where=encoder.spec.name,
                expected=f"those of the training slides ({key}: training)",
                code="encoder_statistics",
            )
        pooled = given if given.markers == encoder.markers else given.select(encoder.markers)
        return for_slide(pooled, patches, settled)
    names = tuple(channel_label(channel) for channel in patches.channels)
    return channel_statistics([patches], () if names == encoder.markers else encoder.markers, settled)


def check_fit(encoder: Encoder, config: EncoderConfig, patches: PatchStore) -> tuple[str, ...]:
    """Check a slide's tiles and resolution.

    Returns
    -------
    tuple of str
        What a reader of the tokens must know: the resolution is another than the encoder was made for, and the config
        says so (``off_resolution``).

    Raises
    ------
    SlideloomError
        ``encoder_tile_px``.
    SlideError
        ``encoder_resolution``.
    """
    check_tile(patches.tile_px, encoder.spec)
    span = encoder.spec.mpp_um
    if span is None or patches.mpp_um is None:
        return ()
    if span[0] * (1 - _LEEWAY) <= patches.mpp_um <= span[1] * (1 + _LEEWAY):
        return ()
    what = f"patches of {patches.mpp_um:g} um/px"
    wanted = f"{span[0]:g} to {span[1]:g} um/px, what {encoder.spec.name} was made for"
    if config.off_resolution:
        return (f"off resolution on purpose: {what}, not {wanted}",)
    raise SlideError(
        what,
        where=patches.slide_id,
        expected=wanted,
        hint="Set the grid's mpp_um; or the encoder's off_resolution, to use it all the same",
        code="encoder_resolution",
    )
