"""Pixels and outlines of the page's pictures: false colours, traced contours, nuclei of a whole slide as dots."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from slideloom.slides.tables import Channel, ClassTable

__all__ = ["NO_CLASS", "NO_NUCLEUS", "class_dots", "data_uri", "dots_uri", "false_colour", "outlines"]

#: Value of a dot without a nucleus, and of one whose nuclei have no class; others are class ids.
NO_NUCLEUS, NO_CLASS = 255, 0
#: Colour of nuclei without a class.
_GREY = (140, 140, 140)
#: False colours of multiplexed crops: the nuclear stain first, then two lively other channels.
_TINTS: tuple[tuple[str, tuple[float, float, float]], ...] = (
    ("blue", (0.25, 0.45, 1.0)),
    ("green", (0.1, 0.9, 0.3)),
    ("red", (1.0, 0.25, 0.2)),
)


def false_colour(pixels: NDArray[Any], channels: Sequence[Channel], is_rgb: bool) -> tuple[NDArray[np.uint8], str]:
    """Make a picture of a crop.

    Parameters
    ----------
    pixels : ndarray, (c, h, w)
        RGB uint8, or counts of each channel.
    channels : sequence of Channel
        Of the pixels.
    is_rgb : bool
        Whether they are red, green and blue as they stand.

    Returns
    -------
    picture : ndarray of uint8, (h, w, 3)
    colours : str
        What its colours mean, such as ``"DNA1 blue, CD45 green, keratin red"``; empty for RGB.
    """
    if is_rgb:
        return np.ascontiguousarray(pixels.transpose(1, 2, 0).astype(np.uint8)), ""
    light = np.empty(pixels.shape, np.float32)
    for k, channel in enumerate(pixels):
        low, high = np.percentile(channel, [1, 99.7])
        light[k] = np.clip((channel - low) / max(high - low, 1e-6), 0, 1) ** 0.6
    nuclear = [k for k, channel in enumerate(channels) if channel.nuclear] or [0]
    others = [k for k in range(len(channels)) if k not in nuclear]
    chosen = [nuclear[0], *_liveliest(light, others)]
    picture = np.zeros((*pixels.shape[1:], 3), np.float32)
    names = []
    for k, (name, tint) in zip(chosen, _TINTS, strict=False):
        picture += light[k][..., None] * np.array(tint, np.float32)
        names.append(f"{channels[k].marker or channels[k].name} {name}")
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8), ", ".join(names)


def _liveliest(light: NDArray[np.float32], among: Sequence[int]) -> list[int]:
    """The channel that varies most, and of the rest the one that varies most and least like the first."""
    if not among:
        return []
    centred = light[list(among)].reshape(len(among), -1)
    centred = centred - centred.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=1))
    first = int(spread.argmax())
    alike = np.abs(centred @ centred[first]) / (centred.shape[1] * spread * spread[first] + 1e-9)
    worth = spread * (1 - np.minimum(alike, 1))
    worth[first] = -1
    return [among[first], *([among[int(worth.argmax())]] if len(among) > 1 else [])]


def outlines(
    labels: NDArray[Any], origin: tuple[int, int] = (0, 0), wanted: NDArray[Any] | None = None
) -> dict[int, str]:
    """SVG path of each label, traced inside its own bounding box.

    Parameters
    ----------
    labels : ndarray of int, (h, w)
        0 is the background.
    origin : (int, int)
        Row and column of ``labels`` that the paths count from.
    wanted : ndarray of int, optional
        Labels to trace; all of them when left out.

    Returns
    -------
    dict of int to str
        Paths in half pixels, (x, y): a pixel reaches from 2 i to 2 i + 2.
    """
    ids = np.unique(labels[labels > 0])
    numbered = np.where(labels > 0, np.searchsorted(ids, labels) + 1, 0)
    chosen = np.ones(ids.size, bool) if wanted is None else np.isin(ids, wanted)
    paths: dict[int, str] = {}
    for k, box in enumerate(ndimage.find_objects(numbered), 1):
        if not chosen[k - 1]:
            continue
        mask = (numbered[box] == k).astype(np.uint8)
        # Doubled, so that the outline runs along the pixels' outer edges and one-pixel nuclei have an extent.
        mask = np.pad(np.kron(mask, np.ones((2, 2), np.uint8)), 1)
        parts = []
        for contour in cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
            smooth = cv2.approxPolyDP(contour, 1.2, True)
            points = (smooth if len(smooth) > 3 else contour).reshape(-1, 2) - 1
            points = points + np.array([2 * (box[1].start - origin[1]), 2 * (box[0].start - origin[0])])
            steps = np.diff(points, axis=0)
            parts.append(f"M{points[0, 0]} {points[0, 1]}l" + " ".join(f"{dx} {dy}" for dx, dy in steps) + "z")
        if parts:
            paths[int(ids[k - 1])] = "".join(parts)
    return paths


def class_dots(counts: NDArray[np.int64], ids: Sequence[int]) -> NDArray[np.uint8]:
    """The most frequent class of each dot.

    Parameters
    ----------
    counts : ndarray of int64, (1 + n, h, w)
        Nuclei under each dot: those without a class first, then those of each class.
    ids : sequence of int
        The n classes' ids.

    Returns
    -------
    ndarray of uint8, (h, w)
        Class ids, the first of equals; nuclei with a class go before those without (``NO_CLASS``); ``NO_NUCLEUS``
        where there is none.
    """
    dots = np.where(counts[0] > 0, NO_CLASS, NO_NUCLEUS).astype(np.uint8)
    if ids:
        numbers = np.array(ids, np.uint8)
        dots = np.where(counts[1:].any(axis=0), numbers[counts[1:].argmax(axis=0)], dots)
    return dots


def dots_uri(dots: NDArray[np.uint8], classes: ClassTable) -> str:
    """Dots as a transparent picture in the classes' colours, lossless; see :func:`class_dots` for the values."""
    colours = np.zeros((256, 4), np.uint8)
    colours[:, :3], colours[:, 3] = _GREY, 255
    for number, colour in zip(classes.ids, classes.colours, strict=True):
        colours[number, :3] = colour
    colours[NO_NUCLEUS] = 0
    return data_uri(colours[dots], "WEBP")


def data_uri(picture: NDArray[np.uint8], form: str, quality: int = 82) -> str:
    """A picture, (h, w, 3 or 4) uint8, as data URI; ``form`` is JPEG, of some quality, or WEBP, lossless."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": quality} if form == "JPEG" else {"lossless": True, "quality": 60, "method": 4}
    Image.fromarray(picture).save(buffer, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
