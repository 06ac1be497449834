"""The nuclei of a cell table in groups: all of them, and those of each class.

Read a column at a time, so that no more of a slide is in memory than one column and the few that every figure needs.
Rows keep the table's order, so that how it was cut into row groups changes no figure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideloomError
from slideloom.instances.exports.cell_file import CellFile

__all__ = ["ALL", "OF_CLASS", "Group", "Nuclei"]

#: Values of the column ``scope``.
ALL, OF_CLASS = "all", "class"


@dataclass(frozen=True)
class Group:
    """Some of a slide's nuclei.

    Attributes
    ----------
    scope : {"all", "class"}
        Every nucleus, or those of one class.
    class_id : int or None
        The class, 0 for the background; None for all.
    class_name : str
        Its name; ``all`` for all.
    members : (n,) int64 array
        Rows of the cell table, rising.
    """

    scope: str
    class_id: int | None
    class_name: str
    members: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.members.size)

    def named(self, prefix: str = "") -> dict[str, Any]:
        """Columns that name the class, each with a prefix."""
        return {f"{prefix}class_id": self.class_id, f"{prefix}class_name": self.class_name}


@dataclass(frozen=True)
class Nuclei:
    """Places, areas and classes of a slide's nuclei.

    Attributes
    ----------
    x_um, y_um : (n,) float64 array
        Centroids from the image's upper left corner, µm.
    area_um2 : (n,) float64 array
        Areas, µm².
    class_id : (n,) uint8 array or None
        Classes, 0 for the background; None where the decoder has no classes head.
    class_names : tuple of str
        Name of each class id, the background first; empty where there are no classes.
    """

    x_um: NDArray[np.float64]
    y_um: NDArray[np.float64]
    area_um2: NDArray[np.float64]
    class_id: NDArray[np.uint8] | None = None
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.x_um.size)

    @classmethod
    def read(cls, file: CellFile) -> Nuclei:
        """Read them.

        Parameters
        ----------
        file : CellFile
            A slide's cell table.

        Raises
        ------
        SlideloomError
            ``unknown_class``: a nucleus has a class that the table does not name, or none beside others that have one.
        """
        class_id = None
        if file.class_names:
            found = file.column("class_id")
            # Integers with a null among them arrive as floats.
            if found.size and (found.dtype.kind == "f" or int(found.max()) >= len(file.class_names)):
                what = "nuclei without a class" if found.dtype.kind == "f" else f"class {int(found.max())}"
                raise SlideloomError(
                    what,
                    where=str(file.place),
                    expected=f"classes 0 to {len(file.class_names) - 1} ({', '.join(file.class_names)})",
                    hint="Remove it and run the instances stage again",
                    code="unknown_class",
                )
            class_id = found.astype(np.uint8)
        x_um, y_um, area_um2 = (file.column(name) for name in ("x_um", "y_um", "area_um2"))
        return cls(x_um, y_um, area_um2, class_id, file.class_names)

    def groups(self) -> list[Group]:
        """All nuclei; then those of each class, the background first, also where a class has none."""
        return [Group(ALL, None, "all", np.arange(len(self), dtype=np.int64)), *self._classes()]

    def _classes(self) -> Iterator[Group]:
        if self.class_id is None:
            return
        order = np.argsort(self.class_id, kind="stable").astype(np.int64)
        starts = np.searchsorted(self.class_id[order], np.arange(1, len(self.class_names)))
        for number, (name, members) in enumerate(zip(self.class_names, np.split(order, starts), strict=True)):
            yield Group(OF_CLASS, number, name, members)
