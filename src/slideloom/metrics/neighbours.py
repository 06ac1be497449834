"""Nearest neighbours: how far the nuclei of one class lie from those of another.

Centroids, straight lines, exact. Nothing corrects for the border: a nucleus at the edge of what was predicted may have
a nearer neighbour that no one saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from slideloom.metrics.cell_groups import ALL, Group, Nuclei

__all__ = ["nearest_distances", "neighbour_rows"]

Points = NDArray[np.float64]


def nearest_distances(points: Points, others: Points, *, workers: int = 1) -> Points:
    """Distance of each point to the nearest of other points.

    Parameters
    ----------
    points, others : (n, 2), (m, 2) float64 array
        Places, in any unit; two sets without a point in common. For distances within one set see
        :func:`neighbour_rows`.
    workers : int
        Threads; they change no value.

    Returns
    -------
    (n,) float64 array
        In the unit of the places.

    Raises
    ------
    ValueError
        There are points, and no other points.

    Examples
    --------
    >>> nearest_distances(np.array([[0.0, 0.0], [9.0, 0.0]]), np.array([[3.0, 4.0], [9.0, 1.0]])).tolist()
    [5.0, 1.0]
    """
    if len(points) and not len(others):
        raise ValueError("nothing to be near to")
    return _query(cKDTree(others), points, 1, workers) if len(points) else np.empty(0)


def neighbour_rows(nuclei: Nuclei, *, workers: int = 1) -> list[dict[str, Any]]:
    """Rows of ``neighbours.parquet``.

    Parameters
    ----------
    nuclei : Nuclei
        Of a slide.
    workers : int
        Threads; they change no value.

    Returns
    -------
    list of dict
        From any nucleus to any other first; then from each class to each, its own included. Nuclei whose class is
        background are in the first row alone. Without the slide.

    Notes
    -----
    A tree a class; every nucleus is looked up in each: O(k n log n) for n nuclei of k classes.
    """
    groups = [group for group in nuclei.groups() if group.class_id != 0]
    places = np.stack([nuclei.x_um, nuclei.y_um], axis=1)
    found: dict[tuple[int, int], dict[str, float | None]] = {}
    for to, target in enumerate(groups):
        tree = cKDTree(places[target.members]) if len(target) else None
        for at, source in enumerate(groups):
            if (source.scope == ALL) == (target.scope == ALL):
                found[at, to] = _figures(tree, places[source.members], at == to, workers)
    return [
        {"scope": groups[at].scope, **groups[at].named(), **groups[to].named("to_"), **_counts(groups, at, to), **row}
        for (at, to), row in sorted(found.items())
    ]


def _counts(groups: Sequence[Group], at: int, to: int) -> dict[str, int]:
    return {"n": len(groups[at]), "n_to": len(groups[to])}


def _figures(tree: cKDTree | None, points: Points, same: bool, workers: int) -> dict[str, float | None]:
    """Mean and median of the distances; a nucleus is not its own neighbour."""
    if tree is None or not len(points) or (same and len(points) < 2):
        return {"distance_mean_um": None, "distance_median_um": None}
    # The nearest but one: the nearest is the nucleus itself, or one at the same place, which is as far away.
    distances = _query(tree, points, 2 if same else 1, workers)
    return {"distance_mean_um": float(distances.mean()), "distance_median_um": float(np.median(distances))}


def _query(tree: cKDTree, points: Points, rank: int, workers: int) -> Points:
    """Distance to the nearest (rank 1) or second nearest (rank 2) point of the tree."""
    distances: Points = tree.query(points, k=[rank], workers=workers)[0][:, 0]
    return distances
