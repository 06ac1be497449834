"""Curves in the unit square: precision over recall, and how often a probability is right.

A curve keeps at most 120 of its points, those that its look depends on. Each carries what is read out when it is
pointed at; without script, the curve's title tells its name.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from slideloom.reports.svg import line_style, rule, series_class, svg, text

__all__ = ["MOST_POINTS", "Curve", "curve_chart", "thin_curve"]

#: Points that a curve keeps.
MOST_POINTS = 120
#: A point nearer than this to the line without it is not worth keeping: a tenth of a CSS pixel.
_SEEN = 0.0003


@dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes
    ----------
    series : int
        Number of the series; the legend switches it.
    name : str
        For its title, the legend and the read-out.
    points : sequence of (float, float)
        x and y from 0 to 1, in the order in which they are joined.
    notes : sequence of str
        A value of each point that the read-out tells beside x and y, such as its threshold.
    class_id : int or None
        Draw it in the colour of this class instead of the series'.
    dots : bool
        Mark every point: there are few of them.
    sure : int or None
        So many points, from the first, are exact; the rest is drawn dashed. ``None``: all of them.
    """

    series: int
    name: str
    points: Sequence[tuple[float, float]]
    notes: Sequence[str]
    class_id: int | None = None
    dots: bool = False
    sure: int | None = None


def thin_curve(points: NDArray[np.float64], most: int = MOST_POINTS) -> NDArray[np.intp]:
    """The points of a curve that its look depends on.

    Parameters
    ----------
    points : (n, 2) float64 ndarray
        x and y.
    most : int
        Keep at most so many, 2 or more.

    Returns
    -------
    (m,) intp ndarray
        Their places, ascending; the ends are among them.

    Notes
    -----
    Starting from the ends, the point that lies farthest from the line of those kept is kept next, until all lie within
    a tenth of a CSS pixel (the order in which Douglas and Peucker's method splits a line; 1973).
    """
    if len(points) <= 2:
        return np.arange(len(points))
    kept = {0, len(points) - 1}
    waiting: list[tuple[float, int, int, int]] = []

    def split(first: int, last: int) -> None:
        if last - first < 2:
            return
        far, at = _farthest(points[first : last + 1])
        heapq.heappush(waiting, (-far, first + at, first, last))

    split(0, len(points) - 1)
    while waiting and len(kept) < most:
        far, at, first, last = heapq.heappop(waiting)
        if -far <= _SEEN:
            break
        kept.add(at)
        split(first, at)
        split(at, last)
    return np.array(sorted(kept))


def _farthest(points: NDArray[np.float64]) -> tuple[float, int]:
    """Distance and place of the point farthest from the stretch between the ends."""
    start, along = points[0], points[-1] - points[0]
    length = float(along @ along)
    inner = points[1:-1] - start
    share = np.clip(inner @ along / length, 0, 1) if length else np.zeros(len(inner))
    distance = np.hypot(*(inner - share[:, None] * along).T)
    at = int(distance.argmax())
    return float(distance[at]), at + 1


def curve_chart(
    curves: Sequence[Curve],
    axes: tuple[str, str],
    label: str,
    note: str,
    *,
    diagonal: bool = False,
    size: float = 300,
) -> Markup:
    """Curves in the unit square.

    Parameters
    ----------
    curves : sequence of Curve
        Those without a point are left out.
    axes : (str, str)
        What x and y are.
    label : str
        What the chart shows.
    note : str
        What the notes of the points are; ``{}`` stands for the note.
    diagonal : bool
        Draw the line on which x and y are equal.
    size : float
        Side of the square, CSS pixels.
    """
    left, top = 44.0, 14.0
    width, height = left + size + 16, top + size + 42

    def at(x: float, y: float) -> tuple[float, float]:
        return left + size * min(1.0, max(0.0, x)), top + size * (1 - min(1.0, max(0.0, y)))

    body = []
    for k in range(6):
        x, y = at(k / 5, k / 5)
        body += [rule(x, top, x, top + size), text(x, top + size + 17, f"{k / 5:.1f}", "middle", "tick")]
        body += [rule(left, y, left + size, y), text(left - 7, y + 4, f"{k / 5:.1f}", "end", "tick")]
    if diagonal:
        body.append(rule(*at(0, 0), *at(1, 1), "faint"))
    body.append(text(left + size / 2, height - 5, axes[0], "middle", "axis"))
    middle = top + size / 2
    turn = f'transform="rotate(-90 11 {middle:g})" x="11" y="{middle:g}"'
    body.append(f'<text class="axis" text-anchor="middle" {turn}>{escape(axes[1])}</text>')
    for curve in curves:
        if len(curve.points):
            body.append(_curve(curve, [at(x, y) for x, y in curve.points]))
    frame = f' data-frame="{left:g} {top:g} {size:g}" data-axes="{escape("|".join(axes))}" data-note="{escape(note)}"'
    return svg(width, height, label, body, more=frame)


def _curve(curve: Curve, places: Sequence[tuple[float, float]]) -> str:
    """A curve with what its points say."""
    kept = thin_curve(np.array(curve.points, np.float64).reshape(-1, 2))
    told = escape("|".join(curve.notes[k] for k in kept))
    exactly = ";".join(f"{x:.4g},{y:.4g}" for x, y in (curve.points[k] for k in kept))
    shown = [places[k] for k in kept]
    exact = len(shown) if curve.sure is None else int(np.count_nonzero(kept < curve.sure))
    # The dashed part starts where the solid one ends.
    parts = (("curve", shown[:exact]), ("curve dashed", shown[max(0, exact - 1) :] if exact < len(shown) else []))
    marks = "".join(f'<path class="{kind}" d="{_path(part)}"/>' for kind, part in parts if len(part) > 1)
    if curve.dots or len(shown) == 1:
        marks += "".join(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in shown)
    colour = series_class(curve.series) if curve.class_id is None else f"k c{curve.class_id}"
    kind = f"{colour} {line_style(curve.series)}" if curve.class_id is None else colour
    about = f'class="series {kind}" data-series="{curve.series}" data-name="{escape(curve.name)}"'
    return f'<g {about} data-points="{exactly}" data-notes="{told}"><title>{escape(curve.name)}</title>{marks}</g>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
