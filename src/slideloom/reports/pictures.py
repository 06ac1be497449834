"""Pixels and outlines of overlays: false colours, traced contours, the slide at a glance."""

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

__all__ = ["data_uri", "false_colour", "outlines", "overview_picture"]

_OVERVIEW_PX = 180
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


def outlines(labels: NDArray[Any]) -> dict[int, str]:
    """SVG path of each label, traced inside its own bounding box; pixel centres are at half coordinates."""
    ids = np.unique(labels[labels > 0])
    numbered = np.where(labels > 0, np.searchsorted(ids, labels) + 1, 0)
    paths: dict[int, str] = {}
    for k, box in enumerate(ndimage.find_objects(numbered), 1):
        mask = (numbered[box] == k).astype(np.uint8)
        # Doubled, so that the outline runs along the pixels' outer edges and one-pixel nuclei have an extent.
        mask = np.pad(np.kron(mask, np.ones((2, 2), np.uint8)), 1)
        parts = []
        for contour in cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
            smooth = cv2.approxPolyDP(contour, 1.2, True)
            points = (smooth if len(smooth) > 3 else contour).reshape(-1, 2) - 1
            points = points + np.array([2 * box[1].start, 2 * box[0].start])
            steps = np.diff(points, axis=0)
            parts.append(f"M{points[0, 0]} {points[0, 1]}l" + " ".join(f"{dx} {dy}" for dx, dy in steps) + "z")
        if parts:
            paths[int(ids[k - 1])] = "".join(parts)
    return paths


def overview_picture(
    size: tuple[int, int],
    centre_y: NDArray[np.float64],
    centre_x: NDArray[np.float64],
    class_id: NDArray[np.uint8],
    classes: ClassTable,
) -> NDArray[np.uint8]:
    """The slide as a small picture, each pixel in the mean colour of the nuclei that it holds."""
    shrink = max(size) / _OVERVIEW_PX
    height, width = max(1, round(size[0] / shrink)), max(1, round(size[1] / shrink))
    colours = np.full((256, 3), 140.0)
    for number, colour in zip(classes.ids, classes.colours, strict=True):
        colours[number] = colour
    y = (centre_y / shrink).astype(int).clip(0, height - 1)
    x = (centre_x / shrink).astype(int).clip(0, width - 1)
    total, count = np.zeros((height, width, 3)), np.zeros((height, width, 1))
    np.add.at(total, (y, x), colours[class_id])
    np.add.at(count, (y, x), 1)
    mean = np.divide(total, count, out=np.full(total.shape, 245.0), where=count > 0)
    picture: NDArray[np.uint8] = mean.astype(np.uint8)
    return picture


def data_uri(picture: NDArray[np.uint8], form: str) -> str:
    """A picture, (h, w, 3) uint8, as data URI; ``form`` is JPEG or PNG."""
    buffer = io.BytesIO()
    options = {"quality": 86} if form == "JPEG" else {"optimize": True}
    Image.fromarray(picture).save(buffer, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
