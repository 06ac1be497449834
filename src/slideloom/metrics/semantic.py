"""Pixel figures: accuracy, Dice, IoU, average precision and the HV maps' error, accumulated block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slideloom.metrics.panoptic import mean_defined, ratio
from slideloom.patches.hv import HV_SCALE

__all__ = ["UNKNOWN", "ClassConfusion", "HvError", "PixelConfusion", "ScoreHistogram"]

#: Class value of pixels inside a nucleus whose class nobody knows; class figures leave them out.
UNKNOWN = 255


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
    def iou(self) -> float | None:
        """TP / (TP + FP + FN); ``None`` when truth and prediction are empty."""
        return ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def accuracy(self) -> float | None:
        """(TP + TN) / all; ``None`` without pixels."""
        return ratio(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)


class ScoreHistogram:
    """Quantised scores of true and of other pixels: all that a threshold sweep needs, exactly."""

    def __init__(self) -> None:
        self.positive: NDArray[np.int64] = np.zeros(256, np.int64)
        self.negative: NDArray[np.int64] = np.zeros(256, np.int64)

    def add(self, score: NDArray[np.uint8], truth: NDArray[np.bool_]) -> None:
        """Count pixels.

        Parameters
        ----------
        score : ndarray of uint8, (n,)
            Probability times 255.
        truth : ndarray of bool, (n,)
            Whether the pixel is inside a true nucleus.
        """
        both = np.bincount(score.ravel().astype(np.intp) + 256 * truth.ravel(), minlength=512)
        self.negative += both[:256]
        self.positive += both[256:]

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


class ClassConfusion:
    """True against predicted class of every pixel whose true class is known."""

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros((256, 256), np.int64)

    def add(self, truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> None:
        """Count pixels; those of unknown true class are set aside later, by :meth:`of`."""
        key = truth.ravel().astype(np.intp) * 256 + prediction.ravel()
        self.counts += np.bincount(key, minlength=65536).reshape(256, 256)

    @property
    def known(self) -> NDArray[np.int64]:
        """(256, 256) counts without the pixels of unknown true class."""
        counts = self.counts.copy()
        counts[UNKNOWN] = 0
        return counts

    def of(self, class_id: int) -> PixelConfusion:
        """Confusion of one class against all others."""
        known = self.known
        tp = int(known[class_id, class_id])
        gt, pred = int(known[class_id].sum()), int(known[:, class_id].sum())
        return PixelConfusion(tp, pred - tp, gt - tp, int(known.sum()) - gt - pred + tp)

    def dice_macro(self, class_ids: Sequence[int]) -> float | None:
        """Mean Dice of the classes that occur in the truth or in the prediction; ``None`` when none does."""
        return mean_defined([self.of(class_id).dice for class_id in class_ids])


class HvError:
    """Mean squared error of HV maps stored in steps of 1/127. Sums are whole numbers: blocks change nothing."""

    def __init__(self) -> None:
        self._total = 0
        self._count = 0

    def add(self, prediction: NDArray[np.int8], truth: NDArray[np.int8], inside: NDArray[np.bool_]) -> None:
        """Take in a block.

        Parameters
        ----------
        prediction, truth : ndarray of int8, (2, height, width)
            HV components times 127.
        inside : ndarray of bool, (height, width)
            Pixels that count.
        """
        difference = prediction[:, inside].astype(np.int32) - truth[:, inside]
        self._total += int((difference * difference).sum(dtype=np.int64))
        self._count += difference.size

    @property
    def value(self) -> float | None:
        """The mean over pixels and components; ``None`` when no pixel counted."""
        return ratio(self._total, HV_SCALE**2 * self._count)
