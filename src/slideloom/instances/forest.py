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
    parts, n_parts, touching = _components(inside, seams)
    if seeds is None or level is None:
        return _whole(parts, n_parts)
    n_seeds, roots = cv2.connectedComponents(seeds, connectivity=4, ltype=cv2.CV_32S)
    keys, n_keys, node, whole, kinds, n_whole = _prepare(parts, touching, np.asarray(roots), n_seeds, level)
    keys = np.sort(keys[:n_keys])
    height, width = inside.shape
    at_seam = np.array(seams)
    atom, ends, places, n_edges = _grow(keys, node, n_seeds - 1, height, width, at_seam)
    seeded = np.concatenate([kinds[: n_whole + 1], np.zeros(atom.size, bool)])
    ends, places = ends[:n_edges].copy(), places[:n_edges].copy()
    count = _paint(node, n_seeds - 1, atom, parts.reshape(-1), whole, seeded, n_whole, ends)
    return Flooded(parts, count, seeded[: count + 1].copy(), ends, places)


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
    return Flooded(parts, n_parts, np.zeros(n_parts + 1, bool), np.zeros((0, 2), np.int32), np.zeros((0, 2), np.int64))


@numba.njit(nogil=True, cache=True)
def find_root(parent: Any, index: Any) -> Any:
    """Root of a node, the path to it halved."""
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


@numba.njit(nogil=True, cache=True)
def _prepare(parts: Any, touching: Any, roots: Any, n_seeds: int, level: Any) -> tuple[Any, int, Any, Any, Any, int]:
    """What has to be flooded.

    Returns the keys of the pixels to flood, unsorted, and how many; the node of every pixel, so far those of seeds; for
    each component its atom if it is one as a whole, 1 … k, else 0; whether atoms 0 … k hold a seed; and k.
    """
    part_of, root_of, level_of = parts.reshape(-1), roots.reshape(-1), level.reshape(-1)
    counted = np.zeros(n_seeds, np.bool_)
    count = np.zeros(touching.size, np.int32)
    for place in range(part_of.size):
        root = root_of[place]
        if root and not counted[root]:
            counted[root] = True
            count[part_of[place]] += 1
    whole = np.zeros(touching.size, np.int32)
    seeded = np.zeros(touching.size, np.bool_)
    n_whole = 0
    for part in range(1, touching.size):
        if not touching[part] and count[part] < 2:
            n_whole += 1
            whole[part] = n_whole
            seeded[n_whole] = count[part] == 1
    keys = np.empty(part_of.size, np.int64)
    node = np.zeros(part_of.size, np.int32)
    n = 0
    for place in range(part_of.size):
        part = part_of[place]
        if part == 0 or whole[part] != 0:
            continue
        if root_of[place]:
            node[place] = root_of[place]
        else:
            keys[n] = (np.int64(level_of[place]) << _PLACE_BITS) | place
            n += 1
    return keys, n, node, whole, seeded, n_whole


@numba.njit(nogil=True, cache=True)
def _grow(keys: Any, node: Any, n_seeds: int, height: int, width: int, seams: Any) -> tuple[Any, Any, Any, int]:
    """Kruskal's algorithm on pixels by rising key.

    Nodes are 1 … n_seeds, the seeds, and on from there the pixels in their order; 0 is background. ``node`` holds the
    seeds' pixels when it comes, and every flooded pixel when it goes. Returns the trees of what is decided, and the
    nodes and places of undecided edges, and how many.
    """
    total = n_seeds + keys.size + 1
    tree = np.empty(total, np.int32)  # what the window's forest joins
    atom = np.empty(total, np.int32)  # of that, what is decided
    holds = np.zeros(total, np.uint8)  # by root of a tree
    for index in range(total):
        tree[index] = index
        atom[index] = index
        if 0 < index <= n_seeds:
            holds[index] = _SEEDED
    most = n_seeds + 2 * (height + width)
    ends = np.empty((most, 2), np.int32)
    places = np.empty((most, 2), np.int64)
    n_edges = 0
    # Neighbours that come before a pixel: their order, node and place.
    rank = np.empty(4, np.int64)
    beside = np.empty(4, np.int64)
    at = np.empty(4, np.int64)
    n_places = np.int64(height) * width
    for index in range(keys.size):
        place = keys[index] & ((np.int64(1) << _PLACE_BITS) - 1)
        y = place // width
        x = place - y * width
        me = np.int64(n_seeds + 1 + index)
        if (
            (seams[0] and y == 0)
            or (seams[1] and x == 0)
            or (seams[2] and y == height - 1)
            or (seams[3] and x == width - 1)
        ):
            holds[me] = _TERMINAL
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
            its = np.int64(node[other])
            if its == 0:
                continue
            order = other if its <= n_seeds else n_places + its
            slot = found
            while slot > 0 and rank[slot - 1] > order:
                rank[slot] = rank[slot - 1]
                beside[slot] = beside[slot - 1]
                at[slot] = at[slot - 1]
                slot -= 1
            rank[slot] = order
            beside[slot] = its
            at[slot] = other
            found += 1
        for slot in range(found):
            its = beside[slot]
            mine = find_root(tree, me)
            theirs = find_root(tree, its)
            if mine == theirs or (holds[mine] == _SEEDED and holds[theirs] == _SEEDED):
                continue
            if holds[mine] != 0 and holds[theirs] != 0:
                ends[n_edges, 0] = me
                ends[n_edges, 1] = its
                places[n_edges, 0] = place
                places[n_edges, 1] = at[slot]
                n_edges += 1
            else:
                atom[find_root(atom, me)] = find_root(atom, its)
            tree[mine] = theirs
            if holds[mine] > holds[theirs]:
                holds[theirs] = holds[mine]
    return atom, ends, places, n_edges


@numba.njit(nogil=True, cache=True)
def _paint(node: Any, n_seeds: int, atom: Any, labels: Any, whole: Any, seeded: Any, n_whole: int, ends: Any) -> int:
    """Number the atoms, whole components first, then the others in raster order; return how many.

    ``labels`` holds components when it comes and atoms when it goes, ``ends`` nodes and atoms; ``seeded`` is filled.
    """
    number = np.zeros(atom.size, np.int32)
    count = n_whole
    for place in range(node.size):
        its = np.int64(node[place])
        if its == 0:
            labels[place] = whole[labels[place]]
            continue
        root = find_root(atom, its)
        if number[root] == 0:
            count += 1
            number[root] = count
        labels[place] = number[root]
        if its <= n_seeds:
            seeded[number[root]] = True
    for index in range(len(ends)):
        for side in range(2):
            ends[index, side] = number[find_root(atom, np.int64(ends[index, side]))]
    return count
