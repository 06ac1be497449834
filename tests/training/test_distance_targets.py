"""Distance targets against SciPy's transform of every instance by itself, and against recorded ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from slideloom.training.distance_targets import instance_distance


def one_by_one(patch: NDArray[np.int32]) -> NDArray[np.float32]:
    """SciPy's transform, instance by instance."""
    out = np.zeros(patch.shape, np.float32)
    for name in np.unique(patch[patch > 0]):
        mine = patch == name
        if mine.all():  # SciPy has no distance to nothing
            return np.ones(patch.shape, np.float32)
        away = distance_transform_edt(mine)
        out[mine] = (away / away.max())[mine]
    return out


@settings(max_examples=150)
@given(
    arrays.arrays(
        np.int32,
        st.tuples(st.integers(1, 3), st.integers(1, 14), st.integers(1, 14)),
        elements=st.sampled_from([-1, 0, 0, 1, 1, 1, 2, 2**31 - 1]),
    ),
    st.integers(1, 4),
)
def test_as_scipy_instance_by_instance(patches: NDArray[np.int32], scale: int) -> None:
    """Neighbours, pieces with one id, lines along the border; scaled up so that distances are long, too."""
    large = np.repeat(np.repeat(patches, scale, 1), scale, 2)
    got = instance_distance(large)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.stack([one_by_one(patch) for patch in large]), rtol=1e-6, atol=0)


def test_round_nuclei_of_a_real_size() -> None:
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:96, :128]
    patch = np.zeros((96, 128), np.int32)
    for name in range(1, 30):
        row, column, a, b = rng.uniform((0, 0, 4, 4), (96, 128, 20, 20))
        patch[((y - row) / a) ** 2 + ((x - column) / b) ** 2 < 1] = 1000 * name
    np.testing.assert_allclose(instance_distance(patch[None])[0], one_by_one(patch), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["nuclei", "cells", "border"])
def test_as_recorded(shared: Path, name: str) -> None:
    recorded = np.load(shared / "fixtures/instanseg/misc_io.npz")
    got = instance_distance(recorded[f"edt_{name}_labels"][None])[0]
    np.testing.assert_allclose(got, recorded[f"edt_{name}"], rtol=1e-6, atol=1e-6)


def test_a_patch_that_one_instance_fills_is_all_middle() -> None:
    assert (instance_distance(np.full((1, 5, 7), 9, np.int32)) == 1).all()


def test_patches_do_not_see_each_other() -> None:
    rng = np.random.default_rng(0)
    patches = np.repeat(np.repeat(rng.integers(0, 3, (3, 6, 6)), 4, 1), 4, 2).astype(np.int32)
    alone = np.concatenate([instance_distance(patch[None]) for patch in patches])
    assert np.array_equal(instance_distance(patches), alone)


def test_no_patch_and_wrong_axes() -> None:
    assert instance_distance(np.zeros((0, 4, 4), np.int32)).shape == (0, 4, 4)
    with pytest.raises(ValueError, match="3 axes"):
        instance_distance(np.zeros((4, 4), np.int32))
