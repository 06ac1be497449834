"""The error of HV maps: whole numbers, inside nuclei and everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideloom.metrics.hv_error import HvError, HvErrors


def test_the_error_is_the_same_for_any_blocks() -> None:
    rng = np.random.default_rng(0)
    prediction, truth = rng.integers(-127, 128, (2, 2, 30, 17)).astype(np.int8)
    inside = rng.random((30, 17)) < 0.4
    values = []
    for step in (1, 7, 30):
        error = HvError()
        for y in range(0, 30, step):
            part = slice(y, y + step)
            error.add(prediction[:, part], truth[:, part], inside[part])
        values.append(error.value)
    assert values[0] == values[1] == values[2]
    difference = (prediction.astype(float) - truth)[:, inside] / 127
    assert values[0] == pytest.approx(float((difference**2).mean()))
    assert (error.x, error.y) == pytest.approx(tuple((difference**2).mean(axis=1)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(0, 12))
def test_inside_and_everywhere_and_merged(seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    prediction, truth = rng.integers(-127, 128, (2, 2, 12, 9)).astype(np.int8)
    nucleus, seen = rng.random((12, 9)) < 0.4, rng.random((12, 9)) < 0.8
    truth[:, ~nucleus] = 0
    errors = HvErrors()
    for part in (slice(cut, None), slice(0, cut)):
        one = HvErrors()
        one.add(prediction[:, part], truth[:, part], nucleus[part], seen[part])
        errors.merge(one)
    squared = ((prediction.astype(float) - truth) / 127) ** 2
    assert errors.everywhere.value == pytest.approx(squared[:, seen].mean())
    assert errors.inside.value == pytest.approx(squared[:, seen & nucleus].mean())
    whole = HvErrors()
    whole.add(prediction, truth, nucleus)
    assert whole.everywhere.value == pytest.approx(squared.mean())
    assert whole.inside.y == pytest.approx(squared[1, nucleus].mean())


def test_saying_nothing_is_cheap_everywhere_and_dear_inside() -> None:
    truth = np.zeros((2, 20, 20), np.int8)
    truth[:, 8:12, 8:12] = 90
    errors = HvErrors()
    errors.add(np.zeros_like(truth), truth, truth[0] != 0)
    assert errors.inside.value == pytest.approx((90 / 127) ** 2)
    assert errors.everywhere.value == pytest.approx((90 / 127) ** 2 * 16 / 400)


def test_no_pixel_no_error() -> None:
    errors = HvErrors()
    maps = np.zeros((2, 3, 3), np.int8)
    errors.add(maps, maps, np.zeros((3, 3), np.bool_))
    assert errors.inside.value is errors.inside.x is errors.inside.y is None
    assert errors.everywhere.value == 0.0
    assert HvError().value is None
    with pytest.raises(ValueError, match="shapes"):
        HvError().add(maps, maps[:, :2])


def test_everywhere_is_the_originals_loss_within_the_steps_of_the_maps(shared: Path) -> None:
    folder = shared / "fixtures" / "cellvit"
    expected = json.loads((folder / "losses.json").read_text())["mse_loss_maps/hv"]["value"]
    inputs = np.load(folder / "losses_inputs.npz")
    prediction, truth = inputs["hv_pred"].astype(float), inputs["hv_gt"].astype(float)
    # The inputs go beyond what a map can hold: both are shrunk, which shrinks the error by the square.
    largest = max(np.abs(prediction).max(), np.abs(truth).max())
    error = HvError()
    for one, other in zip(prediction, truth, strict=True):
        error.add(*(np.rint(each / largest * 127).astype(np.int8) for each in (one, other)))
    step = largest / 127  # a difference is off by one step at most
    bound = 2 * step * float(np.abs(prediction - truth).mean()) + step**2
    assert bound < 0.15 * expected
    assert error.value is not None
    assert abs(error.value * largest**2 - expected) <= bound
