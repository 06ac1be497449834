"""A small multiplexed image and the markers table that knows its channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tests.bad_inputs.raw_tiff import picture

__all__ = ["MARKERS", "NAMES", "stack"]

#: Rows of the markers table: channel, marker, UniProt accession, nuclear or not.
MARKERS = (
    ("DAPI", "DNA", "", "yes"),
    ("CD3", "CD3e", "P07766", "no"),
    ("CD8", "CD8a", "P01732", "no"),
    ("Crête", "Crest", "", "no"),
)
#: Channels of an image.
NAMES = ("DAPI", "CD3", "CD8")


def stack(n: int = 3, dtype: DTypeLike = np.uint16) -> NDArray[Any]:
    """Channels (n, 96, 96): nuclei in the first, and something else in each of the others."""
    bright = 255 - picture().astype(np.int64)
    planes = [np.roll(bright[..., index % 3], 5 * index, axis=1) for index in range(n)]
    return np.stack(planes).astype(dtype)
