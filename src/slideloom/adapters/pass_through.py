"""No adapter at all, in an adapter's place: channels as they are, for networks that read a fixed number of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from slideloom.adapters.base import Adapter
from slideloom.adapters.channels import checked_present, replicate
from slideloom.config.model import AdapterConfig

__all__ = ["PassThrough"]


class PassThrough(Adapter):
    """Hands on the channels, normalised; it has no weights.

    A panel of fewer channels than ``config.out_channels`` is repeated until it fills them (a grey picture becomes one
    of three equal channels); one of more is refused.

    Parameters
    ----------
    config : AdapterConfig
        ``out_channels``.
    any_number : bool
        Hand on however many channels there are, for a network that reads any number; ``out_channels`` says nothing.
    """

    def __init__(self, config: AdapterConfig, any_number: bool = False) -> None:
        super().__init__(config)
        self.any_number = any_number
        self.most_channels = None if any_number else config.out_channels

    def recipe(self) -> dict[str, Any]:
        """As of any adapter, and whether it hands on any number of channels."""
        return super().recipe() | ({"any_number": True} if self.any_number else {})

    def forward(self, images: Tensor, present: Tensor | None = None) -> Tensor:
        """Hand channels on.

        Parameters
        ----------
        images : Tensor
            (n, c, H, W) floating, normalised.
        present : Tensor, optional
            (n, c) bool: False for channels that pad, which are not read. All are there when left out.

        Returns
        -------
        Tensor
            (n, out_channels, H, W) float32; of any number of channels, as many as there are.

        Raises
        ------
        SlideloomError
            ``adapter_input``: images without channels or pixels, or a mask that does not fit. ``adapter_channels``:
            more channels than ``out_channels``.
        """
        if self.any_number:
            checked_present(images, present)
            return images.float()
        return replicate(images, self.config.out_channels, present).float()
