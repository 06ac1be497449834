"""What a decoder's outputs become: channels that are blended, turned back, and quantised on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slideloom.config.model import Head
from slideloom.encoders.dihedral import inverse, transform
from slideloom.training.symmetry import transform_hv

__all__ = ["HV_SCALE", "PROBABILITY_SCALE", "UNITS", "MapLayout"]

#: Stored value of probability 1, and of HV distance 1.
PROBABILITY_SCALE = 255
HV_SCALE = 127
#: What the stored values mean, as the maps record it.
UNITS = {"nucleus": "probability · 255", "hv": "distance · 127", "class_probability": "p · 255"}


class MapLayout:
    """Which channel of the blended values means what.

    Parameters
    ----------
    heads : sequence of {"nucleus", "hv", "classes", "boundary"}
        Of the decoder.
    n_classes : int
        Background included.

    Attributes
    ----------
    channels : int
        Values a pixel.
    arrays : dict of str to (tuple of int, dtype)
        The maps that come of them: name to leading shape and type.
    """

    def __init__(self, heads: Sequence[Head], n_classes: int) -> None:
        self._from_classes = "nucleus" not in heads
        sizes: dict[Head, int] = {"nucleus": 1, "hv": 2, "classes": n_classes, "boundary": 1}
        self._slices: dict[Head, slice] = {}
        self.channels = 0
        for head in heads:
            self._slices[head] = slice(self.channels, self.channels + sizes[head])
            self.channels += sizes[head]
        self.arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            name: (tuple(values.shape[:-2]), values.numpy().dtype)
            for name, values in self.quantise(torch.zeros(self.channels, 1, 1), torch.zeros(1, 1)).items()
        }

    def join(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Heads' outputs as what is blended.

        Parameters
        ----------
        outputs : mapping of str to Tensor
            See :meth:`slideloom.decoders.base.Decoder.forward`.

        Returns
        -------
        Tensor
            (n, channels, h, w) float32: probabilities, and distances from -1 to 1.
        """
        parts = []
        for head in self._slices:
            logits = outputs[head].float()
            if head == "nucleus":
                parts.append(logits.softmax(1)[:, 1:])
            elif head == "classes":
                parts.append(logits.softmax(1))
            elif head == "boundary":
                parts.append(logits.sigmoid())
            else:
                parts.append(logits.clamp(-1, 1))
        return torch.cat(parts, 1)

    def turn_back(self, values: Tensor, pose: int) -> Tensor:
        """Values of tiles that were flipped and turned, as if they had not been: places, and directions of HV maps.

        Parameters
        ----------
        values : Tensor
            (n, channels, h, w), as :meth:`join` gives them.
        pose : int
            How the tiles lay; see :mod:`slideloom.encoders.dihedral`.

        Returns
        -------
        Tensor
            (n, channels, h, w); the same object for pose 0.
        """
        if pose == 0:
            return values
        back = inverse(pose)
        turned = transform(values, back).contiguous()
        if "hv" in self._slices:
            turned[:, self._slices["hv"]] = transform_hv(values[:, self._slices["hv"]], back)
        return turned

    def quantise(self, values: Tensor, covered: Tensor) -> dict[str, Tensor]:
        """Blended values as they are stored.

        Parameters
        ----------
        values : Tensor
            (channels, h, w) float32.
        covered : Tensor
            (h, w) bool: where a tile lay.

        Returns
        -------
        dict of str to Tensor
            (h, w) or (2, h, w), one byte each, on the same device.
        """
        maps: dict[str, Tensor] = {}
        for head, channels in self._slices.items():
            part = values[channels]
            if head == "hv":
                maps["hv"] = (part * HV_SCALE).round_().clamp_(-HV_SCALE, HV_SCALE).to(torch.int8)
            elif head == "classes":
                if self._from_classes:
                    # Nuclei are what is not background: no head says more.
                    maps["nucleus"] = _as_byte(part[1:].sum(0))
                best = part.amax(0)
                maps["class_id"] = _first_of(part, best)
                maps["class_probability"] = _as_byte(best)
            else:
                maps[head] = _as_byte(part[0])
        return maps | {"covered": covered.to(torch.uint8)}


def _first_of(values: Tensor, best: Tensor) -> Tensor:
    """Number of the first channel that has the largest value, uint8; several times as fast as looking for it."""
    number = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
    below = values[0] < best
    for channel in values[1:]:
        number += below
        below &= channel < best
    return number


def _as_byte(probability: Tensor) -> Tensor:
    return (probability * PROBABILITY_SCALE).round_().clamp_(0, PROBABILITY_SCALE).to(torch.uint8)
