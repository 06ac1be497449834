"""In which respects an experiment was measured otherwise than a published figure: one text a respect.

What cannot be seen counts as different. That the slides are the literature's, and split as it splits them, is what the
config's ``references`` declare; here the rest is held against the config and the tables. PanNuke's three splits are
told apart by name: an experiment is on the first when its split, or the column that the split is read from, is called
``split_1``.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from math import isclose

from slideloom.config.model import ExperimentConfig, GridConfig, StudyConfig
from slideloom.metrics.conventions import convention_named
from slideloom.reports.reference_data import MEAN_OF_SPLITS, Protocol, ReferenceFigure

__all__ = ["BETWEEN", "grid_of", "matching_differences", "protocol_differences"]

#: What parts two respects in a text.
BETWEEN = "; "
#: F1 at IoU of its own, whatever evaluation.iou_threshold says.
_OWN_THRESHOLDS = ("f1_50", "f1_mean")
_NUMBERED = re.compile(r"split_\d+")
#: How the files of CellViT's released weights are called; all were trained on most of PanNuke.
_RELEASED = "cellvit-"


def grid_of(config: StudyConfig, experiment: ExperimentConfig) -> GridConfig:
    """The grid whose tiles an experiment predicts, or on which its labels are scored."""
    return config.grids[experiment.grid or config.encoders[experiment.first_encoder].grid]


def protocol_differences(
    protocol: Protocol,
    config: StudyConfig,
    name: str,
    *,
    role: str,
    n_images: int,
    platforms: Collection[str],
    random_weights: bool,
) -> list[str]:
    """Respects in which an experiment differs from a protocol, matching and averaging aside.

    Parameters
    ----------
    protocol : Protocol
        The published figures'.
    config : StudyConfig
        The study.
    name : str
        The experiment.
    role : str
        Role of its slides that would stand beside the figures.
    n_images : int
        Slides of that role with any figure.
    platforms : collection of str
        Their platforms; empty where not known.
    random_weights : bool
        Its encoder ran with random weights.

    Returns
    -------
    list of str
        Empty where it differs in none.
    """
    experiment = config.experiments[name]
    found = [part for part in protocol.obstacle.split(BETWEEN) if part]
    if not protocol.known:
        found.append("protocol: not fully known")
    if platforms and all(platform.startswith("synthetic") for platform in platforms):
        found.append(f"data: {protocol.dataset}, ours synthetic")
    found += _split(protocol, config, experiment, platforms)
    if role != protocol.role:
        found.append(f"role: {protocol.role}, ours {role}")
    if protocol.n_images is not None and n_images != protocol.n_images:
        found.append(f"images: {protocol.n_images}, ours {n_images}")
    found += _grid(protocol, grid_of(config, experiment))
    return found + _training(protocol, config, experiment, random_weights)


def matching_differences(figure: ReferenceFigure, config: StudyConfig) -> list[str]:
    """Respects in which the study matches nuclei otherwise than a figure.

    Parameters
    ----------
    figure : ReferenceFigure
        The figure; what its protocol does not say is not compared.
    config : StudyConfig
        The study.
    """
    protocol, ours = figure.protocol, config.evaluation
    found = [part for part in figure.obstacle.split(BETWEEN) if part]
    if protocol.convention is not None:
        theirs, own = convention_named(protocol.convention), convention_named(ours.convention)
        rules = ("inclusive", "one_to_one", "assignment", "empty_truth")
        if any(getattr(theirs, rule) != getattr(own, rule) for rule in rules):
            found.append(f"convention: {theirs.name}, ours {own.name}")
    threshold = protocol.iou_threshold
    if threshold is not None and figure.metric not in _OWN_THRESHOLDS and ours.iou_threshold != threshold:
        found.append(f"IoU threshold: {threshold:g}, ours {ours.iou_threshold:g}")
    radius = protocol.detection_radius_um
    if radius is not None and not isclose(ours.detection_radius_um, radius):
        found.append(f"detection radius: {radius:g} µm, ours {ours.detection_radius_um:g} µm")
    return found


def _split(
    protocol: Protocol, config: StudyConfig, experiment: ExperimentConfig, platforms: Collection[str]
) -> list[str]:
    split, theirs = config.splits[experiment.split], protocol.split
    if split.scheme != "column":
        return [f"split: fixed ({theirs}), ours drawn by scheme {split.scheme}"]
    if theirs == MEAN_OF_SPLITS:
        return ["splits: the mean over three, ours is one"]
    if theirs == "codex":
        others = sorted({platform for platform in platforms if platform.casefold() != theirs})
        return [] if platforms and not others else [f"split: {theirs}, ours {', '.join(others) or 'not told'}"]
    if _NUMBERED.fullmatch(theirs):
        ours = {text for text in (experiment.split, split.column) if _NUMBERED.fullmatch(text)}
        if not ours:
            return [f"split: {theirs}, ours not told (a split or its column named {theirs} would)"]
        if ours != {theirs}:
            return [f"split: {theirs}, ours {' or '.join(sorted(ours))}"]
    return []


def _grid(protocol: Protocol, grid: GridConfig) -> list[str]:
    found = []
    if protocol.tile_px is not None and grid.tile_px != protocol.tile_px:
        found.append(f"tile: {protocol.tile_px} px, ours {grid.tile_px} px")
    if protocol.mpp_um is None or (grid.mpp_um is None and protocol.own_resolution):
        return found
    if grid.mpp_um is None or not isclose(grid.mpp_um, protocol.mpp_um, rel_tol=0.01):
        ours = "the images' own" if grid.mpp_um is None else f"{grid.mpp_um:g} µm/px"
        found.append(f"resolution: {protocol.mpp_um:g} µm/px, ours {ours}")
    return found


def _training(protocol: Protocol, config: StudyConfig, experiment: ExperimentConfig, random_weights: bool) -> list[str]:
    """What ours learned from, and how it was asked."""
    if experiment.labels is not None:
        return ["training: on the same data, ours by another program on data not recorded"]
    found = []
    if experiment.published is not None:
        found.append(f"training: on the same data, ours not trained here ({experiment.published.name})")
    elif experiment.training.shuffle_targets:
        found.append("training: on the same data, ours on shuffled targets")
    if random_weights:
        found.append("weights: ours random")
    files = [config.encoders[one].checkpoint for one in experiment.encoder]
    released = [file.name for file in files if file is not None and file.name.casefold().startswith(_RELEASED)]
    if protocol.reference == "pannuke" and released:
        found.append(f"weights: ours ({', '.join(released)}) were trained on 90 % of PanNuke, test images among them")
    if config.inference.symmetries != "none":
        found.append(f"poses: one, ours the mean over {config.inference.symmetries}")
    return found
