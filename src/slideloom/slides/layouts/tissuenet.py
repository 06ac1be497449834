"""TissueNet 1.0 and 1.1: one ``.npz`` a split, images of two channels, nuclei and whole cells of each.

Greenwald et al., Nature Biotechnology 40:555 (2022); datasets.deepcell.org. What is relied upon::

    …train….npz, …val….npz, …test….npz
        X      (n, h, w, 2)  nuclear stain, membrane or cytoplasm
        y      (n, h, w, 2)  whole cells, nuclei: the other way round
        meta   (n + 1, k)    text, the first row names the columns (1.1); tissue_list, platform_list (n,) (1.0)

Nothing is unpickled: a table that is stored as Python objects is left aside, because such a file may run any program.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from slideloom.errors import SlideError, SlideloomError
from slideloom.slides.layouts.annotated import FILE_LIST
from slideloom.slides.layouts.imported import Imported, Remarks, path_from, write_file_list, write_label_image
from slideloom.slides.layouts.listing import MADE, list_folder
from slideloom.slides.layouts.multiplexed import CELLS_SHEET, kept_samples, write_cells_sheet, write_channels
from slideloom.slides.layouts.values import whole_numbers
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import Channel, ClassTable

__all__ = ["CHANNELS", "is_tissuenet", "read_tissuenet"]

#: Channels of an image, in its order.
CHANNELS = (Channel("nuclear", "DNA", nuclear=True), Channel("membrane", "membrane"))
_SPLIT = re.compile(r"(?<![a-z])(train|val|test)(?![a-z])")
#: Columns of the tables that are kept, and what the sheet calls them.
_KEPT = {"tissue": "tissue", "specimen": "tissue", "experiment": "experiment", "platform": "imaged_on"}
_LISTS = {"tissue_list": "tissue", "platform_list": "imaged_on"}
_TABS = re.compile(r"\s+")
_MPP_UM = (0.01, 100.0)
#: NumPy itself refuses headers of more than 10 000 bytes.
_MOST_HEADER_BYTES = 65_536
#: Of one image: 4096 x 4096 of two channels of eight bytes.
_MOST_BYTES = 1 << 28


def is_tissuenet(folder: Path) -> bool:
    """Whether a split's ``.npz`` lies in it whose arrays X and y hold two channels each."""
    return any(_looks_so(path) for path in _splits(folder).values())


@dataclass
class _Found:
    """Rows as they are gathered."""

    folder: Path
    out: Path
    mpp_um: float | None
    remarks: Remarks = field(default_factory=Remarks)
    nuclei: list[SlideRow] = field(default_factory=list)
    cells: list[SlideRow] = field(default_factory=list)


def read_tissuenet(folder: Path, out: Path, mpp_um: float | None = None) -> Imported:
    """Bring the set in: every image a slide, its pixels written below ``out``, image by image.

    Parameters
    ----------
    folder : Path
        Holds the splits' files.
    out : Path
        Folder of the sheet; ``cells.tsv`` (the same slides with whole cells as instances), ``files.tsv`` and, below
        ``imported/``, ``images/``, ``nuclei/`` and ``cells/`` are written to it.
    mpp_um : float, optional
        Pixel size of every image, µm per pixel, over what the table says.

    Returns
    -------
    Imported
        Slides sorted by id, with the set's own split.

    Raises
    ------
    SlideloomError
        No file is a split's, one is damaged or holds other arrays: what is missing is named.
    """
    splits = _splits(folder)
    if not splits:
        raise SlideloomError(
            "no file is a split's",
            where=str(folder),
            expected="names such as tissuenet_v1.1_train.npz or val.npz",
            hint="Unpack the archive, and name the folder that holds the .npz files",
        )
    found = _Found(folder, out, mpp_um)
    for split, path in splits.items():
        try:
            _add_split(split, path, found)
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
            hint = "Copy it again from where it was made"
            raise SlideloomError(f"the file is damaged: {error}", where=str(path), hint=hint) from error
    absent = [split for split in ("train", "val", "test") if split not in splits]
    if absent:
        found.remarks.tell(f"no file of the split {' and '.join(absent)}")
    found.nuclei.sort(key=lambda row: row.slide_id)
    found.cells.sort(key=lambda row: row.slide_id)
    write_cells_sheet(found.cells, out)
    write_file_list(out / FILE_LIST, splits.values(), folder)
    found.remarks.notes[:0] = [
        f"instances of this sheet are nuclei; whole cells of the same slides stand in {CELLS_SHEET}",
        "the set does not tell patients; its own splits are kept",
    ]
    return Imported(tuple(found.nuclei), CHANNELS, ClassTable(), found.remarks.all())


def _splits(folder: Path) -> dict[str, Path]:
    """The file of each split; of several, the last by name, which is the newest version."""
    paths = (folder / one for one in list_folder(folder).files if one[0] != "." and one.endswith(".npz"))
    found = {match[1]: path for path in paths if (match := _SPLIT.search(path.stem.lower()))}
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _looks_so(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            shapes = [_header(archive, name)[0] for name in ("X", "y") if f"{name}.npy" in archive.namelist()]
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError, SlideError):
        return False
    return len(shapes) == 2 and all(len(shape) == 4 and shape[-1] == 2 for shape in shapes)


# ---- arrays, without unpickling --------------------------------------------------------------------------------------


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array."""
    with archive.open(f"{name}.npy") as file:
        shape, dtype, start = _read_header(file, name)
    announced, there = start + math.prod(shape) * dtype.itemsize, archive.getinfo(f"{name}.npy").file_size
    if announced > there:
        raise EOFError(f"the array {name} announces {announced} bytes and has {there}")
    return shape, dtype


def _read_header(file: Any, name: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape and type of an array, and where its numbers begin."""
    # From memory: NumPy would make room for as many bytes as the header says that it has.
    head = io.BytesIO(file.read(_MOST_HEADER_BYTES))
    version = npy_format.read_magic(head)
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, by_columns, dtype = read(head)
    if dtype.hasobject:
        raise SlideError(
            f"{name} is stored as Python objects",
            expected="text or numbers",
            hint="Such a file may run any program when it is read, and is not",
            code="pickled",
        )
    if by_columns and len(shape) > 1:
        raise SlideError(
            f"{name} is stored by columns", expected="an array as numpy.savez stores it", code="unreadable"
        )
    if math.prod(shape[1:]) * dtype.itemsize > _MOST_BYTES:
        raise SlideError(f"an entry of {name} has more than {_MOST_BYTES} bytes", code="too_large")
    return tuple(shape), dtype, head.tell()


def _each(archive: zipfile.ZipFile, name: str) -> Iterator[NDArray[Any]]:
    """Entries of an array along its first axis, one at a time."""
    with archive.open(f"{name}.npy") as file:
        shape, dtype, start = _read_header(file, name)
        file.seek(start)
        size = math.prod(shape[1:]) * dtype.itemsize
        for _ in range(shape[0]):
            data = file.read(size)
            if len(data) != size:
                raise EOFError(f"the array {name} ends too early")
            yield np.frombuffer(data, dtype).reshape(shape[1:])


# ---- a split ---------------------------------------------------------------------------------------------------------


def _add_split(split: str, path: Path, found: _Found) -> None:
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        missing = [name for name in ("X", "y") if name not in names]
        if missing:
            what = f"no array {' and '.join(missing)}"
            raise SlideloomError(what, where=str(path), expected="X and y", hint=f"It holds {', '.join(names)}")
        images, labels = _header(archive, "X")[0], _header(archive, "y")[0]
        if len(images) != 4 or images[-1] != 2 or labels != images:
            raise SlideloomError(
                f"X has the shape {images}, y {labels}",
                where=str(path),
                expected="both (images, height, width, 2)",
                hint="X holds the nuclear channel and the membrane, y whole cells and nuclei",
            )
        told = _meta(archive, names, images[0], path.name, found.remarks)
        pairs = zip(_each(archive, "X"), _each(archive, "y"), strict=True)
        for index, (image, label) in enumerate(pairs):
            _add(f"{split}_{index:04d}", split, image, label, told[index], found)


def _meta(archive: zipfile.ZipFile, names: list[str], n: int, where: str, remarks: Remarks) -> list[Mapping[str, str]]:
    """What the tables say of each image, by column."""
    told: list[dict[str, str]] = [{} for _ in range(n)]
    try:
        for name, column in _LISTS.items():
            if name in names and _header(archive, name)[0] == (n,):
                for one, value in zip(told, _each(archive, name), strict=True):
                    one[column] = str(value)
        if "meta" not in names:
            return list(told)
        shape, _ = _header(archive, "meta")
        rows = [[str(value) for value in row] for row in _each(archive, "meta")] if len(shape) == 2 else []
    except SlideError as error:
        remarks.tell(
            f"{where}: {error.what}: it is not read, because such a file may run any program. Pixel sizes and tissues "
            "are not known from it. Where you trust where it came from, save the file again with meta.astype(str)"
        )
        return list(told)
    columns = [name.strip() for name in rows[0]] if rows else []
    if len(rows) != n + 1 or "pixel_size" not in columns:
        remarks.tell(
            f"{where}: its table meta has {len(rows)} rows for {n} images{'' if rows else ' of two axes'}, where a row "
            "of column names (pixel_size among them) and one an image are expected: it is left aside"
        )
        return list(told)
    for one, row in zip(told, rows[1:], strict=True):
        one.update(zip(columns, row, strict=True))
    return list(told)


def _add(
    name: str, split: str, image: NDArray[Any], label: NDArray[Any], told: Mapping[str, str], found: _Found
) -> None:
    """Write an image, its nuclei and its cells, and add a row to both sheets."""
    slide = f"tissuenet_{name}"
    remarks = found.remarks
    mpp_um = found.mpp_um or _pixel_size(told.get("pixel_size"), slide, remarks)
    try:
        planes = kept_samples(np.ascontiguousarray(image.transpose(2, 0, 1)), slide)
        maps = {
            "cells": whole_numbers(label[..., 0], "the map of cells", slide),
            "nuclei": whole_numbers(label[..., 1], "the map of nuclei", slide),
        }
    except SlideError as error:
        remarks.tell(f"{slide}: left out, {error.message}")
        return
    place = found.out / MADE / "images" / f"{slide}.ome.tif"
    # Whole numbers in float32 are stored in half the room.
    whole = planes.astype(np.uint16) if planes.dtype == np.float32 and _is_uint16(planes) else planes
    write_channels(place, whole, [channel.name for channel in CHANNELS], mpp_um)
    if planes[1].min() == planes[1].max():
        remarks.count("its membrane channel is blank", slide)
    for kind, values in maps.items():
        write_label_image(found.out / MADE / kind / f"{slide}.tif", values)
        if not values.any():
            remarks.count(f"no {kind} at all", slide)
    extra = {kept: _TABS.sub(" ", told[name]).strip() for name, kept in _KEPT.items() if told.get(name)}
    extra |= {name: value for name, value in told.items() if name in _LISTS.values()}
    for kind, rows in (("nuclei", found.nuclei), ("cells", found.cells)):
        more = {"cells": path_from(found.out, found.out / MADE / "cells" / f"{slide}.tif")} if kind == "nuclei" else {}
        rows.append(
            SlideRow(
                slide_id=slide,
                platform="tissuenet",
                sp=path_from(found.out, place),
                instances=path_from(found.out, found.out / MADE / kind / f"{slide}.tif"),
                sp_mpp_um=mpp_um,
                sp_channels=tuple(channel.name for channel in CHANNELS),
                split=split,
                extra={name: value for name, value in (extra | more).items() if value},
            )
        )


def _is_uint16(planes: NDArray[Any]) -> bool:
    low, high = float(planes.min()), float(planes.max())
    return low >= 0 and high < 2**16 and bool((np.floor(planes) == planes).all())


def _pixel_size(text: str | None, slide: str, remarks: Remarks) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        value = math.nan
    if _MPP_UM[0] <= value <= _MPP_UM[1]:
        return value
    why = "no pixel size is known" if text is None else f"its pixel size is given as {text!r}"
    remarks.count(f"{why}, and slides without one are refused: give --mpp, or fill in mpp_um", slide)
    return None
