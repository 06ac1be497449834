"""The ways of the CellViT decoder from tokens and image to maps: the skips that all branches share, and branches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slideloom.config.model import DecoderConfig
from slideloom.decoders.attention import GlobalContext, MaskedAttention
from slideloom.decoders.base import resized
from slideloom.decoders.blocks import ConvBlock, DeconvBlock, scaled_channels, upsample

__all__ = ["Branch", "inner_channels", "skip_ways"]

#: Convolution blocks of the header; what stands behind them is the output's 1×1 convolution.
_HEADER_BLOCKS = 2


def inner_channels(token_width: int, width: float) -> tuple[int, int, int]:
    """The three channel counts that depend on the tokens' width: those called a, b and c in the decoder's table."""
    base = (256, 128, 312) if token_width < 512 else (512, 256, 512)
    a, b, c = (scaled_channels(channels, width) for channels in base)
    return a, b, c


def skip_ways(
    token_width: int, image_channels: int, config: DecoderConfig, first_factor: int
) -> dict[int, nn.Sequential]:
    """Ways into the branches, by stage (0: the image, 1 … 3: z1 … z3), those that the config asks for."""

    def size(channels: int) -> int:
        return scaled_channels(channels, config.width)

    a, b, c = inner_channels(token_width, config.width)
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


class Branch(nn.Module):
    """From z4 and the skips to one output, or to the last feature map when ``n_out`` is None.

    Parameters
    ----------
    token_width : int
        Channels of z4.
    config : DecoderConfig
        Width, which skips there are, dropout.
    first_factor : {1, 2}
        What the bottleneck does to height and width.
    n_out : int or None
        Channels of the output.
    skips : mapping of int to Module, optional
        Skip ways that belong to the branch (shared branches); it holds them but is given their results.
    """

    def __init__(
        self,
        token_width: int,
        config: DecoderConfig,
        first_factor: int,
        n_out: int | None,
        skips: Mapping[int, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        for stage, module in (skips or {}).items():
            self.add_module(f"decoder{stage}_skip", module)

        def size(channels: int) -> int:
            return scaled_channels(channels, config.width)

        c = inner_channels(token_width, config.width)[2]
        self._inner, self._last = c, size(64)
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

    def add_attention(self) -> None:
        """Add the attention that the config asks for; all other weights have been drawn before, as without it."""
        rate = self.config.dropout
        if self.config.global_context:
            self.global_context = GlobalContext(self._inner, rate)
        if self.config.masked_attention:
            self.masked_attention = MaskedAttention(self._last, self.config.attention_window_px, rate)

    def features(self, deepest: Tensor, skips: Mapping[int, Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Decode up to the last feature map.

        Parameters
        ----------
        deepest : Tensor
            z4, (n, d, h, w).
        skips : mapping of int to Tensor
            Results of the skip ways, by stage; that of stage 0 has the output's size.
        size : (int, int), optional
            Height and width that the maps are brought to before the header, where doubling does not lead there.

        Returns
        -------
        Tensor
            (n, 64 · width, H, W), before any masked attention.
        """
        maps: Tensor = self.bottleneck_upsampler(deepest)
        if self.config.global_context:
            maps = self.global_context(maps)
        header = self.decoder0_header[:_HEADER_BLOCKS]
        stages = (header, self.decoder1_upsampler, self.decoder2_upsampler, self.decoder3_upsampler)
        for stage in (3, 2, 1, 0):
            if stage == 0 and size is not None:
                maps = resized(maps, size)
            if stage in skips:
                maps = torch.cat([skips[stage], maps], dim=1)
            maps = stages[stage](maps)
        return maps

    def output(self, features: Tensor) -> Tensor:
        """Features to output, (n, n_out, H, W); the features themselves where the branch has no output."""
        out: Tensor = self.decoder0_header[_HEADER_BLOCKS:](features)
        return out

    def forward(self, deepest: Tensor, skips: Mapping[int, Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Decode without masked attention: :meth:`output` of :meth:`features`."""
        return self.output(self.features(deepest, skips, size))
