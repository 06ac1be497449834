"""The state that a killed training goes on from."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from slideloom.artefacts.files import publish

__all__ = ["Stateful", "TrainState", "load_state", "save_state"]

_LOG = logging.getLogger(__name__)


class Stateful(Protocol):
    """A part of a training that changes as it goes: network, optimiser, running mean, loss scale."""

    def state_dict(self) -> Any:
        """What it depends on."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Inverse of :meth:`state_dict`."""


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
        The decoder's weights of that epoch; empty where the last epoch's are kept.
    best_encoder : dict of str to Tensor
        The encoder's, when it had been trained by then.
    """

    key: str
    epochs_done: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    best_encoder: dict[str, Tensor] = field(default_factory=dict)


def save_state(place: Path, state: TrainState, parts: Mapping[str, Stateful]) -> None:
    """Save a training's state, whole or not at all.

    Parameters
    ----------
    place : Path
        The file.
    state : TrainState
        How far it has come.
    parts : mapping of str to Stateful
        All that changes from step to step, as it is now.
    """
    body = {"state": vars(state), "parts": {name: part.state_dict() for name, part in parts.items()}}
    with publish(place) as draft:
        torch.save(body, draft)


def load_state(place: Path, key: str, parts: Mapping[str, Stateful]) -> TrainState | None:
    """Bring the parts of a training to a saved state.

    Parameters
    ----------
    place : Path
        The file; runs no code when it is read.
    key : str
        Of the training at hand.
    parts : mapping of str to Stateful
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
        saved = {name: body["parts"][name] for name in parts}
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        _LOG.warning("%s cannot be read (%s): the training starts anew", place, error)
        return None
    # The key is this training's, so what was saved fits.
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return state
