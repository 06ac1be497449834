"""What the stitching reads, and the working arrays that it writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from slideloom.artefacts.zarrio import create_array
from slideloom.instances.hv_watershed import HVWatershed
from slideloom.instances.threshold import Threshold
from slideloom.instances.windows import Box

__all__ = ["Method", "SlideMaps", "paint", "read_box", "scratch_array"]

_CHUNK_PX = 512

Method = HVWatershed | Threshold


@dataclass(frozen=True)
class SlideMaps:
    """The maps that instances are made from.

    Attributes
    ----------
    nucleus : (H, W) array of uint8
        NumPy array or open Zarr array.
    hv : (2, H, W) array of int8, optional
        Likewise.
    """

    nucleus: Any
    hv: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in grid pixels."""
        height, width = self.nucleus.shape
        return int(height), int(width)

    def read_nucleus(self, box: Box) -> NDArray[np.uint8]:
        """The nucleus map of a box."""
        return np.asarray(self.nucleus[box.slices])

    def read_hv(self, box: Box) -> NDArray[np.int8]:
        """The HV map of a box."""
        return np.asarray(self.hv[(slice(None), *box.slices)])


def scratch_array(place: Path, shape: tuple[int, int]) -> ts.TensorStore:
    """A (H, W) uint32 working array on disk, compressed, in small pieces that can be written in any order."""
    side = (_CHUNK_PX, _CHUNK_PX)
    return create_array(place, shape, np.uint32, chunk=side, shard=side, codec="labels")


def paint(target: ts.TensorStore, box: Box, labels: NDArray[Any], base: int) -> None:
    """Write labels, raised by ``base``, into a working array; background leaves what is there."""
    where = labels > 0
    if not where.any():
        return
    view = target[box.slices]
    canvas = np.array(view.read().result())
    canvas[where] = (labels[where].astype(np.int64) + base).astype(np.uint32)
    view.write(canvas).result()


def read_box(array: ts.TensorStore, box: Box) -> NDArray[np.uint32]:
    """A box of a working array."""
    return np.asarray(array[box.slices])
