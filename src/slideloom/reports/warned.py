"""What stages put up with and wrote down: warnings that lie beside the artefacts, as rows and as lines of the page.

Attributes are read, never an array: three small files a slide.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideloom.artefacts.broken import BrokenArtefactError
from slideloom.artefacts.files import read_json
from slideloom.artefacts.paths import Paths
from slideloom.artefacts.zarrio import read_attributes
from slideloom.reports.runs import read_records
from slideloom.reports.views import Rows

__all__ = ["WarningLine", "gather_warnings", "warning_lines"]

_LOG = logging.getLogger(__name__)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
#: Slides named in a line of the page.
_NAMED = 5

#: Where a stage wrote its warnings of a slide, by paths, context and slide.
_PLACES: dict[str, Callable[[Paths, str, str], Path]] = {
    "facts": lambda paths, context, slide: paths.slide_facts(slide),
    "patches": lambda paths, grid, slide: paths.patches(grid, slide),
    "targets": lambda paths, grid, slide: paths.targets(grid, slide),
    "cell_targets": lambda paths, grid, slide: paths.cell_targets(grid, slide),
    "imported": lambda paths, run, slide: paths.maps(*_of_run(run), slide),
}


def _of_run(context: str) -> tuple[str, str]:
    """Experiment and fold."""
    experiment, _, fold = context.partition("/")
    return experiment, fold


def gather_warnings(job_records: Iterable[Path], paths: Paths) -> list[dict[str, Any]]:
    """Rows of ``warnings.parquet``, without the study.

    Parameters
    ----------
    job_records : iterable of Path
        Job records of every stage; those of stages that write warnings count here.
    paths : Paths
        Of the artefacts.

    Returns
    -------
    list of dict
        By stage in the order of the work, context and slide; the warnings of a slide in the order in which they came
        up, none twice. What was made and cannot be read any more is told in the log and has no row.
    """
    found: dict[tuple[int, str, str, str], dict[str, Any]] = {}
    stages = [*_PLACES, "statistics"]
    for stage, context, states in read_records(job_records):
        for item, state in states.items():
            if stage not in stages or state.status != "ok":
                continue
            try:
                told = _told(stage, context, item, paths)
            except (BrokenArtefactError, OSError, ValueError) as error:
                _LOG.warning("%s of %s: its warnings cannot be read: %s", stage, item, error)
                continue
            where = item if stage == "statistics" else context
            for slide, message in told:
                row = {"slide_id": slide, "stage": stage, "context": where, "message": message}
                found.setdefault((stages.index(stage), where, slide, message), row)
    # The sort is stable: messages of a slide stay in their order.
    return [found[key] for key in sorted(found, key=lambda key: key[:3])]


def _told(stage: str, context: str, item: str, paths: Paths) -> list[tuple[str, str]]:
    """Slides and warnings of what was made of an item."""
    if stage == "statistics":
        place = paths.statistics_slides(item)
        left_out = read_json(place)["left_out"] if place.is_file() else {}
        what = "it does not count in the encoder's channel statistics"
        return [(slide, f"{what}: {reason['message']}") for slide, reason in left_out.items()]
    place = _PLACES[stage](paths, context, item)
    about: Mapping[str, Any] = read_json(place) if stage == "facts" else read_attributes(place)
    return [(item, str(message)) for message in about.get("warnings", ())]


@dataclass(frozen=True)
class WarningLine:
    """Warnings that differ by numbers only, as the page tells them.

    Attributes
    ----------
    stage, context : str
        Where they came up.
    message : str
        The first of them.
    slides : tuple of str
        The first slides.
    n_slides : int
        All of them.
    """

    stage: str
    context: str
    message: str
    slides: tuple[str, ...]
    n_slides: int

    @property
    def n_more(self) -> int:
        """Slides that are not named."""
        return self.n_slides - len(self.slides)


def warning_lines(rows: Rows) -> list[WarningLine]:
    """Rows of ``warnings.parquet`` as lines, in the order of the table: a line a kind of warning, not a slide."""
    kinds: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        # A slide's own name in the message is no difference either.
        shape = _NUMBER.sub("#", row["message"].replace(row["slide_id"], "*"))
        kinds.setdefault((row["stage"], row["context"], shape), []).append(row)
    lines = []
    for (stage, context, _), same in kinds.items():
        slides = list(dict.fromkeys(row["slide_id"] for row in same))
        lines.append(WarningLine(stage, context, same[0]["message"], tuple(slides[:_NAMED]), len(slides)))
    return lines
