"""Quantile, mean and spread of pixels that pass by in batches, the same for any order and any batch.

Everything is counted in whole numbers or summed as exact fractions. Integers of 8 and 16 bit are counted in one
histogram a channel; wider types are ranked by two digits of 16 bit, which takes three passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideError

__all__ = ["Batches", "Moments", "Tally", "merge", "tally"]

#: Pixels (k, c, p, p) and the mask (k, p, p) of those that count, tile by tile; called anew for each pass.
Batches = Callable[[], Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]]

#: Sums are kept as whole multiples of 2**-30 of the channel's range: adding them up is exact in any order.
_FIXED_POINT = 1 << 30
_DIGIT = 65536


@dataclass(frozen=True)
class Moments:
    """Mean and spread of each channel of one group of pixels, exact once computed.

    Attributes
    ----------
    count : int
        Pixels of each channel.
    mean : tuple of Fraction
        Of each channel.
    squares : tuple of Fraction
        Sum of the squared deviations from the mean.
    """

    count: int
    mean: tuple[Fraction, ...]
    squares: tuple[Fraction, ...]


class Tally(Protocol):
    """Pixels of one group, counted.

    Attributes
    ----------
    clip : tuple of float
        Clipping point of each channel: its quantile, or its highest value where the quantile is the lowest.
    low : tuple of float
        The quantile at the other end, 1 less that of the clipping point.
    """

    clip: tuple[float, ...]
    low: tuple[float, ...]

    def moments(self, log1p: bool) -> Moments:
        """Of min(x, clip), and with ``log1p`` of log(1 + max(min(x, clip), 0))."""
        ...


def tally(batches: Batches, n: int, kind: np.dtype[Any], quantile: float) -> Tally:
    """Count the pixels of a group.

    Parameters
    ----------
    batches : callable
        Gives the batches anew, each time it is called.
    n : int
        Number of channels.
    kind : dtype
        Pixel type: integers up to 32 bit or floats (float64 after rounding to float32).
    quantile : float
        In (0, 1]; see :func:`_places`.

    Raises
    ------
    SlideError
        ``no_patches``: there is no pixel.
    """
    if kind in (np.dtype(np.uint8), np.dtype(np.uint16)):
        return _Counted(batches, n, kind, quantile)
    return _Ranked(batches, n, kind, quantile)


def merge(groups: Sequence[Moments]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of several groups taken together; the deviation of a constant is 1."""
    total = sum(group.count for group in groups)
    means, stds = [], []
    for channel in range(len(groups[0].mean)):
        mean = sum((group.count * group.mean[channel] for group in groups), Fraction(0)) / total
        squares = sum(
            (group.squares[channel] + group.count * (group.mean[channel] - mean) ** 2 for group in groups), Fraction(0)
        )
        means.append(float(mean))
        stds.append(math.sqrt(squares / total) or 1.0)
    return tuple(means), tuple(stds)


def _places(count: int, quantile: float) -> tuple[int, int, float]:
    """Ranks, from 1, of the two order statistics that a quantile lies between, and how far it is from the first.

    The quantile lies at (count - 1) * quantile of the sorted values, counted from 0: the definition that NumPy and
    PyTorch use unless told otherwise.

    Examples
    --------
    >>> _places(5, 0.9)
    (4, 5, 0.6)
    >>> _places(5, 1.0)
    (5, 5, 0.0)
    """
    place = Fraction(quantile).limit_denominator(10**9) * (count - 1)
    lower = math.floor(place)
    return lower + 1, min(lower + 2, count), float(place - lower)


def _both_ends(count: int, quantile: float) -> tuple[tuple[int, int, float], tuple[int, int, float]]:
    """Places of a quantile and of the one at the other end."""
    other = float(1 - Fraction(quantile).limit_denominator(10**9))
    return _places(count, quantile), _places(count, other)


def _clip(lower: float, upper: float, share: float, lowest: float, highest: float) -> float:
    """Between two order statistics; the highest value where that would wipe the channel out."""
    clip = lower + (upper - lower) * share
    return highest if clip == lowest else clip


def _refuse_empty(total: int) -> None:
    if total == 0:
        raise SlideError("there is no pixel to take channel statistics from", code="no_patches")


class _Counted:
    """From one exact histogram a channel."""

    def __init__(self, batches: Batches, n: int, kind: np.dtype[Any], quantile: float) -> None:
        self._counts = np.zeros((n, 1 << 8 * kind.itemsize), np.int64)
        for pixels, mask in batches():
            for channel, counts in enumerate(self._counts):
                counts += np.bincount(pixels[:, channel][mask], minlength=counts.size)
        self._total = int(self._counts[0].sum())
        _refuse_empty(self._total)
        (lower, upper, share), (first, second, beyond) = _both_ends(self._total, quantile)
        clips, lows = [], []
        for counts in self._counts:
            present = np.flatnonzero(counts)
            at = present[np.searchsorted(np.cumsum(counts[present]), (lower, upper, first, second))].tolist()
            clips.append(_clip(float(at[0]), float(at[1]), share, float(present[0]), float(present[-1])))
            lows.append(at[2] + (at[3] - at[2]) * beyond)
        self.clip, self.low = tuple(clips), tuple(lows)

    def moments(self, log1p: bool) -> Moments:
        means, squares = [], []
        for counts, clip in zip(self._counts, self.clip, strict=True):
            present = np.flatnonzero(counts)
            value = np.minimum(present.astype(np.float64), clip)
            value = np.log1p(value) if log1p else value
            mean = math.fsum(value * counts[present]) / self._total
            means.append(Fraction(mean))
            squares.append(Fraction(math.fsum((value - mean) ** 2 * counts[present])))
        return Moments(self._total, tuple(means), tuple(squares))


class _Ranked:
    """For wide types: the order statistics digit by digit, then the sums, each in a pass."""

    def __init__(self, batches: Batches, n: int, kind: np.dtype[Any], quantile: float) -> None:
        self._batches = batches
        high = np.zeros((n, _DIGIT), np.int64)
        for pixels, mask in batches():
            for channel, counts in enumerate(high):
                counts += np.bincount(_rankable(pixels[:, channel][mask]) >> np.uint32(16), minlength=_DIGIT)
        self._total = int(high[0].sum())
        _refuse_empty(self._total)
        (lower, upper, share), (first, second, beyond) = _both_ends(self._total, quantile)
        # Of each channel: the lowest value, the two that the quantile lies between, the highest, and at the other end.
        ranks = (1, lower, upper, self._total, first, second)
        before = high.cumsum(axis=1)
        digits = [np.searchsorted(row, ranks).tolist() for row in before]
        low = [{digit: np.zeros(_DIGIT, np.int64) for digit in row} for row in digits]
        for pixels, mask in batches():
            for channel, wanted in enumerate(low):
                keys = _rankable(pixels[:, channel][mask])
                upper_half = keys >> np.uint32(16)
                for digit, counts in wanted.items():
                    counts += np.bincount(keys[upper_half == digit] & np.uint32(0xFFFF), minlength=_DIGIT)
        clips, lowest, lows = [], [], []
        for row, wanted, cumulative in zip(digits, low, before, strict=True):
            values = []
            for rank, digit in zip(ranks, row, strict=True):
                passed = int(cumulative[digit - 1]) if digit else 0
                values.append(_unrank(digit, int(np.searchsorted(wanted[digit].cumsum(), rank - passed)), kind))
            clips.append(_clip(values[1], values[2], share, values[0], values[3]))
            lowest.append(values[0])
            lows.append(values[4] + (values[5] - values[4]) * beyond)
        self.clip, self._lowest, self.low = tuple(clips), tuple(lowest), tuple(lows)

    def moments(self, log1p: bool) -> Moments:
        """From sums of whole tiles in float64, good to about 1e-9 of the channel's range."""
        clip = np.asarray(self.clip)[:, None, None]

        def transform(pixels: NDArray[Any]) -> NDArray[np.float64]:
            value: NDArray[np.float64] = np.minimum(pixels.astype(np.float64), clip)
            if log1p:
                np.log1p(np.maximum(value, 0, out=value), out=value)
            return value

        low = transform(np.asarray(self._lowest)[:, None, None])
        span = transform(clip) - low
        unit = np.where(span > 0, span, 1.0)
        sums = [[0, 0] for _ in self.clip]
        for pixels, mask in self._batches():
            # One sum a tile, each over the same pixels in the same order whatever the batch; then whole numbers.
            value = np.where(mask[:, None], (transform(pixels) - low) / unit, 0.0)
            for power, tiles in enumerate((value, value * value)):
                fixed = np.rint(tiles.reshape(*tiles.shape[:2], -1).sum(axis=-1) * _FIXED_POINT).astype(np.int64)
                for channel, column in enumerate(fixed.T):
                    sums[channel][power] += sum(column.tolist())
        means, squares = [], []
        for (first, second), start, width in zip(sums, low.ravel().tolist(), unit.ravel().tolist(), strict=True):
            centre = Fraction(first, _FIXED_POINT * self._total)
            spread = max(Fraction(0), Fraction(second, _FIXED_POINT) - self._total * centre**2)
            means.append(Fraction(start) + centre * Fraction(width))
            squares.append(spread * Fraction(width) ** 2)
        return Moments(self._total, tuple(means), tuple(squares))


def _rankable(values: NDArray[Any]) -> NDArray[np.uint32]:
    """uint32 keys in the order of the values, one to one for float32 and 32 bit integers."""
    if values.dtype.kind == "f":
        bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)  # + 0 makes -0 and 0 one value
        return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    if values.dtype.kind == "u":
        return values.astype(np.uint32)
    return values.astype(np.int32).view(np.uint32) ^ np.uint32(1 << 31)


def _unrank(upper: int, lower: int, kind: np.dtype[Any]) -> float:
    key = (upper << 16) | lower
    if kind.kind == "f":
        bits = key ^ (1 << 31) if key >> 31 else ~key & 0xFFFFFFFF
        return float(np.array([bits], np.uint32).view(np.float32)[0])
    return float(key if kind.kind == "u" else key - (1 << 31))
