"""2018 Data Science Bowl (BBBC038v1, DSB_2018): fluorescence and stained nuclei, each image with a mask a nucleus.

Caicedo et al., Nature Methods 16:1247 (2019). Two layouts are understood::

    stage1_train/<id>/images/<id>.png, masks/*.png      as published, one mask a nucleus
    dsb2018_*.npz                                       packed by size: images, labels, ids, val
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideError, SlideloomError
from slideloom.slides.image import RawImage
from slideloom.slides.layouts.annotated import FILE_LIST
from slideloom.slides.layouts.arrays import read_npz
from slideloom.slides.layouts.imported import (
    Imported,
    Remarks,
    path_from,
    write_file_list,
    write_label_image,
    write_picture,
)
from slideloom.slides.layouts.listing import MADE, folders_in, list_folder
from slideloom.slides.layouts.multiplexed import NOMINAL_MPP_UM, held_back, plain_id, write_channels
from slideloom.slides.modality import as_modality
from slideloom.slides.open import open_raw
from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import Source
from slideloom.slides.tables import Channel, ClassTable

__all__ = ["STAIN", "is_dsb2018", "read_dsb2018"]

#: The one channel of a fluorescence image.
STAIN = Channel("DNA stain", "DNA", nuclear=True)
_STAGE = "stage1_train"
_PACKED = "dsb2018_*.npz"
_ARRAYS = ("images", "labels", "ids")
#: Letters of an id that name a slide: 64 are too many for paths, and these are unlike in the whole set.
_LETTERS = 12
#: Median of a grey image above which its background is bright: a stain in transmitted light, not fluorescence.
_BRIGHT = 128


@dataclass
class _Found:
    """Rows as they are gathered."""

    folder: Path
    out: Path
    mpp_um: float | None
    remarks: Remarks = field(default_factory=Remarks)
    rows: dict[str, SlideRow] = field(default_factory=dict)
    used: set[Path] = field(default_factory=set)
    nuclei: int = 0


def is_dsb2018(folder: Path) -> bool:
    """Whether the folder holds ``stage1_train``, is it, or holds its images packed by size."""
    return bool(_packed(folder)) or _stage(folder) is not None


def read_dsb2018(folder: Path, out: Path, mpp_um: float | None = None) -> Imported:
    """Bring the set in: stained images as H&E, fluorescence as one channel of a nuclear stain.

    Packed images are named where they lie. Of the published folders, grey pictures (their samples are equal) with a
    dark background are fluorescence, the others H&E; both are written below ``out``, because the published PNG have a
    fourth sample, and masks are joined into one label image. Where masks overlap, the last by name counts, and the
    overlap is told.

    Parameters
    ----------
    folder : Path
        Holds ``stage1_train`` or the packed files; they may also lie one folder below, as ``dsb2018_fluorescence`` and
        ``dsb2018_brightfield``.
    out : Path
        Folder of the sheet; ``files.tsv`` and, below ``imported/``, ``images/`` and ``instances/`` are written to it.
    mpp_um : float, optional
        Pixel size of every image, µm per pixel. Nobody recorded it, and magnifications vary; 0.5 when left out, and
        told.

    Returns
    -------
    Imported
        Slides sorted by id. ``split`` is what the packed files suggest; of the published folders one image in five is
        ``val``, by the hash of its id.

    Raises
    ------
    SlideloomError
        Neither layout is there, or no image with masks.
    """
    found = _Found(folder, out, mpp_um)
    places = [folder, *(one for one in folders_in(folder) if one.name.startswith("dsb2018"))]
    stages = [stage for place in places if (stage := _stage(place)) is not None]
    packed = [path for place in places for path in _packed(place)]
    if not stages and not packed:
        raise SlideloomError(
            f"neither {_STAGE}/ nor {_PACKED}",
            where=str(folder),
            expected=f"{_STAGE}/<id>/images and masks, or packed files with the arrays images, labels, ids and val",
        )
    for path in packed:
        _add_packed(path, found)
    for stage in stages:
        _add_stage(stage, found)
    if not found.rows:
        told = "; ".join(found.remarks.all()[:3])
        raise SlideloomError("no image with masks was found", where=str(folder), hint=told)
    write_file_list(out / FILE_LIST, found.used, folder)
    _general(found)
    rows = tuple(row for _, row in sorted(found.rows.items()))
    return Imported(rows, (STAIN,) if any(row.sp for row in rows) else (), ClassTable(), found.remarks.all())


def _packed(folder: Path) -> list[Path]:
    return [folder / one for one in list_folder(folder).files if fnmatchcase(one, _PACKED)]


def _stage(folder: Path) -> Path | None:
    """The folder of samples, where it is this one or lies in it."""
    for place in (folder / _STAGE, folder):
        if place.is_dir() and (place.name == _STAGE or folder != place):
            return place
    return None


def _general(found: _Found) -> None:
    stained = sum(1 for row in found.rows.values() if row.he)
    told = [
        f"{found.nuclei} nuclei in {len(found.rows) - stained} fluorescence and {stained} stained images "
        "(columns sp and he)"
    ]
    if found.mpp_um is None:
        told.append(
            f"NOBODY RECORDED THE PIXEL SIZE of these images, and magnifications vary a lot: {NOMINAL_MPP_UM} µm is "
            "written down for all, a nominal value. Figures in µm mean little; give --mpp for another"
        )
    told.append("several images are crops of the same slides, and which is not on record: sides are not independent")
    found.remarks.notes[:0] = told


def _add_row(
    identity: str, image: str, labels: str, stained: bool, split: str | None, kind: str, found: _Found
) -> None:
    """Add a row; ``image`` and ``labels`` are texts of sources."""
    mpp_um = found.mpp_um or NOMINAL_MPP_UM
    slide = plain_id(f"dsb_{identity[:_LETTERS]}", found.rows)
    found.rows[slide] = SlideRow(
        slide_id=slide,
        platform="dsb_brightfield" if stained else "dsb_fluorescence",
        he=image if stained else None,
        sp=None if stained else image,
        instances=labels,
        he_mpp_um=mpp_um if stained else None,
        sp_mpp_um=None if stained else mpp_um,
        sp_channels=None if stained else (STAIN.name,),
        split=split,
        extra={"image_id": identity} | ({"kind": kind} if kind else {}),
    )


# ---- packed by size --------------------------------------------------------------------------------------------------


def _add_packed(path: Path, found: _Found) -> None:
    try:
        arrays = _arrays(path)
    except SlideError as error:
        found.remarks.tell(
            f"{path.name}: left out, {error.what}{f' (expected {error.expected})' if error.expected else ''}"
        )
        return
    ids, labels, stained = arrays["ids"], arrays["labels"], arrays["images"].ndim == 4
    val = arrays.get("val")
    kinds = arrays.get("kind")
    if val is None:
        found.remarks.tell(f"{path.name}: no array val, so no split is written down")
    place = path_from(found.out, path)
    for index, identity in enumerate(ids):
        found.nuclei += int(np.unique(labels[index][labels[index] > 0]).size)
        split = None if val is None else "val" if val[index] else "train"
        kind = "" if kinds is None else str(kinds[index])
        texts = f"{place}::images[{index}]", f"{place}::labels[{index}]"
        _add_row(str(identity), *texts, stained, split, kind, found)
    found.used.add(path)


def _arrays(path: Path) -> Mapping[str, NDArray[Any]]:
    arrays = read_npz(path, (*_ARRAYS, "val", "kind"))
    missing = [name for name in _ARRAYS if name not in arrays]
    if missing:
        raise SlideError(f"no array {' and '.join(missing)}", expected=", ".join(_ARRAYS), code="unreadable")
    images, labels = arrays["images"], arrays["labels"]
    if (images.ndim != 3 and (images.ndim != 4 or images.shape[-1] != 3)) or labels.shape != images.shape[:3]:
        raise SlideError(
            f"images of shape {images.shape} and labels of shape {labels.shape}",
            expected="(n, h, w) or (n, h, w, 3), and (n, h, w)",
            code="unsupported_layout",
        )
    if labels.dtype.kind not in "ui" or any(one.shape[:1] != images.shape[:1] for one in arrays.values()):
        what = f"labels are {labels.dtype}, or ids, val and kind are not one an image"
        raise SlideError(what, expected="whole numbers, and one of each an image", code="unsupported_layout")
    return arrays


# ---- as published ----------------------------------------------------------------------------------------------------


def _add_stage(stage: Path, found: _Found) -> None:
    samples = sorted(one for one in stage.iterdir() if one.is_dir() and not one.name.startswith("."))
    ready = []
    for sample in samples:
        images, masks = (_pictures(sample / name) for name in ("images", "masks"))
        if not images or not masks:
            found.remarks.count(f"left out, no picture in {'masks' if images else 'images'}/", sample.name)
        else:
            ready.append((sample.name, images[0], masks))
    back = held_back({name: 1 for name, _, _ in ready})
    for name, image, masks in ready:
        try:
            _add_sample(name, image, masks, "val" if name in back else "train", found)
        except SlideError as error:
            found.remarks.tell(f"{name}: left out, {error.message}")


def _pictures(folder: Path) -> list[Path]:
    return sorted(one for one in folder.glob("*.png") if not one.name.startswith(".")) if folder.is_dir() else []


def _add_sample(name: str, image: Path, masks: Sequence[Path], split: str, found: _Found) -> None:
    picture = _colours(image)
    labels = _joined(masks, (picture.shape[1], picture.shape[2]), name, found.remarks)
    grey = bool((picture == picture[:1]).all())
    stained = not grey or float(np.median(picture[0])) >= _BRIGHT
    slide = plain_id(f"dsb_{name[:_LETTERS]}", found.rows)
    place = found.out / MADE / "images" / f"{slide}{'.png' if stained else '.ome.tif'}"
    if stained:
        write_picture(place, np.ascontiguousarray(picture.transpose(1, 2, 0)))
    else:
        write_channels(place, picture[:1], (STAIN.name,), found.mpp_um or NOMINAL_MPP_UM)
    if stained and grey:
        found.remarks.count("grey with a bright background: taken for a stain in transmitted light", slide)
    drawn = found.out / MADE / "instances" / f"{slide}.tif"
    write_label_image(drawn, labels)
    found.nuclei += int(np.count_nonzero(np.bincount(labels.ravel())[1:]))
    _add_row(name, path_from(found.out, place), path_from(found.out, drawn), stained, split, "", found)
    found.used |= {image, *masks}


def _colours(path: Path) -> NDArray[np.uint8]:
    """A picture as red, green and blue, (3, H, W)."""
    raw = open_raw(Source(path))
    with as_modality(raw, "he") as picture:
        return np.asarray(picture.read(0, 0, 0, picture.height_px, picture.width_px), np.uint8)


def _joined(masks: Sequence[Path], shape: tuple[int, int], name: str, remarks: Remarks) -> NDArray[np.int32]:
    """One label image of a mask a nucleus, numbered in the order of their names; the last counts where they overlap."""
    labels = np.zeros(shape, np.int32)
    twice = 0
    for number, path in enumerate(masks, start=1):
        inside = _inside(path)
        if inside.shape != shape:
            sizes = f"{inside.shape[0]} x {inside.shape[1]} px, its image {shape[0]} x {shape[1]}"
            raise SlideError(f"the mask {path.name} has {sizes}", where=name, code="annotation_shape")
        if not inside.any():
            remarks.count("an empty mask", f"{name}/{path.name}")
        twice += int(np.count_nonzero(labels[inside]))
        labels[inside] = number
    if twice:
        remarks.count(f"masks overlap in {twice} pixels, where the last by name counts", name)
    hidden = len(masks) - int(np.count_nonzero(np.bincount(labels.ravel(), minlength=len(masks) + 1)[1:]))
    if hidden:
        remarks.count(f"{hidden} of {len(masks)} masks are empty, or wholly hidden by others", name)
    return labels


def _inside(path: Path) -> NDArray[np.bool_]:
    """Where a mask is drawn: not black, transparency left aside."""
    raw: RawImage = open_raw(Source(path))
    try:
        level = raw.header.levels[0]
        stored = raw.read(0, 0, 0, level.height_px, level.width_px)
        samples = {"rgba": 3, "rgba_premultiplied": 3, "rgbx": 3, "grey_alpha": 1}.get(raw.header.colour, len(stored))
    finally:
        raw.close()
    return np.asarray((stored[:samples] != 0).any(axis=0))
