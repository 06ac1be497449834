"""HV and boundary targets from a slide-level instance map.

HoVer-Net's horizontal and vertical distance maps as CellViT trains on them. All work is done once over the foreground
pixels, sorted out by instance: time and memory are linear in the area of the nuclei, whatever their number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["HV_SCALE", "boundary_map", "hv_map", "hv_map_int8"]

#: int8 code of an HV value of 1.
HV_SCALE = 127
#: Foreground pixels worked on at a time; bounds the memory of the temporary arrays.
_BLOCK = 1 << 22


def hv_map(instances: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """HV map of an instance map.

    Inside an instance, channel 0 runs along x from -1 (left edge) to 1 (right edge), channel 1 along y; each sign is
    scaled by its own extreme. The zero lies one pixel left of and above the rounded centroid, as in the programs whose
    published weights learnt it. Pieces with one id are one instance.

    Parameters
    ----------
    instances : (H, W) integer array
        Instance ids; 0 is background. Any ids, in any order; a map without background is fine.

    Returns
    -------
    (2, H, W) float32 array
        x then y, in [-1, 1]; 0 outside instances. All 0 where the image is a single pixel high or wide.

    Notes
    -----
    Graham et al., HoVer-Net, Medical Image Analysis 58 (2019); Hörst et al., CellViT, Medical Image Analysis 94 (2024).
    """
    out = np.zeros((2, *instances.shape), np.float32)
    _fill(instances, out)
    return out


def hv_map_int8(instances: NDArray[np.integer[Any]]) -> NDArray[np.int8]:
    """:func:`hv_map` rounded to 1/127: (2, H, W) int8, a quarter of the memory."""
    out = np.zeros((2, *instances.shape), np.int8)
    _fill(instances, out)
    return out


def _fill(instances: NDArray[np.integer[Any]], out: NDArray[Any]) -> None:
    if instances.ndim != 2:
        raise ValueError(f"an instance map has 2 axes, got shape {instances.shape}")
    height, width = instances.shape
    if min(height, width) < 2:
        return
    flat = np.ascontiguousarray(instances).reshape(-1)
    where = np.flatnonzero(flat)
    if where.size == 0:
        return
    label, count = _consecutive(flat[where])
    position_type = np.int32 if flat.size < 2**31 else np.int64
    sizes = np.bincount(label, minlength=count)
    y, x = np.divmod(where.astype(position_type, copy=False), position_type(width))
    for channel, position in ((0, x), (1, y)):
        # floor(mean + 1/2) in integers: exact, and whole shifts of the origin change nothing.
        total = _sums(label, position, count)
        zero = (2 * total + sizes) // (2 * sizes) - 1
        low, high = _extremes(label, position, count)
        below = np.maximum(zero - low, 1).astype(np.float32)
        above = np.maximum(high - zero, 1).astype(np.float32)
        plane = out[channel].reshape(-1)
        for start in range(0, where.size, _BLOCK):
            part = slice(start, start + _BLOCK)
            ids = label[part]
            offset = (position[part] - zero[ids]).astype(np.float32)
            offset /= np.where(offset < 0, below[ids], above[ids])
            if plane.dtype == np.int8:
                offset = np.rint(offset * np.float32(HV_SCALE))
            plane[where[part]] = offset


def _consecutive(ids: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int32], int]:
    """Ids renumbered 0, 1, … and how many there are; linear unless the ids are very sparse."""
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest >= 0 and highest <= 4 * ids.size + 1024:
        present = np.zeros(highest + 1, bool)
        present[ids] = True
        number = np.cumsum(present, dtype=np.int32) - np.int32(1)
        return number[ids], int(number[-1]) + 1
    distinct, label = np.unique(ids, return_inverse=True)
    return label.astype(np.int32, copy=False), int(distinct.size)


def _sums(label: NDArray[np.int32], position: NDArray[Any], count: int) -> NDArray[np.int64]:
    # float64 sums of integers are exact below 2**53: an instance would need 10**11 pixels to reach that.
    return np.bincount(label, weights=position, minlength=count).astype(np.int64)


def _extremes(label: NDArray[np.int32], position: NDArray[Any], count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    low = np.full(count, np.iinfo(position.dtype).max, position.dtype)
    high = np.full(count, -1, position.dtype)
    np.minimum.at(low, label, position)
    np.maximum.at(high, label, position)
    return low, high


def boundary_map(instances: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """Outlines of the instances: pixels with another id, or background, beside, above or below them.

    Parameters
    ----------
    instances : (H, W) integer array
        Instance ids; 0 is background.

    Returns
    -------
    (H, W) uint8 array
        1 on the inner outline of every instance, one pixel wide; two pixels where two instances touch. The border of
        the map is no outline: a nucleus that runs out of the slide is open there.
    """
    edge = np.zeros(instances.shape, bool)
    down = instances[1:] != instances[:-1]
    edge[1:] |= down
    edge[:-1] |= down
    right = instances[:, 1:] != instances[:, :-1]
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    edge &= instances != 0
    return edge.view(np.uint8)
