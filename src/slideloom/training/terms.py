"""The total loss of a decoder: which terms each head has, and their weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from slideloom.config.model import Head, LossConfig
from slideloom.decoders.instanseg_head import PixelClassifier
from slideloom.errors import SlideloomError
from slideloom.training import losses
from slideloom.training.instanseg_loss import instanseg_loss
from slideloom.training.lovasz import lovasz_hinge, lovasz_softmax

__all__ = ["TERMS", "UNKNOWN_CLASS", "Drawn", "class_weights", "hv_as_float", "terms_of", "total_loss"]

#: Class of a pixel inside a nucleus whose class nobody wrote down; such pixels do not count for the class head.
UNKNOWN_CLASS = 255
_OF_CLASSES = ("cross_entropy", "dice", "focal", "tversky", "focal_tversky", "lovasz_softmax")
_OF_TWO = (*_OF_CLASSES, "lovasz_hinge")
_HEAD_TERMS: dict[Head, tuple[str, ...]] = {
    "nucleus": _OF_TWO,
    "classes": _OF_CLASSES,
    "hv": ("mse", "msge"),
    "boundary": _OF_TWO,
    "distance": ("l1",),
    "three_class": ("cross_entropy", "dice"),
    "instanseg": ("instance", "seed"),
    "instanseg_cells": ("instance", "seed"),
}
#: Targets of InstanSeg's heads: the ids, and the distance that is worked out from them.
_INSTANSEG: dict[Head, tuple[str, str]] = {
    "instanseg": ("instances", "distance"),
    "instanseg_cells": ("cells", "cell_distance"),
}
#: Every term that any head can have, in the order of the history's columns.
TERMS = tuple(f"{head}_{name}" for head, names in _HEAD_TERMS.items() for name in names)


@dataclass(frozen=True)
class Drawn:
    """What InstanSeg's loss is worked out with, besides outputs and targets.

    Attributes
    ----------
    classifier : PixelClassifier
        The decoder's, which says of a pixel and a seed whether they belong together.
    rng : Generator
        Which seeds and nuclei of a crowded patch count is drawn from it.
    hot : bool
        Whether the hot start is on.
    """

    classifier: PixelClassifier
    rng: np.random.Generator
    hot: bool = False


def terms_of(heads: Sequence[Head], config: LossConfig) -> dict[str, float]:
    """Terms that count for these heads, with their weights.

    Parameters
    ----------
    heads : sequence of str
        Heads of the decoder.
    config : LossConfig
        Weights. A head that ``heads`` names has those and no others. Else ``boundary`` is the weight of the boundary
        head's cross-entropy and Dice, and the nucleus and class heads have the common weights (Lovász-hinge: the
        nucleus head alone). Of InstanSeg's heads for nuclei and cells together the mean counts: half of each weight.

    Returns
    -------
    dict of str to float
        In the order of :data:`TERMS`; terms of weight 0 are left out.

    Raises
    ------
    SlideloomError
        ``no_loss``: a head has no term, so it would stay as it was born. ``loss_term``: a weight for a term that the
        head cannot have.
    """
    _check_terms(config)
    weights: dict[str, float] = {}
    several = sum(head in _INSTANSEG for head in heads)
    for head in heads:
        share = 1 / several if head in _INSTANSEG else 1.0
        every = {f"{head}_{name}": share * _weight(head, name, config) for name in _HEAD_TERMS[head]}
        own = {term: weight for term, weight in every.items() if weight > 0}
        if not own:
            raise SlideloomError(
                f"every loss term of head {head!r} has weight 0",
                where=f"loss.heads.{head}" if head in config.heads else "loss",
                expected="at least one weight above 0 a head",
                hint="Raise a weight or drop the head",
                code="no_loss",
            )
        weights |= own
    return {term: weights[term] for term in TERMS if term in weights}


def _check_terms(config: LossConfig) -> None:
    for head, own in config.heads.items():
        extra = [name for name, weight in own if weight > 0 and name not in _HEAD_TERMS[head]]
        if extra:
            raise SlideloomError(
                f"the {head} head cannot have the loss {', '.join(extra)}",
                where=f"loss.heads.{head}",
                expected=f"some of {', '.join(_HEAD_TERMS[head])}",
                hint="Lovász-hinge is for a head of two classes; lovasz_softmax is for any number",
                code="loss_term",
            )


def _weight(head: Head, name: str, config: LossConfig) -> float:
    if head == "hv":
        return float(getattr(config, f"hv_{name}"))
    if head in ("distance", "three_class"):
        return float(getattr(config, head))
    if head in _INSTANSEG:
        return float(getattr(config, f"instanseg_{name}"))
    if head in config.heads:
        return float(getattr(config.heads[head], name))
    if head == "boundary":
        return config.boundary if name in ("cross_entropy", "dice") else 0.0
    return float(getattr(config, name))


def total_loss(
    outputs: Mapping[Head, Tensor],
    targets: Mapping[str, Tensor],
    config: LossConfig,
    weights: Tensor | None = None,
    drawn: Drawn | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the terms of every head.

    Parameters
    ----------
    outputs : mapping of str to Tensor
        Of the decoder, float: ``nucleus`` (n, 2, h, w) logits, ``classes`` (n, k, h, w) logits, ``hv`` (n, 2, h, w) x
        then y, ``boundary`` (n, 1, h, w) logits; and so on, see :meth:`slideloom.decoders.base.Decoder.forward`.
    targets : mapping of str to Tensor
        ``valid`` (n, h, w) bool; ``nucleus`` (n, h, w) 0 or 1; and for the heads there are ``classes`` (n, h, w) below
        k or 255 for unknown, ``hv`` (n, 2, h, w) in -1 to 1, or int8 scaled by 127, ``boundary`` (n, h, w) 0 or 1 (of
        ``three_class``, too), ``distance`` (n, h, w) float, ``instances`` (n, h, w) int32 (instanseg), ``cells`` (n, h,
        w) int32 and ``cell_distance`` (n, h, w) float (instanseg_cells); where ``cells`` is below 0 nobody annotated
        any, and the head learns nothing.
    config : LossConfig
        Weights and exponents of the terms. ``original`` changes cross-entropy, Dice and focal Tversky of the nucleus
        and class heads and the HV gradients; CellViT has no other terms, and they stay as they are.
    weights : Tensor (k,), optional
        Class weights of the class head's cross-entropy.
    drawn : Drawn, optional
        Of the head instanseg.

    Returns
    -------
    loss : Tensor ()
        To descend. NaN when an output is NaN where it counts.
    terms : dict of str to Tensor ()
        Every term before its weight, detached.
    """
    wanted = terms_of(list(outputs), config)
    valid = targets["valid"].bool()
    values: dict[str, Tensor] = {}
    for head, output in outputs.items():
        names = [name for name in _HEAD_TERMS[head] if f"{head}_{name}" in wanted]
        if head == "hv":
            own = _hv_terms(names, output, targets["hv"], targets["nucleus"], valid, config.original)
        elif head == "distance":
            own = {"l1": _distance_error(output[:, 0], targets["distance"], valid)}
        elif head == "three_class":
            three = losses.pixel_map(output, _three_classes(targets), valid)
            own = {"cross_entropy": losses.cross_entropy(three.sums), "dice": losses.dice(three.sums)}
        elif head in _INSTANSEG:
            own = _instanseg_terms(names, output, targets, _INSTANSEG[head], valid, config, drawn)
        else:
            target = targets[head]
            usable = valid & (target != UNKNOWN_CLASS) if head == "classes" else valid
            own = _map_terms(head, names, output, target, usable, config, weights)
        values |= {f"{head}_{name}": value for name, value in own.items()}
    loss = torch.stack([weight * values[term] for term, weight in wanted.items()]).sum()
    return loss, {term: value.detach() for term, value in values.items()}


def _hv_terms(
    names: Sequence[str], output: Tensor, target: Tensor, nucleus: Tensor, valid: Tensor, original: bool
) -> dict[str, Tensor]:
    true = hv_as_float(target)
    values: dict[str, Tensor] = {}
    if "mse" in names:
        values["mse"] = losses.hv_mse(output, true, valid)
    if "msge" in names:
        values["msge"] = losses.hv_msge(output, true, nucleus, valid, original=original)
    return values


def _instanseg_terms(
    names: Sequence[str],
    output: Tensor,
    targets: Mapping[str, Tensor],
    own: tuple[str, str],
    valid: Tensor,
    config: LossConfig,
    drawn: Drawn | None,
) -> dict[str, Tensor]:
    if drawn is None:
        raise ValueError("InstanSeg's loss needs the decoder's classifier")
    instances, distance = targets[own[0]], targets.get(own[1])
    both = instanseg_loss(
        output,
        instances,
        valid & (instances >= 0),
        drawn.classifier,
        config,
        drawn.hot,
        drawn.rng,
        distance=distance,
        window_px=config.instanseg_window_px,
    )
    return {name: value for name, value in zip(("instance", "seed"), both, strict=True) if name in names}


def _distance_error(output: Tensor, true: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute error over what counts; 0 where nothing does."""
    found = torch.where(valid, _single(output), 0.0).sigmoid()  # before the slope, which NaN would spoil
    return torch.where(valid, (found - true).abs(), 0.0).sum() / valid.sum().clamp(min=1)


def _three_classes(targets: Mapping[str, Tensor]) -> Tensor:
    """0 background, 1 inside, 2 at the boundary: (n, h, w) uint8."""
    return torch.where(targets["boundary"] > 0, 2, (targets["nucleus"] > 0).to(torch.uint8))


def hv_as_float(target: Tensor) -> Tensor:
    """HV maps in -1 to 1, from the stored int8 or as they are."""
    return target.float() / 127 if target.dtype == torch.int8 else target


def _map_terms(
    head: Head,
    names: Sequence[str],
    output: Tensor,
    target: Tensor,
    usable: Tensor,
    config: LossConfig,
    class_weights: Tensor | None,
) -> dict[str, Tensor]:
    make = losses.binary_map if head == "boundary" else losses.pixel_map
    values = make(output, target, usable)
    weights = class_weights if head == "classes" else None
    # Boundaries are thin: the background's share of the mean would say nothing. In a Tversky index of two classes the
    # background's missed pixels are the foreground's invented ones, so both together would undo alpha and beta.
    overlap_from = 1 if head == "boundary" else 0
    tversky_from = 0 if head == "classes" else 1
    alpha, beta, gamma = config.tversky_alpha, config.tversky_beta, config.tversky_gamma
    ways: dict[str, Callable[[], Tensor]] = {
        "cross_entropy": lambda: losses.cross_entropy(values.sums, weights),
        "dice": lambda: losses.dice(values.sums, first=overlap_from),
        "focal": lambda: losses.focal(values, config.focal_gamma),
        "tversky": lambda: losses.tversky(values.sums, first=tversky_from, alpha=alpha, beta=beta),
        "focal_tversky": lambda: losses.focal_tversky(
            values.sums, first=tversky_from, alpha=alpha, beta=beta, gamma=gamma
        ),
        "lovasz_softmax": lambda: lovasz_softmax(values, first=overlap_from),
        "lovasz_hinge": lambda: lovasz_hinge(_margin(output), target, usable),
    }
    if config.original and head != "boundary":
        pooled: losses.Reduction = "pooled" if head == "nucleus" else "sum"
        ways |= {
            "cross_entropy": lambda: losses.cross_entropy(values.clamped, weights),
            "dice": lambda: losses.dice(values.sums, "sum"),
            "focal_tversky": lambda: losses.focal_tversky(
                values.again.sums, pooled, alpha=alpha, beta=beta, gamma=gamma
            ),
        }
    return {name: ways[name]() for name in names}


def _single(output: Tensor) -> Tensor:
    """In single precision at least."""
    return output if output.dtype == torch.float64 else output.float()


def _margin(output: Tensor) -> Tensor:
    """(n, h, w) logit of the foreground against the background, of one logit a pixel or of two."""
    values = _single(output)
    return values[:, 0] if values.shape[1] == 1 else values[:, 1] - values[:, 0]


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
