"""Forests of windows joined to the slide's; see :mod:`slideloom.instances.forest` for why nothing is lost by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from slideloom.instances.forest import Flooded, find_root
from slideloom.instances.method import Landscape
from slideloom.instances.windows import Box, LabelTable, WindowGrid, label_table

__all__ = ["Joined", "WindowForest", "join", "window_forest"]

#: Bits of a key that hold the place, y · width of the slide + x; the level stands above them.
_PLACE_BITS = 40
_TOP, _LEFT, _BOTTOM, _RIGHT = range(4)


@dataclass(frozen=True)
class WindowForest:
    """What the join needs to know of a window.

    Attributes
    ----------
    n : int
        Number of its atoms.
    seeded : (n + 1,) bool array
        Whether an atom holds a seed.
    table : LabelTable
        Where the atoms lie on the slide.
    edges : (k, 2) int32 array
        Undecided edges: the atoms they would join.
    keys : (k, 2) int64 array
        Of their pixels, higher first.
    rims : tuple of (int32 array, int64 array)
        Atoms and keys of the pixels along its top, left, bottom and right.
    """

    n: int
    seeded: NDArray[np.bool_]
    table: LabelTable
    edges: NDArray[np.int32]
    keys: NDArray[np.int64]
    rims: tuple[tuple[NDArray[np.int32], NDArray[np.int64]], ...]


@dataclass(frozen=True)
class Joined:
    """Instances of a slide, before any is dropped.

    Attributes
    ----------
    offsets : (windows + 1,) int64 array
        What is added to a window's own atoms.
    instance : (m + 1,) int64 array
        Instance of each atom, 1 … n; 0 for background.
    table : LabelTable
        Where the instances lie.
    """

    offsets: NDArray[np.int64]
    instance: NDArray[np.int64]
    table: LabelTable


def window_forest(flooded: Flooded, landscape: Landscape | None, place: Box, slide_width_px: int) -> WindowForest:
    """Keep of a window what the join needs.

    Parameters
    ----------
    flooded : Flooded
        Of the window.
    landscape : Landscape or None
        What was flooded; None where components are not parted.
    place : Box
        Where the window lies.
    slide_width_px : int
        Width of the slide.
    """
    atoms = flooded.atoms

    def keys(y: NDArray[Any], x: NDArray[Any]) -> NDArray[np.int64]:
        at: NDArray[np.int64] = (y.astype(np.int64) + place.top) * slide_width_px + (x + place.left)
        if landscape is None:
            return at
        level = np.where(landscape.seeds[y, x] > 0, 0, landscape.level[y, x]).astype(np.int64)
        return (level << _PLACE_BITS) | at

    rows, columns = np.arange(place.height), np.arange(place.width)
    ends = (
        (np.zeros_like(columns), columns),
        (rows, np.zeros_like(rows)),
        (np.full_like(columns, place.height - 1), columns),
        (rows, np.full_like(rows, place.width - 1)),
    )
    return WindowForest(
        flooded.n,
        flooded.seeded,
        label_table(atoms, flooded.n, place, slide_width_px),
        flooded.edges,
        keys(*np.divmod(flooded.places, place.width)),
        tuple((atoms[y, x], keys(y, x)) for y, x in ends),
    )


def join(grid: WindowGrid, forests: Sequence[WindowForest]) -> Joined:
    """Grow the slide's forest from those of its windows.

    Parameters
    ----------
    grid : WindowGrid
        The windows.
    forests : sequence of WindowForest
        One a window, in the grid's order.

    Returns
    -------
    Joined
        Every component has as many instances as seeds, or one if it has none.
    """
    offsets = np.concatenate([[0], np.cumsum([forest.n for forest in forests], dtype=np.int64)])
    ends, keys = [np.zeros((0, 2), np.int64)], [np.zeros((0, 2), np.int64)]
    for index, forest in enumerate(forests):
        if len(forest.edges):
            ends.append(forest.edges + offsets[index])
            keys.append(forest.keys)
        for other, mine, theirs in (
            (grid.right_of(index), _RIGHT, _LEFT),
            (grid.below(index), _BOTTOM, _TOP),
        ):
            if other is None:
                continue
            (ours, our_keys), (its, its_keys) = forest.rims[mine], forests[other].rims[theirs]
            both = (ours > 0) & (its > 0)
            ends.append(np.stack([ours[both] + offsets[index], its[both] + offsets[other]], axis=1))
            pair = np.stack([our_keys[both], its_keys[both]], axis=1)
            keys.append(np.stack([pair.max(axis=1), pair.min(axis=1)], axis=1))
    edges, weights = np.concatenate(ends), np.concatenate(keys)
    seeded = np.concatenate([[False], *(forest.seeded[1:] for forest in forests)])
    order = np.lexsort((weights[:, 1], weights[:, 0]))
    within = (weights[:, 0] >> _PLACE_BITS) == 0
    instance = _kruskal(edges[order], within[order], seeded)
    table = LabelTable.empty(int(instance.max(initial=0)))
    table.add(instance, LabelTable.stack([forest.table for forest in forests]))
    return Joined(offsets, instance, table)


@numba.njit(nogil=True, cache=True)
def _kruskal(edges: Any, within: Any, seeded: Any) -> Any:
    """Instance of each atom, numbered as they come; edges by rising weight, ``within``: between pixels of one seed."""
    n = seeded.size
    parent = np.arange(n)
    holds = seeded.copy()
    for index in range(len(edges)):
        one, other = find_root(parent, edges[index, 0]), find_root(parent, edges[index, 1])
        if one == other or (holds[one] and holds[other] and not within[index]):
            continue
        parent[one] = other
        holds[other] |= holds[one]
    number = np.zeros(n, np.int64)
    instance = np.zeros(n, np.int64)
    count = 0
    for index in range(1, n):
        root = find_root(parent, index)
        if number[root] == 0:
            count += 1
            number[root] = count
        instance[index] = number[root]
    return instance
