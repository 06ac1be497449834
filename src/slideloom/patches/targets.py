"""Targets: what a decoder should say of every tile, cut from maps of the whole slide.

Instances, HV and boundaries are worked out on the slide and then cut, so a nucleus on a tile's edge keeps its whole
shape.
"""

from __future__ import annotations

import logging
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from slideloom._version import __version__
from slideloom.artefacts.files import publish
from slideloom.artefacts.zarrio import create_array, create_group, open_array, read_attributes
from slideloom.patches.hv import HV_SCALE, boundary_map, hv_map, hv_map_int8
from slideloom.patches.store import Indices, PatchStore, read_rows, rows_per_shard
from slideloom.slides.annotations import UNKNOWN_CLASS, read_annotations
from slideloom.slides.facts import SlideFacts
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import ClassTable

__all__ = ["TargetStore", "boundary_map", "cut_targets", "hv_map"]

_LOG = logging.getLogger(__name__)
_SCHEMA = 1
_NAMES = ("instances", "classes", "hv", "boundary")


def cut_targets(
    row: SlideRow, root: Path, facts: SlideFacts, patches: PatchStore, classes: ClassTable, place: Path
) -> bool:
    """Cut the targets of a slide's patches.

    Parameters
    ----------
    row : SlideRow
        The slide's row of the sheet.
    root : Path
        Folder that the sheet's paths start from.
    facts : SlideFacts
        The slide.
    patches : PatchStore
        Its patches; the targets have their order and frame.
    classes : ClassTable
        The study's classes.
    place : Path
        Zarr group to write: ``instances`` (n, p, p) int32, ``classes`` (n, p, p) uint8 (255: inside a nucleus of
        unknown class), ``hv`` (n, 2, p, p) int8 in units of 1/127 (x, y), ``boundary`` (n, p, p) uint8. 0 in the
        padding.

    Returns
    -------
    bool
        False when the slide has no annotation; nothing is written then.

    Raises
    ------
    SlideError
        As :func:`slideloom.slides.annotations.read_annotations`.
    """
    start = time.perf_counter()
    found = read_annotations(row, root, facts, patches.image, patches.scale, classes)
    if found is None:
        return False
    (instances, class_map), warnings = found
    size = (patches.height_px, patches.width_px)
    if instances.shape != size:
        raise ValueError(f"annotation of {instances.shape} grid pixels on a grid of {size}")
    maps: dict[str, NDArray[Any]] = {
        "instances": instances,
        "classes": class_map,
        "hv": hv_map_int8(instances),
        "boundary": boundary_map(instances),
    }
    n_instances = int(np.unique(instances[instances > 0]).size)
    with publish(place) as draft:
        create_group(
            draft,
            {
                "schema": _SCHEMA,
                "slideloom_version": __version__,
                "slide_id": patches.slide_id,
                "image": patches.image,
                "scale": patches.scale,
                "mpp_um": patches.mpp_um,
                "tile_px": patches.tile_px,
                "stride_px": patches.stride_px,
                "n_instances": n_instances,
                "annotations": dict(facts.annotations),
                "classes": {str(number): name for number, name in zip(classes.ids, classes.names, strict=True)},
                "unknown_class": UNKNOWN_CLASS,
                "hv_scale": HV_SCALE,
                "units": {
                    "instances": "instance id",
                    "classes": "class id",
                    "hv": "1/127, x then y",
                    "boundary": "0/1",
                },
                "warnings": list(warnings),
            },
        )
        for name in _NAMES:
            _cut(maps[name], patches, draft / name)
    took = time.perf_counter() - start
    _LOG.info(
        "%s: targets of %d tiles, %d nuclei in %.1f s: %.0f tiles/s",
        patches.slide_id,
        patches.n,
        n_instances,
        took,
        patches.n / took,
    )
    return True


def _cut(values: NDArray[Any], patches: PatchStore, place: Path) -> None:
    side = patches.tile_px
    shape = (patches.n, *values.shape[:-2], side, side)
    axes = ("tile", "c", "y", "x") if values.ndim == 3 else ("tile", "y", "x")
    array = create_array(place, shape, values.dtype, codec="labels", dimension_names=axes)
    per_shard = rows_per_shard(array)
    for first in range(0, patches.n, per_shard):
        count = min(per_shard, patches.n - first)
        shard = np.zeros((count, *shape[1:]), values.dtype)
        for slot, tile in enumerate(range(first, first + count)):
            y, x = int(patches.y_px[tile]), int(patches.x_px[tile])
            height, width = int(patches.height_valid[tile]), int(patches.width_valid[tile])
            shard[slot, ..., :height, :width] = values[..., y : y + height, x : x + width]
        array[first : first + count].write(shard).result()


class TargetStore:
    """Targets of a slide's patches on disk, in the order of the patches.

    Parameters
    ----------
    path : Path
        Zarr group that :func:`cut_targets` wrote.

    Attributes
    ----------
    attributes : dict
        Everything recorded of the store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attributes = read_attributes(path)
        self.slide_id: str = self.attributes["slide_id"]
        self.tile_px: int = self.attributes["tile_px"]

    def __repr__(self) -> str:
        return f"<TargetStore {self.slide_id} {self.n} x {self.tile_px} px>"

    @cached_property
    def _arrays(self) -> dict[str, ts.TensorStore]:
        return {name: open_array(self.path / name) for name in _NAMES}

    @property
    def n(self) -> int:
        """Number of patches."""
        return int(self._arrays["instances"].shape[0])

    def read(self, indices: Indices, names: tuple[str, ...] = _NAMES) -> dict[str, NDArray[Any]]:
        """Targets of some patches.

        Parameters
        ----------
        indices : sequence of int, integer array or slice
            Which; in any order, also more than once.
        names : tuple of str
            Which of ``instances``, ``classes``, ``hv`` and ``boundary``.

        Returns
        -------
        dict of str to ndarray
            ``instances`` (k, p, p) int32, ``classes`` (k, p, p) uint8, ``hv`` (k, 2, p, p) int8 in units of 1/127,
            ``boundary`` (k, p, p) uint8.
        """
        return {name: read_rows(self._arrays[name], indices) for name in names}
