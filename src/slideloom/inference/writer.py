"""Maps to disk: finished rows gathered into whole shards, each written while the next one fills."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.artefacts.files import publish
from slideloom.artefacts.zarrio import create_array, create_group
from slideloom.inference.bands import SHARD_ROWS_PX
from slideloom.inference.layout import MapLayout

__all__ = ["MapStore", "MapWriter"]

_CHUNK_PX = 256
_SHARD_COLS_PX = 8192


class MapWriter:
    """The maps of a slide, or of a band of its rows, while they are written.

    Memory is two rows of shards: 14 KB a column with all heads.

    Parameters
    ----------
    place : Path
        Zarr group.
    layout : MapLayout
        Which arrays there are.
    shape : (int, int)
        Of the slide, also where rows of it alone are written.
    rows : (int, int)
        The first, at the top of a row of shards, and the one past the last.
    """

    def __init__(self, place: Path, layout: MapLayout, shape: tuple[int, int], rows: tuple[int, int]) -> None:
        cols = -(-min(shape[1], _SHARD_COLS_PX) // _CHUNK_PX) * _CHUNK_PX
        self._width_px = shape[1]
        self._arrays = {
            name: create_array(
                place / name,
                (*lead, *shape),
                dtype,
                chunk=(*(1 for _ in lead), _CHUNK_PX, _CHUNK_PX),
                shard=(*lead, SHARD_ROWS_PX, cols),
                codec="labels",
                dimension_names=("axis", "y", "x")[-len(lead) - 2 :],
            )
            for name, (lead, dtype) in layout.arrays.items()
        }
        self._layout = layout
        self._buffer: dict[str, NDArray[Any]] = {}
        self._top, self._end = rows
        self._filled = 0
        self._writing: list[Any] = []

    def add(self, count: int, maps: Mapping[str, NDArray[Any]] | None) -> None:
        """Take the next finished rows.

        Parameters
        ----------
        count : int
            Rows.
        maps : mapping of str to array, or None
            Their values, by array; None where all are 0.
        """
        taken = 0
        while taken < count:
            step = min(SHARD_ROWS_PX - self._filled, count - taken)
            if maps is not None:
                for name, rows in self._opened().items():
                    part = maps[name][..., taken : taken + step, :]
                    rows[..., self._filled : self._filled + step, :] = part
            self._filled += step
            taken += step
            if self._filled == SHARD_ROWS_PX:
                self._flush()

    def close(self) -> None:
        """Write what is left and wait for the disk.

        Raises
        ------
        ValueError
            Rows are missing.
        """
        self._flush()
        self.wait()
        if self._top != self._end:
            raise ValueError(f"{self._top} rows of {self._end} were written")

    def wait(self) -> None:
        """Until what is being written lies on the disk."""
        writing, self._writing = self._writing, []
        for one in writing:
            one.result()

    def _opened(self) -> dict[str, NDArray[Any]]:
        """Arrays of the present row of shards."""
        if not self._buffer:
            self._buffer = {
                name: np.zeros((*lead, SHARD_ROWS_PX, self._width_px), dtype)
                for name, (lead, dtype) in self._layout.arrays.items()
            }
        return self._buffer

    def _flush(self) -> None:
        stop = self._top + self._filled
        if self._buffer:  # shards of zeros alone are not stored
            self.wait()
            for name, rows in self._buffer.items():
                here = self._arrays[name][..., self._top : stop, :]
                self._writing.append(here.write(rows[..., : self._filled, :]))
        self._top, self._filled, self._buffer = stop, 0, {}


class _Abandoned(Exception):
    """Tells :func:`publish` that nothing came of it."""


class MapStore:
    """The store of a slide's maps: written beside its place, renamed when it is whole.

    Parameters
    ----------
    place : Path
        Zarr group; an older one is replaced.
    """

    def __init__(self, place: Path) -> None:
        self._publishing = publish(place)
        self._draft = self._publishing.__enter__()
        self._writers: dict[str, MapWriter] = {}

    def open(
        self,
        name: str,
        attributes: Mapping[str, Any],
        layout: MapLayout,
        shape: tuple[int, int],
        rows: tuple[int, int] | None,
    ) -> MapWriter:
        """Begin the group itself (the empty name) or a group in it.

        Parameters
        ----------
        name : str
            Of the group in it.
        attributes : mapping
            JSON values.
        layout, shape, rows
            As for :class:`MapWriter`; all rows where None.
        """
        create_group(self._draft / name, attributes)
        writer = MapWriter(self._draft / name, layout, shape, rows or (0, shape[0]))
        self._writers[name] = writer
        return writer

    def finish(self) -> None:
        """Write what is left and put the store in its place."""
        for writer in self._writers.values():
            writer.close()
        self._publishing.__exit__(None, None, None)

    def abandon(self) -> None:
        """Leave nothing behind."""
        for writer in self._writers.values():
            with suppress(Exception):  # what is being written would come to lie in a folder that is gone
                writer.wait()
        self._publishing.__exit__(_Abandoned, _Abandoned(), None)
