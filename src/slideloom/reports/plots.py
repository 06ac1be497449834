"""Charts of the report as inline SVG: no script, no picture files, colours of the page, light or dark.

Series are numbered; number k takes the page's colour ``--e{k}``. Every mark carries a ``<title>`` with its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

__all__ = [
    "SERIES_COLOURS",
    "Dot",
    "Line",
    "class_bars",
    "frequency_chart",
    "hex_colour",
    "interval_chart",
    "interval_grid",
    "line_chart",
]

#: Colours that the page defines; further series start again from the first.
SERIES_COLOURS = 8
_LABEL_PX = 168
_TEXT_PX = 6.6  # a cautious mean width of one letter at 12 px


@dataclass(frozen=True)
class Dot:
    """One value of one series.

    Attributes
    ----------
    series : int
        Number of the series.
    name : str
        Its name.
    value : float or None
        ``None`` is told as "undefined".
    low, high : float or None
        Ends of its interval.
    note : str
        Appended to its title, such as ``"n = 4"``.
    """

    series: int
    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes
    ----------
    series : int
        Number of the series, for its colour.
    name : str
        For its title and the legend.
    points : sequence of (float, float)
        x and y.
    dashed : bool
        Drawn dashed.
    mark : float or None
        x of a point to mark.
    """

    series: int
    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    mark: float | None = None


def _svg(width: float, height: float, label: str, body: Sequence[str]) -> Markup:
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
    return Markup(f'<svg class="chart" {size} role="img" aria-label="{escape(label)}">{"".join(body)}</svg>')


def hex_colour(colour: tuple[int, int, int]) -> str:
    """Red, green and blue as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    kind_text = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind_text}>{escape(text)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _clip(text: str, room_px: float = _LABEL_PX - 14) -> str:
    most = int(room_px / _TEXT_PX)
    return text if len(text) <= most else text[: most - 1] + "…"


def _series(number: int) -> str:
    return f"s{number % SERIES_COLOURS}"


def _title(dot: Dot) -> str:
    value = "undefined" if dot.value is None else f"{dot.value:.3f}"
    interval = f" (95 % {dot.low:.3f} to {dot.high:.3f})" if dot.low is not None and dot.high is not None else ""
    note = f", {dot.note}" if dot.note else ""
    return f"<title>{escape(dot.name)}: {value}{interval}{escape(note)}</title>"


def interval_chart(rows: Sequence[tuple[str, Sequence[Dot]]], width: float = 1040) -> Markup:
    """Dots with intervals on an axis from 0 to 1: a block a metric, a line a series.

    Parameters
    ----------
    rows : sequence of (str, sequence of Dot)
        Metric and its dots.
    width : float
        In CSS pixels.
    """
    left, right, step, gap = _LABEL_PX, width - 52, 15.0, 11.0
    height = 26 + sum(step * len(dots) + gap for _, dots in rows)
    body = []
    for k in range(6):
        x = left + (right - left) * k / 5
        body += [_rule(x, 18, x, height - 4), _text(x, 12, f"{k / 5:.1f}", "middle", "tick")]
    y = 26.0
    for metric, dots in rows:
        body.append(_text(left - 12, y + step * len(dots) / 2 + 4, _clip(metric), "end"))
        for dot in dots:
            middle = y + step / 2
            if dot.value is None:
                told = _text(left + 4, middle + 4, "undefined", "start", "tick")
                body.append(f'<g class="{_series(dot.series)}">{_title(dot)}{told}</g>')
            else:
                x = left + (right - left) * min(1, max(0, dot.value))
                mark = f'<circle class="dot" cx="{x:.1f}" cy="{middle:.1f}" r="4.5"/>'
                if dot.low is not None and dot.high is not None:
                    ends = [left + (right - left) * min(1, max(0, end)) for end in (dot.low, dot.high)]
                    mark = _rule(ends[0], middle, ends[1], middle, "span") + mark
                number = _text(right + 8, middle + 4, f"{dot.value:.3f}", "start", "value")
                body.append(f'<g class="{_series(dot.series)}">{_title(dot)}{mark}{number}</g>')
            y += step
        y += gap
        body.append(_rule(left - 160, y - gap / 2, right + 46, y - gap / 2, "faint"))
    return _svg(width, height, "Mean of each metric with its interval, by experiment", body)


def interval_grid(columns: Sequence[tuple[str, Sequence[Dot]]], width: float = 1160) -> Markup:
    """Dots with intervals for many series: a line a series, a column a metric, each column on its own scale.

    Parameters
    ----------
    columns : sequence of (str, sequence of Dot)
        Metric and the dots of all series, in the same order.
    width : float
        In CSS pixels.
    """
    left, step, top = _LABEL_PX, 17.0, 34.0
    room = (width - left - 8) / max(1, len(columns))
    names = [dot.name for dot in columns[0][1]] if columns else []
    height = top + step * len(names) + 6
    body = []
    for k, name in enumerate(names):
        y = top + step * (k + 0.5)
        if k % 2:
            body.append(f'<rect class="band" x="0" y="{y - step / 2:.1f}" width="{width:g}" height="{step:g}"/>')
        body.append(_text(left - 12, y + 4, _clip(name), "end"))
    for number, (metric, dots) in enumerate(columns):
        start, stop = left + room * number + 6, left + room * (number + 1) - 44
        values = [end for dot in dots for end in (dot.value, dot.low, dot.high) if end is not None]
        low, high = min(values, default=0.0), max(values, default=1.0)
        span = (high - low) or 1.0
        body.append(_text(start, 12, _clip(metric, room - 4)))
        body += [_text(start, 26, f"{low:.2f}", "start", "tick"), _text(stop, 26, f"{high:.2f}", "end", "tick")]
        body += [_rule(x, 30, x, height - 4) for x in (start, stop)]
        for k, dot in enumerate(dots):
            y = top + step * (k + 0.5)
            if dot.value is None:
                mark = _text(stop + 38, y + 4, "–", "end", "tick")
            else:
                x, *ends = (
                    start + (stop - start) * ((dot.value if v is None else v) - low) / span
                    for v in (dot.value, dot.low, dot.high)
                )
                mark = _rule(ends[0], y, ends[1], y, "span")
                mark += f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>'
                mark += _text(stop + 38, y + 4, f"{dot.value:.3f}", "end", "value")
            body.append(f'<g class="{_series(dot.series)}">{_title(dot)}{mark}</g>')
    return _svg(width, height, "Mean of each metric with its interval, by experiment", body)


def class_bars(rows: Sequence[tuple[str, str, Sequence[Dot]]], width: float = 1040) -> Markup:
    """Bars from 0 to 1: a block a class, a bar a series.

    Parameters
    ----------
    rows : sequence of (str, str, sequence of Dot)
        Class name, its colour (``#rrggbb``, or empty), and its values.
    width : float
        In CSS pixels.
    """
    left, right, step, gap = _LABEL_PX, width - 52, 12.0, 10.0
    height = 24 + sum(step * len(dots) + gap for _, _, dots in rows)
    body = []
    for k in range(6):
        x = left + (right - left) * k / 5
        body += [_rule(x, 18, x, height - 4), _text(x, 12, f"{k / 5:.1f}", "middle", "tick")]
    y = 24.0
    for name, colour, dots in rows:
        middle = y + step * len(dots) / 2
        body.append(_text(left - 26, middle + 4, _clip(name, _LABEL_PX - 30), "end"))
        body.append(_swatch(left - 20, middle - 5, colour))
        for dot in dots:
            extent = (right - left) * min(1, max(0, dot.value or 0))
            place = f'x="{left}" y="{y + 1:.1f}" width="{max(extent, 0.8):.1f}" height="{step - 2:.1f}"'
            bar = f'<rect class="bar" {place} rx="1.5"/>'
            told = "–" if dot.value is None else f"{dot.value:.2f}"
            number = _text(left + extent + 6, y + step - 2.4, told, "start", "value small")
            body.append(f'<g class="{_series(dot.series)}">{_title(dot)}{"" if dot.value is None else bar}{number}</g>')
            y += step
        y += gap
    return _svg(width, height, "Dice of each class, by experiment", body)


def _swatch(x: float, y: float, colour: str) -> str:
    if not colour:
        return ""
    return f'<rect class="swatch" x="{x:.1f}" y="{y:.1f}" width="10" height="10" rx="2" fill="{escape(colour)}"/>'


def frequency_chart(
    rows: Sequence[tuple[str, str, float | None, float | None]], series: int, width: float = 520
) -> Markup:
    """True against predicted share of each class, on a logarithmic axis.

    Parameters
    ----------
    rows : sequence of (str, str, float or None, float or None)
        Class name, colour, true and predicted share.
    series : int
        Number of the experiment, for its colour.
    width : float
        In CSS pixels.
    """
    shares = [share for row in rows for share in row[2:] if share]
    lowest = math.floor(math.log10(min(shares, default=0.1)))
    lowest = max(-6, min(-1, lowest))
    left, right, step = 128.0, width - 16, 19.0
    height = 26 + step * len(rows)

    def place(share: float) -> float:
        return left + (right - left) * min(1.0, max(0.0, 1 - math.log10(max(share, 10.0**lowest)) / lowest))

    body = []
    for power in range(lowest, 1):
        x = place(10.0**power)
        body += [_rule(x, 18, x, height - 6), _text(x, 12, f"{100 * 10.0**power:g} %", "middle", "tick")]
    for k, (name, colour, true, predicted) in enumerate(rows):
        y = 30 + step * k
        body.append(_text(left - 26, y + 4, _clip(name, 106), "end"))
        body.append(_swatch(left - 20, y - 5, colour))
        told = f"{name}: true {_percent(true)}, predicted {_percent(predicted)}"
        marks = [f"<title>{escape(told)}</title>"]
        if true is not None and predicted is not None:
            marks.append(_rule(place(true), y, place(predicted), y, "span"))
        if true is not None:
            x = place(true)
            diamond = f"M{x - 5.5:.1f} {y:g}l5.5 -5.5 5.5 5.5 -5.5 5.5z"
            marks.append(f'<path class="truth{" none" if not true else ""}" d="{diamond}"/>')
        if predicted is not None:
            kind = "dot" if predicted else "dot none"
            marks.append(f'<circle class="{kind}" cx="{place(predicted):.1f}" cy="{y:g}" r="4.2"/>')
        body.append(f'<g class="{_series(series)}">{"".join(marks)}</g>')
    return _svg(width, height, "True and predicted share of each class", body)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.3g} %"


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from a little below ``low`` to a little above ``high``."""
    span = (high - low) or abs(high) or 1.0
    raw = span / 4
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def line_chart(lines: Sequence[Line], label: str, width: float = 540, height: float = 210) -> Markup:
    """Curves over epochs.

    Parameters
    ----------
    lines : sequence of Line
        Curves; points that are not finite are left out.
    label : str
        What the vertical axis shows.
    width, height : float
        In CSS pixels.
    """
    points = [point for line in lines for point in line.points if math.isfinite(point[1])]
    left, right, top, bottom = 46.0, width - 12, 26.0, height - 22
    body = [_text(8, 13, label, "start", "axis")]
    if not points:
        return _svg(width, height, label, [*body, _text(width / 2, height / 2, "no values", "middle", "tick")])
    ticks = _ticks(min(y for _, y in points), max(y for _, y in points))
    first, last = min(x for x, _ in points), max(x for x, _ in points)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        return left + (right - left) * across, bottom - (bottom - top) * (y - ticks[0]) / (ticks[-1] - ticks[0])

    for tick in ticks:
        y = at(first, tick)[1]
        body += [_rule(left, y, right, y), _text(left - 6, y + 4, f"{tick:.4g}", "end", "tick")]
    across = sorted({first, last, *(x for x in _ticks(first, last) if first < x < last and x == int(x))})
    for x in across:
        near_end = x not in (first, last) and at(last, ticks[0])[0] - at(x, ticks[0])[0] < 24
        if not near_end:
            body.append(_text(at(x, ticks[0])[0], height - 6, f"{x:g}", "middle", "tick"))
    for line in lines:
        finite = [point for point in line.points if math.isfinite(point[1])]
        if not finite:
            continue
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (at(*point) for point in finite))
        kind = "curve dashed" if line.dashed else "curve"
        marks = f'<title>{escape(line.name)}</title><path class="{kind}" d="{path}"/>'
        if len(finite) == 1:
            x, y = at(*finite[0])
            marks += f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
        marked = [point for point in finite if line.mark is not None and point[0] == line.mark]
        for point in marked:
            x, y = at(*point)
            told = f"{line.name}: best, epoch {point[0]:g}, {point[1]:.4g}"
            marks += f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(told)}</title></circle>'
        body.append(f'<g class="{_series(line.series)}">{marks}</g>')
    return _svg(width, height, label, body)
