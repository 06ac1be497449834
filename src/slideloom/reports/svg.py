"""What every chart is made of: an inline SVG with the page's colours, its texts, rules, ticks and legends.

Charts carry no colours of their own: series k takes ``--e{k}``, class k ``--k``, both from the style sheet that the
page and a file of one chart share (:func:`chart_style`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from markupsafe import Markup

__all__ = [
    "LABEL_PX",
    "SERIES_COLOURS",
    "beside",
    "chart_style",
    "clip",
    "hex_colour",
    "line_style",
    "percent",
    "rule",
    "series_class",
    "svg",
    "swatch",
    "text",
    "thousands",
    "ticks",
]

#: Colours that the page defines; further series start again from the first.
SERIES_COLOURS = 8
#: Room for names at the left of a chart, CSS pixels.
LABEL_PX = 168
_TEXT_PX = 6.6  # a cautious mean width of one letter at 12 px
_STYLE = Path(__file__).with_name("template") / "charts.css.j2"
_SIZE = re.compile(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"')


def chart_style(colours: Mapping[int, str] | None = None) -> str:
    """The style sheet that a chart needs outside the page: colours, light and dark, and how its marks are drawn.

    Parameters
    ----------
    colours : mapping of int to str, optional
        Colour of each class, ``#rrggbb``.
    """
    own = "".join(f".c{class_id}{{--k:{colour}}}" for class_id, colour in (colours or {}).items())
    return _STYLE.read_text(encoding="utf-8") + own


def svg(width: float, height: float, label: str, body: Sequence[str], *, more: str = "") -> Markup:
    """A chart.

    Parameters
    ----------
    width, height : float
        In CSS pixels.
    label : str
        What it shows, for those who cannot see it.
    body : sequence of str
        Its marks, as SVG.
    more : str
        Further attributes, as SVG.
    """
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
    return Markup(f'<svg class="chart" {size} role="img" aria-label="{escape(label)}"{more}>{"".join(body)}</svg>')


def beside(charts: Sequence[Markup], label: str, gap: float = 28) -> Markup:
    """Several charts as one, side by side.

    Parameters
    ----------
    charts : sequence of Markup
        As :func:`svg` makes them.
    label : str
        What they show together.
    gap : float
        Between two of them, CSS pixels.
    """
    if len(charts) == 1:
        return charts[0]
    body, across, height = [], 0.0, 0.0
    for chart in charts:
        size = _SIZE.search(chart)
        if size is None:
            raise ValueError("a chart without a viewBox")
        body.append(str(chart).replace("<svg ", f'<svg x="{across:g}" height="{size[2]}" ', 1))
        across += float(size[1]) + gap
        height = max(height, float(size[2]))
    return svg(across - gap, height, label, body)


def hex_colour(colour: tuple[int, int, int]) -> str:
    """Red, green and blue as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def text(x: float, y: float, told: str, anchor: str = "start", kind: str = "") -> str:
    """A line of text; ``anchor`` is start, middle or end."""
    kind_text = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind_text}>{escape(told)}</text>'


def rule(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> str:
    """A straight line."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def clip(told: str, room_px: float = LABEL_PX - 14) -> str:
    """The text, or as much of it as has room."""
    most = max(2, int(room_px / _TEXT_PX))
    return told if len(told) <= most else told[: most - 1] + "…"


def series_class(number: int) -> str:
    """Style class that brings the colour of a series."""
    return f"s{number % SERIES_COLOURS}"


def line_style(number: int) -> str:
    """Style class that tells series of one colour apart: solid, dashed, dotted."""
    return f"d{number // SERIES_COLOURS % 3}"


def swatch(x: float, y: float, colour: str) -> str:
    """A small square in a class's colour; nothing where it has none."""
    if not colour:
        return ""
    return f'<rect class="swatch" x="{x:.1f}" y="{y:.1f}" width="10" height="10" rx="2" fill="{escape(colour)}"/>'


def percent(share: float | None) -> str:
    """A share in percent, three digits."""
    return "unknown" if share is None else f"{100 * share:.3g} %"


def thousands(count: float) -> str:
    """A count with a thin space between groups of three digits."""
    return f"{count:,.0f}".replace(",", "\u202f")


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from a little below ``low`` to a little above ``high``."""
    span = (high - low) or abs(high) or 1.0
    raw = span / 4
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]
