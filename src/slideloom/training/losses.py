"""Losses of the decoder's heads, on logits, with masks.

Every classification loss here is a function of four sums a class (:class:`PixelSums`), so the softmax is taken once
and a masked pixel can leave no trace: a masked loss equals the loss of the cropped map.

Sources: CellViT (Hörst et al. 2024) and HoVer-Net (Graham et al. 2019); focal Tversky (Abraham & Khan 2019). Three
things are done right that the CellViT code does otherwise, and can be had its way by argument:

* its trainer hands probabilities to the Tversky losses, which take the softmax again: here the softmax is taken once;
* its binary Tversky loss pools both channels, where false positives equal false negatives and alpha and beta have no
  effect: here the foreground channel alone counts (``reduction="pooled"`` gives the original);
* it takes the gradient of the HV maps along the wrong axes: see :func:`hv_msge`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["PixelSums", "binary_sums", "cross_entropy", "dice", "focal_tversky", "hv_mse", "hv_msge", "pixel_sums"]

Reduction = Literal["present", "mean", "sum", "pooled"]
_DICE_SMOOTH = 1e-3
_TVERSKY_SMOOTH = 1e-6
_TINY = 1e-8


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


def pixel_sums(logits: Tensor, target: Tensor, usable: Tensor | None = None) -> PixelSums:
    """Sum up a class map.

    Parameters
    ----------
    logits : Tensor (n, k, h, w)
        Before the softmax, any floating dtype; summed in float32 or better.
    target : Tensor (n, h, w)
        Class of every pixel, an integer below k wherever the pixel is usable.
    usable : Tensor (n, h, w), optional
        bool; pixels that count. All, when left out.

    Returns
    -------
    PixelSums
        Differentiable in ``logits``.
    """
    values = logits if logits.dtype == torch.float64 else logits.float()
    log_p = functional.log_softmax(values, dim=1)
    p = log_p.exp()
    label = target.long()
    if usable is not None:
        label = label.masked_fill(~usable, -1)
        p = p * usable[:, None]
    ids = torch.arange(logits.shape[1], device=logits.device)
    here = label[:, None] == ids[None, :, None, None]
    zero = torch.zeros((), dtype=values.dtype, device=values.device)
    axes = (0, 2, 3)
    return PixelSums(
        nll=-torch.where(here, log_p, zero).sum(axes),
        hits=torch.where(here, p, zero).sum(axes),
        predicted=p.sum(axes),
        true=here.sum(axes).to(values.dtype),
    )


def binary_sums(logits: Tensor, target: Tensor, usable: Tensor | None = None) -> PixelSums:
    """Sum up a map of one logit a pixel, as background and foreground.

    Parameters
    ----------
    logits : Tensor (n, 1, h, w)
        Before the sigmoid.
    target, usable
        As in :func:`pixel_sums`; the target is 0 or 1.
    """
    # softmax(0, x) is sigmoid(x)
    return pixel_sums(torch.cat([torch.zeros_like(logits), logits], dim=1), target, usable)


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
    tversky = (hits + smooth) / (hits + alpha * (true - hits) + beta * (predicted - hits) + smooth)
    # Rounding may lift T above 1, where a broken power is not a number.
    loss = (1 - tversky).clamp(min=0) ** gamma
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
    error = (_float(predicted) - true.to(_float(predicted).dtype)) ** 2
    if valid is None:
        return error.mean()
    return (error * valid[:, None]).sum() / (2 * valid.sum()).clamp(min=1)


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
    error = _float(predicted) - true.to(_float(predicted).dtype)
    inside = focus.bool()
    if valid is not None:
        inside = inside & valid
        error = error * valid[:, None]
    # The filter is linear: the difference of the gradients is the gradient of the difference.
    kernels = _gradient_kernels(original).to(error)
    slopes = functional.conv2d(error, kernels, padding=2, groups=2)
    weight = inside[:, None].to(error.dtype)
    return (weight * slopes**2).sum() / (2 * weight.sum() + _TINY)


@lru_cache(maxsize=2)
def _gradient_kernels(original: bool) -> Tensor:
    steps = torch.arange(-2, 3, dtype=torch.float64)
    along_y, along_x = torch.meshgrid(steps, steps, indexing="ij")
    square = along_x**2 + along_y**2 + 1e-15
    pair = (along_y, along_x) if original else (along_x, along_y)
    return torch.stack([axis / square for axis in pair])[:, None]


def _float(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
