"""What every method of finding instances is, for the stitching that knows none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slideloom.instances.threshold import Foreground, components

__all__ = ["Landscape", "Method", "large_pieces"]


@dataclass(frozen=True)
class Landscape:
    """What is flooded, and from where.

    Attributes
    ----------
    level : (H, W) int32 array
        Low places first; 1 … 2**31 - 1.
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


def large_pieces(mask: NDArray[np.uint8], least_px: int) -> NDArray[np.uint8]:
    """4-connected pieces of at least some pixels, 0 or 1.

    A smaller piece is nowhere longer than ``least_px``: with as much context the answer is the slide's.
    """
    if least_px <= 1:
        return mask
    labels, stats = components(mask)
    keep = stats[:, 4] >= least_px
    keep[0] = False
    kept: NDArray[np.uint8] = keep[labels].view(np.uint8)
    return kept
