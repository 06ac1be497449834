"""Which figures ``snakemake --report`` carries: known before anything has run, so that a rule can name their files."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FIGURES", "Figure"]


class Figure(NamedTuple):
    """One figure.

    Attributes
    ----------
    title : str
        What it is called in the report.
    category : str
        The report's category that it stands in.
    caption : str
        File name of its caption, in ``workflow/report``.
    chart : str
        The page's chart, or charts, that it shows (:func:`slideloom.reports.charts.page_charts`).
    each : bool
        Whether there is one chart an experiment, ``{chart}_{number}``; they stand in one file.
    """

    title: str
    category: str
    caption: str
    chart: str
    each: bool = False


def _figures() -> dict[str, Figure]:
    found = {}
    for category, name, title, each in (
        ("Scores", "intervals", "Scores of the experiments", False),
        ("Classes", "class_dice", "Dice of each class", False),
        ("Classes", "class_pq", "Panoptic quality of each class", False),
        ("Classes", "class_f1_d", "Detection F1 of each class", False),
        ("Classes", "frequencies", "How often each class occurs", True),
        ("Classes", "confusion", "Which classes are taken for which", True),
        ("Probabilities", "precision_recall", "Precision and recall of nucleus pixels", False),
        ("Probabilities", "precision_recall_classes", "Precision and recall of each class", True),
        ("Probabilities", "calibration", "How often the nucleus probability is right", False),
        ("Probabilities", "calibration_classes", "How often the class probability is right", False),
        ("Training", "training", "Loss and scores over epochs", True),
        ("Biology", "biology_density", "Density of each class", False),
        ("Biology", "biology_fractions", "Share of each class", False),
        ("Costs", "costs", "What every stage cost", False),
        ("Costs", "stalls", "What the time went into", False),
    ):
        chart = "precision_recall" if name == "precision_recall_classes" else name
        found[name] = Figure(title, category, f"{name}.rst", chart, each)
    return found


#: The figures by name; a file is called ``{name}.svg``.
FIGURES: dict[str, Figure] = _figures()
