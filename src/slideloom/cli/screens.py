"""What the commands print: tables and lists for people."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from slideloom.errors import ConfigError, Problem, SlideloomError
from slideloom.slides.study import Study

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["console", "indented", "plain_table", "print_error", "print_frame", "print_list", "print_study"]

_PIPE_WIDTH = 160


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
            screen.print(indented(f"→ {error.hint}", 7, "dim"))
        return
    count = len(error.problems)
    for number, problem in enumerate(error.problems, 1):
        _print_problem(number, problem, screen, len(str(count)))
    screen.print(f"\n[bold red]{count} {'mistake' if count == 1 else 'mistakes'}[/]; nothing was run.")


def plain_table() -> Table:
    """A table without lines."""
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def indented(text: str, spaces: int, style: str = "") -> Padding:
    """Text with room before every line of it."""
    return Padding(Text(text, style=style), (0, 0, 0, spaces), expand=False)


def _print_problem(number: int, problem: Problem, screen: Console, digits: int) -> None:
    screen.print(f"[bold]{number:>{digits}}[/]  [cyan]{escape(problem.where)}[/]", soft_wrap=True)
    screen.print(indented(problem.what, digits + 2))
    if problem.hint:
        screen.print(indented(f"→ {problem.hint}", digits + 2, "dim"))


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
    table = plain_table()
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
    print_list("Worth knowing", study.warnings, screen)


def print_list(title: str, lines: Iterable[str], screen: Console) -> None:
    """Print a titled list; nothing where there is no line."""
    listed = list(lines)
    if listed:
        screen.print(f"\n[bold]{title}[/]")
    for line in listed:
        grid = Table.grid(padding=(0, 1))
        grid.add_row("  •", escape(line))
        screen.print(grid)


def print_frame(frame: pd.DataFrame, columns: Sequence[str], screen: Console) -> None:
    """Print columns of a table; undefined values as a dash, real numbers with three digits."""
    table = plain_table()
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
