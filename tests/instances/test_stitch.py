"""The same instances, byte for byte, for every window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slideloom.config.model import InstancesConfig
from slideloom.instances import giants
from slideloom.instances.hv_watershed import HVWatershed, hv_watershed
from slideloom.instances.scratch import SlideMaps
from slideloom.instances.stitch import stitch
from slideloom.instances.threshold import Threshold, threshold_instances

METHODS = [HVWatershed, Threshold]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    folders = iter(range(1000))

    def work(maps: SlideMaps, method: Any, window_px: int, halo_px: int = 16, giant_px: int = 2048) -> Any:
        place = tmp_path / str(next(folders))
        place.mkdir()
        found = stitch(maps, method, place, window_px=window_px, halo_px=halo_px, giant_px=giant_px)
        labels = found.final[np.asarray(found.draft)]
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
    return SlideMaps(nucleus, hv)


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
    for window_px, halo_px in ((64, 0), (64, 128), (97, 7), (128, 64), (256, 16)):
        labels, other = run(hard, method, window_px, halo_px)
        assert labels.tobytes() == whole.tobytes()
        np.testing.assert_array_equal(other.first, table.first)
        np.testing.assert_array_equal(other.box, table.box)


@pytest.mark.slow
def test_windows_change_nothing_on_a_large_slide(
    make_crowd: Callable[..., Any], make_maps: Callable[..., Any], run: Callable[..., Any]
) -> None:
    made = make_maps(make_crowd(5, (1300, 1500), 1200, 12), blur=1.5, noise=0.2)
    maps, method = SlideMaps(made.nucleus, made.hv), HVWatershed.from_config(InstancesConfig(), 0.25)
    results = {run(maps, method, window_px, 128)[0].tobytes() for window_px in (64, 200, 512, 1024, 2048, 4096)}
    assert len(results) == 1


def test_equal_to_the_window_function(hard: SlideMaps, run: Callable[..., Any]) -> None:
    config = InstancesConfig()
    for kind, expected in (
        (HVWatershed, hv_watershed(hard.nucleus, hard.hv, config=config)),
        (Threshold, threshold_instances(hard.nucleus, Threshold.from_config(config, 0.25).front)),
    ):
        labels, _ = run(hard, kind.from_config(config, 0.25), 100)
        pairs = np.unique(np.stack([labels.ravel(), expected.ravel()]), axis=1)
        assert pairs.shape[1] == len(np.unique(labels)) == len(np.unique(expected))


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("giant_px", [64, 2048])
def test_full_foreground_is_one_instance(kind: Any, giant_px: int, run: Callable[..., Any]) -> None:
    maps = SlideMaps(np.full((210, 190), 255, np.uint8), np.zeros((2, 210, 190), np.int8))
    method = kind.from_config(InstancesConfig(), 0.25)
    for window_px in (64, 150, 4096):
        labels, table = run(maps, method, window_px, giant_px=giant_px)
        assert (labels == 1).all()
        assert table.area.tolist() == [0, 210 * 190]


def test_empty_slide(run: Callable[..., Any]) -> None:
    maps = SlideMaps(np.zeros((70, 90), np.uint8), np.zeros((2, 70, 90), np.int8))
    labels, table = run(maps, HVWatershed.from_config(InstancesConfig(), 0.25), 64)
    assert not labels.any()
    assert len(table) == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (7, 3), (64, 65)])
def test_tiny_slides(shape: tuple[int, int], run: Callable[..., Any]) -> None:
    maps = SlideMaps(np.full(shape, 255, np.uint8), np.zeros((2, *shape), np.int8))
    labels, _ = run(maps, HVWatershed.from_config(InstancesConfig(min_area_um2=0), 0.25), 64)
    assert (labels == 1).all()


def test_giants_are_split_in_blocks_that_windows_do_not_move(
    hard: SlideMaps, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, pq: Callable[..., float]
) -> None:
    monkeypatch.setattr(giants, "BLOCK_PX", 96)
    monkeypatch.setattr(giants, "CONTEXT_PX", 48)
    method = HVWatershed.from_config(InstancesConfig(), 0.25)
    whole, _ = run(hard, method, 4096)
    split, _ = run(hard, method, 4096, giant_px=50)
    for window_px in (64, 97, 256):
        labels, _ = run(hard, method, window_px, giant_px=50)
        assert labels.tobytes() == split.tobytes()
    assert _raster(split)
    assert pq(whole, split) > 0.97
