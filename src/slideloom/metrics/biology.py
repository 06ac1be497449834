"""A slide's biology: how many nuclei of each class, how dense, how large, how they stain, how far apart.

Made of the cell table alone, so that predictions without any annotation have it, too. Definitions stand with the
columns in :mod:`slideloom.metrics.biology_schemas`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.artefacts.tables import write_table
from slideloom.config.model import Modality
from slideloom.instances.exports.cell_file import CellFile
from slideloom.metrics.biology_schemas import BIOLOGY, MARKER_FIGURES, NEIGHBOURS
from slideloom.metrics.cell_groups import Nuclei
from slideloom.metrics.neighbours import neighbour_rows
from slideloom.metrics.tissue_area import PredictedTissue

__all__ = ["biology_rows", "slide_biology"]

Values = NDArray[np.float64]
_MEAN, _WEIGHTED_MEAN = (group.prefix for group in MARKER_FIGURES)


def slide_biology(
    cells: Path,
    image: Modality,
    tissue: PredictedTissue | None,
    place: Path,
    *,
    made_from: Mapping[str, Any] | None = None,
    workers: int = 1,
) -> None:
    """Write a slide's ``biology.parquet`` and ``neighbours.parquet``.

    Parameters
    ----------
    cells : Path
        The slide's cell table.
    image : {"he", "sp"}
        The image that was predicted.
    tissue : PredictedTissue or None
        Its tissue; None when it is not known: densities are null then.
    place : Path
        Folder to write to.
    made_from : mapping, optional
        JSON values for the files' metadata, beside what the cell table says of itself.
    workers : int
        Threads that look for neighbours; they change no byte.

    Raises
    ------
    SlideloomError
        ``table_schema``: not a cell table of this version; ``unknown_class``.
    """
    file = CellFile.open(cells)
    nuclei = Nuclei.read(file)
    of_slide = {"slide_id": file.slide_id, "image": image}
    about = {"cells": file.about.get("made_from", {}), **(made_from or {})}
    # One column of markers at a time: a slide may have half a million nuclei and forty markers.
    markers = ((name, file.column(column)) for name, column in zip(file.markers, file.mean_columns, strict=True))
    rows = biology_rows(nuclei, tissue, markers)
    write_table(BIOLOGY, [of_slide | row for row in rows], place / "biology.parquet", made_from=about)
    rows = neighbour_rows(nuclei, workers=workers)
    write_table(NEIGHBOURS, [of_slide | row for row in rows], place / "neighbours.parquet", made_from=about)


def biology_rows(
    nuclei: Nuclei, tissue: PredictedTissue | None, markers: Iterable[tuple[str, NDArray[Any]]] = ()
) -> list[dict[str, Any]]:
    """Rows of ``biology.parquet``.

    Parameters
    ----------
    nuclei : Nuclei
        Of a slide.
    tissue : PredictedTissue or None
        Its tissue, where it is known.
    markers : iterable of (str, (n,) float array)
        Each marker's name and its mean under every nucleus, NaN where no tile covers the nucleus. Gone through once.

    Returns
    -------
    list of dict
        All nuclei first, then the background, then the classes by id; without the slide.
    """
    groups = nuclei.groups()
    inside = tissue.holds(nuclei.x_um, nuclei.y_um) if tissue is not None else None
    total_um2 = float(nuclei.area_um2.sum())
    rows = []
    for group in groups:
        row: dict[str, Any] = {"scope": group.scope, **group.named(), "n": len(group)}
        row |= _areas(nuclei.area_um2[group.members])
        row["count_fraction"] = _share(len(group), len(nuclei))
        row["area_fraction"] = _share(row["area_total_um2"], total_um2)
        if tissue is not None and inside is not None:
            row["tissue_mm2"] = tissue.area_mm2
            row["n_in_tissue"] = int(np.count_nonzero(inside[group.members]))
            row["density_per_mm2"] = _share(row["n_in_tissue"], tissue.area_mm2)
        rows.append(row)
    for name, values in markers:
        for group, row in zip(groups, rows, strict=True):
            of_marker = _intensities(values[group.members], nuclei.area_um2[group.members])
            row |= {f"{prefix}{name}": value for prefix, value in of_marker.items()}
    return rows


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _areas(area_um2: Values) -> dict[str, float | None]:
    """Figures of some nuclei's areas."""
    n = area_um2.size
    return {
        "area_total_um2": float(area_um2.sum()),
        "area_mean_um2": float(area_um2.mean()) if n else None,
        "area_median_um2": float(np.median(area_um2)) if n else None,
        "area_std_um2": float(area_um2.std(ddof=1)) if n > 1 else None,
    }


def _intensities(values: NDArray[Any], area_um2: Values) -> dict[str, float | None]:
    """Plain and weighted mean of a marker over those nuclei that have a value."""
    known = ~np.isnan(values)
    if not known.any():
        return {_MEAN: None, _WEIGHTED_MEAN: None}
    found, weight = values[known].astype(np.float64), area_um2[known]
    return {_MEAN: float(found.mean()), _WEIGHTED_MEAN: float((found * weight).sum() / weight.sum())}
