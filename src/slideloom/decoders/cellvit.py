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
global_context      bottleneck, each position to all     1/8         1/8
decoder3_upsampler  skip 3, bottleneck → 256             1/8 → 1/4   1/8 → 1/4
decoder2_upsampler  skip 2, previous → 128               1/4 → 1/2   1/4 → 1/2
decoder1_upsampler  skip 1, previous → 64                1/2 → 1     1/2 → 1
decoder0_header     skip 0, previous → 64 → outputs      1           1
masked_attention    64, before the header's last layer   1           1
==================  ===================================  ==========  ==========

8×: tokens of 8 pixels meet the same stages when one doubling less precedes each. So the **first** transposed 2×2
convolution of each way from the tokens (decoder1, decoder2, decoder3 and the bottleneck) is a 1×1 convolution instead;
the 3×3 convolution, normalisation and activation behind it stay, as does everything downstream, and no name changes.
The first, not a later one, because it is where the maps are smallest and the channel count changes.

Tokens of 14 pixels: no doubling leads from 14 to one, so (as in the Virchow models of CellViT++) all is brought up
16-fold and then bilinearly to the tile's size just before the header. The image skip sees the image averaged down to
the 14 pixels a token that the encoder saw, and its result is brought to the tile's size, too.

The two attentions are variants, off as published; a decoder has their weights only where they are on, in every branch
of its own (:mod:`slideloom.decoders.attention`). Masked attention is told the foreground by a preliminary prediction:
the header's last layer on the features before the attention, in the nucleus branch, or the class branch where there is
no nucleus head. All branches use that one; no gradient goes through it.

Two differences from the original, neither visible in a state dict or in evaluation: the skips decoder0 … decoder3 are
computed once, not once a branch (17 % of a CellViT-256's work at 256 px), and so their running statistics move once a
training step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from slideloom.config.model import DecoderConfig, Head
from slideloom.decoders.attention import predicted_foreground
from slideloom.decoders.base import HEAD_MODULES, HEADS, Decoder, resized
from slideloom.decoders.blocks import scaled_channels
from slideloom.decoders.branches import Branch, skip_ways
from slideloom.encoders.base import spread
from slideloom.errors import SlideloomError

__all__ = ["HEADS", "CellViTDecoder", "Decoder", "expand_blocks"]


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


class CellViTDecoder(Decoder):
    """Decoder from four token maps and an image to the maps of its heads.

    ``decoder.to(memory_format=torch.channels_last)`` is safe and usually faster; token maps that come as (n, h, w, d)
    and are permuted to (n, d, h, w) are in that format already.

    Parameters
    ----------
    config, heads, n_classes, token_width, upsampling, image_channels, patch_px, regression
        As for :class:`~slideloom.decoders.base.Decoder`.

    Raises
    ------
    SlideloomError
        What :class:`~slideloom.decoders.base.Decoder` refuses; ``decoder_kind``: the config is another decoder's;
        ``decoder_heads``: masked attention without a head that says where nuclei are.
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
        super().__init__(
            config,
            heads,
            n_classes,
            token_width,
            upsampling,
            image_channels,
            patch_px=patch_px,
            regression=regression,
        )
        _check_config(config, self.heads)
        first_factor = 2 if self.upsampling == 16 else 1
        outputs = self.head_channels
        skips = skip_ways(token_width, image_channels, config, first_factor)
        self._skip_stages = tuple(skips)
        if config.branches == "shared":
            self.decoder = Branch(token_width, config, first_factor, None, skips)
            last = scaled_channels(64, config.width)
            for head in self.heads:
                self.add_module(HEAD_MODULES[head], nn.Conv2d(last, outputs[head], kernel_size=1))
        else:
            for stage, module in skips.items():
                self.add_module(f"decoder{stage}", module)
            for head in self.heads:
                self.add_module(HEAD_MODULES[head], Branch(token_width, config, first_factor, outputs[head]))
        # Last of all, so that a seed draws the same weights for the rest: the variant starts as the decoder without it.
        for branch in self.children():
            if isinstance(branch, Branch):
                branch.add_attention()

    def last_layer(self, head: Head) -> str:
        """Name of the 1×1 convolution whose output channels are those of a head."""
        return HEAD_MODULES[head] if self.config.branches == "shared" else f"{HEAD_MODULES[head]}.decoder0_header.2"

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
        """Decode; see :meth:`Decoder.forward <slideloom.decoders.base.Decoder.forward>`."""
        size = self.check_inputs(tokens, image, size)
        skips = self.skip_maps(tokens, image, size)
        if self.config.branches == "shared":
            last = self.decoder.features(tokens[3], skips, size)
            if self.config.masked_attention:
                last = self.decoder.masked_attention(last, self._foreground(last))
            return self.by_head({head: self.get_submodule(HEAD_MODULES[head])(last) for head in self.heads})
        outputs: dict[Head, Tensor] = {}
        foreground: Tensor | None = None
        # The branch that finds the foreground goes first: the others wait for it.
        for head in sorted(self.heads, key=lambda head: head != self._finder):
            branch: Branch = self.get_submodule(HEAD_MODULES[head])  # type: ignore[assignment]
            last = branch.features(tokens[3], skips, size)
            if self.config.masked_attention:
                foreground = self._foreground(last) if foreground is None else foreground
                last = branch.masked_attention(last, foreground)
            outputs[head] = branch.output(last)
        return self.by_head(outputs)

    @property
    def _finder(self) -> Head:
        """The head that says where nuclei are."""
        return "nucleus" if "nucleus" in self.heads else "classes"

    @torch.no_grad()
    def _foreground(self, features: Tensor) -> Tensor:
        """Where the last layer of the finder's head sees nuclei in features that have not been attended to."""
        logits = self.get_submodule(self.last_layer(self._finder))(features)
        return predicted_foreground(logits[:, :2] if self._finder == "nucleus" else logits)


def _as_seen(image: Tensor, tokens: Tensor, patch_px: int) -> Tensor:
    """The image at the size at which its encoder cut it into whole tokens."""
    size = (patch_px * tokens.shape[-2], patch_px * tokens.shape[-1])
    return image if image.shape[-2:] == torch.Size(size) else functional.interpolate(image, size, mode="area")


def _check_config(config: DecoderConfig, heads: Sequence[Head]) -> None:
    if config.kind != "cellvit":
        raise SlideloomError(
            f"a decoder of kind {config.kind}, built as a CellViT's", expected="kind: cellvit", code="decoder_kind"
        )
    if config.masked_attention and not {"nucleus", "classes"} & set(heads):
        raise SlideloomError(
            f"masked attention with heads {list(heads)}",
            expected="the head nucleus or classes, which says where nuclei are",
            hint="Add one of them, or switch masked_attention off",
            code="decoder_heads",
        )
