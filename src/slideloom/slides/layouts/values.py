"""Maps and pictures as other programs save them, as whole numbers; and classes of nuclei from classes of pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideError

__all__ = ["as_picture", "major_classes", "whole_numbers"]

_LARGEST = 2**31 - 1


def whole_numbers(values: NDArray[Any], what: str, where: str) -> NDArray[np.int32]:
    """A map of labels or classes as whole numbers, whatever type it was saved as.

    Parameters
    ----------
    values : (H, W) array
        Numbers, 0 to 2**31 - 1, without a fraction.
    what, where : str
        What it is and where it stands, for messages.

    Raises
    ------
    SlideError
        ``annotation_unreadable``: no map of two axes, or no numbers; ``annotation_float``, ``annotation_negative``,
        ``annotation_range``.
    """
    if values.ndim != 2 or values.dtype.kind not in "buif":
        raise SlideError(
            f"{what} is an array of shape {values.shape} {values.dtype}",
            where=where,
            expected="a number for every pixel, (height, width)",
            code="annotation_unreadable",
        )
    if values.dtype.kind == "f" and not bool((np.floor(values) == values).all()):
        raise SlideError(f"{what} holds fractions", where=where, expected="whole numbers", code="annotation_float")
    if values.size and values.min() < 0:
        what = f"{what} holds {values.min():g}"
        raise SlideError(what, where=where, expected="0 or more", code="annotation_negative")
    if values.size and values.max() > _LARGEST:
        what = f"{what} holds {values.max():g}"
        raise SlideError(what, where=where, expected=f"{_LARGEST} at most", code="annotation_range")
    return values.astype(np.int32)


def as_picture(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """A picture of any type of numbers as 8 bits, refused where that would alter it.

    Parameters
    ----------
    values : (H, W, 3) array
        Whole numbers from 0 to 255.
    name : str
        For messages.

    Raises
    ------
    SlideError
        ``unsupported_dtype``.
    """
    picture = np.asarray(values).astype(np.uint8)
    if picture.ndim != 3 or picture.shape[2] != 3 or not np.array_equal(picture, values):
        told = f"a picture of {values.shape} {values.dtype} with other values than 8 bits hold"
        raise SlideError(told, where=name, expected="whole numbers from 0 to 255, RGB", code="unsupported_dtype")
    return picture


def major_classes(instances: NDArray[np.int32], class_map: NDArray[np.int32]) -> tuple[dict[int, int], int]:
    """Class of each nucleus by a class of every pixel: what most of its pixels say, the lowest on a tie.

    Parameters
    ----------
    instances, class_map : (H, W) int32 arrays
        0 is background in both; background pixels inside a nucleus do not count.

    Returns
    -------
    of_nucleus : dict of int to int
        Class by label; nuclei without any are left out.
    mixed : int
        Nuclei whose pixels name more than one class.
    """
    inside = (instances > 0) & (class_map > 0)
    labels, numbers = instances[inside].astype(np.int64), class_map[inside].astype(np.int64)
    pairs, counts = np.unique(np.stack([labels, numbers]), axis=1, return_counts=True)
    found: dict[int, int] = {}
    best: dict[int, int] = {}
    for label, number, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        if count > best.get(label, 0):
            found[label], best[label] = number, count
    return found, pairs.shape[1] - len(found)
