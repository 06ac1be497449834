"""Sparse contingency of two label arrays: which true nucleus shares how many pixels with which predicted one.

Every instance figure follows from this table. It is built in one pass over the pixels: runs of equal pairs along the
rows are counted into a hash table, and only the distinct pairs are sorted. Time is linear in the pixels, memory in the
pairs; no mask of a single nucleus is ever made. Blocks can be added in any order and of any size: all sums are of
integers, so the result is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.metrics.runs import distinct_pairs, sum_by_key

__all__ = ["Contingency", "PairCounter", "blocks", "contingency", "majority"]

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
#: Pairs kept uncombined before they are merged; bounds the memory of a long run of blocks.
_PENDING = 1 << 21


class PairCounter:
    """Counts how often each pair of values stands at one pixel, and where on average.

    Blocks are added one after another; order and size play no part in the result.

    Attributes
    ----------
    placed : bool
        Every block so far was added with its origin, so that positions are known.

    Examples
    --------
    >>> counter = PairCounter()
    >>> counter.add(np.array([[1, 1], [0, 2]]), np.array([[5, 5], [5, 0]]))
    >>> [column.tolist() for column in counter.pairs()]
    [[0, 1, 2], [5, 5, 0], [1, 2, 1]]
    """

    def __init__(self) -> None:
        self._keys: list[NDArray[np.uint64]] = []
        self._sums: list[NDArray[np.int64]] = []
        self._pending = 0
        self.placed = True

    def add(
        self,
        first: NDArray[Any],
        second: NDArray[Any],
        mask: NDArray[np.bool_] | None = None,
        *,
        origin: tuple[int, int] | None = None,
    ) -> None:
        """Count the pixels of one block.

        Parameters
        ----------
        first, second : ndarray of int or bool, equal shapes
            Values from 0 to 2³² - 1.
        mask : ndarray of bool, same shape, optional
            Pixels to count; all when left out.
        origin : (y, x) of int, optional
            Where the block's first pixel lies in the image, in pixels; needed for centroids, and then the arrays are
            two-dimensional.

        Raises
        ------
        ValueError
            Shapes differ, an array does not hold integers, a value is negative or above 2³² - 1, or an origin is given
            for arrays that are not two-dimensional.
        """
        if first.shape != second.shape or (mask is not None and mask.shape != first.shape):
            raise ValueError(f"arrays of one block have shapes {first.shape} and {second.shape}, or another mask")
        if origin is not None and first.ndim != 2:
            raise ValueError(f"a block with an origin must be two-dimensional, not {first.shape}")
        if first.size == 0:
            return
        self.placed &= origin is not None
        keys, sums = sum_by_key(*distinct_pairs(first, second, mask, origin or (0, 0)))
        self._keys.append(keys)
        self._sums.append(sums)
        self._pending += keys.size
        if self._pending > _PENDING:
            self._merge()
            self._pending = 0

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The pairs met and how often.

        Returns
        -------
        first, second, count : ndarray of int64, (n,)
            Sorted by ``first``, then ``second``.
        """
        self._merge()
        keys = self._keys[0]
        return (keys >> _SHIFT).astype(np.int64), (keys & _LOW).astype(np.int64), self._sums[0][:, 0].copy()

    def positions(self) -> NDArray[np.int64] | None:
        """Sums of the pixels' coordinates for each pair, in the order of :meth:`pairs`.

        Returns
        -------
        ndarray of int64, (n, 2), or None
            Sums of y and of x in pixels; ``None`` when a block was added without its origin.
        """
        self._merge()
        return self._sums[0][:, 1:].copy() if self.placed else None

    def _merge(self) -> None:
        keys = np.concatenate([np.empty(0, np.uint64), *self._keys])
        sums = np.concatenate([np.empty((0, 3), np.int64), *self._sums])
        keys, sums = sum_by_key(keys, sums)
        self._keys, self._sums = [keys], [sums]


@dataclass(frozen=True)
class Contingency:
    """Overlaps of true and predicted instances.

    Attributes
    ----------
    gt_ids, pred_ids : ndarray of int64, (n_gt,) and (n_pred,)
        Labels of the instances, ascending; the background (0) is not among them.
    gt_area, pred_area : ndarray of int64
        Their pixels.
    gt_index, pred_index : ndarray of int64, (n_pairs,)
        Overlapping pairs as positions in ``gt_ids`` and ``pred_ids``, sorted by the first, then the second.
    overlap : ndarray of int64, (n_pairs,)
        Pixels that a pair shares; at least 1.
    n_pixels : int
        Pixels counted, the background's included.
    gt_centroid, pred_centroid : ndarray of float64, (n_gt, 2) and (n_pred, 2), or None
        Mean (y, x) of an instance's counted pixels, in pixels, the centre of the image's first pixel at (0, 0);
        ``None`` when blocks were counted without their origin.
    """

    gt_ids: NDArray[np.int64]
    pred_ids: NDArray[np.int64]
    gt_area: NDArray[np.int64]
    pred_area: NDArray[np.int64]
    gt_index: NDArray[np.int64]
    pred_index: NDArray[np.int64]
    overlap: NDArray[np.int64]
    n_pixels: int
    gt_centroid: NDArray[np.float64] | None = None
    pred_centroid: NDArray[np.float64] | None = None

    @classmethod
    def from_counter(cls, counter: PairCounter) -> Contingency:
        """Build the table from counted (true, predicted) pairs."""
        gt, pred, count = counter.pairs()
        positions = counter.positions()
        gt_ids, gt_at = np.unique(gt, return_inverse=True)
        pred_ids, pred_at = np.unique(pred, return_inverse=True)
        gt_area, gt_centroid = _areas_and_centroids(gt_at, gt_ids.size, count, positions)
        pred_area, pred_centroid = _areas_and_centroids(pred_at, pred_ids.size, count, positions)
        gt_skip = int(gt_ids.size > 0 and gt_ids[0] == 0)
        pred_skip = int(pred_ids.size > 0 and pred_ids[0] == 0)
        both = (gt > 0) & (pred > 0)
        return cls(
            gt_ids=gt_ids[gt_skip:],
            pred_ids=pred_ids[pred_skip:],
            gt_area=gt_area[gt_skip:],
            pred_area=pred_area[pred_skip:],
            gt_index=gt_at[both] - gt_skip,
            pred_index=pred_at[both] - pred_skip,
            overlap=count[both],
            n_pixels=int(count.sum()),
            gt_centroid=None if gt_centroid is None else gt_centroid[gt_skip:],
            pred_centroid=None if pred_centroid is None else pred_centroid[pred_skip:],
        )

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each pair, (n_pairs,)."""
        union = self.gt_area[self.gt_index] + self.pred_area[self.pred_index] - self.overlap
        return self.overlap / union

    @property
    def tp_pixels(self) -> int:
        """Pixels inside both a true and a predicted instance."""
        return int(self.overlap.sum())


def _areas_and_centroids(
    at: NDArray[np.intp], n: int, count: NDArray[np.int64], positions: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
    area = np.zeros(n, np.int64)
    np.add.at(area, at, count)
    if positions is None:
        return area, None
    total = np.zeros((n, 2), np.int64)
    for axis in range(2):  # one column at a time: np.add.at is slow on rows
        np.add.at(total[:, axis], at, positions[:, axis])
    return area, total / area[:, None]


def blocks(shape: tuple[int, int], block_px: int) -> Iterator[tuple[slice, slice]]:
    """Cut an image into squares, row by row.

    Parameters
    ----------
    shape : tuple of int
        (height, width) in pixels.
    block_px : int
        Side of a square; those at the right and the lower border are smaller.

    Yields
    ------
    tuple of slice
        (rows, columns).
    """
    height, width = shape
    for y in range(0, height, block_px):
        for x in range(0, width, block_px):
            yield slice(y, min(height, y + block_px)), slice(x, min(width, x + block_px))


def contingency(gt: Any, pred: Any, *, block_px: int = 2048) -> Contingency:
    """Contingency table of two label images, in memory or on disk.

    Parameters
    ----------
    gt, pred : array-like of int, (height, width)
        True and predicted labels, 0 for the background. NumPy, Zarr and tensorstore arrays; read block by block.
    block_px : int
        Side of the blocks; changes memory and speed, never the result.

    Returns
    -------
    Contingency

    Raises
    ------
    ValueError
        The shapes differ, or the arrays are not two-dimensional.
    """
    if tuple(gt.shape) != tuple(pred.shape) or len(gt.shape) != 2:
        raise ValueError(f"label images must be two-dimensional and alike, not {tuple(gt.shape)}, {tuple(pred.shape)}")
    counter = PairCounter()
    for window in blocks((int(gt.shape[0]), int(gt.shape[1])), block_px):
        origin = (window[0].start, window[1].start)
        counter.add(np.asarray(gt[window]), np.asarray(pred[window]), origin=origin)
    return Contingency.from_counter(counter)


def majority(
    ids: NDArray[np.int64], values: NDArray[np.int64], counts: NDArray[np.int64], wanted: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The most frequent value of each instance.

    Parameters
    ----------
    ids, values, counts : ndarray of int64, (n,)
        How many pixels of an instance have a value, as :meth:`PairCounter.pairs` gives them.
    wanted : ndarray of int64, (m,)
        Instances asked for.

    Returns
    -------
    ndarray of int64, (m,)
        The value with the most pixels, the smallest of equals; 0 where the instance was not met.
    """
    result = np.zeros(wanted.size, np.int64)
    if ids.size == 0 or wanted.size == 0:
        return result
    order = np.lexsort((values, -counts, ids))
    first = np.concatenate(([True], ids[order][1:] != ids[order][:-1]))
    best_ids, best_values = ids[order][first], values[order][first]
    at = np.minimum(np.searchsorted(best_ids, wanted), best_ids.size - 1)
    found = best_ids[at] == wanted
    result[found] = best_values[at][found]
    return result
