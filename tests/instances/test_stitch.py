"""The same instances, byte for byte, for every window, number of workers and order; all methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from slideloom.config.model import InstancesConfig
from slideloom.instances.boundary_watershed import BoundaryWatershed
from slideloom.instances.distance_watershed import DistanceWatershed
from slideloom.instances.hv_watershed import HVWatershed
from slideloom.instances.method import HIGHEST_LEVEL, Method
from slideloom.instances.stitch import SlideMaps, find_instances, stitch
from slideloom.instances.threshold import Threshold
from slideloom.instances.windows import Box
from slideloom.patches.hv import boundary_map, hv_map_int8

KINDS: list[Any] = [HVWatershed, BoundaryWatershed, DistanceWatershed, Threshold]
#: Sides of windows, workers, and whether the order is shuffled.
RUNS = ((64, 1, False), (97, 2, True), (128, 4, True), (500, 1, False))


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    folders: Iterator[int] = iter(range(1000))

    def work(maps: SlideMaps, method: Method, window_px: int, workers: int = 1, shuffle: bool = False) -> Any:
        place = tmp_path / str(next(folders))
        place.mkdir()
        n = -(-maps.shape[0] // window_px) * -(-maps.shape[1] // window_px)
        order = np.random.default_rng(window_px).permutation(n).tolist() if shuffle else None
        found = stitch(maps, method, place, window_px=window_px, workers=workers, order=order)
        labels = found.read(Box(0, 0, *maps.shape))
        assert labels.dtype == np.uint32
        np.testing.assert_array_equal(np.bincount(labels.ravel(), minlength=found.n + 1)[1:], found.table.area[1:])
        return labels, found.table

    return work


def check(maps: SlideMaps, method: Method, run: Callable[..., Any], runs: Any = RUNS) -> np.ndarray:
    """All runs give what one window gives; ids rise in raster order. Returns the labels."""
    whole, table = run(maps, method, max(maps.shape))
    values, first = np.unique(whole, return_index=True)
    assert (np.diff(first[values > 0]) > 0).all()
    assert values[values > 0].tolist() == list(range(1, len(table)))
    assert np.array_equal(find_instances(maps, method), whole)
    for window_px, workers, shuffle in runs:
        labels, other = run(maps, method, window_px, workers, shuffle)
        assert labels.tobytes() == whole.tobytes(), (window_px, workers, shuffle)
        np.testing.assert_array_equal(other.first[1:], table.first[1:])
        np.testing.assert_array_equal(other.box[1:], table.box[1:])
    return whole


def with_boundary(made: Any, seed: int = 0) -> dict[str, np.ndarray]:
    """Maps of a decoder with all heads; the boundary blurred and noisy."""
    rng = np.random.default_rng(seed)
    edge = cv2.GaussianBlur(boundary_map(made.truth).astype(np.float32), (0, 0), 0.8)
    grain = cv2.GaussianBlur(rng.normal(size=edge.shape).astype(np.float32), (0, 0), 2)
    edge = 1.5 * edge + 0.15 * grain / grain.std()
    return {
        "nucleus": made.nucleus,
        "hv": made.hv,
        "boundary": np.rint(np.clip(edge, 0, 1) * 255).astype(np.uint8),
    }


@pytest.fixture(scope="module")
def hard(make_crowd: Callable[..., Any], make_maps: Callable[..., Any]) -> SlideMaps:
    """Crowded nuclei, bars across the slide in both directions, a ring round others, speckle, holes."""
    arrays = with_boundary(make_maps(make_crowd(1, (300, 340), 150, 9), blur=1.5, noise=0.2))
    nucleus = arrays["nucleus"]
    nucleus[150:154, 5:335] = nucleus[5:295, 200:203] = 230
    arrays["hv"][:, 150:154, 5:335] = 0
    y, x = np.mgrid[:300, :340]
    ring = np.abs(np.hypot(y - 80, x - 90) - 60) < 3
    nucleus[ring] = 240
    nucleus[::31, ::29] = 0
    nucleus[::47, ::43] = 255
    return SlideMaps(arrays)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_workers_and_order_change_nothing(kind: Any, hard: SlideMaps, run: Callable[..., Any]) -> None:
    assert check(hard, kind.from_config(InstancesConfig(), 0.25), run).max() > 10


@pytest.mark.parametrize("kind", KINDS)
def test_windows_smaller_than_a_nucleus(kind: Any, hard: SlideMaps, run: Callable[..., Any]) -> None:
    part = SlideMaps({name: values[..., 60:160, 50:165].copy() for name, values in hard.arrays.items()})
    assert check(part, kind.from_config(InstancesConfig(), 0.5), run, ((13, 2, True),)).max() > 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_slide_that_is_all_foreground(kind: Any, run: Callable[..., Any]) -> None:
    # Noise everywhere: many seeds, and one component that reaches through all windows.
    rng = np.random.default_rng(5)
    grain = [cv2.GaussianBlur(rng.normal(size=(230, 250)).astype(np.float32), (0, 0), 3) for _ in range(3)]
    x, y, edge = (plane / plane.std() for plane in grain)
    maps = SlideMaps(
        {
            "nucleus": np.full(edge.shape, 255, np.uint8),
            "hv": np.rint(np.clip(np.stack([x, y]), -1, 1) * 127).astype(np.int8),
            "boundary": np.rint(np.clip(0.5 + edge / 3, 0, 1) * 255).astype(np.uint8),
        }
    )
    whole = check(maps, kind.from_config(InstancesConfig(), 0.25), run, ((64, 1, False), (97, 2, True)))
    assert whole.all()
    # Without a background there is no neck to part at.
    assert (whole.max() == 1) == (kind in (Threshold, DistanceWatershed))


def test_a_percolating_slide_has_many_basins_of_distance(run: Callable[..., Any]) -> None:
    rng = np.random.default_rng(6)
    grain = cv2.GaussianBlur(rng.normal(size=(300, 310)).astype(np.float32), (0, 0), 4)
    maps = SlideMaps({"nucleus": (grain > -0.3 * grain.std()).astype(np.uint8) * 255})
    whole = check(maps, DistanceWatershed.from_config(InstancesConfig(), 0.5), run)
    parts = cv2.connectedComponents(maps.arrays["nucleus"], connectivity=4)[1]
    assert (parts > 0).mean() > 0.5
    assert np.bincount(parts.ravel())[1:].max() > 0.8 * (parts > 0).sum()
    assert whole.max() > 100


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_longer_than_several_windows_is_one(kind: Any, run: Callable[..., Any]) -> None:
    truth = np.zeros((120, 700), np.int32)
    truth[50:66, 10:690] = 1
    maps = SlideMaps({"nucleus": (truth > 0).astype(np.uint8) * 255, "hv": hv_map_int8(truth)})
    maps = SlideMaps({**maps.arrays, "boundary": boundary_map(truth) * np.uint8(255)})
    whole = check(maps, kind.from_config(InstancesConfig(), 0.25), run, ((64, 2, True), (256, 1, False)))
    np.testing.assert_array_equal(whole, truth)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(150, 170), (1, 1), (1, 90), (61, 3)])
def test_empty_slides(kind: Any, shape: tuple[int, int], run: Callable[..., Any]) -> None:
    maps = SlideMaps(
        {
            "nucleus": np.full(shape, 100, np.uint8),
            "hv": np.zeros((2, *shape), np.int8),
            "boundary": np.zeros(shape, np.uint8),
        }
    )
    assert not check(maps, kind.from_config(InstancesConfig(), 0.5), run, ((64, 2, True),)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_one_nucleus_and_one_on_every_corner_of_the_windows(
    kind: Any, run: Callable[..., Any], make_discs: Callable[..., Any], make_maps: Callable[..., Any]
) -> None:
    corners = [(y, x) for y in range(64, 200, 64) for x in range(64, 230, 64)]
    for centres in ([(64, 64)], corners):
        truth = make_discs((201, 231), centres, 9)
        maps = SlideMaps(with_boundary(make_maps(truth)))
        whole = check(maps, kind.from_config(InstancesConfig(), 0.25), run, ((64, 2, True), (32, 1, False)))
        np.testing.assert_array_equal(whole, truth)


@pytest.mark.parametrize("kind", [Threshold, DistanceWatershed])
def test_more_than_65535_nuclei_in_a_window(kind: Any, run: Callable[..., Any]) -> None:
    tile = np.zeros((4, 4), np.uint8)
    tile[0, 1] = tile[1, :3] = tile[2, 1] = 255
    maps = SlideMaps({"nucleus": np.pad(np.tile(tile, (260, 258)), 1)})
    config = InstancesConfig(min_area_um2=0.0, seed_distance_um=0.5)
    whole = check(maps, kind.from_config(config, 0.5), run, ((1040, 1, False), (515, 2, True)))
    assert whole.max() == 260 * 258 > 65_535


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("mpp_um", [0.25, 0.5])
def test_landscapes_are_local(kind: Any, mpp_um: float, hard: SlideMaps) -> None:
    method = kind.from_config(InstancesConfig(), mpp_um)

    def landscape(box: Box) -> Any:
        mask = method.front.mask(np.ascontiguousarray(hard.read("nucleus", box)))
        return method.landscape(mask, {name: hard.read(name, box) for name in method.reads})

    frame = Box(0, 0, *hard.shape)
    whole = landscape(frame)
    assert whole.level.dtype == np.int32
    assert 1 <= whole.level.min() <= whole.level.max() <= HIGHEST_LEVEL
    assert not whole.seeds[method.front.mask(hard.read("nucleus", frame)) == 0].any()
    rng = np.random.default_rng(3)
    for _ in range(12):
        top, left = (int(rng.integers(0, size - 20)) for size in hard.shape)
        core = Box(top, left, min(top + 60, 300), min(left + 60, 340))
        outer = core.grown(method.context_px, hard.shape)
        part = landscape(outer)
        np.testing.assert_array_equal(part.level[core.within(outer)], whole.level[core.slices])
        np.testing.assert_array_equal(part.seeds[core.within(outer)], whole.seeds[core.slices])


def test_a_box_reads_what_it_covers(hard: SlideMaps, tmp_path: Path) -> None:
    found = stitch(hard, HVWatershed.from_config(InstancesConfig(), 0.25), tmp_path, window_px=100)
    whole = found.read(Box(0, 0, *hard.shape))
    for box in (Box(0, 0, 1, 1), Box(99, 99, 101, 201), Box(250, 13, 300, 340), Box(100, 100, 200, 200)):
        np.testing.assert_array_equal(found.read(box), whole[box.slices])
