"""All exports of a slide that the config asks for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from slideloom.config.model import ExportsConfig, Modality
from slideloom.instances.exports.anndata import export_anndata
from slideloom.instances.exports.qupath import export_geojson
from slideloom.instances.exports.spatialdata import export_spatialdata
from slideloom.slides.facts import SlideFacts
from slideloom.slides.tables import ClassTable

__all__ = ["export_slide"]

_LOG = logging.getLogger(__name__)


def export_slide(
    config: ExportsConfig,
    slide_id: str,
    labels: Path,
    cells: Path,
    facts: SlideFacts,
    classes: ClassTable | None,
    image: Modality,
    folder: Path,
) -> list[Path]:
    """Write a slide's nuclei in every form that the config asks for.

    Parameters
    ----------
    config : ExportsConfig
        Which forms.
    slide_id : str
        The slide.
    labels : Path
        Its OME-Zarr label image.
    cells : Path
        Its cell table.
    facts : SlideFacts
        The slide.
    classes : ClassTable or None
        Colours of the classes.
    image : {"he", "sp"}
        The image that the nuclei were found on; pixels are its level-0 pixels.
    folder : Path
        Where the files go: ``<slide>.geojson.zip``, ``<slide>.h5ad``, ``<slide>.spatialdata.zarr``.

    Returns
    -------
    list of Path
        What was written, each whole.

    Raises
    ------
    SlideloomError
        ``table_schema``: not a cell table.
    SlideError
        ``no_image``: the slide has no such image.
    """
    mpp_um = facts.image(image).mpp_um
    forms: list[tuple[bool, str, Callable[[Path], None]]] = [
        (config.geojson, "geojson.zip", lambda place: export_geojson(cells, classes, place)),
        (config.anndata, "h5ad", lambda place: export_anndata(cells, classes, place)),
        (
            config.spatialdata,
            "spatialdata.zarr",
            lambda place: export_spatialdata(labels, cells, mpp_um, classes, place),
        ),
    ]
    written = []
    for wanted, suffix, write in forms:
        if wanted:
            start = time.perf_counter()
            place = folder / f"{slide_id}.{suffix}"
            write(place)
            written.append(place)
            _LOG.info("%s: %s in %.1f s", slide_id, place.name, time.perf_counter() - start)
    return written
