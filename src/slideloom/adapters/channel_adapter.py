"""The channel adapter: three convolutions from a fixed number of channels.

As Kontarou and Fredj-Zadoun 2025, "Computationally efficient stain agnostic nuclei segmentation", section 2.4, describe
it and their program has it.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from slideloom.adapters.base import Adapter
from slideloom.adapters.channels import replicate
from slideloom.config.model import AdapterConfig

__all__ = ["ChannelAdapter"]

_HIDDEN = 32


class ChannelAdapter(Adapter):
    """Two 3×3 convolutions of 32 features, the second with a residual, and a 1×1 convolution to the output.

    With as many channels out as in, the input is added to the output, too. Panels smaller than ``config.in_channels``
    are repeated until they fill it (:func:`~slideloom.adapters.channels.replicate`). Unlike
    :class:`~slideloom.adapters.channelnet.ChannelNet` it takes a channel's place for its meaning.

    Parameters
    ----------
    config : AdapterConfig
        ``in_channels`` and ``out_channels``.
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__(config)
        self.most_channels = config.in_channels
        self.conv1 = nn.Conv2d(config.in_channels, _HIDDEN, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(_HIDDEN)
        self.conv2 = nn.Conv2d(_HIDDEN, _HIDDEN, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(_HIDDEN)
        self.conv_out = nn.Conv2d(_HIDDEN, config.out_channels, 1)

    def forward(self, images: Tensor, present: Tensor | None = None) -> Tensor:
        """Map images.

        Parameters
        ----------
        images : Tensor
            (n, c, H, W) floating, normalised; c of at least one and of at most ``in_channels``.
        present : Tensor, optional
            (n, c) bool: False for channels that pad, which are not read. All are there when left out.

        Returns
        -------
        Tensor
            (n, out_channels, H, W) float32.

        Raises
        ------
        SlideloomError
            ``adapter_input``: images without channels or pixels, a mask that does not fit, or an image none of whose
            channels is there. ``adapter_channels``: more channels than ``in_channels``.
        """
        full = replicate(images, self.config.in_channels, present)
        hidden = functional.relu(self.bn1(self.conv1(full)))
        hidden = functional.relu(self.bn2(self.conv2(hidden)) + hidden)
        out: Tensor = self.conv_out(hidden)
        if self.config.in_channels == self.config.out_channels:
            out = out + full
        return out.float()
