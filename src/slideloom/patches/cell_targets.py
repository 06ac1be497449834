"""Targets of whole cells: what the head ``instanseg_cells`` should say of every tile, in a store of its own.

They stand beside the targets of nuclei and not in them: only experiments with that head read them, and an annotation of
cells that cannot be read takes nothing from the nuclei.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from slideloom._version import __version__
from slideloom.artefacts.files import publish
from slideloom.artefacts.zarrio import create_group
from slideloom.patches.store import PatchStore
from slideloom.patches.target_store import CELL_TARGET_SCHEMA
from slideloom.patches.targets import cut_map
from slideloom.slides.cell_annotation import read_cells
from slideloom.slides.facts import SlideFacts
from slideloom.slides.sheet import SlideRow

__all__ = ["cut_cell_targets"]

_LOG = logging.getLogger(__name__)


def cut_cell_targets(row: SlideRow, root: Path, facts: SlideFacts, patches: PatchStore, place: Path) -> bool:
    """Cut the annotated cells of a slide's patches.

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
    place : Path
        Zarr group to write: ``instances`` (n, p, p) int32, the cells' ids as annotated, 0 in the padding.

    Returns
    -------
    bool
        False when the slide has no annotated cells; nothing is written then.

    Raises
    ------
    SlideError
        As :func:`slideloom.slides.cell_annotation.read_cells`.
    """
    found = read_cells(row, root, facts, patches.image, patches.scale)
    if found is None:
        return False
    n_cells = int(np.unique(found.cells[found.cells > 0]).size)
    with publish(place) as draft:
        create_group(
            draft,
            {
                "schema": CELL_TARGET_SCHEMA,
                "slideloom_version": __version__,
                "slide_id": patches.slide_id,
                "image": patches.image,
                "scale": patches.scale,
                "mpp_um": patches.mpp_um,
                "tile_px": patches.tile_px,
                "stride_px": patches.stride_px,
                "n_instances": n_cells,
                "units": {"instances": "cell id"},
                "warnings": list(found.warnings),
            },
        )
        cut_map(found.cells, patches, draft / "instances")
    _LOG.info("%s: cells of %d tiles, %d in all", patches.slide_id, patches.n, n_cells)
    return True
