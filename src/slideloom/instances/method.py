"""What every method of finding instances is, for the stitching that knows none of them; and what several share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from slideloom.instances.threshold import Foreground, chosen, components

__all__ = ["HIGHEST_LEVEL", "Landscape", "Method", "flood_level", "large_pieces", "opened"]

#: Levels stand above 40 bits of a pixel's place in 63 bits (:mod:`slideloom.instances.join`).
HIGHEST_LEVEL = (1 << 23) - 1


@dataclass(frozen=True)
class Landscape:
    """What is flooded, and from where.

    Attributes
    ----------
    level : (H, W) int32 array
        Low places first; 1 … :data:`HIGHEST_LEVEL`.
    seeds : (H, W) uint8 array
        1 in the markers, each a 4-connected piece; inside the foreground.
    """

    level: NDArray[np.int32]
    seeds: NDArray[np.uint8]


class Method(Protocol):
    """How components of the foreground become instances.

    All that a method computes is local and exact: the value of a pixel depends on pixels at most ``context_px`` away,
    and is the same to the bit wherever an array begins. Then the stitching gives the same instances for any window.
    """

    @property
    def front(self) -> Foreground:
        """Threshold and sizes of the foreground."""
        ...

    @property
    def reads(self) -> tuple[str, ...]:
        """Maps that it reads beside ``nucleus``."""
        ...

    @property
    def context_px(self) -> int:
        """How far beyond a pixel its result looks, the foreground's own context included."""
        ...

    def landscape(self, mask: NDArray[np.uint8], maps: Mapping[str, NDArray[Any]]) -> Landscape | None:
        """What is flooded; None if a component is never parted.

        Parameters
        ----------
        mask : (H, W) uint8 array
            The foreground, 0 or 1.
        maps : mapping of str to array
            The maps of :attr:`reads`, (…, H, W).
        """
        ...


def opened(mask: NDArray[np.uint8], diameter_px: int) -> NDArray[np.uint8]:
    """Drop what is thinner than a disc, 0 or 1; looks ``2 * (diameter_px // 2)`` pixels far."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (diameter_px, diameter_px))
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc), dtype=np.uint8)


def large_pieces(mask: NDArray[np.uint8], least_px: int) -> NDArray[np.uint8]:
    """4-connected pieces of at least some pixels, 0 or 1.

    A smaller piece is nowhere longer than ``least_px``: with as much context the answer is the slide's.
    """
    if least_px <= 1:
        return mask
    labels, table = components(mask)
    keep = table.area >= least_px
    keep[0] = False
    return chosen(labels, keep)


def flood_level(calm: NDArray[np.float32], most: int, weights: Sequence[int]) -> NDArray[np.int32]:
    """What is flooded, low where a smoothed map of calm is high.

    Parameters
    ----------
    calm : (H, W) float32 array
        Whole numbers 0 … ``most``.
    most : int
        The greatest calm; times the squared sum of the weights it is below 2**23, so that every sum is exact.
    weights : sequence of int
        Of the filter, both ways; odd in number. It looks ``len(weights) // 2`` pixels far.

    Returns
    -------
    (H, W) int32 array
        1 … ``most * sum(weights)**2 + 1``.
    """
    kernel = np.array(weights, np.float32)
    smooth = np.asarray(cv2.sepFilter2D(calm, cv2.CV_32F, kernel, kernel), dtype=np.float32)
    np.subtract(most * sum(weights) ** 2 + 1, smooth, out=smooth)
    return smooth.astype(np.int32)
