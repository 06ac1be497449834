"""Building blocks of the CellViT decoder, with the submodule numbering that its state dicts carry."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["ConvBlock", "DeconvBlock", "scaled_channels", "upsample"]

_STEP = 4


def scaled_channels(channels: int, width: float) -> int:
    """Channel count under a width multiplier: the nearest multiple of 4, at least 4; exact at width 1.

    Parameters
    ----------
    channels : int
        Channel count at width 1; every count of the CellViT decoder is a multiple of 4.
    width : float
        Multiplier, > 0.

    Examples
    --------
    >>> [scaled_channels(312, width) for width in (1.0, 0.5, 0.25, 0.1, 0.001)]
    [312, 156, 80, 32, 4]
    """
    if width == 1.0:
        return channels
    return max(_STEP, _STEP * int(channels * width / _STEP + 0.5))


def upsample(in_channels: int, out_channels: int, factor: int) -> nn.ConvTranspose2d | nn.Conv2d:
    """Change of channel count that doubles the side (transposed 2×2, ``factor`` 2) or keeps it (1×1, ``factor`` 1)."""
    if factor == 2:
        return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
    return nn.Conv2d(in_channels, out_channels, kernel_size=1)


class ConvBlock(nn.Module):
    """3×3 convolution, batch normalisation, ReLU, dropout.

    Parameters
    ----------
    in_channels, out_channels : int
        Channel counts; height and width stay.
    dropout : float
        Rate, [0, 1).
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(n, in, h, w) → (n, out, h, w)."""
        out: Tensor = self.block(maps)
        return out


class DeconvBlock(nn.Module):
    """Transposed 2×2 convolution (or 1×1 convolution), 3×3 convolution, batch normalisation, ReLU, dropout.

    Parameters
    ----------
    in_channels, out_channels : int
        Channel counts.
    dropout : float
        Rate, [0, 1).
    factor : {1, 2}
        2 doubles height and width; 1 keeps them, with a 1×1 convolution where the transposed one stood.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0, factor: int = 2) -> None:
        super().__init__()
        self.block = nn.Sequential(
            upsample(in_channels, out_channels, factor),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(n, in, h, w) → (n, out, factor·h, factor·w)."""
        out: Tensor = self.block(maps)
        return out
