"""CPDMI 2023 (also CVZ-Fluo): fluorescence of three platforms with outlined nuclei and whole cells.

Aleynick et al., Scientific Data 10:193 (2023), doi 10.1038/s41597-023-02108-z; Synapse syn27624812. The layout is that
of :mod:`slideloom.slides.layouts.cpdmi_files`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideError, SlideloomError
from slideloom.slides.layouts.annotated import FILE_LIST
from slideloom.slides.layouts.cpdmi_channels import (
    CODEX_MPP_UM,
    ZEISS_MPP_UM,
    codex_names,
    markers_of,
    vectra_mpp,
    vectra_names,
    zeiss_names,
)
from slideloom.slides.layouts.cpdmi_files import CORRUPT, PLATFORMS, Sample, find_samples, platform_folders
from slideloom.slides.layouts.cpdmi_pixels import Stack, close_stack, imagej_info, open_stack, outlined_objects
from slideloom.slides.layouts.imported import Imported, Remarks, path_from, write_file_list, write_label_image
from slideloom.slides.layouts.listing import MADE
from slideloom.slides.layouts.multiplexed import (
    CELLS_SHEET,
    held_back,
    kept_samples,
    plain_id,
    write_cells_sheet,
    write_channels,
)
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import ClassTable

__all__ = ["is_cpdmi", "read_cpdmi"]

_KINDS = ("nuclei", "cells")
#: Outlined objects that the set's paper counts.
_PUBLISHED = {"nuclei": 23_716, "cells": 82_058}
_TONSIL = 32
_Shape = tuple[int, int]


def is_cpdmi(folder: Path) -> bool:
    """Whether a folder ``Vectra``, ``Zeiss`` or ``CODEX`` lies in it with a crop's files."""
    return bool(platform_folders(folder)) and next(find_samples(folder), None) is not None


@dataclass
class _Found:
    """Rows as they are gathered."""

    folder: Path
    out: Path
    mpp_um: float | None
    remarks: Remarks = field(default_factory=Remarks)
    rows: dict[str, dict[str, SlideRow]] = field(default_factory=lambda: {kind: {} for kind in _KINDS})
    specimens: dict[str, str] = field(default_factory=dict)
    objects: Counter[str] = field(default_factory=Counter)
    used: set[Path] = field(default_factory=set)


@dataclass(frozen=True)
class _Picture:
    """An image that fits a mask, as the sheet names it."""

    path: Path
    names: tuple[str, ...]
    mpp_um: float


def read_cpdmi(folder: Path, out: Path, mpp_um: float | None = None) -> Imported:
    """Bring the set in.

    Instances are the connected pixels of the masks, which are drawn with gaps: pixels that touch by a side or a corner
    are one object. Nuclei are those of the sheet; whole cells stand in a second sheet of the same slides,
    ``out/cells.tsv``, and in the column ``cells`` of the first where both are annotated on one image. A slide without
    an annotation of a sheet's kind has the role ``infer`` there.

    Images are named where they lie when they have the mask's size, else cut to it and written to
    ``out/imported/images``. No file of the set is changed or removed.

    Parameters
    ----------
    folder : Path
        Holds the folders of the platforms.
    out : Path
        Folder of the sheet; ``cells.tsv``, ``files.tsv`` (path, size and SHA-256 of every file that was used) and,
        below ``imported/``, ``nuclei/``, ``cells/`` and ``images/`` are written to it.
    mpp_um : float, optional
        Pixel size of every image, µm per pixel, over what is known of the platforms.

    Returns
    -------
    Imported
        Crops with an image and a mask, sorted by id. The column ``split`` holds one specimen in five of Vectra and of
        Zeiss back as ``val``, by the hashes of their names, and has ``test`` for CODEX.

    Raises
    ------
    SlideloomError
        No folder of a platform holds a crop, or no crop has an image that can be read and a mask that fits.
    """
    samples = list(find_samples(folder))
    if not samples:
        missing = ", ".join(platform for platform in PLATFORMS if platform not in platform_folders(folder))
        raise SlideloomError(
            f"no crop was found{f'; missing folders: {missing}' if missing else ''}",
            where=str(folder),
            expected="Vectra/, Zeiss/ or CODEX/ with files such as …-Crop_Tif.tif and …-Crop_Cell_Mask_Png.png",
        )
    found = _Found(folder, out, mpp_um)
    for sample in samples:
        try:
            _add(sample, found)
        except SlideError as error:
            hint = f" ({error.hint})" if error.hint else ""
            found.remarks.tell(f"{sample.platform} {sample.name}: left out, {error.message}{hint}")
    if not found.specimens:
        raise SlideloomError(
            f"none of {len(samples)} crops has an image and a mask that fits it",
            where=str(folder),
            hint="; ".join(found.remarks.all()[:3]),
        )
    roles = _roles(found)
    sheets = {kind: tuple(_with_role(row, roles) for _, row in sorted(found.rows[kind].items())) for kind in _KINDS}
    write_cells_sheet(sheets["cells"], out)
    write_file_list(out / FILE_LIST, found.used, folder)
    _general(found, sheets)
    names = [name for rows in sheets.values() for row in rows for name in row.sp_channels or ()]
    return Imported(sheets["nuclei"], markers_of(names), ClassTable(), found.remarks.all())


# ---- one crop --------------------------------------------------------------------------------------------------------


def _add(sample: Sample, found: _Found) -> None:
    """Add a crop to both sheets."""
    if sample.name in CORRUPT:
        found.remarks.tell(f"{sample.platform} {sample.name}: left out, it is known to be corrupt")
        return
    if not sample.images:
        raise SlideError("no image, a file such as …-Crop_Tif.tif", where=sample.name)
    masks = {kind: getattr(sample, kind) for kind in _KINDS if getattr(sample, kind)}
    if not masks:
        raise SlideError("neither …-Crop_Dapi_Mask_Png.png nor …-Crop_Cell_Mask_Png.png", where=sample.name)
    named = sample.name if sample.name.lower().startswith(sample.platform) else f"{sample.platform}_{sample.name}"
    slide = plain_id(named, found.specimens)
    drawn: dict[str, NDArray[np.int32]] = {}
    pictures: dict[str, _Picture] = {}
    made: dict[_Shape, _Picture] = {}
    failed: list[SlideError] = []
    for kind, files in masks.items():
        if len(files) > 1:
            found.remarks.tell(f"{slide}: {len(files)} masks of its {kind}; {files[0].name.strip()} is taken")
        try:
            labels = outlined_objects(files[0])
            shape = (labels.shape[0], labels.shape[1])
            if shape not in made:
                place = found.out / MADE / "images" / f"{slide}{f'_{kind}' if made else ''}.ome.tif"
                made[shape] = _picture(sample, shape, place, found, slide)
        except SlideError as error:
            failed.append(error)
            continue
        drawn[kind], pictures[kind] = labels, made[shape]
    if not pictures:
        raise failed[0]
    for one in failed:
        found.remarks.tell(f"{slide}: a mask is left out, {one.message}")
    for kind, labels in drawn.items():
        write_label_image(found.out / MADE / kind / f"{slide}.tif", labels)
        found.objects[kind] += int(labels.max(initial=0))
        found.used.add(masks[kind][0])
    for kind in _KINDS:
        found.rows[kind][slide] = _row(sample, slide, kind, pictures, found)
    found.specimens[slide] = f"{sample.platform}_{sample.specimen}"


def _row(sample: Sample, slide: str, kind: str, pictures: dict[str, _Picture], found: _Found) -> SlideRow:
    """The crop's row in the sheet of nuclei or of cells."""
    picture = pictures.get(kind) or next(iter(pictures.values()))
    extra = {"panel": sample.panel}
    if kind == "nuclei" and len({pictures.get(one) for one in _KINDS}) == 1:
        extra["cells"] = path_from(found.out, found.out / MADE / "cells" / f"{slide}.tif")
    labelled = found.out / MADE / kind / f"{slide}.tif" if kind in pictures else None
    return SlideRow(
        slide_id=slide,
        patient_id=f"{sample.platform}_{sample.specimen}",
        platform=sample.platform,
        sp=path_from(found.out, picture.path),
        instances=path_from(found.out, labelled) if labelled else None,
        sp_mpp_um=picture.mpp_um,
        sp_channels=picture.names,
        extra=extra,
    )


def _picture(sample: Sample, shape: _Shape, place: Path, found: _Found, slide: str) -> _Picture:
    """The crop's image of a mask's size: a file as it is, or one that is cut out and written."""
    refused: list[str] = []
    fitting: list[tuple[int, int, str, Path, Stack, _Shape]] = []
    for path in sample.images:
        try:
            stack, size = open_stack(path, shape)
        except SlideError as error:
            refused.append(f"{path.name.strip()}: {error.what}")
            continue
        offset = (0, 0) if size == shape else sample.offset
        if offset is None or any(at + part > whole for at, part, whole in zip(offset, shape, size, strict=True)):
            refused.append(
                f"{path.name.strip()}: {size[0]} x {size[1]} px, cut at {sample.offset or 'an unknown place'}"
            )
            close_stack(stack)
            continue
        fitting.append((size != shape, path.stat().st_size, path.name, path, stack, offset))
    fitting.sort(key=lambda one: one[:3])
    try:
        if not fitting:
            raise SlideError(
                f"no image fits its mask of {shape[0]} x {shape[1]} px: {'; '.join(refused)}", where=sample.name
            )
        *_, path, stack, offset = fitting[0]
        if len(sample.images) > 1:
            found.remarks.count("more than one image; that of the mask's size, or the smallest, is used", slide)
        return _named(sample, path, stack, offset, shape, place, found, slide)
    finally:
        for *_, stack, _offset in fitting:
            close_stack(stack)


def _named(
    sample: Sample,
    path: Path,
    stack: Stack,
    offset: _Shape,
    shape: _Shape,
    place: Path,
    found: _Found,
    slide: str,
) -> _Picture:
    """The image with its names and pixel size, cut and written where it is not of the mask's size."""
    n_channels = stack.shape[0] if isinstance(stack, np.ndarray) else stack.n_channels
    names, mpp_um = _names(sample, path, n_channels, found, slide)
    found.used.add(path)
    rows, columns = (slice(at, at + part) for at, part in zip(offset, shape, strict=True))
    if isinstance(stack, np.ndarray):
        planes = stack[:, rows, columns]
    elif (stack.height_px, stack.width_px) == shape:
        return _Picture(path, names, mpp_um)
    else:
        planes = stack.read(0, offset[0], offset[1], *shape)
        found.remarks.count("its image is cut to the crop that is annotated, at the place that its name gives", slide)
    write_channels(place, kept_samples(planes, path.name), names, mpp_um)
    return _Picture(place, names, mpp_um)


def _names(sample: Sample, path: Path, n_channels: int, found: _Found, slide: str) -> tuple[tuple[str, ...], float]:
    """Names of the channels, and the pixel size in µm."""
    remarks, why = found.remarks, ""
    names: tuple[str, ...] | None
    if sample.platform == "vectra":
        info = imagej_info(path)
        names = vectra_names(info, n_channels)
        mpp_um, why = vectra_mpp(info)
    elif sample.platform == "zeiss":
        names, mpp_um = zeiss_names(sample.panel, n_channels), ZEISS_MPP_UM
    else:
        names, mpp_um = None, CODEX_MPP_UM
        if n_channels % 4 == 0:
            names, known = codex_names(sample.panel, n_channels)
            if not known:
                remarks.count("an unknown CODEX tissue: only DAPI, the first channel of every cycle, is named", slide)
            elif n_channels == _TONSIL:
                remarks.count(
                    "32 channels, and the list of a tonsil's channels that went round has 31: the fourth cycle lacks "
                    "one. DAPI is the first channel of each of the eight cycles; the cycle's other three, of which two "
                    "are Ki67 and HLA-DR, are called unnamed_4_2 to unnamed_4_4. The set's Annotation Panel Table.xlsx "
                    "knows them: put their names into sp_channels and markers.tsv",
                    slide,
                )
    if why and found.mpp_um is None:
        remarks.count(why, slide)
    if names is None:
        names = tuple(f"unnamed_{index + 1}" for index in range(n_channels))
        remarks.count(
            "its channels have no names that fit their number, nor is the nuclear one known: they are called unnamed_1 "
            "and on; name them in sp_channels and markers.tsv",
            slide,
        )
    elif not any(channel.nuclear for channel in markers_of(names)):
        remarks.count("no channel is called DAPI", slide)
    return names, found.mpp_um or mpp_um


# ---- all of them -----------------------------------------------------------------------------------------------------


def _roles(found: _Found) -> dict[str, str]:
    """Role of each specimen."""
    roles: dict[str, str] = {}
    for platform in PLATFORMS:
        slides = Counter(one for one in found.specimens.values() if one.startswith(f"{platform}_"))
        back = held_back(slides)
        roles |= {one: "test" if platform == "codex" else "val" if one in back else "train" for one in slides}
    return roles


def _with_role(row: SlideRow, roles: dict[str, str]) -> SlideRow:
    return replace(row, split=roles[row.patient_id] if row.instances else "infer")


def _general(found: _Found, sheets: Mapping[str, Sequence[SlideRow]]) -> None:
    """What holds for the whole set, told first."""
    told: list[str] = []
    for kind, rows in sheets.items():
        marked = Counter(row.platform for row in rows if row.instances)
        where = ", ".join(f"{marked[platform]} {platform}" for platform in PLATFORMS if marked[platform]) or "none"
        sheet = "this sheet" if kind == "nuclei" else CELLS_SHEET
        told.append(
            f"{found.objects[kind]} outlined {kind} on {marked.total()} of {len(rows)} slides ({where}), in {sheet}; "
            f"the whole set has {_PUBLISHED[kind]}"
        )
    lacking = [row.slide_id for row in sheets["nuclei"] if not row.instances]
    if lacking:
        shown = ", ".join(islice(lacking, 3))
        told.append(
            f"{len(lacking)} slides have whole cells only, as all of Zeiss: infer in this sheet, see {CELLS_SHEET} "
            f"({shown}{' …' if len(lacking) > 3 else ''})"
        )
    without = [row.slide_id for row in sheets["cells"] if not row.instances]
    if without:
        told.append(f"no mask of whole cells: {', '.join(without)}")
    told.append("nuclei and cells were outlined apart from each other: no number joins a nucleus to its cell")
    told.append(
        "the set does not tell patients: slides are grouped by what stands before the coordinates in a folder's name "
        "(P11-10003). Fill in patient_id where you know that two specimens are of one patient"
    )
    told.append(
        "split holds back one specimen in five of Vectra and of Zeiss for val, by the hashes of their names; CODEX is "
        "test. The split of published models is not on record"
    )
    found.remarks.notes[:0] = told
