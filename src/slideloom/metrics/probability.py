"""Figures of probabilities: precision-recall curves, average precision, calibration, Brier score.

All follow from counts of pixels by stored probability, a byte each (255 · p), so they are exact for the stored maps,
whatever the windows: no pixel is sampled and none is kept. Against the network's own floating point a probability is
off by 1/510 at most.

What the stored maps can tell
-----------------------------
* ``nucleus`` holds the probability of one question, so its curve, average precision and calibration are complete.
* ``class_id`` and ``class_probability`` hold the most probable class and its probability. Whether that class is right
  as often as its probability says is complete too (:attr:`ClassScores.top_label`). The one-against-rest curve of a
  class is not: of the pixels that another class won, its probability is not stored. Above one half a class always
  wins, so those points of the curve are the true ones; below, :meth:`ClassScores.curve` goes on with the won pixels
  only. :meth:`ClassScores.average_precision_won` is the area under that curve, as object detection defines
  it: what was never predicted is never found. It must not be called average precision without its suffix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from slideloom.metrics.panoptic import ratio
from slideloom.metrics.semantic import UNKNOWN, Macro, ScoreHistogram

__all__ = [
    "CALIBRATION_BINS",
    "EXACT_FROM",
    "Calibration",
    "ClassScores",
    "PrecisionRecall",
    "brier_score",
    "calibration",
    "precision_recall",
]

#: Bins of the calibration error unless said otherwise, as Guo et al. (ICML 2017) have it.
CALIBRATION_BINS = 15
#: Lowest stored probability that is above one half for certain: 128 can stand for exactly one half, and a tie.
EXACT_FROM = 129
_SCALE = 255


@dataclass(frozen=True)
class PrecisionRecall:
    """Points of a precision-recall curve, one for each score met, from the highest down.

    Attributes
    ----------
    threshold : ndarray of float64, (n,)
        Probability that a pixel must have at least.
    precision, recall : ndarray of float64, (n,)
        At that threshold. Recall never falls.
    tp, fp : ndarray of int64, (n,)
        Pixels found and found wrongly.
    exact : ndarray of bool, (n,)
        Whether the point is that of the full probabilities. Where false, pixels won by another class are missing.
    """

    threshold: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    exact: NDArray[np.bool_]


def precision_recall(
    histogram: ScoreHistogram, n_true: int | None = None, *, exact_from: int = 0
) -> PrecisionRecall | None:
    """Precision and recall over all thresholds.

    Parameters
    ----------
    histogram : ScoreHistogram
        Pixels by score.
    n_true : int, optional
        True pixels, when some have no score; those of the histogram when left out.
    exact_from : int
        Lowest score whose point is marked exact.

    Returns
    -------
    PrecisionRecall or None
        256 points at most, none when no pixel has a score; ``None`` when no pixel is true: recall is then undefined.
    """
    total = int(histogram.positive.sum()) if n_true is None else n_true
    if not total:
        return None
    met = np.flatnonzero(histogram.counts.any(axis=1))[::-1]
    tp, fp = np.cumsum(histogram.positive[met]), np.cumsum(histogram.negative[met])
    return PrecisionRecall(met / _SCALE, tp / (tp + fp), tp / total, tp, fp, met >= exact_from)


@dataclass(frozen=True)
class Calibration:
    """How often pixels are true, by how probable they were said to be.

    Bin i of n holds probabilities from i/n up to, but not with, (i + 1)/n; the last one holds 1 as well.

    Attributes
    ----------
    count : ndarray of int64, (n,)
        Pixels of a bin.
    true : ndarray of int64, (n,)
        Those that are true (or whose class is right).
    code_sum : ndarray of int64, (n,)
        Sum of their stored probabilities, 255 · p.
    """

    count: NDArray[np.int64]
    true: NDArray[np.int64]
    code_sum: NDArray[np.int64]

    @property
    def ece(self) -> float | None:
        """Expected calibration error, Σ nᵢ/N · |share trueᵢ - mean probabilityᵢ|; ``None`` without pixels."""
        gap = int(np.abs(_SCALE * self.true - self.code_sum).sum())
        return ratio(gap, _SCALE * int(self.count.sum()))

    @property
    def mce(self) -> float | None:
        """Greatest gap of any bin with pixels; ``None`` without pixels."""
        met = self.count > 0
        if not met.any():
            return None
        return float((np.abs(_SCALE * self.true - self.code_sum)[met] / (_SCALE * self.count[met])).max())

    def rows(self) -> list[dict[str, Any]]:
        """Points of the calibration curve.

        Returns
        -------
        list of dict
            A row a bin: ``bin``, ``low``, ``high``, ``pixels``, ``mean_probability`` and ``true_share``; the last two
            are ``None`` for an empty bin.
        """
        n = self.count.size
        return [
            {
                "bin": i,
                "low": i / n,
                "high": (i + 1) / n,
                "pixels": int(self.count[i]),
                "mean_probability": ratio(int(self.code_sum[i]), _SCALE * int(self.count[i])),
                "true_share": ratio(int(self.true[i]), int(self.count[i])),
            }
            for i in range(n)
        ]


def calibration(histogram: ScoreHistogram, n_bins: int = CALIBRATION_BINS) -> Calibration:
    """Sort pixels into bins of equal width by their probability.

    Of the nucleus map, the probability of being nucleus is held against the share that is nucleus, from 0 to 1 (not
    the probability of the likelier answer, which starts at one half). Of :attr:`ClassScores.top_label`, the
    probability of the predicted class against the share of right classes.

    Parameters
    ----------
    histogram : ScoreHistogram
        Pixels by score.
    n_bins : int
        1 to 255.

    Raises
    ------
    ValueError
        ``n_bins`` is outside its range: more bins than steps leave some empty by construction.

    Notes
    -----
    Most pixels of a slide are background with a probability near 0. They are right and weigh most, so a small ECE says
    little about nuclei: look at the curve.
    """
    if not 1 <= n_bins <= _SCALE:
        raise ValueError(f"{n_bins} bins; a byte allows 1 to {_SCALE}")
    codes = np.arange(_SCALE + 1, dtype=np.int64)
    at = np.minimum(codes * n_bins // _SCALE, n_bins - 1)
    found = np.zeros((3, n_bins), np.int64)
    total = histogram.counts.sum(axis=1)
    for row, values in zip(found, (total, histogram.positive, codes * total), strict=True):
        np.add.at(row, at, values)
    return Calibration(*found)


def brier_score(histogram: ScoreHistogram) -> float | None:
    """Mean squared distance of the probability from the truth (0 or 1); ``None`` without pixels."""
    codes = np.arange(_SCALE + 1, dtype=np.int64)
    total = int((histogram.negative * codes**2).sum() + (histogram.positive * (_SCALE - codes) ** 2).sum())
    return ratio(total, _SCALE**2 * int(histogram.counts.sum()))


class ClassScores:
    """Predicted class and its probability, of every pixel whose true class is known.

    Attributes
    ----------
    counts : ndarray of int64, (256, 256, 2)
        Pixels by predicted class, stored probability, and whether the class is right.
    true_pixels : ndarray of int64, (256,)
        Pixels by true class.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros((256, 256, 2), np.int64)
        self.true_pixels: NDArray[np.int64] = np.zeros(256, np.int64)

    def add(
        self,
        truth: NDArray[np.uint8],
        prediction: NDArray[np.uint8],
        probability: NDArray[np.uint8],
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count pixels; those whose true class is :data:`~slideloom.metrics.semantic.UNKNOWN` are left out.

        Parameters
        ----------
        truth, prediction : ndarray of uint8, equal shapes
            Classes, 0 for the background.
        probability : ndarray of uint8, same shape
            Of the predicted class, times 255.
        mask : ndarray of bool, same shape, optional
            Pixels to count; all when left out.
        """
        if len({truth.shape, prediction.shape, probability.shape, truth.shape if mask is None else mask.shape}) > 1:
            raise ValueError(f"one block has shapes {truth.shape}, {prediction.shape}, {probability.shape}")
        if {truth.dtype, prediction.dtype, probability.dtype} != {np.dtype(np.uint8)}:
            raise ValueError(f"classes and scores are uint8: {truth.dtype}, {prediction.dtype}, {probability.dtype}")
        chosen = np.empty(0, np.bool_) if mask is None else mask.ravel()
        _tally_classes(self.counts, self.true_pixels, truth.ravel(), prediction.ravel(), probability.ravel(), chosen)

    def merge(self, other: ClassScores) -> None:
        """Take in what another one counted."""
        self.counts += other.counts
        self.true_pixels += other.true_pixels

    @property
    def top_label(self) -> ScoreHistogram:
        """Pixels by the probability of their predicted class; true where the class is right."""
        found = ScoreHistogram()
        found.counts += self.counts.sum(axis=0)
        return found

    def won(self, class_id: int) -> ScoreHistogram:
        """The same of the pixels that a class won."""
        found = ScoreHistogram()
        found.counts += self.counts[class_id]
        return found

    def curve(self, class_id: int) -> PrecisionRecall | None:
        """One-against-rest curve of a class, as far as the stored maps tell.

        Returns
        -------
        PrecisionRecall or None
            Points above a probability of one half are marked exact, and are the curve of the full probabilities; the
            others count the pixels that the class won. ``None`` when no pixel is truly of the class.
        """
        return precision_recall(self.won(class_id), int(self.true_pixels[class_id]), exact_from=EXACT_FROM)

    def average_precision_won(self, class_id: int) -> float | None:
        """Average precision of the pixels that a class won; those it did not win are never found.

        Returns
        -------
        float or None
            0 when the class is true somewhere and predicted nowhere; ``None`` when it is true nowhere.
        """
        total, won = int(self.true_pixels[class_id]), self.won(class_id)
        if not total:
            return None
        # The histogram knows only the true pixels that were won; the steps of recall shrink by their share.
        return (won.average_precision or 0.0) * int(won.positive.sum()) / total

    def average_precision_won_macro(self, class_ids: Sequence[int]) -> Macro:
        """Its mean over the classes that are true somewhere."""
        return Macro.of([self.average_precision_won(class_id) for class_id in class_ids])


@numba.njit(nogil=True, cache=True)
def _tally_classes(counts: Any, true_pixels: Any, truth: Any, prediction: Any, probability: Any, mask: Any) -> None:
    for at in range(truth.size):
        if (mask.size and not mask[at]) or truth[at] == UNKNOWN:
            continue
        true_pixels[truth[at]] += 1
        counts[prediction[at], probability[at], np.int64(truth[at] == prediction[at])] += 1
