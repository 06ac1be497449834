"""How much the tile grid shows: a slide's nuclei against those of a second prediction with shifted tiles.

Two nuclei are each other's counterpart where their IoU is above 0.5; of such there is at most one. The overlaps are
counted window by window, as pairs of ids that share pixels, so that memory follows the nuclei, not the slide.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.instances.pool import in_order
from slideloom.instances.refine.found import Found
from slideloom.instances.windows import Box, windows

__all__ = ["seam_change"]

#: Ids of one pixel in one number: those of the one prediction above, those of the other below.
_SHIFT = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_Overlaps = tuple[NDArray[np.uint64], NDArray[np.int64]]


def seam_change(one: Found, other: Found, window_px: int = 2048, workers: int = 1) -> dict[str, Any]:
    """Share of nuclei that change between two predictions of a slide.

    Parameters
    ----------
    one, other : Found
        Instances with the tiles as they lie, and with the tiles shifted; of one frame.
    window_px : int
        Side of the windows that are compared at a time; changes no figure.
    workers : int
        Windows in work at once; changes no figure.

    Returns
    -------
    dict
        ``n`` and ``n_shifted``, nuclei of either prediction; ``changed``, those of both without a counterpart of an IoU
        above 0.5 in the other; ``rate``, ``changed`` over ``n + n_shifted``, None when there is no nucleus.

    Raises
    ------
    ValueError
        The frames differ.
    """
    if one.grid.frame != other.grid.frame:
        raise ValueError(f"the two predictions lie in the frames {one.grid.frame} and {other.grid.frame}")

    def work(box: Box) -> _Overlaps:
        return _overlaps(one.read(box), other.read(box))

    keys, counts = _sum(in_order(work, windows(one.grid.frame, window_px), workers))
    areas = one.table.area[(keys >> _SHIFT).astype(np.intp)] + other.table.area[(keys & _LOW).astype(np.intp)]
    # IoU above 1/2: the common pixels are more than half of the union, so more than a third of the sum; exact.
    matched = int((3 * counts > areas).sum())
    total = one.n + other.n
    changed = total - 2 * matched
    return {"n": one.n, "n_shifted": other.n, "changed": changed, "rate": changed / total if total else None}


def _overlaps(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> _Overlaps:
    """Pairs of nuclei that share pixels in a window, ascending, and how many pixels."""
    both = (first > 0) & (second > 0)
    keys = first[both].astype(np.uint64) << _SHIFT | second[both]
    # Runs along the rows first: there are far fewer of them to sort than pixels.
    starts = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
    return _sum([(keys[starts], np.diff(starts, append=keys.size))])


def _sum(parts: Iterable[_Overlaps]) -> _Overlaps:
    """Sums by key, keys ascending."""
    listed = list(parts)
    keys = np.concatenate([np.empty(0, np.uint64), *(key for key, _ in listed)])
    counts = np.concatenate([np.empty(0, np.int64), *(count for _, count in listed)])
    unique, where = np.unique(keys, return_inverse=True)
    sums = np.zeros(unique.size, np.int64)
    np.add.at(sums, where, counts)
    return unique, sums
