"""Charts of the report as inline SVG: no script, no picture files, colours of the page, light or dark.

Series are numbered; number k takes the page's colour ``--e{k}``. Every mark carries a ``<title>`` with its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from slideloom.reports.svg import LABEL_PX, clip, percent, rule, series_class, svg, swatch, text, ticks

__all__ = ["Dot", "Line", "class_bars", "frequency_chart", "interval_chart", "interval_grid", "line_chart"]


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


def _title(dot: Dot, spec: str = ".3f", ends: str = "95 %") -> str:
    value = "undefined" if dot.value is None else f"{dot.value:{spec}}"
    known = dot.low is not None and dot.high is not None
    interval = f" ({ends} {dot.low:{spec}} to {dot.high:{spec}})" if known else ""
    note = f", {dot.note}" if dot.note else ""
    return f"<title>{escape(dot.name)}: {value}{interval}{escape(note)}</title>"


def interval_chart(
    rows: Sequence[tuple[str, Sequence[Dot]]],
    width: float = 1040,
    *,
    label: str = "Mean of each metric with its interval, by experiment",
    axis: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    spec: str = ".3f",
    ends: str = "95 %",
) -> Markup:
    """Dots with intervals: a block a metric, a line a series.

    Parameters
    ----------
    rows : sequence of (str, sequence of Dot)
        Metric and its dots.
    width : float
        In CSS pixels.
    label : str
        What the chart shows.
    axis : sequence of float
        Values of the axis that are told, ascending; those beyond its ends are drawn at them.
    spec : str
        How values are written.
    ends : str
        What the ends of the intervals are.
    """
    left, right, step, gap = LABEL_PX, width - 52, 15.0, 11.0
    height = 26 + sum(step * len(dots) + gap for _, dots in rows)
    body = []

    def place(value: float) -> float:
        share = (value - axis[0]) / (axis[-1] - axis[0])
        return left + (right - left) * min(1.0, max(0.0, share))

    for tick in axis:
        told = f"{tick:.1f}" if axis[-1] <= 1 else f"{tick:g}"
        body += [rule(place(tick), 18, place(tick), height - 4), text(place(tick), 12, told, "middle", "tick")]
    y = 26.0
    for metric, dots in rows:
        body.append(text(left - 12, y + step * len(dots) / 2 + 4, clip(metric), "end"))
        for dot in dots:
            middle = y + step / 2
            if dot.value is None:
                told = text(left + 4, middle + 4, "undefined", "start", "tick")
                body.append(f'<g class="{series_class(dot.series)}">{_title(dot)}{told}</g>')
            else:
                mark = f'<circle class="dot" cx="{place(dot.value):.1f}" cy="{middle:.1f}" r="4.5"/>'
                if dot.low is not None and dot.high is not None:
                    mark = rule(place(dot.low), middle, place(dot.high), middle, "span") + mark
                number = text(right + 8, middle + 4, f"{dot.value:{spec}}", "start", "value")
                body.append(f'<g class="{series_class(dot.series)}">{_title(dot, spec, ends)}{mark}{number}</g>')
            y += step
        y += gap
        body.append(rule(left - 160, y - gap / 2, right + 46, y - gap / 2, "faint"))
    return svg(width, height, label, body)


def interval_grid(
    columns: Sequence[tuple[str, Sequence[Dot]]],
    width: float = 1160,
    *,
    label: str = "Mean of each metric with its interval, by experiment",
    spec: str = ".3f",
    ends: str = "95 %",
) -> Markup:
    """Dots with intervals for many series: a line a series, a column a metric, each column on its own scale.

    Parameters
    ----------
    columns : sequence of (str, sequence of Dot)
        Metric and the dots of all series, in the same order.
    width : float
        In CSS pixels.
    label : str
        What the chart shows.
    spec : str
        Format of the values.
    ends : str
        What an interval's ends are.
    """
    left, step, top = LABEL_PX, 17.0, 34.0
    room = (width - left - 8) / max(1, len(columns))
    names = [dot.name for dot in columns[0][1]] if columns else []
    height = top + step * len(names) + 6
    body = []
    for k, name in enumerate(names):
        y = top + step * (k + 0.5)
        if k % 2:
            body.append(f'<rect class="band" x="0" y="{y - step / 2:.1f}" width="{width:g}" height="{step:g}"/>')
        body.append(text(left - 12, y + 4, clip(name), "end"))
    for number, (metric, dots) in enumerate(columns):
        start, stop = left + room * number + 6, left + room * (number + 1) - 44
        values = [end for dot in dots for end in (dot.value, dot.low, dot.high) if end is not None]
        low, high = min(values, default=0.0), max(values, default=1.0)
        span = (high - low) or 1.0
        body.append(text(start, 12, clip(metric, room - 4)))
        short = ".2f" if spec == ".3f" else spec
        body += [text(start, 26, f"{low:{short}}", "start", "tick"), text(stop, 26, f"{high:{short}}", "end", "tick")]
        body += [rule(x, 30, x, height - 4) for x in (start, stop)]
        for k, dot in enumerate(dots):
            y = top + step * (k + 0.5)
            if dot.value is None:
                mark = text(stop + 38, y + 4, "–", "end", "tick")
            else:
                x, *reach = (
                    start + (stop - start) * ((dot.value if v is None else v) - low) / span
                    for v in (dot.value, dot.low, dot.high)
                )
                mark = rule(reach[0], y, reach[1], y, "span")
                mark += f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>'
                mark += text(stop + 38, y + 4, f"{dot.value:{spec}}", "end", "value")
            body.append(f'<g class="{series_class(dot.series)}">{_title(dot, spec, ends)}{mark}</g>')
    return svg(width, height, label, body)


def class_bars(
    rows: Sequence[tuple[str, str, Sequence[Dot]]],
    width: float = 1040,
    *,
    label: str = "Dice of each class, by experiment",
) -> Markup:
    """Bars from 0 to 1 with their intervals: a block a class, a bar a series.

    Parameters
    ----------
    rows : sequence of (str, str, sequence of Dot)
        Class name, its colour (``#rrggbb``, or empty), and its values.
    width : float
        In CSS pixels.
    label : str
        What the chart shows.
    """
    left, right, step, gap = LABEL_PX, width - 52, 12.0, 10.0
    height = 24 + sum(step * len(dots) + gap for _, _, dots in rows)
    body = []
    for k in range(6):
        x = left + (right - left) * k / 5
        body += [rule(x, 18, x, height - 4), text(x, 12, f"{k / 5:.1f}", "middle", "tick")]
    y = 24.0
    for name, colour, dots in rows:
        middle = y + step * len(dots) / 2
        body.append(text(left - 26, middle + 4, clip(name, LABEL_PX - 30), "end"))
        body.append(swatch(left - 20, middle - 5, colour))
        for dot in dots:
            extent = (right - left) * min(1, max(0, dot.value or 0))
            place = f'x="{left}" y="{y + 1:.1f}" width="{max(extent, 0.8):.1f}" height="{step - 2:.1f}"'
            mark = "" if dot.value is None else f'<rect class="bar" {place} rx="1.5"/>'
            reach = left + extent
            if dot.value is not None and dot.low is not None and dot.high is not None:
                low, high = (left + (right - left) * min(1, max(0, end)) for end in (dot.low, dot.high))
                y_bar = y + step / 2
                mark += f'<path class="whisker" d="M{low:.1f} {y_bar:g}H{high:.1f}m0 -3v6M{low:.1f} {y_bar - 3:g}v6"/>'
                reach = max(reach, high)
            told = "–" if dot.value is None else f"{dot.value:.2f}"
            number = text(reach + 6, y + step - 2.4, told, "start", "value small")
            body.append(f'<g class="{series_class(dot.series)}">{_title(dot)}{mark}{number}</g>')
            y += step
        y += gap
    return svg(width, height, label, body)


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
        body += [rule(x, 18, x, height - 6), text(x, 12, f"{100 * 10.0**power:g} %", "middle", "tick")]
    for k, (name, colour, true, predicted) in enumerate(rows):
        y = 30 + step * k
        body.append(text(left - 26, y + 4, clip(name, 106), "end"))
        body.append(swatch(left - 20, y - 5, colour))
        told = f"{name}: true {percent(true)}, predicted {percent(predicted)}"
        marks = [f"<title>{escape(told)}</title>"]
        if true is not None and predicted is not None:
            marks.append(rule(place(true), y, place(predicted), y, "span"))
        if true is not None:
            x = place(true)
            diamond = f"M{x - 5.5:.1f} {y:g}l5.5 -5.5 5.5 5.5 -5.5 5.5z"
            marks.append(f'<path class="truth{" none" if not true else ""}" d="{diamond}"/>')
        if predicted is not None:
            kind = "dot" if predicted else "dot none"
            marks.append(f'<circle class="{kind}" cx="{place(predicted):.1f}" cy="{y:g}" r="4.2"/>')
        body.append(f'<g class="{series_class(series)}">{"".join(marks)}</g>')
    return svg(width, height, "True and predicted share of each class", body)


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
    body = [text(8, 13, label, "start", "axis")]
    if not points:
        return svg(width, height, label, [*body, text(width / 2, height / 2, "no values", "middle", "tick")])
    levels = ticks(min(y for _, y in points), max(y for _, y in points))
    first, last = min(x for x, _ in points), max(x for x, _ in points)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        return left + (right - left) * across, bottom - (bottom - top) * (y - levels[0]) / (levels[-1] - levels[0])

    for tick in levels:
        y = at(first, tick)[1]
        body += [rule(left, y, right, y), text(left - 6, y + 4, f"{tick:.4g}", "end", "tick")]
    across = sorted({first, last, *(x for x in ticks(first, last) if first < x < last and x == int(x))})
    for x in across:
        near_end = x not in (first, last) and at(last, levels[0])[0] - at(x, levels[0])[0] < 24
        if not near_end:
            body.append(text(at(x, levels[0])[0], height - 6, f"{x:g}", "middle", "tick"))
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
        body.append(f'<g class="{series_class(line.series)}">{marks}</g>')
    return svg(width, height, label, body)
