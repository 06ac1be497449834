"""CellBinDB: H&E, DAPI, ssDNA and multiplexed membrane stains of mouse and human tissue, outlined by hand.

Shi et al., GigaScience 14, giaf069 (2025); CNGB CNP0006370, Zenodo 15370205. Two layouts are understood::

    <stain>/<sample>/<sample>-img.tif, …-instancemask.tif, …-mask.tif       the deposit, of six stains
    <name>_image.tif, <name>_labels.tif, <name>_mask_semantic.tif           its demo images
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from slideloom.errors import SlideError, SlideloomError
from slideloom.slides.labels import check_shape, read_labels
from slideloom.slides.layouts.annotated import FILE_LIST
from slideloom.slides.layouts.imported import Imported, Remarks, path_from, write_file_list
from slideloom.slides.layouts.listing import MADE, folders_in, list_folder
from slideloom.slides.layouts.multiplexed import (
    CELLS_SHEET,
    NOMINAL_MPP_UM,
    RED_GREEN_BLUE,
    plain_id,
    write_cells_sheet,
    write_channels,
)
from slideloom.slides.open import open_image, open_raw
from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import Source
from slideloom.slides.tables import Channel, ClassTable

__all__ = ["STAINS", "is_cellbindb", "read_cellbindb"]

#: Channel of each stain that is no picture.
STAINS: Mapping[str, Channel] = MappingProxyType(
    {
        "dapi": Channel("DAPI", "DNA", nuclear=True),
        "ssdna": Channel("ssDNA", "DNA", nuclear=True),
        "mif": Channel("membrane", "membrane"),
    }
)
_STAIN = re.compile(r"(?<![a-z])(he|dapi|ssdna|mif)(?![a-z])")
_TENX = re.compile(r"10\s*[x×]|tenx", re.IGNORECASE)
#: Endings of image and instances, in the deposit and in the demo.
_DEPOSIT = "-img.tif", "-instancemask.tif"
_DEMO = "_image.tif", "_labels.tif"
#: Stains whose outlines are of whole cells.
_CELLS = {"mif"}


@dataclass(frozen=True)
class _Sample:
    """An image, its outlines and its stain."""

    name: str
    stain: str
    group: str
    image: Path
    labels: Path


@dataclass
class _Found:
    """Rows as they are gathered."""

    out: Path
    mpp_um: float | None
    remarks: Remarks = field(default_factory=Remarks)
    rows: dict[str, SlideRow] = field(default_factory=dict)
    objects: Counter[str] = field(default_factory=Counter)
    used: set[Path] = field(default_factory=set)


def is_cellbindb(folder: Path) -> bool:
    """Whether it holds demo images, or a folder a stain with samples of the deposit."""
    if any(_stain_of(path.name) and _partner(path, _DEMO).is_file() for path in _ending(folder, _DEMO[0])):
        return True
    return next(_deposit(folder), None) is not None


def read_cellbindb(folder: Path, out: Path, mpp_um: float | None = None) -> Imported:
    """Bring the set in: H&E as pictures, the other stains as one channel each.

    Outlines of DAPI, ssDNA and H&E are nuclei; those of the membrane stain (mIF) are whole cells and stand in
    ``out/cells.tsv``, where its slides alone have instances.

    Parameters
    ----------
    folder : Path
        Holds the folders of the stains (or one folder that does, as the archive has it), or the demo images.
    out : Path
        Folder of the sheet; ``cells.tsv``, ``files.tsv`` and, where a grey image is stored in colours,
        ``imported/images/`` are written to it.
    mpp_um : float, optional
        Pixel size of every image, µm per pixel. The files do not hold it; 0.5 when left out, and told.

    Returns
    -------
    Imported
        Slides sorted by id; the platform is ``cellbindb_`` and the stain. It is a set to judge by: all are ``test``.

    Raises
    ------
    SlideloomError
        Neither layout is there, or no image can be read.
    """
    samples = [*_demo(folder), *_deposit(folder)]
    if not samples:
        raise SlideloomError(
            "no image with its outlines was found",
            where=str(folder),
            expected=f"<stain>/<sample>/<sample>{_DEPOSIT[0]} and …{_DEPOSIT[1]}, or <stain>{_DEMO[0]} and …{_DEMO[1]}",
            hint="Stains are HE, DAPI, ssDNA and mIF, also with 10xGenomics_ in front",
        )
    found = _Found(out, mpp_um)
    for sample in samples:
        try:
            _add(sample, found)
        except SlideError as error:
            found.remarks.tell(f"{sample.name}: left out, {error.message}")
    if not found.rows:
        told = "; ".join(found.remarks.all()[:3])
        raise SlideloomError(f"none of {len(samples)} images can be used", where=str(folder), hint=told)
    ordered = [row for _, row in sorted(found.rows.items())]
    write_cells_sheet([row if _of_cells(row) else _unmarked(row) for row in ordered], out)
    write_file_list(out / FILE_LIST, found.used, folder)
    _general(found, ordered)
    rows = tuple(_unmarked(row) if _of_cells(row) else row for row in ordered)
    known = {channel.name: channel for channel in (*STAINS.values(), *RED_GREEN_BLUE)}
    used = {name: known[name] for row in rows for name in row.sp_channels or ()}
    return Imported(rows, tuple(used[name] for name in sorted(used)), ClassTable(), found.remarks.all())


def _general(found: _Found, rows: list[SlideRow]) -> None:
    n = Counter(row.platform for row in rows)
    counts = ", ".join(f"{found.objects[name]} on {n[name]} of {name}" for name in sorted(n))
    told = [f"outlined objects: {counts}"]
    if any(_of_cells(row) for row in rows):
        told.append(f"the outlines of mIF are whole cells: infer in this sheet, test in {CELLS_SHEET}")
    if found.mpp_um is None:
        told.append(
            f"THE FILES DO NOT HOLD THEIR PIXEL SIZE: {NOMINAL_MPP_UM} µm is written down for all, a nominal value. "
            "Figures in µm mean little; give --mpp for another"
        )
    told.append("the set is one to judge by, and does not tell patients: every slide is test")
    found.remarks.notes[:0] = told


def _of_cells(row: SlideRow) -> bool:
    return row.extra.get("stain") in _CELLS


def _unmarked(row: SlideRow) -> SlideRow:
    return replace(row, instances=None, split="infer")


# ---- where they lie --------------------------------------------------------------------------------------------------


def _stain_of(text: str) -> str:
    """The stain that a name carries; empty when none."""
    match = _STAIN.search(re.sub(r"[_\s-]+", " ", text.lower()))
    return match[1] if match else ""


def _group(text: str, stain: str) -> str:
    return f"10x_{stain}" if _TENX.search(text) else stain


def _partner(image: Path, endings: tuple[str, str]) -> Path:
    return image.with_name(image.name.removesuffix(endings[0]) + endings[1])


def _demo(folder: Path) -> Iterator[_Sample]:
    for image in _ending(folder, _DEMO[0]):
        name = image.name.removesuffix(_DEMO[0])
        if stain := _stain_of(name):
            yield _Sample(name, stain, _group(name, stain), image, _partner(image, _DEMO))


def _deposit(folder: Path) -> Iterator[_Sample]:
    """Samples of the deposit, whose stains' folders lie in this folder or in one below it."""
    inside = folders_in(folder)
    stains = [one for one in inside if _stain_of(one.name)]
    if not stains:
        stains = [one for place in inside for one in folders_in(place) if _stain_of(one.name)]
    for place in stains:
        stain = _stain_of(place.name)
        for image in (image for below in folders_in(place) for image in _ending(below, _DEPOSIT[0])):
            name = image.name.removesuffix(_DEPOSIT[0])
            yield _Sample(name, stain, _group(place.name, stain), image, _partner(image, _DEPOSIT))


def _ending(folder: Path, ending: str) -> Iterator[Path]:
    return (folder / one for one in list_folder(folder).files if one[0] != "." and one.endswith(ending))


# ---- one image -------------------------------------------------------------------------------------------------------


def _add(sample: _Sample, found: _Found) -> None:
    named = sample.name if _stain_of(sample.name) else f"{sample.group}_{sample.name}"
    slide = plain_id(f"cellbindb_{named}", found.rows)
    labels = read_labels(Source(sample.labels))
    place, names, shape = _image(sample, slide, found)
    check_shape((labels.shape[0], labels.shape[1]), [shape])
    platform, mpp_um = f"cellbindb_{sample.group}", found.mpp_um or NOMINAL_MPP_UM
    found.objects[platform] += int(np.unique(labels[labels > 0]).size)
    found.used |= {sample.image, sample.labels}
    found.rows[slide] = SlideRow(
        slide_id=slide,
        platform=platform,
        he=None if names else path_from(found.out, place),
        sp=path_from(found.out, place) if names else None,
        instances=path_from(found.out, sample.labels),
        he_mpp_um=None if names else mpp_um,
        sp_mpp_um=mpp_um if names else None,
        sp_channels=names or None,
        split="test",
        extra={"stain": sample.stain},
    )


def _image(sample: _Sample, slide: str, found: _Found) -> tuple[Path, tuple[str, ...], tuple[int, int]]:
    """The image, names of its channels (none of H&E), height and width."""
    if sample.stain == "he":
        with open_image(Source(sample.image), "he") as picture:
            picture.read(0, 0, 0, picture.height_px, picture.width_px)  # some files of the deposit are damaged
            return sample.image, (), (picture.height_px, picture.width_px)
    raw = open_raw(Source(sample.image))
    try:
        header, level = raw.header, raw.header.levels[0]
        shape = level.height_px, level.width_px
        stored = raw.read(0, 0, 0, *shape)
    finally:
        raw.close()
    stain = STAINS[sample.stain]
    if header.n_channels == 1:
        return sample.image, (stain.name,), shape
    if header.colour.startswith("rgb"):
        stored = stored[:3]
    if bool((stored == stored[:1]).all()):
        place = found.out / MADE / "images" / f"{slide}.ome.tif"
        write_channels(place, np.ascontiguousarray(stored[:1]), (stain.name,), found.mpp_um or NOMINAL_MPP_UM)
        found.remarks.count("a grey image stored in colours: written as one channel", slide)
        return place, (stain.name,), shape
    if len(stored) == 3 and header.n_channels == 3:
        found.remarks.count("its stain is stored in colours: three channels red, green, blue", slide)
        return sample.image, tuple(channel.name for channel in RED_GREEN_BLUE), shape
    raise SlideError(f"an image of {header.n_channels} channels", where=sample.name, expected="one channel")
