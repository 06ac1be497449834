"""InstanSeg's maps to nuclei: what its two published post-processings have in common and where they differ.

A network gives five maps: where a pixel's embedding lies from the pixel itself (across and down), two sigmas, and a
seed map that is high in the middle of nuclei. Seeds are the highest places of the seed map; each claims pixels inside a
window (:mod:`slideloom.instances.instanseg_claims`); a pixel goes to the seed that wants it most; seeds whose claims
overlap enough are one nucleus, and so are those that are joined over others.

What the originals do and this does not: an image smaller than a window is not indexed around its ends; fills have no
greatest number of steps; more than 2000 seeds are no error; with the program's own clean-up (preset ``python``) a
mask threshold of 0.5 or less does not turn windows into foreground; and a seed that claims nothing does not shift the
filters of the seeds after it, unless ``shifted_filters`` says so.

Source: Goldsborough et al., InstanSeg: an embedding-based instance segmentation algorithm optimized for accurate,
efficient and portable cell segmentation (2024), and the program published with it (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slideloom.config.model import InstancesConfig
from slideloom.config.prediction import InstanSegConfig
from slideloom.instances.instanseg_claims import claim, find_seeds, shared_pixels
from slideloom.instances.instanseg_classifier import SeedClassifier, lowest_logit, probability
from slideloom.instances.threshold import area_px
from slideloom.instances.windows import Box, LabelTable, label_table

__all__ = [
    "OFFSET_CODES",
    "SEED_CODES",
    "SIGMA_CODES",
    "Claims",
    "InstanSegParams",
    "as_published",
    "claims_in",
    "local_maxima",
    "reach",
]

#: Whole numbers a unit of the embedding, of sigma and of the seed map, where maps are kept as int16.
OFFSET_CODES, SIGMA_CODES, SEED_CODES = 8191, 4095, 16383


@dataclass(frozen=True)
class InstanSegParams:
    """Thresholds and sizes. Lengths in pixels of the maps.

    Attributes
    ----------
    mask_threshold : float
        Probability from which a seed claims a pixel.
    seed_threshold : float
        Seeds are higher in the seed map.
    peak_distance_px : int
        A seed is the highest so many pixels to the sides, up and down.
    overlap_threshold : float
        Seeds whose claims' intersection over union is greater are one nucleus.
    window_px : int
        Side of the square around a seed in which it claims pixels; an odd one loses a pixel, and a slide that is
        smaller has smaller windows.
    cleanup : bool
        A seed keeps the piece of its claim that it lies in, holes filled.
    hole_probability : {"threshold", "logit"}
        Probability of filled holes: the mask threshold itself, or its sigmoid.
    min_claim_px : int
        A nucleus whose first seed claims no more pixels is dropped, whatever else was joined to it.
    min_mean : float
        So is one whose first seed's claim has a mean in the seed map that is no greater.
    min_area_px : int
        Nuclei of fewer pixels are dropped.
    shifted_filters : bool
        As in the training program, where the k-th of the seeds that claim anything decides about the k-th seed's
        nucleus by these two: the same but where a seed before claims nothing. For comparisons with it only.
    unit : float
        What one pixel adds to the embedding; 0.25 · width / (width - 1) in the original, 0.25 here.
    """

    mask_threshold: float = 0.53
    seed_threshold: float = 0.7
    peak_distance_px: int = 5
    overlap_threshold: float = 0.3
    window_px: int = 64
    cleanup: bool = True
    hole_probability: Literal["threshold", "logit"] = "threshold"
    min_claim_px: int = 0
    min_mean: float = -math.inf
    min_area_px: int = 0
    shifted_filters: bool = False
    unit: float = 0.25

    @classmethod
    def preset(cls, name: Literal["torchscript", "python"], **changes: Any) -> InstanSegParams:
        """Constants of the published models (``torchscript``) or of the training program (``python``), and changes."""
        if name == "torchscript":
            return cls(**changes)
        own = cls(
            seed_threshold=0.5,
            peak_distance_px=4,
            overlap_threshold=0.5,
            window_px=128,
            cleanup=False,
            hole_probability="logit",
            min_claim_px=10,
        )
        return replace(own, **changes)

    @classmethod
    def from_config(cls, config: InstancesConfig, mpp_um: float) -> InstanSegParams:
        """The config's preset and changes, and its smallest area in a slide's pixels.

        Parameters
        ----------
        config : InstancesConfig
            ``instanseg`` and ``min_area_um2`` are read.
        mpp_um : float
            Pixel size of the maps, µm.
        """
        own = config.instanseg
        given = {
            "mask_threshold": own.mask_threshold,
            "seed_threshold": own.seed_threshold,
            "peak_distance_px": own.peak_distance_px,
            "overlap_threshold": own.overlap_threshold,
            "window_px": own.window_px,
            "cleanup": own.cleanup,
            "min_claim_px": own.min_area_px,
        }
        changes = {key: value for key, value in given.items() if value is not None}
        return cls.preset(own.preset, min_area_px=area_px(config.min_area_um2, mpp_um), **changes)

    def side_px(self, shape: tuple[int, int]) -> int:
        """Side of the windows on a slide of some height and width: even."""
        side = min(self.window_px, *shape)
        return side - side % 2


def as_published(config: InstancesConfig, published: Mapping[str, Any]) -> InstancesConfig:
    """The config of a model that brings thresholds of its own: they stand where the config gives none.

    Parameters
    ----------
    config : InstancesConfig
        As written; only ``instanseg`` can change, and nothing where its ``preset`` is ``python``.
    published : mapping
        The model's thresholds, by their names in ``instanseg``; may be empty.

    Returns
    -------
    InstancesConfig
        With them.

    Examples
    --------
    >>> own = InstancesConfig(instanseg={"seed_threshold": 0.6})
    >>> as_published(own, {"seed_threshold": 0.9, "mask_threshold": 0.4}).instanseg.model_dump(exclude_none=True)
    {'preset': 'torchscript', 'mask_threshold': 0.4, 'seed_threshold': 0.6}
    """
    own = config.instanseg
    if own.preset != "torchscript" or not published:
        return config
    given = own.model_dump(exclude_none=True)
    return config.model_copy(update={"instanseg": InstanSegConfig(**{**published, **given})})


@dataclass(frozen=True)
class Claims:
    """What is known of the seeds in a box, and of those outside that claim pixels in it.

    Attributes
    ----------
    seeds : (k,) int64 array
        Their places on the slide, y · width + x, rising.
    area : (k,) int64 array
        Pixels of the box that each claims.
    total : (k,) float64 array
        Sum of the seed map over them, in the maps' own numbers.
    pairs : (p, 2) int64 array
        Places of two seeds that claim some pixels both, the lower first.
    shared : (p,) int64 array
        How many pixels of the box.
    labels : (h, w) int32 array
        1 … a for the seeds that got pixels.
    owners : (a,) int64 array
        Places of these seeds.
    table : LabelTable
        Where the labels lie.
    """

    seeds: NDArray[np.int64]
    area: NDArray[np.int64]
    total: NDArray[np.float64]
    pairs: NDArray[np.int64]
    shared: NDArray[np.int64]
    labels: NDArray[np.int32]
    owners: NDArray[np.int64]
    table: LabelTable


def reach(box: Box, shape: tuple[int, int], params: InstanSegParams) -> tuple[Box, Box]:
    """Where the seeds lie that may claim pixels of a box, and what has to be read to find them and their claims.

    Windows are moved inward at the slide's borders, so near them seeds reach farther.
    """
    side = params.side_px(shape)
    seeds, read = [], []
    for low, high, size in ((box.top, box.bottom, shape[0]), (box.left, box.right, shape[1])):
        first = 0 if low < side else low - side // 2 + 1
        last = size if high > size - side else high + side // 2
        far = params.peak_distance_px
        start, stop = _starts(np.array([first, last - 1]), side, size).tolist()
        seeds.append((first, last))
        read.append((max(min(start, first - far), 0), min(max(stop + side, last + far), size)))
    (top, bottom), (left, right) = seeds
    (upper, lower), (outer, end) = read
    return Box(top, left, bottom, right), Box(upper, outer, lower, end)


def _starts(seeds: NDArray[np.int64], side: int, size: int) -> NDArray[np.int64]:
    """First pixels of the windows of seeds, along one axis."""
    return np.clip(seeds - side // 2, 0, size - side)


def claims_in(
    maps: NDArray[Any],
    read: Box,
    box: Box,
    shape: tuple[int, int],
    params: InstanSegParams,
    classifier: SeedClassifier,
) -> Claims:
    """Seeds and claims of a box of the slide.

    Parameters
    ----------
    maps : (5, H, W) array
        Embedding across and down, two sigmas, seed map, of ``read``: int16 codes, or float32 values.
    read, box : Box
        What the maps cover, at least what :func:`reach` asks for, and what is worked on.
    shape : (int, int)
        Height and width of the slide.
    params : InstanSegParams
        Thresholds and sizes.
    classifier : SeedClassifier
        Tells pixels.
    """
    side = params.side_px(shape)
    codes = maps.dtype == np.int16
    where, _ = reach(box, shape, params)
    rows, columns = where.within(read)
    level, threshold = maps[4], params.seed_threshold
    floor = threshold * SEED_CODES if codes else float(np.float32(threshold))
    seeds = find_seeds(level, floor, params.peak_distance_px, rows.start, columns.start, rows.stop, columns.stop)
    at = seeds + np.array([read.top, read.left])
    starts = np.stack([_starts(at[:, axis], side, shape[axis]) for axis in (0, 1)], axis=1)
    starts -= np.array([read.top, read.left])
    scales = np.array([1 / OFFSET_CODES if codes else 1, 1 / SIGMA_CODES if codes else 1, params.unit], np.float32)
    least = np.float32(lowest_logit(params.mask_threshold))
    inner = box.within(read)
    owner, runs, begin, area, total = claim(
        maps[:4], scales, level, seeds, starts, side, classifier.arrays, least, _hole(params), params.cleanup,
        inner[0].start, inner[1].start, inner[0].stop, inner[1].stop,
    )  # fmt: skip
    pairs, shared = shared_pixels(runs, begin, max(side, 1), box.height, box.width)
    places = at[:, 0] * shape[1] + at[:, 1]
    present = np.unique(owner)
    present = present[present > 0]
    number = np.zeros(len(seeds) + 1, np.int32)
    number[present] = np.arange(1, len(present) + 1)
    labels = number[owner]
    own = (at >= (box.top, box.left)).all(axis=1) & (at < (box.bottom, box.right)).all(axis=1)
    some = own | (area > 0)
    return Claims(
        places[some],
        area[some],
        total[some],
        places[pairs],
        shared,
        labels,
        places[present - 1],
        label_table(labels, len(present), box, shape[1]),
    )


def _hole(params: InstanSegParams) -> np.float32:
    """Probability of filled holes; -1 where it is too low for them to be claimed."""
    threshold = np.float32(params.mask_threshold)
    chance = threshold if params.hole_probability == "threshold" else np.float32(probability(threshold))
    return chance if chance >= threshold else np.float32(-1)


def local_maxima(seed: NDArray[Any], threshold: float, distance_px: int) -> NDArray[np.int64]:
    """Seeds of a seed map.

    Parameters
    ----------
    seed : (H, W) array
        The map.
    threshold : float
        Seeds are higher.
    distance_px : int
        A seed is the highest so many pixels to the sides, up and down; of a plateau, its first pixel in raster order.

    Returns
    -------
    (n, 2) int64 array
        y, x in raster order.
    """
    found: NDArray[np.int64] = find_seeds(seed, float(np.float32(threshold)), distance_px, 0, 0, *seed.shape)
    return found
