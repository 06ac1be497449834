"""Maps of a slide to its label image and its cell table."""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.artefacts.files import publish
from slideloom.artefacts.zarrio import open_array, read_attributes
from slideloom.config.model import InstancesConfig
from slideloom.errors import SlideloomError
from slideloom.instances.cells import MarkerMeans, write_cells
from slideloom.instances.hv_watershed import HVWatershed
from slideloom.instances.labels import open_labels, write_labels
from slideloom.instances.measure import marker_sums, measure
from slideloom.instances.scratch import Method, SlideMaps
from slideloom.instances.stitch import Stitched, stitch
from slideloom.instances.threshold import Threshold
from slideloom.instances.windows import Box
from slideloom.patches.store import PatchStore
from slideloom.slides.facts import SlideFacts
from slideloom.slides.tables import ClassTable

__all__ = ["choose_method", "segment_slide"]

_LOG = logging.getLogger(__name__)


def choose_method(config: InstancesConfig, mpp_um: float, heads: tuple[str, ...]) -> Method:
    """The method that the config names, its sizes in pixels of the maps.

    Raises
    ------
    SlideloomError
        ``missing_head``: the method reads a map that the decoder does not give.
    """
    if config.method == "threshold" or (config.method == "auto" and "hv" not in heads):
        return Threshold.from_config(config, mpp_um)
    if "hv" not in heads:
        raise SlideloomError(
            f"method hv_watershed on maps with the heads {', '.join(heads)}",
            where="instances.method",
            expected="an hv head",
            hint="Add hv to the experiment's heads, or set instances.method to threshold",
            code="missing_head",
        )
    return HVWatershed.from_config(config, mpp_um)


def segment_slide(
    maps_path: Path,
    config: InstancesConfig,
    classes: ClassTable,
    facts: SlideFacts,
    patches: PatchStore | None,
    labels_place: Path,
    cells_place: Path,
) -> int:
    """Find a slide's nuclei; write its label image and its cell table.

    Parameters
    ----------
    maps_path : Path
        Zarr group of the slide's maps.
    config : InstancesConfig
        Method, thresholds, sizes. ``window_px`` and ``halo_px`` change memory and speed only.
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

    Returns
    -------
    int
        Number of nuclei.

    Raises
    ------
    SlideloomError
        ``missing_head``; ``maps_shape``: the tiles lie in another frame than the maps; ``unknown_class``.
    """
    start = time.perf_counter()
    about = read_attributes(maps_path)
    heads: tuple[str, ...] = tuple(about["heads"])
    scale, mpp_um = float(about["scale"]), float(about["mpp_um"])
    method = choose_method(config, mpp_um, heads)
    nucleus = open_array(maps_path / "nucleus")
    hv = open_array(maps_path / "hv") if isinstance(method, HVWatershed) else None
    maps = SlideMaps(nucleus, hv)
    if patches is not None and (patches.height_px, patches.width_px) != maps.shape:
        raise SlideloomError(
            f"tiles of a frame of {patches.height_px} x {patches.width_px} px",
            where=facts.slide_id,
            expected=f"{maps.shape[0]} x {maps.shape[1]} px, as the maps",
            hint="Run the maps stage again",
            code="maps_shape",
        )
    made_from = {
        "slide_id": facts.slide_id,
        "instances": config.model_dump(mode="json", exclude={"window_px", "halo_px"}),
        "maps": about,
    }
    labels_place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".instances-", dir=labels_place.parent) as scratch:
        found = stitch(maps, method, Path(scratch), window_px=config.window_px, halo_px=config.halo_px)
        found_at = time.perf_counter()
        with publish(labels_place) as draft:
            write_labels(draft, maps.shape, _reader(found), mpp_um, attributes={"made_from": made_from})
    labelled_at = time.perf_counter()
    has_classes = "classes" in heads
    names = ("nucleus", "class_id", "class_probability") if has_classes else ("nucleus",)
    labels = open_labels(labels_place)
    figures = measure(
        labels,
        {name: open_array(maps_path / name) for name in names},
        found.table,
        n_classes=len(classes) + 1 if has_classes else 0,
        scale=scale,
        window_px=config.window_px,
    )
    means = None
    if patches is not None and not patches.is_rgb:
        means = MarkerMeans.of(patches.channels, *marker_sums(labels, patches, found.n + 1))
    write_cells(
        cells_place,
        facts.slide_id,
        figures,
        classes if has_classes else None,
        means,
        scale=scale,
        image_mpp_um=facts.image(about["image"]).mpp_um,
        made_from=made_from,
    )
    done = time.perf_counter()
    _LOG.info(
        "%s: %d nuclei on %.1f Mpx in %.1f s: found in %.1f s, labels written in %.1f s, cells in %.1f s",
        facts.slide_id,
        found.n,
        maps.shape[0] * maps.shape[1] / 1e6,
        done - start,
        found_at - start,
        labelled_at - found_at,
        done - labelled_at,
    )
    return found.n


def _reader(found: Stitched) -> Any:
    def read(box: Box) -> NDArray[np.uint32]:
        numbered: NDArray[np.uint32] = found.final[np.asarray(found.draft[box.slices])]
        return numbered

    return read
