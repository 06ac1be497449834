"""Nuclei parted along the predicted boundary map, for decoders without an HV head.

What lies inside the foreground and off the boundaries seeds a flood that rises with the boundary probability: two
nuclei meet where a boundary between them is surest. Thresholds are probabilities and all filters run on whole numbers,
so nothing depends on what else a window holds.

Source: three-class segmentation (interior, boundary, background) with a marker-controlled flood, as in Kumar et al., A
dataset and a technique for generalized nuclear segmentation for computational pathology, IEEE Transactions on Medical
Imaging 36 (2017).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from slideloom.config.model import InstancesConfig
from slideloom.instances.method import Landscape, flood_level, large_pieces, opened
from slideloom.instances.threshold import Foreground, area_px

__all__ = ["BoundaryWatershed"]

_MOST = 255
#: Wider than the boundary of two touching nuclei in the targets, so its middle stands out.
_WEIGHTS = (1, 4, 6, 4, 1)
_OPENING_UM = 1.25


@dataclass(frozen=True)
class BoundaryWatershed:
    """The watershed's sizes in pixels of one slide.

    Attributes
    ----------
    front : Foreground
        Threshold and sizes of the foreground.
    separates : int
        Lowest code of the boundary map that belongs to no marker.
    opening_px : int
        Diameter of the disc that makes up a marker: where it does not fit through a gap of the boundary, two nuclei
        are parted all the same. Odd, at least 3; 1.25 µm or less above that.
    min_marker_px : int
        Smaller markers are dropped.
    """

    front: Foreground
    separates: int
    opening_px: int
    min_marker_px: int
    reads: ClassVar[tuple[str, ...]] = ("boundary",)

    @classmethod
    def from_config(cls, config: InstancesConfig, mpp_um: float) -> BoundaryWatershed:
        """Scale the config's physical sizes to a slide's pixels."""
        return cls(
            front=Foreground.from_config(config, mpp_um),
            separates=math.ceil(_MOST * config.boundary_threshold - 1e-9),
            opening_px=max(3, 2 * int((_OPENING_UM / mpp_um - 1) / 2 + 1e-9) + 1),
            min_marker_px=area_px(config.min_marker_um2, mpp_um),
        )

    @property
    def context_px(self) -> int:
        """How far beyond a pixel its level and its marker look."""
        marker = 2 * (self.opening_px // 2) + self.min_marker_px
        return self.front.context_px + max(marker, len(_WEIGHTS) // 2)

    def landscape(self, mask: NDArray[np.uint8], maps: Mapping[str, NDArray[Any]]) -> Landscape:
        """What is flooded, and from where.

        Parameters
        ----------
        mask : (H, W) uint8 array
            The foreground, 0 or 1.
        maps : mapping of str to array
            ``boundary`` (H, W) uint8, 255 times the boundary probability.

        Returns
        -------
        Landscape
            Right where the arrays reach :attr:`context_px` further, or to the slide's border. Background counts as
            boundary.
        """
        boundary = maps["boundary"]
        inner = mask & (boundary < self.separates).view(np.uint8)
        seeds = large_pieces(opened(inner, self.opening_px), self.min_marker_px)
        calm = ((_MOST - boundary) * mask).astype(np.float32)
        return Landscape(flood_level(calm, _MOST, _WEIGHTS), seeds)
