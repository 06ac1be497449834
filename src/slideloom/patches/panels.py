"""Which channels of a slide show which markers."""

from __future__ import annotations

from collections.abc import Sequence

from slideloom.errors import SlideError
from slideloom.patches.store import PatchStore
from slideloom.slides.tables import Channel

__all__ = ["channels_of", "find_markers", "marker_indices", "panel_of"]


def marker_indices(channels: Sequence[Channel], markers: Sequence[str]) -> list[int]:
    """Which channels show the markers asked for.

    Parameters
    ----------
    channels : sequence of Channel
        Of a slide.
    markers : sequence of str
        Wanted, in this order; empty: every channel.

    Returns
    -------
    list of int
        A channel index for each marker; the first one where several channels show it.

    Raises
    ------
    SlideError
        ``missing_marker``: names the ones the slide lacks, and what it has.
    """
    return find_markers([_name(channel) for channel in channels], markers) if markers else list(range(len(channels)))


def panel_of(store: PatchStore) -> tuple[str, ...]:
    """Marker of each channel of a slide, or the channel's name where it has none."""
    return tuple(_name(channel) for channel in store.channels)


def _name(channel: Channel) -> str:
    return channel.marker or channel.name


def find_markers(names: Sequence[str], markers: Sequence[str]) -> list[int]:
    """Index of each marker among names, the first where one stands there several times.

    Raises
    ------
    SlideError
        ``missing_marker``: names the ones that are not there, and those that are.
    """
    place: dict[str, int] = {}
    for index, name in enumerate(names):
        place.setdefault(name, index)
    missing = [marker for marker in markers if marker not in place]
    if missing:
        raise SlideError(
            f"no channel shows {', '.join(missing)}",
            expected=f"one of {', '.join(place)}",
            hint="Take the marker out of the encoder's markers, or leave this slide out of the study",
            code="missing_marker",
        )
    return [place[marker] for marker in markers]


def channels_of(store: PatchStore, names: Sequence[str], named: bool) -> list[int]:
    """Channels of a slide that show the markers.

    By name alone the second channel of a marker cannot be told from its first: a panel in which a marker stands twice
    is taken as it is (``named`` off), and must then be the slide's own.

    Raises
    ------
    SlideError
        ``missing_marker``, with the slide.
    """
    panel = panel_of(store)
    if not named and panel == tuple(names):
        return list(range(len(panel)))
    if not named and len(set(names)) < len(names):
        raise SlideError(
            "the panels differ and one marker has several channels",
            where=store.slide_id,
            expected=", ".join(names),
            hint="List the encoder's markers",
            code="missing_marker",
        )
    try:
        return find_markers(panel, names)
    except SlideError as error:
        raise SlideError(
            error.what, where=store.slide_id, expected=error.expected, hint=error.hint, code=error.code
        ) from error
