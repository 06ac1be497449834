"""Building blocks of HoVer-Net: a ResNet-50 that activates first, and decoders of convolutions without padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from slideloom.decoders.blocks import scaled_channels

__all__ = ["HeadBranch", "PreactResNet50", "cropped", "doubled"]

#: Units of each stage.
_UNITS = (3, 4, 6, 3)
#: Channels that each stage gives; a quarter of them inside its units.
_CHANNELS = (256, 512, 1024, 2048)
_STEM, _BOTTOM = 64, 1024
#: Channels of a dense unit: inside, and those that it adds.
_DENSE_INSIDE, _DENSE_ADDED = 128, 32
_DENSE_GROUPS = 4
_DEEP_UNITS, _SHALLOW_UNITS = 8, 4


def cropped(maps: Tensor, margin: int) -> Tensor:
    """Maps (n, c, h, w) without a margin all round; the same tensor where it is 0."""
    return maps[..., margin:-margin, margin:-margin] if margin else maps


def doubled(maps: Tensor) -> Tensor:
    """Maps (n, c, h, w) to (n, c, 2h, 2w): every pixel four times."""
    return functional.interpolate(maps, scale_factor=2, mode="nearest")


def _activated(norm: nn.Module, maps: Tensor) -> Tensor:
    return functional.relu(norm(maps), inplace=True)


class _Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolution, each on what is normalised and activated before it.

    The first of a stage has no norm of its own for its input: what comes in is activated already. A stride of 2 takes
    its 3×3 window from the pixel on, one pixel of zeros right and below.
    """

    def __init__(self, c_in: int, c_inside: int, c_out: int, *, first: bool, stride: int) -> None:
        super().__init__()
        self.norm0 = None if first else nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_inside, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(c_inside)
        self.conv2 = nn.Conv2d(c_inside, c_inside, 3, stride, padding=1 if stride == 1 else 0, bias=False)
        self.norm2 = nn.BatchNorm2d(c_inside)
        self.conv3 = nn.Conv2d(c_inside, c_out, 1, bias=False)
        self._stride = stride

    def forward(self, maps: Tensor) -> Tensor:
        if self.norm0 is not None:
            maps = _activated(self.norm0, maps)
        maps = _activated(self.norm1, self.conv1(maps))
        if self._stride == 2:
            maps = functional.pad(maps, (0, 1, 0, 1))
        maps = _activated(self.norm2, self.conv2(maps))
        out: Tensor = self.conv3(maps)
        return out


class _Stage(nn.Module):
    """Bottlenecks, each added to what comes in; the first to a 1×1 convolution of it."""

    def __init__(self, c_in: int, c_inside: int, c_out: int, units: int, stride: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            _Bottleneck(c_out if unit else c_in, c_inside, c_out, first=unit == 0, stride=1 if unit else stride)
            for unit in range(units)
        )
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, maps: Tensor) -> Tensor:
        beside = self.shortcut(maps)
        for unit in self.units:
            maps = beside = unit(maps) + beside
        return _activated(self.norm, maps)


class PreactResNet50(nn.Module):
    """HoVer-Net's encoder: a ResNet-50 that activates first, begins at full resolution, and pools nowhere.

    Parameters
    ----------
    image_channels : int
        Channels of the image.
    padded : bool
        Whether the first convolution, 7×7, has a margin of zeros; without, three pixels go on each side.
    width : float
        Multiplier of every channel count.

    Attributes
    ----------
    channels : tuple of int
        Channels of the four maps that it gives.
    """

    def __init__(self, image_channels: int, *, padded: bool, width: float = 1.0) -> None:
        super().__init__()
        stem, bottom, *outs = (scaled_channels(count, width) for count in (_STEM, _BOTTOM, *_CHANNELS))
        self.stem = nn.Conv2d(image_channels, stem, 7, padding=3 if padded else 0, bias=False)
        self.stem_norm = nn.BatchNorm2d(stem)
        self.stages = nn.ModuleList(
            _Stage(c_in, scaled_channels(count // 4, width), c_out, units, stride=1 if stage == 0 else 2)
            for stage, ((c_in, c_out), count, units) in enumerate(
                zip(pairwise((stem, *outs)), _CHANNELS, _UNITS, strict=True)
            )
        )
        self.bottom = nn.Conv2d(outs[-1], bottom, 1, bias=False)
        self.channels = (*outs[:-1], bottom)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps of an image.

        Parameters
        ----------
        image : Tensor
            (n, c, H, W); H and W, less 6 without padding, multiples of 8.

        Returns
        -------
        list of Tensor
            At full, half, quarter and eighth resolution.
        """
        maps = _activated(self.stem_norm, self.stem(image))
        found: list[Tensor] = []
        for stage in self.stages:
            maps = stage(maps)
            found.append(maps)
        return [*found[:-1], self.bottom(maps)]


class _DenseUnit(nn.Module):
    """1×1 and k×k convolution without padding, each on what is normalised and activated before it."""

    def __init__(self, c_in: int, c_inside: int, c_added: int, kernel: int) -> None:
        super().__init__()
        self.norm0 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_inside, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(c_inside)
        self.conv2 = nn.Conv2d(c_inside, c_added, kernel, groups=_DENSE_GROUPS, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        maps = _activated(self.norm1, self.conv1(_activated(self.norm0, maps)))
        out: Tensor = self.conv2(maps)
        return out


class _DenseBlock(nn.Module):
    """Units that each add channels to the middle of what they read."""

    def __init__(self, c_in: int, units: int, kernel: int, width: float) -> None:
        super().__init__()
        inside, added = scaled_channels(_DENSE_INSIDE, width), scaled_channels(_DENSE_ADDED, width)
        self.units = nn.ModuleList(_DenseUnit(c_in + unit * added, inside, added, kernel) for unit in range(units))
        self.channels = c_in + units * added
        self.norm = nn.BatchNorm2d(self.channels)
        self._margin = kernel // 2

    def forward(self, maps: Tensor) -> Tensor:
        for unit in self.units:
            maps = torch.cat([cropped(maps, self._margin), unit(maps)], dim=1)
        return _activated(self.norm, maps)


class _Level(nn.Module):
    """A k×k convolution, a dense block and a 1×1 convolution; ``(units + 1) * (k // 2)`` pixels go on each side."""

    def __init__(self, c_in: int, c_enter: int, c_out: int, units: int, kernel: int, width: float) -> None:
        super().__init__()
        self.enter = nn.Conv2d(c_in, c_enter, kernel, bias=False)
        self.dense = _DenseBlock(c_enter, units, kernel, width)
        self.leave = nn.Conv2d(self.dense.channels, c_out, 1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        out: Tensor = self.leave(self.dense(self.enter(maps)))
        return out


class HeadBranch(nn.Module):
    """HoVer-Net's decoder of one head.

    Parameters
    ----------
    channels : sequence of int
        Of the encoder's maps, :attr:`PreactResNet50.channels`.
    c_out : int
        Output channels.
    kernel : int
        Side of its kernels: 3 or 5.
    width : float
        Multiplier of every channel count.

    Attributes
    ----------
    lost : (int, int)
        Pixels that go on each side at quarter and at half resolution.
    """

    def __init__(self, channels: Sequence[int], c_out: int, kernel: int, width: float = 1.0) -> None:
        super().__init__()
        full, half, _, deepest = channels
        entered = [scaled_channels(count, width) for count in (256, 128, 64)]
        self.up3 = _Level(deepest, entered[0], half, _DEEP_UNITS, kernel, width)
        self.up2 = _Level(half, entered[1], full, _SHALLOW_UNITS, kernel, width)
        self.up1 = nn.Conv2d(full, entered[2], kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(entered[2])
        self.last = nn.Conv2d(entered[2], c_out, 1)
        self.lost = ((_DEEP_UNITS + 1) * (kernel // 2), (_SHALLOW_UNITS + 1) * (kernel // 2))

    def forward(self, quarter: Tensor, half: Tensor, full: Tensor) -> Tensor:
        """Decode.

        Parameters
        ----------
        quarter : Tensor
            The deepest map doubled, and the encoder's at quarter resolution, added.
        half, full : Tensor
            The encoder's at half and full resolution, cropped to what is left when the decoder gets there.

        Returns
        -------
        Tensor
            Of the size of ``full``.
        """
        maps = self.up2(doubled(self.up3(quarter)) + half)
        out: Tensor = self.last(_activated(self.norm, self.up1(doubled(maps) + full)))
        return out
