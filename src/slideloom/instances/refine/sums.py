"""Whole-number sums over the pixels of instances, window by window; what they mean is said in ``features``.

Every sum is of integers and every extreme is one, so neither the windows nor their order changes a bit. A window reads
the labels one pixel beyond itself, and each pixel is counted in the window that holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideloomError
from slideloom.instances.contours import position
from slideloom.instances.measure import label_runs
from slideloom.instances.pool import in_order
from slideloom.instances.refine.found import Found
from slideloom.instances.refine.tokens import TokenPlane
from slideloom.instances.windows import Box, LabelTable, windows

__all__ = ["BYTE_MAPS", "Sums", "gather_sums"]

#: Maps of a byte a pixel, of which sum, sum of squares, lowest and highest are taken, in this order.
BYTE_MAPS = ("nucleus", "boundary", "distance")
_NAMES = (
    "x", "y", "xx", "yy", "xy",
    "sides", "contact", "corners",
    "ring", "ring_nucleus", "ring_nucleus2",
    "h", "v", "hh", "vv", "xh", "yv",
    "class_weight",
)  # fmt: skip
_X, _Y, _XX, _YY, _XY, _SIDES, _CONTACT, _CORNERS, _RING, _RINGN, _RINGNN, _H, _V, _HH, _VV, _XH, _YV, _CW = range(18)
_NO_BYTES, _NO_TOKENS = np.zeros((0, 0), np.uint8), np.zeros((0, 0, 0), np.int32)
_FAR = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Sums:
    """Sums of n instances; rows are ids 1 … n.

    Attributes
    ----------
    plain : dict of str to (n,) int64 array
        ``x``, ``y`` and their products, pixels from the box's upper left corner; ``sides`` and ``corners``, pixels
        beside and diagonal to others, ``contact``: sides of those that lie in another instance; ``ring``, pixels
        outside with a side in common, their sum and squares of the nucleus map; ``h``, ``v``, products of the HV
        codes; ``class_weight``, sum of the class probability.
    bytes : dict of str to (n, 4) int64 array
        Of each map of :data:`BYTE_MAPS` that there is: sum, sum of squares, lowest, highest.
    class_pixels : (n, k) int64 array
        Pixels of each class, background first; k = 0 without a class map.
    tokens : (n, d) int64 array
        Sum of the token codes; d = 0 without tokens.
    covered : (n,) int64 array
        Pixels with a token beneath.
    hull : (n,) int64 array
        Pixels whose centres lie in the convex hull of the instance's pixel centres.
    """

    plain: dict[str, NDArray[np.int64]]
    bytes: dict[str, NDArray[np.int64]]
    class_pixels: NDArray[np.int64]
    tokens: NDArray[np.int64]
    covered: NDArray[np.int64]
    hull: NDArray[np.int64]


@dataclass(frozen=True)
class _Window:
    present: NDArray[np.int64]
    plain: NDArray[np.int64]
    bytes: NDArray[np.int64]
    class_pixels: NDArray[np.int64]
    tokens: NDArray[np.int64]
    rows: NDArray[np.int64]
    ends: NDArray[np.int32]


def gather_sums(
    found: Found,
    maps: Mapping[str, Any],
    *,
    n_classes: int,
    tokens: TokenPlane | None,
    window_px: int,
    workers: int,
) -> Sums:
    """Sums of all instances of a slide; parameters as of :func:`slideloom.instances.refine.features.instance_features`.

    Raises
    ------
    SlideloomError
        ``unknown_class``: the class map holds an id of ``n_classes`` or above.
    """
    table = found.table
    count, depth = len(table), 0 if tokens is None else tokens.depth
    height = np.where(table.area > 0, table.box[:, 2] - table.box[:, 0], 0)
    start = np.append(0, np.cumsum(height))
    plain = np.zeros((count, len(_NAMES)), np.int64)
    byte = np.zeros((count, len(BYTE_MAPS), 4), np.int64)
    byte[:, :, 2] = 255
    class_pixels = np.zeros((count, n_classes), np.int64)
    token = np.zeros((count, depth + 1), np.int64)
    ends = np.empty((int(start[-1]), 2), np.int32)
    ends[:, 0], ends[:, 1] = _FAR, -1

    def work(place: Box) -> _Window | None:
        return _look(found, maps, table, place, n_classes, tokens, start)

    for window in in_order(work, windows(found.grid.frame, window_px), workers):
        if window is None:
            continue
        plain[window.present] += window.plain
        class_pixels[window.present] += window.class_pixels
        token[window.present] += window.tokens
        kept = byte[window.present]
        kept[:, :, :2] += window.bytes[:, :, :2]
        np.minimum(kept[:, :, 2], window.bytes[:, :, 2], out=kept[:, :, 2])
        np.maximum(kept[:, :, 3], window.bytes[:, :, 3], out=kept[:, :, 3])
        byte[window.present] = kept
        ends[window.rows, 0] = np.minimum(ends[window.rows, 0], window.ends[:, 0])
        ends[window.rows, 1] = np.maximum(ends[window.rows, 1], window.ends[:, 1])
    return Sums(
        dict(zip(_NAMES, plain[1:].T, strict=True)),
        {name: byte[1:, index] for index, name in enumerate(BYTE_MAPS) if name in maps},
        class_pixels[1:],
        token[1:, :depth],
        token[1:, depth],
        _hulls(ends, start)[1:],
    )


def _look(
    found: Found,
    maps: Mapping[str, Any],
    table: LabelTable,
    place: Box,
    n_classes: int,
    tokens: TokenPlane | None,
    start: NDArray[np.int64],
) -> _Window | None:
    """Everything about a window; None if nothing is in it."""
    frame = found.grid.frame
    outer = place.grown(1, (frame.bottom, frame.right))
    labels = np.zeros((place.height + 2, place.width + 2), np.uint32)
    labels[outer.within(Box(place.top - 1, place.left - 1, place.bottom + 1, place.right + 1))] = found.read(outer)
    present = np.unique(label_runs(labels))
    if not present.size:
        return None
    planes = [_plane(maps, name, place, np.uint8) for name in BYTE_MAPS]
    hv = _plane(maps, "hv", place, np.int8) if "hv" in maps else np.zeros((2, 0, 0), np.int8)
    classes = [_plane(maps, name, place, np.uint8) for name in ("class_id", "class_probability") if n_classes]
    classes += [_NO_BYTES] * (2 - len(classes))
    codes, rows, cols = (_NO_TOKENS, np.zeros(0, np.int64), np.zeros(0, np.int64))
    covered = _NO_BYTES
    if tokens is not None:
        codes, covered, rows, cols = tokens.beneath(place)
    box = table.box[present]
    top, bottom = np.maximum(box[:, 0], place.top), np.minimum(box[:, 2], place.bottom)
    tall = np.maximum(bottom - top, 0)
    offset = np.cumsum(tall) - tall
    ends = np.empty((int(tall.sum()), 2), np.int32)
    ends[:, 0], ends[:, 1] = _FAR, -1
    plain = np.zeros((present.size, len(_NAMES)), np.int64)
    byte = np.zeros((present.size, len(BYTE_MAPS), 4), np.int64)
    byte[:, :, 2] = 255
    class_pixels = np.zeros((present.size, n_classes), np.int64)
    token = np.zeros((present.size, codes.shape[2] + 1), np.int64)
    add_up: Any = _add_up
    highest = add_up(
        labels, present, place.top, place.left, box, top, offset, *planes, hv, *classes, codes, covered, rows, cols,
        plain, byte, class_pixels, token, ends,
    )  # fmt: skip
    if n_classes and highest >= n_classes:
        raise SlideloomError(
            f"class {highest} in the class map",
            expected=f"0 to {n_classes - 1}, as the classes table says",
            hint="Train the experiment again after editing the classes table",
            code="unknown_class",
        )
    where = np.repeat(start[present] + top - box[:, 0] - offset, tall) + np.arange(len(ends))
    return _Window(present.astype(np.int64), plain, byte, class_pixels, token, where, ends)


def _plane(maps: Mapping[str, Any], name: str, place: Box, dtype: Any) -> NDArray[Any]:
    """A map's window, and an array without a pixel where there is none."""
    if name not in maps:
        return _NO_BYTES
    return np.ascontiguousarray(maps[name][(..., *place.slices)], dtype)


@numba.njit(nogil=True, cache=True)
def _add_up(
    labels: Any, present: Any, y_px: int, x_px: int, box: Any, first_row: Any, offset: Any,
    nucleus: Any, boundary: Any, distance: Any, hv: Any, class_id: Any, class_probability: Any,
    codes: Any, covered: Any, token_row: Any, token_col: Any,
    plain: Any, byte: Any, class_pixels: Any, token: Any, ends: Any,
) -> int:  # fmt: skip
    """Add a window's pixels to its sums; ``labels`` reaches one pixel beyond it. Returns the highest class."""
    height, width = labels.shape[0] - 2, labels.shape[1] - 2
    has_nucleus, has_hv, n_classes = nucleus.size > 0, hv.size > 0, class_pixels.shape[1]
    depth = codes.shape[2]
    highest = 0
    for y in range(height):
        before, row = np.uint32(0), 0
        for x in range(width):
            own = labels[y + 1, x + 1]
            up, down = labels[y, x + 1], labels[y + 2, x + 1]
            left, right = labels[y + 1, x], labels[y + 1, x + 2]
            if up != own or down != own or left != own or right != own:
                for side in range(4):
                    other = up if side == 0 else left if side == 1 else right if side == 2 else down
                    if other == 0 or other == own:
                        continue
                    if (side > 0 and other == up) or (side > 1 and other == left) or (side > 2 and other == right):
                        continue
                    its = position(present, other)
                    plain[its, _RING] += 1
                    if has_nucleus:
                        value = np.int64(nucleus[y, x])
                        plain[its, _RINGN] += value
                        plain[its, _RINGNN] += value * value
            if own == 0:
                continue
            if own != before:
                row, before = position(present, own), own
            for side in range(4):
                other = up if side == 0 else left if side == 1 else right if side == 2 else down
                if other != own:
                    plain[row, _SIDES] += 1
                    if other != 0:
                        plain[row, _CONTACT] += 1
            for side in range(4):
                if labels[y + 2 * (side // 2), x + 2 * (side % 2)] != own:
                    plain[row, _CORNERS] += 1
            dy, dx = y + y_px - box[row, 0], x + x_px - box[row, 1]
            plain[row, _X] += dx
            plain[row, _Y] += dy
            plain[row, _XX] += dx * dx
            plain[row, _YY] += dy * dy
            plain[row, _XY] += dx * dy
            at = offset[row] + y + y_px - first_row[row]
            ends[at, 0] = min(ends[at, 0], x + x_px)
            ends[at, 1] = max(ends[at, 1], x + x_px)
            if has_nucleus:
                _note(byte[row, 0], np.int64(nucleus[y, x]))
            if boundary.size > 0:
                _note(byte[row, 1], np.int64(boundary[y, x]))
            if distance.size > 0:
                _note(byte[row, 2], np.int64(distance[y, x]))
            if has_hv:
                h, v = np.int64(hv[0, y, x]), np.int64(hv[1, y, x])
                plain[row, _H] += h
                plain[row, _V] += v
                plain[row, _HH] += h * h
                plain[row, _VV] += v * v
                plain[row, _XH] += dx * h
                plain[row, _YV] += dy * v
            if n_classes:
                kind = class_id[y, x]
                highest = max(highest, kind)
                plain[row, _CW] += class_probability[y, x]
                if kind < n_classes:
                    class_pixels[row, kind] += 1
            if depth and covered[token_row[y], token_col[x]]:
                token[row, depth] += 1
                for part in range(depth):
                    token[row, part] += codes[token_row[y], token_col[x], part]
    return highest


@numba.njit(nogil=True, cache=True)
def _note(kept: Any, value: Any) -> None:
    """Add a value to its sum and squares, lowest and highest."""
    kept[0] += value
    kept[1] += value * value
    kept[2] = min(kept[2], value)
    kept[3] = max(kept[3], value)


@numba.njit(nogil=True, cache=True)
def _hulls(ends: Any, start: Any) -> Any:
    """Pixel centres in the convex hull of each instance, from where its rows begin and end.

    By Pick's theorem they are A + B / 2 + 1, of the hull's area A and the lattice points B on its outline: an exact
    whole number.
    """
    count = start.size - 1
    found = np.zeros(count, np.int64)
    tallest = 0
    for index in range(count):
        tallest = max(tallest, start[index + 1] - start[index])
    xs, ys = np.empty((2, tallest), np.int64), np.empty((2, tallest), np.int64)
    for index in range(count):
        first, stop = start[index], start[index + 1]
        if first == stop:
            continue
        sizes = np.zeros(2, np.int64)
        for side in range(2):
            turn = 1 - 2 * side
            size = 0
            for at in range(first, stop):
                if ends[at, 1] < 0:
                    continue
                x, y = np.int64(ends[at, side]) * turn, at - first
                # The left chain bends outwards, to smaller x; the right one is its mirror image.
                while size > 1 and (xs[side, size - 1] - xs[side, size - 2]) * (y - ys[side, size - 2]) >= (
                    x - xs[side, size - 2]
                ) * (ys[side, size - 1] - ys[side, size - 2]):
                    size -= 1
                xs[side, size], ys[side, size] = x, y
                size += 1
            sizes[side] = size
            for at in range(size):
                xs[side, at] *= turn
        # Down the left chain, up the right one.
        total = sizes[0] + sizes[1]
        twice, outline = 0, 0
        for at in range(total):
            x1, y1 = _corner(xs, ys, sizes, at)
            x2, y2 = _corner(xs, ys, sizes, (at + 1) % total)
            twice += x1 * y2 - x2 * y1
            outline += _common(abs(x2 - x1), abs(y2 - y1))
        found[index] = (abs(twice) + outline + 2) // 2
    return found


@numba.njit(nogil=True, cache=True)
def _corner(xs: Any, ys: Any, sizes: Any, at: int) -> tuple[Any, Any]:
    """Corner of a hull: its left chain down, then its right chain up."""
    if at < sizes[0]:
        return xs[0, at], ys[0, at]
    back = sizes[0] + sizes[1] - 1 - at
    return xs[1, back], ys[1, back]


@numba.njit(nogil=True, cache=True)
def _common(one: int, other: int) -> int:
    """Greatest common divisor."""
    while other:
        one, other = other, one % other
    return one
