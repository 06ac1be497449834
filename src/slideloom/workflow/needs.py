"""Memory and time that a job asks of a cluster: by its stage, by the slides before it, by the attempt.

The figures are generous first guesses on purpose: a job that is killed for want of memory or time is run again with
more, but its queueing time is lost. ``reports/costs.parquet`` says what jobs really took; a profile's ``set-resources``
replaces any of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from slideloom.workflow.bins import Load

__all__ = ["NEEDS", "Need", "mem_mb", "runtime_min"]

#: The longest that is asked for, minutes: a week, which few partitions grant more than.
_LONGEST_MIN = 7 * 24 * 60


@dataclass(frozen=True)
class Need:
    """What the jobs of a stage need at the first attempt.

    Attributes
    ----------
    mb, mb_per_gb : int
        Memory of any job, and of each 10⁹ bytes of its heaviest slide, MB. Stages work in windows, so slides add
        little; tables of nuclei grow with the slide.
    minutes : int
        Time of any job, minutes.
    minutes_per_slide, minutes_per_gb : float
        Time of each slide, and of each 10⁹ bytes of all slides, minutes.
    """

    mb: int
    minutes: int
    mb_per_gb: int = 0
    minutes_per_slide: float = 0.0
    minutes_per_gb: float = 0.0


NEEDS: dict[str, Need] = {
    "facts": Need(2_000, 15, 0, 0.5, 1.0),
    "tissue": Need(4_000, 15, 250, 1.0, 1.0),
    "patches": Need(8_000, 30, 250, 1.0, 5.0),
    "targets": Need(8_000, 30, 500, 1.0, 5.0),
    "cell_targets": Need(8_000, 30, 500, 1.0, 5.0),
    "splits": Need(2_000, 15),
    "statistics": Need(8_000, 60, 0, 0.2),
    "embeddings": Need(32_000, 60, 250, 1.0, 8.0),
    "train": Need(64_000, 1440),
    "train_live": Need(64_000, 2880),
    "pretrained": Need(8_000, 15),
    "bands": Need(32_000, 60, 250, 1.0, 8.0),
    "maps": Need(32_000, 60, 250, 1.0, 8.0),
    "verifier": Need(16_000, 60, 500, 0.5, 3.0),
    "instances": Need(16_000, 60, 500, 1.0, 6.0),
    "imported": Need(16_000, 60, 500, 1.0, 6.0),
    "biology": Need(16_000, 30, 500, 1.0, 5.0),
    "exports": Need(16_000, 30, 500, 1.0, 5.0),
    "metrics": Need(16_000, 30, 500, 1.0, 5.0),
    "reports": Need(8_000, 60, 0, 0.1),
    "report_html": Need(8_000, 30, 0, 0.05),
    "report_figures": Need(8_000, 30, 0, 0.05),
}


def mem_mb(stage: str, load: Load, attempt: int) -> int:
    """Memory that a job asks for.

    Parameters
    ----------
    stage : str
        The stage.
    load : Load
        What is before the job; of a stage that is not worked slide by slide, the whole cohort.
    attempt : int
        1 at first; each further attempt asks for as much again.

    Returns
    -------
    int
        MB.
    """
    need = NEEDS[stage]
    return attempt * round(need.mb + need.mb_per_gb * load.heaviest_gb)


def runtime_min(stage: str, load: Load, attempt: int) -> int:
    """Time that a job asks for.

    Parameters
    ----------
    stage, load, attempt
        As :func:`mem_mb` has them.

    Returns
    -------
    int
        Whole minutes, a week at most.
    """
    need = NEEDS[stage]
    minutes = need.minutes + need.minutes_per_slide * load.slides + need.minutes_per_gb * load.gb
    return min(attempt * round(minutes), _LONGEST_MIN)
