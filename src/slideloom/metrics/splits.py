"""Split and merged nuclei, counted from the contingency table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slideloom.metrics.contingency import Contingency

__all__ = ["MIN_SHARE", "Splits", "count_splits"]

#: Least share of the whole that a piece covers; smaller ones are specks, not halves.
MIN_SHARE = 0.1


@dataclass(frozen=True)
class Splits:
    """How often one became several.

    Attributes
    ----------
    splits : int
        True instances that are cut into two or more predicted pieces.
    pieces : int
        Predicted pieces of these.
    merges : int
        Predicted instances that hold two or more true ones.
    merged : int
        True instances in these.
    """

    splits: int
    pieces: int
    merges: int
    merged: int

    def __add__(self, other: Splits) -> Splits:
        return Splits(
            self.splits + other.splits,
            self.pieces + other.pieces,
            self.merges + other.merges,
            self.merged + other.merged,
        )


def count_splits(table: Contingency, min_share: float = MIN_SHARE) -> Splits:
    """Count split and merged instances.

    A predicted instance is a piece of a true one when more than half of its pixels lie in it and they cover at least
    ``min_share`` of it; a true instance is a piece of a predicted one in the same way. Two or more pieces make a split,
    or a merge. An instance is a piece of one other at most, so that exchanging truth and prediction exchanges the two.
    Counts are never undefined: without instances they are 0.

    Parameters
    ----------
    table : Contingency
        Of true and predicted labels.
    min_share : float
        In [0, 1].

    Returns
    -------
    Splits
    """
    splits, pieces = _wholes(table.gt_index, table.pred_index, table.gt_area, table.pred_area, table.overlap, min_share)
    merges, merged = _wholes(table.pred_index, table.gt_index, table.pred_area, table.gt_area, table.overlap, min_share)
    return Splits(splits, pieces, merges, merged)


def _wholes(
    whole: NDArray[np.int64],
    part: NDArray[np.int64],
    whole_area: NDArray[np.int64],
    part_area: NDArray[np.int64],
    overlap: NDArray[np.int64],
    min_share: float,
) -> tuple[int, int]:
    piece = (2 * overlap > part_area[part]) & (overlap >= min_share * whole_area[whole])
    pieces = np.bincount(whole[piece], minlength=whole_area.size)
    cut = pieces >= 2
    return int(cut.sum()), int(pieces[cut].sum())
