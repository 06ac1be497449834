"""The total loss of a decoder: which terms each head has, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from slideloom.config.model import Head, LossConfig
from slideloom.errors import SlideloomError
from slideloom.training import losses

__all__ = ["TERMS", "UNKNOWN_CLASS", "class_weights", "hv_as_float", "terms_of", "total_loss"]

#: Class of a pixel inside a nucleus whose class nobody wrote down; such pixels do not count for the class head.
UNKNOWN_CLASS = 255
#: Every term that any head can have, in the order of the history's columns.
TERMS = (
    "nucleus_cross_entropy",
    "nucleus_dice",
    "nucleus_focal_tversky",
    "classes_cross_entropy",
    "classes_dice",
    "classes_focal_tversky",
    "hv_mse",
    "hv_msge",
    "boundary_cross_entropy",
    "boundary_dice",
)


def terms_of(heads: Sequence[Head], config: LossConfig) -> dict[str, float]:
    """Terms that count for these heads, with their weights.

    Parameters
    ----------
    heads : sequence of str
        Heads of the decoder.
    config : LossConfig
        Weights; ``boundary`` is the weight of both boundary terms.

    Returns
    -------
    dict of str to float
        In the order of :data:`TERMS`; terms of weight 0 are left out.

    Raises
    ------
    SlideloomError
        ``no_loss``: a head has no term, so it would stay as it was born.
    """
    weights: dict[str, float] = {}
    for head in heads:
        own = {term: weight for term in TERMS if term.startswith(f"{head}_") and (weight := _weight(term, config)) > 0}
        if not own:
            raise SlideloomError(
                f"every loss term of head {head!r} has weight 0",
                where="loss",
                expected="at least one weight above 0 a head",
                hint="Raise a weight or drop the head",
                code="no_loss",
            )
        weights |= own
    return {term: weights[term] for term in TERMS if term in weights}


def _weight(term: str, config: LossConfig) -> float:
    if term.startswith("boundary"):
        return config.boundary
    name = term if term.startswith("hv") else term.split("_", 1)[1]
    return float(getattr(config, name))


def total_loss(
    outputs: Mapping[Head, Tensor],
    targets: Mapping[str, Tensor],
    config: LossConfig,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the terms of every head.

    Parameters
    ----------
    outputs : mapping of str to Tensor
        Of the decoder, float: ``nucleus`` (n, 2, h, w) logits, ``classes`` (n, k, h, w) logits, ``hv`` (n, 2, h, w) x
        then y, ``boundary`` (n, 1, h, w) logits.
    targets : mapping of str to Tensor
        ``valid`` (n, h, w) bool; ``nucleus`` (n, h, w) 0 or 1; and for the heads there are ``classes`` (n, h, w) below
        k or 255 for unknown, ``hv`` (n, 2, h, w) in -1 to 1, or int8 scaled by 127, ``boundary`` (n, h, w) 0 or 1.
    config : LossConfig
        Weights of the terms.
    weights : Tensor (k,), optional
        Class weights of the class head's cross-entropy.

    Returns
    -------
    loss : Tensor ()
        To descend.
    terms : dict of str to Tensor ()
        Every term before its weight, detached.
    """
    wanted = terms_of(list(outputs), config)
    valid = targets["valid"].bool()
    values: dict[str, Tensor] = {}
    for head, output in outputs.items():
        names = [term for term in wanted if term.startswith(f"{head}_")]
        if head == "hv":
            values |= _hv_terms(names, output, targets["hv"], targets["nucleus"], valid)
            continue
        target = targets[head]
        if head == "boundary":
            sums = losses.binary_sums(output, target, valid)
        else:
            usable = valid & (target != UNKNOWN_CLASS) if head == "classes" else valid
            sums = losses.pixel_sums(output, target, usable)
        values |= {term: _class_term(head, term, sums, weights) for term in names}
    loss = torch.stack([weight * values[term] for term, weight in wanted.items()]).sum()
    return loss, {term: value.detach() for term, value in values.items()}


def _hv_terms(
    names: Sequence[str], output: Tensor, target: Tensor, nucleus: Tensor, valid: Tensor
) -> dict[str, Tensor]:
    true = hv_as_float(target)
    values: dict[str, Tensor] = {}
    if "hv_mse" in names:
        values["hv_mse"] = losses.hv_mse(output, true, valid)
    if "hv_msge" in names:
        values["hv_msge"] = losses.hv_msge(output, true, nucleus, valid)
    return values


def hv_as_float(target: Tensor) -> Tensor:
    """HV maps in -1 to 1, from the stored int8 or as they are."""
    return target.float() / 127 if target.dtype == torch.int8 else target


def _class_term(head: Head, term: str, sums: losses.PixelSums, weights: Tensor | None) -> Tensor:
    if term.endswith("cross_entropy"):
        return losses.cross_entropy(sums, weights if head == "classes" else None)
    if term.endswith("dice"):
        # Boundaries are thin: the background's share of the mean would say nothing.
        return losses.dice(sums, first=1 if head == "boundary" else 0)
    return losses.focal_tversky(sums, first=1 if head == "nucleus" else 0)


def class_weights(pixels: ArrayLike, max_ratio: float = 20.0) -> NDArray[np.float32]:
    """Weights that give rare classes a hearing: inverse square root of their share of pixels.

    Parameters
    ----------
    pixels : array_like (k,)
        Pixels of each class in the training patches, background first.
    max_ratio : float
        No class weighs more than this many times the lightest, so that a class of a few pixels cannot rule a step.

    Returns
    -------
    ndarray (k,) float32
        Mean 1 over the classes that are present, 0 for the others.

    Examples
    --------
    >>> [round(float(weight), 3) for weight in class_weights([400, 0, 100])]
    [0.667, 0.0, 1.333]
    """
    counts = np.asarray(pixels, dtype=np.float64)
    present = counts > 0
    weights = np.zeros(counts.shape, dtype=np.float64)
    if present.any():
        raw = 1 / np.sqrt(counts[present])
        raw = np.minimum(raw, max_ratio * raw.min())
        weights[present] = raw / raw.mean()
    return weights.astype(np.float32)
