"""The files of a synthetic slide: pyramidal TIFFs as scanners write them, label images, and the cohort's tables.

Nothing here depends on the time, the host or the folder, so equal pixels give equal bytes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from slideloom.artefacts.files import publish, write_text
from slideloom.demo.panel import CLASSES, MARKERS, MPP_UM

__all__ = [
    "pyramid",
    "write_class_table",
    "write_he",
    "write_labels",
    "write_markers_and_classes",
    "write_sp",
    "write_table",
]

_TILE_PX = 256
_JPEG_QUALITY = 90
_PX_PER_CM = 1e4 / MPP_UM


def pyramid(image: NDArray[Any]) -> list[NDArray[Any]]:
    """Halve an image until it fits into one tile.

    Parameters
    ----------
    image : ndarray
        (h, w) or (h, w, 3), uint8 or uint16.

    Returns
    -------
    list of ndarray
        The image itself, then each level the 2 x 2 mean of the one before; an odd last row or column is dropped.
    """
    levels = [image]
    while max(levels[-1].shape[:2]) > _TILE_PX:
        height, width = levels[-1].shape[0] // 2, levels[-1].shape[1] // 2
        even = levels[-1][: 2 * height, : 2 * width]
        levels.append(np.asarray(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)))
    return levels


def write_he(place: Path, picture: NDArray[np.uint8]) -> None:
    """Write an RGB image in the layout of Aperio's SVS: JPEG tiles, a page a level, the pixel size in the text.

    Parameters
    ----------
    place : Path
        Ends in ``.svs``.
    picture : ndarray
        (h, w, 3) uint8.
    """
    levels = pyramid(picture)
    height, width = picture.shape[:2]
    size = f"{width}x{height}"
    with publish(place) as draft, tifffile.TiffWriter(draft) as file:
        for number, level in enumerate(levels):
            here = size if number == 0 else f"{size} -> {level.shape[1]}x{level.shape[0]}"
            file.write(
                level,
                tile=(_TILE_PX, _TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": _JPEG_QUALITY, "outcolorspace": "ycbcr", "subsampling": (2, 1)},
                subfiletype=1 if number else 0,
                resolution=(_PX_PER_CM / 2**number, _PX_PER_CM / 2**number),
                resolutionunit="CENTIMETER",
                description=(
                    f"Aperio layout, synthetic slide by slideloom\r\n{here} ({_TILE_PX}x{_TILE_PX}) "
                    f"JPEG/RGB Q={_JPEG_QUALITY}|AppMag = 20|MPP = {MPP_UM:.4f}"
                ),
                metadata=None,
                software="slideloom",
                maxworkers=1,
            )


def write_sp(place: Path, picture: NDArray[np.uint16]) -> None:
    """Write a multi-channel image as pyramidal OME-TIFF, the smaller levels in SubIFDs.

    Parameters
    ----------
    place : Path
        Ends in ``.ome.tif``.
    picture : ndarray
        (c, h, w) uint16, the channels of ``MARKERS``.
    """
    pyramids = [pyramid(channel) for channel in picture]
    levels = [np.stack([channel[number] for channel in pyramids]) for number in range(len(pyramids[0]))]
    options: dict[str, Any] = {
        "tile": (_TILE_PX, _TILE_PX),
        "photometric": "minisblack",
        "compression": "adobe_deflate",
        "compressionargs": {"level": 1},
        "predictor": True,
        "resolutionunit": "CENTIMETER",
        "maxworkers": 1,
    }
    metadata = {
        "axes": "CYX",
        # From the pixels, not the clock: equal slides give equal bytes.
        "UUID": f"urn:uuid:{uuid.UUID(bytes=hashlib.sha256(picture.tobytes()).digest()[:16], version=5)}",
        "Name": place.name.removesuffix(".ome.tif"),
        "Creator": "slideloom",
        "Channel": {"Name": [marker.name for marker in MARKERS]},
        "PhysicalSizeX": MPP_UM,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": MPP_UM,
        "PhysicalSizeYUnit": "µm",
    }
    with publish(place) as draft, tifffile.TiffWriter(draft, ome=True) as file:
        for number, level in enumerate(levels):
            scale = _PX_PER_CM / 2**number
            file.write(
                level,
                **options,
                resolution=(scale, scale),
                software="slideloom",
                **({"subifds": len(levels) - 1, "metadata": metadata} if number == 0 else {"subfiletype": 1}),
            )


def write_labels(place: Path, labels: NDArray[Any]) -> None:
    """Write an instance label image (uint16, or uint32 where there are more) or a class label image (uint8).

    Parameters
    ----------
    place : Path
        Ends in ``.tif``.
    labels : ndarray
        (h, w), uint8 or int32, not negative.
    """
    if labels.dtype != np.uint8:
        labels = labels.astype(np.uint16 if int(labels.max(initial=0)) < 2**16 else np.uint32)
    with publish(place) as draft:
        tifffile.imwrite(
            draft,
            labels,
            photometric="minisblack",
            compression="adobe_deflate",
            tile=(_TILE_PX, _TILE_PX),
            resolution=(_PX_PER_CM, _PX_PER_CM),
            resolutionunit="CENTIMETER",
            metadata=None,
            software="slideloom",
            maxworkers=1,
        )


def write_table(place: Path, header: Sequence[str], rows: Iterable[Sequence[object]], delimiter: str = "\t") -> None:
    """Write a small table, lines ended by a line feed on every system."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(place, text.getvalue())


def write_markers_and_classes(folder: Path) -> None:
    """Write ``markers.tsv`` (no channel of this panel is a nuclear stain) and ``classes.tsv``."""
    write_table(
        folder / "markers.tsv",
        ("channel", "marker", "uniprot", "nuclear"),
        [(marker.name, marker.name, marker.uniprot, "no") for marker in MARKERS],
    )
    write_table(
        folder / "classes.tsv",
        ("id", "name", "colour"),
        [(number, kind.name, kind.colour) for number, kind in enumerate(CLASSES, 1)],
    )


def write_class_table(place: Path, rows: Iterable[tuple[str, int, int, int, int]]) -> None:
    """Write the per-instance classes of several slides.

    Parameters
    ----------
    place : Path
        Ends in ``.csv``.
    rows : iterable of tuple
        Slide id, x and y of a pixel of the nucleus, class id, label value.
    """
    write_table(place, ("image", "x", "y", "class_id", "label_id"), rows, ",")
