"""Which predicted slides lie on disk, for the overlays to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from slideloom.artefacts.paths import Paths
from slideloom.config.model import StudyConfig
from slideloom.reports.overlays import OverlaySource
from slideloom.slides.folds import fold_names
from slideloom.slides.sheet import SlideRow

__all__ = ["overlay_sources"]


def overlay_sources(
    config: StudyConfig, paths: Paths, rows: Sequence[SlideRow], root: Path
) -> tuple[list[dict[str, Any]], list[OverlaySource]]:
    """Find the slides that an overlay can be drawn of.

    Parameters
    ----------
    config : StudyConfig
        The study.
    paths : Paths
        Of its artefacts.
    rows : sequence of SlideRow
        The sheet.
    root : Path
        Folder that the sheet's paths start from.

    Returns
    -------
    scored : list of dict
        Rows of ``slides.parquet``.
    sources : list of OverlaySource
        Every slide of every run whose maps, labels and cells are there, in the order of the config and the sheet.
    """
    scored: list[dict[str, Any]] = pq.read_table(paths.reports() / "slides.parquet", partitioning=None).to_pylist()
    sources = []
    for name, experiment in config.experiments.items():
        image = config.grids[config.encoders[experiment.first_encoder].grid].image
        for fold in fold_names(config.splits[experiment.split], rows):
            for row in rows:
                slide = row.slide_id
                made = (paths.maps(name, fold, slide), paths.labels(name, fold, slide), paths.cells(name, fold, slide))
                if all(path.exists() for path in made):
                    facts = paths.slide_facts(slide)
                    sources.append(OverlaySource(name, fold, image, row, root, facts, *made))
    return scored, sources
