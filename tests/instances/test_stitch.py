"""The same instances, byte for byte, for every window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slideloom.config.model import InstancesConfig
from slideloom.instances.hv_watershed import HVWatershed
from slideloom.instances.stitch import SlideMaps, find_instances, stitch
from slideloom.instances.threshold import Threshold
from slideloom.instances.windows import Box

METHODS = [HVWatershed, Threshold]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    folders = iter(range(1000))

    def work(maps: SlideMaps, method: Any, window_px: int, **options: Any) -> Any:
        place = tmp_path / str(next(folders))
        place.mkdir()
        found = stitch(maps, method, place, window_px=window_px, **options)
        labels = found.read(Box(0, 0, *maps.shape))
        assert labels.dtype == np.uint32
        np.testing.assert_array_equal(np.bincount(labels.ravel(), minlength=found.n + 1)[1:], found.table.area[1:])
        return labels, found.table

    return work


@pytest.fixture(scope="module")
def hard(make_crowd: Callable[..., Any], make_maps: Callable[..., Any]) -> SlideMaps:
    """Crowded nuclei, bars across the slide in both directions, a ring round others, speckle, holes."""
    made = make_maps(make_crowd(1, (300, 340), 150, 9), blur=1.5, noise=0.2)
    nucleus, hv = made.nucleus.copy(), made.hv.copy()
    nucleus[150:154, 5:335] = nucleus[5:295, 200:203] = 230
    hv[:, 150:154, 5:335] = 0
    y, x = np.mgrid[:300, :340]
    ring = np.abs(np.hypot(y - 80, x - 90) - 60) < 3
    nucleus[ring] = 240
    nucleus[::31, ::29] = 0
    nucleus[::47, ::43] = 255
    return SlideMaps({"nucleus": nucleus, "hv": hv})


def _raster(labels: np.ndarray) -> bool:
    values, first = np.unique(labels, return_index=True)
    order = values[np.argsort(first)]
    return bool((order[order > 0] == np.arange(1, len(order[order > 0]) + 1)).all())


@pytest.mark.parametrize("kind", METHODS)
def test_windows_and_halos_change_nothing(kind: Any, hard: SlideMaps, run: Callable[..., Any]) -> None:
    method = kind.from_config(InstancesConfig(), 0.25)
    whole, table = run(hard, method, 4096)
    assert whole.max() > 10
    assert _raster(whole)
    assert np.array_equal(find_instances(hard, method), whole)
    for window_px, workers in ((64, 1), (64, 3), (97, 2), (128, 1), (256, 4), (13, 2)):
        labels, other = run(hard, method, window_px, workers=workers)
        assert labels.tobytes() == whole.tobytes()
        np.testing.assert_array_equal(other.first, table.first)
        np.testing.assert_array_equal(other.box, table.box)


