"""The flood that parts nuclei: a minimum spanning forest with the seeds for roots, which windows do not change.

Every foreground pixel is a node with a *key*: its level, then its place in raster order; no two are equal. An edge
between two neighbours weighs what its higher pixel weighs, and the lower pixel's key decides between edges of one
higher pixel. So all edges of a slide stand in one total order, in which their minimum spanning forest with the seeds
for roots is unique. A pixel belongs to the seed whose tree it is in: that is a watershed, with every tie decided.

What makes it fit for slides is that the forest of a whole can be put together from forests of its parts:

* an edge that closes a cycle inside a window, as its heaviest one, is in no minimum spanning forest of the slide (two
  seeds count as joined);
* the lightest edge that leaves a set of pixels which no other window touches is in the slide's forest.

So a window grows its own forest by Kruskal's algorithm, and decides all but the edges between two sets that both hold
a *terminal*: a seed, or a pixel beside another window. Pixels that hang together whatever other windows hold are an
*atom*, with one terminal at most. The undecided edges, and those across the seams, are fewer than the terminals; the
slide's forest is grown from them alone (:mod:`slideloom.instances.join`).

Sources: Kruskal, On the shortest spanning subtree of a graph and the traveling salesman problem, Proceedings of the
American Mathematical Society 7 (1956); Cousty et al., Watershed cuts: minimum spanning forests and the drop of water
principle, IEEE Transactions on Pattern Analysis and Machine Intelligence 31 (2009).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["Flooded", "Seams", "find_root", "flood"]

#: Whether there are other windows beyond a window's top, left, bottom and right.
Seams = tuple[bool, bool, bool, bool]
_PLACE_BITS = 32
_TERMINAL, _SEEDED = 1, 2


@dataclass(frozen=True)
class Flooded:
    """A window's forest, as far as the window alone decides it.

    Attributes
    ----------
    atoms : (H, W) int32 array
        Atom of each pixel, 1 … n; 0 is background.
    n : int
        Number of atoms.
    seeded : (n + 1,) bool array
        Whether an atom holds a seed.
    edges : (k, 2) int32 array
        Undecided edges of the forest: the atoms that they would join.
    places : (k, 2) int64 array
        Their pixels, higher key first: y · W + x in the window.
    """

    atoms: NDArray[np.int32]
    n: int
    seeded: NDArray[np.bool_]
    edges: NDArray[np.int32]
    places: NDArray[np.int64]


def flood(
    inside: NDArray[np.uint8],
    level: NDArray[np.int32] | None = None,
    seeds: NDArray[np.uint8] | None = None,
    seams: Seams = (False, False, False, False),
) -> Flooded:
    """Grow the forest of a window.

    Parameters
    ----------
    inside : (H, W) uint8 array
        1 in the foreground, 0 outside.
    level : (H, W) int32 array, optional
        What is flooded, low places first; above 0. Left out with ``seeds``.
    seeds : (H, W) uint8 array, optional
        1 in the seeds, whose 4-connected pieces are the roots. None: a component of the foreground is one atom,
        whatever it touches.
    seams : tuple of bool
        Where other windows follow.

    Returns
    -------
    Flooded
        Without seams, no two atoms of one component are without a seed, and nothing is undecided but edges between
        seeded and unseeded atoms: there are none.

    Notes
    -----
    The level of a seed's pixels is taken for 0, below all others. Only components that hold several seeds or lie at a
    seam are flooded; the others are one atom each.
    """
    height, width = inside.shape
    parts, n_parts, touching = _components(inside, seams)
    if seeds is None or level is None:
        return _whole(parts, n_parts)
    roots, n_seeds = _roots(seeds)
    seeded_at = np.flatnonzero(roots)
    owner = np.zeros(n_seeds + 1, np.int32)
    owner[roots.reshape(-1)[seeded_at]] = parts.reshape(-1)[seeded_at]
    count = np.bincount(owner[1:], minlength=n_parts + 1)
    flooded = touching | (count > 1)
    flooded[0] = False
    # The atoms of components that are not flooded come last.
    whole = np.where(flooded, 0, np.cumsum(~flooded) - 1).astype(np.int32)
    whole[0] = 0
    seeded_whole = (count > 0)[np.flatnonzero(~flooded)[1:]]
    places = np.flatnonzero((flooded[parts] & (roots == 0)).reshape(-1))
    keys = (level.reshape(-1)[places].astype(np.int64) << _PLACE_BITS) | places
    keys.sort()
    node = np.where(flooded[parts], roots, 0).reshape(-1)
    atom_of, n_atoms, kind, edges, where = _grow(keys, node, n_seeds, height, width, np.array(seams))
    # Seeds of components that are not flooded have no pixel among the nodes.
    used = np.zeros(n_atoms + 1, bool)
    used[atom_of[node]] = True
    used[0] = False
    number = np.where(used, np.cumsum(used), 0).astype(np.int32)
    n_used = int(used.sum())
    atoms = number[atom_of[node]].reshape(height, width)
    easy = whole[parts]
    np.add(atoms, easy + np.int32(n_used), out=atoms, where=easy > 0)
    seeded = np.concatenate([[False], (kind[1:] == _SEEDED)[used[1:]], seeded_whole])
    return Flooded(atoms, n_used + len(seeded_whole), seeded, number[edges], where)


def _components(inside: NDArray[np.uint8], seams: Seams) -> tuple[NDArray[np.int32], int, NDArray[np.bool_]]:
    """4-connected components, how many, and which of them reach a seam."""
    n_parts, found = cv2.connectedComponents(inside, connectivity=4, ltype=cv2.CV_32S)
    parts = np.asarray(found, dtype=np.int32)
    touching = np.zeros(n_parts, bool)
    for seam, line in zip(seams, (parts[0], parts[:, 0], parts[-1], parts[:, -1]), strict=True):
        if seam:
            touching[line] = True
    touching[0] = False
    return parts, n_parts - 1, touching


def _whole(parts: NDArray[np.int32], n_parts: int) -> Flooded:
    return Flooded(
        parts, n_parts, np.zeros(n_parts + 1, bool), np.zeros((0, 2), np.int32), np.zeros((0, 2), np.int64)
    )


def _roots(seeds: NDArray[np.uint8]) -> tuple[NDArray[np.int32], int]:
    count, found = cv2.connectedComponents(seeds, connectivity=4, ltype=cv2.CV_32S)
    return np.asarray(found, dtype=np.int32), count - 1


@numba.njit(nogil=True, cache=True)
def find_root(parent: Any, index: int) -> int:
    """Root of a node, the path to it halved."""
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


@numba.njit(nogil=True, cache=True)
def _grow(
    keys: Any, node: Any, n_seeds: int, height: int, width: int, seams: Any
) -> tuple[Any, int, Any, Any, Any]:
    """Kruskal's algorithm on pixels by rising key.

    Nodes are 1 … n_seeds, the seeds, and on from there the pixels in their order; 0 is background. ``node`` holds the
    seeds' pixels when it comes, and every flooded pixel when it goes.
    """
    n = keys.size
    total = n_seeds + n + 1
    tree = np.arange(total)  # what the window's forest joins
    atom = np.arange(total)  # of that, what is decided
    holds = np.zeros(total, np.uint8)  # by root of a tree
    holds[1 : n_seeds + 1] = _SEEDED
    most = n_seeds + 2 * (height + width)
    edges = np.empty((most, 2), np.int64)
    where = np.empty((most, 2), np.int64)
    n_edges = 0
    terminal = np.zeros(total, np.bool_)
    # Neighbours that come before a pixel: their order, node and place.
    rank = np.empty(4, np.int64)
    beside = np.empty(4, np.int64)
    at = np.empty(4, np.int64)
    places = np.int64(height) * width
    for index in range(n):
        place = keys[index] & ((np.int64(1) << _PLACE_BITS) - 1)
        y, x = place // width, place % width
        me = n_seeds + 1 + index
        if (
            (seams[0] and y == 0)
            or (seams[1] and x == 0)
            or (seams[2] and y == height - 1)
            or (seams[3] and x == width - 1)
        ):
            holds[me] = _TERMINAL
            terminal[me] = True
        node[place] = me
        found = 0
        for side in range(4):
            if side == 0:
                if y == 0:
                    continue
                other = place - width
            elif side == 1:
                if x == 0:
                    continue
                other = place - 1
            elif side == 2:
                if x == width - 1:
                    continue
                other = place + 1
            else:
                if y == height - 1:
                    continue
                other = place + width
            its = node[other]
            if its == 0:
                continue
            order = other if its <= n_seeds else places + its
            slot = found
            while slot > 0 and rank[slot - 1] > order:
                rank[slot], beside[slot], at[slot] = rank[slot - 1], beside[slot - 1], at[slot - 1]
                slot -= 1
            rank[slot], beside[slot], at[slot] = order, its, other
            found += 1
        for slot in range(found):
            its = beside[slot]
            mine, theirs = find_root(tree, me), find_root(tree, its)
            if mine == theirs or (holds[mine] == _SEEDED and holds[theirs] == _SEEDED):
                continue
            if holds[mine] != 0 and holds[theirs] != 0:
                edges[n_edges, 0], edges[n_edges, 1] = me, its
                where[n_edges, 0], where[n_edges, 1] = place, at[slot]
                n_edges += 1
            else:
                atom[find_root(atom, me)] = find_root(atom, its)
            held = max(holds[mine], holds[theirs])
            tree[mine] = theirs
            holds[theirs] = held
    # Atoms numbered in the order of their first nodes, and what each holds.
    number = np.zeros(total, np.int32)
    kind = np.zeros(total, np.uint8)
    atom_of = np.zeros(total, np.int32)
    count = 0
    for index in range(1, total):
        root = find_root(atom, index)
        if number[root] == 0:
            count += 1
            number[root] = count
        atom_of[index] = number[root]
        if index <= n_seeds:
            kind[number[root]] = _SEEDED
        elif terminal[index] and kind[number[root]] == 0:
            kind[number[root]] = _TERMINAL
    joined = np.empty((n_edges, 2), np.int64)
    for index in range(n_edges):
        joined[index, 0] = atom_of[edges[index, 0]]
        joined[index, 1] = atom_of[edges[index, 1]]
    return atom_of, count, kind[: count + 1], joined, where[:n_edges]
