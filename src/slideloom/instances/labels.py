"""The label image: OME-Zarr 0.5, uint32, with a pyramid that never mixes labels.

The group is itself the multiscale label image: arrays ``0``, ``1``, … each half the size of the one before, taking
every second pixel. Nothing is averaged, so every value is an id of the cell table. Figures of single nuclei live
there, not here. Whole cells, where they were found, are a second label image in the same group: ``labels/cells``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from slideloom._version import __version__
from slideloom.artefacts.zarrio import create_array, create_group, open_array, read_attributes
from slideloom.instances.pool import in_order
from slideloom.instances.windows import Box, windows

__all__ = ["LABELS_SCHEMA", "add_labels", "open_labels", "write_labels"]

LABELS_SCHEMA = 1
#: Gives the final labels of a box.
Reader = Callable[[Box], NDArray[np.uint32]]
_OME_VERSION = "0.5"
_CHUNK_PX = 512
#: 64 MB of uint32; a shard is written whole, once.
_SHARD_PX = 4096
_SMALL_ENOUGH_PX = 512
_AXES = ("y", "x")


def write_labels(
    place: Path,
    shape: tuple[int, int],
    read: Reader,
    mpp_um: float,
    *,
    name: str = "nuclei",
    attributes: Mapping[str, Any] | None = None,
    workers: int = 1,
) -> None:
    """Write a label image and its pyramid.

    Parameters
    ----------
    place : Path
        Group to create; must not exist.
    shape : (int, int)
        Height and width in grid pixels.
    read : callable
        Gives the final labels of a box; asked once for each shard.
    mpp_um : float
        Pixel size of level 0, µm.
    name : str
        Of the image.
    attributes : mapping, optional
        JSON values kept under ``slideloom``: what the labels were made from.
    workers : int
        Shards in work at once, each in a thread; ``read`` is then called in threads.
    """
    sizes = [shape]
    while max(sizes[-1]) >= _SMALL_ENOUGH_PX:
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    create_group(place, {"ome": _ome(len(sizes), mpp_um, name), "slideloom": _about(mpp_um, attributes)})
    finer = _create(place / "0", sizes[0])
    _fill(finer, sizes[0], read, workers)
    for level, size in enumerate(sizes[1:], 1):
        coarser = _create(place / str(level), size)
        _fill(coarser, size, partial(_every_second, finer), workers)
        finer = coarser


def add_labels(
    place: Path,
    name: str,
    shape: tuple[int, int],
    read: Reader,
    mpp_um: float,
    *,
    attributes: Mapping[str, Any] | None = None,
    workers: int = 1,
) -> None:
    """Write a further label image into the group of another, as ``labels/{name}``: OME-Zarr's place for labels.

    Parameters
    ----------
    place : Path
        The group that :func:`write_labels` wrote; it has no ``labels`` yet.
    name : str
        Of the image.
    shape, read, mpp_um, attributes, workers
        As :func:`write_labels` has them.
    """
    create_group(place / "labels", {"ome": {"version": _OME_VERSION, "labels": [name]}})
    write_labels(place / "labels" / name, shape, read, mpp_um, name=name, attributes=attributes, workers=workers)


def open_labels(place: Path) -> ts.TensorStore:
    """Level 0 of a label image, (H, W) uint32, opened lazily."""
    return open_array(place / read_attributes(place)["ome"]["multiscales"][0]["datasets"][0]["path"])


def _fill(array: ts.TensorStore, size: tuple[int, int], read: Reader, workers: int) -> None:
    """Write an array shard by shard."""

    def work(box: Box) -> None:
        array[box.slices].write(read(box)).result()

    for _ in in_order(work, windows(Box(0, 0, *size), _SHARD_PX), workers):
        pass


def _every_second(finer: ts.TensorStore, box: Box) -> NDArray[np.uint32]:
    """A box of the next level."""
    rows, columns = (slice(2 * part.start, 2 * part.stop - 1, 2) for part in box.slices)
    return np.asarray(finer[rows, columns])


def _create(place: Path, size: tuple[int, int]) -> ts.TensorStore:
    chunk = [min(_CHUNK_PX, side) for side in size]
    shard = [min(_SHARD_PX, side) for side in size]
    return create_array(place, size, np.uint32, chunk=chunk, shard=shard, codec="labels", dimension_names=_AXES)


def _ome(levels: int, mpp_um: float, name: str) -> dict[str, Any]:
    datasets = []
    for level in range(levels):
        # A pixel of a coarser level stands for the square it was picked from, whose middle lies further in.
        scale, shift = mpp_um * 2**level, mpp_um * (2**level - 1) / 2
        transforms = [
            {"type": "scale", "scale": [scale, scale]},
            {"type": "translation", "translation": [shift, shift]},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    multiscale = {
        "name": name,
        "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in _AXES],
        "datasets": datasets,
        "type": "nearest",
        "metadata": {"description": "every second pixel of the level before"},
    }
    return {"version": _OME_VERSION, "multiscales": [multiscale], "image-label": {"version": _OME_VERSION}}


def _about(mpp_um: float, attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "schema": LABELS_SCHEMA,
        "slideloom_version": __version__,
        "mpp_um": mpp_um,
        "units": {"labels": "cell_id of the cell table; 0 is background"},
        **dict(attributes or {}),
    }
