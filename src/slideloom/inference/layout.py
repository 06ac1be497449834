"""What a decoder's outputs become: channels that are blended, turned back, and quantised on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slideloom.config.model import Head
from slideloom.decoders.instanseg_head import INSTANSEG_HEADS, fields
from slideloom.encoders.dihedral import inverse, transform
from slideloom.training.symmetry import transform_hv

__all__ = ["HV_SCALE", "INSTANSEG_SCALES", "PROBABILITY_SCALE", "UNITS", "MapLayout"]

#: Stored value of probability 1, and of HV distance 1.
PROBABILITY_SCALE = 255
HV_SCALE = 127
#: Stored value of 1 in InstanSeg's maps: steps across and down (units of 4 px), two spreads, the seed map.
INSTANSEG_SCALES = (8191.0, 8191.0, 4095.0, 4095.0, 16383.0)
_INT16 = 32767
#: Of InstanSeg's seed map alone: a nucleus is where it is a tenth of the way in.
_SEED_STEEPNESS = 5
#: What the stored values mean, as the maps record it.
UNITS: dict[str, str] = {
    "nucleus": "probability · 255",
    "hv": "distance · 127",
    "class_probability": "p · 255",
    "distance": "distance to the outline over the nucleus' largest · 255",
    **dict.fromkeys(INSTANSEG_HEADS, "x, y · 8191 (units of 4 px), spreads · 4095, seed · 16383"),
}


class MapLayout:
    """Which channel of the blended values means what.

    Parameters
    ----------
    heads : sequence of str
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
        # Where no head says it outright, another tells where nuclei are.
        order: tuple[Head, ...] = ("nucleus", "classes", "three_class", "instanseg", "instanseg_cells")
        self._finder = next((head for head in order if head in heads), None)
        self._has_boundary = "boundary" in heads
        sizes: dict[Head, int] = {
            "nucleus": 1,
            "hv": 2,
            "classes": n_classes,
            "boundary": 1,
            "distance": 1,
            "three_class": 2,
            "instanseg": 5,
            "instanseg_cells": 5,
        }
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
            elif head in ("boundary", "distance"):
                parts.append(logits.sigmoid())
            elif head == "three_class":
                parts.append(logits.softmax(1)[:, 1:])
            elif head in ("instanseg", "instanseg_cells"):
                parts.append(torch.cat(fields(logits), 1))
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
        for head, channels in self._slices.items():
            if head == "hv":
                turned[:, channels] = transform_hv(values[:, channels], back)
            elif head in ("instanseg", "instanseg_cells"):
                steps = slice(channels.start, channels.start + 2)
                turned[:, steps] = transform_hv(values[:, steps], back)
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
            (h, w), (2, h, w) or, of InstanSeg's heads, (5, h, w), one byte each or two, on the same device.
        """
        maps: dict[str, Tensor] = {}
        for head, channels in self._slices.items():
            part = values[channels]
            if head == "hv":
                maps["hv"] = (part * HV_SCALE).round_().clamp_(-HV_SCALE, HV_SCALE).to(torch.int8)
            elif head in ("instanseg", "instanseg_cells"):
                scales = torch.tensor(INSTANSEG_SCALES, device=part.device)[:, None, None]
                maps[head] = (part * scales).round_().clamp_(-_INT16, _INT16).to(torch.int16)
                if self._finder == head:
                    maps["nucleus"] = _as_byte((part[4] * _SEED_STEEPNESS).clamp(0, 1))
            elif head == "three_class":
                if self._finder == head:
                    maps["nucleus"] = _as_byte(part.sum(0))
                if not self._has_boundary:
                    maps["boundary"] = _as_byte(part[1])
            elif head == "classes":
                if self._finder == head:
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
