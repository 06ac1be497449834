"""Any plain vision transformer of timm as a frozen RGB encoder.

Tokens are the outputs of whole blocks (after both residual additions), **before** the model's final normalisation, as
the CellViT decoder was built to take them; class, distillation and register tokens are dropped. Blocks count from 1, as
in the CellViT and VirTues papers; timm itself counts from 0. Tiles of other sizes than the model was trained at are met
by timm's own resampling of the positional embedding (bicubic, antialiased) on every pass.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from slideloom.config.model import EncoderConfig
from slideloom.encoders.base import RGB, EncoderSpec, check_patch_px, check_tile, even_blocks, resolve_blocks
from slideloom.encoders.torchvision_guard import ensure_torchvision
from slideloom.encoders.weights import load_strict, read_weights
from slideloom.errors import SlideloomError
from slideloom.patches.statistics import ChannelStatistics

__all__ = ["PREFIX", "TimmViT", "build_timm"]

_LOG = logging.getLogger(__name__)
PREFIX = "timm/"
#: timm's modules whose models are plain vision transformers of one resolution.
_FAMILIES = ("vision_transformer", "deit", "eva")


class TimmViT:
    """A timm vision transformer with its blocks' tokens.

    Parameters
    ----------
    module : Module
        timm ``VisionTransformer`` or ``Eva`` made with ``dynamic_img_size=True``.
    spec : EncoderSpec
        What it declares.
    blocks : tuple of int
        Blocks to hand out, 1-based, rising.
    weights : str
        Where the weights came from, as :class:`~slideloom.encoders.base.Encoder` says.
    notes : tuple of str
        Remarks on the weights.
    """

    def __init__(
        self, module: nn.Module, spec: EncoderSpec, blocks: tuple[int, ...], weights: str, notes: tuple[str, ...] = ()
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        self.spec = spec
        self.blocks = blocks
        self.width = spec.width
        self.patch_px = spec.patch_px
        self.image_channels = len(RGB)
        self.markers: tuple[str, ...] = RGB
        self.weights = weights
        self.notes = notes

    def to(self, device: str) -> TimmViT:
        """Move the weights."""
        self.module.to(device)
        return self

    def preprocess(self, pixels: Tensor, statistics: ChannelStatistics | None = None) -> Tensor:
        """Scale to [0, 1] and standardise with the model's own mean and std; ``statistics`` plays no part.

        Parameters
        ----------
        pixels : Tensor
            (n, 3, h, w) uint8, red, green, blue.
        statistics : ChannelStatistics, optional
            Ignored.

        Returns
        -------
        Tensor
            (n, 3, h, w) float32.

        Raises
        ------
        SlideloomError
            ``encoder_channels``: not three channels of uint8.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != len(RGB):
            raise SlideloomError(
                f"pixels {tuple(pixels.shape)} of {pixels.dtype}",
                where=self.spec.name,
                expected="(n, 3, h, w) of uint8",
                code="encoder_channels",
            )
        mean, std = torch.tensor([self.spec.mean, self.spec.std], device=pixels.device)[:, :, None, None]
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> dict[int, Tensor]:
        """Tokens of each block.

        Parameters
        ----------
        images : Tensor
            (n, 3, h, w) preprocessed; h and w multiples of ``patch_px``.

        Returns
        -------
        dict of int to Tensor
            By block, (n, h / patch_px, w / patch_px, width), not normalised.
        """
        height, width = images.shape[-2:]
        check_tile(height, self.spec)
        check_tile(width, self.spec)
        run: Any = self.module.forward_intermediates
        levels: list[Tensor] = run(
            images,
            indices=[block - 1 for block in self.blocks],
            norm=False,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        grid = (len(images), height // self.patch_px, width // self.patch_px, self.width)
        return {block: tokens.reshape(grid) for block, tokens in zip(self.blocks, levels, strict=True)}


def build_timm(config: EncoderConfig) -> TimmViT:
    """Build from a config entry, with weights from a local checkpoint or from a seed. Nothing is downloaded.

    A checkpoint must hold exactly the model's keys; those of its classification head may be there and are left aside,
    which the encoder's ``notes`` say. Where its positional embedding has another (square) grid than the model's
    default, the model is made at that grid, so that nothing is resampled before a tile asks for it. Seeded weights are
    timm's own initial weights drawn from the seed; the global generator is left as it was.

    Parameters
    ----------
    config : EncoderConfig
        ``model`` is ``timm/<name>``, a pretrained tag included or not (``vit_small_patch16_224.dino``): the tag chooses
        mean and std. ``checkpoint`` or ``random``, ``blocks``, ``patch_px`` (the model's own, if given).

    Raises
    ------
    SlideloomError
        ``encoder_model``: no such model, or not a plain vision transformer. ``encoder_patch_px``, ``encoder_blocks``,
        and those of :mod:`slideloom.encoders.weights`.
    """
    name = config.model.removeprefix(PREFIX)
    side = re.search(r"patch(\d+)", name)
    if side:
        # Before a model of gigabytes is made for nothing.
        check_patch_px(int(side.group(1)), config.model)
    _check_name(name, config.model)
    notes: tuple[str, ...] = ()
    if config.checkpoint is not None:
        weights = read_weights(config.checkpoint)
        module = _make(name, config.model, 0)
        grid_px = _native_px(module, weights.tensors.get("pos_embed"))
        if grid_px is not None:
            module = _make(name, config.model, 0, img_size=grid_px)
        classifier = getattr(module, "pretrained_cfg", {}).get("classifier") or ()
        heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        dropped = load_strict(module, weights, config.model, heads)
        if dropped:
            notes += (f"classification head left aside: {', '.join(dropped)}",)
        origin = f"sha256:{weights.sha256}"
    elif config.random is not None:
        module = _make(name, config.model, config.random)
        origin = f"random:{config.random}"
        _LOG.warning("%s runs WITHOUT trained weights, from random seed %d", config.model, config.random)
    else:
        raise SlideloomError(
            "no weights are named", where=config.model, expected="checkpoint or random", code="encoder_weights"
        )
    spec = _spec(module, config.model)
    if config.patch_px not in (None, spec.patch_px):
        raise SlideloomError(
            f"patch_px {config.patch_px}",
            where=config.model,
            expected=f"{spec.patch_px}, the model's own",
            hint="Leave patch_px out",
            code="encoder_patch_px",
        )
    return TimmViT(module, spec, resolve_blocks(config.blocks, spec), origin, notes)


def _check_name(name: str, full_name: str) -> None:
    ensure_torchvision()
    import timm

    architecture = name.split(".")[0]
    known = [model for family in _FAMILIES for model in timm.list_models(module=family)]
    if architecture in known:
        return
    near = difflib.get_close_matches(architecture, known, 3, 0.5)
    what = "is not a plain vision transformer" if timm.is_model(name) else f"is no model of timm {timm.__version__}"
    raise SlideloomError(
        f"{name!r} {what}",
        where=full_name,
        expected=f"such as {', '.join(near or known[:3])}",
        hint="timm.list_models(module='vision_transformer') lists them",
        code="encoder_model",
    )


def _make(name: str, full_name: str, seed: int, **settings: Any) -> nn.Module:
    import timm
    from timm.layers.patch_embed import PatchEmbed
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True, **settings)
    if not isinstance(module, VisionTransformer | Eva) or not isinstance(module.patch_embed, PatchEmbed):
        raise SlideloomError(
            f"{type(module).__name__} is not a plain vision transformer", where=full_name, code="encoder_model"
        )
    return module


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


def _spec(module: Any, full_name: str) -> EncoderSpec:
    import timm

    height, width = module.patch_embed.patch_size
    if height != width:
        raise SlideloomError(f"tokens of {height} x {width} px", where=full_name, code="encoder_patch_px")
    check_patch_px(int(height), full_name)
    about = module.pretrained_cfg
    depth = len(module.blocks)
    published = about.get("hf_hub_id") or about.get("url") or "no published weights"
    return EncoderSpec(
        name=full_name,
        kind="rgb",
        patch_px=int(height),
        width=int(module.embed_dim),
        depth=depth,
        blocks=even_blocks(depth),
        tile_multiple_px=int(height),
        mean=tuple(float(value) for value in about["mean"]),
        std=tuple(float(value) for value in about["std"]),
        licence=str(about.get("license") or "not stated"),
        source=f"timm {timm.__version__}; {published}",
    )
