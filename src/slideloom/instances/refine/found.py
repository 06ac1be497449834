"""Instances that can be read box by box, and what is left of them when some are dropped or split.

Nothing is rewritten: what was dropped is looked up as background, and what was split lies over the labels that were
there, as bytes in its bounding box. So a refined slide is read through the very windows that it was stitched in, and
its ids are again 1 … n in raster order of first pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slideloom.instances.windows import Box, LabelTable, WindowGrid, label_table

__all__ = ["Found", "LabelArray", "Piece", "Refined", "keep_instances", "replace_instances"]


class Found(Protocol):
    """Instances of a slide; :class:`slideloom.instances.stitch.Stitched` is one."""

    @property
    def grid(self) -> WindowGrid:
        """Windows; their frame is the slide."""
        ...

    @property
    def table(self) -> LabelTable:
        """Where the ids 1 … n lie, rising by first pixel."""
        ...

    @property
    def n(self) -> int:
        """Number of instances."""
        ...

    def read(self, box: Box) -> NDArray[np.uint32]:
        """Labels of a box."""
        ...


@dataclass(frozen=True, eq=False)
class LabelArray:
    """Instances of an array in memory.

    Attributes
    ----------
    labels : (H, W) uint32 array
        Ids 1 … n, rising in raster order of first pixels; 0 background.
    grid : WindowGrid
        One window.
    table : LabelTable
        Where they lie.
    """

    labels: NDArray[np.uint32]
    grid: WindowGrid
    table: LabelTable

    @classmethod
    def of(cls, labels: NDArray[Any]) -> LabelArray:
        """From labels of any values, 0 background; they are renumbered in raster order of first pixels."""
        values, first, index = np.unique(labels, return_index=True, return_inverse=True)
        number = np.zeros(len(values), np.uint32)
        real = np.flatnonzero(values != 0)
        number[real[np.argsort(first[real])]] = np.arange(1, len(real) + 1)
        ordered = number[index].reshape(labels.shape)
        height, width = labels.shape
        frame = Box(0, 0, height, width)
        table = label_table(ordered.astype(np.int32), len(real), frame, width)
        return cls(ordered, WindowGrid(frame, max(height, width)), table)

    @property
    def n(self) -> int:
        """Number of instances."""
        return len(self.table) - 1

    def read(self, box: Box) -> NDArray[np.uint32]:
        """Labels of a box."""
        return self.labels[box.slices].copy()


@dataclass(frozen=True, eq=False)
class Piece:
    """An instance divided into parts.

    Attributes
    ----------
    label : int
        The instance.
    box : Box
        Its bounding box on the slide.
    parts : (h, w) uint8 array
        1 … k in its pixels, each at least once; 0 elsewhere.
    """

    label: int
    box: Box
    parts: NDArray[np.uint8]

    @property
    def n(self) -> int:
        """Number of parts."""
        return int(self.parts.max(initial=0))


@dataclass(frozen=True, eq=False)
class Refined:
    """Instances of a slide after some were dropped or split; reads as :class:`~slideloom.instances.stitch.Stitched`.

    Attributes
    ----------
    base : Found
        What was there before.
    pieces : tuple of Piece
        What was split.
    corners : (m, 4) int64 array
        Boxes of the pieces.
    extra : (m,) int64 array
        Provisional id of each piece's second part; the first keeps its instance's, the others follow.
    final : (p + 1,) uint32 array
        Final id of each provisional one: those of ``base``, then those of further parts. 0: dropped.
    table : LabelTable
        Of the final ids.
    """

    base: Found
    pieces: tuple[Piece, ...]
    corners: NDArray[np.int64]
    extra: NDArray[np.int64]
    final: NDArray[np.uint32]
    table: LabelTable

    @property
    def grid(self) -> WindowGrid:
        """Windows of what was there before."""
        return self.base.grid

    @property
    def n(self) -> int:
        """Number of instances."""
        return len(self.table) - 1

    def read(self, box: Box) -> NDArray[np.uint32]:
        """Final labels of a box."""
        labels = self.base.read(box)
        if len(self.pieces):
            top, left, bottom, right = self.corners.T
            meets = (top < box.bottom) & (left < box.right) & (bottom > box.top) & (right > box.left)
            for index in np.flatnonzero(meets).tolist():
                piece, both = self.pieces[index], self.pieces[index].box.common(box)
                parts = piece.parts[both.within(piece.box)]
                numbers = np.arange(piece.n + 1, dtype=np.int64) + self.extra[index] - 2
                numbers[:2] = piece.label
                view = labels[both.within(box)]
                view[parts > 0] = numbers.astype(np.uint32)[parts[parts > 0]]
        return self.final[labels]


def keep_instances(found: Found, keep: NDArray[np.bool_]) -> Refined:
    """Drop instances and renumber the others.

    Parameters
    ----------
    found : Found
        Instances of a slide.
    keep : (n,) bool array
        Row i: whether instance i + 1 stays.

    Returns
    -------
    Refined
        Ids 1 … n in raster order of first pixels.

    Raises
    ------
    ValueError
        ``keep`` has another length.
    """
    if keep.shape != (found.n,):
        raise ValueError(f"{keep.shape} flags for {found.n} instances")
    return _refined(found, (), np.append(False, keep))


def replace_instances(found: Found, pieces: Sequence[Piece]) -> Refined:
    """Put parts in the place of the instances that they were made of.

    Parameters
    ----------
    found : Found
        Instances of a slide.
    pieces : sequence of Piece
        Divided instances, each at most once; those of a single part are left as they are.

    Returns
    -------
    Refined
        Ids 1 … n in raster order of first pixels; every pixel of an instance is in one of its parts.

    Raises
    ------
    ValueError
        Parts do not cover the pixels of their instance.
    """
    divided = tuple(sorted((piece for piece in pieces if piece.n > 1), key=lambda piece: piece.label))
    for piece in divided:
        if np.count_nonzero(piece.parts) != found.table.area[piece.label] or piece.box != found.table.box_of(
            piece.label
        ):
            raise ValueError(f"parts of instance {piece.label} do not cover it")
    return _refined(found, divided, np.ones(0, np.bool_))


def _refined(found: Found, pieces: tuple[Piece, ...], keep: NDArray[np.bool_]) -> Refined:
    width = found.grid.frame.width
    further = np.array([piece.n - 1 for piece in pieces], np.int64)
    extra = len(found.table) + np.cumsum(further) - further
    tables = [_table(piece, width) for piece in pieces]
    table = LabelTable.stack([_rows(found.table, slice(0, None)), *(_rows(part, slice(1, None)) for part in tables)])
    for piece, part in zip(pieces, tables, strict=True):
        table.first[piece.label], table.area[piece.label] = part.first[1], part.area[1]
        table.box[piece.label] = part.box[1]
    there = table.area > 0
    there[: len(keep)] &= keep
    there[0] = False
    kept = np.flatnonzero(there)
    kept = kept[np.argsort(table.first[kept])]
    final = np.zeros(len(table), np.uint32)
    final[kept] = np.arange(1, len(kept) + 1)
    rows = np.append(0, kept)
    corners = np.array([_corner(piece.box) for piece in pieces], np.int64).reshape(-1, 4)
    return Refined(found, pieces, corners, extra, final, _rows(table, rows))


def _corner(box: Box) -> tuple[int, int, int, int]:
    return box.top, box.left, box.bottom, box.right


def _rows(table: LabelTable, rows: slice | NDArray[Any]) -> LabelTable:
    return LabelTable(table.first[rows].copy(), table.area[rows].copy(), table.box[rows].copy())


def _table(piece: Piece, slide_width_px: int) -> LabelTable:
    return label_table(piece.parts.astype(np.int32), piece.n, piece.box, slide_width_px)
