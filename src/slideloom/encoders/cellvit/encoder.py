"""The encoders of the CellViT models, as frozen RGB encoders.

Weights come from any of the files that their authors publish: a whole CellViT, of which the encoder is taken; the plain
DINO file of ViT-256; the whole of SAM or MedSAM, or its image encoder alone; the bare file of a foundation model. What
is left aside is known by name and noted; any other key is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slideloom.config.catalogue import EncoderEntry
from slideloom.config.model import EncoderConfig
from slideloom.encoders.base import (
    EncoderSpec,
    check_final_norm,
    check_own_patch,
    check_tile,
    even_blocks,
    resolve_blocks,
)
from slideloom.encoders.cellvit.file import CELLVIT_PARTS, CellViTFile, arch_entry, describe_checkpoint, guess_arch
from slideloom.encoders.cellvit.sam import SAMEncoder
from slideloom.encoders.cellvit.vit import ViT
from slideloom.encoders.checkpoints.weights import Weights, load_strict, read_weights
from slideloom.encoders.rgb import RGBEncoder
from slideloom.errors import SlideloomError

__all__ = ["CellViTEncoder", "CellViTFile", "build_cellvit", "describe_checkpoint", "encoder_module"]

_LOG = logging.getLogger(__name__)
_SAM = ("sam_b", "sam_l", "sam_h")
#: Of a whole CellViT and of a whole SAM, where the encoder's keys begin.
_WHOLE, _WHOLE_SAM = "encoder.", "image_encoder."
#: Where they may begin besides; the middle ones as DINO writes them.
_PREFIXES = (_WHOLE, _WHOLE_SAM, "module.backbone.", "backbone.", "module.", "")
_FIRST_KEY = "patch_embed.proj.weight"
#: Of a whole SAM, besides its image encoder.
_SAM_PARTS = ("prompt_encoder", "mask_decoder")
#: SAM's own, given for pixels up to 255: 123.675, 116.28, 103.53 and 58.395, 57.12, 57.375.
_SAM_MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: Spread of seeded weights, as vision transformers are commonly started from.
_INIT_STD = 0.02


class CellViTEncoder(RGBEncoder):
    """The encoder of a CellViT; see :class:`~slideloom.encoders.rgb.RGBEncoder` for its parameters."""

    module: ViT | SAMEncoder

    def tokens(self, images: Tensor) -> dict[int, Tensor]:
        """Tokens of each block, in the caller's gradient mode.

        Parameters
        ----------
        images : Tensor
            (n, 3, h, w) preprocessed. Tokens of 14 px: any size, brought to the next smaller multiple by area as the
            CellViT++ models do; else h and w are multiples of 16.

        Returns
        -------
        dict of int to Tensor
            By block, (n, h // patch_px, w // patch_px, width), before any normalisation, the last block's after the
            final one where the spec says so.

        Raises
        ------
        SlideloomError
            ``encoder_tile_px``: another size, or more than 1024 px for SAM.
        """
        for side in images.shape[-2:]:
            check_tile(side, self.spec)
        if isinstance(self.module, ViT):
            return self.module.run(images, self.blocks, self.spec.final_norm)
        return self.module.run(images, self.blocks)


def encoder_module(
    arch: str,
    *,
    embed_dim: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    img_size: int | None = None,
    global_blocks: Sequence[int] | None = None,
    window: int = 14,
    tissue_classes: int = 0,
) -> ViT | SAMEncoder:
    """An encoder without weights, its state-dict keys those of the published files (less their prefix).

    Parameters
    ----------
    arch : str
        ``vit256``, ``sam_b``, ``sam_l``, ``sam_h``, ``uni``, ``virchow``, ``virchow2``, or ``vit`` with sizes.
    embed_dim, depth, heads : int, optional
        Other sizes than the published ones.
    img_size : int, optional
        Side of the image that the learned positions stand for, pixels.
    global_blocks : sequence of int, optional
        SAM: blocks that attend to the whole image, 1-based.
    window : int
        SAM: side of the windows of the other blocks, tokens.
    tissue_classes : int
        Classes of the tissue head; 0: without that head, and without SAM's neck, which nothing else reads.

    Raises
    ------
    ValueError
        ``vit`` without sizes.
    """
    entry = arch_entry(arch)
    embed_dim, depth, heads = embed_dim or entry.width, depth or entry.depth, heads or entry.heads
    if not embed_dim or not depth or not heads or not entry.token_px:
        raise ValueError(f"{arch} needs embed_dim, depth and heads")
    patch_px = entry.token_px
    if arch in _SAM:
        return SAMEncoder(
            embed_dim,
            depth,
            heads,
            global_blocks=even_blocks(depth) if global_blocks is None else global_blocks,
            window=window,
            grid=(img_size or 1024) // patch_px,
            neck=256 if tissue_classes else 0,
        )
    named = arch in ("uni", "virchow", "virchow2")
    packed = patch_px == 14
    return ViT(
        embed_dim,
        depth,
        heads,
        patch_px=patch_px,
        grid=(img_size or 224) // patch_px,
        registers=entry.prefix_tokens - 1,
        layer_scale=named,
        mlp_ratio=5.3375 if packed else 4.0,
        gated=packed,
        positions="timm" if named else "dino",
        resize=packed,
        tissue_classes=tissue_classes,
        tissue_norm=not named,
    )


def build_cellvit(config: EncoderConfig, entry: EncoderEntry) -> CellViTEncoder:
    """Build from a config entry, with weights from a local checkpoint or from a seed. Nothing is downloaded.

    Parameters
    ----------
    config : EncoderConfig
        ``checkpoint`` or ``random``, ``blocks``, ``final_norm``, ``patch_px`` (the model's own, if given).
    entry : EncoderEntry
        Of the catalogue's family ``cellvit``.

    Raises
    ------
    SlideloomError
        ``checkpoint_arch``: the file holds another model; its name is told. ``encoder_weights``: no weights, or a seed
        for a model that has no sizes of its own. ``encoder_blocks``, among them ``final_norm`` for
        SAM, which has none; ``encoder_patch_px``, and those of :mod:`slideloom.encoders.checkpoints.weights`.
    """
    notes: tuple[str, ...] = ()
    if config.checkpoint is not None:
        weights = read_weights(config.checkpoint)
        module, spec, notes = _from_file(weights, config, entry)
        origin = f"sha256:{weights.sha256}"
    elif config.random is not None and entry.width:
        module = _seeded(entry, config.random)
        spec = _spec(config, entry, module)
        origin = f"random:{config.random}"
        _LOG.warning("%s runs WITHOUT trained weights, from random seed %d", config.model, config.random)
    else:
        raise SlideloomError(
            "no weights are named",
            where=config.model,
            expected="checkpoint or random" if entry.width else "checkpoint, which also tells the model's sizes",
            code="encoder_weights",
        )
    check_own_patch(config, spec)
    blocks = resolve_blocks(config.blocks, spec)
    if spec.final_norm:
        check_final_norm(blocks, spec, isinstance(module, ViT))
    if spec.tile_multiple_px != spec.patch_px:
        notes += (f"tiles whose side is no multiple of {spec.patch_px} px are reduced to the multiple below",)
    return CellViTEncoder(module, spec, blocks, origin, notes)


def _from_file(
    weights: Weights, config: EncoderConfig, entry: EncoderEntry
) -> tuple[ViT | SAMEncoder, EncoderSpec, tuple[str, ...]]:
    """The encoder in a file, what it declares, and what a reader must know of it."""
    tensors = weights.tensors
    prefix = next((start for start in _PREFIXES if f"{start}{_FIRST_KEY}" in tensors), "")
    whole = describe_checkpoint(weights) if prefix == _WHOLE and _holds(tensors, CELLVIT_PARTS) else None
    arch = whole.arch if whole else guess_arch(tensors)
    if (arch or entry.arch) != entry.arch or not (whole or entry.width):
        told = f"the encoder of cellvit/{arch}" if arch else "no whole CellViT"
        raise SlideloomError(
            f"{weights.path} holds {told}",
            where=config.model,
            expected=f"a checkpoint of {config.model}",
            hint=f"Set model: cellvit/{arch}, or give another file" if arch else "Give the checkpoint of a training",
            code="checkpoint_arch",
        )
    # Only a model without published sizes takes them from its file; any other must have its own.
    sizes = whole.sizes if whole and not entry.width else {}
    with torch.device("meta"):
        module = encoder_module(entry.arch, **sizes)
    wrapped: nn.Module = module
    for part in reversed(prefix.split(".")[:-1]):
        wrapped = nn.ModuleDict({part: wrapped})
    outer = prefix.removesuffix("backbone.")
    parts = [f"{outer}head", f"{prefix}head", f"{prefix}neck"]
    parts += CELLVIT_PARTS if prefix == _WHOLE else _SAM_PARTS if prefix == _WHOLE_SAM else ()
    dropped = load_strict(wrapped, weights, config.model, parts)
    notes: tuple[str, ...] = (f"left aside: {', '.join(_names(dropped, parts))}",) if dropped else ()
    if whole:
        about: dict[str, Any] = {
            "mean": whole.mean,
            "std": whole.std,
            "blocks": whole.extract_layers,
            "mpp_um": whole.mpp_um or entry.mpp_um,
        }
        return module, _spec(config, entry, module, **about), notes
    about = dict(zip(("mean", "std"), _SAM_MEAN_STD, strict=True)) if entry.arch in _SAM else {}
    return module, _spec(config, entry, module, **about), (*notes, *_remarks(entry, weights))


def _holds(tensors: Mapping[str, Tensor], parts: Sequence[str]) -> bool:
    return any(key.startswith(f"{part}.") for key in tensors for part in parts)


def _names(keys: Sequence[str], parts: Sequence[str]) -> list[str]:
    """Those of the parts that some key belongs to."""
    return [part for part in dict.fromkeys(parts) if any(key.startswith(f"{part}.") for key in keys)]


def _remarks(entry: EncoderEntry, weights: Weights) -> tuple[str, ...]:
    """What to know of weights that are not of a whole CellViT."""
    notes: tuple[str, ...] = (
        (f"weights of the checkpoint's {weights.under}",) if weights.under in ("teacher", "student") else ()
    )
    if entry.arch in _SAM:
        notes += (
            "normalised as SAM's images; MedSAM's file cannot be told from SAM's, but was trained on images scaled by "
            "their own minimum and maximum",
        )
    elif entry.arch != "vit256":
        notes += ("normalised as CellViT++ does, not as the foundation model's own entry",)
    if entry.token_px == 14:
        notes += ("the MLP's gate is GELU as in CellViT++, whereas Virchow was trained with SiLU",)
    return notes


def _seeded(entry: EncoderEntry, seed: int) -> ViT | SAMEncoder:
    """An encoder whose matrices and embeddings are drawn from a seed; the global generator is left as it was."""
    with torch.device("meta"):
        module = encoder_module(entry.arch)
    module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, values in module.named_parameters():
            if values.ndim > 1:
                nn.init.trunc_normal_(values, std=_INIT_STD, generator=generator)
            else:
                values.fill_(0.0 if name.endswith("bias") else 1.0)
    return module


def _spec(config: EncoderConfig, entry: EncoderEntry, module: ViT | SAMEncoder, **about: Any) -> EncoderSpec:
    patch_px = module.patch_px
    declared: dict[str, Any] = {
        "blocks": even_blocks(module.depth),
        "mean": entry.mean,
        "std": entry.std,
        "mpp_um": entry.mpp_um,
    }
    return EncoderSpec(
        name=config.model,
        kind="rgb",
        patch_px=patch_px,
        width=module.width,
        depth=module.depth,
        # Tokens of 14 px: images of any size are brought to a fitting one.
        tile_multiple_px=1 if patch_px == 14 else patch_px,
        licence=entry.licence,
        source=entry.source,
        prefix_tokens=module.prefix_tokens,
        final_norm=config.final_norm,
        **(declared | about),
    )
