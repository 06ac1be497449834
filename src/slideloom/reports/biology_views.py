"""What the report shows of predicted nuclei: densities, fractions, marker means and neighbours of each class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, quantiles

import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from slideloom.metrics.biology_schemas import MARKER_FIGURES
from slideloom.reports.matrix_plots import Stack, stacked_chart
from slideloom.reports.plots import Dot, interval_chart, interval_grid
from slideloom.reports.svg import LABEL_PX, percent, thousands, ticks
from slideloom.reports.views import FEW, Rows, class_names, grouped
from slideloom.slides.tables import ClassTable

__all__ = ["Biology", "biology_views", "density_chart", "fraction_chart"]

_ALL = "all nuclei"
#: Headings of columns, and by row its heading and cells: a value, and how dark its cell is from 0 to 1.
Shaded = tuple[tuple[str, ...], list[tuple[str, list[tuple[float | None, float]]]]]


@dataclass(frozen=True)
class Biology:
    """What one experiment's nuclei are like, means over its predicted slides.

    Attributes
    ----------
    experiment : str
        Which.
    n_slides : int
        Slides that it predicted.
    classes : list of dict
        A row a class, all nuclei first: ``class_name``, ``class_id`` (``None``: all), ``n`` (nuclei of all slides),
        ``count_fraction``, ``area_fraction``, ``density_per_mm2``, ``area_mean_um2`` (means over the slides where they
        are defined, or ``None``).
    markers : Shaded
        Markers as the slides' channels name them; by class, the mean intensity, and its share of the way from the class
        with the lowest to that with the highest.
    neighbours : Shaded
        Classes that are looked for; by class that looks, the mean distance in µm, and how near it is.
    """

    experiment: str
    n_slides: int
    classes: list[dict[str, float | int | str | None]]
    markers: Shaded
    neighbours: Shaded


def density_chart(rows: Rows, classes: ClassTable, series: Mapping[str, int]) -> Markup | None:
    """Nuclei of each class per mm² of tissue: mean over slides, the line from the first to the third quartile."""
    placed = _slide_values(rows, "density_per_mm2")
    every = [value for values in placed.values() for value in values]
    if not every:
        return None
    blocks = []
    for class_id, name in [(None, _ALL), *((class_id, name) for class_id, name, _ in class_names(classes))]:
        dots = []
        for experiment, number in series.items():
            values = placed.get((experiment, class_id))
            if values:
                low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (None, None, None)
                note = f"{len(values)} slide{'' if len(values) == 1 else 's'}"
                dots.append(Dot(number, f"{experiment}, {name}", fmean(values), low, high, note))
        if dots and (class_id != 0 or any(dot.value for dot in dots)):
            blocks.append((name if class_id != 0 else "no class", dots))
    highest = max(end for _, dots in blocks for dot in dots for end in (dot.value, dot.high) if end is not None)
    label, spec = "Nuclei per mm² of tissue, by class and experiment", ".0f" if highest >= 100 else ".2f"
    if len(series) <= FEW:
        return interval_chart(blocks, label=label, axis=ticks(0.0, highest), spec=spec, ends="quartiles")
    columns = []
    for name, dots in blocks:
        known = {dot.series: dot for dot in dots}
        own = [
            replace(known.get(number, Dot(0, "", None)), series=0, name=experiment)
            for experiment, number in series.items()
        ]
        columns.append((name, own))
    return interval_grid(columns, LABEL_PX + 100.0 * len(columns), label=label, spec=spec, ends="quartiles")


def fraction_chart(rows: Rows, classes: ClassTable, series: Mapping[str, int]) -> Markup | None:
    """Share of each class among the nuclei of all predicted slides together, a bar an experiment."""
    counts: dict[tuple[str, int], int] = {}
    for row in rows:
        if row["scope"] == "class":
            key = (row["experiment"], row["class_id"])
            counts[key] = counts.get(key, 0) + row["n"]
    names = [line for line in class_names(classes) if any(counts.get((name, line[0])) for name in series)]
    bars = []
    for experiment in series:
        own = [counts.get((experiment, class_id), 0) for class_id, _, _ in names]
        if whole := sum(own):
            shares = tuple(count / whole for count in own)
            told = (
                f"{experiment}, {name}: {percent(share)}" for (_, name, _), share in zip(names, shares, strict=True)
            )
            bars.append(Stack(experiment, shares, tuple(told), thousands(whole)))
    if not bars:
        return None
    parts = [(name if class_id else "no class", f"k c{class_id}") for class_id, name, _ in names]
    return stacked_chart(parts, bars, "Share of each class among the predicted nuclei, by experiment")


def _slide_values(rows: Rows, column: str) -> dict[tuple[str, int | None], list[float]]:
    """Values of the slides by experiment and class (``None``: all nuclei); a slide's folds are averaged first."""
    known = [row for row in rows if row[column] is not None]
    result: dict[tuple[str, int | None], list[float]] = {}
    for (experiment, class_id, _), own in grouped(known, "experiment", "class_id", "slide_id").items():
        result.setdefault((experiment, class_id), []).append(fmean(row[column] for row in own))
    return result


def biology_views(rows: Rows, biology: pa.Table, neighbours: pa.Table, series: Sequence[str]) -> list[Biology]:
    """What the page shows of each experiment's nuclei.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of ``biology.parquet``; columns of markers are not needed.
    biology, neighbours : pyarrow.Table
        The same with all its columns, and ``neighbours.parquet``.
    series : sequence of str
        Experiments, in order.
    """
    markers = _marker_means(biology)
    distances = _distances(neighbours)
    by = grouped(rows, "experiment")
    result = []
    for experiment in series:
        if (experiment,) not in by:
            continue
        own = by[experiment,]
        slides = {row["slide_id"] for row in own}
        shaded = (markers.get(experiment, ((), [])), distances.get(experiment, ((), [])))
        result.append(Biology(experiment, len(slides), _class_lines(own), *shaded))
    return result


def _class_lines(rows: Rows) -> list[dict[str, float | int | str | None]]:
    lines = []
    by = grouped(rows, "scope", "class_id", "class_name")
    for (scope, class_id, name), own in sorted(by.items(), key=lambda item: -1 if item[0][1] is None else item[0][1]):
        slides = list(grouped(own, "slide_id").values())
        line: dict[str, float | int | str | None] = {"class_id": class_id, "class_name": _named(scope, class_id, name)}
        line["n"] = round(sum(fmean(row["n"] for row in slide) for slide in slides))
        for column in ("count_fraction", "area_fraction", "density_per_mm2", "area_mean_um2"):
            known = [[row[column] for row in slide if row[column] is not None] for slide in slides]
            values = [fmean(slide) for slide in known if slide]
            line[column] = fmean(values) if values else None
        lines.append(line)
    return lines


def _named(scope: str, class_id: int | None, name: str) -> str:
    return _ALL if scope == "all" else "no class" if class_id == 0 else name


def _mean_over_slides(table: pa.Table, keys: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """Means of columns over folds, then over slides, nulls left out; named as the columns are."""
    for group in ([*keys, "slide_id"], list(keys)):
        table = table.group_by(group, use_threads=False).aggregate([(column, "mean") for column in columns])
        names = {f"{column}_mean": column for column in columns}
        table = table.rename_columns([names.get(name, name) for name in table.column_names])
    return table


def _shades(values: Sequence[float | None], *, logarithmic: bool = False) -> list[float]:
    """Where each value lies between the smallest and the largest; 0 where it is undefined, or all are equal."""
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    if high <= low:
        return [0.0 for _ in values]
    if logarithmic and low > 0:
        return [0.0 if v is None else math.log(v / low) / math.log(high / low) for v in values]
    return [0.0 if value is None else (value - low) / (high - low) for value in values]


def _marker_means(
    biology: pa.Table,
) -> dict[str, Shaded]:
    prefix = MARKER_FIGURES[0].prefix
    columns = [name for name in biology.column_names if name.startswith(prefix)]
    if not columns or not biology.num_rows:
        return {}
    table = _mean_over_slides(biology, ("experiment", "scope", "class_id", "class_name"), columns)
    result = {}
    for (experiment,), own in grouped(table.to_pylist(), "experiment").items():
        shown = [column for column in columns if any(row[column] is not None for row in own)]
        lines = sorted(own, key=lambda row: -1 if row["class_id"] is None else row["class_id"])
        lines = [row for row in lines if any(row[column] is not None for column in shown)]
        # All nuclei are a mean of the classes, and would never be darkest: shades go by class where there are any.
        of_class = [row for row in lines if row["scope"] == "class"] or lines
        shades: dict[tuple[str, int | None], float] = {}
        for column in shown:
            dark = _shades([row[column] for row in of_class])
            shades |= {(column, row["class_id"]): shade for row, shade in zip(of_class, dark, strict=True)}
        cells = [
            (
                _named(row["scope"], row["class_id"], row["class_name"]),
                [(row[column], shades.get((column, row["class_id"]), 0.0)) for column in shown],
            )
            for row in lines
        ]
        if shown:
            result[experiment] = (tuple(column.removeprefix(prefix) for column in shown), cells)
    return result


def _distances(
    neighbours: pa.Table,
) -> dict[str, Shaded]:
    if not neighbours.num_rows:
        return {}
    keys = ("experiment", "scope", "class_id", "class_name", "to_class_id", "to_class_name")
    column = "distance_mean_um"
    between = neighbours.filter(pc.equal(neighbours["scope"], "class"))
    table = _mean_over_slides(between, keys, [column])
    result = {}
    for (experiment,), own in grouped(table.to_pylist(), "experiment").items():
        names = dict(sorted({row["class_id"]: row["class_name"] for row in own}.items()))
        found = {(row["class_id"], row["to_class_id"]): row[column] for row in own}
        cells = []
        for class_id, name in names.items():
            values = [found.get((class_id, to)) for to in names]
            shades = zip(values, _shades(values, logarithmic=True), strict=True)
            near = [0.0 if value is None else 1 - shade for value, shade in shades]
            cells.append((name, list(zip(values, near, strict=True))))
        result[experiment] = (tuple(names.values()), cells)
    return result
