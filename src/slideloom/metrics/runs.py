"""Counting pairs of values by their runs along the rows of a block, compiled."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["distinct_pairs", "sum_by_key"]

_LARGEST = 2**32 - 1
#: First places of a block's hash table, a power of two.
_TABLE = 1 << 13
_NO_MASK = np.ones((1, 1), np.bool_)


def distinct_pairs(
    first: NDArray[Any], second: NDArray[Any], mask: NDArray[np.bool_] | None, origin: tuple[int, int]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Count the pairs of values that stand at one pixel of a block.

    Parameters
    ----------
    first, second : ndarray of int or bool, equal shapes, not empty
        Values from 0 to 2³² - 1.
    mask : ndarray of bool, same shape, or None
        Pixels to count.
    origin : (y, x) of int
        Added to the pixels' coordinates.

    Returns
    -------
    keys : ndarray of uint64, (n,)
        Distinct pairs, the first value in the upper 32 bits; in no order.
    sums : ndarray of int64, (n, 3)
        Pixels, sum of y and sum of x of each pair, in pixels.

    Raises
    ------
    ValueError
        An array does not hold whole numbers, or one of them is negative or above 2³² - 1.
    """
    one, largest_one = _unsigned(first)
    two, largest_two = _unsigned(second)
    chosen = _NO_MASK if mask is None else np.ascontiguousarray(mask).reshape(one.shape)
    origin = int(origin[0]), int(origin[1])  # one compiled form whatever kind of integer comes in
    keys, sums = np.empty(_TABLE, np.uint64), np.zeros((_TABLE, 3), np.int64)
    row = used = 0
    while True:
        row, used = _count_rows(
            one, two, chosen, mask is not None, (largest_one, largest_two), origin, keys, sums, row, used
        )
        if row < 0:
            raise ValueError(f"a label is negative; labels go from 0 to {_LARGEST}")
        if row == one.shape[0]:
            break
        keys, sums = _wider(keys, sums)
    found = np.flatnonzero(sums[:, 0])
    return keys[found], sums[found]


def sum_by_key(keys: NDArray[np.uint64], sums: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Sort keys and add up the rows of equal ones.

    Parameters
    ----------
    keys : ndarray of uint64, (n,)
        In any order, with repeats.
    sums : ndarray of int64, (n, k)
        A row a key.

    Returns
    -------
    keys, sums
        Ascending, each key once.
    """
    if keys.size == 0:
        return keys, sums
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.concatenate(([0], np.flatnonzero(keys[1:] != keys[:-1]) + 1))
    return keys[starts], np.add.reduceat(sums[order], starts, axis=0)


def _unsigned(values: NDArray[Any]) -> tuple[NDArray[np.uint32], np.uint64]:
    """Rows of the values as 32-bit words without a sign, and the largest word that stands for a valid value."""
    rows = values if values.ndim == 2 else values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
    if values.dtype == np.uint32:
        return np.ascontiguousarray(rows), np.uint64(_LARGEST)
    if values.dtype == np.int32:  # a negative value reads as a word above the largest; no second pass is needed
        return np.ascontiguousarray(rows).view(np.uint32), np.uint64(2**31 - 1)
    if values.dtype.kind not in "bui":
        raise ValueError(f"labels must be whole numbers, not {values.dtype}")
    if values.dtype.kind == "i" or values.dtype.itemsize > 4:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > _LARGEST:
            raise ValueError(f"labels go from 0 to {_LARGEST}, not from {low} to {high}")
    return rows.astype(np.uint32, order="C"), np.uint64(_LARGEST)


@numba.njit(nogil=True, cache=True)
def _count_rows(
    first: Any,
    second: Any,
    mask: Any,
    masked: bool,
    largest: tuple[Any, Any],
    origin: tuple[int, int],
    keys: Any,
    sums: Any,
    row: int,
    used: int,
) -> tuple[int, int]:  # pragma: no cover - compiled
    """Count rows into a hash table until it could be more than half full.

    Gives the first row that is not counted, -1 when a value is not valid, and the places used. Growing is left to the
    caller: a table that this loop could replace would cost it several times its speed in reference counts.
    """
    height, width = first.shape
    begins = np.empty(width + 1, np.int64)
    last = np.int64(keys.size - 1)
    for y in range(row, height):
        # Where runs begin is noted without a branch a pixel: the place is always written, and kept if it is one.
        of_first, of_second, of_mask = first[y], second[y], mask[y if masked else 0]
        begins[0] = 0
        n_runs = 1
        if masked:
            for x in range(1, width):
                begins[n_runs] = x
                n_runs += (
                    (of_first[x] != of_first[x - 1])
                    | (of_second[x] != of_second[x - 1])
                    | (of_mask[x] != of_mask[x - 1])
                )
        else:
            for x in range(1, width):
                begins[n_runs] = x
                n_runs += (of_first[x] != of_first[x - 1]) | (of_second[x] != of_second[x - 1])
        begins[n_runs] = width
        if 2 * (used + n_runs) > keys.size:
            return y, used
        for run in range(n_runs):
            begin, length = begins[run], begins[run + 1] - begins[run]
            if masked and not of_mask[begin]:
                continue
            a, b = np.uint64(of_first[begin]), np.uint64(of_second[begin])
            if a > largest[0] or b > largest[1]:
                return -1, used
            key = (a << np.uint64(32)) | b
            mixed = key * np.uint64(0x9E3779B97F4A7C15)
            slot = np.int64(mixed ^ (mixed >> np.uint64(32))) & last
            while sums[slot, 0] != 0 and keys[slot] != key:
                slot = (slot + 1) & last
            if sums[slot, 0] == 0:
                keys[slot] = key
                used += 1
            sums[slot, 0] += length
            sums[slot, 1] += length * (origin[0] + y)
            sums[slot, 2] += length * (origin[1] + begin) + length * (length - 1) // 2
    return height, used


@numba.njit(nogil=True, cache=True)
def _wider(keys: Any, sums: Any) -> tuple[Any, Any]:  # pragma: no cover - compiled
    """The same table with four times the room."""
    last = np.int64(4 * keys.size - 1)
    new_keys = np.empty(4 * keys.size, np.uint64)
    new_sums = np.zeros((4 * keys.size, 3), np.int64)
    for i in range(keys.size):
        if sums[i, 0] != 0:
            mixed = keys[i] * np.uint64(0x9E3779B97F4A7C15)
            slot = np.int64(mixed ^ (mixed >> np.uint64(32))) & last
            while new_sums[slot, 0] != 0:
                slot = (slot + 1) & last
            new_keys[slot] = keys[i]
            new_sums[slot] = sums[i]
    return new_keys, new_sums
