"""Maps of a slide to its label image and its cell table."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from slideloom.artefacts.files import publish, scratch_beside
from slideloom.artefacts.zarrio import open_array, read_attributes
from slideloom.config.model import InstancesConfig
from slideloom.errors import SlideloomError
from slideloom.instances.boundary_watershed import BoundaryWatershed
from slideloom.instances.cells import MarkerMeans, write_cells
from slideloom.instances.distance_map_watershed import DistanceMapWatershed
from slideloom.instances.distance_watershed import DistanceWatershed
from slideloom.instances.hv_watershed import HVWatershed
from slideloom.instances.instanseg import InstanSegParams
from slideloom.instances.instanseg_classifier import SeedClassifier
from slideloom.instances.instanseg_stitch import stitch_instanseg
from slideloom.instances.labels import open_labels, write_labels
from slideloom.instances.markers import check_frame, marker_sums
from slideloom.instances.measure import measured
from slideloom.instances.method import Method
from slideloom.instances.seam_change import seam_change
from slideloom.instances.stitch import SlideMaps, Stitched, stitch
from slideloom.instances.threshold import Threshold
from slideloom.patches.store import PatchStore
from slideloom.slides.facts import SlideFacts
from slideloom.slides.tables import ClassTable

__all__ = ["SHIFTED", "choose_method", "one_thread_a_worker", "segment_slide"]

_LOG = logging.getLogger(__name__)
#: Subgroup of a slide's maps: the same maps, predicted on a grid of tiles shifted by half a tile.
SHIFTED = "shifted"


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


def segment_slide(
    maps_path: Path,
    config: InstancesConfig,
    classes: ClassTable,
    facts: SlideFacts,
    patches: PatchStore | None,
    labels_place: Path,
    cells_place: Path,
    *,
    workers: int = 1,
) -> int:
    """Find a slide's nuclei; write its label image and its cell table.

    Parameters
    ----------
    maps_path : Path
        Zarr group of the slide's maps. With a subgroup ``shifted``, the same maps from a grid of tiles shifted by half
        a tile, the share of nuclei that such a shift changes is measured and recorded with the labels.
    config : InstancesConfig
        Method, thresholds, sizes. ``window_px`` changes memory and speed only.
    classes : ClassTable
        What the class map's ids mean.
    facts : SlideFacts
        The slide.
    patches : PatchStore or None
        Its tiles, for the mean of every marker; they must lie in the maps' own frame. None: no means.
    labels_place : Path
        OME-Zarr label image to write.
    cells_place : Path
        GeoParquet file to write.
    workers : int
        Windows in work at once, each in a thread. Changes no byte.

    Returns
    -------
    int
        Number of nuclei.

    Raises
    ------
    SlideloomError
        ``missing_head``; ``maps_shape``: the tiles lie in another frame than the maps; ``unknown_class``.
    """
    clock = _Clock()
    about = read_attributes(maps_path)
    heads: tuple[str, ...] = tuple(about["heads"])
    scale, mpp_um = float(about["scale"]), float(about["mpp_um"])
    method = choose_method(config, mpp_um, heads)
    maps = _open_maps(maps_path, method)
    if patches is not None:
        check_frame(patches, maps.shape, facts.slide_id, "maps")
    made_from = {
        "slide_id": facts.slide_id,
        "instances": config.model_dump(mode="json", exclude={"window_px"}),
        "maps": about,
    }
    attributes: dict[str, Any] = {"made_from": made_from}
    with one_thread_a_worker():
        with scratch_beside(labels_place) as scratch:
            found = _stitch(maps, method, scratch / "own", config, about, workers)
            clock.lap("found")
            if (maps_path / SHIFTED).is_dir():
                other = _open_maps(maps_path / SHIFTED, method)
                moved = _stitch(other, method, scratch / SHIFTED, config, about, workers)
                attributes["seam_change"] = seam_change(found, moved, window_px=config.window_px, workers=workers)
                clock.lap("seams checked")
            with publish(labels_place) as draft:
                write_labels(draft, maps.shape, found.read, mpp_um, attributes=attributes, workers=workers)
            clock.lap("labels written")
        table = found.table
        del found
        labels = open_labels(labels_place)
        means = None
        if patches is not None and not patches.is_rgb:
            means = MarkerMeans.of(patches.channels, *marker_sums(labels, patches, len(table), workers=workers))
            clock.lap("markers added up")
        has_classes = "classes" in heads
        names = ("nucleus", "class_id", "class_probability") if has_classes else ("nucleus",)
        figures = measured(
            labels,
            {name: open_array(maps_path / name) for name in names},
            table,
            n_classes=len(classes) + 1 if has_classes else 0,
            scale=scale,
            window_px=config.window_px,
            workers=workers,
        )
        write_cells(
            cells_place,
            facts.slide_id,
            table,
            figures,
            classes if has_classes else None,
            means,
            scale=scale,
            image_mpp_um=facts.image(about["image"]).mpp_um,
            made_from=made_from,
        )
        clock.lap("cells written")
    _LOG.info(
        "%s: %d nuclei on %.1f Mpx in %s",
        facts.slide_id,
        len(table) - 1,
        maps.shape[0] * maps.shape[1] / 1e6,
        clock,
    )
    return len(table) - 1


def _open_maps(place: Path, method: Method | _InstanSeg) -> SlideMaps:
    return SlideMaps({name: open_array(place / name) for name in ("nucleus", *method.reads)})


def _stitch(
    maps: SlideMaps,
    method: Method | _InstanSeg,
    scratch: Path,
    config: InstancesConfig,
    about: Mapping[str, Any],
    workers: int,
) -> Stitched:
    scratch.mkdir()
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


class _Clock:
    """Where the time went."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: list[str] = []

    def lap(self, name: str) -> None:
        """Name what has been done since the last lap."""
        now = time.perf_counter()
        self._laps.append(f"{name} in {now - self._last:.1f} s")
        self._last = now

    def __str__(self) -> str:
        return f"{self._last - self._start:.1f} s: {', '.join(self._laps)}"
