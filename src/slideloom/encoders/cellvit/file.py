"""What a published CellViT checkpoint says of itself: model, sizes, classes, normalisation, magnification.

Sizes come from the shapes of its tensors wherever these tell; the training's settings, which are stored beside them,
tell the rest. Files without settings (converted to safetensors, say) are told apart by their shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from slideloom.config.catalogue import CATALOGUE, EncoderEntry
from slideloom.encoders.base import even_blocks
from slideloom.encoders.checkpoints.recognise import Seen, recognise
from slideloom.encoders.checkpoints.weights import Weights
from slideloom.errors import SlideloomError

__all__ = ["CELLVIT_PARTS", "CellViTFile", "arch_entry", "describe_checkpoint", "guess_arch"]

#: Top-level modules of a CellViT besides its encoder, of all variants.
CELLVIT_PARTS = (
    *(f"decoder{level}" for level in range(4)),
    "nuclei_binary_map_decoder",
    "hv_map_decoder",
    "nuclei_type_maps_decoder",
    "decoder",
    "classifier_head",
)
#: Class names as checkpoints store them, without the ending of those with one decoder for all.
_CLASSES = {
    "CellViT": "vit",
    "CellViT256": "vit256",
    "CellViTSAM": "",
    "CellViTUNI": "uni",
    "CellViTVirchow": "virchow",
    "CellViTVirchow2": "virchow2",
}
_BACKBONES = {"SAM-B": "sam_b", "SAM-L": "sam_l", "SAM-H": "sam_h"}
_SHARED = "Shared"
_KERNEL, _POSITIONS = "encoder.patch_embed.proj.weight", "encoder.pos_embed"
_IN_NAME = re.compile(r"[-_]x(20|40)(?=[-_.]|$)")
_CLASS_NAME = "dataset_config.nuclei_types."
#: Resolutions that a magnification stands for, µm per pixel.
_MPP_UM = {40: (0.20, 0.30), 20: (0.40, 0.60)}


@dataclass(frozen=True)
class CellViTFile:
    """A CellViT checkpoint in short.

    Attributes
    ----------
    arch : str
        Of the encoder, as in the catalogue: ``vit256``, ``sam_h`` …
    sizes : mapping
        Settings for :func:`~slideloom.encoders.cellvit.encoder.encoder_module`, tissue classes not among them.
    extract_layers : tuple of int
        Blocks that the decoder reads, 1-based.
    num_nuclei_classes, num_tissue_classes : int
        The background is one of the first.
    regression : bool
        Whether the binary branch also predicts where a nucleus' centre lies.
    shared : bool
        Whether one decoder serves all three heads.
    mean, std : tuple of float
        Of RGB scaled to [0, 1].
    magnification : int, optional
        40 or 20, of the images it was trained on; None: it does not tell.
    class_names : tuple of str
        Of the nuclei, by class; empty: it does not tell.
    """

    arch: str
    sizes: Mapping[str, Any]
    extract_layers: tuple[int, ...]
    num_nuclei_classes: int
    num_tissue_classes: int
    regression: bool = False
    shared: bool = False
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    magnification: int | None = None
    class_names: tuple[str, ...] = field(default=())

    @property
    def model(self) -> str:
        """Name in the catalogue."""
        return f"cellvit/{self.arch}"

    @property
    def mpp_um(self) -> tuple[float, float] | None:
        """Lowest and highest resolution it is made for, µm per pixel; None: it does not tell."""
        return _MPP_UM.get(self.magnification or 0)


def arch_entry(arch: str) -> EncoderEntry:
    """The catalogue's entry of an architecture such as ``sam_b``."""
    return CATALOGUE[f"cellvit/{arch}"]


def describe_checkpoint(weights: Weights) -> CellViTFile:
    """Read off a whole CellViT checkpoint what is needed to build the model again.

    Parameters
    ----------
    weights : Weights
        Of a ``.pth`` with ``arch`` and ``config``, or of bare tensors.

    Raises
    ------
    SlideloomError
        ``checkpoint_arch``: not a CellViT, or of a class that is not known. ``checkpoint_config``: its settings
        lack what its tensors do not tell, or contradict them.
    """
    tensors, config = weights.tensors, weights.config
    shared = "nuclei_binary_map_decoder.weight" in tensors
    last = "weight" if shared else "decoder0_header.2.weight"
    tissue = "classifier_head.weight" if "classifier_head.weight" in tensors else "encoder.head.weight"
    binary, types = f"nuclei_binary_map_decoder.{last}", f"nuclei_type_maps_decoder.{last}"
    missing = [key for key in (_KERNEL, _POSITIONS, tissue, binary, types) if key not in tensors]
    if missing or tensors[_KERNEL].ndim != 4 or tensors[_POSITIONS].ndim not in (3, 4):
        raise SlideloomError(
            f"{weights.path} is no whole CellViT checkpoint: "
            + (f"it lacks {', '.join(missing)}" if missing else f"{_KERNEL} or {_POSITIONS} has another shape"),
            expected="an encoder, a decoder and its heads",
            code="checkpoint_arch",
        )
    arch = _arch(weights)
    try:
        sizes = _sizes(weights, arch)
        layers = config.get("model.extract_layers") if arch == "vit" else None
        return CellViTFile(
            arch=arch,
            sizes=sizes,
            extract_layers=tuple(int(layer) for layer in layers) if layers else even_blocks(sizes["depth"]),
            num_nuclei_classes=len(tensors[types]),
            num_tissue_classes=len(tensors[tissue]),
            regression=len(tensors[binary]) > 2,
            shared=shared,
            mean=_triple(config, "transformations.normalize.mean"),
            std=_triple(config, "transformations.normalize.std"),
            magnification=_magnification(weights),
            class_names=_class_names(config, len(tensors[types])),
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise SlideloomError(
            f"the settings in {weights.path} do not describe a CellViT: {error}",
            hint="Use the checkpoint as the training wrote it",
            code="checkpoint_config",
        ) from error


def guess_arch(tensors: Mapping[str, Tensor]) -> str | None:
    """The published architecture with an encoder's shapes.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Among them the encoder's, under any prefix.

    Returns
    -------
    str or None
        As in the catalogue; None: it is none of them.
    """
    seen = _seen(tensors)
    found = [
        entry.arch
        for entry in CATALOGUE.values()
        if entry.family == "cellvit"
        and entry.arch.startswith("sam") == (seen.kind == "sam")
        and (entry.width, entry.depth, entry.token_px) == (seen.width, seen.depth, seen.token_px)
        and (entry.prefix_tokens > 1) == any(key.endswith("reg_token") for key in tensors)
    ]
    return found[0] if found else None


def _seen(tensors: Mapping[str, Tensor]) -> Seen:
    return recognise({key: tuple(tensor.shape) for key, tensor in tensors.items()})


def _arch(weights: Weights) -> str:
    """Architecture in the catalogue's words: as the file says, else by its shapes."""
    said = weights.arch.removesuffix(_SHARED)
    if said and said not in _CLASSES:
        raise SlideloomError(
            f"{weights.path} says that it is a {weights.arch}",
            expected=" or ".join(_CLASSES),
            code="checkpoint_arch",
        )
    named = _BACKBONES.get(str(weights.config.get("model.backbone"))) if said == "CellViTSAM" else _CLASSES.get(said)
    seen = guess_arch(weights.tensors)
    if named and named != "vit" and seen not in (None, named):
        raise SlideloomError(
            f"{weights.path} says that it is a {weights.arch}, but its encoder is that of cellvit/{seen}",
            expected=f"the tensors of cellvit/{named}",
            hint="Take the file that its authors publish",
            code="checkpoint_arch",
        )
    found = named or seen
    if found is None and not said and weights.tensors[_POSITIONS].ndim == 3:
        found = "vit"
    if found is None:
        raise SlideloomError(
            f"the encoder in {weights.path} is of no published size",
            expected=" or ".join(_BACKBONES) + " as model.backbone in its settings",
            code="checkpoint_arch",
        )
    return found


def _sizes(weights: Weights, arch: str) -> dict[str, Any]:
    tensors, entry = weights.tensors, arch_entry(arch)
    kernel, positions = tensors[_KERNEL], tensors[_POSITIONS]
    width, patch_px = kernel.shape[0], kernel.shape[-1]
    sizes: dict[str, Any] = {"embed_dim": width, "depth": _seen(tensors).depth}
    if positions.ndim == 4:
        tables = {k: tensors.get(f"encoder.blocks.{k - 1}.attn.rel_pos_h") for k in range(1, sizes["depth"] + 1)}
        reach = {k: tuple(table.shape) for k, table in tables.items() if table is not None and table.ndim == 2}
        whole = 2 * positions.shape[1] - 1
        windows = [(length + 1) // 2 for length, _ in reach.values() if length != whole]
        return sizes | {
            "heads": width // max((size for _, size in reach.values()), default=0),
            "img_size": positions.shape[1] * patch_px,
            "global_blocks": tuple(k for k, (length, _) in reach.items() if length == whole),
            "window": windows[0] if windows else 0,
        }
    heads = int((entry.heads if width == entry.width else weights.config.get("model.num_heads")) or 0)
    if heads < 1 or width % heads:
        raise ValueError(f"model.num_heads is {heads or 'missing'} where a token is {width} long")
    grid = math.isqrt(positions.shape[1] - entry.prefix_tokens)
    return sizes | {"heads": heads, "img_size": grid * patch_px}


def _triple(config: Mapping[str, Any], key: str) -> tuple[float, ...]:
    red, green, blue = config.get(key) or (0.5, 0.5, 0.5)
    return float(red), float(green), float(blue)


def _magnification(weights: Weights) -> int | None:
    """From a setting called magnification; else from the file's name, as published: ``CellViT-SAM-H-x40.pth``."""
    said = [value for key, value in weights.config.items() if key.rsplit(".", 1)[-1] == "magnification"]
    named = _IN_NAME.search(weights.path.name)
    found = said[0] if said else named[1] if named else None
    return next((value for value in _MPP_UM if str(found) in (str(value), f"x{value}", f"{value}.0")), None)


def _class_names(config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    named = {int(value): key.removeprefix(_CLASS_NAME) for key, value in config.items() if key.startswith(_CLASS_NAME)}
    return tuple(named[k] for k in range(count)) if set(named) == set(range(count)) else ()
