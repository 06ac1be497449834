"""NuCLS: fields of breast H&E with crowdsourced nuclei, as published and as 15 patches with points of classes.

As published (Amgad et al., GigaScience 2022), wherever they lie below the folder::

    rgb/<field>.png                          the picture, 0.2 µm a pixel
    csv/<field>.csv                          a row a nucleus: super_classification, type, xmin, ymin, xmax, ymax,
                                             coords_x, coords_y (outlines; empty or four corners of a box)
    train_test_splits/fold_<k>_<part>.csv    slides that train and test

The small form::

    <name>_image.png, <name>_labels.png      the picture, and its label image
    nuclei_classes.csv                       image, x, y, class_id; a row a point on (or beside) a nucleus
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideError
from slideloom.slides.labels import read_instances
from slideloom.slides.layouts.annotated import Gathered, class_table
from slideloom.slides.layouts.drawn import draw, ellipse
from slideloom.slides.layouts.imported import Imported
from slideloom.slides.layouts.listing import files_below, list_folder, read_rows
from slideloom.slides.open import open_image
from slideloom.slides.source import Source

__all__ = ["CLASSES", "is_nucls", "read_nucls"]

_MPP_UM = 0.2
#: The classes by their names in the tables; in the small form, by their number from 0.
CLASSES = class_table(
    ("tumor_any", "#c0392b"),
    ("nonTIL_stromal", "#27ae60"),
    ("sTIL", "#2e5bd8"),
    ("other_nucleus", "#f39c12"),
)
_POINTS = "nuclei_classes.csv"
_IMAGE, _LABELS = "_image.png", "_labels.png"
_BOX = ("xmin", "ymin", "xmax", "ymax")
_COLUMNS = ("super_classification", *_BOX)
_PATIENT = re.compile(r"(TCGA-(\w\w)-\w{4})(-\w+)?", re.IGNORECASE)
_FOLD = re.compile(r"fold_(\d+)_(train|test)\.csv", re.IGNORECASE)
#: An entry of the tables that marks the field itself.
_FIELD = "fov"
_MOST_CORNERS = 100_000
#: Rows and columns by which a field may differ from its picture.
_FEW_PX = 3
_EXPECTED = f"rgb/*.png and csv/*.csv of the same names, or *{_IMAGE}, *{_LABELS} and {_POINTS}"
_PART = re.compile(r"(train|val|test)(?:_|$)")


def is_nucls(folder: Path) -> bool:
    """Whether NuCLS lies below the folder, in either form."""
    return bool(_point_tables(folder)) or any(_has_columns(path) for path in list(_fields(folder).values())[:1])


def read_nucls(folder: Path, out: Path, mpp_um: float | None = None) -> Imported:
    """Bring the pictures in, a slide each.

    Of the published form, nuclei with an outline are drawn along it, later ones over earlier ones; those with a box
    alone as the ellipse in their box, under the others: their number and place is then right, their outline is not. Of
    the small form, a nucleus has the class of the points on it; one without a point has none.

    Parameters
    ----------
    folder : Path
        Searched with the folders below it.
    out : Path
        Folder of the sheet.
    mpp_um : float, optional
        Pixel size in place of 0.2 µm.

    Returns
    -------
    Imported
        Of the published form, with the patient of the name, the column ``site`` (TCGA's code of the hospital) and a
        column of train and test for every published fold; of the small form, with ``split`` by name.

    Raises
    ------
    SlideloomError
        No picture was found.
    SlideError
        The table of points has not its columns.
    """
    gathered = Gathered(folder, out, mpp_um or _MPP_UM, CLASSES)
    notes = []
    tables = _point_tables(folder)
    for table in tables:
        _add_pointed(table, gathered)
    if not tables:
        _add_fields(folder, gathered)
        notes = ["no slide has the role val: name some, to choose the epoch by"]
    return gathered.finish(_EXPECTED, notes)


def _point_tables(folder: Path) -> list[Path]:
    tables = files_below(folder, (_POINTS,))
    return [path for path in tables if any(one.endswith(_LABELS) for one in list_folder(path.parent).files)]


def _add_pointed(table: Path, gathered: Gathered) -> None:
    """Pictures and label images beside a table of points."""
    points: dict[str, list[dict[str, str]]] = {}
    for row in read_rows(table, ("image", "x", "y", "class_id")):
        points.setdefault(row["image"], []).append(row)
    gathered.use(table)
    n_points = n_on = n_unlike = n_nuclei = n_split = n_classed = 0
    for path in sorted(table.parent.glob(f"*{_IMAGE}")):
        name = path.name.removesuffix(_IMAGE)
        label = path.with_name(f"{name}{_LABELS}")
        rows, nuclei, classes = points.pop(name, []), None, None
        if label.is_file():
            try:
                drawn = read_instances(Source(label))
                placed = [_under(row, drawn, table.name) for row in rows]
            except SlideError as error:
                gathered.skip(name, error)
                continue
            told = [row.get("label_id", "") for row in rows]
            n_unlike += sum(1 for one, (found, _) in zip(told, placed, strict=True) if one and one != str(found))
            classes = [(found, word) for found, word in placed if found]
            of_nucleus = {found: word for found, word in classes}
            n_points, n_on, n_nuclei = (
                n_points + len(rows),
                n_on + len(classes),
                n_nuclei + np.unique(drawn[drawn > 0]).size,
            )
            n_split += len({found for found, word in classes if of_nucleus[found] != word})
            n_classed += len(of_nucleus)
            nuclei = label
        part = _PART.match(name)
        gathered.add(name, path, nuclei, classes, split=part[1] if part else None, extra={"tissue": "Breast"})
    told_of = f"{n_nuclei} nuclei; {n_points} points, {n_on} of them on a nucleus"
    gathered.remarks.tell(f"{table.name}: {told_of}; {n_nuclei - n_classed} nuclei have no point, and no class")
    if n_split:
        gathered.remarks.tell(f"{table.name}: {n_split} nuclei have points of several classes; most of them count")
    if n_unlike:
        gathered.remarks.tell(
            f"{table.name}: {n_unlike} points name another nucleus in 'label_id' than lies under them"
        )
    for name in sorted(points):
        gathered.remarks.count("points without a picture", name)


def _under(row: Mapping[str, str], labels: NDArray[np.int32], where: str) -> tuple[int, str]:
    """Label under a point, 0 where there is none, and the name of its class."""
    try:
        x, y, number = math.floor(float(row["x"])), math.floor(float(row["y"])), int(row["class_id"])
    except (ValueError, OverflowError) as error:
        what = f"x {row['x']!r}, y {row['y']!r}, class_id {row['class_id']!r}"
        raise SlideError(what, where=where, expected="numbers", code="annotation_unreadable") from error
    if not 0 <= number < len(CLASSES):
        what = f"the class {number}"
        raise SlideError(what, where=where, expected=f"0 to {len(CLASSES) - 1}", code="unknown_class")
    inside = 0 <= x < labels.shape[1] and 0 <= y < labels.shape[0]
    return int(labels[y, x]) if inside else 0, CLASSES.names[number]


def _fields(folder: Path) -> dict[str, Path]:
    """Tables of the published form by the name of their field."""
    return {path.stem: path for path in files_below(folder, (".csv",)) if path.parent.name.lower() == "csv"}


def _has_columns(table: Path) -> bool:
    try:
        return bool(read_rows(table, _COLUMNS)) or True
    except SlideError:
        return False


def _add_fields(folder: Path, gathered: Gathered) -> None:
    """Fields of the published form."""
    tables, roles = _fields(folder), _roles(folder, gathered)
    boxes = shared = hidden = nowhere = total = unnamed = beyond = 0
    for path in files_below(folder, (".png",)):
        if path.parent.name.lower() != "rgb":
            continue
        labels, classes = None, None
        if path.stem in tables:
            try:
                with open_image(Source(path), "he") as image:
                    shape = image.height_px, image.width_px
                table = read_rows(tables[path.stem], _COLUMNS)
                rows = [row for row in table if not _is_field(row)]
                beyond += any(_is_smaller(row, shape, path.name) for row in table if _is_field(row))
                outlines = [_outline(row, tables[path.stem].name) for row in rows]
            except SlideError as error:
                gathered.skip(path.stem, error)
                continue
            # Boxes first: what was outlined lies over what was not.
            order = sorted(range(len(rows)), key=lambda place: outlines[place][1])
            drawn = draw([outlines[place][0] for place in order], shape, first_counts=False)
            lost = {*drawn.nowhere, *drawn.hidden}
            words = (
                (place + 1, rows[row]["super_classification"]) for place, row in enumerate(order) if place not in lost
            )
            classes = [(label, word) for label, word in words if word in CLASSES.names]
            labels = drawn.labels
            total, boxes = total + len(rows), boxes + sum(not outlined for _, outlined in outlines)
            nowhere, hidden, shared = nowhere + len(drawn.nowhere), hidden + len(drawn.hidden), shared + drawn.shared_px
            unnamed += len(rows) - len(lost) - len(classes)
            gathered.use(tables[path.stem])
        match = _PATIENT.match(path.stem)
        extra = {"tissue": "Breast", **({"site": match[2].upper()} if match else {})}
        extra |= {column: role for column, words in roles.items() if (role := _role(path.stem, words))}
        gathered.add(path.stem, path, labels, classes, patient=match[1].upper() if match else "", extra=extra)
    gathered.remarks.tell(
        f"{total} nuclei: {boxes} have a box alone and are drawn as the ellipse in it, under the others; "
        f"{nowhere} hold no pixel, {hidden} lie under others; {shared} px lie in several and count for the last; "
        f"{unnamed} have no class of the four (AMBIGUOUS) and keep none"
    )
    if beyond:
        gathered.remarks.tell(
            f"{beyond} pictures reach beyond the field that was annotated: nuclei that are found there count as wrong"
        )


def _is_field(row: Mapping[str, str]) -> bool:
    return any(row.get(name, "").lower() == _FIELD for name in ("raw_classification", "super_classification", "group"))


def _is_smaller(row: Mapping[str, str], shape: tuple[int, int], where: str) -> bool:
    """Whether the field leaves more than a few rows or columns of the picture out."""
    box = _numbers([row[name] for name in _BOX], where)
    if len(box) != len(_BOX):
        return False
    return max(*box[:2], shape[1] - box[2], shape[0] - box[3]) > _FEW_PX


def _outline(row: Mapping[str, str], where: str) -> tuple[NDArray[np.float64], bool]:
    """Corners of a nucleus, and whether it was outlined."""
    across, down = (_numbers(row.get(name, "").split(","), where) for name in ("coords_x", "coords_y"))
    outlined = row.get("type", "polyline").lower() != "rectangle" and len(across) > 2
    if outlined:
        if len(across) != len(down):
            what = f"{len(across)} numbers in coords_x, {len(down)} in coords_y"
            raise SlideError(what, where=where, expected="as many", code="annotation_unreadable")
        return np.array([across, down], np.float64).T, True
    box = _numbers([row[name] for name in _BOX], where)
    if len(box) != len(_BOX):
        raise SlideError(
            f"a box of {len(box)} numbers", where=where, expected=", ".join(_BOX), code="annotation_unreadable"
        )
    return ellipse(*box), False


def _numbers(texts: Sequence[str], where: str) -> list[float]:
    try:
        found = [float(text) for text in texts[:_MOST_CORNERS] if text.strip()]
    except ValueError as error:
        raise SlideError(str(error), where=where, expected="numbers", code="annotation_unreadable") from error
    if not all(map(math.isfinite, found)):
        raise SlideError(
            "a coordinate that is not finite", where=where, expected="numbers", code="annotation_unreadable"
        )
    return found


def _roles(folder: Path, gathered: Gathered) -> dict[str, dict[str, tuple[str, ...]]]:
    """By column (``fold_1``) and role: names of the slides that the published split names."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for path in files_below(folder, (".csv",)):
        match = _FOLD.fullmatch(path.name)
        if match is None:
            continue
        try:
            rows = read_rows(path)
        except SlideError as error:
            gathered.remarks.tell(f"{gathered.shown(path)} left aside, {error.what}")
            continue
        names = {one[0].upper() for row in rows for cell in row.values() if (one := _PATIENT.match(cell))}
        found.setdefault(f"fold_{match[1]}", {})[match[2].lower()] = tuple(sorted(names))
        gathered.use(path)
    return found


def _role(field: str, parts: Mapping[str, Iterable[str]]) -> str | None:
    """Role of a field in one published split; None where none, or more than one, names its slide."""
    named = [role for role, slides in parts.items() if any(field.upper().startswith(slide) for slide in slides)]
    return named[0] if len(named) == 1 else None
