"""Reference labels for the paired fields: nuclei from DAPI, classes from CD3 and panCK. They are no ground truth.

The published pairs carry no annotation. This program outlines nuclei on the DAPI channel by a classical recipe and
sorts them by two markers, so that decoders on H&E, on the multiplexed image and on both can be trained and compared.
The labels follow the multiplexed image: an experiment that reads it has seen what they were made from.

Run it once, from the repository's folder:

    python config/studies/paired/prepare.py ../shared/data/paired_he_mif_crc data/paired

It writes, for each pair, ``<pair>_he.png`` (moved onto the DAPI), ``<pair>_mif.ome.tif`` (copied) and
``<pair>_nuclei.png`` (labels), then ``classes.csv`` (a row a nucleus) and ``README.txt``. The same input gives the
same files.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import regionprops
from skimage.morphology import disk, h_maxima, opening
from skimage.segmentation import expand_labels, watershed

#: Pixels of 0.25 µm, nominal: the source records no pixel size.
MPP_UM = 0.25
#: Channels of the multiplexed image; the source does not name the third.
DAPI, CD3, PANCK = 0, 1, 3
#: Foreground: brighter than this share of Otsu's threshold, and than this share of the mean within about 5 µm.
OTSU_SHARE, LOCAL_SHARE, LOCAL_UM = 0.45, 0.75, 5.0
#: Cores: where DAPI blurred by the first exceeds DAPI blurred by the second by this share of itself.
NARROW_UM, WIDE_UM, CORE_SHARE = 0.375, 2.0, 0.02
#: Seeds stand out of the distance map by this much; nuclei reach this far beyond their cores.
SEED_HEIGHT_UM, REACH_UM = 0.19, 1.25
#: Smaller nuclei are left out.
MIN_AREA_UM2 = 9.4
#: A nucleus with this much round it is its cell; the mean of a marker there is above this share of Otsu's threshold.
CELL_UM, POSITIVE_SHARE = 1.0, 0.4
#: A panCK channel of fewer grey levels is faint background that the source stretched to full range: no epithelium.
MIN_GREY_LEVELS = 100

CLASSES = ("Epithelial", "T cell", "Other")
NOTICE = """\
Fields of the HEMIT set (Bian C. et al., arXiv 2403.18501; an early form), CC BY 4.0, changed as follows.
<pair>_he.png: the H&E field moved by the shift that pairs.csv gives, so that it lies on the DAPI; edges repeated.
<pair>_mif.ome.tif: copied as it was.
<pair>_nuclei.png, classes.csv: REFERENCE LABELS MADE BY A PROGRAM from DAPI, CD3 and panCK. Nobody annotated or checked
them; they are no ground truth. Made by config/studies/paired/prepare.py of Slideloom.
"""


def outline_nuclei(dapi: NDArray[Any]) -> NDArray[np.uint16]:
    """Nuclei of a DAPI image.

    Foreground by a global and a local threshold; inside it the cores of nuclei, which are brighter than their
    surroundings, so that neighbours in dense epithelium come apart; a watershed of the cores' distance map, grown back
    to the foreground by a watershed of the intensity; each nucleus smoothed, in one piece and without holes.

    Parameters
    ----------
    dapi : (h, w) array
        Intensities.

    Returns
    -------
    (h, w) uint16 array
        0 background; 1, 2, 3, … the nuclei.
    """
    blurred = ndimage.gaussian_filter(dapi.astype(np.float64), 1.0)
    local = ndimage.gaussian_filter(blurred, LOCAL_UM / MPP_UM)
    foreground = (blurred > OTSU_SHARE * threshold_otsu(blurred)) & (blurred > LOCAL_SHARE * local)
    narrow, wide = (ndimage.gaussian_filter(blurred, sigma_um / MPP_UM) for sigma_um in (NARROW_UM, WIDE_UM))
    cores = foreground & (narrow - wide > CORE_SHARE * blurred)
    cores = opening(ndimage.binary_fill_holes(cores), disk(2))
    foreground = opening(ndimage.binary_fill_holes(foreground | cores), disk(3)) | cores
    # scipy's distances are exact and the same everywhere.
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(cores), 1.0)
    seeds, _ = ndimage.label(h_maxima(distance, SEED_HEIGHT_UM / MPP_UM), np.ones((3, 3)))
    inner = watershed(-distance, seeds, mask=cores)
    grown = watershed(-ndimage.gaussian_filter(blurred, 1.0), inner, mask=foreground)
    grown[ndimage.distance_transform_edt(inner == 0) > REACH_UM / MPP_UM] = 0
    labels = np.zeros(dapi.shape, np.uint16)
    count = 0
    for region in regionprops(grown):
        piece = _tidy(region.image)
        if piece.sum() * MPP_UM**2 >= MIN_AREA_UM2:
            count += 1
            labels[region.slice][piece] = count
    return labels


def _tidy(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest piece of a nucleus once its spurs are cut off and its holes filled."""
    smooth = ndimage.binary_fill_holes(opening(np.pad(mask, 3), disk(3)))[3:-3, 3:-3]
    pieces, _ = ndimage.label(smooth)
    largest: NDArray[np.bool_] = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1 if pieces.any() else smooth
    return largest


def sort_nuclei(labels: NDArray[np.uint16], cd3: NDArray[Any], panck: NDArray[Any]) -> list[str]:
    """Class of each nucleus by the mean of two markers in its cell: the nucleus and 1 µm round it.

    Each mean is divided by Otsu's threshold of its channel in the field; a marker is positive above 0.4. Where both
    are, the larger one decides. ``T cell``: CD3; ``Epithelial``: panCK, which says nothing in a field whose channel has
    fewer than 100 grey levels; ``Other``: neither.

    Parameters
    ----------
    labels : (h, w) uint16 array
        Nuclei 1 to n.
    cd3, panck : (h, w) arrays
        Intensities.

    Returns
    -------
    list of str
        Of the nuclei 1 to n.
    """
    cells = expand_labels(labels, CELL_UM / MPP_UM)
    t_cell, epithelial = (
        ndimage.mean(channel.astype(np.float64), cells, np.arange(1, labels.max() + 1))
        / max(1, threshold_otsu(channel))
        for channel in (cd3, panck)
    )
    if np.unique(panck).size < MIN_GREY_LEVELS:
        epithelial = np.zeros_like(epithelial)
    positive_t, positive_e = t_cell > POSITIVE_SHARE, epithelial > POSITIVE_SHARE
    is_t = positive_t & ((t_cell >= epithelial) | ~positive_e)
    return [CLASSES[1] if t else CLASSES[0] if e else CLASSES[2] for t, e in zip(is_t, positive_e, strict=True)]


def move(picture: NDArray[np.uint8], dy_px: int, dx_px: int) -> NDArray[np.uint8]:
    """Take each pixel from (dy, dx) away, so that a picture that lies so far off lies true; edges are repeated."""
    rows, columns = (
        np.clip(np.arange(extent) + step, 0, extent - 1)
        for extent, step in zip(picture.shape, (dy_px, dx_px), strict=False)
    )
    moved: NDArray[np.uint8] = picture[np.ix_(rows, columns)]
    return moved


def prepare(source: Path, place: Path) -> dict[str, int]:
    """Make the study's data.

    Parameters
    ----------
    source : Path
        Folder of ``pairs.csv``, ``<pair>_he.jpg`` and ``<pair>_mif.ome.tif``.
    place : Path
        Folder to write, made if need be.

    Returns
    -------
    dict of str to int
        Number of nuclei of each class.
    """
    place.mkdir(parents=True, exist_ok=True)
    counts = dict.fromkeys(CLASSES, 0)
    with open(source / "pairs.csv", newline="", encoding="utf-8") as file:
        pairs = sorted(csv.DictReader(file), key=lambda row: row["pair"])
    rows: list[tuple[str, int, str]] = []
    for pair in pairs:
        name = pair["pair"]
        mif = tifffile.imread(source / f"{name}_mif.ome.tif")
        labels = outline_nuclei(mif[DAPI])
        classes = sort_nuclei(labels, mif[CD3], mif[PANCK])
        rows += [(name, number, kind) for number, kind in enumerate(classes, start=1)]
        he = np.asarray(Image.open(source / f"{name}_he.jpg").convert("RGB"))
        Image.fromarray(move(he, int(pair["shift_dy_px"]), int(pair["shift_dx_px"]))).save(place / f"{name}_he.png")
        Image.fromarray(labels).save(place / f"{name}_nuclei.png")
        shutil.copyfile(source / f"{name}_mif.ome.tif", place / f"{name}_mif.ome.tif")
        for kind in classes:
            counts[kind] += 1
    with open(place / "classes.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("image", "label", "class"), *rows])
    (place / "README.txt").write_text(NOTICE, encoding="utf-8")
    return counts


def main() -> None:
    """Read the two folders from the command line."""
    parser = argparse.ArgumentParser(description="Reference labels, made by a program, for the paired fields.")
    parser.add_argument("source", type=Path, help="folder of the published pairs")
    parser.add_argument("place", type=Path, help="folder to write, such as data/paired")
    given = parser.parse_args()
    counts = prepare(given.source, given.place)
    print(f"{given.place}: {', '.join(f'{number} {kind}' for kind, number in counts.items())}")


if __name__ == "__main__":
    main()
