"""All charts of the report by name: for the page, and for files of one chart each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from markupsafe import Markup

from slideloom.reports.biology_views import density_chart, fraction_chart
from slideloom.reports.cost_views import cost_chart, stall_chart
from slideloom.reports.curve_plots import Curve, curve_chart
from slideloom.reports.matrix_plots import confusion_chart, heat_chart
from slideloom.reports.plots import Dot, Line, class_bars, frequency_chart, line_chart
from slideloom.reports.svg import beside, thousands
from slideloom.reports.views import FEW, Rows, class_names, grouped, interval_figure, pixel_shares
from slideloom.slides.tables import ClassTable

__all__ = ["CLASS_BARS", "page_charts"]

#: Figures of each class that have a chart: column of ``classes.parquet`` and what people call it.
CLASS_BARS: tuple[tuple[str, str], ...] = (
    ("dice", "Dice of pixels"),
    ("pq", "PQ"),
    ("f1_d", "F1 of detection"),
)


def page_charts(
    found: Mapping[str, Rows], classes: ClassTable, series: Mapping[str, int], role: str
) -> dict[str, Markup]:
    """Every chart that the tables hold values for.

    Parameters
    ----------
    found : mapping of str to sequence of mapping
        Rows of the report tables by name, as :func:`slideloom.reports.page_tables.read_page_tables` gives them; a table
        that is left out is taken as empty.
    classes : ClassTable
        Names and colours.
    series : mapping of str to int
        Number of each experiment.
    role : str
        Role of the slides that charts of scores show.

    Returns
    -------
    dict of str to Markup
        Inline SVG. Of all experiments: ``intervals``, ``class_dice``, ``class_pq``, ``class_f1_d``,
        ``precision_recall``, ``calibration``, ``calibration_classes``, ``biology_density``, ``biology_fractions``,
        ``costs``, ``stalls``. Of the experiment with number n: ``frequencies_n``, ``precision_recall_n`` (its classes),
        ``confusion_n``, ``training_n``. A chart without a value is left out.
    """
    charts: dict[str, Markup | None] = {"intervals": interval_figure(found.get("experiments", ()), role, series)}
    known = set(series)
    own = {
        name: [row for row in found.get(name, ()) if row["role"] == role and row["experiment"] in known]
        for name in ("classes", "experiment_classes", "confusion", "curves", "calibration")
    }
    for metric, name in CLASS_BARS:
        charts[f"class_{metric}"] = _class_chart(own["experiment_classes"], metric, name, classes, series)
    charts["precision_recall"] = _precision_recall(own["curves"], series)
    for of, name in (("nucleus", "calibration"), ("class", "calibration_classes")):
        charts[name] = _calibration([row for row in own["calibration"] if row["of"] == of], series)
    by_number: tuple[tuple[str, Rows, Callable[[Rows, int], Markup | None]], ...] = (
        ("frequencies", own["classes"], lambda rows, n: _frequencies(rows, classes, n)),
        ("precision_recall", own["curves"], lambda rows, _: _class_curves(rows, classes)),
        ("confusion", own["confusion"], lambda rows, _: _confusion(rows, classes)),
        ("training", found.get("training", ()), lambda rows, n: _training(rows, n if len(series) <= FEW else None)),
    )
    for name, rows, make in by_number:
        for (experiment,), lines in grouped(rows, "experiment").items():
            if experiment in series:
                charts[f"{name}_{series[experiment]}"] = make(lines, series[experiment])
    charts["biology_density"] = density_chart(found.get("biology", ()), classes, series)
    charts["biology_fractions"] = fraction_chart(found.get("biology", ()), classes, series)
    charts["costs"] = cost_chart(found.get("costs", ()))
    charts["stalls"] = stall_chart(found.get("costs", ()))
    return {name: chart for name, chart in charts.items() if chart is not None}


def _class_chart(rows: Rows, metric: str, name: str, classes: ClassTable, series: Mapping[str, int]) -> Markup | None:
    """A figure of each class: bars with intervals; of many experiments, shaded cells."""
    means = {
        (row["experiment"], row["class_id"]): row
        for row in rows
        if row["metric"] == metric and row["averaging"] == "slide"
    }
    if not any(row["mean"] is not None for row in means.values()):
        return None
    present = {class_id for (_, class_id), row in means.items() if row["mean"] is not None}
    shown = [line for line in class_names(classes) if line[0] in present]
    experiments = [experiment for experiment in series if any(key[0] == experiment for key in means)]
    if len(series) > FEW:
        lines = []
        for experiment in experiments:
            cells = [means.get((experiment, class_id)) for class_id, _, _ in shown]
            lines.append((experiment, [None if cell is None else cell["mean"] for cell in cells]))
        return heat_chart([(own, colour) for _, own, colour in shown], lines, f"{name}, by experiment and class")
    blocks = []
    for class_id, own, colour in shown:
        dots = []
        for experiment in experiments:
            row = means.get((experiment, class_id))
            told = f"{experiment}, {own}"
            if row is None:
                dots.append(Dot(series[experiment], told, None))
            else:
                note = f"{row['n_slides']} slides, {row['n_patients']} patients"
                dots.append(Dot(series[experiment], told, row["mean"], row["ci_low"], row["ci_high"], note))
        blocks.append((own, colour, dots))
    return class_bars(blocks, label=f"{name} of each class, by experiment")


def _frequencies(rows: Rows, classes: ClassTable, number: int) -> Markup | None:
    shares = pixel_shares(rows, classes)
    if all(share is None for own in shares for share in own):
        return None
    lines = [(name, colour, *own) for (_, name, colour), own in zip(class_names(classes), shares, strict=True)]
    return frequency_chart(lines, number)


def _curve(rows: Rows, series: int, name: str, class_id: int | None = None) -> Curve:
    """Precision over recall, from the highest threshold down."""
    points = sorted(rows, key=lambda row: -float(row["threshold"]))
    return Curve(
        series=series,
        name=name,
        points=[(row["recall"], row["precision"]) for row in points],
        notes=[f"{row['threshold']:.2f}" for row in points],
        class_id=class_id,
        sure=sum(bool(row["exact"]) for row in points),
    )


_RECALL = ("recall", "precision")
_THRESHOLD = "threshold {}"


def _precision_recall(rows: Rows, series: Mapping[str, int]) -> Markup | None:
    by = grouped([row for row in rows if row["of"] == "nucleus"], "experiment")
    curves = [_curve(by[name,], number, name) for name, number in series.items() if (name,) in by]
    label = "Precision over recall of nucleus pixels, by experiment"
    return curve_chart(curves, _RECALL, label, _THRESHOLD) if curves else None


def _class_curves(rows: Rows, classes: ClassTable) -> Markup | None:
    by = grouped([row for row in rows if row["of"] == "class"], "class_id")
    curves = [
        _curve(by[class_id,], number, name, class_id)
        for number, (class_id, name, _) in enumerate(class_names(classes))
        if (class_id,) in by
    ]
    label = "Precision over recall of the pixels of each class"
    return curve_chart(curves, _RECALL, label, _THRESHOLD) if curves else None


def _calibration(rows: Rows, series: Mapping[str, int]) -> Markup | None:
    """How often a probability is right; a point a bin that holds pixels."""
    by = grouped([row for row in rows if row["pixels"]], "experiment")
    curves = []
    for name, number in series.items():
        bins = sorted(by.get((name,), ()), key=lambda row: int(row["bin"]))
        notes = [thousands(row["pixels"]) for row in bins]
        points = [(row["mean_probability"], row["true_share"]) for row in bins]
        if bins:
            curves.append(Curve(number, name, points, notes, dots=True))
    axes, label = ("mean probability", "true share"), "How often a probability is right, by experiment"
    return curve_chart(curves, axes, label, "{} pixels", diagonal=True) if curves else None


def _confusion(rows: Rows, classes: ClassTable) -> Markup | None:
    """Pixels and nuclei of each pair of classes, all slides together."""
    names = class_names(classes)
    charts = []
    for column in ("pixels", "nuclei"):
        counts: dict[tuple[int, int], int] = {}
        for row in rows:
            if row[column] is not None:
                key = (row["true_class_id"], row["pred_class_id"])
                counts[key] = counts.get(key, 0) + row[column]
        if any(counts.values()):
            cells = [[counts.get((true, predicted)) for predicted, _, _ in names] for true, _, _ in names]
            heading = f"{column}, % of the true ones"
            charts.append(confusion_chart([(name, colour) for _, name, colour in names], cells, heading, column))
    return beside(charts, "Confusion matrices of pixels and nuclei") if charts else None


def _training(rows: Rows, number: int | None) -> Markup | None:
    """Loss and validation scores over epochs, a line a fold; ``number`` None: folds have the colours."""
    losses: list[Line] = []
    scores: list[Line] = []
    for k, ((fold,), own) in enumerate(grouped(rows, "fold").items()):
        epochs = sorted(own, key=lambda row: int(row["epoch"]))
        best = next((float(row["epoch"]) for row in epochs if row.get("best")), None)
        for group, column, name, dashed in (
            (losses, "train_loss", "training", True),
            (losses, "val_loss", "validation", False),
            (scores, "val_dice_binary", "nucleus", False),
            (scores, "val_dice_macro", "classes", True),
        ):
            points = [(float(row["epoch"]), float(row[column])) for row in epochs if row.get(column) is not None]
            colour = k if number is None else number
            group.append(Line(colour, f"fold {fold}, {name}", points, dashed, best if not dashed else None))
    charts = [line_chart(losses, "loss: validation —, training ┄")]
    if any(line.points for line in scores):
        charts.append(line_chart(scores, "validation Dice: nucleus —, classes ┄"))
    return beside(charts, "Loss and validation scores over epochs")
