"""The decoder that VirTues was trained with: from summary and channel tokens back to pixels, channel by channel.

Slideloom segments with a decoder of its own; this one shows whether weights were read rightly, and reconstructs masked
channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slideloom.encoders.virtues.blocks import Block, Layout
from slideloom.encoders.virtues.net import GridTurns

__all__ = ["DecoderArchitecture", "MAEDecoder"]


@dataclass(frozen=True)
class DecoderArchitecture:
    """Sizes of the decoder; the defaults are those of every published one.

    Attributes
    ----------
    width, heads, feedforward, depth : int
        Token length; attention heads; length inside the feed-forward; number of blocks.
    patch_px : int
        Side of a patch, pixels.
    final_norm : bool
        Whether a layer norm follows the last block.
    """

    width: int = 512
    heads: int = 8
    feedforward: int = 1024
    depth: int = 4
    patch_px: int = 8
    final_norm: bool = True


class MAEDecoder(nn.Module):
    """Each channel's tokens together with the patch summaries, full attention, then a linear map to pixels.

    Parameters
    ----------
    architecture : DecoderArchitecture
        Its sizes.
    """

    def __init__(self, architecture: DecoderArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        width = architecture.width
        self.head = nn.Linear(width, architecture.patch_px**2)
        self.blocks = nn.ModuleList(
            Block(width, architecture.heads, architecture.feedforward, "space") for _ in range(architecture.depth)
        )
        self.norm = nn.LayerNorm(width) if architecture.final_norm else nn.Identity()
        self._turns = GridTurns(width // architecture.heads)

    def forward(self, summaries: Tensor, channels: Sequence[Tensor]) -> list[Tensor]:
        """Reconstruct images.

        Parameters
        ----------
        summaries : (n, h, w, width) Tensor
            Final patch summaries of the encoder.
        channels : sequence of (c_i, h, w, width) Tensor
            Its final channel tokens.

        Returns
        -------
        list of (c_i, h * patch_px, w * patch_px) Tensor
            Standardised intensities.
        """
        height, width = summaries.shape[1:3]
        counts = [len(each) for each in channels]
        summary = summaries.repeat_interleave(torch.tensor(counts, device=summaries.device), dim=0)
        # Both tokens of a patch stand at its place.
        rows = torch.cat([summary.flatten(1, 2), torch.cat(list(channels)).flatten(1, 2)], dim=1)
        turns = self._turns(height, width, summaries.device).repeat(2, 1)
        layout = Layout.of(((1, len(rows)),), rows.shape[1], turns, None)
        tokens = rows.flatten(0, 1)
        for block in self.blocks:
            tokens = block(tokens, layout)
        tokens = self.norm(tokens).unflatten(0, (-1, 2, height, width))[:, 1]
        side = self.architecture.patch_px
        pixels: Tensor = self.head(tokens).unflatten(-1, (side, side)).transpose(2, 3).flatten(3).flatten(1, 2)
        return list(torch.split(pixels, counts))
