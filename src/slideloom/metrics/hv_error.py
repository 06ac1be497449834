"""How far predicted HV maps are from the true ones: mean squared error inside nuclei, and everywhere.

Maps are stored in steps of 1/127, so sums are whole numbers: windows of any size, in any order, give one result.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from slideloom.metrics.panoptic import ratio
from slideloom.patches.hv import HV_SCALE

__all__ = ["HvError", "HvErrors"]

_ALL = np.empty(0, np.bool_)


class HvError:
    """Mean squared error of HV maps stored in steps of 1/127. Sums are whole numbers: blocks change nothing."""

    def __init__(self) -> None:
        self._totals: NDArray[np.int64] = np.zeros(2, np.int64)
        self._pixels = 0

    def add(
        self, prediction: NDArray[np.int8], truth: NDArray[np.int8], inside: NDArray[np.bool_] | None = None
    ) -> None:
        """Take in a block.

        Parameters
        ----------
        prediction, truth : ndarray of int8, (2, height, width)
            HV components times 127, x first.
        inside : ndarray of bool, (height, width), optional
            Pixels that count; all when left out.
        """
        if prediction.shape != truth.shape or (inside is not None and inside.shape != truth.shape[1:]):
            raise ValueError(f"HV maps of one block have shapes {prediction.shape} and {truth.shape}")
        mask = _ALL if inside is None else inside.ravel()
        for axis in (0, 1):
            total, pixels = _squared(prediction[axis].ravel(), truth[axis].ravel(), mask)
            self._totals[axis] += total
        self._pixels += pixels

    def merge(self, other: HvError) -> None:
        """Take in what another one summed."""
        self._totals += other._totals
        self._pixels += other._pixels

    @property
    def value(self) -> float | None:
        """The mean over pixels and components; ``None`` when no pixel counted."""
        return ratio(int(self._totals.sum()), HV_SCALE**2 * 2 * self._pixels)

    @property
    def x(self) -> float | None:
        """The mean over pixels of the horizontal component; ``None`` when no pixel counted."""
        return ratio(int(self._totals[0]), HV_SCALE**2 * self._pixels)

    @property
    def y(self) -> float | None:
        """The mean over pixels of the vertical component; ``None`` when no pixel counted."""
        return ratio(int(self._totals[1]), HV_SCALE**2 * self._pixels)


class HvErrors:
    """The error of HV maps inside true nuclei, and everywhere.

    The truth is 0 outside nuclei, and few pixels are inside: everywhere, a network that says 0 all over does well.

    Attributes
    ----------
    inside : HvError
        Pixels of true nuclei; its figures are ``None`` without any.
    everywhere : HvError
        All pixels; its figures are ``None`` without any.
    """

    def __init__(self) -> None:
        self.inside = HvError()
        self.everywhere = HvError()

    def add(
        self,
        prediction: NDArray[np.int8],
        truth: NDArray[np.int8],
        nucleus: NDArray[np.bool_],
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        """Take in a block.

        Parameters
        ----------
        prediction, truth : ndarray of int8, (2, height, width)
            HV components times 127.
        nucleus : ndarray of bool, (height, width)
            Whether the pixel is inside a true nucleus.
        mask : ndarray of bool, (height, width), optional
            Pixels to count; all when left out.
        """
        self.inside.add(prediction, truth, nucleus if mask is None else nucleus & mask)
        self.everywhere.add(prediction, truth, mask)

    def merge(self, other: HvErrors) -> None:
        """Take in what another one summed."""
        self.inside.merge(other.inside)
        self.everywhere.merge(other.everywhere)


@numba.njit(nogil=True, cache=True)
def _squared(first: Any, second: Any, mask: Any) -> Any:
    total, pixels = 0, 0
    for at in range(first.size):
        if mask.size == 0 or mask[at]:
            difference = np.int64(first[at]) - second[at]
            total += difference * difference
            pixels += 1
    return total, pixels
