"""Kinds of slides that are one file, and sound files of every form, which the others spoil."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.bad_inputs.kinds import Answer, Cells, Kind
from tests.bad_inputs.raw_tiff import Page, picture, tiff, tile_page

__all__ = ["FORMS", "MPP", "Maker", "encoded", "npy", "npz", "ome_page", "one_file", "slide_kind", "svs_page"]

MPP = {"mpp_um": "0.5"}
Maker = Callable[[], bytes]


def one_file(make: Maker, name: str, cells: Cells, folder: Path) -> Cells:
    """Write a file, and name it as the slide's H&E image."""
    (folder / name).write_bytes(make())
    return {"he": name, **cells}


def slide_kind(
    name: str,
    what: str,
    make: Maker,
    code: str = "",
    *,
    file: str = "scan.tif",
    cells: Cells = MPP,
    answer: Answer = "failed",
    stage: str = "facts",
    says: str = "",
) -> Kind:
    """A slide whose H&E image is one file."""
    return Kind(name, "slide", what, partial(one_file, make, file, cells), answer, code, stage, says)


def svs_page() -> Page:
    """JPEG tiles under Aperio's description."""
    page = tile_page(picture(), description="Aperio Image Library v12.0\r\n96x96 (48x48) JPEG|AppMag = 20|MPP = 0.5")
    pixels = picture()
    tiles = [
        encoded(pixels[y : y + 48, x : x + 48], "JPEG", quality=100, subsampling=0) for y in (0, 48) for x in (0, 48)
    ]
    return replace(page, tags={**page.tags, 259: (3, [7]), 262: (3, [6]), 530: (3, [1, 1])}, segments=tiles)


def ome_page(x_um: str = "0.5", y_um: str | None = None) -> Page:
    """Tiles under OME-XML that states a pixel size."""
    sizes = f'PhysicalSizeX="{x_um}" PhysicalSizeY="{y_um or x_um}" PhysicalSizeXUnit="µm" PhysicalSizeYUnit="µm"'
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" Interleaved="true" SizeX="96" '
        f'SizeY="96" SizeC="3" SizeZ="1" SizeT="1" {sizes}><Channel ID="Channel:0:0" SamplesPerPixel="3"/>'
        '<TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
    )
    return tile_page(picture(), description=text)


def encoded(pixels: NDArray[np.uint8 | np.uint16], form: str, **options: Any) -> bytes:
    """A picture as Pillow writes it."""
    place = io.BytesIO()
    Image.fromarray(pixels).save(place, form, **options)
    return place.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    """An array as a NumPy file."""
    place = io.BytesIO()
    np.save(place, array)
    return place.getvalue()


def npz(member: bytes) -> bytes:
    """A NumPy archive of one file, without a date."""
    place = io.BytesIO()
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr(zipfile.ZipInfo("image.npy"), member, zipfile.ZIP_DEFLATED)
    return place.getvalue()


#: By form: the name of the file, and its content.
FORMS: dict[str, tuple[str, Maker]] = {
    "tiff": ("scan.tif", lambda: tiff([tile_page(picture())])),
    "bigtiff": ("scan.tif", lambda: tiff([tile_page(picture())], big=True)),
    "pyramid": ("scan.tif", lambda: tiff([tile_page(picture()), tile_page(picture()[::2, ::2].copy())])),
    "svs": ("scan.svs", lambda: tiff([svs_page()])),
    "ome_tiff": ("scan.ome.tif", lambda: tiff([ome_page()])),
    "png": ("scan.png", lambda: encoded(picture(), "PNG")),
    "jpeg": ("scan.jpg", lambda: encoded(picture(), "JPEG", quality=100, subsampling=0)),
    "npy": ("scan.npy", lambda: npy(picture())),
    "npz": ("scan.npz", lambda: npz(npy(picture()))),
}
