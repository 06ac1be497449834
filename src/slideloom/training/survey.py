"""A look at the training patches before the first step: what they show, and what follows from it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideloomError
from slideloom.training.data import PatchData
from slideloom.training.job import TrainJob
from slideloom.training.sampling import patch_weights
from slideloom.training.terms import class_weights

__all__ = ["Survey", "survey"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Survey:
    """What the training patches show.

    Attributes
    ----------
    class_weights : (k,) float32 array or None
        Of the class head's cross-entropy, background first, where the loss wants them.
    patch_weights : (n,) float64 array or None
        Weights with which patches are drawn, where they are not all seen once an epoch.
    absent : tuple of str
        Classes that no training patch shows.
    n_nuclei : int
        Nuclei in the patches.
    """

    class_weights: NDArray[np.float32] | None
    patch_weights: NDArray[np.float64] | None
    absent: tuple[str, ...]
    n_nuclei: int


def survey(job: TrainJob, data: PatchData) -> Survey:
    """Count what the patches show, and tell what is missing.

    Parameters
    ----------
    job : TrainJob
        Classes, heads, loss, sampling.
    data : PatchData
        The training patches.

    Raises
    ------
    SlideloomError
        ``sampling_groups``: a slide has no value of ``sampling.column``; and what
        :func:`slideloom.training.sampling.patch_weights` refuses.
    """
    presence, n_nuclei = data.class_presence(), data.n_nuclei()
    absent: tuple[str, ...] = ()
    if n_nuclei == 0:
        _LOG.warning(
            "%s: none of %d training patches shows a nucleus; the decoder can learn nothing but background",
            job.name, data.n,
        )  # fmt: skip
    elif "classes" in job.heads:
        absent = tuple(job.classes.names[number] for number in np.flatnonzero(~presence.any(axis=0)))
    if absent:
        _LOG.warning(
            "%s: no training patch shows the class %s; the decoder cannot learn %s",
            job.name, ", ".join(absent), "it" if len(absent) == 1 else "them",
        )  # fmt: skip
    weights = None
    if job.loss.class_weights and "classes" in job.heads:
        weights = class_weights(data.class_pixels())
        _LOG.info("%s: class weights %s", job.name, np.round(weights, 3).tolist())
    return Survey(weights, _patch_weights(job, data, presence, n_nuclei), absent, n_nuclei)


def _patch_weights(
    job: TrainJob, data: PatchData, presence: NDArray[np.bool_], n_nuclei: int
) -> NDArray[np.float64] | None:
    if job.sampling.gamma == 0:
        return None
    groups = None
    if job.sampling.by != "classes":
        without = [slide.slide_id for slide in data.slides if not job.groups.get(slide.slide_id)]
        if without:
            raise SlideloomError(
                f"{len(without)} training slides have no {job.sampling.column}, such as {without[0]}",
                where=job.name,
                expected="a value for each, as patches are drawn by it",
                hint="Fill the sheet's column, or choose sampling.by: classes",
                code="sampling_groups",
            )
        groups = [job.groups[slide.slide_id] for slide in data.slides for _ in range(slide.n)]
    weights = patch_weights(presence, groups, n_nuclei, job.sampling)
    least, most = float(weights.min()), float(weights.max())
    often = f"{most / least:.3g} times as often as the least" if least > 0 else "others never"
    _LOG.info("%s: patches are drawn by %s, the most drawn %s", job.name, job.sampling.by, often)
    return weights
