"""The watershed's flood, typed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import watershed

__all__ = ["flood"]


def flood(relief: NDArray[Any], seeds: NDArray[np.int32], inside: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Flood a relief from seeds, sideways and up and down, without lines between the basins.

    Parameters
    ----------
    relief : (H, W) array
        Low places first.
    seeds : (H, W) int32 array
        Numbers to spread; 0 is no seed.
    inside : (H, W) bool array
        What can be flooded.

    Returns
    -------
    (H, W) int32 array
        0 outside, and where no seed reaches. Equal inputs give equal basins; in a larger array with more in it, ties
        may fall otherwise, because all of it shares one queue.
    """
    return np.asarray(watershed(relief, seeds, mask=inside), dtype=np.int32)  # type: ignore[no-untyped-call]
