"""A glimpse at a slide: the overview that its tissue is found on, and how many tiles of each grid hold some.

Reads what the stage ``tissue`` reads, where that is little because the file stores it small; of a large image without
a pyramid a window in its middle, which shows at least whether its samples can be decoded.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from slideloom.cli.slide_report import Fault
from slideloom.config.model import GridConfig, Modality, TissueConfig
from slideloom.errors import SlideError
from slideloom.slides.facts import ImageFacts, SlideFacts, image_source
from slideloom.slides.grid import TileGrid, grid_scale, grid_size
from slideloom.slides.open import open_image
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tissue import finest_scale, read_tissue, tissue_fraction, write_tissue

if TYPE_CHECKING:
    import shapely

__all__ = ["Glimpse", "Wanted", "glimpse"]

#: Decoded samples that a glimpse may read of an image.
_MOST_BYTES = 48 << 20
_WINDOW_PX = 256


@dataclass(frozen=True)
class Wanted:
    """What a run will ask of a slide's tissue.

    Attributes
    ----------
    config : TissueConfig
        How it is found.
    grids : mapping of str to GridConfig
        Grids that the run cuts, by name.
    outlines : Path
        Folder of the slide's results, where a person may have drawn its tissue.
    """

    config: TissueConfig
    grids: Mapping[str, GridConfig]
    outlines: Path


@dataclass(frozen=True)
class Glimpse:
    """What was seen.

    Attributes
    ----------
    tiles : dict of str to int
        Tiles that a run will cut, by grid; all of them where the tissue was not looked at.
    faults : tuple of Fault
        What will keep the slide from running.
    """

    tiles: dict[str, int] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()


def glimpse(row: SlideRow, root: Path, facts: SlideFacts, wanted: Wanted) -> Glimpse:
    """Look at a slide.

    Parameters
    ----------
    row : SlideRow
        The slide's row of the sheet.
    root : Path
        Folder that the sheet's paths start from.
    facts : SlideFacts
        From its headers.
    wanted : Wanted
        What the run will ask.

    Returns
    -------
    Glimpse
        What the stages ``tissue`` and ``patches`` will find. Reads about 50 MB of decoded samples an image at most, and
        writes into a temporary folder only.
    """
    faults: list[Fault] = []
    polygons: list[shapely.Polygon] | None = None
    for modality, image in facts.images.items():
        try:
            if modality == facts.reference and _overview_bytes(image, wanted.config) <= _MOST_BYTES:
                polygons = _outline(row, root, facts, wanted)
            else:
                _read_window(row, root, image, "he" if modality == "he" else "sp")
        except SlideError as error:
            faults.append(Fault(error.code, error.message, error.hint))
    tiles = {name: _tiles(facts, grid, polygons) for name, grid in wanted.grids.items() if grid.image in facts.images}
    if not faults:
        faults += [_no_tiles(facts, name, wanted.grids[name]) for name, count in tiles.items() if not count]
    return Glimpse(tiles, tuple(faults))


def _overview_bytes(image: ImageFacts, config: TissueConfig) -> int:
    """Samples of the levels that the overview is read from, bytes."""
    scale = finest_scale(image, config)
    level = max((one for one in image.levels if one.downsample <= 1.01 * scale), key=lambda one: one.downsample)
    return level.height_px * level.width_px * image.n_channels * np.dtype(image.dtype).itemsize


def _outline(row: SlideRow, root: Path, facts: SlideFacts, wanted: Wanted) -> list[shapely.Polygon]:
    with TemporaryDirectory(prefix="slideloom-") as folder:
        place = Path(folder) / "tissue.geojson"
        for name in (place.name, place.with_suffix(".made").name):
            if (wanted.outlines / name).is_file():
                shutil.copyfile(wanted.outlines / name, place.with_name(name))
        write_tissue(facts, row, root, wanted.config, place, place.with_suffix(".png"))
        return read_tissue(place)


def _read_window(row: SlideRow, root: Path, image: ImageFacts, modality: Modality) -> None:
    with open_image(image_source(row, modality, root), modality) as opened:
        level = opened.levels[-1]
        height, width = min(level.height_px, _WINDOW_PX), min(level.width_px, _WINDOW_PX)
        y, x = (level.height_px - height) // 2, (level.width_px - width) // 2
        opened.read(len(opened.levels) - 1, y, x, height, width)


def _tiles(facts: SlideFacts, grid: GridConfig, polygons: list[shapely.Polygon] | None) -> int:
    image = facts.image(grid.image)
    scale = grid_scale(image.mpp_um, grid.mpp_um)
    tiles = TileGrid.make(*grid_size(*image.shape, scale), grid.tile_px, grid.step_px)
    if polygons is None or grid.min_tissue == 0:
        return int(tiles.n)
    share = tissue_fraction(polygons, facts, grid.image, tiles, scale)
    return int(np.count_nonzero(share >= grid.min_tissue))


def _no_tiles(facts: SlideFacts, name: str, grid: GridConfig) -> Fault:
    message = f"{facts.slide_id}: none of the tiles of the grid {name} is {grid.min_tissue:.0%} tissue"
    return Fault("no_tissue", message, f"Lower grids.{name}.min_tissue, or outline the tissue in QuPath")
