"""Maps predicted in bands of rows, each by a job of its own: which rows a band has, and how bands become one store.

A band's store is a store of the whole slide in which only the band's own shards exist. Bands end where rows of shards
end, so that no shard belongs to two, and joining them touches no pixel: shard files are linked.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from slideloom.artefacts.files import publish, read_json
from slideloom.artefacts.zarrio import create_group
from slideloom.errors import SlideError

__all__ = ["SHARD_ROWS_PX", "band_rows", "join_bands"]

#: Rows of a shard of the maps.
SHARD_ROWS_PX = 1024
_METADATA = "zarr.json"
_SHARDS = "c"


def band_rows(height_px: int, bands: int, shard_rows_px: int = SHARD_ROWS_PX) -> list[tuple[int, int]]:
    """Cut a slide into bands of whole rows of shards.

    Parameters
    ----------
    height_px : int
        Height of the slide, grid pixels.
    bands : int
        Bands wanted.
    shard_rows_px : int
        Rows of a shard.

    Returns
    -------
    list of (int, int)
        First row and the row past the last of every band, from top to bottom; they differ by one row of shards at
        most. Fewer than ``bands`` where the slide has fewer rows of shards.

    Raises
    ------
    ValueError
        A number is below 1.
    """
    if min(height_px, bands, shard_rows_px) < 1:
        raise ValueError(f"{bands} bands of {height_px} px in shards of {shard_rows_px} px: all must be at least 1")
    shards = -(-height_px // shard_rows_px)
    bands = min(bands, shards)
    edges = [min(height_px, band * shards // bands * shard_rows_px) for band in range(bands + 1)]
    return list(pairwise(edges))


def join_bands(places: Sequence[Path], place: Path) -> None:
    """Make one store of a slide's maps out of its bands.

    Parameters
    ----------
    places : sequence of Path
        The bands' Zarr groups, in any order: each with the attributes ``height_px`` and ``rows``, the first row and the
        row past the last, and with arrays (…, H, W) of the whole slide's shape, subgroups included. They stay as they
        are.
    place : Path
        Zarr group to write: what one job would have written. Shard files are hard links to those of the bands, or
        copies where the file system has no links.

    Raises
    ------
    SlideError
        ``bands_disagree``: the bands do not tile the slide's rows, were not made from the same inputs, or hold shards
        of other rows than their own.
    """
    bands = sorted((_Band.open(each) for each in places), key=lambda band: band.rows)
    _check(bands, place)
    with publish(place) as draft:
        for name, metadata in bands[0].nodes.items():
            if metadata["node_type"] == "group":
                create_group(draft / name, metadata["attributes"])
            else:
                (draft / name).mkdir(parents=True)
                shutil.copyfile(bands[0].place / name / _METADATA, draft / name / _METADATA)
        for band in bands:
            for shard in band.shards():
                target = draft / shard
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(band.place / shard, target)


@dataclass(frozen=True)
class _Band:
    """A band's store.

    Attributes
    ----------
    place : Path
        The group.
    rows : (int, int)
        Its first row, and the row past its last.
    nodes : dict of str to dict
        Metadata of the group, its arrays and subgroups by path within it; of groups without ``rows``, which a whole
        slide does not have.
    """

    place: Path
    rows: tuple[int, int]
    nodes: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, place: Path) -> _Band:
        nodes = dict(sorted(_nodes(place)))
        rows = nodes.get(".", {}).get("attributes", {}).get("rows")
        if not (isinstance(rows, list) and len(rows) == 2):
            raise _error(place, f"the attribute rows is {rows}", "[first, past the last]")
        for node in nodes.values():
            if node["node_type"] == "group":
                node["attributes"].pop("rows", None)
        return cls(place, (int(rows[0]), int(rows[1])), nodes)

    def shards(self) -> Iterator[Path]:
        """Shard files, as paths within the store; their rows are checked."""
        for name, metadata in self.nodes.items():
            if metadata["node_type"] != "array":
                continue
            step = _shard_rows(metadata)
            top = self.place / name / _SHARDS
            for file in sorted(path for path in top.rglob("*") if path.is_file()):
                # Keys are c/…/row/column.
                first = int(file.parts[-2]) * step
                if not self.rows[0] <= first < self.rows[1]:
                    raise _error(
                        file, f"a shard of the rows from {first} on", f"rows {self.rows[0]} to {self.rows[1]} only"
                    )
                yield file.relative_to(self.place)


def _nodes(place: Path, name: str = ".") -> Iterator[tuple[str, dict[str, Any]]]:
    """Metadata of a group and all that lies in it."""
    file = place / name / _METADATA
    if not file.is_file():
        return
    metadata = read_json(file)
    yield name, metadata
    if metadata["node_type"] == "group":
        for below in (place / name).iterdir():
            if below.is_dir():
                yield from _nodes(place, str(below.relative_to(place)))


def _shard_rows(metadata: Mapping[str, Any]) -> int:
    return int(metadata["chunk_grid"]["configuration"]["chunk_shape"][-2])


def _check(bands: Sequence[_Band], place: Path) -> None:
    if not bands:
        raise _error(place, "there is no band", "at least one")
    first = bands[0]
    height_px = int(first.nodes["."]["attributes"]["height_px"])
    edges = [0, *(band.rows[1] for band in bands)]
    rows = [list(band.rows) for band in bands]
    if edges[-1] != height_px or any(band.rows[0] != edge for band, edge in zip(bands, edges[:-1], strict=True)):
        raise _error(place, f"the bands have the rows {rows}", f"every row of 0 to {height_px} once")
    for name, metadata in first.nodes.items():
        if metadata["node_type"] != "array":
            continue
        step = _shard_rows(metadata)
        if metadata["shape"][-2] != height_px or any(edge % step for edge in edges[:-1]):
            raise _error(
                first.place / name,
                f"{metadata['shape'][-2]} rows in shards of {step}, bands {rows}",
                f"{height_px} rows, and bands that end where shards end",
            )
    for band in bands[1:]:
        if band.nodes != first.nodes:
            names = [name for name in {**first.nodes, **band.nodes} if first.nodes.get(name) != band.nodes.get(name)]
            raise _error(
                band.place,
                f"the metadata of {', '.join('the group' if name == '.' else name for name in names)} differ",
                f"those of {first.place}",
            )


def _link(source: Path, target: Path) -> None:
    """A second name for a file that is never changed in place; a copy where there cannot be one."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _error(where: Path, what: str, expected: str) -> SlideError:
    return SlideError(
        what,
        where=str(where),
        expected=expected,
        hint="Remove the slide's bands and run again",
        code="bands_disagree",
    )
