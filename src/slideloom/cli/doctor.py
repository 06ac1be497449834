"""``slideloom doctor``: everything that can be known before a run, and whether it may start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slideloom.cli.disk_estimate import estimate
from slideloom.cli.examination import print_examination, print_findings
from slideloom.cli.examine import examine
from slideloom.cli.screens import console
from slideloom.cli.slurm_settings import slurm
from slideloom.cli.surroundings import Finding, disk, gpu, weights
from slideloom.cli.verdict import empty_sides, fruitless

if TYPE_CHECKING:
    from rich.console import Console

    from slideloom.cli.slide_report import SlideReport
    from slideloom.slides.study import Study

__all__ = ["look_after"]


def look_after(
    study: Study,
    *,
    deep: bool = False,
    workers: int | None = None,
    table: Path | None = None,
    profile: str | None = None,
) -> tuple[bool, int]:
    """Look at every slide and at what a run needs besides, and print it.

    Parameters
    ----------
    study : Study
        The checked study.
    deep : bool
        Also read every pixel, every annotation and every file of weights once.
    workers : int, optional
        Processes; see :func:`slideloom.cli.examine.examine`.
    table : Path, optional
        Where the findings belong as Parquet.
    profile : str, optional
        The profile that Snakemake will be given.

    Returns
    -------
    may_start : bool
        A good slide is on every side that a training needs, the disk suffices, no weights are missing; and the cluster
        knows the settings of the profile, where one is named.
    bad : int
        Slides that will fail.
    """
    screen = console()
    reports = _examine(study, deep, workers)
    if table is not None:
        from slideloom.cli.findings import write_findings

        write_findings(reports, table)
    print_examination(reports, screen)
    found = disk(study, estimate(study, reports))
    found += [*weights(study, digest=deep), *gpu(), *slurm(study, profile)]
    print_findings(found, screen)
    if table is not None:
        screen.print(f"\nFindings of the slides: {table}", soft_wrap=True, markup=False)
    bad = sum(not report.good for report in reports)
    return _verdict(study, reports, found, bad, screen), bad


def _verdict(study: Study, reports: list[SlideReport], found: list[Finding], bad: int, screen: Console) -> bool:
    good, obstacles = len(reports) - bad, empty_sides(study, reports)
    obstacles += [f"{one.topic}: see above" for one in found if one.state == "wrong"]
    failing = f", [bold red]{bad} will fail[/]; the others finish without them" if bad else ""
    style = "bold green" if good else "bold red"
    screen.print(f"\n[{style}]{good} of {len(reports)} slides can run[/]{failing}.")
    for text in fruitless(study, reports):
        screen.print(f"  • {text}", markup=False)
    if obstacles:
        screen.print("[bold red]The run should not start:[/]")
        for text in dict.fromkeys(obstacles):
            screen.print(f"  • {text}", markup=False)
    else:
        screen.print("[bold green]The run may start.[/]")
    return not obstacles


def _examine(study: Study, deep: bool, workers: int | None) -> list[SlideReport]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    found = {}
    screen = console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("reading every pixel" if deep else "reading headers", total=len(study.rows))
        for report in examine(study, deep=deep, workers=workers):
            found[report.slide_id] = report
            progress.advance(task)
    return [found[row.slide_id] for row in study.rows]
