"""The spora layout: an OME-Zarr 0.5 a tissue, and Parquet tables of tissues, channels and cells.

What is relied upon::

    metadata/tissues.parquet                 tissue_id
    metadata/cells.parquet                   a row a cell, where there is one
    <modality>/channels.parquet              channel_name, uniprot or uniprot_id, qc_pass, is_nuclear_marker
    <modality>/channels_per_tissue.parquet   which tissue has which channel, where there is one
    <modality>/…/1_0mpp/…/<tissue_id>.zarr   the image; how deep it lies does not matter
    segmentations/<resolution>/…             label images, called by the tissue

Images are found by the tissue's id, wherever they lie below their modality.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slideloom.errors import SlideError, SlideloomError
from slideloom.slides.image import Header
from slideloom.slides.labels import label_shape
from slideloom.slides.layouts.imported import Imported, Remarks, path_from
from slideloom.slides.layouts.spora_cells import SporaCells, read_cells
from slideloom.slides.open import open_raw
from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import Source
from slideloom.slides.tables import Channel, is_accession
from slideloom.slides.zarr_layout import is_zarr

__all__ = ["FAILED", "is_spora", "read_spora"]

_TISSUES = Path("metadata", "tissues.parquet")
_CHANNELS = "channels.parquet"
_SEGMENTATIONS = "segmentations"
_STAINED = ("he", "h&e", "hne", "h_and_e")
_LABELS = (".zarr", ".tif", ".tiff", ".png", ".npy")
_RESOLUTION = re.compile(r"(\d+)_(\d+)mpp")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
#: End of the marker's name of a channel that failed quality control: no encoder finds it under the marker's own name.
FAILED = "_qc_failed"


@dataclass(frozen=True)
class _Modality:
    """One way of imaging: its folder, its channels, and the images by tissue."""

    name: str
    channels: tuple[Channel, ...]
    measured: Mapping[str, tuple[str, ...]]
    images: Mapping[str, list[Path]]


def is_spora(folder: Path) -> bool:
    """Whether the folder has this layout: its table of tissues is there."""
    return (folder / _TISSUES).is_file()


def read_spora(folder: Path, out: Path, mpp_um: float | None = None) -> Imported:
    """Bring a data set in.

    A channel that failed quality control keeps a row in the markers table, because no channel of an image is dropped in
    silence, but without its accession and under a marker's name of its own (``CD4_qc_failed``).

    Parameters
    ----------
    folder : Path
        The data set's top.
    out : Path
        Folder of the sheet; class tables of single tissues are written below it, to ``cells/``.
    mpp_um : float, optional
        Pixel size, µm per pixel, over what images and folder names (``1_0mpp``) say.

    Returns
    -------
    Imported
        Tissues with an image, sorted by id.

    Raises
    ------
    SlideloomError
        The table of tissues or every table of channels is missing or cannot be read, or no tissue has an image.
    """
    if not is_spora(folder):
        raise SlideloomError(
            f"the table {_TISSUES.as_posix()} is missing",
            where=str(folder),
            expected="the top folder of a data set in the spora layout",
        )
    tissues = _table(folder / _TISSUES)
    if "tissue_id" not in tissues:
        columns = ", ".join(tissues)
        raise SlideloomError("no column 'tissue_id'", where=str(folder / _TISSUES), hint=f"Its columns are {columns}")
    remarks = Remarks()
    stained, multiplexed = _modalities(folder, remarks)
    ids = [str(one) for one in tissues["tissue_id"]]
    patients = [str(one) for one in tissues["patient_id"]] if "patient_id" in tissues else [""] * len(ids)
    if "patient_id" not in tissues:
        remarks.tell(
            "the table of tissues has no column 'patient_id': each tissue is taken to be of a patient of its own"
        )
    labels = _by_stem(folder / _SEGMENTATIONS)
    cells = read_cells(folder / "metadata" / "cells.parquet", remarks)
    rows: list[SlideRow] = []
    for tissue, patient in sorted(dict(zip(ids, patients, strict=True)).items()):
        row = _row(tissue, folder, out, stained, multiplexed, labels, cells, mpp_um, remarks)
        if row is not None:
            rows.append(_named(row, patient, rows, remarks))
    if not rows:
        raise SlideloomError(
            f"none of {len(ids)} tissues has an image",
            where=str(folder),
            expected="Zarr folders called by the tissue below the folder of their modality",
        )
    channels = multiplexed.channels if multiplexed else ()
    failed = [one.name for one in channels if one.marker.endswith(FAILED)]
    if failed:
        good = ", ".join(one.marker for one in channels if not one.marker.endswith(FAILED) and one.uniprot)
        remarks.tell(
            "channels that failed quality control are left out under their own names: "
            f"{', '.join(failed)}. Encoders read the others with 'markers: [{good}]'"
        )
    return Imported(tuple(rows), channels, cells.classes, remarks.all())


def _table(path: Path) -> dict[str, list[Any]]:
    """Columns of a Parquet file; the index that pandas may have written is one of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:
            columns: dict[str, list[Any]] = pq.ParquetFile(file).read().to_pydict()
    except (OSError, pa.ArrowException) as error:
        hint = "Copy it again from where it was made"
        raise SlideloomError(f"cannot be read: {error}", where=str(path), expected="Parquet", hint=hint) from error
    return columns


def _modalities(folder: Path, remarks: Remarks) -> tuple[_Modality | None, _Modality | None]:
    """The H&E and the multiplexed images of a data set, each None where there are none."""
    stained: _Modality | None = None
    found: list[_Modality] = []
    for place in sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        table = place / _CHANNELS
        if place.name.casefold() in _STAINED:
            stained = _Modality(place.name, (), {}, _by_stem(place))
        elif table.is_file():
            channels = _channels(table, remarks)
            found.append(_Modality(place.name, channels, _measured(place, channels), _by_stem(place)))
    if not found and stained is None:
        raise SlideloomError(
            f"no folder holds a {_CHANNELS}",
            where=str(folder),
            expected=f"such as codex/{_CHANNELS}, cycif/{_CHANNELS}",
        )
    found.sort(key=lambda one: -len(one.images))
    if len(found) > 1:
        others = ", ".join(one.name for one in found[1:])
        remarks.tell(
            f"more than one multiplexed modality: {found[0].name}, with the most images, is taken, not {others}"
        )
    return stained, found[0] if found else None


def _channels(table: Path, remarks: Remarks) -> tuple[Channel, ...]:
    columns = _table(table)
    if "channel_name" not in columns:
        hint = f"Its columns are {', '.join(columns)}"
        raise SlideloomError("no column 'channel_name'", where=str(table), hint=hint)
    n = len(columns["channel_name"])
    accessions = columns.get("uniprot_id", columns.get("uniprot", [None] * n))
    passed = columns.get("qc_pass", [True] * n)
    nuclear = columns.get("is_nuclear_marker", [False] * n)
    if "qc_pass" not in columns:
        remarks.tell(f"{table.parent.name}/{table.name} has no column 'qc_pass': every channel is taken to be good")
    channels: dict[str, Channel] = {}
    for name, accession, good, stain in zip(columns["channel_name"], accessions, passed, nuclear, strict=True):
        text, uniprot = str(name).strip(), "" if accession is None else str(accession).strip()
        if uniprot and not is_accession(uniprot):
            if uniprot.casefold() not in ("nan", "none"):
                remarks.tell(f"channel {text}: {uniprot!r} is not one UniProt accession, left empty")
            uniprot = ""
        if not text or text in channels:
            remarks.tell(f"{table.parent.name}/{table.name}: the channel name {text!r} is empty or stands there twice")
            continue
        # A channel of unknown quality did not pass.
        channel = Channel(text, text, uniprot, bool(stain)) if good in (True, 1) else Channel(text, f"{text}{FAILED}")
        channels[text] = channel
    return tuple(channels.values())


def _measured(place: Path, channels: Sequence[Channel]) -> dict[str, tuple[str, ...]]:
    """Channels of each tissue in the order of the table of channels, where a table says."""
    table = place / "channels_per_tissue.parquet"
    if not table.is_file():
        return {}
    columns = _table(table)
    ids = columns.get("tissue_id", columns.get("__index_level_0__"))
    if ids is None:
        return {}
    names = [channel.name for channel in channels]
    if "channel_name" in columns:
        pairs = set(zip(map(str, ids), map(str, columns["channel_name"]), strict=True))
        return {tissue: tuple(name for name in names if (tissue, name) in pairs) for tissue in map(str, ids)}
    there = [name for name in names if name in columns]
    return {
        str(tissue): tuple(name for name in there if columns[name][index] in (True, 1))
        for index, tissue in enumerate(ids)
    }


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    """Zarr folders and label images below a folder, by their names without suffixes."""
    found: dict[str, list[Path]] = {}
    if folder.is_dir():
        for path in _images(folder):
            suffix = next((one for one in (".ome.zarr", *_LABELS) if path.name.lower().endswith(one)), "")
            found.setdefault(path.name[: len(path.name) - len(suffix)], []).append(path)
    return found


def _images(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        here = Path(place)
        inside = [one for one in sorted(folders) if is_zarr(here / one)]
        yield from (here / one for one in inside)
        folders[:] = sorted(one for one in folders if one not in inside and not one.startswith("."))
        yield from (here / one for one in sorted(names) if one.lower().endswith(_LABELS) and not one.startswith("."))


def _row(
    tissue: str,
    folder: Path,
    out: Path,
    stained: _Modality | None,
    multiplexed: _Modality | None,
    labels: Mapping[str, list[Path]],
    cells: SporaCells,
    mpp_um: float | None,
    remarks: Remarks,
) -> SlideRow | None:
    """A tissue's row, called as the tissue is."""
    images: dict[str, tuple[Path, Header]] = {}
    for column, modality in (("he", stained), ("sp", multiplexed)):
        if modality is not None:
            opened = _open(tissue, modality, folder, remarks)
            if opened is not None:
                images[column] = opened
    if not images:
        remarks.tell(f"{tissue}: no image, left out")
        return None
    shapes = {(one.levels[0].height_px, one.levels[0].width_px) for _, one in images.values()}
    instances = _instances(tissue, labels.get(tissue, []), shapes, folder, remarks)
    classes = cells.write(tissue, out) if instances else None
    if instances is None:
        remarks.count("no segmentation: can be predicted, not learnt from", tissue)
    names = None
    if "sp" in images and multiplexed is not None:
        names = _names(tissue, images["sp"][1], multiplexed, remarks)
    sizes = {column: _mpp(path, header, mpp_um, remarks, tissue) for column, (path, header) in images.items()}
    return SlideRow(
        slide_id=tissue,
        platform=multiplexed.name if multiplexed else "he",
        he=path_from(out, images["he"][0]) if "he" in images else None,
        sp=path_from(out, images["sp"][0]) if "sp" in images else None,
        instances=path_from(out, instances) if instances else None,
        classes=path_from(out, classes) if classes else None,
        he_mpp_um=sizes.get("he"),
        sp_mpp_um=sizes.get("sp"),
        sp_channels=names,
    )


def _named(row: SlideRow, patient: str, others: Sequence[SlideRow], remarks: Remarks) -> SlideRow:
    """The row with its patient, and an id that may stand in paths."""
    plain = _UNSAFE.sub("_", row.slide_id).strip("_-") or "tissue"
    name, number = plain, 2
    while any(name.casefold() == other.slide_id.casefold() for other in others):
        name, number = f"{plain}_{number}", number + 1
    if name != row.slide_id:
        remarks.tell(f"{row.slide_id}: is called {name} in the sheet")
    known = patient if patient.casefold() not in ("", "nan", "none") else name
    return replace(row, slide_id=name, patient_id=known)


def _open(tissue: str, modality: _Modality, folder: Path, remarks: Remarks) -> tuple[Path, Header] | None:
    """The tissue's finest image of a modality, and what its header says."""
    found = sorted(modality.images.get(tissue, []), key=lambda path: (_folder_mpp(path) or math.inf, str(path)))
    if not found:
        remarks.count(f"no {modality.name} image", tissue)
        return None
    if len(found) > 1:
        others = ", ".join(str(path.relative_to(folder)) for path in found[1:])
        remarks.tell(f"{tissue}: {found[0].relative_to(folder)} is taken, not {others}")
    try:
        raw = open_raw(Source(found[0]))
    except SlideError as error:
        remarks.tell(f"{tissue}: {found[0].relative_to(folder)} left out, {error.what}")
        return None
    raw.close()
    return found[0], raw.header


def _folder_mpp(path: Path) -> float | None:
    """What a folder such as ``1_0mpp`` says, µm per pixel."""
    match = next((match for part in reversed(path.parts) if (match := _RESOLUTION.fullmatch(part))), None)
    return float(f"{match[1]}.{match[2]}") if match else None


def _mpp(path: Path, header: Header, given: float | None, remarks: Remarks, tissue: str) -> float | None:
    """Pixel size for the sheet: what was given, or what the folder says where the image says nothing."""
    if given is not None:
        return given
    found = None if header.mpp_um else _folder_mpp(path)
    if found is None and header.mpp_um is None:
        remarks.count("no pixel size, and slides without one are refused: give --mpp, or fill in mpp_um", tissue)
    return found


def _names(tissue: str, header: Header, modality: _Modality, remarks: Remarks) -> tuple[str, ...] | None:
    """Channel names for the sheet, where the image has none that the table knows."""
    known = tuple(channel.name for channel in modality.channels)
    measured = modality.measured.get(tissue, known)
    own = header.channel_names
    if own is not None:
        strangers = [name for name in own if name not in known]
        if strangers:
            shown = ", ".join(strangers)
            remarks.tell(f"{tissue}: channels {shown} are not in {modality.name}/{_CHANNELS}; add them to markers.tsv")
        return None
    for names in (measured, known):
        if len(names) == header.n_channels:
            return names
    what = f"{header.n_channels} channels without names, and the tables name {len(measured)}"
    remarks.tell(f"{tissue}: {what}; fill in sp_channels")
    return None


def _instances(
    tissue: str, found: Sequence[Path], shapes: set[tuple[int, int]], folder: Path, remarks: Remarks
) -> Path | None:
    """The tissue's label image of the images' size; nuclei before cells where both are there."""
    fitting = []
    for path in found:
        shown = path.relative_to(folder)
        try:
            shape = label_shape(Source(path))
        except SlideError as error:
            remarks.tell(f"{tissue}: {shown} left out, {error.what}")
            continue
        if shape in shapes:
            fitting.append(path)
        else:
            remarks.tell(f"{tissue}: {shown} left out, it is {shape[0]} x {shape[1]} px and no image of the tissue is")
    fitting.sort(key=lambda path: ("nucle" not in path.relative_to(folder).as_posix().lower(), str(path)))
    if len(fitting) > 1:
        others = ", ".join(str(path.relative_to(folder)) for path in fitting[1:])
        remarks.tell(f"{tissue}: {fitting[0].relative_to(folder)} is taken, not {others}")
    return fitting[0] if fitting else None
