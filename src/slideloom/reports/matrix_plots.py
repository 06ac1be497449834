"""Squares and stacks: confusion matrices, values by row and column, and where the time of a stage went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from slideloom.reports.svg import LABEL_PX, clip, percent, rule, svg, swatch, text, thousands

__all__ = ["Stack", "confusion_chart", "heat_chart", "stacked_chart"]

#: The darkest cell: text on it must stay readable in light and dark.
_DARKEST = 0.5


@dataclass(frozen=True)
class Stack:
    """A bar made of parts.

    Attributes
    ----------
    name : str
        Of the bar.
    parts : tuple of float
        Their lengths, in the order of the legend; their sum is at most 1.
    titles : tuple of str
        A line about each part.
    note : str
        Told at the end of the bar.
    """

    name: str
    parts: tuple[float, ...]
    titles: tuple[str, ...]
    note: str = ""


def confusion_chart(
    names: Sequence[tuple[str, str]],
    counts: Sequence[Sequence[int | None]],
    label: str,
    what: str,
    *,
    width: float = 520,
) -> Markup:
    """True classes by row, predicted by column; each cell the share of its row.

    Parameters
    ----------
    names : sequence of (str, str)
        Name and colour (``#rrggbb``, or empty) of each class.
    counts : sequence of sequence of int or None
        By true and predicted class; ``None`` where the pair cannot be.
    label : str
        Heading of the chart.
    what : str
        What is counted, such as ``"pixels"``.
    width : float
        In CSS pixels.
    """
    left, top = 138.0, 92.0
    # The last heading leans out to the right.
    step = min(52.0, (width - left - 44) / max(1, len(names)))
    high = max(19.0, min(30.0, step))
    height = top + high * len(names) + 6
    body = [text(8, 14, label, "start", "axis"), text(left - 26, top - 6, "true ↓, predicted →", "end", "tick")]
    for k, (name, colour) in enumerate(names):
        x, y = left + step * (k + 0.5), top + high * (k + 0.5)
        lean = f'transform="translate({x - 2:.1f} {top - 7:g}) rotate(-45)"'
        body.append(f'<g><title>{escape(name)}</title><text class="tick" {lean}>{escape(clip(name, 88))}</text></g>')
        body += [text(left - 26, y + 4, clip(name, left - 34), "end"), swatch(left - 20, y - 5, colour)]
    for row, ((true, _), own) in enumerate(zip(names, counts, strict=True)):
        whole = sum(count or 0 for count in own)
        for column, count in enumerate(own):
            if count is None:
                continue
            share = count / whole if whole else None
            x, y = left + step * column, top + high * row
            of = f", {percent(share)} of the true ones" if share is not None else ""
            told = f"{true} as {names[column][0]}: {thousands(count)} {what}{of}"
            mark = f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{step - 1:.1f}" height="{high - 1:.1f}"'
            mark += f' fill-opacity="{_DARKEST * (share or 0):.3f}"/>'
            if share is not None and share >= 0.005:
                kind = "small same" if row == column else "small"
                mark += text(x + step / 2, y + high / 2 + 4, f"{100 * share:.0f}", "middle", kind)
            body.append(f"<g><title>{escape(told)}</title>{mark}</g>")
    return svg(width, height, label, body)


def heat_chart(
    columns: Sequence[tuple[str, str]],
    rows: Sequence[tuple[str, Sequence[float | None]]],
    label: str,
    *,
    width: float = 1040,
) -> Markup:
    """Values from 0 to 1 as shaded cells: a row a series, a column a class.

    Parameters
    ----------
    columns : sequence of (str, str)
        Name and colour of each class.
    rows : sequence of (str, sequence of float or None)
        Name and values.
    label : str
        What the chart shows.
    width : float
        In CSS pixels.
    """
    left, top, high = LABEL_PX, 42.0, 18.0
    step = (width - left - 6) / max(1, len(columns))
    height = top + high * len(rows) + 6
    body = [text(8, 13, label, "start", "axis")]
    for k, (name, colour) in enumerate(columns):
        x = left + step * k
        body.append(f"<g><title>{escape(name)}</title>{swatch(x, top - 16, colour)}")
        body.append(text(x + (14 if colour else 0), top - 7, clip(name, step - 16), "start", "tick") + "</g>")
    for k, (name, values) in enumerate(rows):
        y = top + high * k
        body.append(text(left - 12, y + 13, clip(name), "end"))
        for column, value in enumerate(values):
            x = left + step * column
            told = "undefined" if value is None else f"{value:.3f}"
            place = f'x="{x:.1f}" y="{y:.1f}" width="{step - 1:.1f}" height="{high - 1:.1f}"'
            shade = _DARKEST * min(1.0, max(0.0, value or 0))
            mark = f'<rect class="cell" {place} fill-opacity="{shade:.3f}"/>'
            mark += text(x + step / 2, y + 13, "–" if value is None else f"{value:.2f}", "middle", "small")
            body.append(f"<g><title>{escape(f'{name}, {columns[column][0]}: {told}')}</title>{mark}</g>")
    return svg(width, height, label, body)


def stacked_chart(
    parts: Sequence[tuple[str, str]], rows: Sequence[Stack], label: str, *, width: float = 1040
) -> Markup:
    """Bars of parts, each as long as its share.

    Parameters
    ----------
    parts : sequence of (str, str)
        Names of the parts and the style classes of their colours; of a single part there is no legend.
    rows : sequence of Stack
        The bars.
    label : str
        What the chart shows.
    width : float
        In CSS pixels.
    """
    left, right, step = LABEL_PX, width - 120, 20.0
    body: list[str] = []
    across, line = float(left), 0
    for name, kind in parts if len(parts) > 1 else ():
        room = 36 + 6.6 * len(name)
        if across + room > width and across > left:
            across, line = left, line + 1
        box = f'<rect class="bar" x="{across:.1f}" y="{4 + 18 * line}" width="11" height="11" rx="3"/>'
        body.append(f'<g class="{kind}">{box}{text(across + 17, 14 + 18 * line, name)}</g>')
        across += room
    top = 44.0 + 18 * line if len(parts) > 1 else 24.0
    height = top + step * len(rows) + 4
    for k in range(6):
        x = left + (right - left) * k / 5
        body += [rule(x, top - 6, x, height - 4), text(x, top - 11, f"{20 * k} %", "middle", "tick")]
    for k, row in enumerate(rows):
        y, x = top + step * k, left
        body.append(text(left - 12, y + 13, clip(row.name), "end"))
        for (_, kind), share, told in zip(parts, row.parts, row.titles, strict=True):
            extent = (right - left) * max(0.0, share)
            if extent > 0:
                box = f'x="{x:.1f}" y="{y + 2:.1f}" width="{extent:.1f}" height="{step - 5:g}"'
                mark = f'<rect class="bar" {box}/>'
                body.append(f'<g class="{kind}"><title>{escape(told)}</title>{mark}</g>')
            x += extent
        body.append(text(x + 8, y + 13, row.note, "start", "value"))
    return svg(width, height, label, body)
