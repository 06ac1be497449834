"""InstanSeg's loss: of its seed map, and of the pixels that its seeds claim.

Seeds are sought in the network's own seed map, so that the pixel classifier learns from those that it will be given:
the highest pixel of each nucleus' neighbourhoods. Around each is a window; the classifier says of every pixel in it
whether it is of the seed's nucleus, and is told which ones are.

Source: Goldsborough et al. 2024 (bioRxiv 2024.09.04.611150) and the program ``instanseg``. Its loss of a head is
``1.5 · instances + 1 · seeds``, the mean over a batch; of nuclei and cells together it is the mean of both heads. Done
otherwise here:

* a pixel that nobody annotated counts in no window; there it counts as background (``mask_windows=False``);
* an image without background still has its seed loss; there it has none;
* one map holds seeds and foreground, so ``distance_and_binary`` is the squared distance inside nuclei and the
  cross-entropy outside; there the cross-entropy has a second map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from slideloom.config.model import LossConfig
from slideloom.decoders.instanseg_head import UNITS_PER_PX, PixelClassifier, fields
from slideloom.training.distance_targets import instance_distance
from slideloom.training.lovasz import jaccard_slopes

__all__ = ["crop_hinge", "instanseg_loss", "seed_target"]

#: Instances of an image that seeds are sought in, and seeds of an image that are worked on: drawn where there are more.
_MOST = 50
_PEAK_PX = 3
_LEAST_SEED = 0.5
_SEED_SCALE = 15.0
_HOT_DICE = 1.5
_DICE_SMOOTH = 1e-5
Corner = tuple[int, int, int]


def instanseg_loss(
    raw: Tensor,
    instances: Tensor,
    valid: Tensor,
    classifier: PixelClassifier,
    config: LossConfig,
    hot: bool,
    rng: np.random.Generator,
    *,
    distance: Tensor | None = None,
    window_px: int = 128,
    units_per_px: tuple[float, float] = (UNITS_PER_PX, UNITS_PER_PX),
    mask_windows: bool = True,
) -> tuple[Tensor, Tensor]:
    """InstanSeg's two losses of one head.

    Parameters
    ----------
    raw : Tensor
        (n, 5, h, w) of the head, any floating dtype; computed in float32 or better.
    instances : Tensor
        (n, h, w) int32 ids; 0 and less is background. What is not valid counts for nothing.
    valid : Tensor
        (n, h, w) bool; pixels that are annotated.
    classifier : PixelClassifier
        The decoder's.
    config : LossConfig
        ``instanseg_seed_loss``, the loss of the seed map after the hot start. Its weights are left to the caller.
    hot : bool
        In the hot start: cross-entropy for seeds, 1.5 · Dice for instances; else ``instanseg_seed_loss`` and
        Lovász-hinge.
    rng : Generator
        Draws the instances and seeds of images that have more than 50; otherwise left as it is.
    distance : Tensor, optional
        (n, h, w) float: :func:`~slideloom.training.distance_targets.instance_distance` of the instances, where the
        caller has it already; else it is computed here, on the CPU.
    window_px : int
        Side of a seed's window; no more than h or w.
    units_per_px : (float, float)
        Units from one pixel to the next along y and x. The original's depend on the image's size:
        0.25 · h / (h - 1).
    mask_windows : bool
        Leave what is not valid out of the windows.

    Returns
    -------
    instance_loss, seed_loss : Tensor ()
        Means over the n images; one without an annotated pixel adds 0, and one without a seed adds 0 to the first.
        Gradients go into ``raw`` and the classifier.
    """
    with torch.autocast(raw.device.type, enabled=False):
        values = raw if raw.dtype == torch.float64 else raw.float()
        seed = values[:, 4]
        annotated = instances.masked_fill(~valid, 0).clamp(min=0)
        kind = "binary" if hot else config.instanseg_seed_loss
        if distance is None and kind != "binary":
            found = instance_distance(np.asarray(instances.detach().cpu().numpy()))
            distance = torch.from_numpy(found).to(seed.device)
        of_seeds = _seed_loss(seed, annotated > 0, valid, distance, kind)
        at = _seeds(seed.detach(), annotated, rng)
        if not len(at):
            # No pixel of them: nothing is added, but every weight has its gradient of 0.
            nothing = [part.flatten()[:0].sum() for part in (values, *classifier.parameters())]
            return torch.stack(nothing).sum(), of_seeds
        side = min(window_px, *seed.shape[-2:])
        corners = _corners(at, side, seed.shape[-2:])
        logits = _window_logits(values, classifier, at, corners, side, units_per_px)
        where = torch.from_numpy(at).to(seed.device).unbind(1)
        mine = _windows(annotated[:, None], corners, side)[0] == annotated[where][:, None]
        counted = None
        if mask_windows and not bool(valid.all()):
            counted = _windows(valid[:, None], corners, side)[0]
        each = _HOT_DICE * _dice(logits, mine, counted) if hot else crop_hinge(logits, mine, counted)
        share = 1 / np.bincount(at[:, 0], minlength=len(seed))[at[:, 0]] / len(seed)
        return (each * torch.from_numpy(share).to(each)).sum(), of_seeds


def seed_target(distance: Tensor) -> Tensor:
    """The seed map that is learnt, -7.5 outside nuclei to 7.5 in their middle, from the distance, 0 to 1."""
    return _SEED_SCALE * (distance - 0.5)


def crop_hinge(logits: Tensor, mine: Tensor, counted: Tensor | None = None) -> Tensor:
    """Lovász-hinge loss of every row by itself.

    Parameters
    ----------
    logits : Tensor
        (m, pixels) float32 or better.
    mine : Tensor
        (m, pixels) bool, the foreground.
    counted : Tensor, optional
        (m, pixels) bool; pixels that count. All, when left out.

    Returns
    -------
    Tensor
        (m,). Of a row without foreground it is the largest error, max(0, 1 + logit).
    """
    errors = (1 + torch.where(mine, -logits, logits)).clamp(min=0)
    if counted is not None:
        # An error of 0 adds nothing and stands behind all others, so what does not count may stay in the row.
        errors, mine = errors * counted, mine & counted
    summed = (errors * jaccard_slopes(errors.detach(), mine)).sum(1)
    return torch.where(mine.any(1), summed, errors.amax(1))


def _dice(logits: Tensor, mine: Tensor, counted: Tensor | None) -> Tensor:
    """(m,) one less the soft Dice coefficient of every row."""
    p, true = logits.sigmoid(), mine.to(logits.dtype)
    if counted is not None:
        p, true = p * counted, true * counted
    return 1 - (2 * (p * true).sum(1) + _DICE_SMOOTH) / (p.sum(1) + true.sum(1) + _DICE_SMOOTH)


def _seed_loss(seed: Tensor, nucleus: Tensor, valid: Tensor, distance: Tensor | None, kind: str) -> Tensor:
    """Mean over the images of the mean over an image's annotated pixels."""
    binary = functional.binary_cross_entropy_with_logits(seed, nucleus.to(seed.dtype), reduction="none")
    if kind == "binary" or distance is None:
        loss = binary
    else:
        # Pieces of nuclei beyond what is annotated shape the distance, and are then left out.
        error = seed - seed_target(distance.to(seed.dtype))
        loss = error.abs() if kind == "l1_distance" else error.square()
        if kind == "distance_and_binary":
            loss = torch.where(nucleus, loss, binary)
    loss = torch.where(valid, loss, torch.zeros_like(loss))
    return (loss.sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)).mean()


@torch.no_grad()
def _seeds(seed: Tensor, annotated: Tensor, rng: np.random.Generator) -> NDArray[np.int64]:
    """(m, 3) image, y and x of the seeds to work on, image by image."""
    count, height, width = seed.shape
    score = seed.sigmoid() * _some_instances(annotated, rng)
    # Of equal neighbours the first is the highest.
    size = 2 * _PEAK_PX + 1
    highest, where = functional.max_pool2d(score[:, None], size, 1, _PEAK_PX, return_indices=True)
    here = torch.arange(height * width, device=seed.device).view(height, width)
    at = ((where[:, 0] == here) & (highest[:, 0] > _LEAST_SEED)).nonzero().cpu().numpy()
    return np.concatenate([_some(at[at[:, 0] == image], rng) for image in range(count)])


def _some_instances(annotated: Tensor, rng: np.random.Generator) -> Tensor:
    """(n, h, w) bool: the pixels of instances, of at most 50 in an image."""
    chosen = annotated > 0
    for image, ids in enumerate(annotated):
        names = ids[chosen[image]].unique().cpu().numpy()
        if len(names) > _MOST:
            kept = torch.from_numpy(_some(names, rng)).to(ids)
            chosen[image] = torch.isin(ids, kept)
    return chosen


def _some(rows: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    return rows if len(rows) <= _MOST else rows[np.sort(rng.permutation(len(rows))[:_MOST])]


def _corners(at: NDArray[np.int64], side: int, size: Sequence[int]) -> list[Corner]:
    """Image, first row and first column of every seed's window, moved inside the image."""
    first = np.clip(at[:, 1:] - side // 2, 0, np.array(size) - side)
    return [(int(image), int(y), int(x)) for image, (y, x) in zip(at[:, 0], first, strict=True)]


def _window_logits(
    values: Tensor,
    classifier: PixelClassifier,
    at: NDArray[np.int64],
    corners: Sequence[Corner],
    side: int,
    units_per_px: tuple[float, float],
) -> Tensor:
    """(m, side · side) the classifier's logits of every window.

    Its first layer is linear, so it is taken once of the whole image and once of the seeds, not once a window.
    """
    height, width = values.shape[-2:]
    offset, sigma, _ = fields(values)
    x = torch.arange(width, device=values.device, dtype=values.dtype) * units_per_px[1]
    y = torch.arange(height, device=values.device, dtype=values.dtype)[:, None] * units_per_px[0]
    place = offset + torch.stack([x.expand(height, width), y.expand(height, width)])
    layers = (classifier.fc1, classifier.fc2, classifier.fc3)
    (first, bias), second, third = [(layer.weight.to(values), layer.bias.to(values)) for layer in layers]
    whole = functional.conv2d(torch.cat([place, sigma], dim=1), first[:, :, None, None], bias)
    image, row, column = torch.from_numpy(at).to(values.device).unbind(1)
    # A seed stays where it is: only its pixels learn.
    seeds = first[:, : place.shape[1]] @ place.detach()[image, :, row, column].T
    windows: Tensor = _Windows.apply(whole, corners, side)  # type: ignore[no-untyped-call]
    hidden = (windows - seeds[:, :, None]).flatten(1).relu_()
    hidden = torch.addmm(second[1][:, None], second[0], hidden).relu_()
    return torch.addmm(third[1][:, None], third[0], hidden).view(len(at), side * side)


def _windows(maps: Tensor, corners: Sequence[Corner], side: int) -> Tensor:
    """(k, m, side · side) windows of (n, k, h, w) maps: channels first, so that a layer of them is one product."""
    return torch.stack([maps[image, :, y : y + side, x : x + side] for image, y, x in corners], dim=1).flatten(2)


class _Windows(torch.autograd.Function):
    """:func:`_windows` with a gradient that is added up window by window: always in one order, and in little memory."""

    @staticmethod
    def forward(context: Any, maps: Tensor, corners: Sequence[Corner], side: int) -> Tensor:
        context.about = (maps.shape, corners, side)
        return _windows(maps, corners, side)

    @staticmethod
    def backward(context: Any, slopes: Tensor) -> tuple[Tensor, None, None]:
        shape, corners, side = context.about
        total = slopes.new_zeros(shape)
        for place, (image, y, x) in enumerate(corners):
            total[image, :, y : y + side, x : x + side] += slopes[:, place].view(-1, side, side)
        return total, None, None
