"""Pixel figures: Dice, IoU, precision, recall, accuracy and confusion matrix.

Everything is counted in whole numbers, window by window. Windows of any size, in any order, counted by one process or
by several whose parts are merged, give the same figures to the last bit. A figure that cannot be defined is ``None``,
never 0 or 1 by convention; a mean over classes skips such classes and says how many it was taken over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numba
import numpy as np
from numpy.typing import NDArray

from slideloom.metrics.panoptic import mean_defined, ratio

__all__ = [
    "UNKNOWN",
    "ClassConfusion",
    "ClassFigure",
    "Macro",
    "PixelConfusion",
    "ScoreHistogram",
]

#: Class value of pixels inside a nucleus whose class nobody knows; class figures leave them out.
UNKNOWN = 255

#: Figures of one class that a mean over classes can be taken of.
ClassFigure = Literal["dice", "iou", "precision", "recall", "f1"]

_ALL = np.empty(0, np.bool_)


@dataclass(frozen=True)
class PixelConfusion:
    """Pixels of a yes-or-no map against the truth.

    Attributes
    ----------
    tp, fp, fn, tn : int
        Pixels that are nucleus in both, only in the prediction, only in the truth, in neither.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    @classmethod
    def of_masks(
        cls, truth: NDArray[Any], prediction: NDArray[Any], mask: NDArray[np.bool_] | None = None
    ) -> PixelConfusion:
        """Compare two maps whose pixels are nucleus where they are not 0.

        Parameters
        ----------
        truth, prediction : ndarray, equal shapes
            Masks or label images.
        mask : ndarray of bool, same shape, optional
            Pixels to count; all when left out.
        """
        counts = np.zeros((2, 2), np.int64)
        _count(counts, truth != 0, prediction != 0, mask)
        return cls(int(counts[1, 1]), int(counts[0, 1]), int(counts[1, 0]), int(counts[0, 0]))

    def __add__(self, other: PixelConfusion) -> PixelConfusion:
        return PixelConfusion(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    @property
    def n(self) -> int:
        """Pixels counted."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def precision(self) -> float | None:
        """TP / (TP + FP); ``None`` when no pixel is predicted."""
        return ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        """TP / (TP + FN); ``None`` when no pixel is true."""
        return ratio(self.tp, self.tp + self.fn)

    @property
    def dice(self) -> float | None:
        """2 TP / (2 TP + FP + FN), the same as F1; ``None`` when truth and prediction are empty."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def f1(self) -> float | None:
        """:attr:`dice` under its other name."""
        return self.dice

    @property
    def iou(self) -> float | None:
        """TP / (TP + FP + FN); ``None`` when truth and prediction are empty."""
        return ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def accuracy(self) -> float | None:
        """(TP + TN) / all; ``None`` without pixels."""
        return ratio(self.tp + self.tn, self.n)

    @property
    def true_frequency(self) -> float | None:
        """Share of pixels that are true; ``None`` without pixels."""
        return ratio(self.tp + self.fn, self.n)

    @property
    def predicted_frequency(self) -> float | None:
        """Share of pixels that are predicted; ``None`` without pixels."""
        return ratio(self.tp + self.fp, self.n)


class ScoreHistogram:
    """Quantised scores of true and of other pixels: all that a threshold sweep needs, exactly.

    Attributes
    ----------
    counts : ndarray of int64, (256, 2)
        Pixels by score and by whether they are true.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros((256, 2), np.int64)

    @property
    def negative(self) -> NDArray[np.int64]:
        """(256,) pixels outside true nuclei, by score."""
        return self.counts[:, 0]

    @property
    def positive(self) -> NDArray[np.int64]:
        """(256,) pixels inside true nuclei, by score."""
        return self.counts[:, 1]

    def add(self, score: NDArray[np.uint8], truth: NDArray[np.bool_], mask: NDArray[np.bool_] | None = None) -> None:
        """Count pixels.

        Parameters
        ----------
        score : ndarray of uint8
            Probability times 255.
        truth : ndarray of bool, same shape
            Whether the pixel is inside a true nucleus.
        mask : ndarray of bool, same shape, optional
            Pixels to count; all when left out.
        """
        _count(self.counts, score, truth, mask)

    def merge(self, other: ScoreHistogram) -> None:
        """Take in what another one counted."""
        self.counts += other.counts

    def confusion(self, threshold: int) -> PixelConfusion:
        """Confusion when scores of at least ``threshold`` count as nucleus."""
        tp, fp = int(self.positive[threshold:].sum()), int(self.negative[threshold:].sum())
        return PixelConfusion(tp, fp, int(self.positive.sum()) - tp, int(self.negative.sum()) - fp)

    @property
    def average_precision(self) -> float | None:
        """Area under the precision-recall steps: Σ (Rₙ - Rₙ₋₁) Pₙ over falling thresholds; ``None`` without truth."""
        total = int(self.positive.sum())
        if not total:
            return None
        tp, fp = np.cumsum(self.positive[::-1]), np.cumsum(self.negative[::-1])
        met = tp + fp > 0
        recall_step = np.diff(tp[met], prepend=0) / total
        return float((recall_step * (tp[met] / (tp + fp)[met])).sum())


@dataclass(frozen=True)
class Macro:
    """A mean over classes, every class alike.

    Attributes
    ----------
    value : float or None
        Mean of the classes where the figure is defined; ``None`` when it is defined for none.
    n : int
        How many these are.
    """

    value: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Macro:
        """Mean of the values that are not ``None``."""
        return cls(mean_defined(values), sum(value is not None for value in values))


class ClassConfusion:
    """True against predicted class of every pixel whose true class is known.

    Attributes
    ----------
    counts : ndarray of int64, (256, 256)
        Pixels by true and predicted class; those of unknown true class stand in row :data:`UNKNOWN`.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros((256, 256), np.int64)

    def add(
        self, truth: NDArray[np.uint8], prediction: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None
    ) -> None:
        """Count pixels; those of unknown true class are set aside later, by :meth:`of`.

        Parameters
        ----------
        truth, prediction : ndarray of uint8, equal shapes
            Classes, 0 for the background.
        mask : ndarray of bool, same shape, optional
            Pixels to count; all when left out.
        """
        _count(self.counts, truth, prediction, mask)

    def merge(self, other: ClassConfusion) -> None:
        """Take in what another one counted."""
        self.counts += other.counts

    @property
    def known(self) -> NDArray[np.int64]:
        """(256, 256) counts without the pixels of unknown true class."""
        counts = self.counts.copy()
        counts[UNKNOWN] = 0
        return counts

    def of(self, class_id: int) -> PixelConfusion:
        """Confusion of one class against all others. Its frequencies are shares of the pixels of known class."""
        known = self.known
        tp = int(known[class_id, class_id])
        gt, pred = int(known[class_id].sum()), int(known[:, class_id].sum())
        return PixelConfusion(tp, pred - tp, gt - tp, int(known.sum()) - gt - pred + tp)

    def macro(self, figure: ClassFigure, class_ids: Sequence[int], *, background: bool) -> Macro:
        """Mean of a figure over classes.

        Parameters
        ----------
        figure : {"dice", "iou", "precision", "recall", "f1"}
            Of each class against all others.
        class_ids : sequence of int
            Nuclear classes; 0 among them is ignored.
        background : bool
            Whether the background is one more class. It is most of the pixels and easy, so the mean with it is the
            higher one as a rule; a publication must say which it gives.

        Returns
        -------
        Macro
            A class counts where the figure is defined: Dice, IoU and F1 where it occurs in truth or prediction,
            precision where it is predicted, recall where it is true. ``None`` and 0 when there is no such class.
        """
        wanted = [0] * background + [class_id for class_id in class_ids if class_id != 0]
        return Macro.of([getattr(self.of(class_id), figure) for class_id in wanted])

    @property
    def accuracy(self) -> float | None:
        """Share of the pixels of known class, background included, with the right class; ``None`` without any."""
        known = self.known
        return ratio(int(np.trace(known)), int(known.sum()))

    @property
    def accuracy_nuclei(self) -> float | None:
        """The same over the pixels whose true class is not the background; ``None`` without any."""
        known = self.known[1:]
        return ratio(int(np.trace(known[:, 1:])), int(known.sum()))

    def matrix(self, class_ids: Sequence[int]) -> NDArray[np.int64]:
        """Confusion matrix.

        Parameters
        ----------
        class_ids : sequence of int
            Classes in the order wanted; 0 is the background.

        Returns
        -------
        ndarray of int64, (n, n)
            Pixels; rows are true, columns predicted classes.
        """
        return self.known[np.ix_(class_ids, class_ids)]

    def rows(self, class_ids: Sequence[int]) -> list[dict[str, Any]]:
        """The confusion matrix as rows of a table, true classes outermost.

        Returns
        -------
        list of dict
            ``true_class_id``, ``pred_class_id``, ``pixels``; ``share_of_true`` and ``share_of_pred``: over all pixels
            of known class with that true or predicted class, whether it is asked for or not, ``None`` without any.
        """
        known = self.known
        true, pred = known.sum(axis=1), known.sum(axis=0)
        return [
            {
                "true_class_id": row,
                "pred_class_id": column,
                "pixels": int(known[row, column]),
                "share_of_true": ratio(int(known[row, column]), int(true[row])),
                "share_of_pred": ratio(int(known[row, column]), int(pred[column])),
            }
            for row in class_ids
            for column in class_ids
        ]


def _count(
    counts: NDArray[np.int64], first: NDArray[Any], second: NDArray[Any], mask: NDArray[np.bool_] | None
) -> None:
    """Add to ``counts[a, b]`` the pixels that are ``a`` in the first and ``b`` in the second array."""
    if first.shape != second.shape or (mask is not None and mask.shape != first.shape):
        raise ValueError(f"arrays of one block have shapes {first.shape}, {second.shape}")
    if {first.dtype, second.dtype} - {np.dtype(np.uint8), np.dtype(np.bool_)}:
        raise ValueError(f"arrays of classes, scores or masks are uint8 or bool, not {first.dtype}, {second.dtype}")
    one, two = (np.ascontiguousarray(each).view(np.uint8).ravel() for each in (first, second))
    _tally(counts, one, two, _ALL if mask is None else mask.ravel())


@numba.njit(nogil=True, cache=True)
def _tally(counts: Any, first: Any, second: Any, mask: Any) -> None:
    # Neighbours are mostly alike: a run is added once, so that the sum does not wait for itself at every pixel.
    a, b, run = 0, 0, 0
    for at in range(first.size):
        if mask.size and not mask[at]:
            continue
        if first[at] != a or second[at] != b:
            counts[a, b] += run
            a, b, run = first[at], second[at], 0
        run += 1
    counts[a, b] += run
