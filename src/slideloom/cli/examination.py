"""What the doctor prints: readable for three slides and for a thousand."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from slideloom.cli.screens import indented, plain_table, print_list
from slideloom.cli.slide_report import Fault, ImageReport, SlideReport
from slideloom.cli.surroundings import Finding, State
from slideloom.errors import printable

__all__ = ["print_examination", "print_findings"]

_LEAST_CHANNELS = 12
#: Slides that have a line of their own; of more, only those that will fail have.
_ALL = 40
#: Of these, so many; of one reason, so many told in full, and so many named; and so many notes.
_MOST_BAD, _TOLD, _NAMED, _NOTES = 20, 5, 30, 20
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_STATES: dict[State, str] = {
    "fine": "[green]fine[/]",
    "note": "[yellow]note[/]",
    "wrong": "[bold red]wrong[/]",
    "skipped": "[dim]not looked at[/]",
}


def print_examination(reports: Sequence[SlideReport], screen: Console) -> None:
    """Print a line an image, slides that will fail first; then what is wrong, and what is worth knowing.

    Of more than 40 slides, those that can run are counted by platform instead, and no list is longer than a few
    screens: the Parquet table has everything.
    """
    bad = [report for report in reports if not report.good]
    good = [report for report in reports if report.good]
    if len(reports) <= _ALL:
        _print_slides([*bad, *good], screen)
    else:
        if bad:
            _print_slides(bad[:_MOST_BAD], screen)
            if len(bad) > _MOST_BAD:
                screen.print(f"… and {len(bad) - _MOST_BAD} more that will fail; --table writes all of them")
            screen.print()
        _print_counts(good, screen)
    if bad:
        screen.print("\n[bold]What is wrong[/]")
        _print_faults(bad, screen)
    holders: dict[str, tuple[str, list[str]]] = {}
    for report in reports:
        for warning in report.warnings:
            # Of warnings that differ by a number only, the first stands for all.
            holders.setdefault(_NUMBER.sub("#", warning), (warning, []))[1].append(report.slide_id)
    notes = [printable(f"{_slides(slides)}: {text}") for text, slides in holders.values()]
    if len(notes) > _NOTES:
        notes = [*notes[:_NOTES], f"and {len(notes) - _NOTES} more; --table writes all of them"]
    print_list("Worth knowing", notes, screen)


def print_findings(found: Sequence[Finding], screen: Console) -> None:
    """Print what was found besides the slides, a line or a few each."""
    screen.print("\n[bold]Besides the slides[/]")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    topic = ""
    for one in found:
        grid.add_row(
            "" if one.topic == topic else f"  {escape(one.topic)}", _STATES[one.state], Text(printable(one.text))
        )
        if one.hint:
            grid.add_row("", "", Text(printable(f"→ {one.hint}"), style="dim"))
        topic = one.topic
    screen.print(grid)


# ---- slides ----------------------------------------------------------------------------------------------------------


def _print_slides(reports: Sequence[SlideReport], screen: Console) -> None:
    lines = [(report, image, _image_cells(report, image)) for report in reports for image in (report.images or (None,))]
    titles = ("slide", "image", "width × height", "µm/px", "annotation", "state")
    others = sum(max(len(title), *(len(cells[at]) for *_, cells in lines)) + 2 for at, title in enumerate(titles))
    room = screen.width - others
    table = plain_table()
    for title in (*titles[:4], "channels", *titles[4:]):
        right = title == "width × height"
        table.add_column(title, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    for report, image, (slide, name, size, mpp, annotation, state) in lines:
        if report.images and image is not report.images[0]:
            slide = annotation = state = ""
        cells = (slide, name, size, mpp, _channels_text(image, room), annotation)
        table.add_row(*(Text(_line(cell)) for cell in cells), Text(state, style="green" if report.good else "bold red"))
    # Where the terminal is too narrow, its own wrapping loses less than cutting ids and reason codes would.
    shown, screen.width = screen.width, max(screen.width, others + _LEAST_CHANNELS)
    screen.print(table, crop=False)
    screen.width = shown


def _print_counts(reports: Sequence[SlideReport], screen: Console) -> None:
    """A line a platform and image."""
    groups: dict[tuple[str, str], list[tuple[SlideReport, ImageReport]]] = defaultdict(list)
    for report in reports:
        for image in report.images:
            groups[report.platform, image.image].append((report, image))
    table = plain_table()
    titles = ("good slides", "platform", "image", "width × height", "µm/px", "channels", "annotated")
    for title in titles:
        right = title in ("good slides", "width × height", "annotated")
        table.add_column(title, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    for (platform, name), members in sorted(groups.items()):
        images = [image for _, image in members]
        width, height = _range(images, lambda one: one.width_px), _range(images, lambda one: one.height_px)
        dtypes = "/".join(name for name, _ in Counter(one.dtype or "?" for one in images).most_common(2))
        channels = f"{'RGB' if name == 'he' else _range(images, lambda one: one.n_channels)} {dtypes}"
        annotated = sum(report.annotated for report, _ in members)
        cells = (str(len(members)), platform, name, f"{width} × {height}", _range(images, lambda one: one.mpp_um))
        table.add_row(*(Text(_line(cell)) for cell in (*cells, channels, str(annotated))))
    screen.print(table, crop=False)


def _range(images: Iterable[ImageReport], value: Callable[[ImageReport], float | None]) -> str:
    known = sorted(found for one in images if (found := value(one)) is not None)
    if not known:
        return "?"
    low, high = f"{known[0]:.6g}", f"{known[-1]:.6g}"
    return low if low == high else f"{low}–{high}"


def _print_faults(reports: Sequence[SlideReport], screen: Console) -> None:
    """Every fault of few slides; of many, some of each reason, and the other slides by name."""
    by_code: dict[str, list[tuple[SlideReport, Fault]]] = defaultdict(list)
    for report in reports:
        for fault in report.faults:
            by_code[fault.code].append((report, fault))
    few = sum(len(held) for held in by_code.values()) <= _ALL // 2
    for code, held in sorted(by_code.items(), key=lambda one: (-len(one[1]), one[0])):
        told = held if few or len(held) == _TOLD + 1 else held[:_TOLD]
        for report, fault in told:
            screen.print(f"  [bold]{escape(_line(report.slide_id))}[/]  [red]{escape(code)}[/]")
            screen.print(indented(printable(fault.message), 4))
            if fault.hint:
                screen.print(indented(printable(f"→ {fault.hint}"), 4, "dim"))
        if others := [report.slide_id for report, _ in held[len(told) :]]:
            named = ", ".join(others[:_NAMED]) + (", …" if len(others) > _NAMED else "")
            screen.print(f"  [bold]{len(others)} more[/]  [red]{escape(code)}[/]")
            screen.print(indented(named, 4))


def _line(text: str) -> str:
    """Text of a cell, which has one line."""
    return printable(text.replace("\n", "\\n"))


def _slides(slides: Sequence[str]) -> str:
    return slides[0] if len(slides) == 1 else f"{slides[0]} and {len(slides) - 1} more"


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
