"""Weights from disk: read without running code, digest recorded, every key accounted for."""

from __future__ import annotations

import json
import pickle
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from slideloom.encoders.checkpoints.files import check_file, file_sha256, read_archive, read_header, unreadable
from slideloom.encoders.checkpoints.safe_pickle import STAND_INS, Settings
from slideloom.errors import SlideloomError

__all__ = ["Weights", "load_strict", "read_weights"]

#: Where training programs keep the weights inside a larger checkpoint. DINO keeps two networks: its teacher, the mean
#: of the student over time, is the one that is used.
_INNER = ("state_dict", "model_state_dict", "model", "desc", "teacher", "student")
_SHOWN = 12
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
#: torch keeps the names it lets in for the whole process: one file at a time, or one would close the door on another.
_DOOR = threading.Lock()


@dataclass(frozen=True)
class Weights:
    """Named tensors and the digest of the file they came from.

    Attributes
    ----------
    tensors : dict of str to Tensor
        On the CPU, in the types of the file; mapped from it where the format allows, so that what is not used is not
        read.
    sha256 : str
        64 hexadecimal digits of the file's bytes.
    path : Path
        The file.
    arch : str
        Class of the model, where the checkpoint says it (CellViT's do); else empty.
    config : mapping of str to value
        Settings of the training, where the checkpoint holds them: one level, nested keys joined with a dot, plain
        Python values.
    under : str
        Key of the larger checkpoint that held the tensors, such as ``teacher``; empty: they stood at the top.
    """

    tensors: dict[str, Tensor]
    sha256: str
    path: Path
    arch: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    under: str = ""


def read_weights(path: Path, *, digest: bool = True) -> Weights:
    """Read ``.safetensors``, or a PyTorch file whose pickle holds tensors and plain values only.

    Parameters
    ----------
    path : Path
        ``.safetensors``, ``.pth``, ``.pt``, ``.bin``, ``.ckpt`` or ``.tar``. A PyTorch file may hold the state dict
        itself or under ``state_dict``, ``model_state_dict``, ``model``, ``desc``, ``teacher`` or ``student``; and
        ``arch`` and ``config`` beside it. In safetensors these two are texts of the metadata, ``config`` as JSON.
    digest : bool
        Also read the file through for its SHA-256; without, ``sha256`` is empty, for a look at a file only.

    Returns
    -------
    Weights
        Everything that was there, unchecked against any model: :func:`load_strict` does that.

    Raises
    ------
    SlideloomError
        ``missing_checkpoint``; ``unsafe_checkpoint``: would run code when unpickled, and names what; nothing of it
        was run. ``unreadable_checkpoint``: cut short, not a checkpoint (it says what it is instead), or without a state
        dict.

    Notes
    -----
    Besides tensors, lists, dicts and numbers, PyTorch files may hold NumPy scalars and an ``argparse.Namespace``, as
    training programs leave them; see :mod:`slideloom.encoders.checkpoints.safe_pickle`.
    """
    kind = check_file(path)
    if kind == "safetensors":
        tensors, metadata = _load_safetensors(path)
        under, arch, config = "", metadata.get("arch"), _json(metadata.get("config", ""))
    else:
        content = _load_torch(path, kind)
        under, tensors = _state_dict(content, path)
        arch, config = (content.get("arch"), content.get("config")) if under else (None, None)
    settings = dict(_flat(config)) if isinstance(config, Mapping | Settings) else {}
    sha256 = file_sha256(path) if digest else ""
    return Weights(tensors, sha256, path, arch if isinstance(arch, str) else "", settings, under)


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    metadata = read_header(path).metadata  # looks closer than the library does
    try:
        return load_file(path), metadata
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise unreadable(path, f"is not a whole checkpoint: {error}".splitlines()[0]) from error


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _load_torch(path: Path, kind: str) -> Any:
    stored = False
    if kind == "zip":
        archive = read_archive(path)
        if archive.script:
            raise _unsafe(path, "is a TorchScript program")
        stored = archive.stored
    lent: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(own, name) for name, own in STAND_INS.items()]
    try:
        with _DOOR, torch.serialization.safe_globals(lent), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what they cannot do is told as an error
            return torch.load(path, map_location="cpu", weights_only=True, mmap=stored)
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        what = f"would run {found[1]}" if found else "holds a pickle that is no plain data"
        raise _unsafe(path, what) from error
    except Exception as error:
        # A damaged pickle fails in any way there is: inside the unpickler, or where a tensor is built from it.
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise unreadable(path, f"is not a whole checkpoint: {first}") from error


def _unsafe(path: Path, what: str) -> SlideloomError:
    return SlideloomError(
        f"{path} cannot be read as data alone: it {what}",
        expected="tensors and plain values",
        hint="Nothing of it was run. Convert it to safetensors in a place where you trust it",
        code="unsafe_checkpoint",
    )


def _state_dict(content: Any, path: Path) -> tuple[str, dict[str, Tensor]]:
    """The named tensors of a checkpoint, and the key that they stood under."""
    inner = {"": content}
    if isinstance(content, Mapping):
        inner |= {key: content[key] for key in _INNER if key in content}
    for under, candidate in inner.items():
        if not isinstance(candidate, Mapping) or not any(isinstance(value, Tensor) for value in candidate.values()):
            continue
        odd = [str(key) for key, value in candidate.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
        if odd:
            raise unreadable(
                path,
                f"holds {len(odd)} entries among its weights that are no named tensors: {_some(odd)}",
                "Remove them, or name the checkpoint that holds weights alone",
            )
        return under, dict(candidate)
    held = _some(sorted(map(str, content))) if isinstance(content, Mapping) else type(content).__name__
    raise SlideloomError(
        f"{path} holds no state dict but {held or 'nothing'}",
        expected=f"named tensors, at the top or under {', '.join(_INNER)}",
        code="unreadable_checkpoint",
    )


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings in one level: pairs of a dotted name and a plain value."""
    if isinstance(value, Settings):
        value = value.values
    if not isinstance(value, Mapping):
        yield prefix, _plain(value)
        return
    for name, inner in value.items():
        yield from _flat(inner, f"{prefix}.{name}" if prefix else str(name))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Tensor):
        return value.tolist() if value.numel() <= _SHOWN else f"tensor of shape {tuple(value.shape)}"
    return str(value)


def load_strict(module: nn.Module, weights: Weights, where: str, droppable: Sequence[str] = ()) -> tuple[str, ...]:
    """Load weights into a module, every key of both accounted for.

    Parameters
    ----------
    module : Module
        Takes the weights. On the meta device, it takes the tensors themselves, so that nothing is allocated twice; then
        do not train it, or a second module loaded from ``weights`` would change with it.
    weights : Weights
        Its weights. Real ones of another precision, such as float16, take the module's: float32.
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
        ``checkpoint_keys``: lists keys that are missing, unexpected, of another shape or of another kind.
    """
    own = module.state_dict()
    given = weights.tensors
    extra = [key for key in given if key not in own]
    dropped = tuple(key for key in extra if any(key == name or key.startswith(f"{name}.") for name in droppable))
    missing = [key for key in own if key not in given]
    unexpected = [key for key in extra if key not in dropped]
    misfits = [f"{key} {fault}" for key, value in own.items() if key in given and (fault := _misfit(given[key], value))]
    wrong = [("missing", missing), ("unexpected", unexpected), ("misshapen", misfits)]
    if any(keys for _, keys in wrong):
        told = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in wrong if keys)
        made = f" (it says that it is a {weights.arch})" if weights.arch else ""
        raise SlideloomError(
            f"{weights.path}{made} does not fit: {told}",
            where=where,
            expected=f"exactly the {len(own)} keys of the model",
            hint="Name the model that the checkpoint was made with",
            code="checkpoint_keys",
        )
    tensors = {key: given[key].to(value.dtype) for key, value in own.items()}
    module.load_state_dict(tensors, strict=True, assign=any(value.is_meta for value in own.values()))
    return dropped


def _misfit(given: Tensor, own: Tensor) -> str:
    """Why a tensor cannot take the place of another; empty when it can."""
    if given.shape != own.shape:
        return f"{tuple(given.shape)} instead of {tuple(own.shape)}"
    if given.is_quantized or given.layout != torch.strided:
        return "is quantised or sparse"
    if given.dtype != own.dtype and not (given.is_floating_point() and own.is_floating_point()):
        return f"{given.dtype} instead of {own.dtype}"
    return ""


def _some(keys: Sequence[str]) -> str:
    more = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
