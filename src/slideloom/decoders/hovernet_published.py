"""Published HoVer-Net weights, every key accounted for.

The published checkpoints hold their state dict under ``desc``; trained on several devices, each name begins with
``module.``. Those that come from the first, TensorFlow, program, and those saved by PyTorch before 0.4.1, do not count
the batches that their normalisation has seen. All have the matrix of ones that doubled their maps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from slideloom.config.model import DecoderConfig, Head
from slideloom.decoders.base import HEAD_MODULES
from slideloom.decoders.hovernet import MODES, HoVerNet
from slideloom.encoders.checkpoints.weights import Weights, load_strict
from slideloom.errors import SlideloomError

__all__ = ["from_published", "published_name"]

_HEADS: dict[Head, str] = {"nucleus": "np", "hv": "hv", "classes": "tp"}
_DOUBLING = "upsample2x.unpool_mat"
_PARALLEL = "module."
_COUNTED = "num_batches_tracked"
_STEM = "conv0./.weight"
#: Our names and the published ones, tried in this order.
_NAMES = (
    (r"^encoder\.stem\.", "conv0./."),
    (r"^encoder\.stem_norm\.", "conv0.bn."),
    (r"^encoder\.bottom\.", "conv_bot."),
    (r"^encoder\.stages\.", "d"),
    *((rf"^{HEAD_MODULES[head]}\.", f"decoder.{name}.") for head, name in _HEADS.items()),
    (r"\.up1\.", ".u1.conva."),
    (r"\.up([23])\.enter\.", r".u\1.conva."),
    (r"\.up([23])\.leave\.", r".u\1.convf."),
    (r"\.up([23])\.dense\.", r".u\1.dense."),
    (r"^(decoder\.\w+)\.norm\.", r"\1.u0.bn."),
    (r"^(decoder\.\w+)\.last\.", r"\1.u0.conv."),
    (r"(dense\.units\.\d+)\.norm0\.", r"\1.preact_bna/bn."),
    (r"(units\.\d+)\.norm0\.", r"\1.preact/bn."),
    (r"(units\.\d+)\.norm(\d)\.", r"\1.conv\2/bn."),
    (r"\.norm\.", ".blk_bna.bn."),
)


def published_name(key: str) -> str:
    """Name that a weight of :class:`~slideloom.decoders.hovernet.HoVerNet` has in the published checkpoints.

    Examples
    --------
    >>> published_name("encoder.stages.1.units.0.norm2.bias")
    'd1.units.0.conv2/bn.bias'
    """
    for pattern, name in _NAMES:
        key = re.sub(pattern, name, key)
    return key


def from_published(state_dict: Mapping[str, Any], *, path: Path = Path("HoVer-Net's state dict")) -> HoVerNet:
    """Build the HoVer-Net that a published state dict belongs to, with its weights.

    Parameters
    ----------
    state_dict : mapping of str to Tensor
        As published, or what holds it under ``desc``.
    path : Path
        Its file, for errors.

    Returns
    -------
    HoVerNet
        On the CPU, in evaluation mode; mode, channels, and classes as the weights say. Heads ``nucleus``, ``hv`` and,
        where there are classes, ``classes``. The weights are copies. It expects images from 0 to 1, not to 255.

    Raises
    ------
    SlideloomError
        ``checkpoint_arch``: no HoVer-Net, or one of neither mode; ``checkpoint_keys``: keys missing, unexpected or of
        another shape.
    """
    tensors = _bare(state_dict)
    network = _network(tensors, path)
    own = {published_name(key): key for key in network.state_dict()}
    named = {own.get(key, key): value.clone() for key, value in tensors.items()}
    # The sum of ones doubles; another matrix would be another network.
    ones = named.pop(_DOUBLING, None)
    if ones is not None and not (tuple(ones.shape) == (2, 2) and bool((ones == 1).all())):
        raise _refused(path, f"{_DOUBLING} is not a 2 by 2 matrix of ones", "the published network's")
    if not any(key.endswith(_COUNTED) for key in named):
        named |= {key: torch.tensor(0) for key in own.values() if key.endswith(_COUNTED)}
    load_strict(network, Weights(named, "", path), where="HoVer-Net")
    return network.eval()


def _bare(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by the names that they have on one device."""
    held = state_dict.get("desc", state_dict)
    found: dict[str, Tensor] = dict(held)
    if found and all(key.startswith(_PARALLEL) for key in found):
        return {key.removeprefix(_PARALLEL): value for key, value in found.items()}
    return found


def _network(tensors: Mapping[str, Tensor], path: Path) -> HoVerNet:
    """The network without weights."""
    stem = tensors.get(_STEM)
    enter = tensors.get("decoder.np.u3.conva.weight")
    if stem is None or enter is None or stem.ndim != 4 or enter.ndim != 4:
        raise _refused(path, f"no {_STEM} and decoder.np.u3.conva.weight", "HoVer-Net's")
    modes: dict[int, Literal["fast", "original"]] = {mode.kernel: name for name, mode in MODES.items()}
    kernel = int(enter.shape[-1])
    if kernel not in modes:
        raise _refused(path, f"kernels of {kernel} pixels in its decoders", f"{' or '.join(map(str, modes))}")
    classes = tensors.get("decoder.tp.u0.conv.bias")
    heads = [head for head in _HEADS if head != "classes" or classes is not None]
    config = DecoderConfig(kind="hovernet", mode=modes[kernel])
    with torch.device("meta"):
        return HoVerNet(config, heads, 2 if classes is None else len(classes), 0, 16, int(stem.shape[1]))


def _refused(path: Path, what: str, expected: str) -> SlideloomError:
    return SlideloomError(
        what,
        where=str(path),
        expected=expected,
        hint="Name a checkpoint of the published PyTorch program",
        code="checkpoint_arch",
    )
