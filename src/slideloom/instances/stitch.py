"""A slide's instances, worked through in windows and the same to the byte for any window.

No instance is ever cut, so none has to be mended:

1. The 4-connected components of the foreground are found window by window and joined across the seams (union-find).
   Whether a pixel is foreground is decided by its surroundings alone, so the components are those of the whole slide.
2. Each component is split into nuclei as a whole, inside its own bounding box. The split looks at the component and at
   filters' surroundings, which are read with it. Windows only gather small components, so that one reading serves many.
3. Instances are renumbered in raster order of their first pixels.

A component longer than :data:`GIANT_PX` is split in blocks of a fixed grid instead
(:mod:`slideloom.instances.giants`). So memory is bounded by the window or by :data:`GIANT_PX` squared, whichever is
larger.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from slideloom.instances.giants import split_giants
from slideloom.instances.hv_watershed import HVWatershed
from slideloom.instances.scratch import Method, SlideMaps, paint, scratch_array
from slideloom.instances.threshold import components
from slideloom.instances.windows import Box, LabelTable, label_table, link, windows

__all__ = ["GIANT_PX", "Stitched", "stitch"]

#: Components with a longer bounding box are split in blocks.
GIANT_PX = 2048


@dataclass(frozen=True)
class Stitched:
    """Instances of a slide, before their final numbers are written.

    Attributes
    ----------
    draft : tensorstore.TensorStore
        (H, W) uint32: provisional numbers.
    final : (m + 1,) uint32 array
        Final id of each provisional number; 0 for what is dropped.
    table : LabelTable
        Of the final ids.
    """

    draft: ts.TensorStore
    final: NDArray[np.uint32]
    table: LabelTable

    @property
    def n(self) -> int:
        """Number of instances."""
        return len(self.table) - 1


def stitch(
    maps: SlideMaps, method: Method, scratch: Path, *, window_px: int, halo_px: int, giant_px: int = GIANT_PX
) -> Stitched:
    """Find all instances of a slide.

    Parameters
    ----------
    maps : SlideMaps
        What to read.
    method : HVWatershed or Threshold
        How components become instances.
    scratch : Path
        Empty folder for working arrays.
    window_px, halo_px : int
        Side of the windows, and how far a component may reach beyond its window and still be read together with others.
        Neither changes the result.
    giant_px : int
        Components with a longer bounding box are split in blocks.

    Returns
    -------
    Stitched
        Ids rise in raster order of first pixels.
    """
    shape = maps.shape
    width = shape[1]
    places = list(windows(Box(0, 0, *shape), window_px))

    def label(place: Box) -> NDArray[np.int32]:
        outer = place.grown(method.front.context_px, shape)
        return components(method.front.mask(maps.read_nucleus(outer))[place.within(outer)])[0]

    linked = link(places, label, width)
    draft = scratch_array(scratch / "draft", shape)
    tables: list[LabelTable] = []
    base = 0
    wide_enough = linked.table.area >= method.front.min_area_px
    sides = np.maximum(linked.table.box[:, 2] - linked.table.box[:, 0], linked.table.box[:, 3] - linked.table.box[:, 1])
    ordinary = np.flatnonzero(wide_enough & (sides <= giant_px))
    for box, members in _batches(linked.table, ordinary, window_px, halo_px):
        labels = _split(maps, method, box, linked.table.first[members])
        count = int(labels.max(initial=0))
        paint(draft, box, labels, base)
        tables.append(label_table(labels, count, box, width))
        base += count
    giants = np.flatnonzero(wide_enough & (sides > giant_px))
    if giants.size:
        tables.append(split_giants(maps, method, giants, linked, places, label, scratch, draft, base))
    return _number(draft, LabelTable.stack(tables), method.front.min_area_px)


def _batches(
    table: LabelTable, chosen: NDArray[np.intp], window_px: int, halo_px: int
) -> Iterator[tuple[Box, NDArray[np.intp]]]:
    """Components to be read together, and the box that holds them whole.

    A component belongs to the window that holds the upper left corner of its bounding box.
    """
    if not chosen.size:
        return
    top, left, bottom, right = table.box[chosen].T
    row, column = top // window_px, left // window_px
    order = np.lexsort((column, row))
    cuts = np.flatnonzero(np.diff(row[order]) | np.diff(column[order])) + 1
    for group in np.split(order, cuts):
        y, x = int(row[group[0]]) * window_px, int(column[group[0]]) * window_px
        fits = (bottom[group] <= y + window_px + halo_px) & (right[group] <= x + window_px + halo_px)
        together = group[fits]
        if together.size:
            low, high = table.box[chosen[together], :2].min(axis=0), table.box[chosen[together], 2:].max(axis=0)
            yield Box(int(low[0]), int(low[1]), int(high[0]), int(high[1])), chosen[together]
        for alone in chosen[group[~fits]]:
            yield table.box_of(int(alone)), np.array([alone])


def _split(maps: SlideMaps, method: Method, box: Box, first: NDArray[np.int64]) -> NDArray[np.int32]:
    """Instances of the components whose first pixels are given, all of them inside the box."""
    shape = maps.shape
    outer = box.grown(method.context_px, shape)
    mask = method.front.mask(maps.read_nucleus(outer))
    found, stats = components(mask)
    y, x = np.divmod(first, shape[1])
    lut = np.zeros(len(stats), np.int32)
    lut[found[y - outer.top, x - outer.left]] = np.arange(1, len(first) + 1)
    parts = lut[found]
    if isinstance(method, HVWatershed):
        parts = method.split(parts, mask, maps.read_hv(outer))
    inner: NDArray[np.int32] = parts[box.within(outer)]
    return inner


def _number(draft: ts.TensorStore, table: LabelTable, min_area_px: int) -> Stitched:
    """Drop small instances and number the others in raster order of their first pixels."""
    kept = np.flatnonzero(table.area >= min_area_px)
    kept = kept[np.argsort(table.first[kept])]
    final = np.zeros(len(table), np.uint32)
    final[kept] = np.arange(1, len(kept) + 1)
    rows = np.concatenate([[0], kept])
    return Stitched(draft, final, LabelTable(table.first[rows], table.area[rows], table.box[rows]))
