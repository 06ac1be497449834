"""CoNSeP: 41 pictures of 1000 x 1000 px of colorectal adenocarcinoma, with MATLAB files of nuclei and classes.

What is relied upon (Graham et al., Medical Image Analysis 2019)::

    Train/Images/train_1.png     Train/Labels/train_1.mat
    Test/Images/test_1.png       Test/Labels/test_1.mat

A ``.mat`` holds ``inst_map`` (a number a nucleus), ``type_map`` (a class a pixel, 1 to 7) and ``inst_type`` (a class a
nucleus, in the order of the numbers).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideError
from slideloom.slides.layouts.annotated import Gathered, class_table
from slideloom.slides.layouts.imported import Imported
from slideloom.slides.layouts.listing import files_below, folders_in, list_folder, role_of
from slideloom.slides.layouts.mat import read_mat
from slideloom.slides.layouts.values import major_classes, whole_numbers

__all__ = ["CLASSES", "TYPES", "is_consep", "read_consep"]

_MPP_UM = 0.25
#: What the numbers 1 to 7 of the files mean.
TYPES = (
    "Miscellaneous",
    "Inflammatory",
    "Healthy epithelial",
    "Dysplastic or malignant epithelial",
    "Fibroblast",
    "Muscle",
    "Endothelial",
)
#: The four classes that the literature scores. The tables of the slides keep the seven; aliases put them together.
CLASSES = class_table(
    ("Other", "#f1c40f", (TYPES[0],)),
    ("Inflammatory", "#2e5bd8"),
    ("Epithelial", "#c0392b", TYPES[2:4]),
    ("Spindle-shaped", "#27ae60", TYPES[4:7]),
)
_PICTURES, _LABELS = "images", "labels"
_EXPECTED = "Train/ and Test/, each with Images/*.png and Labels/*.mat of the same names"


def is_consep(folder: Path) -> bool:
    """Whether pictures stand beside MATLAB files of the same names, in a folder for training or testing."""
    return any(label is not None and role_of(path, folder) for path, label in _labelled(folder))


def read_consep(folder: Path, out: Path, mpp_um: float | None = None) -> Imported:
    """Bring the pictures in, a slide each.

    A nucleus has the class of most of its pixels; where ``type_map`` is missing, what ``inst_type`` says.

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
        Rows with ``split``: the set's own, without slides to choose the epoch by.

    Raises
    ------
    SlideloomError
        No picture was found.
    """
    gathered = Gathered(folder, out, mpp_um or _MPP_UM, CLASSES)
    for path, label in _labelled(folder):
        nuclei, classes = None, None
        if label is not None:
            try:
                nuclei, classes = _annotation(label, gathered)
            except SlideError as error:
                gathered.skip(path.stem, error)
                continue
            gathered.use(label)
        gathered.add(path.stem, path, nuclei, classes, split=role_of(path, folder), extra={"tissue": "Colon"})
    notes = [
        "seven classes are in the tables of the slides; classes.tsv puts them together to the four that the literature "
        "scores. To keep them apart, give each a row of its own there",
        "no slide has the role val: name some, to choose the epoch by",
        "each picture is taken to be of a patient of its own (the set has 41 pictures of 16 patients and does not say "
        "which)",
    ]
    return gathered.finish(_EXPECTED, notes)


def _pictures(folder: Path) -> list[Path]:
    found = (path for path in files_below(folder, (".png",)) if path.parent != folder)
    return [path for path in found if path.parent.name.lower() == _PICTURES]


def _labelled(folder: Path) -> Iterator[tuple[Path, Path | None]]:
    """Pictures, each with the MATLAB file of its name in the folder of labels beside its own."""
    of_place: dict[Path, dict[str, Path]] = {}
    for path in _pictures(folder):
        place = path.parent.parent
        if place not in of_place:
            of_place[place] = _by_stem(place)
        yield path, of_place[place].get(path.stem)


def _by_stem(place: Path) -> dict[str, Path]:
    folders = [one for one in folders_in(place) if one.name.lower() == _LABELS]
    found = (one / name for one in folders for name in list_folder(one).files if name.endswith(".mat"))
    return {path.stem: path for path in found}


def _annotation(label: Path, gathered: Gathered) -> tuple[NDArray[np.int32], list[tuple[int, str]]]:
    found = read_mat(label, ("inst_map", "type_map", "inst_type"))
    if "inst_map" not in found:
        raise SlideError("the variable 'inst_map' is missing", where=label.name, code="unsupported_layout")
    nuclei = whole_numbers(found["inst_map"], "inst_map", label.name)
    ids = np.unique(nuclei[nuclei > 0])
    listed = {}
    if "inst_type" in found and found["inst_type"].size == ids.size:
        types = whole_numbers(found["inst_type"].reshape(1, -1), "inst_type", label.name)[0]
        listed = dict(zip(ids.tolist(), types.tolist(), strict=True))
    elif "inst_type" in found:
        what = f"inst_type has {found['inst_type'].size} entries for {ids.size} nuclei and is left aside"
        gathered.remarks.tell(f"{label.name}: {what}")
    if "type_map" in found:
        drawn = whole_numbers(found["type_map"], "type_map", label.name)
        if drawn.shape != nuclei.shape:
            what = f"type_map has the shape {drawn.shape}, inst_map {nuclei.shape}"
            raise SlideError(what, where=label.name, code="unsupported_layout")
        of_nucleus, mixed = major_classes(nuclei, drawn)
        other = sum(1 for one, number in listed.items() if of_nucleus.get(one) != number)
        if mixed or other:
            told = f"{mixed} nuclei have pixels of more than one class, {other} another one in inst_type"
            gathered.remarks.tell(f"{label.name}: {told}; most of their pixels count")
    else:
        of_nucleus = listed
    strange = sorted({number for number in of_nucleus.values() if not 1 <= number <= len(TYPES)})
    if strange:
        gathered.remarks.tell(f"{label.name}: classes {', '.join(map(str, strange))} are not of CoNSeP and left aside")
    return nuclei, [(one, TYPES[number - 1]) for one, number in of_nucleus.items() if 1 <= number <= len(TYPES)]
