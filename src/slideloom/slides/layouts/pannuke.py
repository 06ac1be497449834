"""PanNuke: 7901 tiles of 256 x 256 px from 19 tissues in three folds, and the folders that CellViT keeps it in.

As published (Gamper et al., arXiv 2003.10778), a fold is three arrays, wherever they lie below a folder with the fold's
number (``Fold 1``, ``fold1``, ``fold_1``)::

    images.npy   (N, 256, 256, 3)  float64, 0 to 255
    masks.npy    (N, 256, 256, 6)  a channel a class, a number a nucleus; the last is background
    types.npy    (N,)              the tissue

As CellViT keeps it, a fold is ``images/*.png``, ``labels/*.npy`` of the same names and ``types.csv``, and the folders
are ``fold0`` to ``fold2``. Its labels are
Python objects, which run code when they are read; they are read after they were saved again as ``.npz``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideError
from slideloom.slides.layouts.annotated import Gathered, class_table
from slideloom.slides.layouts.arrays import UNPICKLE, map_npy, read_npz
from slideloom.slides.layouts.imported import Imported
from slideloom.slides.layouts.listing import files_below, read_rows
from slideloom.slides.layouts.values import as_picture, major_classes, whole_numbers

__all__ = ["CLASSES", "SPLITS", "is_pannuke", "read_pannuke"]

_MPP_UM = 0.25
_FOLD = re.compile(r"fold[ _-]?(\d)(?!\d)", re.IGNORECASE)
_ARRAYS = ("images.npy", "masks.npy", "types.npy")
#: The classes, in the order of the channels of the masks.
CLASSES = class_table(
    ("Neoplastic", "#c0392b"),
    ("Inflammatory", "#2e5bd8"),
    ("Connective", "#27ae60"),
    ("Dead", "#f1c40f"),
    ("Epithelial", "#e67e22"),
)
#: The literature's three splits: of each, the folds that train, choose the epoch and test.
SPLITS: Mapping[str, tuple[int, int, int]] = {"split_1": (1, 2, 3), "split_2": (2, 1, 3), "split_3": (3, 2, 1)}
_PLAIN_TYPES = "numpy.save('types.npy', numpy.load('types.npy', allow_pickle=True).astype(str))"
_PLAIN_LABELS = "d = numpy.load('x.npy', allow_pickle=True).item(); numpy.savez_compressed('x.npz', **d)"
_EXPECTED = (
    "folders of folds 1 to 3 with images.npy, masks.npy and types.npy, or with images/*.png and labels/ as CellViT has"
)


def is_pannuke(folder: Path) -> bool:
    """Whether a fold of PanNuke lies below the folder, in either form."""
    arrays, pictures = _folds(folder)
    return any({"images.npy", "masks.npy"} <= set(found) for found in arrays.values()) or bool(pictures)


def read_pannuke(folder: Path, out: Path, mpp_um: float | None = None) -> Imported:
    """Bring the tiles in, a slide each.

    A nucleus gets a number of its own: those of the masks repeat from class to class. Where channels overlap, the later
    one counts, as in CellViT's conversion and in the set's own program for scores. Tiles without nuclei are kept.

    Parameters
    ----------
    folder : Path
        Searched with the folders below it.
    out : Path
        Folder of the sheet.
    mpp_um : float, optional
        Pixel size in place of 0.25 µm.

    Returns
    -------
    Imported
        Rows with the columns ``fold``, ``tissue`` and, one a split of the literature, ``split_1`` to ``split_3``; the
        first of them stands in ``split``, too.

    Raises
    ------
    SlideError
        An array cannot be read, holds Python objects (``pickled``), or those of a fold do not belong together.
    SlideloomError
        No fold has images.
    """
    arrays, pictures = _folds(folder)
    gathered = Gathered(folder, out, mpp_um or _MPP_UM, CLASSES)
    for fold, found in sorted(arrays.items()):
        missing = [name for name in _ARRAYS if name not in found]
        if missing:
            gathered.remarks.tell(f"fold {fold}: {', '.join(missing)} missing")
        if "images.npy" in found:
            _Arrays(fold, found).add_to(gathered)
    for fold, place in sorted(pictures.items()):
        _add_pictures(fold, place, gathered)
    absent = [str(fold) for fold in (1, 2, 3) if fold not in {*arrays, *pictures}]
    if absent:
        gathered.remarks.tell(f"fold {' and '.join(absent)} is not there: splits of the literature need all three")
    return gathered.finish(_EXPECTED)


def _folds(folder: Path) -> tuple[dict[int, dict[str, Path]], dict[int, Path]]:
    """Arrays by fold and name; where there are none, folders with images and labels by fold."""
    arrays: dict[int, dict[str, Path]] = {}
    for path in files_below(folder, _ARRAYS):
        if path.name in _ARRAYS and (fold := _fold(path, folder)) is not None:
            arrays.setdefault(fold, {}).setdefault(path.name, path)
    pictures: dict[int, Path] = {}
    if not arrays:
        for path in files_below(folder, (".png",)):
            place = path.parent.parent
            fold = _fold(path, folder)
            if (
                path.parent != folder
                and path.parent.name == "images"
                and fold is not None
                and (place / "labels").is_dir()
            ):
                pictures.setdefault(fold, place)
    # CellViT counts from 0.
    return arrays, {fold + (0 in pictures): place for fold, place in pictures.items()}


def _fold(path: Path, folder: Path) -> int | None:
    """The number of the fold that the nearest folder with one says; the data set's top counts, too."""
    parts = (*folder.parts[-1:], *path.relative_to(folder).parts[:-1])
    numbers = (int(match[1]) for part in reversed(parts) if (match := _FOLD.search(part)))
    return next(numbers, None)


def _columns(fold: int, tissue: str) -> dict[str, str]:
    """Extra columns of a tile."""
    found = {"fold": str(fold), "tissue": tissue}
    for name, roles in SPLITS.items():
        if fold in roles:
            found[name] = ("train", "val", "test")[roles.index(fold)]
    return {name: text for name, text in found.items() if text}


class _Arrays:
    """The arrays of one fold.

    Parameters
    ----------
    fold : int
        Its number.
    found : mapping of str to Path
        By the name of the file.
    """

    def __init__(self, fold: int, found: Mapping[str, Path]) -> None:
        self.fold = fold
        self.files = found
        self.images = map_npy(found["images.npy"], 4, "uif", "pictures, (N, height, width, 3)", "")
        self.masks = self.types = None
        if "masks.npy" in found:
            self.masks = map_npy(found["masks.npy"], 4, "uif", "masks, (N, height, width, 6)", "")
        if "types.npy" in found:
            self.types = map_npy(found["types.npy"], 1, "US", "names of tissues", _PLAIN_TYPES)
        for name, array in (("masks.npy", self.masks), ("types.npy", self.types)):
            axes = 3 if array is not None and array.ndim == 4 else 1
            if array is not None and array.shape[:axes] != self.images.shape[:axes]:
                raise SlideError(
                    f"{name} of fold {fold} has the shape {array.shape}, images.npy {self.images.shape}",
                    where=str(found[name].parent),
                    expected="the same pictures in the same order",
                    hint="Copy the fold again from where it was published",
                    code="unsupported_layout",
                )

    def add_to(self, gathered: Gathered) -> None:
        """Add every tile."""
        gathered.use(*self.files.values())
        overlaid = hidden = empty = 0
        for index in range(len(self.images)):
            name = f"fold{self.fold}_{index:04d}"
            try:
                picture = as_picture(self.images[index], name)
                nuclei, classes, over, gone = (
                    (None, None, 0, 0) if self.masks is None else _nuclei(self.masks[index], name)
                )
            except SlideError as error:
                gathered.skip(name, error)
                continue
            overlaid, hidden, empty = overlaid + over, hidden + gone, empty + (classes == {})
            tissue = "" if self.types is None else _text(self.types[index])
            names = (
                None if classes is None else ((label, CLASSES.names[number - 1]) for label, number in classes.items())
            )
            columns = _columns(self.fold, tissue)
            gathered.add(name, picture, nuclei, names, split=columns.get("split_1"), extra=columns)
        told = f"fold {self.fold}: {empty} tiles without nuclei are kept"
        if overlaid:
            told += (
                f"; {overlaid} px belong to nuclei of two classes and count for the later one, {hidden} nuclei vanish"
            )
        gathered.remarks.tell(told)


def _nuclei(mask: NDArray[Any], name: str) -> tuple[NDArray[np.int32], dict[int, int], int, int]:
    """Label image, class number by label, pixels of more than one nucleus, nuclei of which none remains."""
    labels = np.zeros(mask.shape[:2], np.int32)
    classes: dict[int, int] = {}
    overlaid = last = 0
    for number in range(1, min(len(CLASSES), mask.shape[2]) + 1):
        drawn = whole_numbers(np.asarray(mask[..., number - 1]), f"the mask of {CLASSES.names[number - 1]}", name)
        inside = drawn > 0
        if not inside.any():
            continue
        _, order = np.unique(drawn[inside], return_inverse=True)
        overlaid += int(np.count_nonzero(labels[inside]))
        labels[inside] = last + 1 + order
        n_found = int(order.max()) + 1
        classes.update(dict.fromkeys(range(last + 1, last + 1 + n_found), number))
        last += n_found
    seen = set(np.unique(labels).tolist())
    kept = {label: number for label, number in classes.items() if label in seen}
    return labels, kept, overlaid, len(classes) - len(kept)


def _text(value: Any) -> str:
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip()


def _add_pictures(fold: int, place: Path, gathered: Gathered) -> None:
    """A fold as CellViT keeps it."""
    tissues = _tissues(place / "types.csv", gathered)
    pickled = [path for path in sorted((place / "labels").glob("*.npy")) if not path.with_suffix(".npz").is_file()]
    if pickled:
        where = gathered.shown(pickled[0].parent)
        what = f"{where}: {len(pickled)} labels, such as {pickled[0].name}, hold Python objects and are left aside"
        gathered.remarks.tell(f"{what}. {UNPICKLE}{_PLAIN_LABELS}")
    for path in sorted((place / "images").glob("*.png")):
        label = place / "labels" / f"{path.stem}.npz"
        name, nuclei, names = f"fold{fold}_{path.stem}", None, None
        if label.is_file():
            try:
                found = read_npz(label, ("inst_map", "type_map"))
                if len(found) < 2:
                    raise SlideError("inst_map or type_map missing", where=label.name, code="unsupported_layout")
                nuclei = whole_numbers(found["inst_map"], "inst_map", label.name)
                of_nucleus, _ = major_classes(nuclei, whole_numbers(found["type_map"], "type_map", label.name))
            except SlideError as error:
                gathered.skip(name, error)
                continue
            known = {nucleus: number for nucleus, number in of_nucleus.items() if number <= len(CLASSES)}
            names = [(nucleus, CLASSES.names[number - 1]) for nucleus, number in known.items()]
            gathered.use(label)
        columns = _columns(fold, tissues.get(path.name, ""))
        gathered.add(name, path, nuclei, names, split=columns.get("split_1"), extra=columns)


def _tissues(table: Path, gathered: Gathered) -> dict[str, str]:
    """Tissue by the name of the picture, from ``types.csv`` with the columns ``img`` and ``type``."""
    if not table.is_file():
        gathered.remarks.tell(f"{gathered.shown(table)} is missing: no tissues")
        return {}
    gathered.use(table)
    rows = read_rows(table, ("img", "type"))
    return {row["img"]: row["type"] for row in rows}
