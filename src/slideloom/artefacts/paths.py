"""Where every artefact lies below the results folder: the one place that knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Paths"]


@dataclass(frozen=True)
class Paths:
    """Paths of a study's artefacts.

    Attributes
    ----------
    root : Path
        The config's ``results`` folder.
    """

    root: Path

    def slide_facts(self, slide: str) -> Path:
        """Size, pixel size, channels, reader and warnings of a slide."""
        return self.root / "slides" / slide / "slide.json"

    def tissue(self, slide: str) -> Path:
        """Tissue polygons in level-0 pixels (x, y) of the slide's reference image."""
        return self.root / "slides" / slide / "tissue.geojson"

    def thumbnail(self, slide: str) -> Path:
        """Overview picture with the tissue's outline."""
        return self.root / "slides" / slide / "thumbnail.png"

    def patches(self, grid: str, slide: str) -> Path:
        """Pixels of every tile."""
        return self.root / "patches" / grid / f"{slide}.zarr"

    def targets(self, grid: str, slide: str) -> Path:
        """Instances, classes, HV and boundary of every tile."""
        return self.root / "targets" / grid / f"{slide}.zarr"

    def statistics(self, encoder: str) -> Path:
        """Channel statistics that an encoder normalises with, over training slides only."""
        return self.root / "statistics" / f"{encoder}.json"

    def embeddings(self, encoder: str, slide: str) -> Path:
        """Token maps of every tile."""
        return self.root / "embeddings" / encoder / f"{slide}.zarr"

    def split(self, split: str) -> Path:
        """Fold and role of every slide."""
        return self.root / "splits" / f"{split}.parquet"

    def model(self, experiment: str, fold: str) -> Path:
        """Folder of ``decoder.safetensors`` and ``history.parquet``."""
        return self.root / "models" / experiment / fold

    def maps(self, experiment: str, fold: str, slide: str) -> Path:
        """Slide-wide predictions, one value a pixel."""
        return self.root / "maps" / experiment / fold / f"{slide}.zarr"

    def maps_band(self, experiment: str, fold: str, slide: str, band: str) -> Path:
        """Predictions of a band of rows, where slides are predicted in several."""
        return self.root / "maps" / experiment / fold / f"{slide}.bands" / f"{band}.zarr"

    def labels(self, experiment: str, fold: str, slide: str) -> Path:
        """OME-Zarr 0.5 label image."""
        return self.root / "labels" / experiment / fold / f"{slide}.ome.zarr"

    def cells(self, experiment: str, fold: str, slide: str) -> Path:
        """GeoParquet, a row an instance."""
        return self.root / "cells" / experiment / fold / f"slide_id={slide}" / "cells.parquet"

    def exports(self, experiment: str, fold: str) -> Path:
        """Folder of the slides' files for other programs."""
        return self.root / "exports" / experiment / fold

    def metrics(self, experiment: str, fold: str, slide: str) -> Path:
        """Folder of a scored slide's tables, ``slide.parquet`` and others."""
        return self.root / "metrics" / experiment / fold / slide

    def biology(self, experiment: str, fold: str, slide: str) -> Path:
        """Folder of a predicted slide's ``biology.parquet`` and ``neighbours.parquet``."""
        return self.root / "biology" / experiment / fold / slide

    def reports(self) -> Path:
        """Folder of the report tables and ``report.html``."""
        return self.root / "reports"

    def log(self, stage: str, context: str, unit: str) -> Path:
        """Log of one job."""
        return self.root / "logs" / stage / context / f"{unit}.log"

    def benchmark(self, stage: str, context: str, unit: str) -> Path:
        """Snakemake's own account of one job."""
        return self.root / "benchmarks" / stage / context / f"{unit}.tsv"

    def account(self, stage: str, context: str, unit: str) -> Path:
        """A job's own account: tiles, and seconds by what they were spent on."""
        return self.root / "benchmarks" / stage / context / f"{unit}.json"

    def record(self, stage: str, context: str, item: str) -> Path:
        """Completion record of one item (a slide, a fold, …) of a stage."""
        return self.root / "state" / stage / context / "items" / f"{item}.json"

    def job_record(self, stage: str, context: str, unit: str) -> Path:
        """Completion record of one job: the state of each of its items."""
        return self.root.joinpath("state", stage, context, "jobs", f"{unit}.json")

    def account_of(self, job_record: Path) -> Path:
        """The account of the job that writes a record: beside the job's benchmark, whatever its stage is called."""
        parts = job_record.relative_to(self.root / "state").parts
        return self.root.joinpath("benchmarks", *parts[:-2], f"{job_record.stem}.json")
