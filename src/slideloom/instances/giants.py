"""Components too large to be held whole: split in blocks of a grid that is fixed on the slide.

Confluent tissue can make one component of a whole region. Its markers are found block by block and joined across the
blocks' seams, so a marker has one identity wherever it is seen. Each block is then flooded with all the markers that
lie in it or in the context round it, and keeps the flood of its own pixels: every pixel is decided once, by its own
block, and the pieces of one nucleus in two blocks carry the same marker's number.

The blocks do not move with ``window_px``, so the result does not depend on it. Where they meet, a border between two
nuclei may lie a pixel off what one flood of the whole component would draw; parts without any marker within
the context stay background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from slideloom.instances.flooding import flood
from slideloom.instances.hv_watershed import HVWatershed, hv_energy, relief
from slideloom.instances.scratch import Method, SlideMaps, paint, read_box, scratch_array
from slideloom.instances.threshold import components
from slideloom.instances.windows import Box, LabelTable, LinkedLabels, label_table, link, windows

__all__ = ["BLOCK_PX", "CONTEXT_PX", "split_giants"]

BLOCK_PX = 1024
CONTEXT_PX = 256


def split_giants(
    maps: SlideMaps,
    method: Method,
    giants: NDArray[np.intp],
    linked: LinkedLabels,
    places: Sequence[Box],
    label: Callable[[Box], NDArray[np.int32]],
    scratch: Path,
    draft: ts.TensorStore,
    base: int,
) -> LabelTable:
    """Split giant components and write their instances.

    Parameters
    ----------
    maps, method
        As for :func:`slideloom.instances.stitch.stitch`.
    giants : (g,) integer array
        Their numbers in ``linked``.
    linked, places, label
        The slide's components, the windows they were found in, and the function that labels a window.
    scratch : Path
        Folder for working arrays.
    draft : tensorstore.TensorStore
        Where instances are written.
    base : int
        Highest number in use.

    Returns
    -------
    LabelTable
        Of the instances ``base + 1`` onwards.
    """
    index = np.zeros(len(linked.table), np.int64)
    index[giants] = np.arange(1, len(giants) + 1)
    boxes = linked.table.box[giants]
    area = scratch_array(scratch / "giants", maps.shape)
    for number, place in enumerate(places):
        if _meets(place, boxes):
            paint(area, place, index[linked.relabel(number, label(place))], 0)
    own = LabelTable(*(column[np.concatenate([[0], giants])] for column in _columns(linked.table)))
    if not isinstance(method, HVWatershed):
        _paint_whole(area, draft, places, boxes, np.arange(len(giants) + 1), base)
        return own
    frame = _block_frame(boxes, maps.shape)
    blocks = list(windows(frame, BLOCK_PX))
    seeds, n_seeds = _seeds(maps, method, area, blocks, scratch)
    table = LabelTable.empty(n_seeds)
    seeded = np.zeros(len(giants) + 1, bool)
    for block in blocks:
        outer = block.grown(max(CONTEXT_PX, method.context_px), maps.shape)
        parts, marks = read_box(area, outer), read_box(seeds, outer)
        seeded[np.unique(parts[marks > 0])] = True
        if not (parts[block.within(outer)] > 0).any():
            continue
        mask = method.front.mask(maps.read_nucleus(outer))
        energy = hv_energy(maps.read_hv(outer), method.width_px)
        everything = (slice(0, outer.height), slice(0, outer.width))
        flooded = flood(relief(energy, mask, everything), marks.astype(np.int32), parts > 0)
        labels = np.ascontiguousarray(flooded[block.within(outer)])
        paint(draft, block, labels, base)
        table.add(np.arange(n_seeds + 1), label_table(labels, n_seeds, block, maps.shape[1]))
    # A giant without a single marker stays whole, as any component does.
    bare = np.flatnonzero(~seeded[1:]) + 1
    numbers = np.zeros(len(giants) + 1, np.int64)
    numbers[bare] = n_seeds + np.arange(1, len(bare) + 1)
    if bare.size:
        _paint_whole(area, draft, places, boxes, numbers, base)
    rest = np.concatenate([[0], bare])
    return LabelTable.stack([table, LabelTable(own.first[rest], own.area[rest], own.box[rest])])


def _seeds(
    maps: SlideMaps, method: HVWatershed, area: ts.TensorStore, blocks: Sequence[Box], scratch: Path
) -> tuple[ts.TensorStore, int]:
    """Write the markers of all giants, numbered across the blocks; and how many there are."""

    def label(block: Box) -> NDArray[np.int32]:
        outer = block.grown(max(CONTEXT_PX, method.context_px), maps.shape)
        inside = read_box(area, outer) > 0
        if not inside[block.within(outer)].any():
            return np.zeros((block.height, block.width), np.int32)
        marks = method.markers(inside, hv_energy(maps.read_hv(outer), method.width_px))
        return components(np.ascontiguousarray(marks[block.within(outer)]))[0]

    linked = link(blocks, label, maps.shape[1])
    keep = linked.table.area >= method.min_marker_px
    keep[0] = False
    number = np.where(keep, np.cumsum(keep), 0)
    seeds = scratch_array(scratch / "seeds", maps.shape)
    for index, block in enumerate(blocks):
        paint(seeds, block, number[linked.relabel(index, label(block))], 0)
    return seeds, int(keep.sum())


def _paint_whole(
    area: ts.TensorStore,
    draft: ts.TensorStore,
    places: Sequence[Box],
    boxes: NDArray[np.int64],
    numbers: NDArray[np.int64],
    base: int,
) -> None:
    for place in places:
        if _meets(place, boxes):
            paint(draft, place, numbers[read_box(area, place)], base)


def _columns(table: LabelTable) -> tuple[NDArray[np.int64], ...]:
    return table.first, table.area, table.box


def _meets(place: Box, boxes: NDArray[np.int64]) -> bool:
    top, left, bottom, right = boxes.T
    meets = (top < place.bottom) & (bottom > place.top) & (left < place.right) & (right > place.left)
    return bool(meets.any())


def _block_frame(boxes: NDArray[np.int64], shape: tuple[int, int]) -> Box:
    """Smallest frame of whole blocks round all giants."""
    low = boxes[:, :2].min(axis=0) // BLOCK_PX * BLOCK_PX
    high = -(-boxes[:, 2:].max(axis=0) // BLOCK_PX) * BLOCK_PX
    return Box(int(low[0]), int(low[1]), min(int(high[0]), shape[0]), min(int(high[1]), shape[1]))
