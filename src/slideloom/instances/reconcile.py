"""Nuclei and cells that were found apart, made to fit: every nucleus lies in a cell that has its number.

A nucleus belongs to the cell that holds more than half of it. A cell takes the number of the largest nucleus that
belongs to it (of equal ones, the first); every other nucleus becomes a cell of its own shape. Pixels of nuclei are
their nucleus' cell's, whatever cell they lay in. Cells that no nucleus belongs to are kept as they are, less the pixels
of nuclei, which may leave small pieces of them.

Nuclei are never changed. What happens to a pixel depends on its two labels alone, and the decisions on counts of pixels
that add up over windows, so a slide is reconciled in windows and is the same for any.

Where no nucleus at all belongs to a cell, the original drops everything; here nuclei become cells as elsewhere.

Source: the program published with Goldsborough et al., InstanSeg (2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from slideloom.instances.pool import in_order
from slideloom.instances.refine.found import Found
from slideloom.instances.windows import Box, LabelTable, label_table, windows

__all__ = ["Reconciled", "reconcile", "reconcile_slide"]


@dataclass(frozen=True)
class Reconciled:
    """Cells of a slide that fit its nuclei.

    Attributes
    ----------
    nuclei, cells : Found
        As they were found.
    number : (c + 1,) uint32 array
        New number of each cell that was found: of its pixels outside nuclei; 0 for what is dropped.
    table : LabelTable
        Of the new numbers: 1 … ``nuclei.n`` are the cells of these nuclei, later ones have none and rise in raster
        order of first pixels.
    """

    nuclei: Found
    cells: Found
    number: NDArray[np.uint32]
    table: LabelTable

    @property
    def n(self) -> int:
        """Number of cells."""
        return len(self.table) - 1

    def read(self, box: Box) -> NDArray[np.uint32]:
        """Cells of a box."""
        found: NDArray[np.uint32] = _paint(self.nuclei.read(box), self.cells.read(box), self.number)
        return found


def reconcile_slide(
    nuclei: Found,
    cells: Found,
    *,
    unnucleated: bool = True,
    min_area_px: int = 0,
    window_px: int = 2048,
    workers: int = 1,
) -> Reconciled:
    """Make a slide's cells fit its nuclei.

    Parameters
    ----------
    nuclei, cells : Found
        Of the same slide.
    unnucleated : bool
        Whether cells without a nucleus are kept.
    min_area_px : int
        Unless fewer of their pixels than these are left.
    window_px : int
        Side of the windows; changes memory and speed only.
    workers : int
        Windows in work at once; changes nothing.
    """
    frame = nuclei.grid.frame

    def count(box: Box) -> NDArray[np.int64]:
        return _counted(nuclei.read(box), cells.read(box))

    rows = list(in_order(count, windows(frame, window_px), workers))
    number = _numbers(_summed(np.concatenate(rows)), nuclei.n, cells.n, unnucleated)

    def measure(box: Box) -> tuple[NDArray[np.int64], LabelTable]:
        painted = _paint(nuclei.read(box), cells.read(box), number)
        present = np.zeros(nuclei.n + cells.n + 1, np.bool_)
        present[painted] = True
        present[0] = True
        own = (np.cumsum(present) - 1).astype(np.int32)
        labels = np.flatnonzero(present)
        return labels, label_table(own[painted], len(labels) - 1, box, frame.width)

    table = LabelTable.empty(nuclei.n + cells.n)
    for labels, part in in_order(measure, windows(frame, window_px), workers):
        table.add(labels, part)
    # Cells without a nucleus: those of which enough is left, in raster order.
    left = np.flatnonzero(table.area >= max(min_area_px, 1))
    left = left[left > nuclei.n]
    left = left[np.argsort(table.first[left])]
    order = np.concatenate([np.arange(nuclei.n + 1), left])
    final = np.zeros(len(table), np.uint32)
    final[order] = np.arange(len(order))
    return Reconciled(nuclei, cells, final[number], LabelTable(table.first[order], table.area[order], table.box[order]))


def reconcile(nuclei: NDArray[Any], cells: NDArray[Any], *, unnucleated: bool = True) -> NDArray[np.int32]:
    """Make cells fit nuclei, both in memory.

    Parameters
    ----------
    nuclei, cells : (H, W) arrays of integers
        0 background.
    unnucleated : bool
        Whether cells without a nucleus are kept.

    Returns
    -------
    (H, W) int32 array
        Cells: those with a nucleus have its label; the others follow after the greatest, by their own.
    """
    n_nuclei, n_cells = int(nuclei.max(initial=0)), int(cells.max(initial=0))
    number = _numbers(_summed(_counted(nuclei, cells)), n_nuclei, n_cells, unnucleated)
    painted: NDArray[np.uint32] = _paint(nuclei, cells, number)
    return painted.astype(np.int32)


def _counted(nuclei: NDArray[Any], cells: NDArray[Any]) -> NDArray[np.int64]:
    """Nucleus, cell (or 0) and the pixels that both have, for all nuclei of a window."""
    return _summed(_runs(nuclei, cells))


def _summed(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of (nucleus, cell, pixels) with equal ones put together, sorted."""
    if not len(rows):
        return rows
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    new = np.concatenate([[True], (rows[1:, :2] != rows[:-1, :2]).any(axis=1)])
    starts = np.flatnonzero(new)
    return np.concatenate([rows[starts, :2], np.add.reduceat(rows[:, 2], starts)[:, None]], axis=1)


def _numbers(rows: NDArray[np.int64], n_nuclei: int, n_cells: int, unnucleated: bool) -> NDArray[np.uint32]:
    """Number of each cell: its largest nucleus', or one after all nuclei."""
    area = np.zeros(n_nuclei + 1, np.int64)
    np.add.at(area, rows[:, 0], rows[:, 2])
    nucleus, cell, pixels = rows.T
    belongs = (cell > 0) & (2 * pixels > area[nucleus])
    nucleus, cell = nucleus[belongs], cell[belongs]
    first = np.lexsort((nucleus, -area[nucleus], cell))
    taken, where = np.unique(cell[first], return_index=True)
    number = (
        np.arange(n_cells + 1, dtype=np.uint32) + np.uint32(n_nuclei)
        if unnucleated
        else np.zeros(n_cells + 1, np.uint32)
    )
    number[0] = 0
    number[taken] = nucleus[first][where]
    return number


@numba.njit(nogil=True, cache=True)
def _runs(nuclei: Any, cells: Any) -> Any:
    """Nucleus, cell and length of every run of equal pixels in a row, for pixels of nuclei."""
    height, width = nuclei.shape
    found, count = np.empty((1024, 3), np.int64), 0
    for y in range(height):
        x = 0
        while x < width:
            nucleus, cell, start = nuclei[y, x], cells[y, x], x
            while x < width and nuclei[y, x] == nucleus and cells[y, x] == cell:
                x += 1
            if nucleus == 0:
                continue
            if count == len(found):
                longer = np.empty((2 * count, 3), np.int64)
                longer[:count] = found
                found = longer
            found[count, 0], found[count, 1], found[count, 2] = nucleus, cell, x - start
            count += 1
    return found[:count].copy()


@numba.njit(nogil=True, cache=True)
def _paint(nuclei: Any, cells: Any, number: Any) -> Any:
    """Cells of a window, (H, W) uint32."""
    painted = np.empty(nuclei.shape, np.uint32)
    for y in range(nuclei.shape[0]):
        for x in range(nuclei.shape[1]):
            painted[y, x] = nuclei[y, x] if nuclei[y, x] > 0 else number[cells[y, x]]
    return painted
