"""A slide's instances, worked through in windows and the same to the byte for any window, number of workers and order.

1. Window by window, in any order: the foreground, what is flooded and the seeds are computed with as much context as
   they look at, so they are the slide's own; the window's forest is grown, and its atoms are written down.
2. The forests are joined (:mod:`slideloom.instances.join`): which atoms make up an instance is decided by the whole
   slide, exactly, however far an instance or a cluster of them reaches.
3. Instances are renumbered in raster order of their first pixels. Labels are atoms looked up.

No object is ever cut, so none is mended, and none is looked at twice. Memory: the windows in work, and some hundred
bytes for each instance and each foreground pixel on a seam.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from slideloom.artefacts.zarrio import create_array
from slideloom.instances.forest import Flooded, flood
from slideloom.instances.join import Joined, WindowForest, join, window_forest
from slideloom.instances.method import Landscape, Method
from slideloom.instances.pool import in_order
from slideloom.instances.windows import Box, LabelTable, WindowGrid

__all__ = ["SlideMaps", "Stitched", "find_instances", "number", "stitch", "working_array"]

#: Larger windows are rounded up to whole multiples, so that working arrays have pieces of a sensible size.
_PIECE_PX = 2048


@dataclass(frozen=True)
class SlideMaps:
    """The maps that instances are made from.

    Attributes
    ----------
    arrays : mapping of str to array
        ``nucleus`` (H, W) uint8, 255 times the probability, and what the method reads, (…, H, W): NumPy arrays or open
        Zarr arrays.
    """

    arrays: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in grid pixels."""
        height, width = self.arrays["nucleus"].shape
        return int(height), int(width)

    def read(self, name: str, box: Box) -> NDArray[Any]:
        """One map of a box."""
        return np.asarray(self.arrays[name][(..., *box.slices)])


@dataclass(frozen=True)
class Stitched:
    """Instances of a slide.

    Attributes
    ----------
    grid : WindowGrid
        The windows.
    atoms : tensorstore.TensorStore
        (H, W) int32: the atoms of each window.
    offsets : (windows + 1,) int64 array
        What is added to a window's own atoms.
    final : (m + 1,) uint32 array
        Final id of each atom; 0 for what is dropped.
    table : LabelTable
        Of the final ids.
    """

    grid: WindowGrid
    atoms: ts.TensorStore
    offsets: NDArray[np.int64]
    final: NDArray[np.uint32]
    table: LabelTable

    @property
    def n(self) -> int:
        """Number of instances."""
        return len(self.table) - 1

    def read(self, box: Box) -> NDArray[np.uint32]:
        """Final labels of a box."""
        labels = np.zeros((box.height, box.width), np.uint32)
        for index in self.grid.meeting(box):
            start, stop = self.offsets[index : index + 2].tolist()
            if start == stop:
                continue
            both = self.grid.place(index).common(box)
            own = np.concatenate([self.final[:1], self.final[start + 1 : stop + 1]])
            labels[both.within(box)] = own[np.asarray(self.atoms[both.slices])]
        return labels


def stitch(
    maps: SlideMaps,
    method: Method,
    scratch: Path,
    *,
    window_px: int = 2048,
    workers: int = 1,
    order: Iterable[int] | None = None,
) -> Stitched:
    """Find all instances of a slide.

    Parameters
    ----------
    maps : SlideMaps
        What to read.
    method : Method
        How components become instances.
    scratch : Path
        Folder for a working array, written here; :class:`Stitched` reads it.
    window_px : int
        Side of the windows.
    workers : int
        Windows in work at once.
    order : iterable of int, optional
        In which order windows are worked on; row by row when left out.

    Returns
    -------
    Stitched
        Ids rise in raster order of first pixels. Neither ``window_px`` nor ``workers`` nor ``order`` changes them.
    """
    grid, atoms = working_array(scratch, maps.shape, window_px)

    def work(index: int) -> tuple[int, WindowForest]:
        place = grid.place(index)
        flooded, landscape = _flood_window(maps, method, grid, index)
        if flooded.n:
            atoms[place.slices].write(flooded.atoms).result()
        return index, window_forest(flooded, landscape, place, maps.shape[1])

    found = dict(in_order(work, range(grid.n) if order is None else order, workers))
    joined = join(grid, [found[index] for index in range(grid.n)])
    final, table = number(joined, method.front.min_area_px)
    return Stitched(grid, atoms, joined.offsets, final, table)


def working_array(scratch: Path, shape: tuple[int, int], window_px: int) -> tuple[WindowGrid, ts.TensorStore]:
    """Windows over a slide, and an array in a folder for their atoms, (H, W) int32.

    Larger windows are rounded up to whole multiples of the array's pieces.
    """
    if window_px > _PIECE_PX:
        window_px = -(-window_px // _PIECE_PX) * _PIECE_PX
    piece = min(window_px, _PIECE_PX)
    atoms = create_array(scratch / "atoms", shape, np.int32, chunk=(piece, piece), shard=(piece, piece), codec="labels")
    return WindowGrid(Box(0, 0, *shape), window_px), atoms


def find_instances(maps: SlideMaps, method: Method) -> NDArray[np.int32]:
    """Instances of one map that fits in memory, as :func:`stitch` finds them.

    Parameters
    ----------
    maps : SlideMaps
        What to read.
    method : Method
        How components become instances.

    Returns
    -------
    (H, W) int32 array
        0 background; ids rise in raster order of first pixels.
    """
    grid = WindowGrid(Box(0, 0, *maps.shape), max(maps.shape))
    flooded, landscape = _flood_window(maps, method, grid, 0)
    joined = join(grid, [window_forest(flooded, landscape, grid.place(0), maps.shape[1])])
    final, _ = number(joined, method.front.min_area_px)
    labels: NDArray[np.int32] = final.astype(np.int32)[flooded.atoms]
    return labels


def _flood_window(maps: SlideMaps, method: Method, grid: WindowGrid, index: int) -> tuple[Flooded, Landscape | None]:
    """A window's forest, and what was flooded in it."""
    place = grid.place(index)
    outer = place.grown(method.context_px, maps.shape)
    core = place.within(outer)
    mask = method.front.mask(maps.read("nucleus", outer))
    inside = np.ascontiguousarray(mask[core])
    if not inside.any():
        return flood(inside), None
    whole = method.landscape(mask, {name: maps.read(name, outer) for name in method.reads})
    if whole is None:
        return flood(inside), None
    landscape = Landscape(np.ascontiguousarray(whole.level[core]), np.ascontiguousarray(whole.seeds[core]))
    return flood(inside, landscape.level, landscape.seeds, grid.seams(index)), landscape


def number(joined: Joined, min_area_px: int) -> tuple[NDArray[np.uint32], LabelTable]:
    """Drop small instances and number the others in raster order of their first pixels; by atom, and where they lie."""
    table = joined.table
    kept = np.flatnonzero(table.area >= max(min_area_px, 1))
    kept = kept[np.argsort(table.first[kept])]
    final = np.zeros(len(table), np.uint32)
    final[kept] = np.arange(1, len(kept) + 1)
    rows = np.concatenate([[0], kept])
    return final[joined.instance], LabelTable(table.first[rows], table.area[rows], table.box[rows])
