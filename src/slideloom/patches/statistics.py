"""Channel statistics over patches: how raw intensities become network input.

Only pixels inside the tissue outline count, as in the original VirTues, and padding never does. The figures are the
same for any order of slides, tiles and batches, on any number of workers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.config.model import NormalisationConfig
from slideloom.errors import SlideError, SlideloomError
from slideloom.patches.moments import Batches, Tally, merge, tally
from slideloom.patches.panels import channels_of, find_markers, panel_of
from slideloom.patches.store import PatchStore
from slideloom.slides.outlines import pixels_inside

__all__ = ["ChannelStatistics", "channel_statistics", "check_dtype", "for_slide", "tissue_pixels"]

_LOG = logging.getLogger(__name__)
#: No intensity is greater.
_NO_CLIP = float(np.finfo(np.float32).max)
_BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class ChannelStatistics:
    """Clipping point, mean and standard deviation of each channel.

    Attributes
    ----------
    markers : tuple of str
        Marker of each channel, in the order of the arrays that :meth:`apply` takes.
    clip : tuple of float
        Intensity above which values are clipped. Empty: each slide's own, which :func:`for_slide` fills in.
    mean, std : tuple of float
        Of the clipped and, with ``log1p``, log-transformed intensities. ``std`` is 1 for a channel that is constant.
        With ``scope: clip`` the mean is 0 and the deviation what the clipping point becomes, so that it ends at 1.
    log1p : bool
        Whether log(1 + x) is taken after clipping; values below 0 then count as 0.
    dtype : str
        Pixel type that they were measured on and are for, such as ``uint16``; empty: not noted.
    """

    markers: tuple[str, ...]
    clip: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    log1p: bool
    dtype: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON values; floats survive the round trip to the last bit."""
        return {
            "markers": list(self.markers),
            "clip": list(self.clip),
            "mean": list(self.mean),
            "std": list(self.std),
            "log1p": self.log1p,
            "dtype": self.dtype,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ChannelStatistics:
        """Inverse of :meth:`as_dict`."""
        clip, mean, std = (tuple(float(number) for number in value[key]) for key in ("clip", "mean", "std"))
        markers = tuple(str(name) for name in value["markers"])
        return cls(markers, clip, mean, std, bool(value["log1p"]), str(value.get("dtype", "")))

    def select(self, markers: Sequence[str]) -> ChannelStatistics:
        """Statistics of some of the markers.

        Parameters
        ----------
        markers : sequence of str
            In the order wanted.

        Raises
        ------
        SlideError
            ``missing_marker``: names the ones that were not measured, and those that were.
        """
        chosen = find_markers(self.markers, markers)
        clip, mean, std = (
            tuple(values[index] for index in chosen) if values else () for values in (self.clip, self.mean, self.std)
        )
        return replace(self, markers=tuple(markers), clip=clip, mean=mean, std=std)

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
            The number of channels is another, or the clipping points are each slide's own and not filled in.
        """
        if not self.clip:
            raise ValueError("the clipping points are each slide's own: see for_slide")
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


def channel_statistics(
    stores: Sequence[PatchStore], markers: Sequence[str], normalisation: NormalisationConfig
) -> ChannelStatistics:
    """Statistics of the tissue of slides, in memory that does not grow with their number or size.

    The clipping point is the ``clip_quantile`` by linear interpolation between the two order statistics beside it,
    which are exact for every type (float64 after rounding to float32). Mean and standard deviation (population) follow
    from whole histograms for 8 and 16 bit integers; for other types from per-tile float64 sums, good to about 1e-9 of
    the channel's range. With ``clip: slide`` each slide is clipped at its own quantile and the clipped pixels of all
    are pooled, which is what the published VirTues weights expect. With ``scope: clip`` only the clipping points are
    measured: no mean is taken off, and the clipping point becomes 1. With ``scope: percentiles`` the quantile becomes
    1, the one at the other end 0, and nothing is clipped: what InstanSeg and ChannelNet read. Where the two are one
    value the channel is only shifted. (InstanSeg divides by at least 0.001, which flattens images of tiny ranges.)

    Two things differ from the original VirTues. A channel so sparse that its quantile is its lowest value is clipped
    at its highest instead, so that a rare signal is not wiped out; there it becomes constant. And pixels are those of
    the patches at the grid's resolution: tiles that the grid's ``min_tissue`` left out do not count, and pixels that
    several tiles share count once for each. A slide whose tiles show no tissue at all counts whole.

    Parameters
    ----------
    stores : sequence of PatchStore
        Of one modality and one pixel type, as :func:`~slideloom.patches.pooling.find_poolable` finds them; a single
        one where each slide is measured by itself (``scope: slide`` or ``percentiles``, or ``scope: clip`` with
        ``clip: slide``).
    markers : sequence of str
        Wanted markers; empty: every channel of the first slide, which all must have.
    normalisation : NormalisationConfig
        Settled, see :func:`~slideloom.config.catalogue.complete`.

    Returns
    -------
    ChannelStatistics
        One entry per marker. Without clipping points where each slide of a training set has its own.

    Raises
    ------
    SlideError
        ``missing_marker``: a slide lacks a marker. ``mixed_dtypes``: pixel types differ. ``no_patches``: there is no
        pixel to count. ``non_finite_pixels``.
    SlideloomError
        ``internal``: the normalisation is not settled, or several slides where each is measured by itself.
    """
    quantile, log1p = _settled(normalisation)
    if not stores:
        raise SlideError("there is no slide to take channel statistics from", code="no_patches")
    alone = normalisation.scope in ("slide", "percentiles")
    alone |= normalisation.scope == "clip" and normalisation.clip == "slide"
    if alone and len(stores) > 1:
        what = f"statistics of {len(stores)} slides where each has its own (scope: {normalisation.scope})"
        raise SlideloomError(what, expected="one slide", code="internal")
    names = tuple(markers) or panel_of(stores[0])
    chosen = [channels_of(store, names, named=bool(markers)) for store in stores]
    kinds = {store.dtype for store in stores}
    if len(kinds) > 1:
        listed = ", ".join(sorted(kind.name for kind in kinds))
        hint = "Normalise such slides each by itself (scope: slide), or convert them to one type"
        raise SlideError(f"the slides' pixels are of different types: {listed}", hint=hint, code="mixed_dtypes")
    every = list(zip(stores, chosen, strict=True))
    if normalisation.scope == "clip":
        counted = tally(_batches(every), len(names), stores[0].dtype, quantile)
        _LOG.info("clipping points of %d slides, %d markers", len(stores), len(names))
        return _to_one(names, counted.clip, log1p, stores[0].dtype.name)
    if normalisation.scope == "percentiles":
        counted = tally(_batches(every), len(names), stores[0].dtype, quantile)
        return _to_ends(names, counted, stores[0].dtype.name)
    own_clip = normalisation.clip == "slide" and normalisation.scope == "training"
    groups = [[one] for one in every] if own_clip else [every]
    clip: tuple[float, ...] = ()
    moments = []
    for group in groups:
        counted = tally(_batches(group), len(names), stores[0].dtype, quantile)
        moments.append(counted.moments(log1p))
        clip = () if own_clip else counted.clip
    _LOG.info("channel statistics of %d slides, %d markers", len(stores), len(names))
    return ChannelStatistics(names, clip, *merge(moments), log1p, stores[0].dtype.name)


def for_slide(pooled: ChannelStatistics, store: PatchStore, normalisation: NormalisationConfig) -> ChannelStatistics:
    """Statistics that one slide is normalised with.

    Parameters
    ----------
    pooled : ChannelStatistics
        Of the training slides.
    store : PatchStore
        The slide's patches; its channels are found by marker.
    normalisation : NormalisationConfig
        The one that ``pooled`` was measured with, settled.

    Returns
    -------
    ChannelStatistics
        ``pooled`` itself where it has clipping points; else ``pooled`` with the quantiles of this slide, measured as
        :func:`channel_statistics` measures them.

    Raises
    ------
    SlideError
        ``mixed_dtypes``: the slide's pixels are of another type than those that were measured. ``missing_marker``,
        ``no_patches``, ``non_finite_pixels``.
    SlideloomError
        ``internal``: the normalisation is not settled.
    """
    check_dtype(store, pooled.dtype)
    if pooled.clip:
        return pooled
    quantile, log1p = _settled(normalisation)
    chosen = channels_of(store, pooled.markers, named=len(set(pooled.markers)) == len(pooled.markers))
    counted = tally(_batches([(store, chosen)]), len(chosen), store.dtype, quantile)
    if normalisation.scope == "clip":
        return _to_one(pooled.markers, counted.clip, log1p, store.dtype.name)
    return replace(pooled, clip=counted.clip)


def check_dtype(store: PatchStore, wanted: str) -> None:
    """Refuse a slide whose pixels are of another type than statistics are for: its values are on another scale.

    Raises
    ------
    SlideError
        ``mixed_dtypes``. An empty ``wanted`` takes every type.
    """
    if wanted and store.dtype.name != wanted:
        raise SlideError(
            f"its pixels are {store.dtype.name}",
            where=store.slide_id,
            expected=f"{wanted}, which the channel statistics of the training slides are for",
            hint="Convert it to that type on the same scale, or normalise each slide by itself (scope: slide)",
            code="mixed_dtypes",
        )


def _to_one(markers: tuple[str, ...], clip: tuple[float, ...], log1p: bool, dtype: str) -> ChannelStatistics:
    """Statistics that bring the clipping point to 1 and leave 0 where it is; a channel of zeros stays as it is."""
    top = tuple(math.log1p(max(point, 0.0)) if log1p else point for point in clip)
    std = tuple(one if one > 0 else 1.0 for one in top)
    return ChannelStatistics(markers, clip, (0.0,) * len(clip), std, log1p, dtype)


def _to_ends(markers: tuple[str, ...], counted: Tally, dtype: str) -> ChannelStatistics:
    """Statistics that bring one quantile to 1 and the one at the other end to 0, and clip nothing."""
    span = tuple(top - low if top > low else 1.0 for top, low in zip(counted.clip, counted.low, strict=True))
    return ChannelStatistics(markers, (_NO_CLIP,) * len(markers), counted.low, span, False, dtype)


def _settled(normalisation: NormalisationConfig) -> tuple[float, bool]:
    """Quantile and logarithm of a normalisation without an open value."""
    quantile, log1p = normalisation.clip_quantile, normalisation.log1p
    if quantile is None or log1p is None or normalisation.clip is None:
        raise SlideloomError(
            f"a normalisation with open values: {normalisation!r}",
            expected="one that config.catalogue.complete has settled",
            code="internal",
        )
    return quantile, log1p


def _batches(group: Sequence[tuple[PatchStore, Sequence[int]]]) -> Batches:
    """Passes over the tissue of some slides, each with the channels it gives."""

    def once() -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
        for store, channels in group:
            yield from _tissue(store, list(channels))

    return once


def _tissue(store: PatchStore, channels: list[int]) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """Pixels (k, c, p, p) of the chosen channels and the mask (k, p, p) of what counts."""
    keep = np.flatnonzero(store.tissue > 0)
    has_tissue = bool(keep.size)
    keep = keep if has_tissue else np.arange(store.n)
    one = store.tile_px**2 * max(len(store.channels) * store.dtype.itemsize, len(channels) * 8)
    size = max(1, _BATCH_BYTES // one)
    for start in range(0, keep.size, size):
        part = keep[start : start + size]
        pixels = store.pixels(part)[:, channels]
        mask = tissue_pixels(store, part) if has_tissue else store.valid(part)
        if pixels.dtype.kind == "f":
            _check_finite(store, channels, pixels, mask)
        yield pixels, mask


def tissue_pixels(store: PatchStore, tiles: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Where patches show tissue: pixels on the slide that the outline covers at least half.

    Parameters
    ----------
    store : PatchStore
        Of a slide.
    tiles : (k,) integer array
        Which patches.

    Returns
    -------
    (k, p, p) bool array
        False in the padding.
    """
    mask = store.valid(tiles)
    for inside, tile in zip(mask, tiles.tolist(), strict=True):
        share = float(store.tissue[tile])
        if share <= 0:
            inside[:] = False
        elif share < 1:
            inside &= pixels_inside(store.outline, int(store.y_px[tile]), int(store.x_px[tile]), store.tile_px)
    return mask


def _check_finite(store: PatchStore, channels: Sequence[int], pixels: NDArray[Any], mask: NDArray[np.bool_]) -> None:
    bad = (~np.isfinite(pixels) & mask[:, None]).any(axis=(0, 2, 3))
    if bad.any():
        listed = ", ".join(store.channels[channels[index]].name for index in np.flatnonzero(bad).tolist())
        raise SlideError(
            f"values that are not finite in {listed}",
            where=store.slide_id,
            hint="Replace NaN and infinity in the image",
            code="non_finite_pixels",
        )
