"""Boundary F1: how much of an outline lies within a tolerance of the other one.

Precision is the share of predicted outline pixels with a true outline pixel within the tolerance, recall the share of
true outline pixels with a predicted one within it (Martin, Fowlkes and Malik, PAMI 2004; Csurka et al., BMVC 2013).
An outline pixel may serve any number of others. Distances are Euclidean between pixel centres, and exact.

What an outline is: the inner outline of every instance, as :func:`slideloom.patches.hv.boundary_map` draws it. Of a
label image, nuclei that touch are outlined each; of a mask, only their union is. The image's border is no outline, nor
is the border of what was predicted: a pixel beside one that was not predicted is left out, for where its nucleus ends
nobody knows.

Images are read in windows with as much context as the tolerance needs. Distances are counted squared, in whole numbers:
windows of any size, in any order, give one result, and one pass serves every tolerance up to the greatest.
"""

from __future__ import annotations

from math import floor
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from slideloom.instances.windows import Box, windows
from slideloom.metrics.panoptic import ratio
from slideloom.patches.hv import boundary_map

__all__ = ["BoundaryDistances", "boundary_distances", "tolerance_px"]

#: A tolerance may miss a whole distance by rounding (0.3 µm / 0.1 µm < 3 px); this much is forgiven.
_SLACK = 1e-9
#: Greatest radius of the disc that is searched: 8 µm at 0.25 µm, the width of a nucleus. Time grows with its square.
_FARTHEST_PX = 32


def tolerance_px(tolerance_um: float, mpp_um: float) -> float:
    """A tolerance in pixels.

    Parameters
    ----------
    tolerance_um : float
        Tolerance in µm; 0 or more.
    mpp_um : float
        Pixel size in µm.

    Raises
    ------
    ValueError
        The tolerance is negative, or the pixel size not positive.
    """
    if not (tolerance_um >= 0 and mpp_um > 0):
        raise ValueError(f"a tolerance of {tolerance_um} µm at {mpp_um} µm a pixel")
    return tolerance_um / mpp_um


class BoundaryDistances:
    """Outline pixels by the squared distance to the nearest one of the other outline.

    Parameters
    ----------
    reach_px : float
        Greatest tolerance that can be asked for, in pixels; 0 to 32.

    Attributes
    ----------
    gt, pred : ndarray of int64, (n + 2,)
        Pixels of the true and of the predicted outline whose squared distance is the index; the last entry counts those
        farther than ``reach_px``.

    Raises
    ------
    ValueError
        ``reach_px`` is outside its range.
    """

    def __init__(self, reach_px: float) -> None:
        if not 0 <= reach_px <= _FARTHEST_PX:
            raise ValueError(f"a boundary tolerance of {reach_px} px; 0 to {_FARTHEST_PX} are possible")
        limit = _squared(reach_px)
        radius = floor(reach_px) + 1
        y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].reshape(2, -1)
        squared = y * y + x * x
        # Near ones first, so that the first hit is the nearest.
        order = np.argsort(squared, kind="stable")[: np.count_nonzero(squared <= limit)]
        self._disc = np.stack([y[order], x[order], squared[order]], axis=1).astype(np.int64)
        self.gt: NDArray[np.int64] = np.zeros(limit + 2, np.int64)
        self.pred: NDArray[np.int64] = np.zeros(limit + 2, np.int64)

    @property
    def context_px(self) -> int:
        """Pixels of context that a window needs all round, for its outlines and for what they are held against."""
        return int(np.abs(self._disc[:, 0]).max()) + 1

    def add(
        self,
        gt: NDArray[Any],
        pred: NDArray[Any],
        core: tuple[slice, slice] | None = None,
        seen: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count a window.

        Parameters
        ----------
        gt, pred : ndarray of int or bool, (height, width)
            True and predicted labels, or masks, of the window with :attr:`context_px` of context on every side, or as
            far as the image reaches.
        core : tuple of slice, optional
            The window itself in these arrays, with a start and a stop; all when left out.
        seen : ndarray of bool, (height, width), optional
            Pixels that were predicted; all when left out.

        Raises
        ------
        ValueError
            The shapes differ.
        """
        if gt.shape != pred.shape or (seen is not None and seen.shape != gt.shape):
            raise ValueError(f"truth and prediction of one window have shapes {gt.shape} and {pred.shape}")
        true, predicted = boundary_map(gt), boundary_map(pred)
        if seen is not None:
            inner = _inner(seen)
            true &= inner
            predicted &= inner
        rows, cols = core if core is not None else (slice(0, gt.shape[0]), slice(0, gt.shape[1]))
        box = (rows.start, cols.start, rows.stop, cols.stop)
        for outline, other, counts in ((true, predicted, self.gt), (predicted, true, self.pred)):
            if other.any():
                _nearest(outline, other, *box, self._disc, counts)
            else:
                counts[-1] += np.count_nonzero(outline[rows, cols])

    def merge(self, other: BoundaryDistances) -> None:
        """Take in what another one of the same reach counted; a ``ValueError`` when the reach differs."""
        if self.gt.size != other.gt.size:
            raise ValueError("boundary distances of different reach cannot be merged")
        self.gt += other.gt
        self.pred += other.pred

    def precision(self, tolerance: float) -> float | None:
        """Share of the predicted outline within a tolerance (pixels) of the true one; ``None`` without any."""
        return ratio(self._near(self.pred, tolerance), int(self.pred.sum()))

    def recall(self, tolerance: float) -> float | None:
        """Share of the true outline within a tolerance (pixels) of the predicted one; ``None`` without any."""
        return ratio(self._near(self.gt, tolerance), int(self.gt.sum()))

    def f1(self, tolerance: float) -> float | None:
        """Harmonic mean of precision and recall, 0 when one side only has an outline; ``None`` when neither has."""
        precision, recall = self.precision(tolerance), self.recall(tolerance)
        if precision is None and recall is None:
            return None
        # One side empty: the other one's share is 0, and so is the mean.
        precision, recall = precision or 0.0, recall or 0.0
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    def surface_dice(self, tolerance: float) -> float | None:
        """Outline pixels of both sides within the tolerance, over all of both; ``None`` when there is none.

        The normalised surface distance of Nikolov et al. (2018), counted in pixels.
        """
        near = self._near(self.gt, tolerance) + self._near(self.pred, tolerance)
        return ratio(near, int(self.gt.sum()) + int(self.pred.sum()))

    def _near(self, counts: NDArray[np.int64], tolerance: float) -> int:
        limit = _squared(tolerance)
        if not 0 <= limit <= counts.size - 2:
            raise ValueError(f"a tolerance of {tolerance} px is beyond the reach that distances were counted to")
        return int(counts[: limit + 1].sum())


def boundary_distances(
    gt: Any, pred: Any, reach_px: float, *, seen: Any = None, block_px: int = 2048
) -> BoundaryDistances:
    """Outline distances of two images, in memory or on disk.

    Parameters
    ----------
    gt, pred : array-like of int or bool, (height, width)
        True and predicted labels, or masks. NumPy, Zarr and tensorstore arrays; read window by window.
    reach_px : float
        Greatest tolerance that will be asked for, in pixels; see :func:`tolerance_px`.
    seen : array-like, (height, width), optional
        Not 0 where something was predicted; everywhere when left out.
    block_px : int
        Side of the windows; changes memory and speed, never the result.

    Returns
    -------
    BoundaryDistances

    Raises
    ------
    ValueError
        The shapes differ, the arrays are not two-dimensional, or ``reach_px`` is outside its range.
    """
    shapes = {tuple(int(side) for side in array.shape) for array in (gt, pred, *([] if seen is None else [seen]))}
    if len(shapes) > 1 or len(gt.shape) != 2:
        raise ValueError(f"truth and prediction must be two-dimensional and alike, not {sorted(shapes)}")
    shape = (int(gt.shape[0]), int(gt.shape[1]))
    found = BoundaryDistances(reach_px)
    for window in windows(Box(0, 0, *shape), block_px):
        grown = window.grown(found.context_px, shape)
        was_seen = None if seen is None else np.asarray(seen[grown.slices]) != 0
        found.add(np.asarray(gt[grown.slices]), np.asarray(pred[grown.slices]), window.within(grown), was_seen)
    return found


def _squared(distance_px: float) -> int:
    """Greatest squared whole-pixel distance within a distance."""
    return floor(distance_px * distance_px * (1 + _SLACK)) if distance_px >= 0 else -1


def _inner(seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Seen pixels without an unseen one beside, above or below them."""
    inner = seen.copy()
    inner[1:] &= seen[:-1]
    inner[:-1] &= seen[1:]
    inner[:, 1:] &= seen[:, :-1]
    inner[:, :-1] &= seen[:, 1:]
    return inner


@numba.njit(nogil=True, cache=True)
def _nearest(outline: Any, other: Any, top: int, left: int, bottom: int, right: int, disc: Any, counts: Any) -> None:
    """Count a window's outline pixels by squared distance to the nearest pixel of the other outline."""
    height, width = outline.shape
    for y in range(top, bottom):
        for x in range(left, right):
            if outline[y, x] == 0:
                continue
            found = counts.size - 1
            for at in range(disc.shape[0]):
                other_y, other_x = y + disc[at, 0], x + disc[at, 1]
                if 0 <= other_y < height and 0 <= other_x < width and other[other_y, other_x] != 0:
                    found = disc[at, 2]
                    break
            counts[found] += 1
