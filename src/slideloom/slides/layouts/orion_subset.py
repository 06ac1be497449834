"""The subset of Orion that the SP/H&E report was made on: pairs of fields with a class for every pixel.

35 tissues called ``orion_<8 letters>_0``, each with a ``.npy`` of channels, a picture of the H&E, registered, and a
map of ten classes. How the folders are called is not published: a file belongs to the tissue whose id stands in its
name, or else in the name of a folder above it, and its content says what it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from slideloom.errors import SlideError, SlideloomError
from slideloom.slides.labels import read_labels
from slideloom.slides.layouts.contents import Content, look_into
from slideloom.slides.layouts.imported import Imported, Remarks, path_from, write_label_image
from slideloom.slides.layouts.listing import walk
from slideloom.slides.open import open_image
from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import Source
from slideloom.slides.tables import Channel, ClassTable

__all__ = ["CLASSES", "PANEL", "SCANNED", "is_orion_subset", "read_orion_subset"]

_ID = re.compile(r"(?<![A-Za-z0-9])orion_[a-z]{8}_\d+(?![A-Za-z0-9])", re.IGNORECASE)
_READ = (".npy", ".png", ".jpg", ".jpeg", ".tif", ".tiff")
_WORDS = re.compile(r"[^a-z&]+")
_SAYS_HE = {"he", "h&e", "hne", "hande"}
_SAYS_INSTANCES = {"inst", "instance", "instances", "ids"}
#: Folder below the sheet for the nuclei that are made here.
_MADE = "instances"

#: The report's 16 markers, in its order.
PANEL = (
    Channel("CD31", "CD31", "P16284"),
    Channel("CD45", "CD45", "P08575"),
    Channel("CD68", "CD68", "P34810"),
    Channel("CD4", "CD4", "P01730"),
    Channel("FOXP3", "FOXP3", "Q9BZS1"),
    Channel("CD8a", "CD8a", "P01732"),
    Channel("CD45RO", "CD45RO", "P08575-4"),
    Channel("CD20", "CD20", "P11836"),
    Channel("PD-L1", "PD-L1", "Q9NZQ7"),
    Channel("CD3e", "CD3e", "P07766"),
    Channel("CD163", "CD163", "Q86VB7"),
    Channel("E-cadherin", "E-cadherin", "P12830"),
    Channel("PD-1", "PD-1", "Q15116"),
    Channel("Ki67", "Ki67", "P46013"),
    Channel("Pan-CK", "Pan-CK", "P05787"),
    Channel("SMA", "SMA", "P62736"),
)
_HOECHST = Channel("Hoechst", "DNA", nuclear=True)
_DARK = (Channel("AF1", "AF1"), Channel("Argo550", "Argo550"))
#: All 19 channels of an Orion scan, in its order: the nuclear stain, autofluorescence and an empty one among them.
SCANNED = (_HOECHST, _DARK[0], *PANEL[:3], _DARK[1], *PANEL[3:])
_PANELS = {len(PANEL): PANEL, len(SCANNED): SCANNED}
#: The map's classes from 1 on; 0 is none.
CLASSES = ClassTable(
    tuple(range(1, 10)),
    (
        *("Stroma", "Endothelia", "Macrophage", "Tumor", "Helper T cell", "Cytotoxic T cell", "Other", "Treg"),
        "B cells",
    ),
    (
        *((232, 163, 61), (32, 166, 184), (63, 143, 91), (198, 61, 61), (61, 111, 209), (122, 79, 201)),
        *((138, 138, 138), (209, 79, 160), (184, 196, 31)),
    ),
    ((),) * 9,
)


def is_orion_subset(folder: Path) -> bool:
    """Whether a file below the folder carries the id of one of these tissues."""
    return any(True for _ in _files(folder))


def read_orion_subset(folder: Path, out: Path, mpp_um: float | None = None) -> Imported:
    """Bring the tissues in.

    Of every tissue, an array of two channels or more is the SP image, an RGB picture of the same size the H&E, a map of
    whole numbers up to 9 the classes, and one of many numbers the nuclei. Where nuclei are not given, they are made of
    the class map: pixels of one class that touch by their sides are one nucleus, written to ``out/instances``. Nuclei
    of one class that touch are then one, and figures of instances mean little; those of pixels are what the map says.

    Parameters
    ----------
    folder : Path
        Searched with all folders below it.
    out : Path
        Folder of the sheet.
    mpp_um : float, optional
        Pixel size of both images, µm per pixel. The files do not hold it.

    Returns
    -------
    Imported
        Tissues with an image, sorted by id.

    Raises
    ------
    SlideloomError
        No file carries such an id, or no tissue has an image.
    """
    tissues: dict[str, list[Path]] = {}
    for name, path in _files(folder, out / _MADE):
        tissues.setdefault(name, []).append(path)
    if not tissues:
        raise SlideloomError(
            "no file is of a tissue of this set",
            where=str(folder),
            expected="names, of files or of their folders, such as orion_abcdefgh_0",
            hint="Name the set's top folder, or leave --layout out to go by the names he, sp, instances and classes",
        )
    remarks = Remarks()
    rows, panels, made = [], set(), 0
    for name in sorted(tissues):
        row, of_classes = _tissue(name, [look_into(path) for path in tissues[name]], folder, out, remarks)
        if row is None:
            continue
        made += of_classes
        panels.add(row.sp_channels)
        rows.append(_with_mpp(row, mpp_um))
    if not rows:
        raise SlideloomError(
            f"none of {len(tissues)} tissues has an image", where=str(folder), hint="; ".join(remarks.all()[:3])
        )
    _general(remarks, len(rows), made, mpp_um, any(panel and len(panel) == len(SCANNED) for panel in panels))
    channels = SCANNED if any(panel and len(panel) == len(SCANNED) for panel in panels) else PANEL
    used = channels if any(row.sp for row in rows) else ()
    return Imported(tuple(rows), used, CLASSES, remarks.all())


def _files(folder: Path, without: Path | None = None) -> Iterator[tuple[str, Path]]:
    """Files that may be read, each with its tissue; not those below ``without``, which were made here."""
    made = without and without.resolve()
    for here, names in walk(folder, lambda one: made is None or one.resolve() != made):
        for name in names:
            if name.startswith(".") or not name.lower().endswith(_READ):
                continue
            path = here / name
            parts = reversed(path.relative_to(folder).parts)
            found = next((match for part in parts if (match := _ID.search(part))), None)
            if found:
                yield found[0].lower(), path


def _tissue(
    name: str, files: Sequence[Content], folder: Path, out: Path, remarks: Remarks
) -> tuple[SlideRow | None, bool]:
    """A tissue's row, and whether its nuclei were made of its classes."""
    for one in files:
        if one.kind == "aside":
            remarks.count(f"left aside: {one.why}", one.path.relative_to(folder))
    shapes = Counter(one.shape for one in files if one.kind in ("sp", "he"))
    if not shapes:
        remarks.tell(f"{name}: neither an SP nor an H&E image, left out")
        return None, False
    shape = max(shapes, key=lambda size: (shapes[size], size[0] * size[1]))
    there: dict[str, list[Content]] = {"sp": [], "he": [], "classes": [], "instances": []}
    for one in files:
        if one.kind == "aside":
            continue
        if one.shape == shape:
            there[one.kind].append(one)
        else:
            sizes = f"{one.shape[0]} x {one.shape[1]} px, the tissue's images have {shape[0]} x {shape[1]}"
            remarks.tell(f"{name}: {one.path.relative_to(folder)} left aside, {sizes}")
    if len(there["classes"]) > 1 and not there["instances"]:
        there["instances"] = [one for one in there["classes"] if _says(one.path, folder, _SAYS_INSTANCES)]
        there["classes"] = [one for one in there["classes"] if one not in there["instances"]]
    there["sp"].sort(key=lambda one: one.n_channels not in _PANELS)
    there["he"].sort(key=lambda one: not _says(one.path, folder, _SAYS_HE))
    there["classes"].sort(key=lambda one: -one.n_values)
    chosen = {kind: _readable(kind, found[0], name, remarks) for kind, found in there.items() if found}
    for kind, found in there.items():
        if len(found) > 1:
            first, *others = (str(one.path.relative_to(folder)) for one in found)
            remarks.tell(f"{name}: more than one file for '{kind}'; {first} is taken, not {', '.join(others)}")
    he, sp = chosen.get("he"), chosen.get("sp")
    if he is None and sp is None:
        remarks.tell(f"{name}: neither an SP nor an H&E image that can be read, left out")
        return None, False
    for image, word in ((sp, "SP image, an array of channels"), (he, "H&E picture")):
        if image is None:
            remarks.tell(f"{name}: no {word}")
    classes, instances = chosen.get("classes"), chosen.get("instances")
    if classes is None:
        what = "its nuclei can be outlined, not sorted" if instances else "it can be predicted, not learnt from"
        remarks.tell(f"{name}: no class map; {what}")
    made = out / _MADE / f"{name}.tif" if classes is not None and instances is None else None
    if made is not None and classes is not None:
        _write_nuclei(classes.path, made)
    panel = _PANELS.get(sp.n_channels) if sp else None
    if sp and panel is None:
        what = f"{sp.n_channels} channels are neither the report's 16 nor Orion's 19"
        remarks.tell(f"{name}: {what}; name them in the sheet's sp_channels and in the markers table")
    nuclei = instances.path if instances else made
    row = SlideRow(
        slide_id=name,
        platform="orion",
        he=path_from(out, he.path) if he else None,
        sp=path_from(out, sp.path) if sp else None,
        instances=path_from(out, nuclei) if nuclei else None,
        classes=path_from(out, classes.path) if classes else None,
        sp_channels=tuple(channel.name for channel in panel) if panel else None,
    )
    return row, made is not None


def _says(path: Path, folder: Path, words: set[str]) -> bool:
    text = path.relative_to(folder).as_posix().lower()
    return bool(words & set(_WORDS.split(text)))


def _readable(kind: str, found: Content, name: str, remarks: Remarks) -> Content | None:
    """The file, unless what it holds does not fit what it is to be."""
    try:
        if kind == "he":
            open_image(Source(found.path), "he").close()
        elif kind == "sp":
            open_image(Source(found.path), "sp").close()
    except SlideError as error:
        remarks.tell(f"{name}: {found.path.name} left out, {error.what}{f' ({error.hint})' if error.hint else ''}")
        return None
    return found


def _write_nuclei(class_map: Path, place: Path) -> None:
    """Connected pixels of one class, by their sides, numbered in raster order."""
    from skimage.measure import label

    values = read_labels(Source(class_map))
    write_label_image(place, np.asarray(label(values, background=0, connectivity=1)))  # type: ignore[no-untyped-call]


def _with_mpp(row: SlideRow, mpp_um: float | None) -> SlideRow:
    return replace(row, he_mpp_um=mpp_um if row.he else None, sp_mpp_um=mpp_um if row.sp else None)


def _general(remarks: Remarks, n: int, made: int, mpp_um: float | None, scanned: bool) -> None:
    if made:
        remarks.tell(
            f"{made} of {n} tissues have a class map only: their nuclei, in {_MADE}/, are the connected pixels of one "
            "class. Nuclei of one class that touch are one there, so figures of instances mean little"
        )
    if mpp_um is None:
        remarks.tell(
            "the files do not hold their pixel size, and slides without one are refused: give --mpp, or fill in mpp_um "
            "(an Orion scan has 0.325 µm at full resolution)"
        )
    if scanned:
        remarks.tell(
            "19 channels are taken to stand in the order of an Orion scan, from Hoechst to SMA; name the 16 markers "
            "under the encoder's key 'markers'"
        )
    remarks.tell("each tissue is taken to be of a patient of its own: fill in patient_id where you know better")
