"""Channel statistics over patches: how raw intensities become network input.

Only tissue tiles count and padding never does. Everything is counted in integers, so the figures are the same for any
order of slides, tiles and batches, on any number of workers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.config.model import NormalisationConfig
from slideloom.errors import SlideError
from slideloom.patches.store import PatchStore
from slideloom.slides.tables import Channel

__all__ = ["TISSUE_SHARE", "ChannelStatistics", "channel_statistics", "marker_indices"]

_LOG = logging.getLogger(__name__)
#: Tiles with at least this share of tissue count; where a slide has none, those with any tissue, then all.
TISSUE_SHARE = 0.5
_BATCH_BYTES = 64 << 20
#: Sums are kept as whole multiples of 2**-30 of the channel's range: adding them up is exact in any order.
_FIXED_POINT = 1 << 30


@dataclass(frozen=True)
class ChannelStatistics:
    """Clipping point, mean and standard deviation of each channel.

    Attributes
    ----------
    markers : tuple of str
        Marker of each channel, in the order of the arrays that :meth:`apply` takes.
    clip : tuple of float
        Intensity above which values are clipped.
    mean, std : tuple of float
        Of the clipped and, with ``log1p``, log-transformed intensities. ``std`` is 1 for a channel that is constant.
    log1p : bool
        Whether log(1 + x) is taken after clipping; values below 0 then count as 0.
    """

    markers: tuple[str, ...]
    clip: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    log1p: bool

    def as_dict(self) -> dict[str, Any]:
        """JSON values; floats survive the round trip to the last bit."""
        return {
            "markers": list(self.markers),
            "clip": list(self.clip),
            "mean": list(self.mean),
            "std": list(self.std),
            "log1p": self.log1p,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ChannelStatistics:
        """Inverse of :meth:`as_dict`."""
        clip, mean, std = (tuple(float(number) for number in value[key]) for key in ("clip", "mean", "std"))
        return cls(tuple(str(name) for name in value["markers"]), clip, mean, std, bool(value["log1p"]))

    def apply(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Normalise pixels.

        Parameters
        ----------
        pixels : (..., c, h, w) array
            Raw intensities, channels in the order of ``markers``.

        Returns
        -------
        (..., c, h, w) float32 array
            ``(log1p(min(x, clip)) - mean) / std``, without the logarithm where ``log1p`` is off.

        Raises
        ------
        ValueError
            The number of channels is another.
        """
        if pixels.ndim < 3 or pixels.shape[-3] != len(self.markers):
            raise ValueError(f"pixels of shape {pixels.shape} do not have {len(self.markers)} channels")
        value = np.array(pixels, np.float32)
        np.minimum(value, _column(self.clip), out=value)
        if self.log1p:
            np.maximum(value, 0, out=value)
            np.log1p(value, out=value)
        value -= _column(self.mean)
        value /= _column(self.std)
        return value


def _column(numbers: Sequence[float]) -> NDArray[np.float32]:
    return np.asarray(numbers, np.float32)[:, None, None]


def marker_indices(channels: Sequence[Channel], markers: Sequence[str]) -> list[int]:
    """Which channels show the markers asked for.

    Parameters
    ----------
    channels : sequence of Channel
        Of a slide.
    markers : sequence of str
        Wanted, in this order; empty: every channel.

    Returns
    -------
    list of int
        A channel index for each marker; the first one where several channels show it.

    Raises
    ------
    SlideError
        ``missing_marker``: names the ones the slide lacks, and what it has.
    """
    if not markers:
        return list(range(len(channels)))
    place: dict[str, int] = {}
    for index, channel in enumerate(channels):
        place.setdefault(_name(channel), index)
    missing = [marker for marker in markers if marker not in place]
    if missing:
        raise SlideError(
            f"no channel shows {', '.join(missing)}",
            expected=f"one of {', '.join(place)}",
            hint="Take the marker out of the encoder's markers, or leave this slide out of the study",
            code="missing_marker",
        )
    return [place[marker] for marker in markers]


def _name(channel: Channel) -> str:
    return channel.marker or channel.name


def channel_statistics(
    stores: Sequence[PatchStore], markers: Sequence[str], normalisation: NormalisationConfig
) -> ChannelStatistics:
    """Statistics of the tissue of slides, in memory that does not grow with their number or size.

    The clipping point is the smallest intensity that at least ``clip_quantile`` of the pixels do not exceed: an exact
    order statistic for every type (float64 after rounding to float32). A channel so sparse that this is its
    lowest value is clipped at its highest instead, so that a rare signal is not wiped out. Mean and standard deviation
    (population) follow from whole histograms for 8 and 16 bit integers; for other types from per-tile float64 sums,
    good to about 1e-9 of the channel's range.

    Parameters
    ----------
    stores : sequence of PatchStore
        Of one modality and one pixel type.
    markers : sequence of str
        Wanted markers; empty: every channel of the first slide, which all must have.
    normalisation : NormalisationConfig
        Quantile and transformation.

    Returns
    -------
    ChannelStatistics
        One entry per marker.

    Raises
    ------
    SlideError
        ``missing_marker``: a slide lacks a marker. ``mixed_dtypes``: pixel types differ. ``no_patches``: there is no
        pixel to count.
    """
    if not stores:
        raise SlideError("there is no slide to take channel statistics from", code="no_patches")
    names = tuple(markers) or tuple(_name(channel) for channel in stores[0].channels)
    duplicates = {name for name in names if names.count(name) > 1}
    chosen: list[list[int]] = []
    for store in stores:
        same = not markers and tuple(_name(channel) for channel in store.channels) == names
        if not same and not markers and duplicates:
            # By name alone the second channel of a marker could not be told from its first.
            raise SlideError(
                "the panels differ and one marker has several channels",
                where=store.slide_id,
                expected=", ".join(names),
                hint="List the encoder's markers",
                code="missing_marker",
            )
        try:
            chosen.append(marker_indices(store.channels, () if same else names))
        except SlideError as error:
            raise SlideError(
                error.what, where=store.slide_id, expected=error.expected, hint=error.hint, code=error.code
            ) from error
    kinds = {store.dtype for store in stores}
    if len(kinds) > 1:
        listed = ", ".join(sorted(kind.name for kind in kinds))
        hint = "Normalise such slides each by itself (scope: slide), or convert them to one type"
        raise SlideError(f"the slides' pixels are of different types: {listed}", hint=hint, code="mixed_dtypes")

    def batches() -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
        for store, indices in zip(stores, chosen, strict=True):
            yield from _tissue_batches(store, indices)

    kind = kinds.pop()
    gather = _counted if kind in (np.dtype(np.uint8), np.dtype(np.uint16)) else _summed
    clip, mean, std = gather(batches, len(names), kind, normalisation)
    _LOG.info("channel statistics of %d slides, %d markers", len(stores), len(names))
    return ChannelStatistics(names, clip, mean, std, normalisation.log1p)


Batches = Callable[[], Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]]
Figures = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def _tissue_batches(store: PatchStore, indices: Sequence[int]) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """Pixels (k, c, p, p) of the chosen channels and the mask (k, p, p) of what lies on the slide."""
    keep = np.flatnonzero(store.tissue >= TISSUE_SHARE)
    if not keep.size:
        keep = np.flatnonzero(store.tissue > 0)
    if not keep.size:
        keep = np.arange(store.n)
    one = store.tile_px**2 * max(len(store.channels) * store.dtype.itemsize, len(indices) * 8)
    size = max(1, _BATCH_BYTES // one)
    for start in range(0, keep.size, size):
        part = keep[start : start + size]
        yield store.pixels(part)[:, list(indices)], store.valid(part)


def _order(count: int, quantile: float) -> int:
    """Rank, from 1, of the order statistic that a quantile names."""
    return max(1, math.ceil(Fraction(quantile).limit_denominator(10**9) * count))


def _counted(batches: Batches, n: int, kind: np.dtype[Any], config: NormalisationConfig) -> Figures:
    """From one exact histogram per channel."""
    bins = 256 if kind.itemsize == 1 else 65536
    counts = np.zeros((n, bins), np.int64)
    for pixels, valid in batches():
        for channel in range(n):
            counts[channel] += np.bincount(pixels[:, channel][valid], minlength=bins)
    total = int(counts[0].sum())
    _refuse_empty(total)
    rank = _order(total, config.clip_quantile)
    clips, means, stds = [], [], []
    for row in counts:
        present = np.flatnonzero(row)
        clip = int(present[np.searchsorted(np.cumsum(row[present]), rank)])
        clip = int(present[-1]) if clip == present[0] else clip
        value = np.minimum(np.arange(bins, dtype=np.float64), clip)
        value = np.log1p(value) if config.log1p else value
        mean = math.fsum(value * row) / total
        variance = math.fsum((value - mean) ** 2 * row) / total
        clips.append(float(clip))
        means.append(mean)
        stds.append(math.sqrt(variance) or 1.0)
    return tuple(clips), tuple(means), tuple(stds)


def _refuse_empty(total: int) -> None:
    if total == 0:
        raise SlideError("there is no pixel to take channel statistics from", code="no_patches")


def _summed(batches: Batches, n: int, kind: np.dtype[Any], config: NormalisationConfig) -> Figures:
    """For wide types: the quantile digit by digit, then the sums, each in a pass over the patches."""
    high = np.zeros((n, 65536), np.int64)
    for pixels, valid in batches():
        for channel in range(n):
            values = pixels[:, channel][valid]
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise SlideError(
                    f"channel {channel} holds values that are not finite",
                    hint="Replace NaN and infinity in the image",
                    code="non_finite_pixels",
                )
            high[channel] += np.bincount(_rankable(values) >> np.uint32(16), minlength=65536)
    total = int(high[0].sum())
    _refuse_empty(total)
    rank = _order(total, config.clip_quantile)
    cumulative = high.cumsum(axis=1)
    upper = [int(np.searchsorted(row, rank)) for row in cumulative]
    ends = [(int(np.flatnonzero(row)[0]), int(np.flatnonzero(row)[-1])) for row in high]
    low = np.zeros((n, 3, 65536), np.int64)
    for pixels, valid in batches():
        for channel in range(n):
            keys = _rankable(pixels[:, channel][valid])
            digits = keys >> np.uint32(16)
            for slot, digit in enumerate((upper[channel], *ends[channel])):
                part = keys[digits == digit] & np.uint32(0xFFFF)
                low[channel, slot] += np.bincount(part, minlength=65536)
    clips, lowest, highest = [], [], []
    for channel in range(n):
        before = int(cumulative[channel, upper[channel] - 1]) if upper[channel] else 0
        digit = int(np.searchsorted(low[channel, 0].cumsum(), rank - before))
        first, last = (np.flatnonzero(low[channel, slot]) for slot in (1, 2))
        clip = _unrank(upper[channel], digit, kind)
        lowest.append(_unrank(ends[channel][0], int(first[0]), kind))
        highest.append(_unrank(ends[channel][1], int(last[-1]), kind))
        clips.append(highest[-1] if clip == lowest[-1] else clip)
    mean, std = _moments(batches, total, clips, lowest, config)
    return tuple(clips), mean, std


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


def _moments(
    batches: Batches, total: int, clips: Sequence[float], lowest: Sequence[float], config: NormalisationConfig
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    clip = np.asarray(clips)[:, None, None]

    def transform(pixels: NDArray[Any]) -> NDArray[np.float64]:
        value: NDArray[np.float64] = np.minimum(pixels.astype(np.float64), clip)
        if config.log1p:
            np.log1p(np.maximum(value, 0, out=value), out=value)
        return value

    low = transform(np.asarray(lowest)[:, None, None])
    span = transform(clip) - low
    unit = np.where(span > 0, span, 1.0)
    sums = [[0, 0] for _ in clips]
    for pixels, valid in batches():
        # One sum a tile, each over the same pixels in the same order whatever the batch; then whole numbers.
        value = (transform(pixels) - low) / unit * valid[:, None]
        for power, tiles in enumerate((value, value * value)):
            fixed = np.rint(tiles.reshape(*tiles.shape[:2], -1).sum(axis=-1) * _FIXED_POINT).astype(np.int64)
            for channel, column in enumerate(fixed.T):
                sums[channel][power] += sum(column.tolist())
    mean, std = [], []
    for channel, (first, second) in enumerate(sums):
        centre = Fraction(first, _FIXED_POINT * total)
        variance = Fraction(second, _FIXED_POINT * total) - centre**2
        mean.append(float(low[channel, 0, 0]) + float(centre) * float(unit[channel, 0, 0]))
        std.append(math.sqrt(max(0.0, float(variance))) * float(unit[channel, 0, 0]) or 1.0)
    return tuple(mean), tuple(std)
