"""Figures of every instance of a slide, gathered window by window in one pass.

All sums are of whole numbers and independent of the windows; outlines are chained where an instance is complete. The
cost is linear in the foreground: no instance is ever looked for in a full image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideloomError
from slideloom.instances.contours import Sides, find_sides, outlines
from slideloom.instances.windows import Box, LabelTable, windows
from slideloom.patches.store import PatchStore

__all__ = ["Figures", "marker_sums", "measure"]

_TILES_AT_ONCE = 64


@dataclass(frozen=True)
class Figures:
    """Figures of instances 1 … n; index 0 means nothing.

    Attributes
    ----------
    area : (n + 1,) int64 array
        Pixels.
    box : (n + 1, 4) int64 array
        Top, left, bottom, right, past-the-end exclusive, grid pixels.
    centroid : (n + 1, 2) float64 array
        x, y of the mean pixel centre in grid pixels; pixel i has its centre at i + 0.5.
    nucleus : (n + 1,) int64 array
        Sum of the nucleus map, 255 a pixel at most.
    class_pixels : (n + 1, k) int64 array
        Pixels of each class, background first; k = 0 without a class map.
    class_weight : (n + 1, k) int64 array
        Sum of the class probability over those pixels, 255 a pixel at most.
    polygon : (n + 1,) object array
        Outline, level-0 pixels, (x, y).
    """

    area: NDArray[np.int64]
    box: NDArray[np.int64]
    centroid: NDArray[np.float64]
    nucleus: NDArray[np.int64]
    class_pixels: NDArray[np.int64]
    class_weight: NDArray[np.int64]
    polygon: NDArray[Any]


def measure(
    labels: Any,
    maps: Mapping[str, Any],
    table: LabelTable,
    *,
    n_classes: int = 0,
    scale: float = 1.0,
    window_px: int = 2048,
) -> Figures:
    """Measure instances.

    Parameters
    ----------
    labels : (H, W) array of unsigned integers
        Ids 1 … n; NumPy array or open Zarr array.
    maps : mapping of str to array
        ``nucleus`` (H, W) uint8 and, with ``n_classes``, ``class_id`` and ``class_probability``.
    table : LabelTable
        Boxes and areas of the ids.
    n_classes : int
        Classes including background; 0 without a class map.
    scale : float
        Level-0 pixels per grid pixel, for the outlines.
    window_px : int
        Side of the windows; changes nothing but memory.

    Returns
    -------
    Figures
        Memory: a window, and the figures.

    Raises
    ------
    SlideloomError
        ``unknown_class``: the class map holds an id of ``n_classes`` or above.
    """
    height, width = labels.shape
    count = len(table)
    sums = np.zeros((count, 3), np.float64)  # x, y, nucleus; whole numbers below 2**53
    class_pixels = np.zeros((count, n_classes), np.int64)
    class_weight = np.zeros((count, n_classes), np.int64)
    polygon = np.full(count, None, object)
    number = np.zeros(count, np.int64)
    open_sides: list[Sides] = []
    for place in windows(Box(0, 0, height, width), window_px):
        outer = place.grown(1, (height, width))
        context = np.zeros((place.height + 2, place.width + 2), np.int64)
        at = Box(place.top - 1, place.left - 1, place.bottom + 1, place.right + 1)
        context[outer.within(at)] = np.asarray(labels[outer.slices])
        core = context[1:-1, 1:-1]
        y, x = np.nonzero(core)
        if not y.size:
            continue
        pixel_label = core[y, x]
        present = np.unique(pixel_label)
        number[present] = np.arange(len(present))
        own = number[pixel_label]

        values = (x + place.left, y + place.top, np.asarray(maps["nucleus"][place.slices])[y, x])
        for column, weights in enumerate(values):
            sums[present, column] += np.bincount(own, weights=weights, minlength=len(present))
        if n_classes:
            class_id = np.asarray(maps["class_id"][place.slices])[y, x]
            if class_id.max() >= n_classes:
                raise _unknown_class(int(class_id.max()), n_classes)
            slot = own * n_classes + class_id
            weight = np.asarray(maps["class_probability"][place.slices])[y, x]
            shape = (len(present), n_classes)
            class_pixels[present] += np.bincount(slot, minlength=shape[0] * shape[1]).reshape(shape)
            class_weight[present] += (
                np.bincount(slot, weights=weight, minlength=shape[0] * shape[1]).reshape(shape).astype(np.int64)
            )
        sides = find_sides(context, place.top, place.left, width)
        whole = _inside(table.box, place)[sides.label]
        _chain(sides.of(whole), width, scale, polygon)
        open_sides.append(sides.of(~whole))
    _chain(Sides.join(open_sides), width, scale, polygon)
    with np.errstate(invalid="ignore", divide="ignore"):
        centroid = sums[:, :2] / table.area[:, None] + 0.5
    return Figures(table.area, table.box, centroid, sums[:, 2].astype(np.int64), class_pixels, class_weight, polygon)


def _unknown_class(class_id: int, n_classes: int) -> SlideloomError:
    return SlideloomError(
        f"class {class_id} in the class map",
        expected=f"0 to {n_classes - 1}, as the classes table says",
        hint="Train the experiment again after editing the classes table",
        code="unknown_class",
    )


def _inside(boxes: NDArray[np.int64], place: Box) -> NDArray[np.bool_]:
    top, left, bottom, right = boxes.T
    inside: NDArray[np.bool_] = (
        (top >= place.top) & (left >= place.left) & (bottom <= place.bottom) & (right <= place.right)
    )
    return inside


def _chain(sides: Sides, width: int, scale: float, polygon: NDArray[Any]) -> None:
    found, polygons = outlines(sides, width, scale)
    polygon[found] = polygons


def marker_sums(labels: Any, patches: PatchStore, count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Add up every channel under every instance, each pixel of the slide once.

    Parameters
    ----------
    labels : (H, W) array of unsigned integers
        Ids below ``count``; NumPy array or open Zarr array.
    patches : PatchStore
        Tiles of the same grid frame; where they overlap, the first one counts.
    count : int
        Number of ids, 0 among them.

    Returns
    -------
    sums : (count, c) float64 array
        Exact for integer pixels.
    pixels : (count,) int64 array
        Pixels that were added up: fewer than the instance's where tiles were left out.
    """
    sums = np.zeros((count, len(patches.channels)), np.float64)
    pixels = np.zeros(count, np.int64)
    earlier = _earlier_tiles(patches)
    for start in range(0, patches.n, _TILES_AT_ONCE):
        tiles = np.arange(start, min(start + _TILES_AT_ONCE, patches.n))
        bands = _labels_of(labels, patches, tiles)
        if not any(band.any() for band in bands):
            continue
        batch = patches.pixels(slice(int(tiles[0]), int(tiles[-1]) + 1))
        for tile, band, values in zip(tiles.tolist(), bands, batch, strict=True):
            mask = band > 0
            y_px, x_px = int(patches.y_px[tile]), int(patches.x_px[tile])
            for other in earlier(tile):
                dy, dx = int(patches.y_px[other]) - y_px, int(patches.x_px[other]) - x_px
                side = patches.tile_px
                mask[max(dy, 0) : max(dy + side, 0), max(dx, 0) : max(dx + side, 0)] = False
            where = np.flatnonzero(mask)
            if not where.size:
                continue
            height, width = band.shape
            label = band.reshape(-1)[where]
            order = np.argsort(label, kind="stable")
            label, where = label[order], where[order]
            starts = np.flatnonzero(np.diff(label, prepend=-1))
            picked = values[:, :height, :width].reshape(len(values), -1)[:, where]
            sums[label[starts]] += np.add.reduceat(picked, starts, axis=1, dtype=np.float64).T
            pixels[label[starts]] += np.diff(starts, append=len(label))
    return sums, pixels


def _labels_of(labels: Any, patches: PatchStore, tiles: NDArray[np.intp]) -> list[NDArray[np.int64]]:
    """Labels under each tile, without its padding; each row of tiles is read once."""
    found: list[NDArray[np.int64]] = []
    for row in np.unique(patches.row[tiles]):
        mine = tiles[patches.row[tiles] == row]
        top, left = int(patches.y_px[mine[0]]), int(patches.x_px[mine].min())
        bottom = top + int(patches.height_valid[mine[0]])
        right = int((patches.x_px[mine] + patches.width_valid[mine]).max())
        band = np.asarray(labels[top:bottom, left:right]).astype(np.int64)
        for tile in mine:
            x_px = int(patches.x_px[tile]) - left
            found.append(band[:, x_px : x_px + int(patches.width_valid[tile])])
    return found


def _earlier_tiles(patches: PatchStore) -> Any:
    """A function that lists the tiles before a tile that overlap it."""
    reach = -(-patches.tile_px // patches.stride_px) - 1
    if reach == 0:
        return lambda tile: ()
    rows, columns = patches.row.tolist(), patches.col.tolist()
    at = {place: tile for tile, place in enumerate(zip(rows, columns, strict=True))}
    steps = [(dy, dx) for dy in range(-reach, 1) for dx in range(-reach, reach + 1) if dy < 0 or dx < 0]

    def earlier(tile: int) -> list[int]:
        places = ((rows[tile] + dy, columns[tile] + dx) for dy, dx in steps)
        return [at[place] for place in places if place in at]

    return earlier
