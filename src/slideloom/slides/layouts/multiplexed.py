"""What importers of images with channels share: images written for a study, a sheet of whole cells, shares by name."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.artefacts.files import publish
from slideloom.errors import SlideError
from slideloom.slides.layouts.imported import Imported
from slideloom.slides.sheet import SlideRow, write_sheet
from slideloom.slides.tables import Channel

__all__ = [
    "CELLS_SHEET",
    "NOMINAL_MPP_UM",
    "RED_GREEN_BLUE",
    "hash_order",
    "held_back",
    "in_one_modality",
    "kept_samples",
    "plain_id",
    "write_cells_sheet",
    "write_channels",
]

#: Sheet of the same slides whose column ``instances`` holds whole cells.
CELLS_SHEET = "cells.tsv"
#: Pixel size that is written down where nobody knows it, µm per pixel.
NOMINAL_MPP_UM = 0.5
#: Channels of a colour picture that stands in the column ``sp``.
RED_GREEN_BLUE = tuple(Channel(name, name) for name in ("red", "green", "blue"))
_TILE_PX = 512
#: The TIFF specification wants the sides of tiles to be multiples of this.
_TILE_STEP_PX = 16
_KEPT = (np.uint8, np.uint16, np.float32)
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_LONGEST = 100


def plain_id(text: str, taken: Collection[str]) -> str:
    """A slide's id made of any text, and unlike those that are taken already.

    Parameters
    ----------
    text : str
        Whatever a file or folder is called.
    taken : collection of str
        Ids of other slides; letter case does not tell two ids apart.

    Examples
    --------
    >>> plain_id("vectra P11-10003(58107.9239)0,1200", ())
    'vectra_P11-10003_58107.9239_0_1200'
    """
    plain = re.sub(r"\.{2,}", ".", _UNSAFE.sub("_", text)).strip("_-.")[:_LONGEST].strip("_-.") or "image"
    folded = {one.casefold() for one in taken}
    name, number = plain, 2
    while name.casefold() in folded:
        name, number = f"{plain}_{number}", number + 1
    return name


def hash_order(names: Iterable[str]) -> list[str]:
    """Names in an order that depends on each name alone: that of the SHA-256 of its UTF-8 bytes."""
    return sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).digest())


def held_back(groups: Mapping[str, int], share: float = 0.2) -> frozenset[str]:
    """Groups that are held back, by the hash of their names: neither file systems nor random generators play a part.

    Parameters
    ----------
    groups : mapping of str to int
        Slides of each group. A group is never torn.
    share : float
        Share of slides to hold back, 0 to 1.

    Returns
    -------
    frozenset of str
        Groups in the order of :func:`hash_order`, as many as come nearest to the share; at least one and not all where
        there are two groups or more, none where there is one.
    """
    ordered = hash_order(groups)
    if len(ordered) < 2:
        return frozenset()
    sums = np.cumsum([groups[name] for name in ordered])[:-1]
    return frozenset(ordered[: 1 + int(np.argmin(np.abs(sums - share * sum(groups.values()))))])


def kept_samples(values: NDArray[Any], where: str) -> NDArray[Any]:
    """The same numbers as uint8, uint16 or float32, the types that channels are read in.

    Parameters
    ----------
    values : ndarray
        Of any type of number.
    where : str
        For the message.

    Returns
    -------
    ndarray
        The array itself where its type is one of these; else uint16 where all are whole numbers of its range, or
        float32 where that holds every number exactly.

    Raises
    ------
    SlideError
        ``unsupported_dtype``: neither type holds the numbers.
    """
    if values.dtype in _KEPT:
        return values
    if values.dtype.kind in "biuf":
        for kind in (np.uint16, np.float32):
            with np.errstate(all="ignore"):
                same = values.astype(kind)
            if np.array_equal(same, values, equal_nan=values.dtype.kind == "f"):
                return same
    raise SlideError(
        f"channels of {values.dtype} samples",
        where=where,
        expected="numbers that uint8, uint16 or float32 holds exactly",
        hint="Save it as one of these; Slideloom does not round or scale values for you",
        code="unsupported_dtype",
    )


def write_channels(place: Path, planes: NDArray[Any], names: Sequence[str], mpp_um: float | None) -> None:
    """Write an image with named channels as compressed, tiled OME-TIFF, whole or not at all; equal images, equal bytes.

    Parameters
    ----------
    place : Path
        Ends in ``.ome.tif``.
    planes : (C, H, W) array
        uint8, uint16 or float32.
    names : sequence of str
        A name a channel.
    mpp_um : float or None
        Pixel size, µm per pixel; left out where nobody knows it.
    """
    import tifffile

    digest = hashlib.sha256(np.ascontiguousarray(planes).tobytes())
    digest.update("\n".join((place.name, *names)).encode())
    metadata: dict[str, Any] = {
        "axes": "CYX",
        # From what is written, not from the clock.
        "UUID": f"urn:uuid:{uuid.UUID(bytes=digest.digest()[:16], version=5)}",
        "Name": place.name.removesuffix(".ome.tif"),
        "Creator": "slideloom",
        "Channel": {"Name": list(names)},
    }
    if mpp_um is not None:
        for axis in "XY":
            metadata |= {f"PhysicalSize{axis}": mpp_um, f"PhysicalSize{axis}Unit": "µm"}
    # Tiles are stored whole: those of a small image are no larger than it.
    side = min(_TILE_PX, -(-max(planes.shape[1:]) // _TILE_STEP_PX) * _TILE_STEP_PX)
    with publish(place) as draft, tifffile.TiffWriter(draft, ome=True) as file:
        file.write(
            planes,
            photometric="minisblack",
            compression="adobe_deflate",
            predictor=planes.dtype.kind == "u",
            tile=(side, side),
            metadata=metadata,
            software="slideloom",
            maxworkers=1,
        )


def write_cells_sheet(rows: Sequence[SlideRow], out: Path) -> None:
    """Write the sheet whose instances are whole cells, :data:`CELLS_SHEET`, beside that of nuclei.

    Parameters
    ----------
    rows : sequence of SlideRow
        Sorted by id; nothing is written when none of them has instances.
    out : Path
        Folder of the sheets.
    """
    if any(row.instances for row in rows):
        write_sheet(rows, out / CELLS_SHEET)


def in_one_modality(found: Imported) -> Imported:
    """The same data set with its colour pictures in the column ``sp``, as channels red, green and blue.

    One network can then learn from pictures and from channels alike. Slides that have both images keep both.

    Parameters
    ----------
    found : Imported
        Pictures without transparency: a fourth sample would be a fourth channel.

    Returns
    -------
    Imported
        Rows, and the markers ``red``, ``green`` and ``blue`` after the others. The classes are the same.
    """
    names = tuple(channel.name for channel in RED_GREEN_BLUE)
    moved = [row for row in found.rows if row.he and not row.sp]
    if not moved:
        return found
    rows = tuple(
        replace(row, he=None, sp=row.he, he_mpp_um=None, sp_mpp_um=row.he_mpp_um, sp_channels=names)
        if row.he and not row.sp
        else row
        for row in found.rows
    )
    known = {channel.name for channel in found.channels}
    channels = (*found.channels, *(channel for channel in RED_GREEN_BLUE if channel.name not in known))
    note = f"{len(moved)} colour pictures stand in the column sp, as channels {', '.join(names)}"
    return replace(found, rows=rows, channels=channels, notes=(*found.notes, note))
