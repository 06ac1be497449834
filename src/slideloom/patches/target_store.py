"""The target store as its readers see it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import tensorstore as ts
from numpy.typing import NDArray

from slideloom.artefacts.zarrio import check_array, check_attributes, open_array, read_attributes
from slideloom.patches.store import Indices, read_rows

__all__ = ["CELL_TARGET_SCHEMA", "TARGET_SCHEMA", "CellTargetStore", "TargetStore"]

#: Versions of the stores.
TARGET_SCHEMA = 1
CELL_TARGET_SCHEMA = 1
_NAMES = ("instances", "classes", "hv", "boundary")
_TYPES = {"instances": "int32", "classes": "uint8", "hv": "int8", "boundary": "uint8"}


class TargetStore:
    """Targets of a slide's patches on disk, in the order of the patches.

    Parameters
    ----------
    path : Path
        Zarr group that :func:`cut_targets` wrote.

    Attributes
    ----------
    attributes : dict
        Everything recorded of the store.

    Raises
    ------
    BrokenArtefactError
        ``missing_artefact``, ``store_damaged``; ``artefact_schema``: no target store, or one of another version.
        ``store_mismatch``, when targets are read: they are not as the attributes say.
    """

    _what: str = "targets"
    _schema: int = TARGET_SCHEMA
    _names: tuple[str, ...] = _NAMES

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attributes = read_attributes(path)
        check_attributes(path, self.attributes, self._what, self._schema, ("slide_id", "tile_px"))
        self.slide_id: str = self.attributes["slide_id"]
        self.tile_px: int = self.attributes["tile_px"]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.slide_id} {self.n} x {self.tile_px} px>"

    @cached_property
    def _arrays(self) -> dict[str, ts.TensorStore]:
        return {name: self._open(name) for name in self._names}

    def _open(self, name: str) -> ts.TensorStore:
        place, side = self.path / name, self.tile_px
        shape = (None, 2, side, side) if name == "hv" else (None, side, side)
        return check_array(open_array(place), place, shape, _TYPES[name])

    @property
    def n(self) -> int:
        """Number of patches."""
        return int(self._arrays["instances"].shape[0])

    def read(self, indices: Indices, names: tuple[str, ...] | None = None) -> dict[str, NDArray[Any]]:
        """Targets of some patches.

        Parameters
        ----------
        indices : sequence of int, integer array or slice
            Which; in any order, also more than once.
        names : tuple of str, optional
            Which of ``instances``, ``classes``, ``hv`` and ``boundary``; all that the store holds when left out.

        Returns
        -------
        dict of str to ndarray
            ``instances`` (k, p, p) int32, ``classes`` (k, p, p) uint8, ``hv`` (k, 2, p, p) int8 in units of 1/127,
            ``boundary`` (k, p, p) uint8.
        """
        return {name: read_rows(self._arrays[name], indices) for name in names or self._names}


class CellTargetStore(TargetStore):
    """Annotated whole cells of a slide's patches on disk, in the order of the patches.

    Its one array is ``instances`` (n, p, p) int32, the cells; all else is as of :class:`TargetStore`.

    Parameters
    ----------
    path : Path
        Zarr group that :func:`~slideloom.patches.cell_targets.cut_cell_targets` wrote.

    Raises
    ------
    BrokenArtefactError
        As :class:`TargetStore`.
    """

    _what = "cell targets"
    _schema = CELL_TARGET_SCHEMA
    _names = ("instances",)
