"""Losses of the decoder's heads, on logits, with masks.

Most are functions of four sums a class (:class:`PixelSums`), so the softmax is taken once and a masked pixel can leave
no trace: a masked loss equals the loss of the cropped map, whatever lies outside, NaN included. The Lovász losses need
sorted pixels and are in :mod:`slideloom.training.lovasz`.

Sources: CellViT (Hörst et al. 2024) and HoVer-Net (Graham et al. 2019); focal loss (Lin et al. 2017); Tversky (Salehi
et al. 2017) and focal Tversky (Abraham & Khan 2019). Some things are done right that the CellViT code does otherwise,
and can be had its way (``loss.original``; docs/decisions/0009):

* its trainer hands probabilities to the Tversky losses, which take the softmax again: here the softmax is taken once
  (:meth:`PixelMap.again` gives the original);
* its binary Tversky loss pools both channels, where false positives equal false negatives and alpha and beta have no
  effect: here the foreground channel alone counts (``reduction="pooled"``);
* it sums Dice and Tversky over the classes, those that are absent included (``reduction="sum"``);
* it clamps probabilities before the logarithm, so that a pixel that is surely wrong pulls nowhere (``clamped``);
* it takes the gradient of the HV maps along the wrong axes: see :func:`hv_msge`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "PixelMap",
    "PixelSums",
    "binary_map",
    "cross_entropy",
    "dice",
    "focal",
    "focal_tversky",
    "hv_mse",
    "hv_msge",
    "pixel_map",
    "tversky",
]

Reduction = Literal["present", "mean", "sum", "pooled"]
_DICE_SMOOTH = 1e-3
_TVERSKY_SMOOTH = 1e-6
_TINY = 1e-8
#: Probabilities that the original takes the logarithm of lie at least this far from 0 and 1.
_ORIGINAL_CLAMP = 1e-7


@dataclass(frozen=True)
class PixelSums:
    """What a softmax map and its target sum up to, a value a class.

    Attributes
    ----------
    nll : Tensor (k,)
        Sum of -log p of the true class, over the pixels of that class.
    hits : Tensor (k,)
        Sum of p of the true class, over the pixels of that class: the soft true positives.
    predicted : Tensor (k,)
        Sum of p over all usable pixels.
    true : Tensor (k,)
        Number of pixels of the class.
    """

    nll: Tensor
    hits: Tensor
    predicted: Tensor
    true: Tensor


@dataclass(frozen=True)
class PixelMap:
    """A softmax map beside its target: what the losses of a head share, computed once.

    Attributes
    ----------
    log_p : Tensor (n, k, h, w)
        Logarithm of the softmax, float32 or better; of no meaning where a pixel is not usable.
    label : Tensor (n, h, w)
        int64; class of every usable pixel, -1 of the others.
    usable : Tensor (n, h, w) or None
        bool; pixels that count. None: all.
    """

    log_p: Tensor
    label: Tensor
    usable: Tensor | None

    @cached_property
    def p(self) -> Tensor:
        """(n, k, h, w) probabilities, 0 where a pixel is not usable."""
        p = self.log_p.exp()
        return p if self.usable is None else p * self.usable[:, None]

    @cached_property
    def here(self) -> Tensor:
        """(n, k, h, w) bool: the usable pixels of each class."""
        ids = torch.arange(self.log_p.shape[1], device=self.log_p.device)
        return self.label[:, None] == ids[None, :, None, None]

    @cached_property
    def log_p_true(self) -> Tensor:
        """(n, k, h, w) log p where the class is the pixel's, 0 elsewhere."""
        return torch.where(self.here, self.log_p, self._zero)

    @cached_property
    def sums(self) -> PixelSums:
        """Its sums by class."""
        axes = (0, 2, 3)
        return PixelSums(
            nll=-self.log_p_true.sum(axes),
            hits=torch.where(self.here, self.p, self._zero).sum(axes),
            predicted=self.p.sum(axes),
            true=self.here.sum(axes).to(self.log_p.dtype),
        )

    @cached_property
    def again(self) -> PixelMap:
        """The softmax taken of the probabilities, as CellViT's trainer does before its Tversky losses."""
        return PixelMap(self.p.log_softmax(1), self.label, self.usable)

    @cached_property
    def clamped(self) -> PixelSums:
        """Its sums with -log p of probabilities between 1e-7 and 1 - 1e-7, as CellViT's cross-entropy has it."""
        sums = self.sums
        low, high = math.log(_ORIGINAL_CLAMP), math.log1p(-_ORIGINAL_CLAMP)
        nll = -torch.where(self.here, self.log_p.clamp(low, high), self._zero).sum((0, 2, 3))
        return PixelSums(nll, sums.hits, sums.predicted, sums.true)

    @property
    def _zero(self) -> Tensor:
        return self.log_p.new_zeros(())


def pixel_map(logits: Tensor, target: Tensor, usable: Tensor | None = None) -> PixelMap:
    """Lay a class map beside its target.

    Parameters
    ----------
    logits : Tensor (n, k, h, w)
        Before the softmax, any floating dtype; what follows is computed in float32 or better.
    target : Tensor (n, h, w)
        Class of every pixel, an integer below k wherever the pixel is usable.
    usable : Tensor (n, h, w), optional
        bool; pixels that count. All, when left out.

    Returns
    -------
    PixelMap
        Differentiable in ``logits``.
    """
    values, label = _float(logits), target.long()
    if usable is not None:
        label = label.masked_fill(~usable, -1)
        # Before the softmax, so that not even NaN passes through its gradient.
        values = values.masked_fill(~usable[:, None], 0)
    return PixelMap(functional.log_softmax(values, dim=1), label, usable)


def binary_map(logits: Tensor, target: Tensor, usable: Tensor | None = None) -> PixelMap:
    """Lay a map of one logit a pixel beside its target, as background and foreground.

    Parameters
    ----------
    logits : Tensor (n, 1, h, w)
        Before the sigmoid.
    target, usable
        As in :func:`pixel_map`; the target is 0 or 1.
    """
    # softmax(0, x) is sigmoid(x)
    return pixel_map(torch.cat([torch.zeros_like(logits), logits], dim=1), target, usable)


def cross_entropy(sums: PixelSums, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, averaged over pixels.

    Parameters
    ----------
    sums : PixelSums
        Of the map.
    weights : Tensor (k,), optional
        A weight a class; the mean is then weighted, as PyTorch's is.

    Returns
    -------
    Tensor ()
        0 when no pixel is usable.
    """
    if weights is None:
        return sums.nll.sum() / sums.true.sum().clamp(min=_TINY)
    weights = weights.to(sums.nll)
    return (weights * sums.nll).sum() / (weights * sums.true).sum().clamp(min=_TINY)


def focal(values: PixelMap, gamma: float = 2.0) -> Tensor:
    """Focal loss, -(1 - p) ** gamma log p of the true class, averaged over pixels.

    Class weights do not enter: the factor itself is what makes room for the pixels that are not yet learnt, whatever
    their class. At gamma 0 it is the plain cross-entropy.

    Parameters
    ----------
    values : PixelMap
        The map.
    gamma : float
        Exponent, 0 or more.

    Returns
    -------
    Tensor ()
        0 when no pixel is usable.
    """
    log_p = values.log_p_true.sum(1)  # one class a pixel is not 0
    # 1 - p without cancellation. A power below 1 has no slope at 0; that of the product is 0, and so is clamp's.
    missing = (-torch.expm1(log_p)).clamp(min=_TINY)
    return -(missing**gamma * log_p).sum() / values.here.sum().clamp(min=1)


def dice(sums: PixelSums, reduction: Reduction = "present", first: int = 0, smooth: float = _DICE_SMOOTH) -> Tensor:
    """One minus the soft Dice coefficient, 1 - (2 hits + s) / (predicted + true + s), over the classes.

    Parameters
    ----------
    sums : PixelSums
        Of the map.
    reduction : {"present", "mean", "sum", "pooled"}
        Mean over the classes that the target holds (default: a class that is absent from a batch says nothing about
        overlap, and would add a constant); mean or sum over all classes (the original sums); or one coefficient of the
        pooled sums.
    first : int
        First class that counts; 1 leaves the background out.
    smooth : float
        s, in pixels.

    Returns
    -------
    Tensor ()
        0 when no class is present (``present``).
    """
    hits, predicted, true = _from_class(sums, first, reduction)
    loss = 1 - (2 * hits + smooth) / (predicted + true + smooth)
    return _reduce(loss, true, reduction)


def tversky(
    sums: PixelSums,
    reduction: Reduction = "present",
    first: int = 0,
    alpha: float = 0.7,
    beta: float = 0.3,
    smooth: float = _TVERSKY_SMOOTH,
) -> Tensor:
    """Tversky loss: :func:`focal_tversky` with the exponent 1. At alpha = beta = 1/2 it is the Dice loss."""
    return focal_tversky(sums, reduction, first, None, alpha, beta, 1.0, smooth)


def focal_tversky(
    sums: PixelSums,
    reduction: Reduction = "present",
    first: int = 0,
    weights: Tensor | None = None,
    alpha: float = 0.7,
    beta: float = 0.3,
    gamma: float = 4 / 3,
    smooth: float = _TVERSKY_SMOOTH,
) -> Tensor:
    """Focal Tversky loss, (1 - T) ** gamma with T = (tp + s) / (tp + alpha fn + beta fp + s), over the classes.

    Parameters
    ----------
    sums : PixelSums
        Of the map.
    reduction, first
        As in :func:`dice`.
    weights : Tensor (k,), optional
        A factor a class.
    alpha, beta : float
        Weights of missed and of invented pixels.
    gamma : float
        Exponent.
    smooth : float
        s, in pixels.

    Returns
    -------
    Tensor ()
        0 when no class is present (``present``).
    """
    hits, predicted, true = _from_class(sums, first, reduction)
    index = (hits + smooth) / (hits + alpha * (true - hits) + beta * (predicted - hits) + smooth)
    # Rounding may lift the index above 1, where a broken power is not a number; at 0 its slope may not be one.
    missing = 1 - index
    loss = torch.where(missing > _TINY, missing.clamp(min=_TINY) ** gamma, 0 * missing)
    if weights is not None:
        loss = loss * weights.to(loss)[first:]
    return _reduce(loss, true, reduction)


def _from_class(sums: PixelSums, first: int, reduction: Reduction) -> tuple[Tensor, Tensor, Tensor]:
    parts = (sums.hits[first:], sums.predicted[first:], sums.true[first:])
    if reduction == "pooled":
        return parts[0].sum(), parts[1].sum(), parts[2].sum()
    return parts


def _reduce(loss: Tensor, true: Tensor, reduction: Reduction) -> Tensor:
    if reduction in ("sum", "pooled"):
        return loss.sum()
    if reduction == "mean":
        return loss.mean()
    present = (true > 0).to(loss.dtype)
    return (loss * present).sum() / present.sum().clamp(min=1)


def hv_mse(predicted: Tensor, true: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean squared error of the HV maps over all valid pixels, background included.

    Parameters
    ----------
    predicted, true : Tensor (n, 2, h, w)
        Horizontal (x) map, then vertical (y) map.
    valid : Tensor (n, h, w), optional
        bool; pixels that count.

    Returns
    -------
    Tensor ()
        0 when no pixel is valid.
    """
    error = _hv_error(predicted, true, valid)
    if valid is None:
        return (error**2).mean()
    return (error**2).sum() / (2 * valid.sum()).clamp(min=1)


def hv_msge(
    predicted: Tensor, true: Tensor, focus: Tensor, valid: Tensor | None = None, *, original: bool = False
) -> Tensor:
    """Mean squared error of the HV maps' gradients inside nuclei.

    The gradient is a 5 x 5 filter that weighs neighbours by (distance along the axis) / (distance squared).

    Parameters
    ----------
    predicted, true : Tensor (n, 2, h, w)
        Horizontal (x) map, then vertical (y) map.
    focus : Tensor (n, h, w)
        True inside nuclei.
    valid : Tensor (n, h, w), optional
        bool; pixels that count. The maps are taken as equal outside.
    original : bool
        CellViT and HoVer-Net differentiate the x map along y and the y map along x, where both are nearly constant.
        Only to reproduce their training.

    Returns
    -------
    Tensor ()
        0 when no pixel is in focus.
    """
    error = _hv_error(predicted, true, valid)
    inside = focus.bool() if valid is None else focus.bool() & valid
    # The filter is linear: the difference of the gradients is the gradient of the difference.
    kernels = _gradient_kernels(original).to(error)
    slopes = functional.conv2d(error, kernels, padding=2, groups=2)
    weight = inside[:, None].to(error.dtype)
    return (weight * slopes**2).sum() / (2 * weight.sum() + _TINY)


def _hv_error(predicted: Tensor, true: Tensor, valid: Tensor | None) -> Tensor:
    values = _float(predicted)
    error = values - true.to(values.dtype)
    return error if valid is None else error.masked_fill(~valid[:, None], 0)


@lru_cache(maxsize=2)
def _gradient_kernels(original: bool) -> Tensor:
    steps = torch.arange(-2, 3, dtype=torch.float64)
    along_y, along_x = torch.meshgrid(steps, steps, indexing="ij")
    square = along_x**2 + along_y**2 + 1e-15
    pair = (along_y, along_x) if original else (along_x, along_y)
    return torch.stack([axis / square for axis in pair])[:, None]


def _float(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
