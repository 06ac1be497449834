"""The job of the rule ``maps`` where slides were predicted in bands: each slide's bands become one store."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from slideloom.inference.bands import join_bands
from slideloom.workflow.job import Job

__all__ = ["run_join"]


def run_join(job: Job) -> None:
    """Join the bands of the job's slides."""
    run = (job.wildcards["experiment"], job.wildcards["fold"])
    n_bands = len(job.inputs["bands"])

    def work(slide: str) -> Iterable[Path]:
        bands = [job.paths.maps_band(*run, slide, str(band)) for band in range(n_bands)]
        place = job.paths.maps(*run, slide)
        # A slide of few rows has fewer bands.
        join_bands([band for band in bands if band.exists()], place)
        return [place]

    job.run(work, requires=["facts", "bands"])
