"""Which training slides channel statistics are pooled over: one that does not fit the others ends nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from slideloom.errors import SlideError
from slideloom.patches.panels import channels_of, panel_of
from slideloom.patches.statistics import check_dtype
from slideloom.patches.store import PatchStore

__all__ = ["Pool", "find_poolable"]

_T = TypeVar("_T", bound=Hashable)


@dataclass(frozen=True)
class Pool:
    """Training slides, parted into those that count and those that do not.

    Attributes
    ----------
    stores : tuple of PatchStore
        Those that count, of one pixel type and with every marker; the first gives the panel where no markers are named.
    left_out : dict of str to SlideError
        By slide, sorted: why it does not count. It fails for the same reason where it is encoded.
    """

    stores: tuple[PatchStore, ...]
    left_out: dict[str, SlideError] = field(default_factory=dict)

    @property
    def told(self) -> str:
        """The slides that do not count with their reasons, for a log."""
        return "; ".join(f"{slide} ({error.what})" for slide, error in self.left_out.items())

    def as_dict(self) -> dict[str, Any]:
        """JSON values: how many slides count and do not, and which."""
        reasons = {
            slide: {"code": error.code, "message": error.message, "hint": error.hint}
            for slide, error in self.left_out.items()
        }
        used = sorted(store.slide_id for store in self.stores)
        return {"n_used": len(used), "n_left_out": len(reasons), "used": used, "left_out": reasons}


def find_poolable(stores: Sequence[PatchStore], markers: Sequence[str]) -> Pool:
    """Leave slides out that lack a marker or whose pixels are of another type than those of the others.

    The statistics are for the pixel type of more than half of the slides that have the markers. Where no markers are
    named, the markers are the panel of more than half of the slides, in whatever order; it is taken in the order that
    the first such slide by name has. Where no type or no panel has more than half, nothing says which slides are the
    odd ones, and none is guessed. Nothing depends on the order of the slides.

    Parameters
    ----------
    stores : sequence of PatchStore
        At least one. No pixel is read.
    markers : sequence of str
        Wanted markers; empty: those of the panel that the slides share.

    Returns
    -------
    Pool
        With at least one slide that counts.

    Raises
    ------
    SlideError
        ``missing_marker``: no slide has every marker, or there is no panel that more than half of them have.
        ``mixed_dtypes``: there is no pixel type that more than half of those with the markers have. ``no_patches``:
        there is no slide.
    """
    if not stores:
        raise SlideError("there is no slide to take channel statistics from", code="no_patches")
    kept = sorted(stores, key=lambda store: store.slide_id)
    left_out: dict[str, SlideError] = {}
    if not markers:
        kept = _panel_first(kept)
    names = tuple(markers) or panel_of(kept[0])
    fitting: list[PatchStore] = []
    for store in kept:
        try:
            channels_of(store, names, named=bool(markers))
            fitting.append(store)
        except SlideError as error:
            left_out[store.slide_id] = error
    if not fitting:
        first = min(left_out)
        what = f"none of {len(left_out)} training slides has every marker; {first}: {left_out[first].what}"
        raise SlideError(what, expected=", ".join(names), hint=left_out[first].hint, code=left_out[first].code)
    counted = Counter(store.dtype.name for store in fitting)
    wanted = _of_most(counted)
    if wanted is None:
        listed = ", ".join(f"{name} ({number})" for name, number in sorted(counted.items()))
        raise SlideError(
            f"the training slides' pixels are of different types: {listed}",
            expected="one type that more than half of them have",
            hint="Normalise such slides each by itself (scope: slide), or convert them to one type",
            code="mixed_dtypes",
        )
    used: list[PatchStore] = []
    for store in fitting:
        try:
            check_dtype(store, wanted)
            used.append(store)
        except SlideError as error:
            left_out[store.slide_id] = error
    return Pool(_led(used, names), dict(sorted(left_out.items())))


def _of_most(counted: Counter[_T]) -> _T | None:
    """What more than half have; None where there is no such thing."""
    found, number = counted.most_common(1)[0]
    return found if 2 * number > sum(counted.values()) else None


def _panel_first(stores: Sequence[PatchStore]) -> list[PatchStore]:
    """The slides, a slide with the panel of more than half of them first."""
    panels = [_unordered(panel_of(store)) for store in stores]
    shared = _of_most(Counter(panels))
    if shared is None:
        raise SlideError(
            f"the training slides have {len(set(panels))} panels, none of them more than half",
            expected="one panel, or markers that are named",
            hint="Name the markers that all slides share under the encoder's key markers",
            code="missing_marker",
        )
    first = panels.index(shared)
    return [stores[first], *stores[:first], *stores[first + 1 :]]


def _unordered(panel: tuple[str, ...]) -> tuple[str, ...]:
    """A panel without its order; with it where a marker stands twice, as the two cannot be told apart by name."""
    return tuple(sorted(panel)) if len(set(panel)) == len(panel) else panel


def _led(stores: Iterable[PatchStore], names: tuple[str, ...]) -> tuple[PatchStore, ...]:
    """The slides by name, those first that have the markers and no others."""
    wanted = _unordered(names)
    return tuple(sorted(stores, key=lambda store: (_unordered(panel_of(store)) != wanted, store.slide_id)))
