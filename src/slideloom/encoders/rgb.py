"""What frozen RGB encoders have in common: a module, its spec, and the scaling of uint8 pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor, nn

from slideloom.encoders.base import RGB, EncoderSpec
from slideloom.errors import SlideloomError
from slideloom.patches.statistics import ChannelStatistics

__all__ = ["RGBEncoder"]


class RGBEncoder(ABC):
    """A frozen module that reads red, green and blue; subclasses say how it encodes.

    Parameters
    ----------
    module : Module
        Set to evaluation, its weights frozen. Whoever trains it leaves it in evaluation mode: batches of a few tiles
        are no place for dropout in a network that was trained long ago.
    spec : EncoderSpec
        What it declares.
    blocks : tuple of int
        Blocks to hand out, 1-based, rising.
    weights : str
        Where the weights came from, as :class:`~slideloom.encoders.base.Encoder` says.
    notes : tuple of str
        Remarks on the weights.
    """

    dropped: tuple[str, ...] = ()

    def __init__(
        self, module: nn.Module, spec: EncoderSpec, blocks: tuple[int, ...], weights: str, notes: tuple[str, ...] = ()
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        self.spec = spec
        self.blocks = blocks
        self.width = spec.width
        self.patch_px = spec.patch_px
        self.image_channels = len(RGB)
        self.markers: tuple[str, ...] = RGB
        self.weights = weights
        self.notes = notes

    def to(self, device: str) -> Self:
        """Move the weights."""
        self.module.to(device)
        return self

    def preprocess(self, pixels: Tensor, statistics: ChannelStatistics | None = None) -> Tensor:
        """Scale to [0, 1] and standardise with the model's own mean and std; ``statistics`` plays no part.

        Parameters
        ----------
        pixels : Tensor
            (n, 3, h, w) uint8, red, green, blue.
        statistics : ChannelStatistics, optional
            Ignored.

        Returns
        -------
        Tensor
            (n, 3, h, w) float32.

        Raises
        ------
        SlideloomError
            ``encoder_channels``: not three channels of uint8.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != len(RGB):
            raise SlideloomError(
                f"pixels {tuple(pixels.shape)} of {pixels.dtype}",
                where=self.spec.name,
                expected="(n, 3, h, w) of uint8",
                code="encoder_channels",
            )
        mean, std = torch.tensor([self.spec.mean, self.spec.std], device=pixels.device)[:, :, None, None]
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> dict[int, Tensor]:
        """Tokens of each block, without gradients: see :meth:`tokens`."""
        return self.tokens(images)

    @abstractmethod
    def tokens(self, images: Tensor) -> dict[int, Tensor]:
        """Tokens of each block, in the caller's gradient mode.

        Parameters
        ----------
        images : Tensor
            (n, 3, h, w) preprocessed.

        Returns
        -------
        dict of int to Tensor
            By block, (n, rows, columns, width).
        """
