"""Which predicted slides lie on disk, for the page's pictures to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from slideloom.artefacts.paths import Paths
from slideloom.config.model import Modality, StudyConfig
from slideloom.slides.folds import fold_names
from slideloom.slides.sheet import SlideRow

__all__ = ["OverlaySource", "overlay_sources"]


@dataclass(frozen=True)
class OverlaySource:
    """A slide that one run predicted, and where everything lies that its pictures are drawn from.

    Attributes
    ----------
    experiment, fold : str
        The run.
    image : {"he", "sp"}
        The image that it predicts.
    row : SlideRow
        The slide.
    root : Path
        Folder that the sheet's paths start from.
    facts, maps, labels, cells : Path
        Artefacts of the slide; ``cells`` is the cell table.
    tiles : Path or None
        ``tiles.parquet`` of the slide's metrics; ``None`` when it was not scored.
    thumbnail : Path or None
        Picture of the whole slide, in the frame of its reference image; ``None`` when there is none.
    """

    experiment: str
    fold: str
    image: Modality
    row: SlideRow
    root: Path
    facts: Path
    maps: Path
    labels: Path
    cells: Path
    tiles: Path | None = None
    thumbnail: Path | None = None


def overlay_sources(
    config: StudyConfig, paths: Paths, rows: Sequence[SlideRow], root: Path
) -> tuple[list[dict[str, Any]], list[OverlaySource]]:
    """Find the slides that a picture can be drawn of.

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
        Who was scored, from ``slides.parquet``: experiment, fold, slide_id, role and pq.
    sources : list of OverlaySource
        Every slide of every run whose maps, labels and cells are there, in the order of the config and the sheet. Tiles
        belong to slides that ``slides.parquet`` names, not to whatever an earlier run left behind.
    """
    columns = ["experiment", "fold", "slide_id", "role", "pq"]
    table = pq.read_table(paths.reports() / "slides.parquet", columns=columns, partitioning=None)
    scored: list[dict[str, Any]] = table.to_pylist()
    known = {(line["experiment"], line["fold"], line["slide_id"]) for line in scored}
    sources = []
    for name, experiment in config.experiments.items():
        grid = experiment.grid or config.encoders[experiment.first_encoder].grid
        image = config.grids[grid].image
        for fold in fold_names(config.splits[experiment.split], rows):
            for row in rows:
                slide = row.slide_id
                made = (paths.maps(name, fold, slide), paths.labels(name, fold, slide), paths.cells(name, fold, slide))
                if not all(path.exists() for path in made):
                    continue
                tiles = paths.metrics(name, fold, slide) / "tiles.parquet"
                scored_tiles = tiles if (name, fold, slide) in known and tiles.is_file() else None
                look = paths.thumbnail(slide)
                thumbnail = look if look.is_file() else None
                facts = paths.slide_facts(slide)
                sources.append(OverlaySource(name, fold, image, row, root, facts, *made, scored_tiles, thumbnail))
    return scored, sources
