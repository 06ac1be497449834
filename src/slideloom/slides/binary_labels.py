"""Masks that pose as label images are refused before they are scored as instances.

A binary mask holds one id, so instance code takes all its nuclei for one object. Two such objects overlap by more than
half as soon as the pixels do, and detection F1 is 1: a published evaluation fell for it. A class map given as labels
fares the same, with one object a class. What gives them away is that one id lies in many pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideError

__all__ = ["LARGEST_NUCLEUS_UM2", "LabelPieces", "check_pieces", "instances_or_refuse", "label_pieces", "looks_binary"]

#: A single object above this is no nucleus: a disc of 113 µm across.
LARGEST_NUCLEUS_UM2 = 10_000.0
#: An id whose largest piece holds less than this share of it is scattered. Rasterised outlines and nuclei that another
#: one crosses leave crumbs; they do not leave a tenth.
_WHOLE = 0.9
#: Finished pieces kept unsummed before they are; bounds the memory of a long image.
_PENDING = 1 << 20


@dataclass(frozen=True)
class LabelPieces:
    """What a label image is made of.

    Attributes
    ----------
    n_ids : int
        Ids other than 0.
    n_pieces : int
        4-connected pieces of one id.
    pixels : int
        Pixels that are not 0.
    scattered_pixels : int
        Those of ids whose largest piece holds less than nine tenths of them.
    n_scattered : int
        Ids whose largest piece holds less than nine tenths of them.
    """

    n_ids: int
    n_pieces: int
    pixels: int
    scattered_pixels: int
    n_scattered: int = 0

    @property
    def scattered_share(self) -> float | None:
        """Share of the labelled pixels that lies in scattered ids; ``None`` without labelled pixels."""
        return self.scattered_pixels / self.pixels if self.pixels else None

    def binary_because(self, largest_px: float | None = None) -> str | None:
        """Why the image cannot be one of instances.

        Parameters
        ----------
        largest_px : float, optional
            Most pixels that one nucleus can have. A single id in a single piece of at most that size is then taken for
            a single nucleus; when left out, an image of one id is always refused, for it cannot be told from a mask.

        Returns
        -------
        str or None
            ``None`` when nothing speaks against it, as of an image without labels.
        """
        if self.n_ids == 1:
            if largest_px is not None and self.n_pieces == 1 and self.pixels <= largest_px:
                return None
            return f"the label image holds one id, in {self.n_pieces} separate piece{'s' * (self.n_pieces > 1)}"
        # A nucleus torn in two is a slip of the annotator; of a class map every id lies in many pieces.
        if 2 * self.scattered_pixels > self.pixels and self.n_pieces >= 2 * self.n_ids:
            return (
                f"the label image holds {self.n_ids} ids in {self.n_pieces} separate pieces; "
                f"{self.scattered_pixels / self.pixels:.0%} of its labelled area belongs to ids that lie in several"
            )
        return None


def label_pieces(labels: Any, *, band_px: int = 512) -> LabelPieces:
    """Count ids and their 4-connected pieces.

    Parameters
    ----------
    labels : array-like of int or bool, (height, width)
        0 for the background. NumPy, Zarr and tensorstore arrays; read in bands of whole rows, pieces joined across.
    band_px : int
        Rows of a band; changes memory and speed, never the result.

    Raises
    ------
    ValueError
        The array is not two-dimensional or does not hold whole numbers.
    """
    if len(labels.shape) != 2:
        raise ValueError(f"a label image has 2 axes, got shape {tuple(labels.shape)}")
    height, width = (int(side) for side in labels.shape)
    ids = _Ids()
    above: NDArray[Any] = np.zeros(width, np.uint8)
    piece = np.full(width, -1, np.int64)
    open_label: NDArray[Any] = np.empty(0, np.int64)
    open_area = np.empty(0, np.int64)
    for top in range(0, height, band_px):
        band = np.asarray(labels[top : min(height, top + band_px)])
        if band.dtype.kind not in "iub":
            raise ValueError(f"a label image holds whole numbers, not {band.dtype}")
        band = np.ascontiguousarray(band.view(np.uint8) if band.dtype == np.bool_ else band)
        known = open_label.size
        n = known + _runs(band)
        label, area, parent = np.empty(n, np.int64), np.zeros(n, np.int64), np.arange(n)
        label[:known], area[:known] = open_label, open_area
        _join(band, above.astype(band.dtype), piece, known, label, area, parent)
        above = band[-1].copy()
        # Whatever has a pixel in the last row may go on; the rest is finished.
        root = parent == np.arange(n)
        goes_on = np.zeros(n, np.bool_)
        goes_on[piece[piece >= 0]] = True
        ids.add(label[root & ~goes_on], area[root & ~goes_on])
        number = np.cumsum(goes_on) - 1
        piece[piece >= 0] = number[piece[piece >= 0]]
        open_label, open_area = label[goes_on], area[goes_on]
    ids.add(open_label, open_area)
    return ids.summary()


def looks_binary(labels: Any, *, largest_px: float | None = None) -> bool:
    """Whether a label image is a mask or a class map rather than one of instances.

    Parameters
    ----------
    labels : array-like of int or bool, (height, width)
        As for :func:`label_pieces`.
    largest_px : float, optional
        As for :meth:`LabelPieces.binary_because`.
    """
    return label_pieces(labels).binary_because(largest_px) is not None


def instances_or_refuse(labels: Any, *, where: str, largest_px: float | None = None) -> LabelPieces:
    """Refuse an image that cannot be scored as instances.

    Parameters
    ----------
    labels : array-like of int or bool, (height, width)
        As for :func:`label_pieces`.
    where : str
        Slide or file, for the message.
    largest_px : float, optional
        As for :meth:`LabelPieces.binary_because`.

    Returns
    -------
    LabelPieces
        What was found.

    Raises
    ------
    SlideError
        ``binary_labels``: it holds one id, or most of its area belongs to ids that lie in several pieces, and there
            are at least twice as many pieces as ids.
    """
    found = label_pieces(labels)
    because = found.binary_because(largest_px)
    if because is not None:
        raise SlideError(
            f"{because}: a mask or a class map, which as instances would score one object for many nuclei",
            where=where,
            expected="an own number for every nucleus",
            hint="Give the instance labels, or split the mask into connected components first and say that you did; "
            "a mask itself can be scored by its pixels only",
            code="binary_labels",
        )
    return found


def check_pieces(instances: NDArray[np.int32], mpp_um: float, where: str) -> tuple[str, ...]:
    """Refuse an annotation that is a mask or a class map, and tell of nuclei that lie in pieces.

    Parameters
    ----------
    instances : (H, W) int32 array
        0 background, instance ids.
    mpp_um : float
        Pixel size, µm.
    where : str
        The file, for messages.

    Returns
    -------
    tuple of str
        What a person should know.

    Raises
    ------
    SlideError
        ``binary_labels``, as of :func:`instances_or_refuse`.
    """
    found = instances_or_refuse(instances, where=where, largest_px=LARGEST_NUCLEUS_UM2 / mpp_um**2)
    if not found.n_scattered:
        return ()
    return (f"{where}: {found.n_scattered} of {found.n_ids} nuclei lie in several pieces under one id",)


class _Ids:
    """Pieces, pixels and largest piece of every id."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.int64]] = []
        self._pending = 0

    def add(self, label: NDArray[np.int64], area: NDArray[np.int64]) -> None:
        self._parts.append(np.stack([label, np.ones_like(label), area, area]))
        self._pending += label.size
        if self._pending > _PENDING:
            self._sum()
            self._pending = 0

    def summary(self) -> LabelPieces:
        _, pieces, pixels, largest = self._sum()
        scattered = largest < _WHOLE * pixels
        return LabelPieces(
            n_ids=pieces.size,
            n_pieces=int(pieces.sum()),
            pixels=int(pixels.sum()),
            scattered_pixels=int(pixels[scattered].sum()),
            n_scattered=int(scattered.sum()),
        )

    def _sum(self) -> NDArray[np.int64]:
        every = np.concatenate([np.empty((4, 0), np.int64), *self._parts], axis=1)
        every = every[:, np.argsort(every[0], kind="stable")]
        starts = np.flatnonzero(np.diff(every[0], prepend=-1)) if every.size else np.empty(0, np.intp)
        if starts.size:
            every = np.stack(
                [
                    every[0, starts],
                    np.add.reduceat(every[1], starts),
                    np.add.reduceat(every[2], starts),
                    np.maximum.reduceat(every[3], starts),
                ]
            )
        self._parts = [every]
        return every


@numba.njit(nogil=True, cache=True)
def _runs(band: Any) -> int:
    """Runs of one label along the rows."""
    count = 0
    for y in range(band.shape[0]):
        for x in range(band.shape[1]):
            if band[y, x] != 0 and (x == 0 or band[y, x - 1] != band[y, x]):
                count += 1
    return count


@numba.njit(nogil=True, cache=True)
def _join(band: Any, above: Any, piece: Any, known: int, label: Any, area: Any, parent: Any) -> None:
    """Number the runs of a band from ``known`` on and join those that touch.

    ``piece`` holds the number of the piece at every pixel of the row above, -1 for none, and on return of the last row.
    On return ``parent`` points straight at the first number of each piece, and ``area`` there is the piece's.
    """
    height, width = band.shape
    n = known
    for y in range(height):
        left = -1
        for x in range(width):
            value = band[y, x]
            before = piece[x]
            if value == 0:
                piece[x] = left = -1
                continue
            if left < 0 or band[y, x - 1] != value:
                left = n
                label[n] = value
                n += 1
            area[left] += 1
            piece[x] = left
            over = band[y - 1, x] if y else above[x]
            if over == value and before >= 0:
                one, other = left, before
                while parent[one] != one:
                    parent[one] = parent[parent[one]]
                    one = parent[one]
                while parent[other] != other:
                    parent[other] = parent[parent[other]]
                    other = parent[other]
                parent[max(one, other)] = min(one, other)
    # A parent is never numbered higher than its child: ascending, every one met is final.
    for at in range(n):
        parent[at] = parent[parent[at]]
        if parent[at] != at:
            area[parent[at]] += area[at]
    for x in range(width):
        if piece[x] >= 0:
            piece[x] = parent[piece[x]]
