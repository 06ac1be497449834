"""The nuclei of a slide's maps: found by the method that the config names, then mended where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from slideloom.artefacts.zarrio import open_array
from slideloom.config.model import InstancesConfig
from slideloom.errors import SlideloomError
from slideloom.instances.boundary_watershed import BoundaryWatershed
from slideloom.instances.distance_map_watershed import DistanceMapWatershed
from slideloom.instances.distance_watershed import DistanceWatershed
from slideloom.instances.hv_watershed import HVWatershed
from slideloom.instances.instanseg import InstanSegParams, as_published
from slideloom.instances.instanseg_classifier import SeedClassifier
from slideloom.instances.instanseg_stitch import stitch_instanseg
from slideloom.instances.method import Method
from slideloom.instances.refine.splitter import SplitSettings
from slideloom.instances.refine.stage import FEATURE_MAPS, Refining, refine_instances
from slideloom.instances.refine.verifier import Verifier
from slideloom.instances.stitch import SlideMaps, Stitched, stitch
from slideloom.instances.threshold import Threshold

__all__ = ["Refiners", "choose_method", "feature_maps", "find_nuclei", "one_thread_a_worker"]


@dataclass(frozen=True)
class _InstanSeg:
    """InstanSeg's seeds, which flood nothing: they are stitched in a way of their own."""

    params: InstanSegParams
    reads: tuple[str, ...] = ("instanseg",)

    @classmethod
    def from_config(cls, config: InstancesConfig, mpp_um: float) -> _InstanSeg:
        """Scale the config's physical sizes to a slide's pixels."""
        return cls(InstanSegParams.from_config(config, mpp_um))


@dataclass(frozen=True)
class _Way:
    """How a method is made, its name, and the heads of which one gives what it reads; none: any will do."""

    name: str
    make: Any
    heads: tuple[str, ...] = ()

    def can(self, heads: Sequence[str]) -> bool:
        """Whether maps of these heads hold what it reads."""
        return not self.heads or any(head in heads for head in self.heads)


#: In the order in which ``auto`` tries them.
_WAYS = (
    _Way("instanseg", _InstanSeg.from_config, ("instanseg",)),
    _Way("hv_watershed", HVWatershed.from_config, ("hv",)),
    _Way("boundary_watershed", BoundaryWatershed.from_config, ("boundary", "three_class")),
    _Way("distance_watershed", DistanceMapWatershed.from_config, ("distance",)),
    _Way("threshold", Threshold.from_config),
    _Way("distance_watershed", DistanceWatershed.from_config),
)


@dataclass(frozen=True, eq=False)
class Refiners:
    """What follows once nuclei are found, in this order; nothing by default.

    Attributes
    ----------
    split : SplitSettings, optional
        How merged ones are split.
    verifier : Verifier, optional
        Drops what it doubts.
    about : dict
        JSON values, for the record of what labels were made from.
    """

    split: SplitSettings | None = None
    verifier: Verifier | None = None
    about: Mapping[str, Any] | None = None


def choose_method(config: InstancesConfig, mpp_um: float, heads: tuple[str, ...]) -> Method | _InstanSeg:
    """The method that the config names, its sizes in pixels of the maps.

    Parameters
    ----------
    config : InstancesConfig
        ``auto`` takes the first of ``instanseg``, ``hv_watershed``, ``boundary_watershed``, ``distance_watershed``
        (with the head distance) and ``threshold`` that the heads allow.
    mpp_um : float
        Pixel size of the maps, µm.
    heads : tuple of str
        Of the decoder that made them.

    Raises
    ------
    SlideloomError
        ``missing_head``: the method reads a map that the decoder does not give.
    """
    ways = [way for way in _WAYS if config.method in ("auto", way.name)]
    way = next((way for way in ways if way.can(heads)), None)
    if way is None:
        wanted = " or ".join(ways[0].heads)
        raise SlideloomError(
            f"method {config.method} on maps with the heads {', '.join(heads)}",
            where="instances.method",
            expected=f"the head {wanted}",
            hint=f"Add {wanted} to the experiment's heads, or set instances.method to threshold",
            code="missing_head",
        )
    method: Method | _InstanSeg = way.make(config, mpp_um)
    return method


def feature_maps(place: Path) -> dict[str, Any]:
    """Those of a slide's maps that features of nuclei are made of, open."""
    return {name: open_array(place / name) for name in FEATURE_MAPS if (place / name).is_dir()}


def find_nuclei(
    place: Path,
    about: Mapping[str, Any],
    config: InstancesConfig,
    scratch: Path,
    refiners: Refiners | None = None,
    *,
    n_classes: int = 0,
    workers: int = 1,
) -> Refining:
    """Find a slide's nuclei, and mend them.

    Parameters
    ----------
    place : Path
        Zarr group of the maps.
    about : mapping
        Attributes of the slide's maps: ``heads``, ``mpp_um``, ``pixel_classifier`` and, of a model that was published
        with thresholds of its own, ``instanseg_published`` are read.
    config : InstancesConfig
        Method, thresholds, sizes. ``window_px`` changes memory and speed only.
    scratch : Path
        Folder to make, for a working array that the result reads.
    refiners : Refiners, optional
        What follows.
    n_classes : int
        Classes including background, where the maps have classes; else 0. A verifier reads them.
    workers : int
        Windows in work at once, each in a thread. Changes no byte.

    Returns
    -------
    Refining
        The nuclei and, of what was done to them, the counts.

    Raises
    ------
    SlideloomError
        ``missing_head``, ``missing_feature``, ``unknown_class``.
    """
    scratch.mkdir()
    mpp_um, refiners = float(about["mpp_um"]), refiners or Refiners()
    config = as_published(config, about.get("instanseg_published", {}))
    method = choose_method(config, mpp_um, tuple(about["heads"]))
    maps = SlideMaps({name: open_array(place / name) for name in dict.fromkeys(("nucleus", *method.reads))})
    return refine_instances(
        _stitched(maps, method, scratch, config, about, workers),
        feature_maps(place),
        mpp_um=mpp_um,
        split=refiners.split,
        verifier=refiners.verifier,
        n_classes=n_classes,
        window_px=config.window_px,
        workers=workers,
    )


def _stitched(
    maps: SlideMaps,
    method: Method | _InstanSeg,
    scratch: Path,
    config: InstancesConfig,
    about: Mapping[str, Any],
    workers: int,
) -> Stitched:
    if isinstance(method, _InstanSeg):
        classifier = SeedClassifier.of_state(about.get("pixel_classifier", {}))
        return stitch_instanseg(maps, method.params, classifier, scratch, window_px=config.window_px, workers=workers)
    return stitch(maps, method, scratch, window_px=config.window_px, workers=workers)


@contextmanager
def one_thread_a_worker() -> Iterator[None]:
    """Keep OpenCV's filters in the thread that calls them: there are as many workers as there are cores to use."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
