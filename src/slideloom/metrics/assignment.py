"""Exact assignment of few candidates: the one-to-one set of pairs with the highest total weight.

Nuclei overlap or lie near a handful of others, so the table of candidate pairs is sparse. A dense solver needs memory
in the square of the nuclei and time in their cube; this one adds one row after another along a shortest augmenting path
and looks only at what the path reaches.
"""

from __future__ import annotations

import heapq
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["best_pairs"]


def best_pairs(
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    weight: NDArray[np.float64],
    *,
    counted: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Choose pairs, each row and each column once at most, so that their weights sum up to the most.

    Parameters
    ----------
    rows, cols : ndarray of int64, (n,)
        Candidate pairs, each at most once; numbers from 0, gaps allowed.
    weight : ndarray of float64, (n,)
        At least 0. A pair of weight 0 that is not counted is never chosen.
    counted : ndarray of bool, (n,), optional
        Pairs whose number comes first: as many of these as possible, and among such choices the greatest sum of
        weights.

    Returns
    -------
    ndarray of int64
        Positions of the chosen pairs, ascending. The total is the optimum; where several choices reach it, which one
        is taken depends on the order of rows and columns only.

    Notes
    -----
    Successive shortest augmenting paths with potentials (Jonker and Volgenant, Computing 38, 1987), a heap, and the
    choice to leave a row alone at gain 0.
    """
    if rows.size == 0:
        return np.empty(0, np.int64)
    gain = weight.astype(np.float64)
    if counted is not None:
        # More than any matching's sum of weights can be worth.
        most = min(np.unique(rows).size, np.unique(cols).size)
        gain = gain + counted * (1.0 + most * float(weight.max()))
    order = np.lexsort((cols, rows))
    begins = np.zeros(int(rows.max()) + 2, np.int64)
    np.cumsum(np.bincount(rows, minlength=begins.size - 1), out=begins[1:])
    chosen = _augment(begins, cols[order].astype(np.int64), gain[order], int(cols.max()) + 1)
    return np.sort(order[chosen[chosen >= 0]])


@numba.njit(nogil=True, cache=True)
def _augment(begins: Any, cols: Any, gain: Any, n_cols: int) -> Any:  # pragma: no cover - compiled
    """Position of the pair chosen for each column, -1 for none.

    Kept true after every row: price[row] + price[col] is at least the pair's gain, exactly that on chosen pairs; prices
    are not negative; a row or column that is alone has price 0.
    """
    n_rows = begins.size - 1
    row_price = np.zeros(n_rows)
    col_price = np.zeros(n_cols)
    pair_of_col = np.full(n_cols, -1, np.int64)
    row_of_col = np.full(n_cols, -1, np.int64)
    col_of_row = np.full(n_rows, -1, np.int64)
    distance = np.full(n_cols, np.inf)
    via_pair = np.empty(n_cols, np.int64)
    via_row = np.empty(n_cols, np.int64)
    settled = np.zeros(n_cols, np.bool_)
    for start in range(n_rows):
        price = 0.0
        for pair in range(begins[start], begins[start + 1]):
            price = max(price, gain[pair] - col_price[cols[pair]])
        row_price[start] = price
        if price == 0.0:
            continue  # nothing to win
        reached = [np.int64(0)]
        reached.clear()
        heap = [(0.0, np.int64(0))]
        heap.clear()
        shortest = price  # the row stays alone
        end_col, end_row = np.int64(-1), np.int64(start)
        row, so_far = np.int64(start), 0.0
        while True:
            for pair in range(begins[row], begins[row + 1]):
                col = cols[pair]
                if settled[col]:
                    continue
                further = max(so_far, so_far + (row_price[row] + col_price[col] - gain[pair]))
                if further < distance[col] and further < shortest:
                    if distance[col] == np.inf:
                        reached.append(col)
                    distance[col] = further
                    via_pair[col] = pair
                    via_row[col] = row
                    if row_of_col[col] < 0:
                        shortest, end_col, end_row = further, col, np.int64(-1)
                    else:
                        heapq.heappush(heap, (further, col))
            found = np.int64(-1)
            while len(heap) > 0:
                away, col = heapq.heappop(heap)
                if not settled[col] and away == distance[col]:
                    found = col
                    break
            if found < 0 or distance[found] >= shortest:
                break
            settled[found] = True
            row, so_far = row_of_col[found], distance[found]
            if so_far + row_price[row] < shortest:  # that row gives its column up and stays alone
                shortest, end_col, end_row = so_far + row_price[row], np.int64(-1), row
        row_price[start] = max(0.0, row_price[start] - shortest)
        for col in reached:
            if settled[col]:
                more = shortest - distance[col]
                col_price[col] += more
                row_price[row_of_col[col]] = max(0.0, row_price[row_of_col[col]] - more)
        if end_row != start:
            col = end_col
            if end_row >= 0:
                col = col_of_row[end_row]
                col_of_row[end_row] = -1
            while True:
                taker = via_row[col]
                left = col_of_row[taker]
                pair_of_col[col] = via_pair[col]
                row_of_col[col] = taker
                col_of_row[taker] = col
                if taker == start:
                    break
                col = left
        for col in reached:
            distance[col] = np.inf
            settled[col] = False
    return pair_of_col
