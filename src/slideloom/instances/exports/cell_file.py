"""A slide's cell table, read piece by piece: what every export is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from slideloom.artefacts.tables import table_metadata
from slideloom.errors import SlideloomError
from slideloom.instances.cells import BACKGROUND, CELLS

__all__ = ["CellFile", "safe_names"]

_PROBABILITY = "probability_"
_MEAN = "mean_"


@dataclass(frozen=True)
class CellFile:
    """A cell table on disk.

    Attributes
    ----------
    place : Path
        Parquet file that :func:`slideloom.instances.cells.write_cells` wrote.
    n : int
        Its rows, one a nucleus.
    slide_id : str
        The slide.
    class_names : tuple of str
        Name of each class id, background (0) first; empty where the decoder has no classes head.
    markers : tuple of str
        Markers that have a column ``mean_<marker>``, in the order of the columns; empty for H&E.
    about : dict
        What Slideloom wrote into the file's metadata.
    """

    place: Path
    n: int
    slide_id: str
    class_names: tuple[str, ...]
    markers: tuple[str, ...]
    about: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, place: Path) -> CellFile:
        """Read what the table holds, not its rows.

        Raises
        ------
        SlideloomError
            ``table_schema``: not a cell table of this version.
        """
        with pq.ParquetFile(place) as file:
            schema, count = file.schema_arrow, file.metadata.num_rows
        about = table_metadata(schema.empty_table())
        if about.get("schema") != CELLS.name or about.get("schema_version") != CELLS.version:
            raise SlideloomError(
                f"the file holds table {about.get('schema')} version {about.get('schema_version')}",
                where=str(place),
                expected=f"{CELLS.name} version {CELLS.version}",
                hint="Remove it and run the instances stage again",
                code="table_schema",
            )
        shares = [name for name in schema.names if CELLS.open_for(name) and name.startswith(_PROBABILITY)]
        classes = (BACKGROUND, *(name.removeprefix(_PROBABILITY) for name in shares)) if shares else ()
        markers = (name.removeprefix(_MEAN) for name in schema.names if name.startswith(_MEAN))
        return cls(place, count, str(about["made_from"]["slide_id"]), classes, tuple(markers), about)

    @property
    def probability_columns(self) -> tuple[str, ...]:
        """Columns with the share of each class, background left out; empty without a classes head."""
        return tuple(_PROBABILITY + name for name in self.class_names[1:])

    @property
    def mean_columns(self) -> tuple[str, ...]:
        """Columns with the mean of each marker."""
        return tuple(_MEAN + name for name in self.markers)

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """Some columns, ``rows`` rows at a time, in the order of the table."""
        with pq.ParquetFile(self.place) as file:
            yield from file.iter_batches(rows, columns=list(columns), use_threads=False)

    def column(self, name: str) -> NDArray[Any]:
        """One whole column, (n,); null is NaN in a column of floats."""
        with pq.ParquetFile(self.place) as file:
            values: NDArray[Any] = file.read([name], use_threads=False).column(name).to_numpy()
        return values


def safe_names(names: Sequence[str]) -> list[str]:
    """Names that AnnData and SpatialData take for columns.

    They refuse all but letters, digits, ``_``, ``-`` and ``.``; anything else becomes ``_``. Names that differ by
    letter case alone, or not at all, get a number.

    Parameters
    ----------
    names : sequence of str
        As Slideloom has them.

    Returns
    -------
    list of str
        One each, no two alike.

    Examples
    --------
    >>> safe_names(["T cell", "CD4/CD8", "CD4_CD8"])
    ['T_cell', 'CD4_CD8', 'CD4_CD8_2']
    """
    taken: set[str] = set()
    safe = []
    for name in names:
        plain = "".join(letter if letter.isalnum() or letter in "_-." else "_" for letter in name)
        found, number = plain, 1
        while found.casefold() in taken:
            number += 1
            found = f"{plain}_{number}"
        taken.add(found.casefold())
        safe.append(found)
    return safe
