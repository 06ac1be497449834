"""Windows over a slide, and connected components found window by window and joined across the seams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = ["Box", "LabelTable", "LinkedLabels", "label_table", "link", "windows"]


@dataclass(frozen=True)
class Box:
    """A rectangle of slide pixels, past-the-end exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns as an index."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def grown(self, by_px: int, shape: tuple[int, int]) -> Box:
        """The box with context all round, as far as the slide reaches."""
        height, width = shape
        return Box(
            max(self.top - by_px, 0),
            max(self.left - by_px, 0),
            min(self.bottom + by_px, height),
            min(self.right + by_px, width),
        )

    def within(self, outer: Box) -> tuple[slice, slice]:
        """Index of this box in an array that covers ``outer``."""
        return (
            slice(self.top - outer.top, self.bottom - outer.top),
            slice(self.left - outer.left, self.right - outer.left),
        )


def windows(frame: Box, side_px: int) -> Iterator[Box]:
    """Cut a frame into windows, row by row; those at the right and lower border may be smaller."""
    for top in range(frame.top, frame.bottom, side_px):
        for left in range(frame.left, frame.right, side_px):
            yield Box(top, left, min(top + side_px, frame.bottom), min(left + side_px, frame.right))


@dataclass(frozen=True)
class LabelTable:
    """Where labels lie. Index 0 is background and means nothing.

    Attributes
    ----------
    first : (n + 1,) int64 array
        First pixel in raster order: y · width of the slide + x.
    area : (n + 1,) int64 array
        Pixels.
    box : (n + 1, 4) int64 array
        Top, left, bottom, right, past-the-end exclusive.
    """

    first: NDArray[np.int64]
    area: NDArray[np.int64]
    box: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.area)

    @classmethod
    def empty(cls, count: int) -> LabelTable:
        """Labels 0 … count without a pixel."""
        far = np.iinfo(np.int64).max
        box = np.empty((count + 1, 4), np.int64)
        box[:, :2], box[:, 2:] = far, -1
        return cls(np.full(count + 1, far), np.zeros(count + 1, np.int64), box)

    def add(self, labels: NDArray[np.integer[Any]], other: LabelTable) -> None:
        """Add pixels: row i of ``other`` lies in label ``labels[i]`` here; background counts for nothing."""
        where, rows = labels[1:], slice(1, None)
        np.minimum.at(self.first, where, other.first[rows])
        np.add.at(self.area, where, other.area[rows])
        for column, extreme in enumerate((np.minimum, np.minimum, np.maximum, np.maximum)):
            extreme.at(self.box[:, column], where, other.box[rows, column])

    @classmethod
    def stack(cls, tables: Sequence[LabelTable]) -> LabelTable:
        """One table after the other, without their backgrounds."""
        start = cls.empty(0)
        return cls(
            np.concatenate([start.first, *(table.first[1:] for table in tables)]),
            np.concatenate([start.area, *(table.area[1:] for table in tables)]),
            np.concatenate([start.box, *(table.box[1:] for table in tables)]),
        )

    def box_of(self, label: int) -> Box:
        """Bounding box of a label."""
        top, left, bottom, right = self.box[label].tolist()
        return Box(top, left, bottom, right)


def label_table(labels: NDArray[np.int32], count: int, place: Box, slide_width_px: int) -> LabelTable:
    """Measure the labels of a window.

    Parameters
    ----------
    labels : (H, W) int32 array
        0 background, 1 … count.
    count : int
        Highest label.
    place : Box
        Where the window lies.
    slide_width_px : int
        Width of the slide.

    Returns
    -------
    LabelTable
        In slide coordinates. Work is done a run of equal pixels at a time, not a pixel.
    """
    table = LabelTable.empty(count)
    starts = np.ones(labels.shape, bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    ends = np.ones(labels.shape, bool)
    ends[:, :-1] = starts[:, 1:]
    starts &= labels > 0
    ends &= labels > 0
    y, x = np.nonzero(starts)
    x_end = np.nonzero(ends)[1] + (place.left + 1)
    label = labels[y, x]
    y, x = y + place.top, x + place.left
    np.minimum.at(table.first, label, y * slide_width_px + x)
    np.add.at(table.area, label, x_end - x)
    np.minimum.at(table.box[:, 0], label, y)
    np.minimum.at(table.box[:, 1], label, x)
    np.maximum.at(table.box[:, 2], label, y + 1)
    np.maximum.at(table.box[:, 3], label, x_end)
    return table


@dataclass(frozen=True)
class LinkedLabels:
    """Components of a frame that was labelled window by window.

    Attributes
    ----------
    table : LabelTable
        Of the components, 1 … n.
    offsets : tuple of int
        What is added to a window's own labels, in the windows' order.
    component : (m + 1,) int64 array
        Component of each shifted label.
    """

    table: LabelTable
    offsets: tuple[int, ...]
    component: NDArray[np.int64]

    def relabel(self, index: int, labels: NDArray[np.int32]) -> NDArray[np.int64]:
        """Components of window ``index`` from its own labels, as the labelling function gives them again."""
        where = labels > 0
        result = np.zeros(labels.shape, np.int64)
        result[where] = self.component[labels[where].astype(np.int64) + self.offsets[index]]
        return result


def link(places: Sequence[Box], label: Callable[[Box], NDArray[np.int32]], slide_width_px: int) -> LinkedLabels:
    """Find the 4-connected components of a frame that never lies in memory as a whole.

    Parameters
    ----------
    places : sequence of Box
        Of :func:`windows`, in its order.
    label : callable
        Labels of a window, 0 background, 1 … n, 4-connected components of the window alone; the same at every call.
    slide_width_px : int
        Width of the slide.

    Returns
    -------
    LinkedLabels
        Memory: a line of pixels and a column of a window, and a few numbers a component.
    """
    total = 0
    offsets: list[int] = []
    tables: list[LabelTable] = []
    pairs: list[NDArray[np.int64]] = []
    left_edge: NDArray[np.int64] | None = None
    left_place: Box | None = None
    origin = places[0].left if places else 0
    upper = np.zeros(max((place.right for place in places), default=0) - origin, np.int64)
    for place in places:
        labels = label(place)
        count = int(labels.max(initial=0))
        offsets.append(total)
        tables.append(label_table(labels, count, place, slide_width_px))
        if left_place is not None and left_place.top == place.top and left_edge is not None:
            pairs.append(_touching(left_edge, _shift(labels[:, 0], total)))
        above = upper[place.left - origin : place.right - origin]
        if place.top > places[0].top:
            pairs.append(_touching(above, _shift(labels[0], total)))
        # The line above is replaced only where this window has been compared with it.
        above[:] = _shift(labels[-1], total)
        left_edge, left_place = _shift(labels[:, -1], total), place
        total += count
    component = _unite(pairs, total)
    joined = LabelTable.empty(int(component.max(initial=0)))
    joined.add(component, LabelTable.stack(tables))
    return LinkedLabels(joined, tuple(offsets), component)


def _shift(labels: NDArray[np.int32], offset: int) -> NDArray[np.int64]:
    return np.where(labels > 0, labels.astype(np.int64) + offset, 0)


def _touching(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    both = np.stack([one, other], axis=1)[(one > 0) & (other > 0)]
    return np.unique(both, axis=0) if len(both) else both


def _unite(pairs: list[NDArray[np.int64]], total: int) -> NDArray[np.int64]:
    """Component 1 … n of every label 1 … total; 0 stays 0."""
    edges = np.concatenate([np.zeros((0, 2), np.int64), *pairs])
    graph = coo_array((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), shape=(total + 1, total + 1))
    component: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    # Label 0 has no edge and is node 0, so it is component 0.
    return component
