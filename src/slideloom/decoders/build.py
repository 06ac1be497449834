"""The decoder that a config asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from slideloom.config.model import DecoderConfig, Head
from slideloom.decoders.base import Decoder
from slideloom.decoders.cellvit import CellViTDecoder
from slideloom.decoders.instanseg_head import INSTANSEG_HEADS, PixelClassifier
from slideloom.decoders.linear import LinearDecoder
from slideloom.decoders.whole import WholeNetwork
from slideloom.encoders.base import DECODER_INPUTS

__all__ = ["build_decoder", "decoder_from_recipe"]


def build_decoder(
    config: DecoderConfig,
    heads: Sequence[Head],
    n_classes: int,
    token_width: int,
    upsampling: int,
    image_channels: int,
    seed: int | None = None,
    *,
    patch_px: int | None = None,
    regression: bool = False,
    n_blocks: int = DECODER_INPUTS,
) -> Decoder:
    """Build the decoder that a config asks for, with PyTorch's initial weights.

    Parameters
    ----------
    config, heads, n_classes, token_width, upsampling, image_channels, patch_px, regression
        As for :class:`~slideloom.decoders.base.Decoder`.
    seed : int, optional
        Draw the weights from this seed and leave the global generator as it was; left out: draw from the global one.
    n_blocks : int
        How many encoder blocks :func:`~slideloom.decoders.cellvit.expand_blocks` spreads, 1 to 4; matters to a linear
        decoder with skips only.

    Returns
    -------
    Decoder
        Of the kind that ``config.kind`` names; on the CPU, float32, in training mode.
    """
    sizes: dict[str, Any] = {"patch_px": patch_px, "regression": regression}

    def build() -> Decoder:
        decoder = plain()
        if set(INSTANSEG_HEADS) & set(heads) and not hasattr(decoder, "pixel_classifier"):
            # Any decoder may have InstanSeg's head; what reads its maps is learned with them.
            decoder.add_module("pixel_classifier", PixelClassifier())
        return decoder

    def plain() -> Decoder:
        places = (config, heads, n_classes, token_width, upsampling, image_channels)
        if config.kind == "linear":
            return LinearDecoder(*places, **sizes, n_blocks=n_blocks)
        return _kind(config.kind)(*places, **sizes)

    if seed is None:
        return build()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


def _kind(name: str) -> type[Decoder]:
    """The class of a kind; networks that an experiment does not use are not imported."""
    if name == "unet":
        from slideloom.decoders.unet import UNet

        return UNet
    if name == "hovernet":
        from slideloom.decoders.hovernet import HoVerNet

        return HoVerNet
    if name == "instanseg":
        from slideloom.decoders.instanseg import InstanSeg

        return InstanSeg
    return CellViTDecoder


def decoder_from_recipe(recipe: Mapping[str, Any]) -> Decoder:
    """Build the decoder that :meth:`Decoder.recipe` described; its weights are yours to load."""
    if "refinement" in recipe:
        from slideloom.decoders.refinement import refined_from_recipe

        return refined_from_recipe(recipe)
    arguments = dict(recipe)
    rescale = arguments.pop("rescale", None)
    decoder = build_decoder(DecoderConfig.model_validate(arguments.pop("config")), **arguments)
    if rescale is not None:
        assert isinstance(decoder, WholeNetwork)
        decoder.rescale = (rescale[0], rescale[1])
    return decoder
