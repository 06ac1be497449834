"""Lizard: 238 pictures of colon at 20x with MATLAB files of nuclei, and CoNIC, its 4981 tiles of 256 x 256 px.

What is relied upon, of Lizard (Graham et al., ICCV workshops 2021), wherever it lies below the folder::

    Lizard_Images1/*.png, Lizard_Images2/*.png   the pictures
    Lizard_Labels/Labels/*.mat                   inst_map; id and class, an entry a nucleus
    Lizard_Labels/info.csv                       Filename, Source, Split (1 to 3)

and of CoNIC::

    images.npy       (N, 256, 256, 3)  uint8
    labels.npy       (N, 256, 256, 2)  a number a nucleus; a class a pixel
    patch_info.csv   names such as consep_1-0000: the picture of Lizard, and the tile
    counts.csv       nuclei of every class in the middle 224 x 224 px
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideError
from slideloom.slides.layouts.annotated import Gathered, class_table
from slideloom.slides.layouts.arrays import map_npy
from slideloom.slides.layouts.imported import Imported
from slideloom.slides.layouts.listing import files_below, read_rows
from slideloom.slides.layouts.mat import read_mat
from slideloom.slides.layouts.values import as_picture, major_classes, whole_numbers

__all__ = ["CLASSES", "is_conic", "is_lizard", "read_conic", "read_lizard"]

_MPP_UM = 0.5
#: The classes by their numbers in the files, 1 to 6.
CLASSES = class_table(
    ("Neutrophil", "#f1c40f"),
    ("Epithelial", "#c0392b"),
    ("Lymphocyte", "#2e5bd8"),
    ("Plasma", "#8e44ad"),
    ("Eosinophil", "#e67e22"),
    ("Connective", "#27ae60"),
)
_FOLDS = ("1", "2", "3")
_EXPECTED = "pictures (.png) and Labels/*.mat of the same names, and info.csv"
_EXPECTED_CONIC = "images.npy and labels.npy in one folder, and patch_info.csv"


def is_lizard(folder: Path) -> bool:
    """Whether MATLAB files lie in a folder ``Labels`` below one of Lizard, or beside a table ``info.csv``."""
    return bool(_labels(folder))


def _labels(folder: Path) -> dict[str, Path]:
    found = {}
    for path in files_below(folder, (".mat",)):
        named = any("lizard" in part.lower() for part in path.relative_to(folder.parent).parts[:-1])
        beside = (path.parent / "info.csv").is_file() or (path.parent.parent / "info.csv").is_file()
        if path.parent.name.lower() == "labels" and (named or beside):
            found[path.stem] = path
    return found


def read_lizard(folder: Path, out: Path, mpp_um: float | None = None) -> Imported:
    """Bring Lizard's pictures in, a slide each.

    The numbers of the nuclei have gaps: the class of a nucleus stands where ``id`` has its number.

    Parameters
    ----------
    folder : Path
        Searched with the folders below it.
    out : Path
        Folder of the sheet.
    mpp_um : float, optional
        Pixel size in place of 0.5 µm.

    Returns
    -------
    Imported
        The platform is the source (``crag``, ``glas`` …); columns ``fold`` and ``test_1`` to ``test_3``: splits in
        which this fold tests, the next chooses the epoch and the third trains.

    Raises
    ------
    SlideloomError
        No picture was found.
    SlideError
        ``info.csv`` has not its columns.
    """
    gathered = Gathered(folder, out, mpp_um or _MPP_UM, CLASSES)
    labels = _labels(folder)
    tables = [path for path in files_below(folder, ("info.csv",)) if path.name == "info.csv"]
    info = {row["Filename"]: row for row in read_rows(tables[0], ("Filename", "Source", "Split"))} if tables else {}
    gathered.use(*tables[:1])
    if not tables:
        gathered.remarks.tell("info.csv is missing: no sources and no folds")
    pictures = {path.stem: path for path in files_below(folder, (".png",)) if path.stem in labels or path.stem in info}
    for stem, path in pictures.items():
        nuclei, classes = None, None
        if stem in labels:
            try:
                nuclei, classes = _annotation(labels[stem], gathered)
            except SlideError as error:
                gathered.skip(stem, error)
                continue
            gathered.use(labels[stem])
        row = info.get(stem, {})
        source = row.get("Source") or stem.partition("_")[0]
        gathered.add(stem, path, nuclei, classes, platform=source, extra=_columns(row.get("Split", "")))
    for stem in labels.keys() - pictures.keys():
        gathered.remarks.count("labels without a picture", stem)
    notes = [
        "each picture is taken to be of a patient of its own; pictures of one source may share a slide",
        "pictures called consep_… and pannuke_… are of CoNSeP's and PanNuke's slides: no test of models of those",
    ]
    return gathered.finish(_EXPECTED, notes)


def _columns(fold: str) -> dict[str, str]:
    """Extra columns of a picture; of no fold, none but the tissue."""
    found = {"tissue": "Colon"}
    if fold in _FOLDS:
        found["fold"] = fold
        for place, name in enumerate(_FOLDS):
            after = (_FOLDS.index(fold) - place) % len(_FOLDS)
            found[f"test_{name}"] = ("test", "val", "train")[after]
    return found


def _annotation(label: Path, gathered: Gathered) -> tuple[NDArray[np.int32], list[tuple[int, str]]]:
    found = read_mat(label, ("inst_map", "id", "class"))
    if missing := [name for name in ("inst_map", "id", "class") if name not in found]:
        raise SlideError(f"the variable {missing[0]!r} is missing", where=label.name, code="unsupported_layout")
    nuclei = whole_numbers(found["inst_map"], "inst_map", label.name)
    ids, numbers = (whole_numbers(found[name].reshape(1, -1), name, label.name)[0] for name in ("id", "class"))
    if ids.size != numbers.size:
        what = f"{ids.size} entries in 'id', {numbers.size} in 'class'"
        raise SlideError(what, where=label.name, code="unsupported_layout")
    drawn = set(np.unique(nuclei[nuclei > 0]).tolist())
    of_nucleus = {one: number for one, number in zip(ids.tolist(), numbers.tolist(), strict=True) if one in drawn}
    if lost := ids.size - len(of_nucleus):
        gathered.remarks.tell(f"{label.name}: {lost} entries name no nucleus of the map, or one twice; left aside")
    return nuclei, _named(of_nucleus, label.name, gathered)


def _named(of_nucleus: Mapping[int, int], where: str, gathered: Gathered) -> list[tuple[int, str]]:
    strange = sorted({number for number in of_nucleus.values() if not 1 <= number <= len(CLASSES)})
    if strange:
        gathered.remarks.tell(f"{where}: classes {', '.join(map(str, strange))} are not of Lizard and left aside")
    return [(one, CLASSES.names[number - 1]) for one, number in of_nucleus.items() if number not in strange]


def is_conic(folder: Path) -> bool:
    """Whether ``images.npy`` and ``labels.npy`` lie in one folder, with CoNIC's tables."""
    return _conic(folder) is not None


def _conic(folder: Path) -> Path | None:
    for path in files_below(folder, ("images.npy",)):
        tables = any((path.parent / name).is_file() for name in ("counts.csv", "patch_info.csv"))
        if tables and path.name == "images.npy" and (path.parent / "labels.npy").is_file():
            return path.parent
    return None


def read_conic(folder: Path, out: Path, mpp_um: float | None = None) -> Imported:
    """Bring CoNIC's tiles in, a slide each.

    Parameters
    ----------
    folder : Path
        Searched with the folders below it.
    out : Path
        Folder of the sheet.
    mpp_um : float, optional
        Pixel size in place of 0.5 µm.

    Returns
    -------
    Imported
        Tiles of one picture share their patient, so that no split parts them; the platform is the source.

    Raises
    ------
    SlideError
        The arrays cannot be read or do not belong together, or ``patch_info.csv`` has another number of rows.
    SlideloomError
        There are no such arrays.
    """
    gathered = Gathered(folder, out, mpp_um or _MPP_UM, CLASSES)
    place = _conic(folder)
    if place is None:
        return gathered.finish(_EXPECTED_CONIC)
    images = map_npy(place / "images.npy", 4, "uif", "pictures, (N, height, width, 3)", "")
    labels = map_npy(place / "labels.npy", 4, "uif", "labels, (N, height, width, 2)", "")
    gathered.use(place / "images.npy", place / "labels.npy")
    names, counts = _tile_names(place, len(images), gathered), _counts(place, len(images), gathered)
    if labels.shape[:3] != images.shape[:3] or labels.shape[3] < 2:
        what = f"labels.npy has the shape {labels.shape}, images.npy {images.shape}"
        raise SlideError(what, where=str(place), expected="the same tiles", code="unsupported_layout")
    mixed = other = 0
    for index, name in enumerate(names):
        try:
            picture = as_picture(images[index], name)
            nuclei = whole_numbers(np.asarray(labels[index, ..., 0]), "the map of nuclei", name)
            drawn = whole_numbers(np.asarray(labels[index, ..., 1]), "the map of classes", name)
        except SlideError as error:
            gathered.skip(name, error)
            continue
        of_nucleus, several = major_classes(nuclei, drawn)
        mixed += several
        if counts:
            other += not _agrees(counts[index], of_nucleus)
        source = name.partition("-")[0]
        patient, platform = (source, source.partition("_")[0]) if "-" in name else ("", "unknown")
        table = _named(of_nucleus, name, gathered)
        gathered.add(name, picture, nuclei, table, patient=patient, platform=platform, extra=_columns(""))
    if mixed:
        gathered.remarks.tell(f"{mixed} nuclei have pixels of more than one class; most of their pixels count")
    if other:
        gathered.remarks.tell(f"{other} of {len(names)} tiles: counts.csv counts more nuclei of a class than are drawn")
    notes = ["no split is published: split by patient_id, which is the tile's picture, or by platform"]
    return gathered.finish(_EXPECTED_CONIC, notes)


def _tile_names(place: Path, n_tiles: int, gathered: Gathered) -> list[str]:
    table = place / "patch_info.csv"
    if not table.is_file():
        gathered.remarks.tell(
            "patch_info.csv is missing: which tiles are of one picture is not known, and a split may part them"
        )
        return [f"tile_{index:04d}" for index in range(n_tiles)]
    names = [next(iter(row.values()), "") for row in read_rows(table)]
    if len(names) != n_tiles:
        what = f"it has {len(names)} rows, images.npy {n_tiles} tiles"
        raise SlideError(what, where=table.name, expected="a row a tile", code="unsupported_layout")
    gathered.use(table)
    return names


def _counts(place: Path, n_tiles: int, gathered: Gathered) -> list[dict[int, float]]:
    """Counts by class number, a mapping a tile; empty where there is no such table."""
    table = place / "counts.csv"
    if not table.is_file():
        return []
    gathered.use(table)
    numbers = {name.casefold(): number for number, name in zip(CLASSES.ids, CLASSES.names, strict=True)}
    rows = read_rows(table)
    found = [
        {
            numbers[name.casefold()]: float(text)
            for name, text in row.items()
            if name.casefold() in numbers and text.replace(".", "", 1).isdecimal()
        }
        for row in rows
    ]
    if len(found) != n_tiles:
        gathered.remarks.tell(f"counts.csv has {len(found)} rows, images.npy {n_tiles} tiles: it is left aside")
        return []
    return found


def _agrees(counted: Mapping[int, float], of_nucleus: Mapping[int, int]) -> bool:
    """Whether no class is counted more often than it has nuclei; the counts are of the tile's middle only."""
    drawn = list(of_nucleus.values())
    return all(count <= drawn.count(number) for number, count in counted.items())
