"""Charts: well-formed, with every value told, and sound at the edges."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from slideloom.reports.plots import (
    Dot,
    Line,
    class_bars,
    frequency_chart,
    interval_chart,
    line_chart,
)
from slideloom.reports.svg import hex_colour


def marks(svg: str, tag: str, kind: str) -> list[ET.Element]:
    """Elements of a class; also checks that the text is XML."""
    return [element for element in ET.fromstring(svg).iter(tag) if element.get("class") == kind]


def titles(svg: str) -> str:
    """What pointing at the marks tells."""
    return "\n".join(element.text or "" for element in ET.fromstring(svg).iter("title"))


def test_intervals_lie_where_the_axis_says() -> None:
    svg = interval_chart([("PQ & co", [Dot(0, "a<b", 0.5, 0.25, 0.75), Dot(1, "none", None)])], width=500)
    axis = {element.text: float(element.get("x", "nan")) for element in marks(svg, "text", "tick")}
    dot = float(marks(svg, "circle", "dot")[0].get("cx", "nan"))
    span = marks(svg, "line", "span")[0]
    assert dot == pytest.approx((axis["0.0"] + axis["1.0"]) / 2, abs=0.1)
    assert float(span.get("x2", "nan")) - float(span.get("x1", "nan")) == pytest.approx(
        (axis["1.0"] - axis["0.0"]) / 2, abs=0.2
    )
    assert "a<b: 0.500 (95 % 0.250 to 0.750)" in titles(svg)
    assert "none: undefined" in titles(svg)


def test_bars_are_as_long_as_their_value() -> None:
    svg = class_bars([("x", "#ff0000", [Dot(0, "a", 0.25), Dot(1, "b", 1.0), Dot(2, "c", None)])])
    lengths = [float(bar.get("width", "nan")) for bar in marks(svg, "rect", "bar")]
    assert lengths[0] / lengths[1] == pytest.approx(0.25, abs=1e-3)
    assert len(lengths) == 2


def test_frequencies_are_logarithmic_and_never_is_hollow() -> None:
    svg = frequency_chart([("a", "", 0.1, 0.01), ("b", "#00ff00", 0.001, 0.0), ("c", "", None, None)], 0)
    first, never = marks(svg, "circle", "dot")[0], marks(svg, "circle", "dot none")[0]
    axis = {element.text: float(element.get("x", "nan")) for element in marks(svg, "text", "tick")}
    assert float(first.get("cx", "nan")) == pytest.approx(axis["1 %"], abs=0.1)
    assert float(never.get("cx", "nan")) == pytest.approx(axis["0.1 %"], abs=0.1)
    assert "c: true unknown, predicted unknown" in titles(svg)
    assert "a: true 10 %, predicted 1 %" in titles(svg)


def test_curves_skip_what_is_not_finite_and_mark_the_best() -> None:
    points = [(1.0, 2.0), (2.0, math.nan), (3.0, 1.0), (4.0, 1.5)]
    svg = line_chart([Line(0, "fold 0", points, mark=3.0), Line(1, "empty", [])], "loss")
    (curve,) = marks(svg, "path", "curve")
    assert (curve.get("d") or "").count("L") == 2
    assert "best, epoch 3, 1" in titles(svg)
    assert "no values" in line_chart([], "loss")


@pytest.mark.parametrize("points", [[(1.0, 0.0)], [(0.0, 5.0), (1.0, 5.0)], [(1.0, -3.0), (500.0, 1e6)]])
def test_curves_stay_inside_for_odd_ranges(points: list[tuple[float, float]]) -> None:
    svg = line_chart([Line(0, "x", points)], "y", width=300, height=150)
    (curve,) = marks(svg, "path", "curve")
    for pair in (curve.get("d") or "")[1:].split("L"):
        x, y = map(float, pair.split())
        assert 0 <= x <= 300
        assert 0 <= y <= 150


def test_long_names_are_cut_and_colours_written() -> None:
    assert "…" in interval_chart([("a name that is far too long for its place", [Dot(0, "a", 0.1)])])
    assert hex_colour((1, 16, 255)) == "#0110ff"
