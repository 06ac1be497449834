"""Groups, arrays and attributes in HDF5 or Zarr v3, behind one face: AnnData lies in both alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray

from slideloom.artefacts.zarrio import create_group

__all__ = ["ROWS", "HDF5Hierarchy", "Hierarchy", "ZarrHierarchy"]

#: Rows of a chunk; whoever writes an array piece by piece writes pieces of this many.
ROWS = 1 << 16


class Hierarchy(Protocol):
    """Where a tree of groups and arrays is written. Paths start from its root; a group is made before what it holds."""

    def group(self, path: str, attributes: Mapping[str, Any]) -> None:
        """Make a group. Attribute values: text, whole numbers, truth values, lists of text; None in Zarr alone."""

    def array(self, path: str, shape: tuple[int, ...], dtype: DTypeLike, attributes: Mapping[str, Any]) -> Any:
        """Make an array and give it back to be written by ``array[start:stop] = values``."""

    def texts(self, path: str, values: Sequence[str] | str, attributes: Mapping[str, Any]) -> None:
        """Write an array of texts, or a single one."""


class HDF5Hierarchy:
    """A hierarchy in an open HDF5 file.

    Parameters
    ----------
    file : h5py.File
        Open for writing.
    """

    def __init__(self, file: h5py.File) -> None:
        self._file = file

    def group(self, path: str, attributes: Mapping[str, Any]) -> None:
        """See :class:`Hierarchy`."""
        self._attributes(self._file.require_group(path or "/"), attributes)

    def array(self, path: str, shape: tuple[int, ...], dtype: DTypeLike, attributes: Mapping[str, Any]) -> Any:
        """See :class:`Hierarchy`; gzip, which every HDF5 library reads."""
        packed: dict[str, Any] = {}
        if all(shape):  # HDF5 has no chunks of nothing
            packed = {"chunks": _chunk(shape), "compression": "gzip", "compression_opts": 4, "shuffle": True}
        made = self._file.create_dataset(path, shape, dtype, track_times=False, **packed)
        self._attributes(made, attributes)
        return made

    def texts(self, path: str, values: Sequence[str] | str, attributes: Mapping[str, Any]) -> None:
        """See :class:`Hierarchy`."""
        data = values if isinstance(values, str) else np.asarray(values, object)
        made = self._file.create_dataset(path, data=data, dtype=h5py.string_dtype(), track_times=False)
        self._attributes(made, attributes)

    @staticmethod
    def _attributes(node: Any, attributes: Mapping[str, Any]) -> None:
        for name, value in attributes.items():
            node.attrs[name] = np.asarray(value, h5py.string_dtype()) if isinstance(value, list) else value


class ZarrHierarchy:
    """A hierarchy in a Zarr v3 group.

    Parameters
    ----------
    root : Path
        Folder of the group.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def group(self, path: str, attributes: Mapping[str, Any]) -> None:
        """See :class:`Hierarchy`."""
        create_group(self._root / path, attributes)

    def array(self, path: str, shape: tuple[int, ...], dtype: DTypeLike, attributes: Mapping[str, Any]) -> Any:
        """See :class:`Hierarchy`; zstd."""
        return self._create(path, shape, dtype, attributes)

    def texts(self, path: str, values: Sequence[str] | str, attributes: Mapping[str, Any]) -> None:
        """See :class:`Hierarchy`."""
        data: NDArray[Any] = np.asarray(values, np.dtypes.StringDType())
        self._create(path, data.shape, str, attributes)[...] = data

    def _create(self, path: str, shape: tuple[int, ...], dtype: Any, attributes: Mapping[str, Any]) -> Any:
        place, chunks = self._root / path, _chunk(shape)
        return zarr.create_array(place, shape=shape, dtype=dtype, chunks=chunks, attributes=dict(attributes))


def _chunk(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(max(1, min(size, ROWS)) for size in shape)
