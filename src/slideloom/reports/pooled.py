"""Classes of an experiment, pixels of all slides pooled, with intervals over patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.reports.resampling import draws, percentiles

__all__ = ["PooledClasses"]

Floats = NDArray[np.float64]

_COUNTS = ("gt_pixels", "pred_pixels", "tp_pixels")


class PooledClasses:
    """Pixel counts of one experiment's classes.

    Parameters
    ----------
    rows : sequence of mapping
        Its rows of ``classes.parquet``, of one role; every count known.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        patients, at = np.unique([str(row["patient_id"]) for row in rows], return_inverse=True)
        ids, of = np.unique([int(row["class_id"]) for row in rows], return_inverse=True)
        counts = np.zeros((patients.size, ids.size, len(_COUNTS)))
        np.add.at(counts, (at, of), [[float(row[column]) for column in _COUNTS] for row in rows])
        self._ids = ids.tolist()
        self._total = counts.sum(axis=0)[None]
        self._about = {
            "n_slides": len({row["slide_id"] for row in rows}),
            "n_patients": int(patients.size),
            "n_folds": len({row["fold"] for row in rows}),
        }
        self._drawn = None
        if patients.size > 1:
            flat = draws(patients.size) @ counts.reshape(patients.size, -1)
            self._drawn = flat.reshape(-1, ids.size, len(_COUNTS))

    def figure(self, metric: str, class_id: int | None) -> dict[str, Any]:
        """One figure with its interval.

        Parameters
        ----------
        metric : str
            ``dice``, ``gt_percent`` or ``pred_percent`` of a class; ``class_dice_mean`` or
            ``class_dice_mean_with_background`` of all.
        class_id : int or None
            The class.

        Returns
        -------
        dict
            ``mean``, ``ci_low``, ``ci_high``, ``n_slides``, ``n_patients``, ``n_folds``; empty where undefined.
        """
        value = float(self._of(metric, class_id, self._total)[0])
        if not np.isfinite(value):
            return {}
        line = {"mean": value, **self._about}
        if self._drawn is not None:
            ends = percentiles(self._of(metric, class_id, self._drawn)[:, None])[:, 0]
            line["ci_low"], line["ci_high"] = ends.tolist()
        return line

    def _of(self, metric: str, class_id: int | None, counts: Floats) -> Floats:
        """The figure of each of some sets of counts, (sets, classes, 3)."""
        if class_id is None:
            with_background = metric == "class_dice_mean_with_background"
            kept = [k for k, one in enumerate(self._ids) if one or with_background]
            dice = _dice(counts[:, kept])
            there = np.isfinite(dice)
            return _divide(np.where(there, dice, 0.0).sum(axis=1), there.sum(axis=1))
        if class_id not in self._ids:
            return np.full(len(counts), np.nan)
        k = self._ids.index(class_id)
        if metric == "dice":
            return _dice(counts[:, k])
        column = counts[:, :, 0 if metric == "gt_percent" else 1]
        return _divide(100 * column[:, k], column.sum(axis=1))


def _dice(counts: Floats) -> Floats:
    return _divide(2 * counts[..., 2], counts[..., 0] + counts[..., 1])


def _divide(numerator: Floats, denominator: NDArray[Any]) -> Floats:
    """Quotient, NaN where the denominator is 0."""
    quotient: Floats = np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
    return quotient
