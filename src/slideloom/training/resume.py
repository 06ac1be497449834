"""The state that a killed training goes on from."""

from __future__ import annotations

import logging
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from slideloom.artefacts.files import publish

__all__ = ["TrainState", "load_state", "save_state"]

_LOG = logging.getLogger(__name__)


@dataclass
class TrainState:
    """How far a training has come.

    Attributes
    ----------
    key : str
        Digest of all that the training depends on.
    epochs_done : int
        Epochs behind it.
    rows : list of dict
        History, a row an epoch.
    best : float or None
        Best value of the monitored figure.
    best_epoch : int
        Its epoch.
    best_weights : dict of str to Tensor
        Its weights.
    """

    key: str
    epochs_done: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def save_state(place: Path, state: TrainState, model: nn.Module, optimiser: Optimizer) -> None:
    """Save a training's state, whole or not at all.

    Parameters
    ----------
    place : Path
        The file.
    state : TrainState
        How far it has come.
    model, optimiser
        As they are now.
    """
    body = {"state": vars(state), "model": model.state_dict(), "optimiser": optimiser.state_dict()}
    with publish(place) as draft:
        torch.save(body, draft)


def load_state(place: Path, key: str, model: nn.Module, optimiser: Optimizer) -> TrainState | None:
    """Bring a model and its optimiser to a saved state.

    Parameters
    ----------
    place : Path
        The file; runs no code when it is read.
    key : str
        Of the training at hand.
    model, optimiser
        Of the training at hand; changed only when there is a state to go on from.

    Returns
    -------
    TrainState or None
        None when there is none, it cannot be read, or it is another training's.
    """
    if not place.is_file():
        return None
    try:
        body = torch.load(place, map_location="cpu", weights_only=True)
        state = TrainState(**body["state"])
        if state.key != key:
            _LOG.warning("%s is of another training and is put aside", place)
            return None
        model.load_state_dict(body["model"])
        optimiser.load_state_dict(body["optimiser"])
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        _LOG.warning("%s cannot be read (%s): the training starts anew", place, error)
        return None
    return state
