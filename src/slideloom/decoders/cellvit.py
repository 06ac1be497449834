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

Two differences from the original, neither visible in a state dict or in evaluation: the skips decoder0 … decoder3 are
computed once, not once a branch (17 % of a CellViT-256's work at 256 px), and so their running statistics move once a
training step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from slideloom.config.model import DecoderConfig, Head
from slideloom.decoders.blocks import ConvBlock, DeconvBlock, scaled_channels, upsample
from slideloom.errors import SlideloomError

__all__ = ["HEADS", "CellViTDecoder", "build_decoder", "decoder_from_recipe", "expand_blocks"]

HEADS: tuple[Head, ...] = get_args(Head)
_N_TOKENS = 4
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
    count = len(tokens)
    if not 1 <= count <= _N_TOKENS:
        raise SlideloomError(
            f"{count} encoder blocks for a decoder with {_N_TOKENS} inputs",
            expected="1 to 4 blocks",
            hint="Name at most four blocks under the encoder's key blocks",
            code="decoder_blocks",
        )
    return [tokens[-(-(k * count) // _N_TOKENS) - 1] for k in range(1, _N_TOKENS + 1)]


def _inner_channels(token_width: int, width: float) -> tuple[int, int, int]:
    base = (256, 128, 312) if token_width < 512 else (512, 256, 512)
    a, b, c = (scaled_channels(channels, width) for channels in base)
    return a, b, c


def _skip_ways(
    token_width: int, image_channels: int, config: DecoderConfig, first_factor: int
) -> dict[int, nn.Sequential]:
    """Ways into the branches, by stage (0: the image, 1 … 3: z1 … z3), those that the config asks for."""

    def size(channels: int) -> int:
        return scaled_channels(channels, config.width)

    a, b, c = _inner_channels(token_width, config.width)
    rate = config.dropout
    ways: dict[int, nn.Sequential] = {}
    if config.image_skip:
        ways[0] = nn.Sequential(ConvBlock(image_channels, size(32), rate), ConvBlock(size(32), size(64), rate))
    if config.skips:
        ways[1] = nn.Sequential(
            DeconvBlock(token_width, a, rate, first_factor), DeconvBlock(a, b, rate), DeconvBlock(b, size(128), rate)
        )
        ways[2] = nn.Sequential(DeconvBlock(token_width, a, rate, first_factor), DeconvBlock(a, size(256), rate))
        ways[3] = nn.Sequential(DeconvBlock(token_width, c, rate, first_factor))
    return ways


class _Branch(nn.Module):
    """From z4 and the skips to one output, or to the last feature map when ``n_out`` is None."""

    def __init__(
        self,
        token_width: int,
        config: DecoderConfig,
        first_factor: int,
        n_out: int | None,
        skips: Mapping[int, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        for stage, module in (skips or {}).items():
            self.add_module(f"decoder{stage}_skip", module)

        def size(channels: int) -> int:
            return scaled_channels(channels, config.width)

        c = _inner_channels(token_width, config.width)[2]
        rate = config.dropout
        c_in = 2 if config.skips else 1
        image_in = 2 if config.image_skip else 1
        self.bottleneck_upsampler = upsample(token_width, c, first_factor)
        self.decoder3_upsampler = nn.Sequential(
            ConvBlock(c_in * c, c, rate), ConvBlock(c, c, rate), ConvBlock(c, c, rate), upsample(c, size(256), 2)
        )
        self.decoder2_upsampler = nn.Sequential(
            ConvBlock(c_in * size(256), size(256), rate),
            ConvBlock(size(256), size(256), rate),
            upsample(size(256), size(128), 2),
        )
        self.decoder1_upsampler = nn.Sequential(
            ConvBlock(c_in * size(128), size(128), rate),
            ConvBlock(size(128), size(128), rate),
            upsample(size(128), size(64), 2),
        )
        header: list[nn.Module] = [ConvBlock(image_in * size(64), size(64), rate), ConvBlock(size(64), size(64), rate)]
        if n_out is not None:
            header.append(nn.Conv2d(size(64), n_out, kernel_size=1))
        self.decoder0_header = nn.Sequential(*header)

    def forward(self, deepest: Tensor, skips: Mapping[int, Tensor]) -> Tensor:
        maps: Tensor = self.bottleneck_upsampler(deepest)
        stages = (self.decoder0_header, self.decoder1_upsampler, self.decoder2_upsampler, self.decoder3_upsampler)
        for stage in (3, 2, 1, 0):
            if stage in skips:
                maps = torch.cat([skips[stage], maps], dim=1)
            maps = stages[stage](maps)
        return maps


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
    upsampling : {8, 16}
        Image pixels a token.
    image_channels : int
        Channels of the image that the image skip reads; unused without it.

    Raises
    ------
    SlideloomError
        Upsampling other than 8 or 16; no head, or one twice; less than two classes for the class head.
    """

    def __init__(
        self,
        config: DecoderConfig,
        heads: Sequence[Head],
        n_classes: int,
        token_width: int,
        upsampling: int,
        image_channels: int,
    ) -> None:
        super().__init__()
        _check(heads, n_classes, upsampling)
        self.config = config
        self.heads: tuple[Head, ...] = tuple(head for head in HEADS if head in heads)
        self.n_classes = n_classes
        self.token_width = token_width
        self.upsampling = upsampling
        self.image_channels = image_channels
        first_factor = 2 if upsampling == 16 else 1
        outputs: dict[Head, int] = {"nucleus": 2, "hv": 2, "classes": n_classes, "boundary": 1}
        skips = _skip_ways(token_width, image_channels, config, first_factor)
        self._skip_stages = tuple(skips)
        if config.branches == "shared":
            self.decoder = _Branch(token_width, config, first_factor, None, skips)
            last = scaled_channels(64, config.width)
            for head in self.heads:
                self.add_module(_BRANCH[head], nn.Conv2d(last, outputs[head], kernel_size=1))
        else:
            for stage, module in skips.items():
                self.add_module(f"decoder{stage}", module)
            for head in self.heads:
                self.add_module(_BRANCH[head], _Branch(token_width, config, first_factor, outputs[head]))

    def recipe(self) -> dict[str, Any]:
        """JSON values from which :func:`decoder_from_recipe` builds the same decoder (without its weights)."""
        return {
            "config": self.config.model_dump(mode="json"),
            "heads": list(self.heads),
            "n_classes": self.n_classes,
            "token_width": self.token_width,
            "upsampling": self.upsampling,
            "image_channels": self.image_channels,
        }

    def skip_maps(self, tokens: Sequence[Tensor], image: Tensor | None) -> dict[int, Tensor]:
        """Maps of the skip ways that every branch reads, by stage: 0 the image, 1 … 3 the tokens."""
        inputs = {0: image, 1: tokens[0], 2: tokens[1], 3: tokens[2]}
        home, suffix = (self.decoder, "_skip") if self.config.branches == "shared" else (self, "")
        return {stage: home.get_submodule(f"decoder{stage}{suffix}")(inputs[stage]) for stage in self._skip_stages}

    def forward(self, tokens: Sequence[Tensor], image: Tensor | None = None) -> dict[Head, Tensor]:
        """Decode.

        Parameters
        ----------
        tokens : sequence of Tensor
            z1 … z4, shallow to deep, each (n, d, h, w); see :func:`expand_blocks`.
        image : Tensor, optional
            (n, c, H, W) normalised image with H, W = upsampling · (h, w); needed by the image skip only.

        Returns
        -------
        dict of Head to Tensor
            ``nucleus`` (n, 2, H, W) logits, background first; ``hv`` (n, 2, H, W), x then y; ``classes``
            (n, n_classes, H, W) logits; ``boundary`` (n, 1, H, W) logits. Only the heads asked for.

        Raises
        ------
        SlideloomError
            Number or shapes of the inputs do not fit.
        """
        self._check_inputs(tokens, image)
        skips = self.skip_maps(tokens, image)
        if self.config.branches == "shared":
            last = self.decoder(tokens[3], skips)
            return {head: self.get_submodule(_BRANCH[head])(last) for head in self.heads}
        return {head: self.get_submodule(_BRANCH[head])(tokens[3], skips) for head in self.heads}

    def _check_inputs(self, tokens: Sequence[Tensor], image: Tensor | None) -> None:
        shapes = {tuple(token.shape) for token in tokens}
        if len(tokens) != _N_TOKENS or len(shapes) != 1:
            raise SlideloomError(
                f"token maps of shapes {[tuple(token.shape) for token in tokens]}",
                where="decoder",
                expected="four of one shape (n, d, h, w)",
                code="decoder_input",
            )
        count, width, height, breadth = shapes.pop()
        if width != self.token_width:
            raise SlideloomError(
                f"tokens are {width} wide", where="decoder", expected=f"{self.token_width}", code="decoder_input"
            )
        if not self.config.image_skip:
            return
        expected = (count, self.image_channels, self.upsampling * height, self.upsampling * breadth)
        if image is None or tuple(image.shape) != expected:
            got = "no image" if image is None else f"an image of shape {tuple(image.shape)}"
            raise SlideloomError(got, where="decoder", expected=f"{expected}", code="decoder_input")


def _check(heads: Sequence[Head], n_classes: int, upsampling: int) -> None:
    if upsampling not in (8, 16):
        raise SlideloomError(
            f"the CellViT decoder cannot upsample {upsampling}-fold",
            expected="8 or 16, the encoder's patch side in pixels",
            hint="Choose an encoder with tokens of 8 or 16 pixels",
            code="decoder_upsampling",
        )
    if not heads or len(set(heads)) != len(heads) or not set(heads) <= set(HEADS):
        raise SlideloomError(f"heads {list(heads)}", expected=f"some of {list(HEADS)}, each once", code="decoder_heads")
    if "classes" in heads and n_classes < 2:
        raise SlideloomError(f"{n_classes} classes", expected="background and at least one more", code="decoder_heads")


def build_decoder(
    config: DecoderConfig,
    heads: Sequence[Head],
    n_classes: int,
    token_width: int,
    upsampling: int,
    image_channels: int,
    seed: int | None = None,
) -> CellViTDecoder:
    """Build a decoder with PyTorch's initial weights.

    Parameters
    ----------
    config, heads, n_classes, token_width, upsampling, image_channels
        As for :class:`CellViTDecoder`.
    seed : int, optional
        Draw the weights from this seed and leave the global generator as it was; left out: draw from the global one.

    Returns
    -------
    CellViTDecoder
        On the CPU, float32, in training mode.
    """
    if seed is None:
        return CellViTDecoder(config, heads, n_classes, token_width, upsampling, image_channels)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return CellViTDecoder(config, heads, n_classes, token_width, upsampling, image_channels)


def decoder_from_recipe(recipe: Mapping[str, Any]) -> CellViTDecoder:
    """Build the decoder that :meth:`CellViTDecoder.recipe` described; its weights are yours to load."""
    arguments = dict(recipe)
    return build_decoder(DecoderConfig.model_validate(arguments.pop("config")), **arguments)
