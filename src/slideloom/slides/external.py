"""Nuclei that another program found: which files hold those of a slide, and what must be right before they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from slideloom.config.model import ExperimentConfig, GridConfig, StudyConfig
from slideloom.config.texts import absence
from slideloom.errors import Problem, SlideloomError
from slideloom.slides.evidence import Evidence
from slideloom.slides.sheet import SlideRow
from slideloom.slides.sides import take_sides
from slideloom.slides.source import Source, parse_source

__all__ = ["check_external", "external_row", "external_rows", "external_sources"]

#: Keys that say how an experiment is trained; labels of another program are not.
_OF_TRAINING = ("heads", "decoder", "loss", "sampling", "augmentation", "training")


def external_row(row: SlideRow, labels: str, label_classes: str | None) -> SlideRow:
    """The slide with another program's nuclei in place of its annotation.

    Parameters
    ----------
    row : SlideRow
        The slide.
    labels, label_classes : str
        ``experiments.<name>.labels`` and ``label_classes``, with ``{slide}`` for the slide's id.

    Returns
    -------
    SlideRow
        ``instances`` and ``classes`` name the files; everything else as in the sheet.
    """
    classes = None if label_classes is None else label_classes.replace("{slide}", row.slide_id)
    return replace(row, instances=labels.replace("{slide}", row.slide_id), classes=classes)


def external_rows(rows: Sequence[SlideRow], config: StudyConfig) -> dict[str, dict[str, tuple[SlideRow, GridConfig]]]:
    """What other programs left of every slide that some fold predicts.

    Parameters
    ----------
    rows : sequence of SlideRow
        The sheet.
    config : StudyConfig
        The study.

    Returns
    -------
    dict of str to dict of str to (SlideRow, GridConfig)
        By slide and experiment: its row as of :func:`external_row`, and the grid that it is scored on. Slides without
        the grid's image are left out.
    """
    found: dict[str, dict[str, tuple[SlideRow, GridConfig]]] = {}
    for name, experiment in config.experiments.items():
        if experiment.labels is None or experiment.grid is None:
            continue
        grid, roles = config.grids[experiment.grid], config.inference.roles
        folds = take_sides(rows, config.splits[experiment.split]).folds.values()
        for row in rows:
            if getattr(row, grid.image) and any(fold.get(row.slide_id) in roles for fold in folds):
                other = external_row(row, experiment.labels, experiment.label_classes)
                found.setdefault(row.slide_id, {})[name] = (other, grid)
    return found


def external_sources(row: SlideRow, labels: str, label_classes: str | None, root: Path) -> list[Source]:
    """The files of :func:`external_row`; whether they exist is not checked.

    Raises
    ------
    SlideError
        ``bad_source``.
    """
    found = external_row(row, labels, label_classes)
    return [parse_source(text, root) for text in (found.instances, found.classes) if text]


def check_external(evidence: Evidence, name: str, experiment: ExperimentConfig) -> Iterator[Problem]:
    """Check an experiment whose nuclei come from another program.

    Parameters
    ----------
    evidence : Evidence
        What was read of the study.
    name : str
        The experiment.
    experiment : ExperimentConfig
        Its part of the config, with ``labels``.

    Yields
    ------
    Problem
        Each mistake. Files of single slides that are missing stop these slides alone, when they are read; that none
        exists is told here.
    """
    path = ("experiments", name)
    assert experiment.labels is not None
    assert experiment.grid is not None
    yield from evidence.points_nowhere((*path, "grid"), experiment.grid, "grids")
    for key in _OF_TRAINING:
        if key in experiment.model_fields_set:
            what = "plays no part: labels of another program are scored as they are"
            yield evidence.at(*path, key, what=what, hint="Remove the key, or remove 'labels' to train")
    if experiment.label_classes is not None and not evidence.draft.gives("classes"):
        what = "the key 'label_classes' needs the key 'classes'"
        yield evidence.at(*path, "label_classes", what=what, hint="Name a table of classes, or leave the key out")
    split, grid = evidence.draft.splits.get(experiment.split), evidence.draft.grids.get(experiment.grid)
    if split is None or grid is None or not evidence.rows:
        return
    try:
        folds = take_sides(evidence.rows, split).folds
    except SlideloomError:
        return  # told of the split already
    scored = set(evidence.draft.evaluation.roles) if evidence.draft.evaluation else set()
    rows = [
        row
        for row in evidence.rows
        if getattr(row, grid.image) and any(roles.get(row.slide_id) in scored for roles in folds.values())
    ]
    for key in ("labels", "label_classes"):
        pattern: str | None = getattr(experiment, key)
        if pattern is None or not rows:
            continue
        try:
            places = [external_sources(row, pattern, None, evidence.data_root)[0].path for row in rows]
        except SlideloomError as error:
            yield evidence.at(*path, key, what=error.message, hint=error.hint)
            continue
        if all(absence(place) for place in places):
            what = f"none of the files of {len(places)} scored slides exists, such as {str(places[0])!r}"
            hint = "Paths start where those of the sheet start; {slide} stands for the slide's id"
            yield evidence.at(*path, key, what=what, hint=hint)
