"""Flips and quarter turns of training patches: images, tokens and targets together, each patch its own.

The eight symmetries are numbered as :mod:`slideloom.encoders.dihedral` has them. Pixels, classes and outlines only
move. HV maps are made of directions as well: mirroring turns a sign, a quarter turn lets x and y change places.

What is stored need not be what would be made of the turned nuclei. The zero of stored HV maps lies one pixel left of
and above the rounded centroid (:func:`slideloom.patches.hv.hv_map`), and this bias turns with the tile, where a map
made afterwards would have it left and above again. Along an axis that keeps its direction both are equal. Along one
that is reversed their zeros lie two pixels apart (one, where the centroid lies half way between pixels), both maps rise
from -1 to 1, and so they differ most at a zero: by at most ``2 / a``, where ``a`` is the smaller of the distances in
pixels from the zero to the nucleus's right or lower end, in the two frames. A disc of radius r has ``a = r + 1``: 0.29
at a radius of 6 px, 0.15 at 12; a nucleus of one pixel turns from 1 to -1. More than 1.5 px away from the centroid,
along the axis, no sign is wrong. A decoder that learns from all symmetries learns a zero without bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideloom.config.model import AugmentationConfig
from slideloom.encoders.dihedral import N_SYMMETRIES, compose, inverse, steps, transform

__all__ = [
    "N_SYMMETRIES",
    "Symmetries",
    "compose",
    "draw_symmetries",
    "inverse",
    "transform",
    "transform_batch",
    "transform_hv",
    "transform_targets",
]

#: (n,): the symmetry of each patch of a batch.
Symmetries = NDArray[np.integer[Any]] | Tensor


def draw_symmetries(config: AugmentationConfig, n: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A symmetry for each patch of a batch.

    Each patch is mirrored left to right with the probability ``flips``, top to bottom with the same, and then, with the
    probability ``turns``, turned by one, two or three quarters. At 0.5 and 0.75 all eight are equally likely.

    Parameters
    ----------
    config : AugmentationConfig
        Probabilities.
    n : int
        Patches.
    rng : Generator
        4 n numbers are drawn, whatever becomes of them; none at all when both probabilities are 0.

    Returns
    -------
    (n,) uint8 array
        0 to 7.
    """
    if config.flips == config.turns == 0:
        return np.zeros(n, np.uint8)
    across, down = rng.random((2, n)) < config.flips
    quarters = np.where(rng.random(n) < config.turns, rng.integers(1, 4, n), 0)
    # Mirrored top to bottom is mirrored left to right and half turned.
    numbers: NDArray[np.uint8] = ((quarters + 2 * down) % 4 + 4 * (across ^ down)).astype(np.uint8)
    return numbers


def transform_hv(hv: Tensor, symmetry: int) -> Tensor:
    """Flip and turn HV maps: where they lie, and where they point.

    Parameters
    ----------
    hv : (..., 2, h, w) Tensor
        x, then y; floating, or int8 with 127 for 1, in which -128 does not occur.
    symmetry : int
        0 to 7.

    Returns
    -------
    Tensor
        (..., 2, h, w), or (..., 2, w, h); the same object for 0.
    """
    reverse, swap = steps(symmetry)
    if not reverse and not swap:
        return hv
    x, y = transform(hv, symmetry).unbind(-3)
    x = -x if -1 in reverse else x
    y = -y if -2 in reverse else y
    return torch.stack((y, x) if swap else (x, y), -3)


def transform_batch(values: Tensor, symmetries: Symmetries) -> Tensor:
    """Flip and turn each patch of a batch as it was drawn.

    Parameters
    ----------
    values : (n, ..., h, w) Tensor
        Pixels, or targets other than HV maps.
    symmetries : (n,) integer array or Tensor
        0 to 7 each.

    Returns
    -------
    (n, ..., h, w) Tensor
        Laid out in memory as ``values``; the same object when nothing changes.

    Raises
    ------
    ValueError
        Another number of symmetries than patches, or patches that are not square.
    """
    return _each(values, symmetries, transform)


def transform_targets(targets: Mapping[str, Tensor], symmetries: Symmetries) -> dict[str, Tensor]:
    """Flip and turn the targets of a batch.

    Parameters
    ----------
    targets : mapping of str to Tensor
        ``hv`` (n, 2, h, w); all others (n, ..., h, w).
    symmetries : (n,) integer array or Tensor
        0 to 7 each.

    Returns
    -------
    dict of str to Tensor
        The same tensors when nothing changes.
    """
    numbers = _numbers(symmetries)
    return {
        name: _each(values, numbers, transform_hv if name == "hv" else transform) for name, values in targets.items()
    }


def _numbers(symmetries: Symmetries) -> NDArray[np.integer[Any]]:
    return symmetries.cpu().numpy() if isinstance(symmetries, Tensor) else np.asarray(symmetries)


def _each(values: Tensor, symmetries: Symmetries, change: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Patches of one symmetry are changed together."""
    numbers = _numbers(symmetries)
    if numbers.shape != values.shape[:1]:
        raise ValueError(f"{numbers.size} symmetries for {len(values)} patches")
    if not numbers.any():
        return values
    if values.shape[-1] != values.shape[-2]:
        raise ValueError(f"patches of {values.shape[-2]} by {values.shape[-1]} px cannot be turned: not square")
    bits = values.view(torch.int16) if values.dtype == torch.uint16 else values
    out = torch.empty_like(bits)
    for symmetry in np.unique(numbers):
        rows = torch.from_numpy(np.flatnonzero(numbers == symmetry)).to(values.device)
        out.index_copy_(0, rows, change(bits.index_select(0, rows), int(symmetry)))
    return out.view(values.dtype)
