"""Vision transformers of timm as frozen RGB encoders: the pathology foundation models, and any plain one by its name.

Tokens are the outputs of whole blocks (after both residual additions), **before** the model's final normalisation, as
the CellViT decoder was built to take them; class, distillation and register tokens are dropped. Blocks count from 1, as
in the CellViT and VirTues papers; timm itself counts from 0. Tiles of other sizes than the model was trained at are met
by timm's own resampling of the positional embedding (bicubic, antialiased) on every pass.
"""

from __future__ import annotations

import difflib
import logging
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from slideloom.config.catalogue import EncoderEntry
from slideloom.config.model import EncoderConfig
from slideloom.encoders.base import (
    EncoderSpec,
    check_final_norm,
    check_own_patch,
    check_patch_px,
    check_tile,
    even_blocks,
    resolve_blocks,
)
from slideloom.encoders.checkpoints.weights import load_strict, read_weights
from slideloom.encoders.rgb import RGBEncoder
from slideloom.encoders.timm_models.torchvision_guard import ensure_torchvision
from slideloom.encoders.timm_models.transformers_keys import is_transformers_layout, to_timm_keys
from slideloom.errors import SlideloomError

__all__ = ["PREFIX", "TimmViT", "bare_encoder", "build_timm", "make_module"]

_LOG = logging.getLogger(__name__)
PREFIX = "timm/"
#: timm's modules whose models are plain vision transformers of one resolution.
_FAMILIES = ("vision_transformer", "deit", "eva")
#: Tokens of this side seldom divide a tile: the tile is brought to the multiple below.
_RESIZED_PX = 14


class TimmViT(RGBEncoder):
    """A timm vision transformer with its blocks' tokens; see :class:`~slideloom.encoders.rgb.RGBEncoder`.

    ``module`` is timm's ``VisionTransformer`` or ``Eva``, made with ``dynamic_img_size=True``.
    """

    def tokens(self, images: Tensor) -> dict[int, Tensor]:
        """Tokens of each block, in the caller's gradient mode.

        Parameters
        ----------
        images : Tensor
            (n, 3, h, w) preprocessed; h and w multiples of ``patch_px``. With tokens of 14 px they may be any size from
            14 px on, and are reduced to the multiple below, each pixel a mean over its area.

        Returns
        -------
        dict of int to Tensor
            By block, (n, h // patch_px, w // patch_px, width), not normalised; with ``spec.final_norm`` the last
            block's are.

        Raises
        ------
        SlideloomError
            ``encoder_tile_px``: tiles that hold no whole number of tokens, or none.
        """
        images = self._whole_tokens(images)
        height, width = images.shape[-2:]
        module: Any = self.module
        levels: list[Tensor] = module.forward_intermediates(
            images,
            indices=[block - 1 for block in self.blocks],
            norm=False,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        if self.spec.final_norm:
            levels[-1] = module.norm(levels[-1])
        grid = (len(images), height // self.patch_px, width // self.patch_px, self.width)
        return {block: tokens.reshape(grid) for block, tokens in zip(self.blocks, levels, strict=True)}

    def _whole_tokens(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if self.patch_px != _RESIZED_PX:
            check_tile(height, self.spec)
            check_tile(width, self.spec)
            return images
        size = [side // _RESIZED_PX * _RESIZED_PX for side in (height, width)]
        if not all(size):
            raise SlideloomError(
                f"tiles of {height} x {width} px",
                where=self.spec.name,
                expected=f"at least {_RESIZED_PX} px",
                code="encoder_tile_px",
            )
        return images if size == [height, width] else functional.interpolate(images, size=size, mode="area")


def build_timm(config: EncoderConfig, entry: EncoderEntry) -> TimmViT:
    """Build from a config entry, with weights from a local checkpoint or from a seed. Nothing is downloaded.

    A checkpoint must hold exactly the model's keys, in timm's layout or in that of transformers; those of its
    classification head, pooler or mask token may be there and are left aside, which the encoder's ``notes`` say. Where
    its positional embedding has another (square) grid than the model's default, the model is made at that grid, so that
    nothing is resampled before a tile asks for it. The model takes the checkpoint's tensors themselves: gigabytes are
    held once. Seeded weights are timm's own initial weights drawn from the seed; the global generator is left as it
    was.

    Parameters
    ----------
    config : EncoderConfig
        ``model`` is a name of the catalogue, such as ``uni2_h``, or ``timm/<name>``; one of ``checkpoint`` and
        ``random`` is set.
    entry : EncoderEntry
        The catalogue's, for that model. Its mean, deviation, resolution, licence and source count for the models that
        have a name of their own; those of ``timm/<name>`` come from timm.

    Returns
    -------
    TimmViT
        On the CPU, in evaluation mode, weights frozen.

    Raises
    ------
    SlideloomError
        ``encoder_model``, ``encoder_weights``, ``encoder_patch_px``, ``encoder_blocks``, ``encoder_final_norm``, and
        those of :mod:`slideloom.encoders.checkpoints.weights`.
    """
    if entry.token_px is not None:
        # Before a model of gigabytes is made for nothing.
        check_patch_px(entry.token_px, config.model)
    notes: tuple[str, ...] = ()
    if config.checkpoint is not None:
        module, origin, notes = _load(config, entry)
    elif config.random is not None:
        module, origin = make_module(entry, config.random), f"random:{config.random}"
        _LOG.warning("%s runs WITHOUT trained weights, from random seed %d", config.model, config.random)
    else:
        raise SlideloomError(
            "no weights are named", where=config.model, expected="checkpoint or random", code="encoder_weights"
        )
    spec = _spec(module, entry, config.final_norm)
    check_own_patch(config, spec)
    blocks = resolve_blocks(config.blocks, spec)
    if config.final_norm:
        # Models that pool first normalise the mean of the tokens.
        check_final_norm(blocks, spec, not isinstance(module.norm, nn.Identity))
    if spec.patch_px == _RESIZED_PX:
        notes += (f"tiles whose side is no multiple of {_RESIZED_PX} px are reduced to the multiple below",)
    return TimmViT(module, spec, blocks, origin, notes)


def make_module(entry: EncoderEntry, seed: int = 0, device: str = "cpu", **settings: Any) -> nn.Module:
    """The bare timm model of an entry, with timm's initial weights drawn from a seed.

    Parameters
    ----------
    entry : EncoderEntry
        Of a model of timm.
    seed : int
        Of the weights.
    device : str
        Where they lie; ``meta``: nowhere, for counting and for weights that come later.
    **settings
        Of timm's model, over the entry's.

    Raises
    ------
    SlideloomError
        ``encoder_model``: timm has no such model, or it is no plain vision transformer.
    """
    ensure_torchvision()
    import timm
    from timm.layers.patch_embed import PatchEmbed
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    _check_name(entry)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(seed)
        module: nn.Module = timm.create_model(
            entry.arch, pretrained=False, num_classes=0, dynamic_img_size=True, **_arguments(entry, settings)
        )
    if not isinstance(module, VisionTransformer | Eva) or not isinstance(module.patch_embed, PatchEmbed):
        raise SlideloomError(
            f"{type(module).__name__} is not a plain vision transformer", where=entry.name, code="encoder_model"
        )
    return module


def bare_encoder(entry: EncoderEntry) -> TimmViT:
    """An encoder whose weights are nowhere (on the meta device): for counting sizes and costs."""
    module = make_module(entry, device="meta")
    spec = _spec(module, entry, False)
    return TimmViT(module, spec, spec.blocks, "none")


def _arguments(entry: EncoderEntry, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as timm takes them: layers by class where the catalogue has their names."""
    from timm.layers.mlp import SwiGLUPacked
    from timm.layers.norm import LayerNorm

    told = {**entry.settings, **settings}
    if told.get("mlp_layer") == "swiglu_packed":
        told["mlp_layer"] = SwiGLUPacked
    if "norm_eps" in told:
        told["norm_layer"] = partial(LayerNorm, eps=told.pop("norm_eps"))
    return told


def _check_name(entry: EncoderEntry) -> None:
    import timm

    architecture = entry.arch.split(".")[0]
    known = [model for family in _FAMILIES for model in timm.list_models(module=family)]
    if architecture in known:
        return
    near = difflib.get_close_matches(architecture, known, 3, 0.5)
    what = (
        "is not a plain vision transformer" if timm.is_model(entry.arch) else f"is no model of timm {timm.__version__}"
    )
    raise SlideloomError(
        f"{entry.arch!r} {what}",
        where=entry.name,
        expected=f"such as {', '.join(near or known[:3])}",
        hint="timm.list_models(module='vision_transformer') lists them",
        code="encoder_model",
    )


def _load(config: EncoderConfig, entry: EncoderEntry) -> tuple[nn.Module, str, tuple[str, ...]]:
    assert config.checkpoint is not None
    weights = read_weights(config.checkpoint)
    module: Any = make_module(entry, device="meta")
    aside: tuple[str, ...] = ()
    if is_transformers_layout(weights.tensors):
        weights, aside = to_timm_keys(weights, class_position=not getattr(module, "no_embed_class", False))
    grid = {"img_size": side} if (side := _native_px(module, weights.tensors.get("pos_embed"))) else {}
    unsaved = {name for name, _ in module.named_buffers()} - set(module.state_dict())
    # Buffers that no checkpoint holds (rotary positions) must be computed: such a model is made for real.
    module = make_module(entry, device="cpu" if unsaved else "meta", **grid) if unsaved or grid else module
    classifier = module.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    aside += load_strict(module, weights, config.model, heads)
    notes = (f"left aside, for it is no part of the encoder: {', '.join(aside)}",) if aside else ()
    return module, f"sha256:{weights.sha256}", notes


def _native_px(module: Any, positions: Tensor | None) -> int | None:
    """Image side at which the positions would have the checkpoint's shape; None: they have it, or no side gives it."""
    own = getattr(module, "pos_embed", None)
    if positions is None or own is None or positions.ndim != 3 or positions.shape == own.shape:
        return None
    prefix = 0 if getattr(module, "no_embed_class", False) else int(module.num_prefix_tokens)
    tokens = positions.shape[1] - prefix
    side = math.isqrt(max(0, tokens))
    if side < 1 or side * side != tokens:
        return None
    return side * int(module.patch_embed.patch_size[0])


def _spec(module: Any, entry: EncoderEntry, final_norm: bool) -> EncoderSpec:
    import timm

    height, width = module.patch_embed.patch_size
    if height != width:
        raise SlideloomError(f"tokens of {height} x {width} px", where=entry.name, code="encoder_patch_px")
    check_patch_px(int(height), entry.name)
    depth = len(module.blocks)
    named = not entry.name.startswith(PREFIX)
    about = module.pretrained_cfg
    published = about.get("hf_hub_id") or about.get("url") or "no published weights"
    return EncoderSpec(
        name=entry.name,
        kind="rgb",
        patch_px=int(height),
        width=int(module.embed_dim),
        depth=depth,
        blocks=even_blocks(depth),
        tile_multiple_px=1 if height == _RESIZED_PX else int(height),
        mpp_um=entry.mpp_um,
        mean=entry.mean if named else tuple(float(value) for value in about["mean"]),
        std=entry.std if named else tuple(float(value) for value in about["std"]),
        licence=entry.licence if named else str(about.get("license") or "not stated"),
        source=entry.source if named else f"timm {timm.__version__}; {published}",
        prefix_tokens=int(module.num_prefix_tokens),
        final_norm=final_norm,
    )
