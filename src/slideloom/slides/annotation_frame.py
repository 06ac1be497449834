"""Which pixels of an annotation the pixels of a grid take their values from.

A grid pixel takes the value at its centre. The annotation has a frame of its own: level-0 pixels of one of the slide's
images, or the grid's own pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Axis", "Taps", "pick"]


@dataclass(frozen=True)
class Taps:
    """Where neighbouring grid pixels take their values from, along one axis.

    Attributes
    ----------
    count : int
        Grid pixels.
    native : slice
        Annotation pixels to be read for them.
    index : (k,) int64 array
        Place among these of the value of each grid pixel; k is less than ``count`` where the annotation ends before.
    points : (k,) float64 array
        The same places as positions in the annotation's frame: pixel i covers [i, i + 1).
    """

    count: int
    native: slice
    index: NDArray[np.int64]
    points: NDArray[np.float64]

    @property
    def plain(self) -> bool:
        """Whether grid pixels and annotation pixels are the same."""
        size = self.native.stop - self.native.start
        return self.index.size == self.count == size and (not size or self.index[-1] == size - 1)


@dataclass(frozen=True)
class Axis:
    """Grid pixels of a slide along one axis, in the frame of an annotation.

    Attributes
    ----------
    count : int
        Grid pixels of the slide.
    step : float
        Annotation pixels per grid pixel.
    extent : int
        Size of the annotation, its pixels.
    """

    count: int
    step: float
    extent: int

    @cached_property
    def index(self) -> NDArray[np.int64]:
        """Annotation pixel at the centre of each grid pixel, rising, (k,); shorter where the annotation has ended."""
        grid = np.arange(self.count)
        index = np.floor((grid + 0.5) * self.step).astype(np.int64)
        # Rounding of the grid's size can put the last centre on the very edge.
        index[(index == self.extent) & (grid * self.step < self.extent)] = self.extent - 1
        kept: NDArray[np.int64] = index[index < self.extent]
        return kept

    def window(self, first: int, stop: int) -> Taps:
        """Taps of grid pixels ``first`` to ``stop`` - 1.

        Windows that follow upon one another read every annotation pixel of the slide's frame.
        """
        # Half a grid pixel may lie behind the last centre, and as much is lost when the grid's size is rounded.
        behind = stop if stop < self.count else stop + 1
        return self._taps(first, stop, int(first * self.step), int(np.ceil(behind * self.step)))

    def whole(self) -> Taps:
        """Taps of all grid pixels, which read all of the annotation."""
        return self._taps(0, self.count, 0, self.extent)

    def _taps(self, first: int, stop: int, begin: int, end: int) -> Taps:
        index = self.index[first:stop]
        begin, end = min(begin, self.extent), min(end, self.extent)
        if index.size:
            begin, end = min(begin, int(index[0])), max(end, int(index[-1]) + 1)
        points = (np.arange(first, first + index.size, dtype=np.float64) + 0.5) * np.float64(self.step)
        points[points >= self.extent] = self.extent - 0.5
        return Taps(max(0, stop - first), slice(begin, max(begin, end)), index - begin, points)


def pick(values: NDArray[Any], down: Taps, across: Taps) -> NDArray[Any]:
    """Values of a window of annotation pixels at the grid pixels, 0 where the annotation has ended.

    Parameters
    ----------
    values : (h, w) array
        What was read of ``down.native`` and ``across.native``.
    down, across : Taps
        Along y and x.

    Returns
    -------
    (down.count, across.count) array
        Of the same type; ``values`` itself where grid and annotation have the same pixels.
    """
    if down.plain and across.plain:
        return values
    placed = np.zeros((down.count, across.count), values.dtype)
    placed[: down.index.size, : across.index.size] = values[np.ix_(down.index, across.index)]
    return placed
