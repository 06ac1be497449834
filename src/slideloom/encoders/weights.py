"""Weights from disk: read without running code, digest recorded, every key accounted for."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from slideloom.errors import SlideloomError

__all__ = ["Weights", "load_strict", "read_weights"]

#: Where training programs keep the weights inside a larger checkpoint.
_INNER = ("state_dict", "model_state_dict", "model")
_SHOWN = 12


@dataclass(frozen=True)
class Weights:
    """Named tensors and the digest of the file they came from.

    Attributes
    ----------
    tensors : dict of str to Tensor
        On the CPU.
    sha256 : str
        64 hexadecimal digits of the file's bytes.
    path : Path
        The file.
    """

    tensors: dict[str, Tensor]
    sha256: str
    path: Path


def read_weights(path: Path) -> Weights:
    """Read ``.safetensors``, or a PyTorch file whose pickle holds tensors and plain values only.

    Parameters
    ----------
    path : Path
        Checkpoint. A PyTorch file may hold the state dict itself or under ``state_dict``, ``model_state_dict`` or
        ``model``.

    Raises
    ------
    SlideloomError
        ``missing_checkpoint``; ``unsafe_checkpoint``: would run code when unpickled; ``unreadable_checkpoint``:
        truncated, not a checkpoint, or without a state dict.
    """
    if not path.is_file():
        raise SlideloomError(
            f"no checkpoint at {path}",
            hint="Put the file there, or set random: <seed> to run without weights; nothing is ever downloaded",
            code="missing_checkpoint",
        )
    try:
        content: Any = load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    except pickle.UnpicklingError as error:
        raise SlideloomError(
            f"{path} cannot be read without running code that it contains",
            expected="tensors and plain values",
            hint="Convert it to safetensors in a place where you trust it",
            code="unsafe_checkpoint",
        ) from error
    except (SafetensorError, BadZipFile, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise SlideloomError(
            f"{path} is not a whole checkpoint: {error}".splitlines()[0],
            hint="Copy it again and compare its sha256 with the publisher's",
            code="unreadable_checkpoint",
        ) from error
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return Weights(_state_dict(content, path), digest, path)


def _load_torch(path: Path) -> Any:
    with path.open("rb") as handle:
        start = handle.read(2)
    if start != b"PK" and start[:1] != b"\x80":
        # torch would call a web page saved under the wrong name an unsafe pickle.
        raise ValueError("neither a PyTorch archive nor a pickle")
    return torch.load(path, map_location="cpu", weights_only=True)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    inner = [content] + [content[key] for key in _INNER if isinstance(content, Mapping) and key in content]
    for candidate in inner:
        if isinstance(candidate, Mapping) and candidate and all(isinstance(v, Tensor) for v in candidate.values()):
            return {str(name): tensor for name, tensor in candidate.items()}
    held = ", ".join(sorted(map(str, content))[:_SHOWN]) if isinstance(content, Mapping) else type(content).__name__
    raise SlideloomError(
        f"{path} holds no state dict but {held or 'nothing'}",
        expected=f"named tensors, at the top or under {', '.join(_INNER)}",
        code="unreadable_checkpoint",
    )


def load_strict(module: nn.Module, weights: Weights, where: str, droppable: Sequence[str] = ()) -> tuple[str, ...]:
    """Load weights into a module, every key of both accounted for.

    Parameters
    ----------
    module : Module
        Takes the weights.
    weights : Weights
        Its weights.
    where : str
        The encoder's name, for the error.
    droppable : sequence of str
        Names of submodules, such as a classification head, whose weights may lie in the file although the module has
        none.

    Returns
    -------
    tuple of str
        Keys that were left aside because of ``droppable``.

    Raises
    ------
    SlideloomError
        ``checkpoint_keys``: lists keys that are missing, unexpected or of another shape.
    """
    own = module.state_dict()
    given = weights.tensors
    extra = [key for key in given if key not in own]
    dropped = tuple(key for key in extra if any(key == name or key.startswith(f"{name}.") for name in droppable))
    missing = [key for key in own if key not in given]
    unexpected = [key for key in extra if key not in dropped]
    misfits = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(value.shape)}"
        for key, value in own.items()
        if key in given and given[key].shape != value.shape
    ]
    wrong = [("missing", missing), ("unexpected", unexpected), ("misshapen", misfits)]
    if any(keys for _, keys in wrong):
        told = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in wrong if keys)
        raise SlideloomError(
            f"{weights.path} does not fit: {told}",
            where=where,
            expected=f"exactly the {len(own)} keys of the model",
            hint="Name the model that the checkpoint was made with",
            code="checkpoint_keys",
        )
    module.load_state_dict({key: given[key] for key in own}, strict=True)
    return dropped


def _some(keys: Sequence[str]) -> str:
    more = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
