"""Where every artefact lies below the results folder: the one place that knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slideloom.errors import SlideloomError

__all__ = ["Paths"]


def _part(name: str) -> str:
    """A name as one part of a path, which leads nowhere else."""
    if not name or name in (".", "..") or any(mark in name for mark in "/\\\0"):
        raise SlideloomError(
            f"{name[:200]!r} cannot be a part of a path below the results folder",
            expected="a name without '/', '\\', '..' and NUL",
            hint="Rename it in the sheet or the config",
            code="unsafe_name",
        )
    return name


def _parts(context: str) -> Path:
    """A context as parts of a path: none, or several with a ``/`` between them."""
    return Path(*map(_part, context.split("/"))) if context else Path()


@dataclass(frozen=True)
class Paths:
    """Paths of a study's artefacts.

    Attributes
    ----------
    root : Path
        The config's ``results`` folder.

    Raises
    ------
    SlideloomError
        ``unsafe_name``, by every method: a name that would lead out of the folder. The sheet and the config refuse such
        names with words of their own; this is the last door.
    """

    root: Path

    def slide_facts(self, slide: str) -> Path:
        """Size, pixel size, channels, reader and warnings of a slide."""
        return self.root / "slides" / _part(slide) / "slide.json"

    def tissue(self, slide: str) -> Path:
        """Tissue polygons in level-0 pixels (x, y) of the slide's reference image."""
        return self.root / "slides" / _part(slide) / "tissue.geojson"

    def thumbnail(self, slide: str) -> Path:
        """Overview picture with the tissue's outline."""
        return self.root / "slides" / _part(slide) / "thumbnail.png"

    def patches(self, grid: str, slide: str) -> Path:
        """Pixels of every tile."""
        return self.root / "patches" / _part(grid) / f"{_part(slide)}.zarr"

    def targets(self, grid: str, slide: str) -> Path:
        """Instances, classes, HV and boundary of every tile."""
        return self.root / "targets" / _part(grid) / f"{_part(slide)}.zarr"

    def cell_targets(self, grid: str, slide: str) -> Path:
        """Whole cells of every tile, where they are annotated and some experiment learns them."""
        return self.root / "cell_targets" / _part(grid) / f"{_part(slide)}.zarr"

    def statistics(self, encoder: str) -> Path:
        """Channel statistics that an encoder normalises with, over training slides only."""
        return self.root / "statistics" / f"{_part(encoder)}.json"

    def statistics_slides(self, encoder: str) -> Path:
        """Which training slides count in an encoder's statistics, and which were left out and why."""
        return self.root / "statistics" / "slides" / f"{_part(encoder)}.json"

    def embeddings(self, encoder: str, slide: str) -> Path:
        """Token maps of every tile."""
        return self.root / "embeddings" / _part(encoder) / f"{_part(slide)}.zarr"

    def split(self, split: str) -> Path:
        """Fold and role of every slide."""
        return self.root / "splits" / f"{_part(split)}.parquet"

    def model(self, experiment: str, fold: str) -> Path:
        """Folder of ``decoder.safetensors`` and ``history.parquet``."""
        return self.root / "models" / _part(experiment) / _part(fold)

    def verifier(self, experiment: str, fold: str) -> Path:
        """Record of the verifier of an experiment's nuclei; the model itself, where there is one, beside it."""
        return self.model(experiment, fold) / "verifier.json"

    def maps(self, experiment: str, fold: str, slide: str) -> Path:
        """Slide-wide predictions, one value a pixel."""
        return self.root / "maps" / _part(experiment) / _part(fold) / f"{_part(slide)}.zarr"

    def maps_band(self, experiment: str, fold: str, slide: str, band: str) -> Path:
        """Predictions of a band of rows, where slides are predicted in several."""
        return self.root / "maps" / _part(experiment) / _part(fold) / f"{_part(slide)}.bands" / f"{_part(band)}.zarr"

    def labels(self, experiment: str, fold: str, slide: str) -> Path:
        """OME-Zarr 0.5 label image."""
        return self.root / "labels" / _part(experiment) / _part(fold) / f"{_part(slide)}.ome.zarr"

    def cells(self, experiment: str, fold: str, slide: str) -> Path:
        """GeoParquet, a row an instance."""
        return self.root / "cells" / _part(experiment) / _part(fold) / f"slide_id={_part(slide)}" / "cells.parquet"

    def exports(self, experiment: str, fold: str) -> Path:
        """Folder of the slides' files for other programs."""
        return self.root / "exports" / _part(experiment) / _part(fold)

    def metrics(self, experiment: str, fold: str, slide: str) -> Path:
        """Folder of a scored slide's tables, ``slide.parquet`` and others."""
        return self.root / "metrics" / _part(experiment) / _part(fold) / _part(slide)

    def biology(self, experiment: str, fold: str, slide: str) -> Path:
        """Folder of a predicted slide's ``biology.parquet`` and ``neighbours.parquet``."""
        return self.root / "biology" / _part(experiment) / _part(fold) / _part(slide)

    def reports(self) -> Path:
        """Folder of the report tables and ``report.html``."""
        return self.root / "reports"

    def log(self, stage: str, context: str, unit: str) -> Path:
        """Log of one job."""
        return self.root / "logs" / _part(stage) / _parts(context) / f"{_part(unit)}.log"

    def benchmark(self, stage: str, context: str, unit: str) -> Path:
        """Snakemake's own account of one job."""
        return self.root / "benchmarks" / _part(stage) / _parts(context) / f"{_part(unit)}.tsv"

    def account(self, stage: str, context: str, unit: str) -> Path:
        """A job's own account: tiles, and seconds by what they were spent on."""
        return self.root / "benchmarks" / _part(stage) / _parts(context) / f"{_part(unit)}.json"

    def record(self, stage: str, context: str, item: str) -> Path:
        """Completion record of one item (a slide, a fold, …) of a stage."""
        return self.root / "state" / _part(stage) / _parts(context) / "items" / f"{_part(item)}.json"

    def job_record(self, stage: str, context: str, unit: str) -> Path:
        """Completion record of one job: the state of each of its items."""
        return self.root.joinpath("state", _part(stage), _parts(context), "jobs", f"{_part(unit)}.json")

    def account_of(self, job_record: Path) -> Path:
        """The account of the job that writes a record: beside the job's benchmark, whatever its stage is called."""
        parts = job_record.relative_to(self.root / "state").parts
        return self.root.joinpath("benchmarks", *parts[:-2], f"{job_record.stem}.json")
