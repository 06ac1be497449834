"""The spanning forest that parts nuclei, made with SciPy's minimum spanning tree: an oracle of another kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree


def in_raster_order(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Labels renumbered by their first pixels: equal for equal partitions."""
    values, first, inverse = np.unique(labels.ravel(), return_index=True, return_inverse=True)
    number = np.zeros(len(values), np.int64)
    order = np.argsort(first)
    order = order[values[order] != 0]
    number[order] = np.arange(1, len(order) + 1)
    return number[inverse].reshape(labels.shape)


def _neighbours(shape: tuple[int, int]) -> NDArray[np.int64]:
    place = np.arange(shape[0] * shape[1]).reshape(shape)
    across = np.stack([place[:, :-1].ravel(), place[:, 1:].ravel()], axis=1)
    down = np.stack([place[:-1].ravel(), place[1:].ravel()], axis=1)
    return np.concatenate([across, down])


def spanning_forest(inside: NDArray[Any], level: NDArray[Any], seeds: NDArray[Any]) -> NDArray[np.int64]:
    """Basins of the seeds' 4-connected pieces; a component without a seed is one.

    All edges have ranks of their own: by the higher pixel's (level, place), then by the lower one's; seeds are joined
    to a root by edges below all others.
    """
    pieces, _ = ndimage.label(seeds)
    flat, piece = inside.ravel() > 0, pieces.ravel()
    keys = [(0 if piece[place] else int(level.flat[place]), place) for place in range(flat.size)]
    ends = [(a, b) for a, b in _neighbours(inside.shape) if flat[a] and flat[b]]
    within = [(a, b) for a, b in ends if piece[a] and piece[a] == piece[b]]
    between = [(a, b) for a, b in ends if not (piece[a] and piece[a] == piece[b])]
    between.sort(key=lambda pair: sorted((keys[pair[0]], keys[pair[1]]), reverse=True))
    root = flat.size
    edges = np.array([(root, place) for place in np.flatnonzero(piece)] + between, np.int64).reshape(-1, 2)
    ranks = np.arange(1, len(edges) + 1, dtype=np.float64)
    tree = minimum_spanning_tree(coo_array((ranks, edges.T), shape=(root + 1, root + 1)).tocsr()).tocoo()
    kept = (tree.row < root) & (tree.col < root)
    joined = np.concatenate([np.stack([tree.row[kept], tree.col[kept]], axis=1), np.array(within).reshape(-1, 2)])
    graph = coo_array((np.ones(len(joined)), joined.T.astype(np.int64)), shape=(root, root))
    _, labels = connected_components(graph, directed=False)
    return in_raster_order(np.where(flat, labels + 1, 0).reshape(inside.shape))
