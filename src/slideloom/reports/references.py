"""Rows of ``references.parquet``: published figures of public data, and ours where the protocol is the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from slideloom.config.model import StudyConfig
from slideloom.reports.reference_checks import BETWEEN, grid_of, matching_differences, protocol_differences
from slideloom.reports.reference_data import Protocol, ReferenceFigure, read_references
from slideloom.reports.reference_schema import REFERENCES

__all__ = ["REFERENCES", "reference_rows"]

Rows = Sequence[Mapping[str, Any]]

_OURS = ("mean", "std", "ci_low", "ci_high", "n")
#: The figure that is defined on a slide exactly when its truth holds a nucleus; of a class, a nucleus of that class.
_HAS_TRUTH = {"class": "recall_d", "tissue": "recall", "": "recall"}


def reference_rows(
    config: StudyConfig, experiments_rows: Rows, groups_rows: Rows, experiment_classes_rows: Rows
) -> list[dict[str, Any]]:
    """Rows of ``references.parquet``, without the study.

    Parameters
    ----------
    config : StudyConfig
        The study; figures of the literature that its ``references`` name have rows.
    experiments_rows, groups_rows, experiment_classes_rows : sequence of mapping
        Rows of those report tables.

    Returns
    -------
    list of dict
        In the order of the data file, and of the config's experiments: one a figure and experiment on its kind of image
        that has figures; where there is none, one whose ``experiment`` is ``None``.
    """
    figures = [figure for figure in read_references() if figure.protocol.reference in config.references]
    if not figures:
        return []
    ours = _Ours(config, experiments_rows, groups_rows, experiment_classes_rows)
    return [row for figure in figures for row in ours.beside(figure)]


class _Ours:
    """The study's figures, by what they are asked for."""

    def __init__(self, config: StudyConfig, experiments: Rows, groups: Rows, classes: Rows) -> None:
        self.config = config
        self.random: dict[str, bool] = {}
        self.images: dict[tuple[str, str], int] = {}
        self.platforms: dict[tuple[str, str], set[str]] = {}
        self.rows: dict[tuple[str, ...], Mapping[str, Any]] = {}
        for row in experiments:
            run = row["experiment"], row["role"]
            self.random[run[0]] = bool(row["random_weights"])
            self.images[run] = max(self.images.get(run, 0), row["n_slides"])
            self.rows[(*run, "", "", row["metric"], row["averaging"])] = row
        for row in groups:
            run = row["experiment"], row["role"]
            if row["by"] == "platform":
                self.platforms.setdefault(run, set()).add(row["group"])
            elif row["by"] == "tissue":
                self.rows[(*run, "tissue", _plain(row["group"]), row["metric"], "slide")] = row
        for row in classes:
            run = row["experiment"], row["role"]
            self.rows[(*run, "class", _plain(row["class_name"]), row["metric"], row["averaging"])] = row
        self.averagings: dict[tuple[str, ...], list[str]] = {}
        for key in self.rows:
            self.averagings.setdefault(key[:-1], []).append(key[-1])
        self._differences: dict[tuple[str, str], list[str]] = {}

    def beside(self, figure: ReferenceFigure) -> Iterator[dict[str, Any]]:
        """The figure's rows."""
        protocol = figure.protocol
        fitting = [
            name
            for name, experiment in self.config.experiments.items()
            if name in self.random and grid_of(self.config, experiment).image == protocol.image
        ]
        published = _published(figure)
        if not fitting:
            why = f"image: {protocol.image}, no experiment of the study has figures on it"
            yield published | _line(None, None, [why], None)
        matching = matching_differences(figure, self.config)
        for name in fitting:
            row, missing = self._found(figure, name)
            differs = [*self._measured(protocol, name), *matching, *missing]
            yield published | _line(name, self.random[name], list(dict.fromkeys(differs)), row)

    def _role(self, protocol: Protocol, experiment: str) -> str:
        """The figures' own role where ours has it, else any that it has."""
        roles = sorted(role for name, role in self.images if name == experiment)
        return protocol.role if protocol.role in roles else roles[0]

    def _measured(self, protocol: Protocol, experiment: str) -> list[str]:
        key = protocol.name, experiment
        if key not in self._differences:
            run = experiment, self._role(protocol, experiment)
            self._differences[key] = protocol_differences(
                protocol,
                self.config,
                experiment,
                role=run[1],
                n_images=self.images[run],
                platforms=self.platforms.get(run, ()),
                random_weights=self.random[experiment],
            )
        return self._differences[key]

    def _found(self, figure: ReferenceFigure, experiment: str) -> tuple[Mapping[str, Any] | None, list[str]]:
        """Our row of the same meaning; or ``None``, and why there is none."""
        run = experiment, self._role(figure.protocol, experiment)
        of, about = "", ""
        if figure.class_name is not None:
            of, about = "class", _plain(figure.class_name)
        elif figure.tissue is not None:
            of, about = "tissue", _plain(figure.tissue)
        key = (*run, of, about, figure.metric)
        row = self.rows.get((*key, figure.averaging))
        if row is None and figure.averaging == "image":
            row = self._same_slides(key)
        if row is not None and row["mean"] is not None:
            tissues = figure.protocol.n_tissues
            if figure.averaging == "tissue" and row["n"] != tissues:
                return None, [f"tissues: {tissues}, ours {row['n']}"]
            return row, []
        told = f"{figure.metric} of this {of}" if of else figure.metric
        others = sorted(self.averagings.get(key, ()))
        if row is not None or not others:
            return None, [f"metric: ours has no {told}"]
        if figure.averaging == "unknown":
            return None, ["averaging: not told"]
        return None, [f"averaging: {figure.averaging}, ours {', '.join(others)}"]

    def _same_slides(self, key: tuple[str, ...]) -> Mapping[str, Any] | None:
        """The mean over slides where it is the mean over images: no slide without truth is among them.

        A figure of nuclei is defined wherever the truth holds one, so that equal counts mean the same slides.
        """
        row = self.rows.get((*key, "slide"))
        truth = self.rows.get((*key[:-1], _HAS_TRUTH[key[2]], "slide"))
        return row if row is not None and truth is not None and row["n"] == truth["n"] else None


def _plain(name: str) -> str:
    """A name of a class or tissue as compared: letters and digits, in small letters."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _published(figure: ReferenceFigure) -> dict[str, Any]:
    protocol = figure.protocol
    return {
        "reference": protocol.reference,
        "figure": figure.name,
        "source": protocol.source,
        "place": protocol.place,
        "dataset": protocol.dataset,
        "split": protocol.split,
        "role": protocol.role,
        "model": figure.model,
        "metric": figure.metric,
        "averaging": figure.averaging,
        "class_name": figure.class_name,
        "tissue": figure.tissue,
        "published": figure.value,
        "published_std": figure.std,
        "published_n": figure.n,
        "image": protocol.image,
        "convention": protocol.convention,
        "iou_threshold": protocol.iou_threshold,
        "detection_radius_um": protocol.detection_radius_um,
        "tile_px": protocol.tile_px,
        "mpp_um": protocol.mpp_um,
        "n_images": protocol.n_images,
        "protocol_known": protocol.known,
        "caveat": " ".join(text for text in (protocol.caveat, figure.caveat) if text),
    }


def _line(
    experiment: str | None, random_weights: bool | None, differs: Sequence[str], row: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Our part of a row; our figures only where nothing differs."""
    shown = row if not differs and row is not None else {}
    return {
        "experiment": experiment,
        "random_weights": random_weights,
        "comparable": not differs,
        "differs": BETWEEN.join(differs),
        **{name: shown.get(name) for name in _OURS},
    }
