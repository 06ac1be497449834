"""The literature's figures as the page shows them: beside ours where the protocol is the same, and apart, with why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slideloom.reports.reference_checks import BETWEEN
from slideloom.reports.views import grouped

__all__ = ["ApartTable", "BesideLine", "BesideTable", "ReferenceView", "reference_views"]

Rows = Sequence[Mapping[str, Any]]
Row = Mapping[str, Any] | None

_TITLES = {
    "pannuke": "PanNuke: CellViT and others",
    "cpdmi": "CPDMI 2023: InstanSeg and ChannelNet",
    "stain_agnostic": "The stain-agnostic report (CellViT and ChannelNet on CPDMI 2023)",
}
#: How people call the metrics.
_METRICS = {
    "mpq": "mPQ",
    "bpq": "bPQ",
    "pq": "PQ",
    "sq": "SQ",
    "f1_50": "F1 at IoU 0.5",
    "f1_mean": "F1 at IoU 0.5 to 0.9",
    "f1_d": "F1 of detection",
    "precision_d": "precision of detection",
    "recall_d": "recall of detection",
    "f1_d_hovernet": "F1 of class and detection",
    "dice_binary": "Dice of the nucleus map",
    "f1_pixel": "F1 of pixels",
    "precision_pixel": "precision of pixels",
    "recall_pixel": "recall of pixels",
    "map": "AP of pixels",
    "pixel_accuracy": "pixel accuracy",
}
_AVERAGINGS = {
    "image": "mean over images with nuclei",
    "slide": "mean over images",
    "tissue": "mean over tissues",
    "pooled": "pooled",
    "unknown": "averaging not told",
}
_PLACE = ("source", "place", "dataset", "split")
_SENTENCES = re.compile(r"(?<=\.) ")
_KINDS = ("all nuclei", "by class", "by tissue")


@dataclass(frozen=True)
class BesideLine:
    """One figure, published by several models, and ours.

    Attributes
    ----------
    name : str
        What it is.
    published, ours : tuple of (mapping or None)
        Rows of ``references.parquet`` in the order of the table's models and experiments; ``None`` where there is none.
    """

    name: str
    published: tuple[Row, ...]
    ours: tuple[Row, ...]


@dataclass(frozen=True)
class BesideTable:
    """Figures of one split that ours stand beside.

    Attributes
    ----------
    title : str
        The part of the data, and whether of all nuclei, by class or by tissue.
    folded : bool
        To be opened by a click: of classes and tissues.
    models : tuple of str
        Columns of the published figures.
    experiments : tuple of (str, bool)
        Columns of ours, and whether the encoder ran with random weights.
    lines : tuple of BesideLine
        One a figure.
    notes : tuple of str
        Caveats.
    """

    title: str
    folded: bool
    models: tuple[str, ...]
    experiments: tuple[tuple[str, bool], ...]
    lines: tuple[BesideLine, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ApartTable:
    """Figures of one source that stand beside nothing, or not beside all.

    Attributes
    ----------
    title, place : str
        Source, and where in it, with data and split.
    metrics : tuple of str
        Columns.
    lines : tuple of (str, tuple of (mapping or None))
        Model, and its figures as rows of ``references.parquet``.
    n_more : int
        Further figures, of classes and tissues, that are not listed.
    reasons : tuple of (str, str)
        A respect that differs, and whom it concerns; empty where all.
    notes : tuple of str
        Caveats.
    """

    title: str
    place: str
    metrics: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Row, ...]], ...]
    n_more: int
    reasons: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ReferenceView:
    """The figures of one literature.

    Attributes
    ----------
    name, title : str
        As the config names it, and as people do.
    n_figures, n_beside : int
        Published figures, and those that at least one experiment of ours stands beside.
    beside : list of BesideTable
        Where the protocol is the same.
    apart : list of ApartTable
        Where it is not.
    """

    name: str
    title: str
    n_figures: int
    n_beside: int
    beside: list[BesideTable]
    apart: list[ApartTable]


def reference_views(rows: Rows) -> list[ReferenceView]:
    """What the page shows of the literature.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of ``references.parquet``.

    Returns
    -------
    list of ReferenceView
        One for each literature that has rows.
    """
    views = []
    for (name,), own in grouped(rows, "reference").items():
        same = [row for row in own if row["comparable"]]
        other = [row for row in own if not row["comparable"]]
        beside = [
            _beside(split, kind, group)
            for (split,), of_split in grouped(same, "split").items()
            for kind in _KINDS
            if (group := [row for row in of_split if _kind(row) == kind])
        ]
        # In the order of the data, which the figures that ours stand beside are part of.
        placed = grouped(other, *_PLACE)
        apart = [_apart(placed[key]) for key in grouped(own, *_PLACE) if key in placed]
        views.append(ReferenceView(name, _TITLES[name], _count(own), _count(same), beside, apart))
    return views


def _count(rows: Rows) -> int:
    return len({row["figure"] for row in rows})


def _kind(row: Mapping[str, Any]) -> str:
    return _KINDS[1 if row["class_name"] is not None else 2 if row["tissue"] is not None else 0]


def _metric(row: Mapping[str, Any]) -> str:
    return f"{_METRICS[row['metric']]}, {_AVERAGINGS[row['averaging']]}"


def _notes(rows: Rows) -> tuple[str, ...]:
    """Each sentence of the caveats once, with the models that it is, or is not, about where it is not about all."""
    concerned: dict[str, dict[str, None]] = {}
    for row in rows:
        for sentence in _SENTENCES.split(row["caveat"]):
            if sentence:
                concerned.setdefault(sentence, {})[row["model"]] = None
    every = dict.fromkeys(row["model"] for row in rows)
    told = []
    for sentence, models in concerned.items():
        others = [model for model in every if model not in models]
        whom = f"{', '.join(models)}: " if len(models) <= len(others) else f"all but {', '.join(others)}: "
        told.append(f"{whom if others else ''}{sentence}")
    return tuple(told)


def _beside(split: str, kind: str, rows: Rows) -> BesideTable:
    models = tuple(dict.fromkeys(row["model"] for row in rows))
    experiments = dict.fromkeys((row["experiment"], bool(row["random_weights"])) for row in rows)
    lines = []
    for (metric, _, class_name, tissue), own in grouped(rows, "metric", "averaging", "class_name", "tissue").items():
        about = class_name or tissue
        name = _metric(own[0]) if about is None else f"{_METRICS[metric]}, {about.replace('_', ' ')}"
        by_model = {row["model"]: row for row in own}
        by_experiment = {row["experiment"]: row for row in own}
        lines.append(
            BesideLine(
                name,
                tuple(by_model.get(model) for model in models),
                tuple(by_experiment.get(experiment) for experiment, _ in experiments),
            )
        )
    title = f"{rows[0]['dataset']}, {split.replace('_', ' ')}, {kind}"
    return BesideTable(title, kind != _KINDS[0], models, tuple(experiments), tuple(lines), _notes(rows))


def _apart(rows: Rows) -> ApartTable:
    first = rows[0]
    listed = [row for row in rows if _kind(row) == _KINDS[0]]
    metrics = tuple(dict.fromkeys(_metric(row) for row in listed))
    lines = []
    for (model,), own in grouped(listed, "model").items():
        by_metric = {_metric(row): row for row in own}
        lines.append((model, tuple(by_metric.get(metric) for metric in metrics)))
    place = f"{first['place']}; {first['dataset']}, {first['split'].replace('_', ' ')}"
    return ApartTable(
        first["source"], place, metrics, tuple(lines), _count(rows) - _count(listed), _reasons(rows), _notes(rows)
    )


def _reasons(rows: Rows) -> tuple[tuple[str, str], ...]:
    """Each respect once, and the experiments and metrics that it concerns where it is not all of them."""
    experiments = dict.fromkeys(row["experiment"] for row in rows if row["experiment"] is not None)
    metrics = dict.fromkeys(_METRICS[row["metric"]] for row in rows)
    concerned: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        for reason in row["differs"].split(BETWEEN):
            concerned.setdefault(reason, []).append(row)
    told = []
    for reason, own in concerned.items():
        whom = []
        for every, some in (
            (experiments, dict.fromkeys(row["experiment"] for row in own if row["experiment"] is not None)),
            (metrics, dict.fromkeys(_METRICS[row["metric"]] for row in own)),
        ):
            if len(some) < len(every):
                whom.append(", ".join(some))
        told.append((reason, BETWEEN.join(whom)))
    return tuple(told)
