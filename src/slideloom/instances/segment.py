"""Maps of a slide to its label image and its cell table."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from slideloom.artefacts.files import publish, scratch_beside
from slideloom.artefacts.zarrio import open_array, read_attributes
from slideloom.config.model import InstancesConfig
from slideloom.instances.cells import MarkerMeans, write_cells
from slideloom.instances.finding import Refiners, find_nuclei, one_thread_a_worker
from slideloom.instances.labels import open_labels, write_labels
from slideloom.instances.markers import check_frame, marker_sums
from slideloom.instances.measure import measured
from slideloom.instances.refine.stage import Refining
from slideloom.instances.seam_change import seam_change
from slideloom.instances.whole_cells import CELLS_HEAD, cell_areas, find_whole_cells, write_whole_cells
from slideloom.patches.store import PatchStore
from slideloom.slides.facts import SlideFacts
from slideloom.slides.tables import ClassTable

__all__ = ["SHIFTED", "segment_slide"]

_LOG = logging.getLogger(__name__)
#: Subgroup of a slide's maps: the same maps, predicted on a grid of tiles shifted by half a tile.
SHIFTED = "shifted"


def segment_slide(
    maps_path: Path,
    config: InstancesConfig,
    classes: ClassTable,
    facts: SlideFacts,
    patches: PatchStore | None,
    labels_place: Path,
    cells_place: Path,
    *,
    refiners: Refiners | None = None,
    workers: int = 1,
) -> int:
    """Find a slide's nuclei; write its label image and its cell table.

    Parameters
    ----------
    maps_path : Path
        Zarr group of the slide's maps. With ``instanseg_cells``, whole cells are found, too, and written beside the
        nuclei's labels (:mod:`slideloom.instances.whole_cells`). With a subgroup ``shifted``, the same maps from a grid
        of tiles shifted by half a tile, the share of nuclei that such a shift changes is measured and recorded with the
        labels.
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
    refiners : Refiners, optional
        What is done to the nuclei once they are found; the labels' attributes tell of it, and count (``refined``).
    workers : int
        Windows in work at once, each in a thread. Changes no byte.

    Returns
    -------
    int
        Number of nuclei.

    Raises
    ------
    SlideloomError
        ``missing_head``, ``missing_feature``, ``unknown_class``; ``maps_shape``: the tiles lie in another frame than
        the maps.
    """
    clock = _Clock()
    about = read_attributes(maps_path)
    heads: tuple[str, ...] = tuple(about["heads"])
    scale, mpp_um = float(about["scale"]), float(about["mpp_um"])
    height, width = open_array(maps_path / "nucleus").shape
    has_classes = "classes" in heads
    n_classes = len(classes) + 1 if has_classes else 0
    if patches is not None:
        check_frame(patches, (height, width), facts.slide_id, "maps")
    made_from = {
        "slide_id": facts.slide_id,
        "instances": config.model_dump(mode="json", exclude={"window_px"}),
        "maps": about,
    }
    if refiners is not None:
        made_from["refine"] = dict(refiners.about or {})
    attributes: dict[str, Any] = {"made_from": made_from}

    def find(place: Path, scratch: Path) -> Refining:
        return find_nuclei(place, about, config, scratch, refiners, n_classes=n_classes, workers=workers)

    with one_thread_a_worker():
        with scratch_beside(labels_place) as scratch:
            mended = find(maps_path, scratch / "own")
            found = mended.found
            if refiners is not None:
                attributes["refined"] = mended.counts
            clock.lap("found")
            cells = None
            if CELLS_HEAD in heads:
                cells = find_whole_cells(maps_path, about, found, config, scratch / CELLS_HEAD, workers=workers)
                clock.lap("cells found")
            if (maps_path / SHIFTED).is_dir():
                moved = find(maps_path / SHIFTED, scratch / SHIFTED).found
                attributes["seam_change"] = seam_change(found, moved, window_px=config.window_px, workers=workers)
                clock.lap("seams checked")
            with publish(labels_place) as draft:
                write_labels(draft, (height, width), found.read, mpp_um, attributes=attributes, workers=workers)
                if cells is not None:
                    write_whole_cells(draft, cells, mpp_um, {"made_from": made_from}, workers=workers)
            clock.lap("labels written")
        table, cell_area_px = found.table, None if cells is None else cell_areas(cells)
        counts = mended.counts
        del found, mended, cells
        labels = open_labels(labels_place)
        means = None
        if patches is not None and not patches.is_rgb:
            means = MarkerMeans.of(patches.channels, *marker_sums(labels, patches, len(table), workers=workers))
            clock.lap("markers added up")
        names = ("nucleus", "class_id", "class_probability") if has_classes else ("nucleus",)
        figures = measured(
            labels,
            {name: open_array(maps_path / name) for name in names},
            table,
            n_classes=n_classes,
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
            cell_area_px=cell_area_px,
        )
        clock.lap("cells written")
    _LOG.info(
        "%s: %d nuclei%s on %.1f Mpx in %s",
        facts.slide_id,
        len(table) - 1,
        "" if refiners is None else " ({found} found, {split} of them split, {dropped} dropped)".format(**counts),
        height * width / 1e6,
        clock,
    )
    return len(table) - 1


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
