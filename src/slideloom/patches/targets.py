"""Targets: what a decoder should say of every tile, cut from maps of the whole slide.

Instances, HV and boundaries are worked out on the slide and then cut, so a nucleus on a tile's edge keeps its whole
shape.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom._version import __version__
from slideloom.artefacts.files import publish
from slideloom.artefacts.zarrio import create_array, create_group
from slideloom.patches.alignment import alignment_remarks
from slideloom.patches.hv import HV_SCALE, boundary_map, hv_map_int8
from slideloom.patches.store import PatchStore, rows_per_shard
from slideloom.patches.target_store import TARGET_SCHEMA
from slideloom.slides.annotations import UNKNOWN_CLASS, read_annotations
from slideloom.slides.facts import SlideFacts
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import ClassTable

__all__ = ["cut_map", "cut_targets"]

_LOG = logging.getLogger(__name__)
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
    for remark in (remarks := alignment_remarks(instances, patches)):
        _LOG.warning("%s: %s", patches.slide_id, remark)
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
                "schema": TARGET_SCHEMA,
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
                "warnings": [*warnings, *remarks],
            },
        )
        for name in _NAMES:
            cut_map(maps[name], patches, draft / name)
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


def cut_map(values: NDArray[Any], patches: PatchStore, place: Path) -> None:
    """Cut a map of the whole slide into the tiles of its patches, and write them.

    Parameters
    ----------
    values : (..., H, W) array
        In the patches' frame.
    patches : PatchStore
        Where the tiles lie.
    place : Path
        Array to write, (n, ..., p, p), 0 in the padding.
    """
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
