"""One token for each cell, pooled from the token maps of overlapping crops."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["pool_cell_tokens"]


def pool_cell_tokens(
    labels: NDArray[np.integer],
    crops: Iterable[tuple[int, int, NDArray[np.floating]]],
    patch_px: int = 8,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Mean of the tokens that a cell lies under, each weighted by the cell's pixels in the token's square.

    A pixel that several crops cover counts once in each of them, as VirTues' cell tokens do: the sum runs over all
    crops, and over all tokens of a crop, of pixels times token; divided by the sum of the pixels.

    Parameters
    ----------
    labels : (h, w) integer array
        0 is background; every other number is a cell.
    crops : iterable of (row, column, tokens)
        Pixel of the crop's upper left corner and its tokens (gh, gw, d). Parts beyond ``labels`` hold no pixels.
    patch_px : int
        Side of a token's square, pixels.

    Returns
    -------
    cell_ids : (k,) int64 array
        Cells, rising.
    tokens : (k, d) float32 array
        One for each; NaN for a cell that no crop covers.

    Raises
    ------
    ValueError
        There is no crop, or a corner lies outside the labels.
    """
    ids, flat = np.unique(labels, return_inverse=True)
    index = flat.reshape(labels.shape)
    sums: NDArray[np.float64] | None = None
    pixels = np.zeros(len(ids))
    for row, column, tokens in crops:
        high, wide, width = tokens.shape
        part = index[row : row + high * patch_px, column : column + wide * patch_px]
        if row < 0 or column < 0 or not part.size:
            raise ValueError(f"a crop at ({row}, {column}) lies outside labels of {labels.shape}")
        rows, cols = (np.arange(size) // patch_px for size in part.shape)
        pairs = part.astype(np.int64) * (high * wide) + rows[:, None] * wide + cols
        which, counts = np.unique(pairs, return_counts=True)
        cell, token = np.divmod(which, high * wide)
        sums = np.zeros((len(ids), width)) if sums is None else sums
        np.add.at(sums, cell, counts[:, None] * tokens.reshape(-1, width)[token].astype(np.float64))
        pixels += np.bincount(cell, counts, len(ids))
    if sums is None:
        raise ValueError("there is no crop to pool")
    cells = ids != 0
    with np.errstate(invalid="ignore"):
        pooled = (sums[cells] / pixels[cells, None]).astype(np.float32)
    return ids[cells].astype(np.int64), pooled
