"""The Lovász losses: convex surrogates of the Jaccard index, on all usable pixels of a batch at once.

The Jaccard loss of a class is a set function of its wrong pixels M, J(M) = |M| / |truth ∪ M|. Its Lovász extension to
errors of any size sorts the pixels by error, largest first, and weighs each by what it adds to J on top of those before
it. Those weights are constant between two changes of the order, so they are computed without a gradient.

The truth and the sets are those of the whole batch, as in the other overlap losses here: a rare class is in few tiles,
and a tile without it says nothing about its overlap. (The authors' code takes the hinge loss image by image.) So the
losses of a batch are not the mean of those of its tiles.

Source: Berman, Rannen Triki & Blaschko, "The Lovász-Softmax loss" (CVPR 2018). Two things differ from the authors'
code: a class without a pixel loses nothing in the hinge loss, too; and the weights are computed in closed form, where a
difference of two rounded Jaccard indices of a large batch would have lost most of its digits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from slideloom.training.losses import PixelMap

__all__ = ["jaccard_slopes", "lovasz_hinge", "lovasz_softmax"]


def lovasz_softmax(values: PixelMap, first: int = 0) -> Tensor:
    """Lovász-softmax loss: the errors are 1 - p on a class's pixels and p elsewhere; mean over the classes present.

    Parameters
    ----------
    values : PixelMap
        The map.
    first : int
        First class that counts; 1 leaves the background out.

    Returns
    -------
    Tensor ()
        Between 0 and 1; 0 when no class is present.
    """
    here, p = values.here[:, first:], values.p[:, first:]
    errors = torch.where(here, 1 - p, p)
    slopes = _map_slopes(errors, here, values.usable)
    n_present = here.any(dim=3).any(dim=2).any(dim=0).sum()
    return (errors * slopes).sum() / n_present.clamp(min=1)


def lovasz_hinge(margin: Tensor, target: Tensor, usable: Tensor | None = None) -> Tensor:
    """Lovász-hinge loss of the foreground: the errors are max(0, 1 - margin) on it and max(0, 1 + margin) elsewhere.

    Parameters
    ----------
    margin : Tensor (n, h, w)
        Logit of the foreground less that of the background, any floating dtype; computed in float32 or better.
    target : Tensor (n, h, w)
        1 on the foreground, else 0, wherever the pixel is usable.
    usable : Tensor (n, h, w), optional
        bool; pixels that count. All, when left out.

    Returns
    -------
    Tensor ()
        0 when no pixel is foreground.
    """
    logit = margin if margin.dtype == torch.float64 else margin.float()
    here = target == 1
    if usable is not None:
        here = here & usable
        logit = logit.masked_fill(~usable, 0)
    errors = (1 + torch.where(here, -logit, logit)).clamp(min=0)
    slopes = _map_slopes(errors[:, None], here[:, None], usable)[:, 0]
    return (errors * slopes).sum()


@torch.no_grad()
def _map_slopes(errors: Tensor, here: Tensor, usable: Tensor | None) -> Tensor:
    """:func:`jaccard_slopes` of (n, k, h, w) maps, each class over the pixels of the batch."""
    n, k, h, w = errors.shape
    flat = [part.transpose(0, 1).reshape(k, -1) for part in (errors.detach(), here)]
    counted = None if usable is None else usable.reshape(-1)
    slopes = torch.zeros_like(flat[0])
    # A row less to sort for each class that is absent; a GPU would have to be waited for to know them.
    rows = flat[1].any(dim=1).nonzero()[:, 0] if errors.device.type == "cpu" else slice(None)
    slopes[rows] = jaccard_slopes(flat[0][rows], flat[1][rows], counted)
    return slopes.reshape(k, n, h, w).transpose(0, 1)


@torch.no_grad()
def jaccard_slopes(errors: Tensor, here: Tensor, counted: Tensor | None = None) -> Tensor:
    """What each pixel adds to the Jaccard loss when the wrong pixels are taken by falling error.

    Parameters
    ----------
    errors : Tensor (k, pixels)
        0 or more.
    here : Tensor (k, pixels)
        bool; the pixels of each class, all of them counted.
    counted : Tensor (pixels,), optional
        bool; pixels that count. All, when left out.

    Returns
    -------
    Tensor (k, pixels)
        0 for pixels that do not count and in rows without a pixel of the class; elsewhere a row sums up to 1.
    """
    order = _falling(errors)
    hit = here.gather(1, order)
    hits = hit.cumsum(1, dtype=torch.int32)
    if counted is None:
        seen = torch.arange(1, errors.shape[1] + 1, dtype=torch.int32, device=errors.device)
    else:
        taken = counted[order]
        seen = taken.cumsum(1, dtype=torch.int32)
    total = hits[:, -1:] if errors.shape[1] else hits
    # After a pixel: truth not yet wrong, and truth with all that is wrong. A pixel of the class takes one from the
    # first, any other adds one to the second.
    left = (total - hits).to(errors.dtype)
    union = (total + seen - hits).to(errors.dtype)
    slopes = torch.where(hit, 1 / union, left / (union * (union - 1)))
    slopes.masked_fill_(total == 0, 0)
    if counted is not None:
        slopes.masked_fill_(~taken, 0)
    return torch.zeros_like(errors).scatter_(1, order, slopes)


def _falling(errors: Tensor) -> Tensor:
    """Indices that sort each row, largest first; of equal errors the earlier pixel first."""
    if errors.device.type != "cpu" or errors.dtype != torch.float32:
        return errors.argsort(dim=1, descending=True, stable=True)
    # On a CPU, NumPy's vectorised sort of whole numbers is the fastest by far. Floats of 0 or more are in the order of
    # their bits, upside down here, and the pixel's number stands in the lower half.
    bits = errors.contiguous().view(torch.int32).numpy().astype(np.int64)
    packed = np.sort((~bits << 32) | np.arange(errors.shape[1]), axis=1)
    return torch.from_numpy(packed & 0xFFFFFFFF)
