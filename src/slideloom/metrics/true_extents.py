"""Where true nuclei lie: what a window must read so that each of its nuclei is whole.

A pixel's true HV value depends on the whole nucleus. Scored window by window, a nucleus that crosses a border needs
context, as much as it is large; how much is known after one pass over the annotation. That pass reads bands of whole
rows once, and is the one in which masks that pose as label images are found out
(:mod:`slideloom.slides.binary_labels`).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from slideloom.instances.windows import Box
from slideloom.metrics.runs import distinct_pairs

__all__ = ["Extents", "WatchedLabels"]

#: Boxes kept ungathered before they are; bounds the memory of a long image.
_PENDING = 1 << 20


class Extents:
    """Bounding box of every label of an image; windows are added in any order."""

    def __init__(self) -> None:
        self._ids: list[NDArray[np.int64]] = []
        self._boxes: list[NDArray[np.int64]] = []
        self._pending = 0

    def add(self, labels: NDArray[np.integer[Any]], top: int, left: int) -> None:
        """Take in a window.

        Parameters
        ----------
        labels : (H, W) integer array
            From 0, the background, to 2³² - 1.
        top, left : int
            Where its first pixel lies, pixels.
        """
        if labels.size == 0:
            return
        ids = np.sort(distinct_pairs(labels, labels, None, (0, 0))[0] >> np.uint64(32)).astype(np.int64)
        ids = ids[ids > 0]
        box = np.empty((ids.size, 4), np.int64)
        box[:, :2], box[:, 2:] = np.iinfo(np.int64).max, -1
        _measure(labels, top, left, ids, box)
        self._ids.append(ids)
        self._boxes.append(box)
        self._pending += ids.size
        if self._pending > _PENDING:
            self._gather()
            self._pending = 0

    def boxes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Labels and where they lie.

        Returns
        -------
        ids : (n,) int64 array
            Ascending, without the background.
        boxes : (n, 4) int64 array
            Top, left, bottom, right in pixels, past-the-end exclusive.
        """
        self._gather()
        return self._ids[0], self._boxes[0]

    def around(self, box: Box) -> Box:
        """The smallest rectangle that holds a box and, whole, every label whose bounding box meets it."""
        _, found = self.boxes()
        meets = (found[:, 0] < box.bottom) & (found[:, 2] > box.top)
        found = found[meets]
        found = found[(found[:, 1] < box.right) & (found[:, 3] > box.left)]
        low = np.minimum((box.top, box.left), found[:, :2].min(axis=0, initial=np.iinfo(np.int64).max))
        high = np.maximum((box.bottom, box.right), found[:, 2:].max(axis=0, initial=-1))
        return Box(int(low[0]), int(low[1]), int(high[0]), int(high[1]))

    def _gather(self) -> None:
        if len(self._ids) == 1:
            return
        ids = np.concatenate([np.empty(0, np.int64), *self._ids])
        boxes = np.concatenate([np.empty((0, 4), np.int64), *self._boxes])
        if ids.size:
            order = np.argsort(ids, kind="stable")
            ids, boxes = ids[order], boxes[order]
            starts = np.flatnonzero(np.diff(ids, prepend=-1))
            low = np.minimum.reduceat(boxes[:, :2], starts, axis=0)
            ids, boxes = ids[starts], np.concatenate([low, np.maximum.reduceat(boxes[:, 2:], starts, axis=0)], axis=1)
        self._ids, self._boxes = [ids], [boxes]


class WatchedLabels:
    """A label image that is read in bands of whole rows, and notes the extents of what is read.

    Parameters
    ----------
    labels : array-like of int, (height, width)
        Read by two slices.
    extents : Extents or None
        Learns every band that is read; ``None``: nobody asks for extents.

    Attributes
    ----------
    shape : tuple of int
        (height, width) in pixels.
    """

    def __init__(self, labels: Any, extents: Extents | None) -> None:
        self._labels = labels
        self._extents = extents
        self.shape: tuple[int, int] = (int(labels.shape[0]), int(labels.shape[1]))

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        top, bottom, _ = rows.indices(self.shape[0])
        band: NDArray[Any] = np.asarray(self._labels[top:bottom, 0 : self.shape[1]])
        if self._extents is not None:
            self._extents.add(band, top, 0)
        return band


@numba.njit(nogil=True, cache=True)
def _measure(labels: Any, top: int, left: int, ids: Any, box: Any) -> None:  # pragma: no cover - compiled
    """Widen the boxes of ascending ids by a window, a run of equal pixels at a time."""
    height, width = labels.shape
    for y in range(height):
        x = 0
        while x < width:
            label = labels[y, x]
            start = x
            while x < width and labels[y, x] == label:
                x += 1
            if label == 0:
                continue
            low, high = 0, ids.size - 1
            while low < high:
                middle = (low + high) // 2
                if ids[middle] < label:
                    low = middle + 1
                else:
                    high = middle
            box[low, 0] = min(box[low, 0], y + top)
            box[low, 1] = min(box[low, 1], start + left)
            box[low, 2] = max(box[low, 2], y + top + 1)
            box[low, 3] = max(box[low, 3], x + left)
