"""Smooth random fields, the raw material of the synthetic tissue."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["blur", "draw_points", "normal_image", "smooth_noise", "smoothstep", "streaks"]

Image = NDArray[np.float32]


def blur(image: Image, sigma_px: float) -> Image:
    """Gaussian blur of a (h, w) float32 image, mirrored at its border."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT_101), np.float32)


def normal_image(rng: np.random.Generator, shape: tuple[int, int]) -> Image:
    """White noise (h, w) float32 of mean 0 and standard deviation 1."""
    return rng.standard_normal(shape, dtype=np.float32)


def smoothstep(value: Image, low: float, high: float) -> Image:
    """Rise from 0 at ``low`` to 1 at ``high`` without corners."""
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma_px: float) -> Image:
    """Gaussian random field whose features are about ``2.5 * sigma_px`` wide.

    Drawn on a grid as coarse as the blur allows and enlarged, so the cost does not grow with ``sigma_px``.

    Returns
    -------
    ndarray
        (h, w) float32, standard deviation about 1 over a large field.
    """
    step = max(1, int(sigma_px / 2))
    sigma = sigma_px / step
    margin = math.ceil(3 * sigma)
    coarse = tuple(math.ceil(side / step) + 2 + 2 * margin for side in shape)
    field = blur(normal_image(rng, (coarse[0], coarse[1])), sigma)
    # White noise blurred with a Gaussian of sigma keeps a variance of 1 / (4 pi sigma^2).
    field *= np.float32(2 * math.sqrt(math.pi) * sigma)
    field = field[margin:-margin, margin:-margin]
    if step > 1:
        size = (field.shape[1] * step, field.shape[0] * step)
        field = np.asarray(cv2.resize(field, size, interpolation=cv2.INTER_CUBIC), np.float32)
    return np.ascontiguousarray(field[: shape[0], : shape[1]])


def streaks(image: Image, cos: Image, sin: Image, rounds: int) -> Image:
    """Smear an image along a direction field, as fibres run.

    Each round averages the two neighbours at a doubled distance along the local direction, so ``rounds`` of them
    average over about ``2 ** (rounds + 1)`` pixels and follow the field's curvature.

    Parameters
    ----------
    image : ndarray
        (h, w) float32.
    cos, sin : ndarray
        (h, w) float32, x and y part of the unit direction.
    rounds : int
        How many doublings.
    """
    rows, columns = (axis.astype(np.float32) for axis in np.mgrid[: image.shape[0], : image.shape[1]])
    for power in range(rounds):
        reach = np.float32(2.0**power * 0.75)
        ahead = cv2.remap(
            image, columns + reach * cos, rows + reach * sin, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        behind = cv2.remap(
            image, columns - reach * cos, rows - reach * sin, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        image = np.asarray((ahead + behind) * np.float32(0.5), np.float32)
    return image


def draw_points(rng: np.random.Generator, density: Image, count: int, cell_px: int) -> NDArray[np.int64]:
    """Draw pixel positions in proportion to a density.

    Parameters
    ----------
    rng : Generator
        Source of chance.
    density : ndarray
        (h, w) float32, not negative, one value per square of ``cell_px`` pixels; its sum is above 0.
    count : int
        How many.
    cell_px : int
        Side of a density cell, pixels.

    Returns
    -------
    ndarray
        (count, 2) int64, y and x in pixels; may lie up to a cell beyond the image's far edges.
    """
    total = np.cumsum(density.ravel(), dtype=np.float64)
    picks = np.searchsorted(total, rng.random(count) * total[-1], side="right")
    picks = np.minimum(picks, density.size - 1)
    rows, columns = np.divmod(picks, density.shape[1])
    jitter = rng.integers(0, cell_px, size=(count, 2))
    return np.stack([rows, columns], axis=1) * cell_px + jitter
