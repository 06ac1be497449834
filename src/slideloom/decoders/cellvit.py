"""The CellViT decoder: four token maps and the image in, dense maps of the image's size out.

Source: Hörst et al., "CellViT: Vision Transformers for precise cell segmentation and classification" (2024). At 16-fold
upsampling, width 1 and separate branches the state dict has the published models' names and shapes (their decoder
part); with shared branches those of their shared variant.

Stages and their sizes, relative to the image (``a``, ``b``, ``c`` are 256, 128, 312 for tokens narrower than 512, else
512, 256, 512; ``D`` is the tokens' width):

==================  ===================================  ==========  ==========
module              what                                 16×         8×
==================  ===================================  ==========  ==========
tokens              z1 … z4, ``D`` channels              1/16        1/8
decoder0            image → 64                           1           1
decoder1            z1 → ``a`` → ``b`` → 128             1/16 → 1/2  1/8 → 1/2
decoder2            z2 → ``a`` → 256                     1/16 → 1/4  1/8 → 1/4
decoder3            z3 → ``c``                           1/16 → 1/8  1/8
bottleneck          z4 → ``c``                           1/16 → 1/8  1/8
decoder3_upsampler  skip 3, bottleneck → 256             1/8 → 1/4   1/8 → 1/4
decoder2_upsampler  skip 2, previous → 128               1/4 → 1/2   1/4 → 1/2
decoder1_upsampler  skip 1, previous → 64                1/2 → 1     1/2 → 1
decoder0_header     skip 0, previous → outputs           1           1
==================  ===================================  ==========  ==========

8×: tokens of 8 pixels meet the same stages when one doubling less precedes each. So the **first** transposed 2×2
convolution of each way from the tokens (decoder1, decoder2, decoder3 and the bottleneck) is a 1×1 convolution instead;
the 3×3 convolution, normalisation and activation behind it stay, as does everything downstream, and no name changes.
The first, not a later one, because it is where the maps are smallest and the channel count changes.

Tokens of 14 pixels: no doubling leads from 14 to one, so (as in the Virchow models of CellViT++) all is brought up
16-fold and then bilinearly to the tile's size just before the header. The image skip sees the image averaged down to
the 14 pixels a token that the encoder saw, and its result is brought to the tile's size, too.

Two differences from the original, neither visible in a state dict or in evaluation: the skips decoder0 … decoder3 are
computed once, not once a branch (17 % of a CellViT-256's work at 256 px), and so their running statistics move once a
training step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from slideloom.config.model import DecoderConfig, Head
from slideloom.decoders.blocks import scaled_channels
from slideloom.decoders.branches import Branch, resized, skip_ways
from slideloom.encoders.base import DECODER_INPUTS, spread
from slideloom.errors import SlideloomError

__all__ = ["HEADS", "CellViTDecoder", "build_decoder", "decoder_from_recipe", "expand_blocks"]

HEADS: tuple[Head, ...] = get_args(Head)
_BRANCH: dict[Head, str] = {
    "nucleus": "nuclei_binary_map_decoder",
    "hv": "hv_map_decoder",
    "classes": "nuclei_type_maps_decoder",
    "boundary": "boundary_map_decoder",
}


def expand_blocks(tokens: Sequence[Tensor]) -> list[Tensor]:
    """Spread the tokens of one to four encoder blocks over the decoder's four inputs.

    The deepest block is always z4; with fewer than four, neighbours are repeated: of one block ``[1, 1, 1, 1]``, of two
    ``[1, 1, 2, 2]``, of three ``[1, 2, 3, 3]``.

    Parameters
    ----------
    tokens : sequence of Tensor
        Shallow to deep.

    Returns
    -------
    list of Tensor
        z1 … z4; repeated entries are the same tensor.

    Raises
    ------
    SlideloomError
        No tensor, or more than four.
    """
    return [tokens[index] for index in spread(len(tokens))]


class CellViTDecoder(nn.Module):
    """Decoder from four token maps and an image to the maps of its heads.

    ``decoder.to(memory_format=torch.channels_last)`` is safe and usually faster; token maps that come as (n, h, w, d)
    and are permuted to (n, d, h, w) are in that format already.

    Parameters
    ----------
    config : DecoderConfig
        Width, skips, branches, dropout.
    heads : sequence of {"nucleus", "hv", "classes", "boundary"}
        Which outputs; each once, any subset.
    n_classes : int
        Classes including background.
    token_width : int
        Channels of the token maps.
    upsampling : {8, 14, 16}
        What the convolutions bring the tokens' height and width up by; 14 is short for 16 with ``patch_px`` 14.
    image_channels : int
        Channels of the image that the image skip reads; unused without it.
    patch_px : {8, 14, 16}, optional
        Image pixels a token; ``upsampling`` when left out.
    regression : bool
        Whether the nucleus branch gives two more channels, as published models with a regression loss do.

    Attributes
    ----------
    upsampling : {8, 16}
        As above.
    patch_px : {8, 14, 16}
        As above.

    Raises
    ------
    SlideloomError
        Upsampling other than 8, 14 or 16, or one that does not fit the tokens' side; no head, or one twice; less than
        two classes for the class head; a regression without the nucleus head.
    """

    def __init__(
        self,
        config: DecoderConfig,
        heads: Sequence[Head],
        n_classes: int,
        token_width: int,
        upsampling: int,
        image_channels: int,
        *,
        patch_px: int | None = None,
        regression: bool = False,
    ) -> None:
        super().__init__()
        patch_px = upsampling if patch_px is None else patch_px
        upsampling = 16 if upsampling == 14 else upsampling
        _check_sides(upsampling, patch_px)
        _check_heads(heads, n_classes, regression)
        self.config = config
        self.heads: tuple[Head, ...] = tuple(head for head in HEADS if head in heads)
        self.n_classes = n_classes
        self.token_width = token_width
        self.upsampling = upsampling
        self.patch_px = patch_px
        self.regression = regression
        self.image_channels = image_channels
        first_factor = 2 if upsampling == 16 else 1
        outputs: dict[Head, int] = {"nucleus": 4 if regression else 2, "hv": 2, "classes": n_classes, "boundary": 1}
        skips = skip_ways(token_width, image_channels, config, first_factor)
        self._skip_stages = tuple(skips)
        if config.branches == "shared":
            self.decoder = Branch(token_width, config, first_factor, None, skips)
            last = scaled_channels(64, config.width)
            for head in self.heads:
                self.add_module(_BRANCH[head], nn.Conv2d(last, outputs[head], kernel_size=1))
        else:
            for stage, module in skips.items():
                self.add_module(f"decoder{stage}", module)
            for head in self.heads:
                self.add_module(_BRANCH[head], Branch(token_width, config, first_factor, outputs[head]))

    def recipe(self) -> dict[str, Any]:
        """JSON values from which :func:`decoder_from_recipe` builds the same decoder (without its weights)."""
        return {
            "config": self.config.model_dump(mode="json"),
            "heads": list(self.heads),
            "n_classes": self.n_classes,
            "token_width": self.token_width,
            "upsampling": self.upsampling,
            "image_channels": self.image_channels,
            "patch_px": self.patch_px,
            "regression": self.regression,
        }

    def last_layer(self, head: Head) -> str:
        """Name of the 1×1 convolution whose output channels are those of a head."""
        return _BRANCH[head] if self.config.branches == "shared" else f"{_BRANCH[head]}.decoder0_header.2"

    def skip_maps(
        self, tokens: Sequence[Tensor], image: Tensor | None, size: tuple[int, int] | None = None
    ) -> dict[int, Tensor]:
        """Maps of the skip ways that every branch reads, by stage: 0 the image, 1 … 3 the tokens.

        ``size`` is the height and width of the maps; it matters to tokens of 14 pixels only.
        """
        if image is not None and self.patch_px != self.upsampling:
            image = _as_seen(image, tokens[0], self.patch_px)
        inputs = {0: image, 1: tokens[0], 2: tokens[1], 3: tokens[2]}
        home, suffix = (self.decoder, "_skip") if self.config.branches == "shared" else (self, "")
        skips = {stage: home.get_submodule(f"decoder{stage}{suffix}")(inputs[stage]) for stage in self._skip_stages}
        if size is not None and 0 in skips:
            skips[0] = resized(skips[0], size)
        return skips

    def forward(
        self, tokens: Sequence[Tensor], image: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> dict[str, Tensor]:
        """Decode.

        Parameters
        ----------
        tokens : sequence of Tensor
            z1 … z4, shallow to deep, each (n, d, h, w); see :func:`expand_blocks`.
        image : Tensor, optional
            (n, c, H, W) normalised image; needed by the image skip only.
        size : (int, int), optional
            (H, W) of the maps; that of the image, or of the tokens times ``upsampling``, when left out. With tokens of
            8 or 16 pixels it is ``upsampling`` · (h, w); with tokens of 14 pixels h and w are the whole part of H / 14
            and W / 14.

        Returns
        -------
        dict of str to Tensor
            Of the heads asked for: ``nucleus`` (n, 2, H, W) logits, background first; ``hv`` (n, 2, H, W), x then y;
            ``classes`` (n, n_classes, H, W) logits; ``boundary`` (n, 1, H, W) logits. With ``regression`` also
            ``regression`` (n, 2, H, W).

        Raises
        ------
        SlideloomError
            ``decoder_input``: number or shapes of the inputs do not fit.
        """
        size = self._check_inputs(tokens, image, size)
        skips = self.skip_maps(tokens, image, size)
        outputs: dict[str, Tensor] = {}
        if self.config.branches == "shared":
            last = self.decoder(tokens[3], skips, size)
            outputs |= {head: self.get_submodule(_BRANCH[head])(last) for head in self.heads}
        else:
            outputs |= {head: self.get_submodule(_BRANCH[head])(tokens[3], skips, size) for head in self.heads}
        if self.regression:
            both = outputs["nucleus"]
            outputs |= {"nucleus": both[:, :2], "regression": both[:, 2:]}
        return outputs

    def _check_inputs(
        self, tokens: Sequence[Tensor], image: Tensor | None, size: tuple[int, int] | None
    ) -> tuple[int, int]:
        """Refuse what does not fit; returns height and width of the maps."""
        shapes = {tuple(token.shape) for token in tokens}
        if len(tokens) != DECODER_INPUTS or len(shapes) != 1:
            raise _refused(
                f"token maps of shapes {[tuple(token.shape) for token in tokens]}", "four of one shape (n, d, h, w)"
            )
        count, width, height, breadth = shapes.pop()
        if width != self.token_width:
            raise _refused(f"tokens are {width} wide", f"{self.token_width}")
        exact = self.patch_px == self.upsampling
        if size is None and image is not None:
            size = (int(image.shape[-2]), int(image.shape[-1]))
        elif size is None and exact:
            size = (self.patch_px * height, self.patch_px * breadth)
        elif size is None:
            raise _refused("neither an image nor a size", f"one of them, for tokens of {self.patch_px} pixels")
        cut = [divmod(side, self.patch_px) for side in size]
        if [whole for whole, _ in cut] != [height, breadth] or (exact and any(rest for _, rest in cut)):
            what = f"maps of {size[0]} by {size[1]} pixels from {height} by {breadth} tokens of {self.patch_px} pixels"
            about = "" if exact else "about "
            raise _refused(what, f"{about}{self.patch_px * height} by {self.patch_px * breadth} pixels")
        expected = (count, self.image_channels, *size)
        if self.config.image_skip and (image is None or tuple(image.shape) != expected):
            got = "no image" if image is None else f"an image of shape {tuple(image.shape)}"
            raise _refused(got, f"{expected}")
        return size


def _as_seen(image: Tensor, tokens: Tensor, patch_px: int) -> Tensor:
    """The image at the size at which its encoder cut it into whole tokens."""
    size = (patch_px * tokens.shape[-2], patch_px * tokens.shape[-1])
    return image if image.shape[-2:] == torch.Size(size) else functional.interpolate(image, size, mode="area")


def _refused(what: str, expected: str) -> SlideloomError:
    return SlideloomError(what, where="decoder", expected=expected, code="decoder_input")


def _check_sides(upsampling: int, patch_px: int) -> None:
    if (upsampling, patch_px) not in ((8, 8), (16, 16), (16, 14)):
        raise SlideloomError(
            f"the CellViT decoder cannot bring tokens of {patch_px} pixels up {upsampling}-fold",
            expected="8-fold for 8 pixels, 16-fold for 16 or 14",
            hint="Choose an encoder with tokens of 8, 14 or 16 pixels",
            code="decoder_upsampling",
        )


def _check_heads(heads: Sequence[Head], n_classes: int, regression: bool) -> None:
    if not heads or len(set(heads)) != len(heads) or not set(heads) <= set(HEADS):
        raise SlideloomError(f"heads {list(heads)}", expected=f"some of {list(HEADS)}, each once", code="decoder_heads")
    if "classes" in heads and n_classes < 2:
        raise SlideloomError(f"{n_classes} classes", expected="background and at least one more", code="decoder_heads")
    if regression and "nucleus" not in heads:
        raise SlideloomError("a regression without the nucleus head", expected="both", code="decoder_heads")


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
) -> CellViTDecoder:
    """Build a decoder with PyTorch's initial weights.

    Parameters
    ----------
    config, heads, n_classes, token_width, upsampling, image_channels, patch_px, regression
        As for :class:`CellViTDecoder`.
    seed : int, optional
        Draw the weights from this seed and leave the global generator as it was; left out: draw from the global one.

    Returns
    -------
    CellViTDecoder
        On the CPU, float32, in training mode.
    """

    def build() -> CellViTDecoder:
        return CellViTDecoder(
            config,
            heads,
            n_classes,
            token_width,
            upsampling,
            image_channels,
            patch_px=patch_px,
            regression=regression,
        )

    if seed is None:
        return build()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


def decoder_from_recipe(recipe: Mapping[str, Any]) -> CellViTDecoder:
    """Build the decoder that :meth:`CellViTDecoder.recipe` described; its weights are yours to load."""
    arguments = dict(recipe)
    return build_decoder(DecoderConfig.model_validate(arguments.pop("config")), **arguments)
