"""The page's charts as files of their own: SVG that any browser and editor opens, light or dark, with nothing around.

A figure is the chart as it stands on the page with what the page says around it: title, study, legend. Figures of one
chart an experiment hold them all, one below the other or side by side. A figure without values says so: a workflow's
rule promises its files before it knows what the tables will hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from slideloom.artefacts.files import write_text
from slideloom.reports.aggregate import main_role
from slideloom.reports.charts import page_charts
from slideloom.reports.figures import FIGURES, Figure
from slideloom.reports.page_tables import read_page_tables, series_numbers
from slideloom.reports.svg import SERIES_COLOURS, chart_style, hex_colour, line_style, series_class, text
from slideloom.slides.tables import ClassTable

__all__ = ["write_figures"]

_WIDTH, _MARGIN, _LINE = 1200.0, 28.0, 20.0
_ROOT = re.compile(r'<svg class="chart" viewBox="0 0 ([0-9.]+) ([0-9.]+)"[^>]*>(.*)</svg>', re.DOTALL)
#: Characters that XML forbids; a class's name may hold any.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_STYLE = (
    "svg.chart{max-width:none;margin:0}svg svg.chart{height:revert-layer}"
    "svg.chart text.title{font-size:19px;font-weight:650}svg.chart text.head{font-size:14px;font-weight:600}"
    ".ground{fill:var(--card)}"
)
#: Figures whose series are the experiments, told apart by colour and line.
_LEGENDS = ("intervals", "class_dice", "class_pq", "class_f1_d", "precision_recall", "calibration",
            "calibration_classes", "biology_density")  # fmt: skip


def write_figures(
    tables: Path, folder: Path, classes: ClassTable, study: str, experiments: Sequence[str] = ()
) -> list[Path]:
    """Write every figure of :data:`slideloom.reports.figures.FIGURES`.

    Parameters
    ----------
    tables : Path
        Folder of the report tables.
    folder : Path
        Where the files go, ``{name}.svg``.
    classes : ClassTable
        Names and colours.
    study : str
        Name of the study.
    experiments : sequence of str
        The experiments in the page's order, for the same colours; those that only the tables name follow.

    Returns
    -------
    list of Path
        The files, in the order of ``FIGURES``; every one of them, also those that hold no value.

    Raises
    ------
    SlideloomError
        Code ``table_schema``: a table is missing a column, or of another version.
    """
    found = read_page_tables(tables).rows
    series = series_numbers(found, experiments)
    role = main_role(found["slides"])
    charts = page_charts(found, classes, series, role)
    colours = dict(zip(classes.ids, map(hex_colour, classes.colours), strict=True))
    style = chart_style(colours) + _STYLE
    names = {number: name for name, number in series.items()}
    written = []
    for name, figure in FIGURES.items():
        if figure.each:
            own = [(names[k], charts[f"{figure.chart}_{k}"]) for k in names if f"{figure.chart}_{k}" in charts]
        else:
            own = [("", charts[figure.chart])] if figure.chart in charts else []
        about = study if figure.category in ("Training", "Biology", "Costs") else f"{study}, {role} slides"
        legend = _legend(name, series, classes, own)
        place = folder / f"{name}.svg"
        write_text(place, _FORBIDDEN.sub("\ufffd", _document(figure, about, own, legend, style)))
        written.append(place)
    return written


def _legend(
    name: str, series: Mapping[str, int], classes: ClassTable, charts: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Style classes and name of each series that the figure's charts show."""
    drawn = "".join(chart for _, chart in charts)
    if name == "precision_recall_classes":
        lines = zip((0, *classes.ids), ("background", *classes.names), strict=True)
        return [(f"k c{number}", own) for number, own in lines if f"k c{number}" in drawn]
    if name not in _LEGENDS:
        return []
    lines_of = [(f"{series_class(number)} {line_style(number)}", own) for own, number in series.items()]
    # Charts of many experiments name them in their own lines; nothing is told apart by colour there.
    coloured = len(series) <= SERIES_COLOURS or "data-series" in drawn
    return [(kind, own) for kind, own in lines_of if coloured and escape(own) in drawn]


def _document(
    figure: Figure, about: str, charts: Sequence[tuple[str, str]], legend: Sequence[tuple[str, str]], style: str
) -> str:
    """The whole file."""
    body = [text(_MARGIN, 40, figure.title, kind="title"), text(_MARGIN, 62, about, kind="axis")]
    x, y = _MARGIN, 90.0
    for kind, name in legend:
        room = 46 + 6.8 * len(name)
        if x > _MARGIN and x + room > _WIDTH - _MARGIN:
            x, y = _MARGIN, y + _LINE
        body.append(f'<g class="{kind}"><path class="curve" style="stroke-width:4" d="M{x:g} {y - 4:g}h20"/></g>')
        body.append(text(x + 27, y, name))
        x += room
    x, y, deepest = _MARGIN, y + (16 if legend else -6), 0.0
    width = _WIDTH
    for name, chart in charts:
        wide, high, marks = _unwrapped(chart)
        if x > _MARGIN and x + wide > _WIDTH - _MARGIN:
            x, y, deepest = _MARGIN, deepest, 0.0
        top = y
        if name:
            body.append(text(x, y + 18, name, kind="head"))
            top += 30
        body.append(f'<g transform="translate({x:g} {top:g})">{marks}</g>')
        width, deepest = max(width, x + wide + _MARGIN), max(deepest, top + high + 26)
        x += wide + 36
    if not charts:
        body.append(text(_MARGIN, y + 24, "Nothing to show: the tables hold no such value.", kind="axis"))
        deepest = y + 44
    size = f'width="{width:g}" height="{deepest:g}" viewBox="0 0 {width:g} {deepest:g}"'
    label = f'role="img" aria-label="{escape(figure.title)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" {size} {label}>'
        f"<title>{escape(figure.title)}</title><style>{style}</style>"
        f'<rect class="ground" width="{width:g}" height="{deepest:g}"/>{"".join(body)}</svg>\n'
    )


def _unwrapped(chart: str) -> tuple[float, float, str]:
    """Width, height and marks of a chart."""
    found = _ROOT.fullmatch(chart.strip())
    if found is None:
        raise ValueError("a chart that is not one SVG element")
    return float(found[1]), float(found[2]), found[3]
