"""What ``experiments.<name>.refine`` needs: heads, tokens, validation slides whose maps there are."""

from __future__ import annotations

from collections.abc import Iterator

from slideloom.config.model import ExperimentConfig
from slideloom.errors import Problem, SlideloomError
from slideloom.slides.evidence import Evidence
from slideloom.slides.sides import take_sides

__all__ = ["check_refine"]


def check_refine(evidence: Evidence, name: str, experiment: ExperimentConfig) -> Iterator[Problem]:
    """Check how an experiment's maps and nuclei are mended.

    Parameters
    ----------
    evidence : Evidence
        What was read of the study.
    name : str
        The experiment.
    experiment : ExperimentConfig
        Its part of the config.

    Yields
    ------
    Problem
        Each mistake. That there are few nuclei to fit a verifier to is none: it is then off.
    """
    refine, path = experiment.refine, ("experiments", name, "refine")
    if refine is None:
        return
    if experiment.labels is not None:
        what = "plays no part: labels of another program are scored as they are"
        yield evidence.at(*path, what=what, hint="Remove the key, or remove 'labels' to train")
        return
    if refine.network is not None:
        yield from _network(evidence, name, experiment)
    if refine.split is not None and "hv" not in experiment.heads:
        what = "nuclei are split by HV maps, and the experiment has no head 'hv'"
        yield evidence.at(*path, "split", what=what, hint="Add 'hv' to its heads, or remove the key")
    if refine.verify is not None:
        yield from _verify(evidence, name, experiment)


def _network(evidence: Evidence, name: str, experiment: ExperimentConfig) -> Iterator[Problem]:
    path = ("experiments", name, "refine", "network")
    assert experiment.refine is not None
    assert experiment.refine.network is not None
    if experiment.published is not None:
        what = "it is trained with the decoder, and a published model is used as it is"
        yield evidence.at(*path, what=what, hint="Remove the key, or the published model to train")
    elif experiment.decoder.whole and experiment.refine.network.token_channels:
        what = f"a decoder of kind {experiment.decoder.kind!r} reads no tokens, nor can what mends its maps"
        yield evidence.at(*path, "token_channels", what=what, hint="Set 'token_channels: 0'")


def _verify(evidence: Evidence, name: str, experiment: ExperimentConfig) -> Iterator[Problem]:
    """It is fitted on annotated validation slides, so there must be some, and their maps."""
    path, draft = ("experiments", name, "refine", "verify"), evidence.draft
    if draft.inference is not None and "val" not in draft.inference.roles:
        what = "it is fitted on slides of the role 'val', and inference.roles leaves them out"
        yield evidence.at(*path, what=what, hint="Add 'val' to inference.roles")
    split = draft.splits.get(experiment.split)
    if split is None or not evidence.rows:
        return
    try:
        folds = take_sides(evidence.rows, split).folds
    except SlideloomError:
        return  # told of the split already
    annotated = {row.slide_id for row in evidence.rows if row.instances}
    without = [
        fold
        for fold, roles in folds.items()
        if not any(role == "val" and slide in annotated for slide, role in roles.items())
    ]
    if without:
        of = f", fold {without[0]}," if len(folds) > 1 else ""
        what = f"it is fitted on annotated slides of the role 'val', and split {experiment.split!r}{of} has none"
        column = f"Write val into the sheet's column {split.column!r} for some annotated slides"
        hint = column if split.scheme == "column" else f"Set 'splits.{experiment.split}.val', such as 0.2"
        yield evidence.at(*path, what=what, hint=hint)
