"""Split and drop together, on stitched slides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slideloom.config.model import InstancesConfig
from slideloom.instances.labels import open_labels, write_labels
from slideloom.instances.measure import measure
from slideloom.instances.refine.features import instance_features
from slideloom.instances.refine.fit import FitSettings, fit_verifier
from slideloom.instances.refine.found import LabelArray
from slideloom.instances.refine.splitter import SplitSettings
from slideloom.instances.refine.stage import refine_instances
from slideloom.instances.refine.verifier import Verifier
from slideloom.instances.stitch import SlideMaps, stitch
from slideloom.instances.threshold import Threshold

MPP = 0.5


def small(labels: np.ndarray) -> Verifier:
    """One that keeps what is large."""
    shapes = instance_features(LabelArray.of(labels), {}, mpp_um=MPP)
    area = shapes["area_um2"]
    image = np.arange(len(area)) % 5
    settings = FitSettings(hidden=0, least=3, resamples=10)
    verifier, _ = fit_verifier(shapes, area > np.quantile(area, 0.3), image, np.full(5, len(area) // 5), settings)
    return verifier


@pytest.mark.parametrize(("window_px", "workers"), [(64, 1), (100, 3), (2048, 2)])
def test_windows_change_no_byte_and_the_tables_fit(
    tmp_path: Path, make_crowd: Any, make_maps: Any, window_px: int, workers: int
) -> None:
    made = make_maps(make_crowd(1, (230, 260), 110, 8.0), blur=0.7)
    maps = {"nucleus": made.nucleus, "hv": made.hv}
    method = Threshold.from_config(InstancesConfig(), MPP)
    verifier = small(made.truth)
    results = []
    for name, px, count in (("one", 260, 1), ("cut", window_px, workers)):
        (tmp_path / name).mkdir()
        found = stitch(SlideMaps(maps), method, tmp_path / name, window_px=px)
        results.append(
            refine_instances(
                found, maps, mpp_um=MPP, split=SplitSettings(), verifier=verifier, threshold=0.5, window_px=px,
                workers=count,
            )
        )  # fmt: skip
    one, cut = results
    assert one.counts == cut.counts
    assert one.counts["split"] > 5
    assert one.counts["dropped"] > 5
    assert one.counts["after_split"] > one.counts["found"]
    frame = one.found.grid.frame
    labels = one.found.read(frame)
    np.testing.assert_array_equal(labels, cut.found.read(frame))
    assert one.features is not None
    assert cut.features is not None
    assert one.features.values.tobytes() == cut.features.values.tobytes()
    again = LabelArray.of(labels)
    np.testing.assert_array_equal(again.labels, labels)
    # Downstream they are a slide's instances as any others.
    place = tmp_path / "labels.ome.zarr"
    write_labels(place, (frame.bottom, frame.right), cut.found.read, MPP)
    figures = measure(open_labels(place), maps, cut.found.table, window_px=100)
    np.testing.assert_array_equal(figures.area, np.bincount(labels.ravel())[1:])
    np.testing.assert_allclose(figures.nucleus / (255 * figures.area), one.features["nucleus_mean"])


def test_nothing_asked_for_changes_nothing(make_crowd: Any) -> None:
    found = LabelArray.of(make_crowd(2, (80, 95), 20, 6.0))
    result = refine_instances(found, {}, mpp_um=MPP)
    assert result.found is found
    assert result.features is None
    assert result.counts == {
        "found": found.n, "suspects": 0, "split": 0, "after_split": found.n, "dropped": 0, "left": found.n,
    }  # fmt: skip
