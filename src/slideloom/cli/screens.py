"""What the commands print: tables and lists for people."""

from __future__ import annotations

import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from slideloom.cli.slide_report import ImageReport, SlideReport
from slideloom.errors import ConfigError, Problem, SlideloomError
from slideloom.slides.study import Study

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["console", "print_error", "print_examination", "print_frame", "print_study"]

_PIPE_WIDTH = 160
_LEAST_CHANNELS = 12


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, or wide enough for the tables when there is none."""
    stream = sys.stderr if stderr else sys.stdout
    width = shutil.get_terminal_size().columns if stream.isatty() else _PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


def print_error(error: SlideloomError, screen: Console) -> None:
    """Print an error: what, where, and how to mend it; every mistake of a :class:`~slideloom.errors.ConfigError`."""
    if not isinstance(error, ConfigError):
        screen.print(f"[bold red]error:[/] {escape(error.message)}")
        if error.hint:
            screen.print(_indented(f"→ {error.hint}", 7, "dim"))
        return
    count = len(error.problems)
    for number, problem in enumerate(error.problems, 1):
        _print_problem(number, problem, screen, len(str(count)))
    screen.print(f"\n[bold red]{count} {'mistake' if count == 1 else 'mistakes'}[/]; nothing was run.")


def _plain_table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _indented(text: str, spaces: int, style: str = "") -> Padding:
    return Padding(Text(text, style=style), (0, 0, 0, spaces), expand=False)


def _print_problem(number: int, problem: Problem, screen: Console, digits: int) -> None:
    screen.print(f"[bold]{number:>{digits}}[/]  [cyan]{escape(problem.where)}[/]", soft_wrap=True)
    screen.print(_indented(problem.what, digits + 2))
    if problem.hint:
        screen.print(_indented(f"→ {problem.hint}", digits + 2, "dim"))


def print_study(study: Study, screen: Console) -> None:
    """Print what a checked study holds."""
    rows, config = study.rows, study.config
    counts = {name: sum(bool(getattr(row, name)) for row in rows) for name in ("he", "sp", "instances", "classes")}
    patients = len({row.patient_id for row in rows})
    screen.print(f"[bold green]fine[/]  study [bold]{escape(config.study)}[/] ({escape(str(study.config_path))})\n")
    facts = Table.grid(padding=(0, 2))
    facts.add_row(
        "slides",
        f"{len(rows)} of {patients} patients: {counts['he']} with he, {counts['sp']} with sp, "
        f"{counts['instances']} annotated, {counts['classes']} with classes",
    )
    platforms = Counter(row.platform for row in rows)
    facts.add_row("platforms", escape(", ".join(f"{name} ({count})" for name, count in sorted(platforms.items()))))
    if study.markers.channels:
        nuclear = sorted({channel.marker for channel in study.markers.channels if channel.nuclear})
        facts.add_row(
            "markers", escape(f"{len(study.markers.markers)}, of these nuclear: {', '.join(nuclear) or 'none'}")
        )
    if len(study.classes):
        facts.add_row("classes", escape(f"{len(study.classes)}: {', '.join(study.classes.names)}"))
    facts.add_row("results", escape(str(study.paths.root)))
    screen.print(facts)
    table = _plain_table()
    for title in ("experiment", "encoder", "grid", "split", "slides", "heads"):
        table.add_column(title, justify="right" if title == "slides" else "left", no_wrap=title != "heads")
    for name, experiment in config.experiments.items():
        grid_name = study.grid_of(name)
        grid = config.grids[grid_name]
        split = config.splits[experiment.split]
        scale = f" at {grid.mpp_um:g} µm" if grid.mpp_um else ""
        folds = f" × {split.folds}" if split.scheme == "kfold" else ""
        cells = (
            name,
            " + ".join(f"{one} ({config.encoders[one].model})" for one in experiment.encoder)
            or f"labels of another program: {experiment.labels}",
            f"{grid_name} ({grid.image}, {grid.tile_px} px{scale})",
            f"{experiment.split} ({split.scheme}{folds})",
            str(len(study.experiment_slides(name))),
            ", ".join(experiment.heads) if experiment.labels is None else "–",
        )
        table.add_row(*(escape(cell) for cell in cells))
    screen.print(Padding(table, (1, 0, 0, 0), expand=False))
    _print_list("Worth knowing", study.warnings, screen)


def print_examination(reports: Sequence[SlideReport], screen: Console) -> None:
    """Print a row an image, then what is wrong and what is worth knowing."""
    lines = [(report, image, _image_cells(report, image)) for report in reports for image in (report.images or (None,))]
    titles = ("slide", "image", "width × height", "µm/px", "annotation", "state")
    others = sum(max(len(title), *(len(cells[at]) for *_, cells in lines)) + 2 for at, title in enumerate(titles))
    room = screen.width - others
    table = _plain_table()
    for title in (*titles[:4], "channels", *titles[4:]):
        right = title == "width × height"
        table.add_column(title, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    for report, image, (slide, name, size, mpp, annotation, state) in lines:
        if report.images and image is not report.images[0]:
            slide = annotation = state = ""
        cells = (slide, name, size, mpp, _channels_text(image, room), annotation)
        table.add_row(*map(Text, cells), Text(state, style="green" if report.good else "bold red"))
    # Where the terminal is too narrow, its own wrapping loses less than cutting ids and reason codes would.
    shown, screen.width = screen.width, max(screen.width, others + _LEAST_CHANNELS)
    screen.print(table, crop=False)
    screen.width = shown
    bad = [report for report in reports if not report.good]
    if bad:
        screen.print("\n[bold]What is wrong[/]")
    for report in bad:
        for fault in report.faults:
            screen.print(f"  [bold]{escape(report.slide_id)}[/]  [red]{fault.code}[/]")
            screen.print(_indented(fault.message, 4))
            if fault.hint:
                screen.print(_indented(f"→ {fault.hint}", 4, "dim"))
    holders: dict[str, list[str]] = defaultdict(list)
    for report in reports:
        for warning in report.warnings:
            holders[warning].append(report.slide_id)
    _print_list("Worth knowing", (f"{_slides(slides)}: {text}" for text, slides in holders.items()), screen)


def _slides(slides: Sequence[str]) -> str:
    return slides[0] if len(slides) == 1 else f"{slides[0]} and {len(slides) - 1} more"


def _print_list(title: str, lines: Iterable[str], screen: Console) -> None:
    listed = list(lines)
    if listed:
        screen.print(f"\n[bold]{title}[/]")
    for line in listed:
        grid = Table.grid(padding=(0, 1))
        grid.add_row("  •", escape(line))
        screen.print(grid)


def _image_cells(report: SlideReport, image: ImageReport | None) -> tuple[str, str, str, str, str, str]:
    size = f"{image.width_px} × {image.height_px}" if image and image.width_px else "?"
    mpp = f"{image.mpp_um:.4g} {image.mpp_source}" if image and image.mpp_um else "?"
    shape = report.annotation
    annotation = f"{shape[1]} × {shape[0]}" if shape else "–"
    if report.n_annotated is not None:
        annotation += f", {report.n_annotated} nuclei"
    state = "fails" if report.faults else "ok"
    if len({fault.code for fault in report.faults}) == 1:
        state += f": {report.faults[0].code}"
    elif report.faults:
        state += f": {len(report.faults)} reasons"
    return report.slide_id, image.image if image else "", size, mpp, annotation, state


def _channels_text(image: ImageReport | None, room: int) -> str:
    if image is None or image.n_channels is None:
        return "?"
    if image.image == "he":
        return f"RGB {image.dtype}"
    text = f"{image.n_channels} {image.dtype}"
    names = list(image.channels)
    if not names or len(text) + len(names[0]) + 5 > room:
        return text
    shown = ""
    for index, name in enumerate(names):
        longer = f"{shown}, {name}" if shown else name
        tail = ", …" if index < len(names) - 1 else ""
        if shown and len(f"{text}: {longer}{tail}") > room:
            return f"{text}: {shown}, …"
        shown = longer
    return f"{text}: {shown}"


def print_frame(frame: pd.DataFrame, columns: Sequence[str], screen: Console) -> None:
    """Print columns of a table; undefined values as a dash, real numbers with three digits."""
    table = _plain_table()
    kinds = {name: frame[name].dtype.kind for name in columns}
    for name in columns:
        table.add_column(name, justify="right" if kinds[name] in "fiu" else "left", no_wrap=True)
    for values in frame[list(columns)].itertuples(index=False):
        table.add_row(*(Text(_value(value, kinds[name])) for name, value in zip(columns, values, strict=True)))
    screen.print(table)


def _value(value: Any, kind: str) -> str:
    if value is None or value != value:  # NaN and pandas.NA
        return "–"
    return f"{value:.3f}" if kind == "f" else str(value)
