"""InstanSeg's nuclei of a whole slide, worked through in windows and the same to the byte for any of them.

What a seed claims depends on the maps inside its own square, which lies where it does on the slide whatever window is
worked on. So a window finds every seed that may claim one of its pixels and works out these claims in full; each of its
pixels then goes where the slide's would. Areas of claims and what two of them share are counts of pixels: those of all
windows are added up, and which seeds are one nucleus is decided once, from the slide's own numbers. A nucleus is told
by its seed's place on the slide, so none is cut, met twice or matched.

Memory: the windows in work, and some hundred bytes a seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from slideloom.instances.forest import find_root
from slideloom.instances.instanseg import SEED_CODES, Claims, InstanSegParams, claims_in, reach
from slideloom.instances.instanseg_classifier import SeedClassifier
from slideloom.instances.join import Joined
from slideloom.instances.pool import in_order
from slideloom.instances.stitch import SlideMaps, Stitched, number, working_array
from slideloom.instances.windows import Box, LabelTable

__all__ = ["segment_arrays", "stitch_instanseg"]


def stitch_instanseg(
    maps: SlideMaps,
    params: InstanSegParams,
    classifier: SeedClassifier,
    scratch: Path,
    *,
    name: str = "instanseg",
    window_px: int = 2048,
    workers: int = 1,
    order: Iterable[int] | None = None,
) -> Stitched:
    """Find all instances of a slide.

    Parameters
    ----------
    maps : SlideMaps
        What to read: the array ``name``, (5, H, W) int16, embedding across and down, two sigmas and the seed map.
    params : InstanSegParams
        Thresholds and sizes.
    classifier : SeedClassifier
        Tells a seed's pixels from others.
    scratch : Path
        Folder for a working array, written here; :class:`slideloom.instances.stitch.Stitched` reads it.
    name : str
        The head: ``instanseg`` or ``instanseg_cells``.
    window_px : int
        Side of the windows.
    workers : int
        Windows in work at once.
    order : iterable of int, optional
        In which order windows are worked on; row by row when left out.

    Returns
    -------
    Stitched
        Ids rise in raster order of first pixels. Neither ``window_px`` nor ``workers`` nor ``order`` changes them.
    """
    height, width = maps.arrays[name].shape[-2:]
    shape = int(height), int(width)
    grid, atoms = working_array(scratch, shape, window_px)

    def work(index: int) -> tuple[int, Claims]:
        place = grid.place(index)
        _, read = reach(place, shape, params)
        found = claims_in(maps.read(name, read), read, place, shape, params, classifier)
        if len(found.owners):
            atoms[place.slices].write(found.labels).result()
        return index, replace(found, labels=np.zeros((0, 0), np.int32))

    claims = dict(in_order(work, range(grid.n) if order is None else order, workers))
    joined = _join([claims[index] for index in range(grid.n)], params, 1 / SEED_CODES)
    final, table = number(joined, params.min_area_px)
    return Stitched(grid, atoms, joined.offsets, final, table)


def segment_arrays(
    offset: NDArray[Any],
    sigma: NDArray[Any],
    seed: NDArray[Any],
    classifier: SeedClassifier,
    params: InstanSegParams,
    *,
    coordinates: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> NDArray[np.int32]:
    """Instances of maps that fit in memory, as :func:`stitch_instanseg` finds them.

    Parameters
    ----------
    offset, sigma, seed : (2, H, W), (2, H, W) and (H, W) arrays
        All int16 codes, or all floating point: the offsets in units, 8 · (sigmoid - 0.5) of what the network gives; the
        sigmas; and the seed map, a fifteenth of what the network gives plus 0.5.
    classifier : SeedClassifier
        Tells a seed's pixels from others.
    params : InstanSegParams
        Thresholds and sizes.
    coordinates : (W,) and (H,) float32 arrays, optional
        Positions of columns and rows in units that are added to floating-point offsets in place of
        ``params.unit`` a pixel: with the original's own, its rounding is met to the bit.

    Returns
    -------
    (H, W) int32 array
        0 background; ids rise in raster order of first pixels.
    """
    codes = all(values.dtype == np.int16 for values in (offset, sigma, seed))
    maps = np.concatenate([offset, sigma, seed[None]]).astype(np.int16 if codes else np.float32)
    if coordinates is not None:
        across, down = coordinates
        maps[0] += across[None, :]
        maps[1] += down[:, None]
        params = replace(params, unit=0.0)
    height, width = seed.shape
    whole = Box(0, 0, height, width)
    found = claims_in(maps, whole, whole, (height, width), params, classifier)
    final, _ = number(_join([found], params, 1 / SEED_CODES if codes else 1.0), params.min_area_px)
    labels: NDArray[np.int32] = final.astype(np.int32)[found.labels]
    return labels


def _join(windows: Sequence[Claims], params: InstanSegParams, scale: float) -> Joined:
    """Decide which seeds are one nucleus.

    Parameters
    ----------
    windows : sequence of Claims
        Their boxes cover the slide once.
    params : InstanSegParams
        What overlaps enough and what is dropped.
    scale : float
        What the sums of the seed map are multiplied by.

    Returns
    -------
    Joined
        Labels of a window are its atoms.
    """
    seeds, which = np.unique(np.concatenate([claims.seeds for claims in windows]), return_inverse=True)
    which = which.reshape(-1)
    area, total = np.zeros(len(seeds), np.int64), np.zeros(len(seeds), np.float64)
    np.add.at(area, which, np.concatenate([claims.area for claims in windows]))
    np.add.at(total, which, np.concatenate([claims.total for claims in windows]))
    ends = np.searchsorted(seeds, np.concatenate([claims.pairs for claims in windows]))
    # Two seeds are near each other in place but not in number: the pair as one key.
    keys, which = np.unique(ends[:, 0] * len(seeds) + ends[:, 1], return_inverse=True)
    shared = np.zeros(len(keys), np.int64)
    np.add.at(shared, which.reshape(-1), np.concatenate([claims.shared for claims in windows]))
    ends = np.stack([keys // max(len(seeds), 1), keys % max(len(seeds), 1)], axis=1)
    # float32, as in the original: an overlap of the threshold's own value is not greater.
    union = area[ends[:, 0]] + area[ends[:, 1]] - shared
    overlap = shared.astype(np.float32) / union.astype(np.float32)
    first = _first_of_each(ends[overlap > np.float32(params.overlap_threshold)], len(seeds))
    good = (area > params.min_claim_px) & (total * scale > np.where(area > 0, params.min_mean, 0) * area)
    if params.shifted_filters:
        claiming = good[area > 0]
        good = np.concatenate([claiming, np.ones(len(seeds) - len(claiming), np.bool_)])
    kept = np.flatnonzero(good & (first == np.arange(len(seeds))))
    number = np.zeros(len(seeds), np.int64)
    number[kept] = np.arange(1, len(kept) + 1)
    owners = np.concatenate([claims.owners for claims in windows])
    instance = np.concatenate([[0], number[first[np.searchsorted(seeds, owners)]]])
    table = LabelTable.empty(len(kept))
    table.add(instance, LabelTable.stack([claims.table for claims in windows]))
    table.area[0] = 0
    offsets = np.concatenate([[0], np.cumsum([len(claims.owners) for claims in windows], dtype=np.int64)])
    return Joined(offsets, instance, table)


@numba.njit(nogil=True, cache=True)
def _first_of_each(edges: Any, count: int) -> Any:
    """Lowest seed that each of 0 … count - 1 is joined to."""
    parent = np.arange(count)
    for index in range(len(edges)):
        one, other = find_root(parent, edges[index, 0]), find_root(parent, edges[index, 1])
        if one < other:
            parent[other] = one
        else:
            parent[one] = other
    for index in range(count):
        parent[index] = find_root(parent, index)
    return parent
