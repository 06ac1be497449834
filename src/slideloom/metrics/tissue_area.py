"""How much tissue was looked at: the tissue's outline within the pixels that a tile covered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from slideloom.config.model import Modality
from slideloom.metrics.contingency import blocks
from slideloom.slides.facts import SlideFacts
from slideloom.slides.outlines import area_in_cells
from slideloom.slides.tissue import tissue_on_grid

__all__ = ["PredictedTissue"]

#: Side of the squares that are all covered, not at all, or looked at pixel by pixel.
_SQUARE_PX = 256
#: Squares read at a time, along a side; changes memory and speed, no value.
_SQUARES = 8


@dataclass(frozen=True)
class PredictedTissue:
    """The tissue of a slide, and how much of it was predicted.

    Attributes
    ----------
    area_mm2 : float
        Area of the tissue on pixels where a tile looked, mm².
    region : shapely.Geometry
        The tissue, (x, y) in µm from the predicted image's upper left corner, predicted or not.
    """

    area_mm2: float
    region: shapely.Geometry = field(repr=False)

    @classmethod
    def of(
        cls, polygons: Sequence[shapely.Polygon], facts: SlideFacts, image: Modality, scale: float, covered: Any = None
    ) -> PredictedTissue:
        """Measure it.

        Parameters
        ----------
        polygons : sequence of shapely.Polygon
            The tissue, (x, y) in level-0 pixels of the slide's reference image; holes are not tissue.
        facts : SlideFacts
            The slide.
        image : {"he", "sp"}
            The image that was predicted. The tissue is placed on it by physical size.
        scale : float
            Level-0 pixels of that image per pixel of the maps.
        covered : (h, w) array-like of uint8, optional
            1 where a tile looked: the array ``covered`` of the slide's maps. NumPy, Zarr or tensorstore. Left out: the
            whole image was looked at, as by another program.

        Returns
        -------
        PredictedTissue
        """
        tissue = tissue_on_grid(polygons, facts, image, scale)
        map_mpp_um = scale * facts.image(image).mpp_um
        region = shapely.transform(tissue, lambda xy: xy * map_mpp_um)
        shapely.prepare(region)
        if covered is None:
            height, width = facts.image(image).shape
            area_px = float(area_in_cells(tissue, np.array([0, height / scale]), np.array([0, width / scale])).item())
        else:
            area_px = _covered_px(tissue, covered)
        return cls(area_px * map_mpp_um**2 / 1e6, region)

    def holds(self, x_um: NDArray[np.float64], y_um: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which places lie in the tissue or on its outline.

        Parameters
        ----------
        x_um, y_um : (n,) float64 array
            From the predicted image's upper left corner, µm.

        Returns
        -------
        (n,) bool array
        """
        inside: NDArray[np.bool_] = np.asarray(shapely.intersects_xy(self.region, x_um, y_um), bool)
        return inside


def _covered_px(tissue: shapely.Geometry, covered: Any) -> float:
    """Area of the tissue on covered pixels, in pixels, exactly; the tissue's (x, y) are in pixels of ``covered``."""
    height, width = (int(side) for side in covered.shape)
    y_lines, x_lines = (np.unique([*range(0, side, _SQUARE_PX), side]) for side in (height, width))
    within = area_in_cells(tissue, y_lines, x_lines)
    areas = []
    for rows, columns in blocks((height, width), _SQUARE_PX * _SQUARES):
        squares = within[_squares(rows), _squares(columns)]
        if not squares.any():
            continue
        seen = np.asarray(covered[rows, columns]) == 1
        for square in blocks((seen.shape[0], seen.shape[1]), _SQUARE_PX):
            y, x = square[0].start, square[1].start
            area = float(squares[y // _SQUARE_PX, x // _SQUARE_PX])
            part = seen[square]
            if part.all():
                areas.append(area)
            elif area and part.any():
                areas.append(_part(tissue, part, rows.start + y, columns.start + x))
    return math.fsum(areas)


def _squares(pixels: slice) -> slice:
    """The squares that a block's rows or columns consist of."""
    return slice(pixels.start // _SQUARE_PX, -(-pixels.stop // _SQUARE_PX))


def _part(tissue: shapely.Geometry, seen: NDArray[np.bool_], y_px: int, x_px: int) -> float:
    """Area of the tissue on some pixels of a square that begins at (y_px, x_px)."""
    height, width = seen.shape
    near = shapely.clip_by_rect(tissue, x_px, y_px, x_px + width, y_px + height)
    return float(area_in_cells(near, y_px + np.arange(height + 1), x_px + np.arange(width + 1))[seen].sum())
