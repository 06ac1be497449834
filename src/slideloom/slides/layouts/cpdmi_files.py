"""Which files of CPDMI 2023 belong together: a folder a crop, with images and masks that say so in their names.

What is relied upon::

    Vectra/<panel>/<specimen>(<x>.<y>)<dx>,<dy>/        P11/P11-10003(58107.9239)0,1200/
    Zeiss/<specimen>(<x>,<y>)<dx>,<dy>/                 ZP-10001(13500,16632)12315,7165/
    CODEX/CODEX_<tissue>(<x>,<y>)/                      CODEX_Tnsl(4200,5200)/
        …-Crop_Tif.tif, …-Crop_Cell_Tif.tif             the image, sometimes two: the crop and what it was cut from
        …-Crop_Cell_Mask_Png.png                        whole cells, drawn with gaps between them
        …-Crop_Dapi_Mask_Png.png                        nuclei, likewise

Names may begin with blanks, and files may be called other than their folder. ``dx`` and ``dy`` are the crop's left and
upper edge in the image that it was cut from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from slideloom.slides.layouts.listing import folders_in, list_folder

__all__ = ["CORRUPT", "PLATFORMS", "Platform", "Sample", "find_samples", "platform_folders"]

Platform = Literal["vectra", "zeiss", "codex"]
#: Folders of the platforms, whatever the case of their letters.
PLATFORMS: tuple[Platform, ...] = ("vectra", "zeiss", "codex")
#: A crop whose image and mask do not belong together, as the set's users found.
CORRUPT = frozenset({"P13-10002(45819.10401)2250,500"})
_OFFSET = re.compile(r"\)\s*(\d+)\s*,\s*(\d+)\s*$")
_KINDS: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {
        "cells": re.compile(r"crop_cell_mask.*\.png$", re.IGNORECASE),
        "nuclei": re.compile(r"crop_dapi_mask.*\.png$", re.IGNORECASE),
        "images": re.compile(r"crop_(cell_|dapi_)?tif[^a-z]*\.tiff?$", re.IGNORECASE),
    }
)
_PANEL = re.compile(r"P\d+", re.IGNORECASE)
#: Folders below that of a platform that are looked into.
_DEEPEST = 3


@dataclass(frozen=True)
class Sample:
    """The files of one crop.

    Attributes
    ----------
    platform : {"vectra", "zeiss", "codex"}
        What it was imaged on.
    name : str
        Of its folder, without blanks around.
    panel : str
        Markers that were stained together: ``P11``, ``ZP-10001``, ``Tnsl``.
    specimen : str
        What stands before the coordinates: ``P11-10003``. Crops of one specimen are of one patient.
    offset : (int, int) or None
        Upper and left edge, pixels, in the image that it was cut from; None where the name has none.
    images, nuclei, cells : tuple of Path
        Sorted by name.
    """

    platform: Platform
    name: str
    panel: str
    specimen: str
    offset: tuple[int, int] | None
    images: tuple[Path, ...]
    nuclei: tuple[Path, ...]
    cells: tuple[Path, ...]


def platform_folders(folder: Path) -> dict[Platform, Path]:
    """Folders of the platforms that lie in a folder."""
    found: dict[Platform, Path] = {}
    for entry in folders_in(folder):
        for platform in PLATFORMS:
            if entry.name.strip().lower() == platform:
                found.setdefault(platform, entry)
    return found


def find_samples(folder: Path) -> Iterator[Sample]:
    """Every crop below the folders of the platforms, sorted by platform and name."""
    for platform, place in sorted(platform_folders(folder).items()):
        yield from sorted(_below(platform, place, 0), key=lambda sample: (sample.name, str(sample.images)))


def _below(platform: Platform, place: Path, depth: int) -> Iterator[Sample]:
    names = [name for name in list_folder(place).files if not name.startswith(".")]
    files = {
        kind: tuple(path for path in (place / name for name in names if named.search(name.strip())) if path.is_file())
        for kind, named in _KINDS.items()
    }
    if any(files.values()):
        yield _sample(platform, place, files)
    if depth < _DEEPEST:
        for entry in folders_in(place):
            if not entry.name.endswith(".zarr"):
                yield from _below(platform, entry, depth + 1)


def _sample(platform: Platform, place: Path, files: Mapping[str, tuple[Path, ...]]) -> Sample:
    name = place.name.strip()
    specimen = name.partition("(")[0].strip() or name
    panel = specimen
    if platform == "vectra" and (found := _PANEL.match(specimen)):
        panel = found[0].upper()
    elif platform == "codex":
        panel = specimen = re.sub(r"^codex[_ -]*", "", specimen, flags=re.IGNORECASE) or specimen
    offset = _OFFSET.search(name)
    return Sample(
        platform=platform,
        name=name,
        panel=panel,
        specimen=specimen,
        offset=(int(offset[2]), int(offset[1])) if offset else None,
        images=files["images"],
        nuclei=files["nuclei"],
        cells=files["cells"],
    )
