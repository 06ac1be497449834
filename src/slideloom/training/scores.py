"""Validation figures, pooled over every pixel of the validation slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideloom.config.model import Head
from slideloom.training.terms import UNKNOWN_CLASS, hv_as_float

__all__ = ["PooledScores"]


class PooledScores:
    """Counts that grow batch by batch; scores at the end.

    Parameters
    ----------
    heads : sequence of str
        Heads of the decoder.
    n_classes : int
        Classes including background.
    device : torch.device
        Where the counts are kept.
    """

    def __init__(self, heads: Sequence[Head], n_classes: int, device: torch.device) -> None:
        sizes: dict[Head, int] = {"nucleus": 2, "classes": n_classes}
        self._pairs = {
            head: torch.zeros(size * size, dtype=torch.int64, device=device)
            for head, size in sizes.items()
            if head in heads
        }
        self._hv = torch.zeros(2, dtype=torch.float64, device=device) if "hv" in heads else None

    def add(self, outputs: Mapping[Head, Tensor], targets: Mapping[str, Tensor]) -> None:
        """Count one batch.

        Parameters
        ----------
        outputs, targets
            As for :func:`slideloom.training.terms.total_loss`.
        """
        valid = targets["valid"].bool()
        for head, counts in self._pairs.items():
            size = outputs[head].shape[1]
            usable = valid & (targets[head] != UNKNOWN_CLASS) if head == "classes" else valid
            pair = targets[head].long() * size + outputs[head].argmax(dim=1)
            counts += torch.bincount(pair[usable], minlength=counts.numel())
        if self._hv is not None:
            error = (outputs["hv"].float() - hv_as_float(targets["hv"])) ** 2
            self._hv += torch.stack([(error * valid[:, None]).sum(), 2 * valid.sum()]).double()

    @property
    def counts(self) -> list[Tensor]:
        """All that the scores are worked out from; what several processes counted can be added up here, in place."""
        return [*self._pairs.values(), *([] if self._hv is None else [self._hv])]

    def figures(self) -> dict[str, float | None]:
        """The scores.

        Returns
        -------
        dict of str to float or None
            ``dice_binary``: Dice of the nuclei; None when no annotated pixel is nucleus. ``dice_macro``: mean Dice of
            the classes, background left out, that some annotated pixel has; None when none, or without a class head.
            ``hv_mse``: mean squared error over valid pixels; None without an HV head.
        """
        found: dict[str, float | None] = {"dice_binary": None, "dice_macro": None, "hv_mse": None}
        for head, name in (("nucleus", "dice_binary"), ("classes", "dice_macro")):
            if head in self._pairs:
                found[name] = _mean_dice(self._pairs[head].cpu().numpy())
        if self._hv is not None:
            total, count = self._hv.tolist()
            found["hv_mse"] = total / count if count else None
        return found


def _mean_dice(counts: NDArray[np.int64]) -> float | None:
    size = round(counts.size**0.5)
    table = counts.reshape(size, size)  # true, predicted
    true, predicted = table.sum(axis=1)[1:], table.sum(axis=0)[1:]
    present = true > 0
    if not present.any():
        return None
    dice = 2 * np.diagonal(table)[1:][present] / (true + predicted)[present]
    return float(dice.mean())
