"""What every adapter is from outside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from slideloom.config.model import AdapterConfig

__all__ = ["Adapter"]


class Adapter(nn.Module, ABC):
    """A trainable front that maps an image's channels to those that a network reads.

    Parameters
    ----------
    config : AdapterConfig
        Kind and variants.

    Attributes
    ----------
    config : AdapterConfig
        As above.
    out_channels : int
        Channels that it gives.
    multiple_px : int
        Height and width of an image must be multiples of it.
    most_channels : int or None
        Channels of the longest panel that it reads; None: any.
    """

    multiple_px: int = 1
    most_channels: int | None = None

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.out_channels = config.out_channels

    @abstractmethod
    def forward(self, images: Tensor, present: Tensor | None = None) -> Tensor:
        """Map images.

        Parameters
        ----------
        images : Tensor
            (n, c, H, W) float32, normalised. Images of fewer channels than the batch's most are padded with zeros.
        present : Tensor, optional
            (n, c) bool: False for channels that pad. All are there when left out.

        Returns
        -------
        Tensor
            (n, out_channels, H, W) float32, neither normalised nor bounded.
        """

    def recipe(self) -> dict[str, Any]:
        """JSON values from which :func:`~slideloom.adapters.build.adapter_from_recipe` builds the same adapter."""
        return {"config": self.config.model_dump(mode="json")}
