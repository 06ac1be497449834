from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from slideloom.patches.hv import boundary_map, hv_map, hv_map_int8

MAPS = arrays(
    np.int32, st.tuples(st.integers(2, 14), st.integers(2, 14)), elements=st.sampled_from([0, 0, 1, 2, 900, 2**31 - 1])
)


def _plain(instances: np.ndarray) -> np.ndarray:
    """The definition, one instance and one pixel at a time."""
    out = np.zeros((2, *instances.shape), np.float32)
    for number in set(instances[instances > 0].tolist()):
        places = np.argwhere(instances == number)
        for channel, axis in ((0, 1), (1, 0)):
            centre = int(places[:, axis].mean() + 0.5)
            offset = (places[:, axis] + 1 - centre).astype(np.float32)
            if (offset < 0).any():
                offset[offset < 0] /= -offset.min()
            if (offset > 0).any():
                offset[offset > 0] /= offset.max()
            out[channel, places[:, 0], places[:, 1]] = offset
    return out


def test_the_fixtures_exactly(shared):
    cases = np.load(shared / "fixtures" / "cellvit" / "hv_targets.npz")
    names = [name.removesuffix("/inst") for name in cases.files if name.endswith("/inst")]
    assert len(names) == 10
    for name in names:
        made = hv_map(cases[f"{name}/inst"])
        assert made.dtype == np.float32
        assert np.array_equal(made, cases[f"{name}/hv"]), name


@given(instances=MAPS)
@settings(deadline=None)
def test_any_ids_with_or_without_background(instances):
    assert np.array_equal(hv_map(instances), _plain(instances))


def test_a_disc_of_radius_six_runs_as_in_the_originals():
    y, x = np.ogrid[:20, :20]
    hv = hv_map(((y - 9) ** 2 + (x - 9) ** 2 <= 36).astype(np.uint8))
    expected = [-1, -0.8, -0.6, -0.4, -0.2, 0, *(np.arange(1, 8) / 7)]
    assert np.allclose(hv[0, 9, 3:16], expected)
    assert np.allclose(hv[1, 3:16, 9], expected)


def test_blocks_change_nothing(monkeypatch):
    instances = np.random.default_rng(0).integers(0, 9, (60, 70))
    whole = hv_map(instances)
    monkeypatch.setattr("slideloom.patches.hv._BLOCK", 37)
    assert np.array_equal(hv_map(instances), whole)


@given(instances=MAPS)
@settings(deadline=None)
def test_int8_is_within_half_a_step(instances):
    coded = hv_map_int8(instances)
    assert coded.dtype == np.int8
    assert np.abs(coded / np.float32(127) - hv_map(instances)).max() <= 0.5 / 127 + 1e-6


def test_strips_and_empty_maps():
    assert not hv_map(np.ones((1, 9), np.int32)).any(), "the originals skip crops thinner than 2 pixels"
    assert not hv_map(np.zeros((5, 5), np.int32)).any()
    with pytest.raises(ValueError, match="2 axes"):
        hv_map(np.zeros((2, 5, 5), np.int32))


def test_boundaries_are_the_inner_outline():
    instances = np.zeros((8, 9), np.int32)
    instances[1:6, 1:4] = 3
    instances[1:6, 4:8] = 70
    expected = np.zeros((8, 9), np.uint8)
    expected[1:6, 1:8] = 1
    expected[2:5, 2] = 0
    expected[2:5, 5:7] = 0
    assert np.array_equal(boundary_map(instances), expected)
    assert not boundary_map(np.full((5, 5), 4)).any(), "a nucleus that fills the map has no outline in it"


@pytest.mark.slow
def test_time_does_not_grow_with_the_number_of_nuclei(shared):
    import time

    tiles = np.load(shared / "fixtures" / "cellvit" / "bench_tiles.npz")

    def seconds(name):
        best = 1e9
        for _ in range(5):
            start = time.process_time()
            hv_map(tiles[f"{name}/inst"])
            best = min(best, time.process_time() - start)
        return best

    few, many = seconds("tile500"), seconds("tile2000")
    assert many < 3 * few
    assert many < 0.6, "the reference takes 1.84 s"
