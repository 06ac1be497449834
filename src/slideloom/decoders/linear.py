"""The linear decoder: what the tokens alone hold, without one convolution that looks around."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slideloom.config.model import DecoderConfig, Head
from slideloom.decoders.base import HEAD_MODULES, Decoder, resized
from slideloom.encoders.base import DECODER_INPUTS, spread
from slideloom.errors import SlideloomError

__all__ = ["LinearDecoder"]


class LinearDecoder(Decoder):
    """One 1×1 convolution of the tokens to the channels of every head, brought up bilinearly to the tile's size.

    With ``config.skips`` the convolution reads all of z1 … z4 that differ, else z4 alone. The keys ``image_skip``,
    ``width``, ``branches`` and ``dropout`` have no meaning here and are ignored: no image is read, and there are no
    layers between that could be wide, shared or dropped.

    The convolution is kept as one a head, under the heads' names; side by side they are one.

    Parameters
    ----------
    config, heads, n_classes, token_width, upsampling, image_channels, patch_px, regression
        As for :class:`~slideloom.decoders.base.Decoder`.
    n_blocks : int
        How many encoder blocks z1 … z4 were spread from, 1 to 4: a block that stands twice among them is read once.

    Raises
    ------
    SlideloomError
        What :class:`~slideloom.decoders.base.Decoder` refuses; ``decoder_kind``: attention is asked for;
        ``decoder_blocks``: blocks other than 1 to 4.
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
        n_blocks: int = DECODER_INPUTS,
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
        _check_kind(config)
        self.n_blocks = n_blocks
        # The last place of each block, so that z4 is read in any case.
        places = {block: place for place, block in enumerate(spread(n_blocks))}
        self._read = tuple(places.values()) if config.skips else (DECODER_INPUTS - 1,)
        for head in self.heads:
            layer = nn.Conv2d(len(self._read) * token_width, self.head_channels[head], kernel_size=1)
            self.add_module(HEAD_MODULES[head], layer)

    @property
    def needs_image(self) -> bool:
        """Never: an image gives no more than its size."""
        return False

    def last_layer(self, head: Head) -> str:
        """Name of the 1×1 convolution whose output channels are those of a head: its only one."""
        return HEAD_MODULES[head]

    def recipe(self) -> dict[str, Any]:
        """As every decoder's, and how many blocks it reads."""
        return super().recipe() | {"n_blocks": self.n_blocks}

    def forward(
        self, tokens: Sequence[Tensor], image: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> dict[str, Tensor]:
        """Decode; see :meth:`Decoder.forward <slideloom.decoders.base.Decoder.forward>`."""
        size = self.check_inputs(tokens, image, size)
        read = torch.cat([tokens[k] for k in self._read], dim=1) if len(self._read) > 1 else tokens[self._read[0]]
        return self.by_head({head: resized(self.get_submodule(HEAD_MODULES[head])(read), size) for head in self.heads})


def _check_kind(config: DecoderConfig) -> None:
    wanted = [name for name in ("global_context", "masked_attention") if getattr(config, name)]
    if config.kind != "linear" or wanted:
        raise SlideloomError(
            f"a decoder of kind {config.kind} with {' and '.join(wanted) or 'no attention'}, built as a linear one",
            expected="kind: linear without global_context and masked_attention",
            hint="Switch attention off, or take kind: cellvit",
            code="decoder_kind",
        )
