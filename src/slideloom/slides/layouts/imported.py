"""What a data set gives once its layout is understood, and how it is written down for a study."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.artefacts.files import publish, write_text
from slideloom.slides.sheet import SlideRow, write_sheet
from slideloom.slides.tables import Channel, ClassTable

__all__ = [
    "Imported",
    "Remarks",
    "path_from",
    "table_paths",
    "write_class_rows",
    "write_file_list",
    "write_label_image",
    "write_picture",
    "write_tables",
]

_TILE_PX = 512
#: Of zlib: photographs hardly shrink further, and take much longer.
_PNG_LEVEL = 3


@dataclass(frozen=True)
class Imported:
    """A data set as a study sees it.

    Attributes
    ----------
    rows : tuple of SlideRow
        A slide each, sorted by id; paths start at the folder that the sheet is written to.
    channels : tuple of Channel
        Rows of the markers table; empty where no slide has channels.
    classes : ClassTable
        May be empty.
    notes : tuple of str
        What was left aside, what was taken for granted, what a person should look at.
    """

    rows: tuple[SlideRow, ...]
    channels: tuple[Channel, ...]
    classes: ClassTable
    notes: tuple[str, ...]


@dataclass
class Remarks:
    """Notes in the order they arise; those of one kind are told once, with an example and how many more."""

    notes: list[str] = field(default_factory=list)
    alike: dict[str, list[str]] = field(default_factory=dict)

    def tell(self, note: str) -> None:
        """Tell one thing."""
        self.notes.append(note)

    def count(self, kind: str, example: object) -> None:
        """Count one of many alike."""
        self.alike.setdefault(kind, []).append(str(example))

    def all(self) -> tuple[str, ...]:
        """Every note, the counted ones last."""
        counted = (
            f"{examples[0]}{f' and {len(examples) - 1} more' if len(examples) > 1 else ''}: {kind}"
            for kind, examples in self.alike.items()
        )
        return (*self.notes, *counted)


def path_from(out: Path, path: Path) -> str:
    """A path as a sheet in the folder ``out`` writes it."""
    return Path(os.path.relpath(path, out)).as_posix()


def table_paths(sheet: Path) -> Mapping[str, Path]:
    """Where the tables of a data set are written: ``slides`` at ``sheet``, ``markers`` and ``classes`` beside it."""
    return {"slides": sheet, "markers": sheet.with_name("markers.tsv"), "classes": sheet.with_name("classes.tsv")}


def write_tables(found: Imported, sheet: Path) -> tuple[Path, ...]:
    """Write the sheet, and the markers and classes tables where there is something to write.

    Parameters
    ----------
    found : Imported
        The data set.
    sheet : Path
        Where the sheet goes; it is written last.

    Returns
    -------
    tuple of Path
        What was written, the sheet first.
    """
    places = table_paths(sheet)
    written = [places["slides"]]
    if found.channels:
        rows = [(one.name, one.marker, one.uniprot, "yes" if one.nuclear else "no") for one in found.channels]
        write_text(places["markers"], _table(("channel", "marker", "uniprot", "nuclear"), rows))
        written.append(places["markers"])
    if len(found.classes):
        write_text(places["classes"], _class_text(found.classes))
        written.append(places["classes"])
    write_sheet(found.rows, places["slides"])
    return tuple(written)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join("\t".join(line) + "\n" for line in (header, *rows))


def _class_text(classes: ClassTable) -> str:
    header: tuple[str, ...] = ("id", "name", "colour")
    lines: list[tuple[str, ...]] = [
        (str(number), name, "#{:02x}{:02x}{:02x}".format(*colour))
        for number, name, colour in zip(classes.ids, classes.names, classes.colours, strict=True)
    ]
    if any(classes.aliases):
        header = (*header, "aliases")
        lines = [(*line, ";".join(group)) for line, group in zip(lines, classes.aliases, strict=True)]
    return _table(header, lines)


def write_file_list(place: Path, files: Iterable[Path], root: Path) -> None:
    """Record which files of a data set were used: ``path``, ``size`` in bytes and ``sha256``, tab-separated.

    Sets are published more than once under one name, and lists of files are cut into splits by their order; so a study
    records what it read.

    Parameters
    ----------
    place : Path
        Where the list goes, ``files.tsv`` beside the sheet.
    files : iterable of Path
        Files below ``root``, in any order; repeated ones count once.
    root : Path
        The data set's top, where the paths of the list start.
    """
    rows = []
    for path in sorted(set(files), key=lambda one: one.relative_to(root).as_posix()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            rows.append((path.relative_to(root).as_posix(), str(path.stat().st_size), digest))
    write_text(place, _table(("path", "size", "sha256"), rows))


def write_class_rows(place: Path, rows: Iterable[tuple[int, str]]) -> None:
    """Write a class table of one slide: columns ``instance_id`` and ``class``, tab-separated.

    Parameters
    ----------
    place : Path
        Ends in ``.tsv``.
    rows : iterable of (int, str)
        Label and name of the class of each nucleus whose class is known.
    """
    write_text(place, _table(("instance_id", "class"), ((str(number), name) for number, name in rows)))


def write_picture(place: Path, pixels: NDArray[np.uint8]) -> None:
    """Write an RGB picture as PNG, whole or not at all.

    Parameters
    ----------
    place : Path
        Ends in ``.png``.
    pixels : (H, W, 3) uint8 array
        The picture.
    """
    from PIL import Image

    with publish(place) as draft:
        Image.fromarray(pixels).save(draft, format="PNG", compress_level=_PNG_LEVEL)


def write_label_image(place: Path, labels: NDArray[Any]) -> None:
    """Write a label image as a compressed, tiled TIFF, whole or not at all.

    Parameters
    ----------
    place : Path
        Ends in ``.tif``.
    labels : (H, W) integer array
        0 background, from 1 on the nuclei, below 2**31.
    """
    import tifffile

    kind = np.uint16 if int(labels.max(initial=0)) < 2**16 else np.uint32
    with publish(place) as draft:
        tifffile.imwrite(
            draft,
            labels.astype(kind, copy=False),
            photometric="minisblack",
            compression="adobe_deflate",
            tile=(_TILE_PX, _TILE_PX),
            metadata=None,
            software="slideloom",
            maxworkers=1,
        )
