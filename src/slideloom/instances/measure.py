"""Figures of every instance of a slide, gathered window by window in one pass.

All sums are of whole numbers and independent of the windows; outlines are chained where an instance is complete. The
cost is linear in the foreground: no instance is ever looked for in a full image. Instances come out in the order of
their ids as soon as the windows above have all been looked at, so that no more outlines are held than those of a few
rows of windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideloomError
from slideloom.instances.contours import Sides, find_sides, position
from slideloom.instances.outlines import Outlines, outlines
from slideloom.instances.pool import in_order
from slideloom.instances.windows import Box, LabelTable, WindowGrid

__all__ = ["Figures", "label_runs", "measure", "measured"]

#: Instances of a part, other than the last.
_PART = 1 << 16
_NOTHING = np.zeros((0, 0), np.uint8)


@dataclass(frozen=True)
class Figures:
    """Figures of n instances with consecutive ids.

    Attributes
    ----------
    first : int
        Id of the first.
    area : (n,) int64 array
        Pixels.
    box : (n, 4) int64 array
        Top, left, bottom, right, past-the-end exclusive, grid pixels.
    centroid : (n, 2) float64 array
        x, y of the mean pixel centre in grid pixels; pixel i has its centre at i + 0.5.
    nucleus : (n,) int64 array
        Sum of the nucleus map, 255 a pixel at most.
    class_pixels : (n, k) int64 array
        Pixels of each class, background first; k = 0 without a class map.
    class_weight : (n, k) int64 array
        Sum of the class probability over those pixels, 255 a pixel at most.
    outlines : Outlines
        Polygons, level-0 pixels, (x, y).
    """

    first: int
    area: NDArray[np.int64]
    box: NDArray[np.int64]
    centroid: NDArray[np.float64]
    nucleus: NDArray[np.int64]
    class_pixels: NDArray[np.int64]
    class_weight: NDArray[np.int64]
    outlines: Outlines

    def __len__(self) -> int:
        return len(self.area)


@dataclass(frozen=True)
class _Window:
    """What a window adds: sums of the labels in it, whole outlines, and sides of those that go on elsewhere."""

    present: NDArray[np.int64]
    sums: NDArray[np.int64]
    class_pixels: NDArray[np.int64]
    class_weight: NDArray[np.int64]
    whole: Outlines
    open: Sides


def measure(
    labels: Any,
    maps: Mapping[str, Any],
    table: LabelTable,
    *,
    n_classes: int = 0,
    scale: float = 1.0,
    window_px: int = 2048,
    workers: int = 1,
) -> Figures:
    """Measure all instances at once; parameters and errors as those of :func:`measured`."""
    options: dict[str, Any] = {"n_classes": n_classes, "scale": scale, "window_px": window_px, "workers": workers}
    return next(measured(labels, maps, table, **options, part=max(len(table) - 1, 1)))


def measured(
    labels: Any,
    maps: Mapping[str, Any],
    table: LabelTable,
    *,
    n_classes: int = 0,
    scale: float = 1.0,
    window_px: int = 2048,
    workers: int = 1,
    part: int = _PART,
) -> Iterator[Figures]:
    """Measure instances, a part of them after the other.

    Parameters
    ----------
    labels : (H, W) array of unsigned integers
        Ids 1 … n, every one of them present; NumPy array or open Zarr array.
    maps : mapping of str to array
        ``nucleus`` (H, W) uint8 and, with ``n_classes``, ``class_id`` and ``class_probability``, likewise.
    table : LabelTable
        Boxes and areas of the ids.
    n_classes : int
        Classes including background; 0 without a class map.
    scale : float
        Level-0 pixels per grid pixel, for the outlines.
    window_px : int
        Side of the windows; changes nothing but memory.
    workers : int
        Windows in work at once; changes nothing.
    part : int
        Instances of a part.

    Yields
    ------
    Figures
        Of the next ``part`` ids; one without instances where there are none. Memory: the windows in work, some hundred
        bytes an instance, and the outlines of a part and a row of windows.

    Raises
    ------
    SlideloomError
        ``unknown_class``: the class map holds an id of ``n_classes`` or above.
    """
    height, width = labels.shape
    grid = WindowGrid(Box(0, 0, height, width), window_px)
    totals = _Totals(table, n_classes, part)

    def work(index: int) -> _Window | None:
        place = grid.place(index)
        return _look(np.asarray(labels[place.slices]), maps, table, place, n_classes, scale, width)

    open_sides: list[Sides] = []
    for index, window in enumerate(in_order(work, range(grid.n), workers)):
        if window is not None:
            totals.add(window)
            open_sides.append(window.open)
        if grid.right_of(index) is not None:
            continue
        done = grid.place(index).bottom
        sides = Sides.gather(open_sides)
        ready = table.box[sides.label, 2] <= done
        totals.keep(outlines(Sides.join([sides.of(ready)], width), width, scale))
        open_sides = [sides.of(~ready)]
        yield from totals.ready(done)


def _look(
    labels: NDArray[Any],
    maps: Mapping[str, Any],
    table: LabelTable,
    place: Box,
    n_classes: int,
    scale: float,
    slide_width_px: int,
) -> _Window | None:
    """Everything about a window; None if it is empty."""
    labels = np.ascontiguousarray(labels, np.uint32)
    present = np.unique(label_runs(labels))
    if not present.size:
        return None
    names = ("nucleus", "class_id", "class_probability") if n_classes else ("nucleus",)
    planes = [np.ascontiguousarray(maps[name][place.slices], np.uint8) for name in names]
    planes += [_NOTHING] * (3 - len(planes))
    sums, class_pixels, class_weight, highest = _add_up(labels, present, place.top, place.left, n_classes, *planes)
    if n_classes and highest >= n_classes:
        raise _unknown_class(highest, n_classes)
    sides = find_sides(labels, place.top, place.left, slide_width_px)
    top, left, bottom, right = table.box[present].T
    inside = (top >= place.top) & (left >= place.left) & (bottom <= place.bottom) & (right <= place.right)
    whole = inside[np.searchsorted(present, sides.label)]
    return _Window(
        present.astype(np.int64),
        sums,
        class_pixels,
        class_weight,
        outlines(sides.of(whole), slide_width_px, scale),
        sides.of(~whole),
    )


class _Totals:
    """Sums and outlines as they come in, handed out in parts once they are complete."""

    def __init__(self, table: LabelTable, n_classes: int, part: int) -> None:
        count = len(table)
        self._table = table
        self._sums = np.zeros((count, 3), np.int64)  # x, y, nucleus
        self._class_pixels = np.zeros((count, n_classes), np.int64)
        self._class_weight = np.zeros((count, n_classes), np.int64)
        self._part = part
        begins = np.arange(1, max(count, 2), part)
        self._ends = np.minimum(begins + part, count).tolist()
        #: Row below the lowest pixel of each part.
        self._bottoms = [int(table.box[b:e, 2].max(initial=0)) for b, e in zip(begins, self._ends, strict=True)]
        self._outlines: list[list[Outlines]] = [[] for _ in self._ends]
        self._next = 0

    def add(self, window: _Window) -> None:
        """Add a window's sums, and keep its outlines."""
        self._sums[window.present] += window.sums
        self._class_pixels[window.present] += window.class_pixels
        self._class_weight[window.present] += window.class_weight
        self.keep(window.whole)

    def keep(self, found: Outlines) -> None:
        """Keep outlines, each with the part that its instance belongs to."""
        if not len(found):
            return
        part = (found.label - 1) // self._part
        parts, first = np.unique(part, return_index=True)
        stops = [*first[1:].tolist(), len(found)]
        for number, begin, stop in zip(parts.tolist(), first.tolist(), stops, strict=True):
            self._outlines[number].append(found.part(begin, stop))

    def ready(self, done_px: int) -> Iterator[Figures]:
        """The next parts whose instances all end above a row."""
        while self._next < len(self._ends) and self._bottoms[self._next] <= done_px:
            first, stop = self._next * self._part + 1, self._ends[self._next]
            polygons = Outlines.join(self._outlines[self._next])
            self._outlines[self._next] = []
            if not np.array_equal(polygons.label, np.arange(first, stop)):
                raise ValueError(f"ids {first} to {stop - 1} are not all in the label image, or others are")
            rows = slice(first, stop)
            area = self._table.area[rows]
            yield Figures(
                first,
                area,
                self._table.box[rows],
                self._sums[rows, :2] / area[:, None] + 0.5,
                self._sums[rows, 2],
                self._class_pixels[rows],
                self._class_weight[rows],
                polygons,
            )
            self._next += 1


def _unknown_class(class_id: int, n_classes: int) -> SlideloomError:
    return SlideloomError(
        f"class {class_id} in the class map",
        expected=f"0 to {n_classes - 1}, as the classes table says",
        hint="Train the experiment again after editing the classes table",
        code="unknown_class",
    )


def label_runs(labels: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Labels of all horizontal runs of one label, (runs,), background left out, in raster order."""
    found: NDArray[np.uint32] = _runs(labels)
    return found


@numba.njit(nogil=True, cache=True)
def _runs(labels: Any) -> Any:
    """Two passes: how many, then which."""
    height, width = labels.shape
    found = np.empty(0, np.uint32)
    for turn in range(2):
        count = 0
        for y in range(height):
            before = np.uint32(0)
            for x in range(width):
                own = labels[y, x]
                if own != before and own != 0:
                    if turn:
                        found[count] = own
                    count += 1
                before = own
        if not turn:
            found = np.empty(count, np.uint32)
    return found


@numba.njit(nogil=True, cache=True)
def _add_up(
    labels: Any,
    present: Any,
    y_px: int,
    x_px: int,
    n_classes: int,
    nucleus: Any,
    class_id: Any,
    class_probability: Any,
) -> tuple[Any, Any, Any, int]:
    """Sums by label of ``present``: x, y, nucleus; pixels and weight by class; and the highest class."""
    height, width = labels.shape
    sums = np.zeros((present.size, 3), np.int64)
    class_pixels = np.zeros((present.size, n_classes), np.int64)
    class_weight = np.zeros((present.size, n_classes), np.int64)
    highest = 0
    for y in range(height):
        before, row = 0, 0
        for x in range(width):
            own = labels[y, x]
            if own == 0:
                continue
            if own != before:
                row, before = position(present, own), own
            sums[row, 0] += x + x_px
            sums[row, 1] += y + y_px
            sums[row, 2] += nucleus[y, x]
            if n_classes:
                kind = class_id[y, x]
                highest = max(highest, kind)
                if kind < n_classes:
                    class_pixels[row, kind] += 1
                    class_weight[row, kind] += class_probability[y, x]
    return sums, class_pixels, class_weight, highest
