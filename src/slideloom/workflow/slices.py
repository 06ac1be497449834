"""What each stage's result depends on: its slice of the config, and the files that stand beside it.

A slice holds what changes the stage's result and nothing else, so that an edit of the config runs those stages again
that depend on it. Where a file lies is no part of a slice: its content is, and that is looked at when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from slideloom.config.catalogue import adapted, complete, find_entry
from slideloom.config.model import ExperimentConfig
from slideloom.slides.sheet import SlideRow
from slideloom.slides.sides import take_sides
from slideloom.slides.study import Study

__all__ = ["Slices", "pick"]

#: Keys of an encoder that name files.
_FILE_KEYS = ("checkpoint", "marker_embeddings")


class Slices:
    """Slices of a study's config.

    Parameters
    ----------
    study : Study
        The checked study.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.config = study.config

    def of(self, stage: str, *context: str) -> dict[str, Any]:
        """The slice of a stage.

        Parameters
        ----------
        stage : str
            Its name.
        *context : str
            Grid, encoder, split, or experiment and fold.
        """
        return self._slices[stage](*context)

    def predicted_live(self, experiment: str) -> bool:
        """Whether tiles are encoded as they are predicted.

        So where the config says it; where what encodes was trained, too; and where nothing reads the tokens.
        """
        config = self.config.experiments[experiment]
        trained = config.adapter is not None or config.training.unfreeze_epoch is not None
        unread = config.decoder.whole and (config.training.input == "live" or config.published is not None)
        return self.config.inference.source == "live" or trained or unread

    def labels(self, experiment: str) -> tuple[str, str | None]:
        """Where another program left its nuclei and their classes, with ``{slide}``."""
        config = self.config.experiments[experiment]
        return str(config.labels), config.label_classes

    def weight_files(self, encoders: Iterable[str]) -> list[str]:
        """Files that encoders are made from: their weights, and embeddings of markers."""
        files = {path for name in encoders for path in self._files(name).values()}
        return sorted(files)

    def published(self, experiment: str) -> list[str]:
        """The published checkpoint, or program, of an experiment that is not trained."""
        path = self.config.experiments[experiment].published
        return [str(path)] if path else []

    def _files(self, encoder: str) -> dict[str, str]:
        config = self.config.encoders[encoder]
        return {key: str(path) for key in _FILE_KEYS if (path := getattr(config, key)) is not None}

    @property
    def _slices(self) -> dict[str, Callable[..., dict[str, Any]]]:
        return {
            "facts": lambda: {"markers": self.study.markers.as_dict()},
            "tissue": lambda: {"tissue": self.config.tissue},
            "patches": lambda grid: {"grid": self.config.grids[grid]},
            "targets": lambda grid: {"classes": self._classes()},
            "cell_targets": lambda grid: {},
            "splits": self._split_slice,
            "statistics": self._statistics_slice,
            "embeddings": lambda encoder: self._encoder(encoder),
            "train": self._train_slice,
            "train_live": self._train_slice,
            "pretrained": self._pretrained_slice,
            "bands": lambda experiment, fold, band: {
                **self._maps_slice(experiment, fold),
                "bands": self.config.jobs.bands,
            },
            "maps": self._maps_slice,
            "verifier": self._verifier_slice,
            "instances": lambda experiment, fold: self._instances_slice(experiment),
            "imported": lambda experiment, fold: {
                "image": self.study.images_of(experiment)[0],
                "grid": self.study.grid_of(experiment),
                "split": self.config.experiments[experiment].split,
                "roles": self.config.inference.roles,
                "classes": self._classes(),
            },
            "biology": lambda experiment, fold: {"image": self.study.images_of(experiment)[0]},
            "exports": lambda experiment, fold: {
                "exports": self.config.exports,
                "image": self.study.images_of(experiment)[0],
                "classes": self._classes(colours=True),
            },
            "metrics": lambda experiment, fold: {
                "evaluation": self.config.evaluation,
                "image": self.study.images_of(experiment)[0],
                "grid": self.study.grid_of(experiment),
                "split": self.config.experiments[experiment].split,
                "classes": self._classes(),
            },
            "reports": self._report_slice,
            "report_html": self._report_slice,
            "report_figures": self._report_slice,
        }

    def _classes(self, *, colours: bool = False) -> dict[str, Any]:
        table = self.study.classes.as_dict()
        return table if colours else {**table, "colours": {key: [0, 0, 0] for key in table["colours"]}}

    def files(self, stage: str, context: Sequence[str]) -> dict[str, Any]:
        """Files that a stage opens, by encoder and key."""
        if stage == "embeddings":
            encoders: tuple[str, ...] = (context[0],)
        elif stage == "imported":
            return dict(zip(("labels", "label_classes"), self.labels(context[0]), strict=True))
        elif stage in ("train_live", "pretrained", "bands", "maps"):
            encoders = self.config.experiments[context[0]].encoder
        else:
            return {}
        files: dict[str, Any] = {name: found for name in encoders if (found := self._files(name))}
        if stage == "pretrained" and (path := self.published(context[0])):
            files["pretrained"] = path[0]
        return files

    def _encoder(self, name: str, behind: bool = False) -> dict[str, Any]:
        """All of an encoder's config that its tokens depend on, its files apart; also where an adapter is before it."""
        config = (adapted if behind else complete)(self.config.encoders[name])
        body: dict[str, Any] = {"encoder": config.model_dump(mode="json", exclude=set(_FILE_KEYS))}
        entry = find_entry(config.model)
        if entry is not None and entry.embedding:
            body["uniprot"] = {one.marker: one.uniprot for one in self.study.markers.channels if one.uniprot}
        return body

    def _encoders(self, experiment: str) -> list[dict[str, Any]]:
        config = self.config.experiments[experiment]
        return [{"name": name, **self._encoder(name, config.adapted)} for name in config.encoder]

    def _split_slice(self, split: str) -> dict[str, Any]:
        columns = ("slide_id", "patient_id", "platform", "split")
        config = self.config.splits[split]
        read = [config.column, *([config.stratify] if config.stratify else [])]
        rows = [pick(row, columns) | {"extra": _extra(row, read)} for row in self.study.rows]
        for row, known in zip(rows, self.study.rows, strict=True):
            if known.instances is not None:
                row["instances"] = "annotated"  # sides depend on whether there is an annotation, not on where it lies
        return {"split": config, "rows": sorted(rows, key=lambda row: str(row["slide_id"]))}

    def _statistics_slice(self, encoder: str) -> dict[str, Any]:
        config = complete(self.config.encoders[encoder])
        body = config.model_dump(mode="json", include={"markers", "normalisation", "grid"})
        return {**body, "split": config.statistics}

    @cache  # noqa: B019
    def _sides(self, split: str) -> dict[str, dict[str, str]]:
        """Roles of the slides by fold."""
        return take_sides(self.study.rows, self.config.splits[split]).folds

    def _train_slice(self, experiment: str, fold: str) -> dict[str, Any]:
        config: ExperimentConfig = self.config.experiments[experiment]
        body: dict[str, Any] = {}
        if config.sampling.gamma > 0 and "group" in config.sampling.by:
            roles, column = self._sides(config.split).get(fold, {}), config.sampling.column
            training = [row for row in self.study.rows if roles.get(row.slide_id) == "train"]
            body["groups"] = {row.slide_id: row.column(column) or "" for row in training}
        if config.refine is not None and config.refine.network is not None:
            body["network"] = config.refine.network
        elsewhere = {"encoder", "split", "pretrained", "torchscript", "instances", "refine"}
        return body | {
            "experiment": config.model_dump(mode="json", exclude=elsewhere),
            "encoders": self._encoders(experiment),
            "grid": self.config.grids[self.study.grid_of(experiment)],
            "split": config.split,
            "classes": self._classes(),
        }

    def _pretrained_slice(self, experiment: str, fold: str) -> dict[str, Any]:
        """What is not trained has no optimiser, no loss and no split."""
        slice_, config = self._train_slice(experiment, fold), self.config.experiments[experiment]
        body = {name: slice_[name] for name in ("encoders", "grid", "classes")}
        if config.decoder.whole:  # what is asked of the file
            body["decoder"] = config.decoder.model_dump(mode="json", exclude_unset=True)
        if config.torchscript is not None:
            body["program"] = True
        return body | {"heads": slice_["experiment"]["heads"]}

    def _maps_slice(self, experiment: str, fold: str) -> dict[str, Any]:
        live = self.predicted_live(experiment)
        body: dict[str, Any] = {"inference": self.config.inference, "encoders": self._encoders(experiment)}
        body["split"] = self.config.experiments[experiment].split
        return body | ({"grid": self.config.grids[self.study.grid_of(experiment)]} if live else {})

    def _instances_slice(self, experiment: str) -> dict[str, Any]:
        """How nuclei are found; what follows them is there where something does."""
        refine = self.config.experiments[experiment].refine
        body: dict[str, Any] = {
            # Windows change memory and speed, no pixel.
            "instances": self.config.instances_of(experiment).model_dump(mode="json", exclude={"window_px"}),
            "image": self.study.images_of(experiment)[0],
            "grid": self.study.grid_of(experiment),
            "classes": self._classes(),
        }
        if refine is not None and refine.after:  # how a verifier is fitted is told by the verifier
            body["refine"] = {"split": refine.split, "verify": refine.verify is not None}
        return body

    def _verifier_slice(self, experiment: str, fold: str) -> dict[str, Any]:
        config = self.config.experiments[experiment]
        assert config.refine is not None
        refine = {"split": config.refine.split, "verify": config.refine.verify}
        return self._instances_slice(experiment) | {"refine": refine, "split": config.split}

    def judging(self, experiment: str, fold: str) -> tuple[SlideRow, ...]:
        """Annotated slides that an experiment's verifier is fitted on: those of the fold's validation."""
        roles = self._sides(self.config.experiments[experiment].split).get(fold, {})
        rows = self.study.experiment_slides(experiment)
        return tuple(row for row in rows if row.instances and roles.get(row.slide_id) == "val")

    def _report_slice(self) -> dict[str, Any]:
        columns = ("slide_id", "patient_id", "platform", "he", "sp", "instances", "classes")
        study = self.config.model_dump(mode="json", exclude={"results", "data_root", "jobs"})
        for experiment in study["experiments"].values():
            for key in ("refine", "torchscript"):
                if experiment[key] is None:  # a report of before there was such a key is no other
                    del experiment[key]
        for table in ("slides", "markers", "classes"):  # a study that was moved is the same study
            study[table] = Path(study[table]).name if study[table] else None
        return {
            "study": study,
            "classes": self._classes(colours=True),
            "rows": [
                pick(row, columns) | ({"extra": extra} if (extra := _extra(row, ["tissue"])) else {})
                for row in self.study.rows
            ],
        }


def pick(row: SlideRow, columns: Iterable[str]) -> dict[str, Any]:
    """Columns of a slide's row that are filled in."""
    return {column: value for column in columns if (value := getattr(row, column)) is not None}


def _extra(row: SlideRow, columns: Iterable[str]) -> dict[str, str]:
    return {column: row.extra[column] for column in columns if column in row.extra}
