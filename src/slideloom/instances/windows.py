"""Windows over a slide, and where labels lie on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["Box", "LabelTable", "WindowGrid", "label_table", "windows"]


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

    def common(self, other: Box) -> Box:
        """What both boxes cover."""
        return Box(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )


@dataclass(frozen=True)
class WindowGrid:
    """A frame cut into windows, numbered row by row; those at the right and lower border may be smaller.

    Attributes
    ----------
    frame : Box
        What is cut.
    side_px : int
        Side of the windows.
    """

    frame: Box
    side_px: int

    @property
    def n_rows(self) -> int:
        """Rows of windows."""
        return -(-self.frame.height // self.side_px)

    @property
    def n_cols(self) -> int:
        """Windows in a row."""
        return -(-self.frame.width // self.side_px)

    @property
    def n(self) -> int:
        """Number of windows."""
        return self.n_rows * self.n_cols

    def place(self, index: int) -> Box:
        """Where a window lies."""
        row, col = divmod(index, self.n_cols)
        top, left = self.frame.top + row * self.side_px, self.frame.left + col * self.side_px
        return Box(top, left, min(top + self.side_px, self.frame.bottom), min(left + self.side_px, self.frame.right))

    def right_of(self, index: int) -> int | None:
        """The window to the right."""
        return index + 1 if (index + 1) % self.n_cols else None

    def below(self, index: int) -> int | None:
        """The window below."""
        return index + self.n_cols if index + self.n_cols < self.n else None

    def seams(self, index: int) -> tuple[bool, bool, bool, bool]:
        """Whether there are windows above, to the left, below, and to the right."""
        row, col = divmod(index, self.n_cols)
        return row > 0, col > 0, row < self.n_rows - 1, col < self.n_cols - 1

    def meeting(self, box: Box) -> Iterator[int]:
        """The windows that hold pixels of a box inside the frame."""
        rows = range((box.top - self.frame.top) // self.side_px, (box.bottom - 1 - self.frame.top) // self.side_px + 1)
        left, right = box.left - self.frame.left, box.right - 1 - self.frame.left
        for row in rows:
            for col in range(left // self.side_px, right // self.side_px + 1):
                yield row * self.n_cols + col


def windows(frame: Box, side_px: int) -> Iterator[Box]:
    """Cut a frame into windows, row by row; those at the right and lower border may be smaller."""
    grid = WindowGrid(frame, side_px)
    return map(grid.place, range(grid.n))


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
        In slide coordinates.
    """
    table = LabelTable.empty(count)
    _measure(labels, place.top, place.left, slide_width_px, table.first, table.area, table.box)
    return table


@numba.njit(nogil=True, cache=True)
def _measure(labels: Any, top: int, left: int, slide_width: int, first: Any, area: Any, box: Any) -> None:
    """Add a window's pixels to a table, a run of equal ones at a time."""
    height, width = labels.shape
    for y in range(height):
        x = 0
        while x < width:
            label = labels[y, x]
            start = x
            while x < width and labels[y, x] == label:
                x += 1
            if label == 0:
                continue
            if area[label] == 0:
                first[label] = np.int64(y + top) * slide_width + start + left
                box[label, 0], box[label, 1], box[label, 3] = y + top, start + left, x + left
            area[label] += x - start
            box[label, 1] = min(box[label, 1], start + left)
            box[label, 2] = y + top + 1
            box[label, 3] = max(box[label, 3], x + left)
