"""MoNuSeg: pictures of 1000 x 1000 px at 40x from several organs, with outlines as Aperio's ImageScope writes them.

What is relied upon (Kumar et al., IEEE TMI 2020)::

    MoNuSeg 2018 Training Data/Tissue Images/TCGA-18-5592-01Z-00-DX1.tif
    MoNuSeg 2018 Training Data/Annotations/TCGA-18-5592-01Z-00-DX1.xml
    MoNuSegTestData/TCGA-2Z-A9J9-01A-01-TS1.tif and .xml

A nucleus is a ``Region`` with ``Vertex`` elements that carry ``X`` and ``Y`` in pixels. (The release with folders
``images`` and ``masks`` of label images is read as ``pairs``.)
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from slideloom.config.texts import quoted, read_text
from slideloom.errors import Problem, SlideError
from slideloom.slides.layouts.annotated import Gathered
from slideloom.slides.layouts.drawn import draw
from slideloom.slides.layouts.imported import Imported
from slideloom.slides.layouts.listing import files_below, role_of
from slideloom.slides.ome_xml import parse_xml
from slideloom.slides.open import open_image
from slideloom.slides.source import Source

__all__ = ["is_monuseg", "read_monuseg", "read_outlines"]

_MPP_UM = 0.25
_PATIENT = re.compile(r"TCGA-\w\w-\w{4}", re.IGNORECASE)
_MOST_BYTES = 16 << 20
_HEAD_BYTES = 4096
_EXPECTED = (
    "pictures (.tif) with outlines (.xml) of the same names, beside them or in 'Tissue Images' and 'Annotations'"
)


def is_monuseg(folder: Path) -> bool:
    """Whether a TIFF has outlines of ImageScope of the same name, beside it or in a folder of annotations."""
    pictures = {path.stem for path in files_below(folder, (".tif", ".tiff"))}
    outlines = (path for path in files_below(folder, (".xml",)) if path.stem in pictures)
    first = next(outlines, None)
    if first is None:
        return False
    try:
        with first.open("rb") as file:
            return b"<Annotations" in file.read(_HEAD_BYTES)
    except OSError:
        return False


def read_monuseg(folder: Path, out: Path, mpp_um: float | None = None) -> Imported:
    """Bring the pictures in, a slide each.

    Outlines overlap. A pixel in several belongs to the first of them, as in the set's own program. Regions that hold no
    pixel, the clicks that outline nothing among them, are dropped and counted.

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
        Rows with ``split`` where a folder's name says it; the patient is that of the name, ``TCGA-18-5592``.

    Raises
    ------
    SlideloomError
        No picture was found.
    """
    gathered = Gathered(folder, out, mpp_um or _MPP_UM)
    outlines = {path.stem: path for path in files_below(folder, (".xml",))}
    dropped = shared = hidden = negative = total = 0
    for path in files_below(folder, (".tif", ".tiff")):
        labels = None
        if path.stem in outlines:
            try:
                with open_image(Source(path), "he") as image:
                    shape = image.height_px, image.width_px
                regions, excluded = read_outlines(outlines[path.stem])
            except SlideError as error:
                gathered.skip(path.stem, error)
                continue
            drawn = draw(regions, shape, first_counts=True)
            labels = drawn.labels
            total, negative = total + len(regions), negative + excluded
            dropped, hidden = dropped + len(drawn.nowhere), hidden + len(drawn.hidden)
            shared += drawn.shared_px
            gathered.use(outlines[path.stem])
        patient = _PATIENT.match(path.stem)
        split = role_of(path, folder)
        gathered.add(path.stem, path, labels, patient=patient[0].upper() if patient else "", split=split)
    told = f"{total} regions: {dropped} hold no pixel and are dropped, {hidden} lie under others"
    gathered.remarks.tell(f"{told}; {shared} px lie in several and count for the first")
    if negative:
        gathered.remarks.tell(f"{negative} regions are marked as cut out (NegativeROA) and left aside")
    return gathered.finish(_EXPECTED, ["no slide has the role val: name some, to choose the epoch by"])


def read_outlines(path: Path) -> tuple[list[NDArray[np.float64]], int]:
    """Outlines of an ImageScope file.

    Parameters
    ----------
    path : Path
        XML.

    Returns
    -------
    outlines : list of (n, 2) float64 arrays
        Corners (x, y) of every region, in the order of the file, pixels from the upper left corner.
    excluded : int
        Regions that are left aside, because they are marked as cut out.

    Raises
    ------
    SlideError
        ``unreadable``; ``metadata_mismatch``: no XML, or made to cost memory; ``annotation_unreadable``: a corner
        without a number.
    """
    problems: list[Problem] = []
    text = read_text(path, _MOST_BYTES, "outlines of nuclei", "Save it as XML, in UTF-8", problems)
    if text is None:
        raise SlideError(problems[0].what, where=path.name, hint=problems[0].hint, code="unreadable")
    root = parse_xml(re.sub(r"^<\?xml[^>]*\?>", "", text.lstrip()), "file of outlines", path.name)
    regions = list(root.iter("Region"))
    kept = [one for one in regions if one.get("NegativeROA", "0") in ("", "0")]
    return [_corners(one, path.name) for one in kept], len(regions) - len(kept)


def _corners(region: Element, where: str) -> NDArray[np.float64]:
    corners = []
    for vertex in region.iter("Vertex"):
        texts = vertex.get("X", ""), vertex.get("Y", "")
        try:
            corners.append((float(texts[0]), float(texts[1])))
        except ValueError:
            corners.append((np.nan, np.nan))
        if not np.isfinite(corners[-1]).all():
            what = f"a corner of region {quoted(region.get('Id', '?'))} has X {quoted(texts[0])}, Y {quoted(texts[1])}"
            raise SlideError(what, where=where, expected="numbers", code="annotation_unreadable")
    return np.array(corners, np.float64).reshape(-1, 2)
