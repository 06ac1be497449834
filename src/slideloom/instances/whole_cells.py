"""Whole cells of a slide beside its nuclei: found by InstanSeg's method on maps of their own, and made to fit.

Cells are sought as nuclei are, window by window and the same to the byte for any window, and then matched as the
published models' post-processing does (:mod:`slideloom.instances.reconcile`): a cell takes the number of its nucleus, a
nucleus without a cell becomes one of its own shape, and cells without a nucleus follow after all others. Nuclei stay as
they were found.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.artefacts.zarrio import open_array
from slideloom.config.model import Head, InstancesConfig
from slideloom.instances.instanseg import InstanSegParams, as_published
from slideloom.instances.instanseg_classifier import SeedClassifier
from slideloom.instances.instanseg_stitch import stitch_instanseg
from slideloom.instances.labels import add_labels
from slideloom.instances.reconcile import Reconciled, reconcile_slide
from slideloom.instances.refine.found import Found
from slideloom.instances.stitch import SlideMaps

__all__ = ["CELLS_HEAD", "CELLS_NAME", "cell_areas", "find_whole_cells", "write_whole_cells"]

#: The head whose maps hold whole cells, and the name of their label image.
CELLS_HEAD: Head = "instanseg_cells"
CELLS_NAME = "cells"
_MEANING = "cell_id of the cell table where a cell has a nucleus, higher numbers where it has none; 0 is background"


def find_whole_cells(
    maps_path: Path,
    about: Mapping[str, Any],
    nuclei: Found,
    config: InstancesConfig,
    scratch: Path,
    *,
    workers: int = 1,
) -> Reconciled:
    """Find a slide's cells, and make them fit its nuclei.

    Parameters
    ----------
    maps_path : Path
        Zarr group of the slide's maps, with ``instanseg_cells`` (5, H, W) int16.
    about : mapping
        The maps' attributes: ``mpp_um``, ``pixel_classifier`` and ``instanseg_published`` are read.
    nuclei : Found
        The slide's nuclei, whatever method found them.
    config : InstancesConfig
        ``instanseg``, ``min_area_um2`` (of cells, and of what is left of those without a nucleus) and ``window_px``,
        which changes memory and speed only.
    scratch : Path
        Folder to make, for a working array that the result reads.
    workers : int
        Windows in work at once. Changes no byte.

    Returns
    -------
    Reconciled
        The cells.
    """
    scratch.mkdir()
    config = as_published(config, about.get("instanseg_published", {}))
    params = InstanSegParams.from_config(config, float(about["mpp_um"]))
    cells = stitch_instanseg(
        SlideMaps({CELLS_HEAD: open_array(maps_path / CELLS_HEAD)}),
        params,
        SeedClassifier.of_state(about.get("pixel_classifier", {})),
        scratch,
        name=CELLS_HEAD,
        window_px=config.window_px,
        workers=workers,
    )
    return reconcile_slide(nuclei, cells, min_area_px=params.min_area_px, window_px=config.window_px, workers=workers)


def cell_areas(found: Reconciled) -> NDArray[np.float64]:
    """Area of each nucleus' cell.

    Parameters
    ----------
    found : Reconciled
        Cells of a slide.

    Returns
    -------
    (n + 1,) float64 array
        Pixels, by the nucleus' id; NaN for the background, and where no cell was found round a nucleus.
    """
    n_nuclei = found.nuclei.n
    areas = np.full(n_nuclei + 1, np.nan)
    owners = np.unique(found.number[1:])
    owners = owners[(owners > 0) & (owners <= n_nuclei)]
    areas[owners] = found.table.area[owners]
    return areas


def write_whole_cells(
    place: Path, found: Reconciled, mpp_um: float, attributes: Mapping[str, Any], *, workers: int = 1
) -> None:
    """Write cells as the label image ``labels/cells`` of the nuclei's OME-Zarr group.

    Parameters
    ----------
    place : Path
        The group.
    found : Reconciled
        Cells of a slide.
    mpp_um : float
        Pixel size of the maps, µm.
    attributes : mapping
        JSON values kept under ``slideloom``; ``n_cells`` and ``n_without_nucleus`` are added.
    workers : int
        Shards in work at once.
    """
    frame = found.nuclei.grid.frame
    counts = {"n_cells": found.n, "n_without_nucleus": found.n - found.nuclei.n}
    own = {**attributes, **counts, "units": {"labels": _MEANING}}
    add_labels(place, CELLS_NAME, (frame.height, frame.width), found.read, mpp_um, attributes=own, workers=workers)
