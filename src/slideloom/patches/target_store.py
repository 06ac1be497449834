"""The target store as its readers see it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import tensorstore as ts
from numpy.typing import NDArray

from slideloom.artefacts.zarrio import open_array, read_attributes
from slideloom.patches.store import Indices, read_rows

__all__ = ["TargetStore"]

_NAMES = ("instances", "classes", "hv", "boundary")


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
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attributes = read_attributes(path)
        self.slide_id: str = self.attributes["slide_id"]
        self.tile_px: int = self.attributes["tile_px"]

    def __repr__(self) -> str:
        return f"<TargetStore {self.slide_id} {self.n} x {self.tile_px} px>"

    @cached_property
    def _arrays(self) -> dict[str, ts.TensorStore]:
        return {name: open_array(self.path / name) for name in _NAMES}

    @property
    def n(self) -> int:
        """Number of patches."""
        return int(self._arrays["instances"].shape[0])

    def read(self, indices: Indices, names: tuple[str, ...] = _NAMES) -> dict[str, NDArray[Any]]:
        """Targets of some patches.

        Parameters
        ----------
        indices : sequence of int, integer array or slice
            Which; in any order, also more than once.
        names : tuple of str
            Which of ``instances``, ``classes``, ``hv`` and ``boundary``.

        Returns
        -------
        dict of str to ndarray
            ``instances`` (k, p, p) int32, ``classes`` (k, p, p) uint8, ``hv`` (k, 2, p, p) int8 in units of 1/127,
            ``boundary`` (k, p, p) uint8.
        """
        return {name: read_rows(self._arrays[name], indices) for name in names}
