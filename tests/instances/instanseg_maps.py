"""InstanSeg's maps drawn for tests, and its rules written plainly, one pixel after the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from slideloom.instances.instanseg import OFFSET_CODES, SEED_CODES, SIGMA_CODES, InstanSegParams
from slideloom.instances.instanseg_classifier import SeedClassifier

EIGHT = np.ones((3, 3), bool)
CODES = np.array([OFFSET_CODES, OFFSET_CODES, SIGMA_CODES, SIGMA_CODES, SEED_CODES])


def a_classifier(seed: int | None = None) -> SeedClassifier:
    """Near embeddings are one nucleus; with a seed, weights shaken."""
    state = {
        "fc1.weight": np.array([[1, 0, 0, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, -1, 0, 0], [0, 0, 1, 0.2]]),
        "fc1.bias": np.zeros(5),
        "fc2.weight": np.array([[1, 1, 1, 1, 0], [0, 0, 0, 0, 1], *np.zeros((3, 5))]),
        "fc2.bias": np.zeros(5),
        "fc3.weight": np.array([[-4, 1, 0, 0, 0]]),
        "fc3.bias": np.zeros(1),
    }
    if seed is not None:
        rng = np.random.default_rng(seed)
        state = {name: values + rng.normal(0, 0.1, values.shape) for name, values in state.items()}
    return SeedClassifier.of_state(state)


def a_map(seed: int, shape: tuple[int, int], noise: float = 0.3) -> NDArray[np.int16]:
    """Codes (5, H, W) of noisy maps of crowded discs, with many seeds, fragments and holes."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    count = max(1, shape[0] * shape[1] // 120)
    centres = rng.uniform(0, 1, (count, 2)) * shape
    away = np.hypot(y[..., None] - centres[:, 0], x[..., None] - centres[:, 1])
    nearest, least = away.argmin(axis=-1), away.min(axis=-1)
    maps = np.empty((5, *shape))
    maps[0] = (centres[nearest, 1] - x) / 4
    maps[1] = (centres[nearest, 0] - y) / 4
    maps[2] = np.where(least < 5, 3, 0.5)
    maps[3] = 0
    maps[4] = np.clip(1 - least / 7, 0, 1)
    maps += rng.normal(0, noise, maps.shape) * np.array([1, 1, 1, 1, 0.3])[:, None, None]
    limits = np.array([4, 4, 8, 8, 2])[:, None, None]
    codes: NDArray[np.int16] = np.rint(np.clip(maps, -limits, limits) * CODES[:, None, None]).astype(np.int16)
    return codes


def decoded(codes: NDArray[np.int16]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = codes / CODES[:, None, None]
    return values


def segmented_plainly(
    codes: NDArray[np.int16], network: SeedClassifier, params: InstanSegParams, min_margin: float = 1e-5
) -> NDArray[np.int64] | None:
    """The rules in float64 with SciPy; None where a number lies too near a threshold for float32 to be trusted."""
    maps = decoded(codes)
    shape = maps.shape[1:]
    side = min(params.window_px, *shape)
    side -= side % 2
    size = 2 * params.peak_distance_px + 1
    highest = ndimage.maximum_filter(codes[4], size, mode="constant", cval=-(2**15))
    seeds = []
    for y, x in np.argwhere((codes[4] == highest) & (maps[4] > params.seed_threshold)):
        low_y, low_x = max(y - params.peak_distance_px, 0), max(x - params.peak_distance_px, 0)
        around = codes[4, low_y : y + params.peak_distance_px + 1, low_x : x + params.peak_distance_px + 1]
        first = np.unravel_index(around.argmax(), around.shape)
        if (first[0] + low_y, first[1] + low_x) == (y, x):
            seeds.append((int(y), int(x)))
    best, owner = np.zeros(shape), np.zeros(shape, np.int64)
    claims = []
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    weights = [w.astype(np.float64) for w in network.weights]
    biases = [b.astype(np.float64) for b in network.biases]
    for number, (y, x) in enumerate(seeds, 1):
        top, left = (min(max(at - side // 2, 0), most - side) for at, most in zip((y, x), shape, strict=True))
        window = np.zeros(shape, bool)
        window[top : top + side, left : left + side] = True
        across = maps[0] - maps[0, y, x] + params.unit * (columns - x)
        down = maps[1] - maps[1, y, x] + params.unit * (rows - y)
        found = np.stack([across, down, maps[2], maps[3]], axis=-1)
        for layer in (0, 1):
            found = np.maximum(found @ weights[layer].T + biases[layer], 0)
        chance = 1 / (1 + np.exp(-(found @ weights[2].T + biases[2])[..., 0]))
        if np.abs(chance[window] - params.mask_threshold).min(initial=1) < min_margin:
            return None
        mask = (chance >= params.mask_threshold) & window
        if params.cleanup:
            pieces, _ = ndimage.label(mask, EIGHT)
            near = pieces[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            mask = np.isin(pieces, near[near > 0])
            hole = holes_plainly(mask[top : top + side, left : left + side])
            chance[top : top + side, left : left + side][hole] = params.mask_threshold
            mask[top : top + side, left : left + side] |= hole
        # Ties in float32, which the first seed wins, are no matter of float64.
        rival = mask & (best > 0)
        if (np.abs(chance - best)[rival] < min_margin).any():
            return None
        better = mask & (chance > best)
        best[better], owner[better] = chance[better], number
        claims.append(mask)
    areas = [int(mask.sum()) for mask in claims]
    edges = [
        (i, j)
        for i in range(len(claims))
        for j in range(i)
        if (both := int((claims[i] & claims[j]).sum()))
        and np.float32(both) / np.float32(areas[i] + areas[j] - both) > np.float32(params.overlap_threshold)
    ]
    ends = np.array(edges, int).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(claims), len(claims)))
    part = connected_components(graph, directed=False)[1] if claims else np.zeros(0, int)
    first_of = [int(np.flatnonzero(part == own)[0]) for own in part]
    kept = [areas[first] > params.min_claim_px for first in first_of]
    final = np.array([0, *(first + 1 if keep else 0 for first, keep in zip(first_of, kept, strict=True))])
    labels: NDArray[np.int64] = final[owner]
    for label in np.unique(labels):
        if (labels == label).sum() < params.min_area_px:
            labels[labels == label] = 0
    return labels


def holes_plainly(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Background pieces, corners joined, with no pixel more than 3 pixels from the mask."""
    near = ndimage.binary_dilation(mask, EIGHT, iterations=3) if mask.any() else np.zeros_like(mask)
    pieces, count = ndimage.label(~mask, EIGHT)
    reached = np.unique(pieces[~near])
    found: NDArray[np.bool_] = np.isin(pieces, np.setdiff1d(np.arange(1, count + 1), reached))
    return found
