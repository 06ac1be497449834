"""Whether a run may start: every side of a split that a training needs has a good slide, and nothing else is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from slideloom.cli.slide_report import SlideReport
from slideloom.errors import SlideloomError
from slideloom.slides.folds import is_annotated
from slideloom.slides.sides import take_sides
from slideloom.slides.study import Study

__all__ = ["empty_sides", "fruitless"]

_Roles = dict[str, dict[str, str]]
_SHOWN = 5


def empty_sides(study: Study, reports: Iterable[SlideReport]) -> list[str]:
    """Sides that a training needs and that no good slide is left on.

    Parameters
    ----------
    study : Study
        The study.
    reports : iterable of SlideReport
        Of its slides.

    Returns
    -------
    list of str
        In words: of an experiment that trains, slides to train on and, where the split sets some aside, to choose the
        epoch by; of one that does not train, slides to predict; of an encoder, slides to take its statistics from.
    """
    good = {report.slide_id for report in reports if report.good}
    found: dict[str, list[str]] = {}
    for experiment, text in (*_of_experiments(study, good), *_of_statistics(study, good)):
        found.setdefault(text, []).append(experiment)
    return [f"{_named(names)}: {text}" for text, names in found.items()]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _roles(study: Study, split: str) -> _Roles:
    with suppress(SlideloomError):  # the check of the config has told it
        return take_sides(study.rows, study.config.splits[split]).folds
    return {}


def _of_experiments(study: Study, good: set[str]) -> Iterator[tuple[str, str]]:
    predicted = study.config.inference.roles
    for name, experiment in study.config.experiments.items():
        rows = {row.slide_id: row for row in study.experiment_slides(name)}
        folds = _roles(study, experiment.split)
        for fold, roles in folds.items():
            of_fold = f" of fold {fold}" if len(folds) > 1 else ""
            for role, purpose in (("train", "train on"), ("val", "choose the epoch by")) if experiment.trains else ():
                wanted = {slide for slide, one in roles.items() if one == role and slide in rows}
                wanted = {slide for slide in wanted if is_annotated(rows[slide])}
                if not wanted & good and (wanted or role == "train"):
                    yield f"experiment {name}", f"none of {len(wanted)} slides to {purpose}{of_fold} is good"
            wanted = {slide for slide, one in roles.items() if one in predicted and slide in rows}
            if wanted and not wanted & good and not experiment.trains:
                yield f"experiment {name}", f"none of {len(wanted)} slides to predict{of_fold} is good"


def _of_statistics(study: Study, good: set[str]) -> Iterator[tuple[str, str]]:
    used = {name for experiment in study.config.experiments.values() for name in experiment.encoder}
    for name, encoder in study.config.encoders.items():
        if encoder.statistics is None or name not in used:
            continue
        image = study.image_of(name)
        has = {row.slide_id for row in study.rows if getattr(row, image)}
        for roles in _roles(study, encoder.statistics).values():
            wanted = {slide for slide, role in roles.items() if role == "train"} & has
            if not wanted & good:
                yield f"encoder {name}", f"none of {len(wanted)} slides to take its statistics from is good"


def fruitless(study: Study, reports: Iterable[SlideReport]) -> list[str]:
    """Experiments that can be trained, and that no good slide is left to be predicted or scored by.

    Parameters
    ----------
    study, reports
        As for :func:`empty_sides`.
    """
    good = {report.slide_id for report in reports if report.good}
    found: dict[str, list[str]] = {}
    for name, experiment in study.config.experiments.items():
        rows = {row.slide_id: row for row in study.experiment_slides(name)}
        roles = [(slide, role) for fold in _roles(study, experiment.split).values() for slide, role in fold.items()]
        predicted = {slide for slide, role in roles if role in study.config.inference.roles and slide in rows}
        scored = {slide for slide, role in roles if role in study.config.evaluation.roles and slide in rows}
        scored = {slide for slide in scored if is_annotated(rows[slide])}
        if predicted and not predicted & good:
            text = f"none of {len(predicted)} slides to predict is good: there will be no results until some are mended"
        elif scored and not scored & good:
            text = f"none of {len(scored)} slides to score is good: there will be no figures until some are mended"
        else:
            continue
        found.setdefault(text, []).append(f"experiment {name}")
    return [f"{_named(names)}: {text}" for text, names in found.items()]
