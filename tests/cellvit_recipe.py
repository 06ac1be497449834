"""Weights and images of the CellViT fixtures, made by recipe; the fixtures' README says how, and why none is stored."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slideloom.encoders.cellvit.encoder import encoder_module
from slideloom.encoders.cellvit.sam import SAMEncoder
from slideloom.encoders.cellvit.vit import ViT

__all__ = ["encoder", "golden", "image", "key_list", "keys_of", "models", "weight", "weights"]

#: Key lists and architectures whose names do not follow from the fixture's.
_KEYS = {
    "tiny_vit_224": "tiny_vit",
    "cellvit256_real": "CellViT256",
    "cellvit_sam_b_real": "CellViTSAM-B",
    "cellvit_sam_h_real": "CellViTSAM-H",
}
_ARCHS = {"CellViT": "vit", "CellViT256": "vit256", "CellViTUNI": "uni", "CellViTVirchow": "virchow"}
_ARCHS |= {"CellViTVirchow2": "virchow2", "CellViTSAM-B": "sam_b", "CellViTSAM-H": "sam_h", "CellViTSAM": "sam_b"}
Keys = list[tuple[str, tuple[int, ...]]]


def key_list(shared: Path, name: str, prefix: str = "") -> Keys:
    """Keys and shapes of ``keys_<name>.json``, in order; with ``prefix``, only those that begin so (it is kept)."""
    listed = json.loads((shared / "fixtures" / "cellvit" / f"keys_{name}.json").read_text())["keys"]
    return [(key, tuple(shape)) for key, shape, _ in listed if key.startswith(prefix)]


def weight(key: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of one key: drawn from the key's own seed, scaled by what the last part of its name is."""
    drawn = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.tensor(7, dtype=torch.int64)
    if last == "running_var":
        values = 0.5 + np.abs(drawn)
    elif last == "running_mean":
        values = 0.1 * drawn
    elif last == "bias":
        values = 0.05 * drawn
    elif last == "gamma":
        values = 0.5 + 0.2 * drawn
    elif len(shape) == 1:
        values = 1 + 0.1 * drawn
    elif last == "weight":
        values = drawn * math.sqrt((2 if len(shape) == 4 else 1) / math.prod(shape[1:]))
    else:
        values = 0.2 * drawn
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def weights(keys: Iterable[tuple[str, tuple[int, ...]]], strip: str = "") -> dict[str, Tensor]:
    """Tensors of some keys; ``strip`` is taken off the front of their names once they are drawn."""
    return {key.removeprefix(strip): weight(key, shape) for key, shape in keys}


def image(model: str, case: str, shape: tuple[int, ...]) -> Tensor:
    """Input of a case of a model, (n, 3, h, w) float32 in [-1, 1]."""
    drawn = np.random.RandomState(zlib.crc32(f"{model}/{case}".encode())).uniform(-1, 1, shape)
    return torch.from_numpy(drawn.astype(np.float32))


def models(shared: Path) -> dict[str, Any]:
    """``models.json``: of each model its arguments and the cases with their shapes and strides."""
    listed: dict[str, Any] = json.loads((shared / "fixtures" / "cellvit" / "models.json").read_text())
    return {name: about for name, about in listed.items() if "cases" in about}


def golden(shared: Path, model: str) -> dict[str, Tensor]:
    """Outputs of the original program by ``case/output``; 4-D maps stand at the stride that models.json tells."""
    with np.load(shared / "fixtures" / "cellvit" / f"model_{model}.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def keys_of(model: str) -> str:
    """The key list of a fixture's model."""
    return _KEYS.get(model, model)


def encoder(shared: Path, model: str) -> ViT | SAMEncoder:
    """A fixture's encoder, tissue head or neck included, with the recipe's weights, frozen."""
    about = models(shared)[model]
    given = about.get("args", {})
    sizes = {
        "embed_dim": given.get("embed_dim"),
        "depth": given.get("depth"),
        "heads": given.get("num_heads"),
        "img_size": given.get("img_size"),
    }
    if "global_attn_indexes" in given:
        sizes["global_blocks"] = [index + 1 for index in given["global_attn_indexes"]]
    name = keys_of(model)
    arch = _ARCHS.get(name) or _ARCHS[about["class"]]
    with torch.device("meta"):
        module = encoder_module(arch, **sizes, tissue_classes=19)
    module.load_state_dict(weights(key_list(shared, name, "encoder."), strip="encoder."), strict=True, assign=True)
    return module.eval().requires_grad_(False)
