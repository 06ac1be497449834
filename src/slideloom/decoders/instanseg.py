"""InstanSeg's network: a U-Net whose maps say of every pixel where its nucleus is, and how near its middle.

Source: Goldsborough et al., "InstanSeg: an embedding-based instance segmentation algorithm" (2024), and the program
``instanseg``. The blocks are those of :mod:`slideloom.adapters.blocks`: encoder levels of ``decoder.widths`` features,
each but the first after a max-pool; decoder levels back up, whose skips are added; and 1×1 convolutions with batch
normalisation and no activation, three for each InstanSeg head.

===================  ===========================================================================
channel of a head    what (raw; :func:`~slideloom.decoders.instanseg_head.fields` gives what it means)
===================  ===========================================================================
0, 1                 x and y of the step from the pixel to its nucleus' place, before a sigmoid
2, 3                 two spreads that the pixel classifier reads
4                    seed: how deep in its nucleus a pixel lies, -7.5 outside to 7.5 in the middle
===================  ===========================================================================

The pixel classifier is a small network of its own, one for all heads. Of a pixel's place less a seed's, and the pixel's
spreads, it says whether the pixel is of the seed's nucleus.

Names and shapes of the state dict are the published models' own, without their prefix ``model.``. With ``multihead``
each head has decoder levels of its own; a lone InstanSeg head then has three, for place, spreads and seed, as the
original has it. Heads other than InstanSeg's may stand beside them; their 1×1 convolution has no normalisation, which
would tie a logit to what else is in the batch. The seed map starts out at the scale of its target; the original begins
with a spread of 1, and its users report many epochs without a nucleus after its hot start.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slideloom.adapters.blocks import DecoderBlock, EncoderBlock, conv_norm_act
from slideloom.config.model import DecoderConfig, Head
from slideloom.decoders.instanseg_head import INSTANSEG_HEADS, PARTS, PixelClassifier
from slideloom.decoders.whole import WholeNetwork
from slideloom.errors import SlideloomError

__all__ = ["InstanSeg"]

_SEED_PART = 2
#: Spread and mean that the seed map starts with: those of its target where nuclei cover a fifth of an image. From batch
#: normalisation's own 1 and 0, Adam at 1e-3 takes thousands of steps to the first pixel above a seed threshold.
_SEED_START = (4.0, -6.0)


class _Way(nn.Module):
    """Decoder levels from the coarsest features up, and the 1×1 convolutions that read the finest.

    Parameters
    ----------
    widths : sequence of int
        Features of the encoder's levels, finest first.
    outputs : sequence of (int, bool)
        Channels of each convolution, and whether it is normalised.
    """

    def __init__(self, widths: Sequence[int], outputs: Sequence[tuple[int, bool]]) -> None:
        super().__init__()
        steps = zip(widths[:0:-1], widths[-2::-1], strict=True)
        self.decoder = nn.ModuleList(DecoderBlock(coarse, fine, fine, norm="batch") for coarse, fine in steps)
        self.final_block = nn.ModuleList(
            conv_norm_act(widths[0], channels, 1, "batch" if normed else "none", "none") for channels, normed in outputs
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of every convolution, from the encoder's levels, finest first."""
        maps = levels[-1]
        for block, skip in zip(self.decoder, levels[-2::-1], strict=True):
            maps = block(maps, skip)
        return [block(maps) for block in self.final_block]


class InstanSeg(WholeNetwork):
    """InstanSeg's U-Net with any heads; see the module.

    Parameters
    ----------
    config, heads, n_classes, token_width, upsampling, image_channels, patch_px, regression
        As for :class:`~slideloom.decoders.whole.WholeNetwork`.

    Attributes
    ----------
    encoder, decoders : ModuleList
        Its levels, finest first, and the ways back up: one, or with ``multihead`` one for each group of outputs.
    pixel_classifier : PixelClassifier
        Where there is an InstanSeg head.

    Raises
    ------
    SlideloomError
        What :class:`~slideloom.decoders.whole.WholeNetwork` refuses; ``decoder_kind``: no widths.
    """

    kind = "instanseg"

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
        widths = config.widths
        if not widths:
            raise SlideloomError(
                "an InstanSeg without widths", where="decoder.widths", expected="one or more", code="decoder_kind"
            )
        self.multiple_px = 2 ** (len(widths) - 1)
        into = (image_channels, *widths)
        self.encoder = nn.ModuleList(
            EncoderBlock(into[level], into[level + 1], pool=level > 0, norm="batch") for level in range(len(widths))
        )
        self._ways = _ways(self.heads, config.multihead)
        channels = self.head_channels
        self.decoders = nn.ModuleList(
            _Way(widths, [(channels[head], False) if part is None else (PARTS[part], True) for head, part in way])
            for way in self._ways
        )
        for decoder, way in zip(self.decoders, self._ways, strict=True):
            for block, (_, part) in zip(decoder.get_submodule("final_block").children(), way, strict=True):
                if part == _SEED_PART:
                    norm = block.get_submodule("1")
                    nn.init.constant_(norm.get_parameter("weight"), _SEED_START[0])
                    nn.init.constant_(norm.get_parameter("bias"), _SEED_START[1])
        if set(INSTANSEG_HEADS) & set(self.heads):
            self.pixel_classifier = PixelClassifier()

    def last_layer(self, head: Head) -> str:
        """Name of the 1×1 convolution whose output channels are those of a head; of InstanSeg's three, the first."""
        return next(
            f"decoders.{d}.final_block.{j}.0"
            for d, way in enumerate(self._ways)
            for j, (own, _) in enumerate(way)
            if own == head
        )

    def maps(self, image: Tensor) -> dict[Head, Tensor]:
        """Maps of an image whose sides are multiples of ``multiple_px``."""
        levels: list[Tensor] = []
        for block in self.encoder:
            image = block(image)
            levels.append(image)
        found: dict[Head, list[Tensor]] = {head: [] for head in self.heads}
        for decoder, way in zip(self.decoders, self._ways, strict=True):
            for (head, _), part in zip(way, decoder(levels), strict=True):
                found[head].append(part)
        return {head: torch.cat(parts, dim=1) if len(parts) > 1 else parts[0] for head, parts in found.items()}


def _ways(heads: Sequence[Head], multihead: bool) -> list[list[tuple[Head, int | None]]]:
    """By decoder, the head that each of its convolutions is of, and which of InstanSeg's three parts, if any."""
    own: list[list[tuple[Head, int | None]]] = [
        [(head, part) for part in range(len(PARTS))] for head in INSTANSEG_HEADS if head in heads
    ]
    if multihead and len(own) == 1:
        own = [[part] for part in own[0]]
    own += [[(head, None)] for head in heads if head not in INSTANSEG_HEADS]
    return own if multihead else [[output for group in own for output in group]]
