"""Which pixels the seeds of InstanSeg claim, compiled.

A seed is the highest place of the seed map around. Inside a square window it asks the classifier of every pixel; with
the clean-up it asks only those that it can walk to, keeps what it reached and fills its holes. A pixel goes to the seed
that gives it the highest probability; every claim is kept as runs of pixels, so that its overlap with others is counted
without looking at an image again.

Source: Goldsborough et al. (2024) and the program published with it.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from slideloom.instances.instanseg_classifier import logit, logits_of_row, probability

__all__ = ["claim", "find_seeds", "holes", "shared_pixels"]

#: Background within so many pixels of a claim that reaches none farther away is a hole.
_NEAR_PX = 3
_OUTSIDE = 255
_CLAIMED = 0


@numba.njit(nogil=True, cache=True)
def find_seeds(level: Any, floor: float, reach: int, top: int, left: int, bottom: int, right: int) -> Any:
    """Highest pixels of a map.

    Parameters
    ----------
    level : (H, W) array
        What lies beyond it counts for nothing.
    floor : float
        Seeds are higher.
    reach : int
        A pixel is a seed if no pixel so far to the sides, up or down is higher, and none before it in raster order as
        high.
    top, left, bottom, right : int
        Where to look for seeds, past-the-end exclusive.

    Returns
    -------
    (n, 2) int64 array
        y, x in raster order.
    """
    height, width = level.shape
    # No two seeds lie in one square of that side.
    most = (-(-(bottom - top) // (reach + 1))) * (-(-(right - left) // (reach + 1)))
    found = np.empty((most, 2), np.int64)
    count = 0
    for y in range(top, bottom):
        for x in range(left, right):
            own = level[y, x]
            if not own > floor:
                continue
            highest = True
            # Near ones first: most pixels have a higher one beside them.
            for around in (1, reach):
                for other_y in range(max(y - around, 0), min(y + around + 1, height)):
                    for other_x in range(max(x - around, 0), min(x + around + 1, width)):
                        other = level[other_y, other_x]
                        earlier = other_y < y or (other_y == y and other_x < x)
                        if other > own or (other == own and earlier):
                            highest = False
                            break
                    if not highest:
                        break
                if not highest:
                    break
            if highest:
                found[count, 0], found[count, 1] = y, x
                count += 1
    return found[:count].copy()


@numba.njit(nogil=True, cache=True)
def claim(
    maps: Any, scales: Any, level: Any, seeds: Any, starts: Any, side: int, network: Any,
    least: Any, hole: Any, clean: bool, top: int, left: int, bottom: int, right: int,
) -> Any:  # fmt: skip
    """What every seed claims inside a box.

    Parameters
    ----------
    maps : (4, H, W) array
        Embedding across and down, and two sigmas.
    scales : (3,) float32 array
        What the embedding and the sigmas are multiplied by, and what one pixel adds to a difference of embeddings.
    level : (H, W) array
        The seed map, added up over each claim.
    seeds, starts : (n, 2) int64 array
        y, x of the seeds and of the first pixels of their windows, all in the maps.
    side : int
        Of the windows, pixels.
    network : tuple of float32 arrays
        :attr:`slideloom.instances.instanseg_classifier.SeedClassifier.arrays`.
    least, hole : float32
        Lowest logit of a claimed pixel; probability that filled holes get, negative if they are not claimed.
    clean : bool
        Whether only the piece at the seed counts, its holes filled.
    top, left, bottom, right : int
        The box; what is claimed outside counts for nothing.

    Returns
    -------
    owner : (bottom - top, right - left) int32 array
        Seed of each pixel, 1 … n; 0 where there is none. Of equal probabilities the first seed's counts.
    runs : (k, 3) int32 array
        Row, first column, column past the last, in the box: all claims, one seed after the other, in raster order.
    begin : (n + 1,) int64 array
        First run of each seed.
    area : (n,) int64 array
        Pixels claimed.
    total : (n,) float64 array
        Sum of the seed map over them; exact for integers.
    """
    one, first, two, second, last = network
    count = len(seeds)
    owner = np.zeros((bottom - top, right - left), np.int32)
    best = np.full(owner.shape, np.float32(-1))
    area, total = np.zeros(count, np.int64), np.zeros(count, np.float64)
    runs, begin, n_runs = np.empty((1024, 3), np.int32), np.zeros(count + 1, np.int64), 0
    stamp = np.zeros((side, side), np.int64)
    logits = np.empty((side, side), np.float32)
    distance = np.empty((side, side), np.uint8)
    queue = np.empty(side * side, np.int64)
    row, features = np.empty((first.size + 1, side), np.float32), np.empty((4, side), np.float32)
    answers, hidden = np.empty(side, np.float32), np.empty((2, first.size), np.float32)
    for index in range(count):
        seed_y, seed_x, y0, x0 = seeds[index, 0], seeds[index, 1], starts[index, 0], starts[index, 1]
        seed_across, seed_down = np.float32(maps[0, seed_y, seed_x]), np.float32(maps[1, seed_y, seed_x])
        # The part of the window that is looked at: with the clean-up where the claim can be, else the box's share.
        from_y, to_y, from_x, to_x = max(top - y0, 0), min(bottom - y0, side), max(left - x0, 0), min(right - x0, side)
        inside, refused = 2 * index + 1, 2 * index + 2
        if clean:
            low_y, high_y, low_x, high_x = side, -1, side, -1
            begun, ended = 0, 0
            queue[0] = -1
            while begun <= ended:
                if begun == 0:
                    # The seed itself need not be claimed: its neighbours count as reached.
                    y, x = seed_y - y0, seed_x - x0
                else:
                    y, x = queue[begun - 1] // side, queue[begun - 1] % side
                begun += 1
                for near_y in range(max(y - 1, 0), min(y + 2, side)):
                    for near_x in range(max(x - 1, 0), min(x + 2, side)):
                        if stamp[near_y, near_x] >= inside:
                            continue
                        at_y, at_x = near_y + y0, near_x + x0
                        across = (np.float32(maps[0, at_y, at_x]) - seed_across) * scales[0]
                        down = (np.float32(maps[1, at_y, at_x]) - seed_down) * scales[0]
                        value = logit(
                            across + np.float32(at_x - seed_x) * scales[2],
                            down + np.float32(at_y - seed_y) * scales[2],
                            np.float32(maps[2, at_y, at_x]) * scales[1],
                            np.float32(maps[3, at_y, at_x]) * scales[1],
                            one, first, two, second, last, hidden,
                        )  # fmt: skip
                        if value < least:
                            stamp[near_y, near_x] = refused
                            continue
                        stamp[near_y, near_x], logits[near_y, near_x] = inside, value
                        queue[ended] = near_y * side + near_x
                        ended += 1
                        low_y, high_y = min(low_y, near_y), max(high_y, near_y)
                        low_x, high_x = min(low_x, near_x), max(high_x, near_x)
            if ended == 0:
                begin[index + 1] = n_runs
                continue
            # Farther away nothing can be a hole: all of it is reached from beyond.
            low_y, high_y = max(low_y - _NEAR_PX - 1, 0), min(high_y + _NEAR_PX + 2, side)
            low_x, high_x = max(low_x - _NEAR_PX - 1, 0), min(high_x + _NEAR_PX + 2, side)
            for y in range(low_y, high_y):
                for x in range(low_x, high_x):
                    distance[y, x] = _CLAIMED if stamp[y, x] == inside else _NEAR_PX + 1
            if hole >= 0:
                _find_outside(distance, low_y, low_x, high_y, high_x, queue)
            else:
                for y in range(low_y, high_y):
                    for x in range(low_x, high_x):
                        if distance[y, x] != _CLAIMED:
                            distance[y, x] = _OUTSIDE
            from_y, to_y = max(from_y, low_y), min(to_y, high_y)
            from_x, to_x = max(from_x, low_x), min(to_x, high_x)
        for y in range(from_y, to_y):
            at_y = y + y0
            if not clean:
                span = max(to_x - from_x, 0)
                for x in range(span):
                    at_x = x + from_x + x0
                    across = (np.float32(maps[0, at_y, at_x]) - seed_across) * scales[0]
                    down = (np.float32(maps[1, at_y, at_x]) - seed_down) * scales[0]
                    features[0, x] = across + np.float32(at_x - seed_x) * scales[2]
                    features[1, x] = down + np.float32(at_y - seed_y) * scales[2]
                    features[2, x] = np.float32(maps[2, at_y, at_x]) * scales[1]
                    features[3, x] = np.float32(maps[3, at_y, at_x]) * scales[1]
                logits_of_row(features, span, one, first, two, second, last, row, answers)
                for x in range(span):
                    logits[y, x + from_x] = answers[x]
            if n_runs + side >= len(runs):
                longer = np.empty((2 * len(runs) + side, 3), np.int32)
                longer[:n_runs] = runs[:n_runs]
                runs = longer
            open_run = False
            for x in range(from_x, to_x):
                mine = distance[y, x] != _OUTSIDE if clean else logits[y, x] >= least
                if not mine:
                    if open_run:
                        runs[n_runs, 2] = x + x0 - left
                        n_runs += 1
                        open_run = False
                    continue
                at_x = x + x0
                if not open_run:
                    runs[n_runs, 0], runs[n_runs, 1] = at_y - top, at_x - left
                    open_run = True
                area[index] += 1
                total[index] += level[at_y, at_x]
                filled = clean and distance[y, x] != _CLAIMED
                chance = hole if filled else probability(logits[y, x])
                if chance > best[at_y - top, at_x - left]:
                    best[at_y - top, at_x - left] = chance
                    owner[at_y - top, at_x - left] = index + 1
            if open_run:
                runs[n_runs, 2] = to_x + x0 - left
                n_runs += 1
        begin[index + 1] = n_runs
    return owner, runs[:n_runs].copy(), begin, area, total


@numba.njit(nogil=True, cache=True)
def _find_outside(distance: Any, top: int, left: int, bottom: int, right: int, queue: Any) -> None:
    """Mark what is no hole, in place.

    ``distance`` is 0 in the claim and 4 elsewhere. The background is walked, diagonally too, from where it is more than
    3 pixels from the claim; what is reached becomes 255.
    """
    width = right - left
    for back in range(2):
        for step_y in range(bottom - top):
            y = bottom - 1 - step_y if back else top + step_y
            for step_x in range(width):
                x = right - 1 - step_x if back else left + step_x
                own = distance[y, x]
                if own <= 1:
                    continue
                beside, before = (x + 1, y + 1) if back else (x - 1, y - 1)
                if left <= beside < right:
                    own = min(own, distance[y, beside] + 1)
                if top <= before < bottom:
                    for near_x in range(max(x - 1, left), min(x + 2, right)):
                        own = min(own, distance[before, near_x] + 1)
                distance[y, x] = own
    ended = 0
    for y in range(top, bottom):
        for x in range(left, right):
            if distance[y, x] > _NEAR_PX:
                distance[y, x] = _OUTSIDE
                queue[ended] = (y - top) * width + x - left
                ended += 1
    begun = 0
    while begun < ended:
        y, x = queue[begun] // width + top, queue[begun] % width + left
        begun += 1
        for near_y in range(max(y - 1, top), min(y + 2, bottom)):
            for near_x in range(max(x - 1, left), min(x + 2, right)):
                if 0 < distance[near_y, near_x] < _OUTSIDE:
                    distance[near_y, near_x] = _OUTSIDE
                    queue[ended] = (near_y - top) * width + near_x - left
                    ended += 1


@numba.njit(nogil=True, cache=True)
def holes(mask: Any) -> Any:
    """Holes of a claim: background, walked diagonally too, that comes nowhere farther than 3 pixels from it.

    Parameters
    ----------
    mask : (H, W) bool array
        The claim in its window.

    Returns
    -------
    (H, W) bool array
        A ring wide enough to hold a pixel more than 3 pixels from it has no hole; a gap at the window's border may be
        one. So it is in the original.
    """
    height, width = mask.shape
    distance = np.empty((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            distance[y, x] = _CLAIMED if mask[y, x] else _NEAR_PX + 1
    _find_outside(distance, 0, 0, height, width, np.empty(height * width, np.int64))
    return (distance > 0) & (distance < _OUTSIDE)


@numba.njit(nogil=True, cache=True)
def shared_pixels(runs: Any, begin: Any, side: int, height: int, width: int) -> Any:
    """Pixels that two claims share, for every two that share any.

    Parameters
    ----------
    runs, begin
        Of :func:`claim`.
    side : int
        No claim is wider or higher, pixels.
    height, width : int
        Of the box that the runs lie in.

    Returns
    -------
    pairs : (p, 2) int32 array
        The lower claim first.
    shared : (p,) int64 array
        Pixels.
    """
    count = len(begin) - 1
    rows, columns = height // side + 1, width // side + 1
    head, following = np.full((rows, columns), -1, np.int32), np.full(count, -1, np.int32)
    box = np.zeros((count, 4), np.int32)
    pairs, shared, found = np.empty((256, 2), np.int32), np.empty(256, np.int64), 0
    for index in range(count):
        start, stop = begin[index], begin[index + 1]
        if start == stop:
            continue
        low, high = width, 0
        for run in range(start, stop):
            low, high = min(low, runs[run, 1]), max(high, runs[run, 2])
        box[index, 0], box[index, 1], box[index, 2], box[index, 3] = runs[start, 0], low, runs[stop - 1, 0] + 1, high
        row, column = box[index, 0] // side, box[index, 1] // side
        for near_row in range(max(row - 1, 0), min(row + 2, rows)):
            for near_column in range(max(column - 1, 0), min(column + 2, columns)):
                other = head[near_row, near_column]
                while other >= 0:
                    if (
                        box[other, 0] < box[index, 2]
                        and box[index, 0] < box[other, 2]
                        and box[other, 1] < box[index, 3]
                        and box[index, 1] < box[other, 3]
                    ):
                        both = _common(runs, start, stop, begin[other], begin[other + 1])
                        if both > 0:
                            if found == len(shared):
                                more_pairs, more = np.empty((2 * found, 2), np.int32), np.empty(2 * found, np.int64)
                                more_pairs[:found], more[:found] = pairs, shared
                                pairs, shared = more_pairs, more
                            pairs[found, 0], pairs[found, 1], shared[found] = other, index, both
                            found += 1
                    other = following[other]
        following[index], head[row, column] = head[row, column], index
    return pairs[:found].copy(), shared[:found].copy()


@numba.njit(nogil=True, cache=True)
def _common(runs: Any, one: int, one_end: int, other: int, other_end: int) -> int:
    """Pixels that two lists of runs in raster order share."""
    total = 0
    while one < one_end and other < other_end:
        if runs[one, 0] != runs[other, 0]:
            if runs[one, 0] < runs[other, 0]:
                one += 1
            else:
                other += 1
            continue
        total += max(min(runs[one, 2], runs[other, 2]) - max(runs[one, 1], runs[other, 1]), 0)
        if runs[one, 2] < runs[other, 2]:
            one += 1
        else:
            other += 1
    return total
