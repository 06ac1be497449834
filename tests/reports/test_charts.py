"""Charts of the page: marks lie where values say, numbers are those of the tables, and nothing is drawn of nothing."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reports.test_plots import marks, titles

from slideloom.reports.charts import page_charts
from slideloom.reports.cost_views import cost_rows, duration, stall_chart
from slideloom.reports.curve_plots import MOST_POINTS, Curve, curve_chart, thin_curve
from slideloom.reports.matrix_plots import Stack, confusion_chart, heat_chart, stacked_chart
from slideloom.reports.plots import Dot, class_bars, interval_chart
from slideloom.reports.svg import beside, chart_style, svg
from slideloom.slides.tables import ClassTable

CLASSES = ClassTable((1, 2), ("A & B", "C"), ((255, 0, 0), (0, 0, 255)), ((), ()))


def far_from(points: np.ndarray, kept: np.ndarray) -> float:
    """Greatest distance of a point from the stretch of the thinned curve that stands for it."""
    worst = 0.0
    for first, last in pairwise(kept):
        start, along = points[first], points[last] - points[first]
        for point in points[first : last + 1]:
            length = along @ along
            share = np.clip((point - start) @ along / length, 0, 1) if length else 0.0
            worst = max(worst, float(np.linalg.norm(point - start - share * along)))
    return worst


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=60), st.integers(2, 60))
def test_a_thinned_curve_keeps_its_look_and_its_ends(points: list[tuple[float, float]], most: int) -> None:
    curve = np.array(points, np.float64).reshape(-1, 2)
    kept = thin_curve(curve, most)
    assert (np.diff(kept) > 0).all()
    assert len(kept) <= most or len(curve) <= 2
    if len(curve):
        assert (kept[0], kept[-1]) == (0, len(curve) - 1)
    if len(kept) < most:
        assert far_from(curve, kept) <= 0.0003 + 1e-12  # a tenth of a pixel of a chart of 300


def test_a_smooth_curve_of_256_thresholds_needs_few_points() -> None:
    level = np.linspace(0, 1, 256)
    curve = np.stack([1 - level**2, 0.2 + 0.8 * level**0.3], axis=1)
    kept = thin_curve(curve)
    assert len(kept) <= MOST_POINTS
    assert far_from(curve, kept) < 0.001
    assert list(thin_curve(np.array([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]))) == [0, 2]


def test_curves_lie_where_the_axes_say_and_tell_exact_values() -> None:
    points = [(0.0, 1.0), (0.5, 0.9), (0.75, 0.12345), (1.0, 0.5)]
    curve = Curve(3, "a<b", points, ["0.9", "0.8", "0.4", "0.1"], sure=2)
    chart = curve_chart([curve, Curve(4, "none", [], [])], ("recall", "precision"), "PR", "threshold {}")
    ticks = marks(chart, "text", "tick")
    across = {e.text: float(e.get("x", "nan")) for e in ticks if e.get("text-anchor") == "middle"}
    down = {e.text: float(e.get("y", "nan")) - 4 for e in ticks if e.get("text-anchor") == "end"}
    (solid,), (dashed,) = marks(chart, "path", "curve"), marks(chart, "path", "curve dashed")
    start, middle = (tuple(map(float, pair.split())) for pair in (solid.get("d") or "")[1:].split("L"))
    assert start == pytest.approx((across["0.0"], down["1.0"]), abs=0.1)
    assert middle == pytest.approx(((across["0.4"] + across["0.6"]) / 2, (down["0.8"] + down["1.0"]) / 2), abs=0.1)
    left, top, size = map(float, ET.fromstring(chart).get("data-frame", "").split())
    assert (left, left + size) == pytest.approx((across["0.0"], across["1.0"]), abs=0.1)
    assert (top, top + size) == pytest.approx((down["1.0"], down["0.0"]), abs=0.1)
    assert (dashed.get("d") or "").startswith(f"M{middle[0]:.1f} {middle[1]:.1f}L")
    (line,) = marks(chart, "g", "series s3 d0")
    assert line.get("data-points") == "0,1;0.5,0.9;0.75,0.1235;1,0.5"
    assert line.get("data-notes") == "0.9|0.8|0.4|0.1"
    assert line.get("data-name") == "a<b"
    assert titles(chart) == "a<b"


def test_a_curve_of_one_point_is_a_dot() -> None:
    chart = curve_chart([Curve(0, "x", [(0.5, 0.5)], [""])], ("x", "y"), "one", "{}")
    assert len(marks(chart, "circle", "dot")) == 1
    assert marks(chart, "path", "curve") == []


def test_a_confusion_matrix_shows_shares_of_its_rows() -> None:
    names = [("background", ""), ("A & B", "#ff0000"), ("C", "#0000ff")]
    chart = confusion_chart(names, [[None, 3, 1], [10, 30, 0], [0, 0, 0]], "nuclei", "nuclei")
    told = titles(chart)
    assert "A & B as background: 10 nuclei, 25 % of the true ones" in told
    assert "background as C: 1 nuclei, 25 % of the true ones" in told
    assert "C as C: 0 nuclei\n" in told + "\n"  # no share of none
    cells = marks(chart, "rect", "cell")
    assert len(cells) == 8  # the pair of two backgrounds cannot be
    shade = [float(cell.get("fill-opacity", "nan")) for cell in cells]
    assert shade[3] == pytest.approx(3 * shade[2], rel=1e-6)
    assert max(shade) <= 0.5
    assert {e.text for e in marks(chart, "text", "small same")} == {"75"}


def test_cells_of_a_heat_chart_are_named_and_undefined_ones_told() -> None:
    chart = heat_chart([("A", "#ff0000"), ("B", "")], [("one", [0.5, None]), ("two", [1.0, 0.0])], "x")
    assert {"one, A: 0.500", "one, B: undefined", "two, A: 1.000"} <= set(titles(chart).split("\n"))
    shade = [float(cell.get("fill-opacity", "nan")) for cell in marks(chart, "rect", "cell")]
    assert shade == [0.25, 0.0, 0.5, 0.0]


def test_parts_of_a_stack_are_as_long_as_their_shares() -> None:
    parts = [("a", "s0"), ("b", "s1")]
    chart = stacked_chart(
        parts, [Stack("x", (0.25, 0.5), ("x, a: 1", "x, b: 2")), Stack("y", (1.0, 0.0), ("", ""))], "s"
    )
    bars = [bar for bar in marks(chart, "rect", "bar") if bar.get("height") != "11"]  # not the legend's
    widths = [float(bar.get("width", "nan")) for bar in bars]
    assert len(widths) == 3
    assert widths[1] == pytest.approx(2 * widths[0], rel=1e-3)
    assert widths[2] == pytest.approx(4 * widths[0], rel=1e-3)
    assert float(bars[1].get("x", "nan")) == pytest.approx(float(bars[0].get("x", "nan")) + widths[0], abs=0.11)


def test_bars_have_their_intervals() -> None:
    chart = class_bars([("x", "", [Dot(0, "a", 0.5, 0.25, 0.75), Dot(1, "b", 0.4), Dot(2, "c", None, 0.1, 0.2)])])
    (whisker,) = marks(chart, "path", "whisker")
    low, high = map(float, re.match(r"M([\d.]+) [\d.]+H([\d.]+)", whisker.get("d") or "").groups())  # type: ignore[union-attr]
    bar = marks(chart, "rect", "bar")[0]
    start, length = float(bar.get("x", "nan")), float(bar.get("width", "nan"))
    assert low - start == pytest.approx(length / 2, abs=0.1)
    assert high - start == pytest.approx(1.5 * length, abs=0.1)


def test_an_axis_of_other_values_holds_what_it_tells() -> None:
    chart = interval_chart(
        [("x", [Dot(0, "a", 150.0, 100.0, 200.0)])], axis=[0, 100, 200], spec=".0f", ends="quartiles"
    )
    axis = {e.text: float(e.get("x", "nan")) for e in marks(chart, "text", "tick")}
    (dot,) = marks(chart, "circle", "dot")
    assert float(dot.get("cx", "nan")) == pytest.approx((axis["100"] + axis["200"]) / 2, abs=0.1)
    assert "a: 150 (quartiles 100 to 200)" in titles(chart)


def test_charts_stand_side_by_side() -> None:
    one, two = svg(100, 50, "one", ["<g/>"]), svg(200, 80, "two", [])
    both = ET.fromstring(beside([one, two], "both", gap=10))
    assert both.get("viewBox") == "0 0 310 80"
    assert [child.get("x") for child in both] == ["0", "110"]
    assert beside([one], "alone") == one
    with pytest.raises(ValueError, match="viewBox"):
        beside([one, one.replace("viewBox", "box")], "x")


def test_the_style_of_charts_has_no_colours_but_its_own() -> None:
    style = chart_style({1: "#ff0000"})
    assert style.endswith(".c1{--k:#ff0000}")
    assert style.count("{") == style.count("}")
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", style)) - {"--c", "--k"}
    assert used <= set(re.findall(r"(--[a-z0-9]+):", style))


def test_no_tables_no_charts() -> None:
    assert page_charts({}, ClassTable(), {}, "") == {}
    assert page_charts({}, CLASSES, {"a": 0}, "test") == {}


def class_row(experiment: str, class_id: int, mean: float | None, **more: Any) -> dict[str, Any]:
    row = {"experiment": experiment, "role": "test", "class_id": class_id, "metric": "dice", "averaging": "slide"}
    return row | {"mean": mean, "ci_low": mean, "ci_high": mean, "n_slides": 3, "n_patients": 2} | more


def test_bars_of_classes_are_the_means_of_the_table() -> None:
    rows = [class_row("a", 0, 0.9), class_row("a", 1, 0.5), class_row("b", 1, None),
            class_row("a", 1, 0.1, averaging="pooled"), class_row("a", 1, 0.2, role="val")]  # fmt: skip
    charts = page_charts({"experiment_classes": rows}, CLASSES, {"a": 0, "b": 1}, "test")
    assert set(charts) == {"class_dice"}
    told = titles(charts["class_dice"])
    assert "a, A & B: 0.500 (95 % 0.500 to 0.500), 3 slides, 2 patients" in told
    assert "b, A & B: undefined" in told
    assert "C:" not in told  # a class without any value is not shown
    many = page_charts({"experiment_classes": rows}, CLASSES, {name: k for k, name in enumerate("abcdefghi")}, "test")
    assert "a, A & B: 0.500" in titles(many["class_dice"])


def test_confusion_is_summed_over_slides_of_the_role_alone() -> None:
    row = {"experiment": "a", "role": "test", "true_class_id": 1, "pred_class_id": 2, "pixels": 5, "nuclei": 1}
    rows = [row, row | {"pixels": 7, "nuclei": None}, row | {"role": "val", "pixels": 100}, row | {"pred_class_id": 1}]
    (chart,) = page_charts({"confusion": rows}, CLASSES, {"z": 0, "a": 4}, "test").values()
    assert "A & B as C: 12 pixels, 70.6 % of the true ones" in titles(chart)
    assert "A & B as C: 1 nuclei, 50 % of the true ones" in titles(chart)
    assert list(page_charts({"confusion": rows}, CLASSES, {"z": 0, "a": 4}, "test")) == ["confusion_4"]


def test_curves_and_calibration_come_by_experiment_and_by_class() -> None:
    about = {"experiment": "a", "role": "test", "exact": True}
    curves = [about | {"of": "nucleus", "class_id": None, "threshold": t, "recall": 1 - t, "precision": t}
              for t in (0.1, 0.9, 0.5)]  # fmt: skip
    curves += [row | {"of": "class", "class_id": 2, "exact": row["threshold"] > 0.5} for row in curves]
    bins = [about | {"of": "nucleus", "bin": k, "pixels": 1000 * k, "mean_probability": k / 10 or None,
                     "true_share": k / 20 or None} for k in range(3)]  # fmt: skip
    charts = page_charts({"curves": curves, "calibration": bins}, CLASSES, {"a": 0}, "test")
    assert set(charts) == {"precision_recall", "precision_recall_0", "calibration"}
    (line,) = marks(charts["precision_recall"], "g", "series s0 d0")
    assert line.get("data-notes") == "0.90|0.10"  # from the highest threshold; the middle lies between the others
    (of_class,) = marks(charts["precision_recall_0"], "g", "series k c2")
    assert of_class.get("data-name") == "C"
    assert len(marks(charts["precision_recall_0"], "path", "curve dashed")) == 1
    (bars,) = marks(charts["calibration"], "g", "series s0 d0")
    assert bars.get("data-points") == "0.1,0.05;0.2,0.1"
    assert bars.get("data-notes") == "1\u202f000|2\u202f000"


def job(rule: str, seconds: float, **parts: float | None) -> dict[str, Any]:
    none = dict.fromkeys(("wait_read_s", "copy_s", "compute_s", "blend_s", "wait_write_s", "tiles_per_s"))
    return {"rule": rule, "seconds": seconds, "cpu_seconds": None, "max_rss_mb": None} | none | parts


def test_stalls_are_shares_of_the_wall_time_or_of_their_sum() -> None:
    jobs = [job("maps", 10.0, wait_read_s=2.0, compute_s=5.0), job("maps", 90.0), job("metrics", 4.0),
            job("embed", 10.0, compute_s=12.0, blend_s=8.0)]  # fmt: skip
    told = titles(stall_chart(jobs) or "")
    assert "maps, waiting for what is read: 2.0 s, 20 %" in told  # of the job that kept an account
    assert "maps, anything else: 3.0 s, 30 %" in told
    assert "embed, networks: 12.0 s, 60 %" in told
    assert "metrics" not in told
    assert stall_chart(jobs[2:3]) is None
    charts = page_charts({"costs": jobs}, CLASSES, {}, "")
    assert set(charts) == {"costs", "stalls"}
    assert "maps: 1 min 40 s in 2 jobs" in titles(charts["costs"])


def test_rates_are_of_the_jobs_that_told_them() -> None:
    (cost,) = cost_rows([job("maps", 10.0, tiles_per_s=3.0), job("maps", 30.0, tiles_per_s=1.0), job("maps", 60.0)])
    assert cost.tiles_per_s == pytest.approx(60 / 40)
    assert cost.seconds == 100
    assert [duration(s) for s in (None, 1.25, 61, 3720)] == ["–", "1.2 s", "1 min 1 s", "1 h 2 min"]
