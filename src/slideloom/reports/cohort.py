"""What the study's slides are: how many, of whom, from where, how large; by role, platform and tissue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slideloom.reports.views import Rows

__all__ = ["CohortLine", "cohort_lines", "cohort_total"]

_ROLES = ("train", "val", "test", "infer")


@dataclass(frozen=True)
class CohortLine:
    """Slides that have something in common.

    Attributes
    ----------
    name : str
        What they have in common: a role, a platform, a tissue.
    n_slides, n_patients, n_platforms, n_tissues : int
        Slides, and what they come from; tissues that the sheet does not tell are not counted.
    n_scored : int
        Slides that were scored: the others have no annotation.
    n_gt : int
        Annotated nuclei on them.
    area_mm2 : float
        Area that was scored.
    """

    name: str
    n_slides: int
    n_patients: int
    n_platforms: int
    n_tissues: int
    n_scored: int
    n_gt: int
    area_mm2: float


@dataclass
class _Slide:
    patient: str
    platform: str
    tissue: str | None
    roles: set[str]
    n_gt: int = 0
    area_mm2: float = 0.0
    scored: bool = False


def _slides(slides: Rows, predicted: Rows) -> dict[str, _Slide]:
    """Each slide once. Of experiments that saw different parts of a slide, the one that saw most counts."""
    found: dict[str, _Slide] = {}
    for row in (*slides, *predicted):
        slide = found.setdefault(row["slide_id"], _Slide(row["patient_id"], row["platform"], row.get("tissue"), set()))
        if row["role"] is not None:
            slide.roles.add(row["role"])
    for row in slides:
        slide = found[row["slide_id"]]
        slide.scored = True
        slide.n_gt = max(slide.n_gt, row["n_gt"])
        slide.area_mm2 = max(slide.area_mm2, row["area_mm2"] or 0.0)
    return found


def _line(name: str, slides: Sequence[_Slide]) -> CohortLine:
    return CohortLine(
        name=name,
        n_slides=len(slides),
        n_patients=len({slide.patient for slide in slides}),
        n_platforms=len({slide.platform for slide in slides}),
        n_tissues=len({slide.tissue for slide in slides} - {None}),
        n_scored=sum(slide.scored for slide in slides),
        n_gt=sum(slide.n_gt for slide in slides),
        area_mm2=sum(slide.area_mm2 for slide in slides),
    )


def cohort_total(slides: Rows, predicted: Rows) -> CohortLine:
    """All slides that were scored or predicted.

    Parameters
    ----------
    slides, predicted : sequence of mapping
        Rows of ``slides.parquet`` and ``biology.parquet``.
    """
    return _line("all", list(_slides(slides, predicted).values()))


def cohort_lines(slides: Rows, predicted: Rows) -> Mapping[str, list[CohortLine]]:
    """The slides by role, by platform and by tissue.

    Parameters
    ----------
    slides, predicted : sequence of mapping
        Rows of ``slides.parquet`` and ``biology.parquet``.

    Returns
    -------
    mapping of str to list of CohortLine
        ``role`` (a slide with another role in another fold counts under both), ``platform``, ``tissue`` (empty where
        the sheet tells none).
    """
    found = list(_slides(slides, predicted).values())
    roles = [name for name in _ROLES if any(name in slide.roles for slide in found)]
    roles += sorted({role for slide in found for role in slide.roles} - set(_ROLES))
    platforms: dict[Any, list[_Slide]] = {}
    tissues: dict[Any, list[_Slide]] = {}
    for slide in found:
        platforms.setdefault(slide.platform, []).append(slide)
        tissues.setdefault(slide.tissue or "not told", []).append(slide)
    return {
        "role": [_line(role, [slide for slide in found if role in slide.roles]) for role in roles],
        "platform": [_line(name, own) for name, own in sorted(platforms.items())],
        "tissue": [_line(name, own) for name, own in sorted(tissues.items())] if set(tissues) != {"not told"} else [],
    }
