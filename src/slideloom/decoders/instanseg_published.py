"""InstanSeg as published: its settings found from the names and shapes of its weights, every one of them taken over.

A checkpoint of the program ``instanseg`` holds the weights under ``model_state_dict`` beside the optimiser's. The
settings that it was built with lie in a table beside it, whose texts the program runs as code; nothing of that is
needed here. Published names are, after a prefix ``model.`` where there is a ChannelNet:

==================================  ==================================================
``encoder.{level}.conv{0..4}``      encoder levels, finest first
``decoders.{d}.decoder.{level}``    ways back up, coarsest first
``decoders.{d}.final_block.{j}``    1×1 convolutions: place, spreads, seed; then again
``pixel_classifier.fc{1,2,3}``      the pixel classifier
``AdaptorNet.*``                    ChannelNet
==================================  ==================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from slideloom.adapters.base import Adapter
from slideloom.adapters.blocks import Norm
from slideloom.adapters.build import build_adapter
from slideloom.config.model import AdapterConfig, DecoderConfig, Head
from slideloom.decoders.instanseg import InstanSeg
from slideloom.decoders.instanseg_head import INSTANSEG_HEADS, PARTS
from slideloom.encoders.checkpoints.weights import Weights, load_strict, read_weights
from slideloom.errors import SlideloomError

__all__ = ["from_published", "read_published"]

_UNDER = "model_state_dict"
_ADAPTER = "AdaptorNet."
_BLOCKS = re.compile(r"decoders\.(\d+)\.final_block\.(\d+)\.0\.weight")
_ONE = list(PARTS)
#: Output channels of every decoder's convolutions: the heads they are, and whether each has levels of its own.
_LAYOUTS: tuple[tuple[list[list[int]], tuple[Head, ...], bool], ...] = (
    ([_ONE], INSTANSEG_HEADS[:1], False),
    ([_ONE + _ONE], INSTANSEG_HEADS, False),
    ([[channels] for channels in PARTS], INSTANSEG_HEADS[:1], True),
    ([_ONE, _ONE], INSTANSEG_HEADS, True),
)


def read_published(
    path: Path, *, aggregation: Literal["concat", "none"] = "concat"
) -> tuple[Adapter | None, InstanSeg]:
    """Read a published checkpoint, ``.pth`` or ``.safetensors``, without running code of it.

    Parameters
    ----------
    path : Path
        The weights; nothing else is read.
    aggregation : {"concat", "none"}
        As for :func:`from_published`.

    Returns
    -------
    adapter : Adapter or None
        Its ChannelNet, if any.
    network : InstanSeg
        What reads the adapter's output, or the image.

    Raises
    ------
    SlideloomError
        What :func:`~slideloom.encoders.checkpoints.weights.read_weights` and :func:`from_published` refuse.
    """
    return from_published(read_weights(path).tensors, path=path, aggregation=aggregation)


def from_published(
    content: Mapping[str, Any],
    *,
    path: Path = Path("the state dict"),
    aggregation: Literal["concat", "none"] = "concat",
) -> tuple[Adapter | None, InstanSeg]:
    """Build ChannelNet and network for published weights, and load them, every key accounted for.

    Parameters
    ----------
    content : mapping
        A state dict, or a checkpoint that holds one under ``model_state_dict``. A prefix ``module.``, which training on
        several GPUs leaves, is taken off.
    path : Path
        Where it is from, for errors.
    aggregation : {"concat", "none"}
        How a ChannelNet that has ``reduce_block`` uses it. The ablated model (``none``) has the same names and shapes
        as the published one, so that no file tells them apart; ``sum`` is found, for it has no such weights.

    Returns
    -------
    adapter : Adapter or None
        ChannelNet with its weights (:meth:`~slideloom.adapters.base.Adapter.recipe` and its state dict); None: there is
        none.
    network : InstanSeg
        With the heads ``instanseg`` (nuclei, or the only kind there is), and ``instanseg_cells``. Both in training
        mode, on the CPU.

    Raises
    ------
    SlideloomError
        ``checkpoint_keys``: the names or shapes are of no InstanSeg that there is here, or do not all fit.
    """
    inner = content.get(_UNDER, content)
    tensors = {str(key): value for key, value in inner.items()}
    for prefix in ("module.", "model."):
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    front = {key.removeprefix(_ADAPTER): value for key, value in tensors.items() if key.startswith(_ADAPTER)}
    rest = {key: value for key, value in tensors.items() if not key.startswith(_ADAPTER)}
    network = _network(rest, path)
    load_strict(network, Weights(rest, "", path), "InstanSeg")
    if not front:
        return None, network
    adapter = _adapter(front, path, aggregation)
    load_strict(adapter, Weights(front, "", path), "ChannelNet")
    if adapter.out_channels != network.image_channels:
        raise _unknown(path, f"a ChannelNet of {adapter.out_channels} channels and a network that reads others")
    return adapter, network


def _network(tensors: Mapping[str, Tensor], path: Path) -> InstanSeg:
    """The network that the weights are of, with initial weights."""
    widths = _widths(tensors, "encoder.{}.conv0.0.weight")
    if not widths:
        raise _unknown(path, "no weight encoder.0.conv0.0.weight")
    blocks: dict[int, dict[int, int]] = {}
    for key, value in tensors.items():
        if found := _BLOCKS.fullmatch(key):
            blocks.setdefault(int(found[1]), {})[int(found[2])] = value.shape[0]
    channels = [[own[j] for j in sorted(own)] for _, own in sorted(blocks.items())]
    layouts = [(heads, multihead) for layout, heads, multihead in _LAYOUTS if layout == channels]
    if not layouts:
        raise _unknown(path, f"convolutions of {channels} output channels")
    ((heads, multihead),) = layouts
    config = DecoderConfig(kind="instanseg", widths=widths, multihead=multihead)
    return InstanSeg(config, heads, 2, 1, 16, int(tensors["encoder.0.conv0.0.weight"].shape[1]))


def _adapter(tensors: Mapping[str, Tensor], path: Path, aggregation: Literal["concat", "none"]) -> Adapter:
    """The ChannelNet that the weights are of, with initial weights."""
    stages = ("conv_0", "down_1", "down_2")
    last = tensors.get("final_conv.0.weight")
    firsts = [tensors.get(f"{stage}.conv0.0.weight") for stage in stages]
    fine, half, quarter = (0 if first is None else int(first.shape[0]) for first in firsts)
    if last is None or not (fine and half and quarter):
        raise _unknown(path, "an adapter that is no ChannelNet")
    norm: Norm = "none"
    if "conv_0.conv0.1.weight" in tensors:
        norm = "batch" if "conv_0.conv0.1.running_mean" in tensors else "instance"
    config = AdapterConfig(
        kind="channelnet",
        out_channels=int(last.shape[0]),
        aggregation=aggregation if "conv_0.reduce_block.0.weight" in tensors else "sum",
        widths=(fine, half, quarter),
        norm=norm,
    )
    return build_adapter(config)


def _widths(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    widths: list[int] = []
    while (key := name.format(len(widths))) in tensors:
        widths.append(int(tensors[key].shape[0]))
    return tuple(widths)


def _unknown(path: Path, what: str) -> SlideloomError:
    known: Sequence[list[list[int]]] = [layout for layout, _, _ in _LAYOUTS]
    return SlideloomError(
        f"{path} holds {what}",
        where="InstanSeg",
        expected=f"the weights of an InstanSeg U-Net with outputs of {' or '.join(map(str, known))} channels",
        hint="Models with two seed maps, more spreads or another backbone run as TorchScript only, if at all",
        code="checkpoint_keys",
    )
