"""The page's pictures: places of slides close up, and slides at a glance, within a number of bytes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from slideloom.artefacts.zarrio import read_attributes
from slideloom.config.model import EvaluationConfig
from slideloom.errors import SlideError
from slideloom.reports.choices import Place, choose_places, densest_place, one_run_each, rank_of
from slideloom.reports.crops import Overlay, draw_overlay
from slideloom.reports.sources import OverlaySource
from slideloom.reports.thumbnails import SlideView, draw_slides
from slideloom.slides.tables import ClassTable

__all__ = ["BUDGET_BYTES", "Overlay", "OverlaySource", "Pictures", "draw_overlays"]

_LOG = logging.getLogger(__name__)
#: Of a page of 20 MB, for pictures.
BUDGET_BYTES = 9_000_000
#: Share of the bytes that places close up may take; whole slides take what is left.
_PLACES_SHARE = 0.55
#: Styles, script and words around the pictures.
_FRAME_BYTES = 16_000
_KINDS = ("worst", "best", "dense")
#: Places of slides that nothing was scored on.
_DENSE = 3


@dataclass(frozen=True)
class Pictures:
    """What the page shows.

    Attributes
    ----------
    places : tuple of Overlay
        Close up: the worst from the worst on, then the best from the best on.
    slides : tuple of SlideView
        At a glance.
    experiments : tuple of str
        Those that any picture shows.
    n_slides : int
        Predicted slides, shown or not.
    """

    places: tuple[Overlay, ...] = ()
    slides: tuple[SlideView, ...] = ()
    experiments: tuple[str, ...] = ()
    n_slides: int = 0

    def __bool__(self) -> bool:
        return bool(self.places or self.slides)


def draw_overlays(
    sources: Sequence[OverlaySource],
    classes: ClassTable,
    *,
    slides: Sequence[Mapping[str, Any]] = (),
    evaluation: EvaluationConfig | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> Pictures:
    """Choose and draw; what cannot be drawn is logged and left out.

    Parameters
    ----------
    sources : sequence of OverlaySource
        What could be shown, as :func:`~slideloom.reports.sources.overlay_sources` finds it.
    classes : ClassTable
        Names and colours.
    slides : sequence of mapping
        Rows of ``slides.parquet``: experiment, fold, slide_id, role.
    evaluation : EvaluationConfig, optional
        How nuclei match; the defaults when left out.
    budget_bytes : int
        What all pictures may take on the page, text and outlines included.

    Returns
    -------
    Pictures
        The places are the worst and the best tiles; without scored tiles, places where predicted nuclei stand closest.
        A place that is too large is drawn without the lines about single nuclei, then left out; it makes room for
        others.
    """
    runs = one_run_each(sources, slides)
    places = choose_places(runs) or _unscored(runs)
    left = int(_PLACES_SHARE * budget_bytes) - _FRAME_BYTES
    drawn: list[Overlay] = []
    for place in places:
        try:
            overlay = draw_overlay(place, runs[place.slide_id], classes, evaluation)
        except (SlideError, OSError) as error:
            _LOG.warning("no picture of a place on %s: %s", place.slide_id, error)
            continue
        if overlay.n_bytes > left:
            overlay = overlay.without_titles()
        if overlay.n_bytes > left:
            _LOG.info("no picture of a place on %s: %d bytes are too many", place.slide_id, overlay.n_bytes)
            continue
        left -= overlay.n_bytes
        drawn.append(overlay)
    drawn.sort(key=lambda one: (_KINDS.index(one.kind), (one.pq or 0.0) * (1 if one.kind == "worst" else -1)))
    rest = budget_bytes - _FRAME_BYTES - sum(overlay.n_bytes for overlay in drawn)
    views = draw_slides(runs, drawn, classes, rest)
    named = {shot.experiment for overlay in drawn for shot in overlay.shots}
    named |= {layer.experiment for view in views for layer in view.layers}
    experiments = tuple(name for name in dict.fromkeys(source.experiment for source in sources) if name in named)
    return Pictures(tuple(drawn), views, experiments, len(runs))


def _unscored(runs: Mapping[str, Mapping[str, tuple[OverlaySource, str]]]) -> list[Place]:
    """Places on a few slides, annotated ones first, where the first experiment's nuclei stand closest."""
    order = sorted(
        runs, key=lambda slide: min((rank_of(role), one.row.instances is None) for one, role in runs[slide].values())
    )
    places = []
    for slide in order[:_DENSE]:
        source = next(iter(runs[slide].values()))[0]
        centres = np.empty((2, 0))
        if source.cells.is_file():
            table = pq.read_table(source.cells, columns=["y_px", "x_px"], partitioning=None)
            scale = float(read_attributes(source.maps)["scale"])
            centres = np.stack([table[name].to_numpy() / scale for name in ("y_px", "x_px")])
        places.append(densest_place(source, *centres))
    return places
