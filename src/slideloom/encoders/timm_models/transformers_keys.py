"""Vision transformers published in the layout of the transformers library, under timm's names.

Two layouts are known: ``ViTModel`` (Phikon, DINO) and ``Dinov2Model`` (Phikon-v2, DINOv2), with or without register
tokens. They hold the same numbers as timm's model; query, key and value are three layers there and one in timm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from slideloom.encoders.checkpoints.weights import Weights

__all__ = ["is_transformers_layout", "to_timm_keys"]

_PROJECTION = "embeddings.patch_embeddings.projection.weight"
_QKV = ("query", "key", "value")
#: Parts that a model for pretraining or classification has besides: mask token, pooler, classifier.
_ASIDE = re.compile(r"(embeddings\.mask_token|pooler\..+|classifier\..+)")
_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
#: Inside a layer; of ViT first, then of Dinov2.
_IN_LAYER = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}


def is_transformers_layout(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict names its tensors as transformers does."""
    return _stem(tensors) is not None


def to_timm_keys(weights: Weights, *, class_position: bool) -> tuple[Weights, tuple[str, ...]]:
    """Rename a state dict in the layout of transformers to timm's names.

    Parameters
    ----------
    weights : Weights
        As read.
    class_position : bool
        Whether the timm model's ``pos_embed`` starts with the class token's. Where it does not (models with registers),
        that position is added to the class token, which is the same.

    Returns
    -------
    renamed : Weights
        Under timm's names. Keys that have no place there keep their names, so that strict loading lists them.
    aside : tuple of str
        Keys of a mask token, a pooler or a classifier, which are not in ``renamed``.
    """
    stem = _stem(weights.tensors) or ""
    found: dict[str, Tensor] = {}
    aside: list[str] = []
    for name, tensor in weights.tensors.items():
        key = name.removeprefix(stem)
        if _ASIDE.fullmatch(key):
            aside.append(name)
            continue
        new = _timm_key(key)
        found[name if new is None or new in found else new] = tensor
    _join_attention(found)
    positions, token = found.get("pos_embed"), found.get("cls_token")
    if not class_position and positions is not None and token is not None and positions.ndim == token.ndim == 3:
        found["cls_token"] = token + positions[:, :1]
        found["pos_embed"] = positions[:, 1:]
    return replace(weights, tensors=found), tuple(aside)


def _stem(tensors: Mapping[str, Tensor]) -> str | None:
    """What stands before every key, such as ``vit.``; None: another layout."""
    return next((key.removesuffix(_PROJECTION) for key in tensors if key.endswith(_PROJECTION)), None)


def _timm_key(key: str) -> str | None:
    if key in _TOP:
        return _TOP[key]
    layer = _LAYER.fullmatch(key)
    if layer is None:
        return None
    index, rest = layer.groups()
    if rest in _IN_LAYER:
        return f"blocks.{index}.{_IN_LAYER[rest]}"
    part, _, kind = rest.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if part.removeprefix("attention.attention.") in _QKV and part.startswith("attention.attention."):
        # Joined below.
        return f"blocks.{index}.{part}.{kind}"
    return f"blocks.{index}.{_IN_LAYER[part]}.{kind}" if part in _IN_LAYER else None


def _join_attention(found: dict[str, Tensor]) -> None:
    """Replace each whole set of query, key and value by one ``qkv``; a set that is not whole stays, and is refused."""
    for name in [name for name in found if ".attention.attention.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in _QKV]
        if all(part in found for part in parts):
            found[name.replace("attention.attention.query", "attn.qkv")] = torch.cat([found.pop(p) for p in parts])
