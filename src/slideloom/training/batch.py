"""What a training step is given, and how it lies in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Batch", "layout_on"]


def layout_on(device: torch.device) -> torch.memory_format:
    """How maps lie in memory while networks train on a device.

    Channels last where that is fast, but not on a CPU: there batch normalisation of such maps loses digits in PyTorch
    2.13, and its slope writes beyond its memory where there are few channels.
    """
    return torch.contiguous_format if device.type == "cpu" else torch.channels_last


@dataclass(frozen=True)
class Batch:
    """Patches as the decoder and the losses take them; or, of a live training, as its encoder does.

    Attributes
    ----------
    tokens : list of Tensor
        z1 … z4, each (n, d, h, w), channels last in memory; none while they are still to be made.
    image : Tensor or None
        (n, c, p, p) float32, normalised, channels last in memory.
    targets : dict of str to Tensor
        For :func:`slideloom.training.terms.total_loss`; ``valid`` among them.
    pixels : Tensor or None
        (n, c, p, p) raw pixels, of which tokens and image are still to be made.
    owners : (n,) int array or None
        Slide of each patch, by its place among :attr:`PatchData.slides`; goes with ``pixels``.
    """

    tokens: list[Tensor]
    image: Tensor | None
    targets: dict[str, Tensor]
    pixels: Tensor | None = None
    owners: NDArray[np.intp] | None = None

    @property
    def n(self) -> int:
        """Number of patches."""
        return int(self.targets["valid"].shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the patches, pixels."""
        height, width = self.targets["valid"].shape[-2:]
        return int(height), int(width)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, in its layout and with tokens as float32; a repeated token map stays one tensor."""
        layout = layout_on(device)
        moved = {id(token): token for token in self.tokens}
        moved = {
            key: token.to(device, non_blocking=True).float().contiguous(memory_format=layout)
            for key, token in moved.items()
        }
        return replace(
            self,
            tokens=[moved[id(token)] for token in self.tokens],
            image=None
            if self.image is None
            else self.image.to(device, non_blocking=True).contiguous(memory_format=layout),
            targets={name: values.to(device, non_blocking=True) for name, values in self.targets.items()},
            pixels=None if self.pixels is None else self.pixels.to(device, non_blocking=True),
        )
