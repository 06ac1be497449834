"""Flips and quarter turns: the group, and everything that has to follow the pixels."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from slideloom.config.model import AugmentationConfig
from slideloom.patches.hv import HV_SCALE, boundary_map, hv_map, hv_map_int8
from slideloom.training.symmetry import (
    N_SYMMETRIES,
    compose,
    draw_symmetries,
    inverse,
    transform,
    transform_batch,
    transform_hv,
    transform_targets,
)

EVERY = range(N_SYMMETRIES)
DTYPES = [torch.uint8, torch.int8, torch.uint16, torch.int32, torch.bool, torch.float16, torch.float32]
Instances = NDArray[np.int32]


def numpy_transform(values: NDArray, symmetry: int) -> NDArray:
    """The definition, in NumPy's words."""
    mirrored = np.flip(values, -1) if symmetry >= 4 else values
    return np.rot90(mirrored, symmetry % 4, axes=(-2, -1))


def unbiased_hv(instances: Instances) -> NDArray[np.float64]:
    """Distance to the exact centroid; what is negative and what is positive reach -1 and 1 each by themselves."""
    out = np.zeros((2, *instances.shape))
    for number in np.unique(instances[instances > 0]):
        inside = instances == number
        y, x = np.nonzero(inside)
        for channel, position in enumerate((x, y)):
            offset = position - position.mean()
            offset[offset < 0] /= max(-offset.min(), 1e-12)
            offset[offset > 0] /= max(offset.max(), 1e-12)
            out[channel][inside] = offset
    return out


@st.composite
def masks(draw: st.DrawFn, side: int = 40) -> Instances:
    """Up to five discs and ellipses, tilted, cut by the border or by each other."""
    y, x = np.mgrid[:side, :side]
    out = np.zeros((side, side), np.int32)
    size = st.floats(0.6, 9)
    for number in range(1, draw(st.integers(1, 5)) + 1):
        centre_y, centre_x = (draw(st.floats(0, side - 1)) for _ in "yx")
        long, short, angle = draw(size), draw(size), draw(st.floats(0, np.pi))
        along = (x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle)
        across = (y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)
        out[(along / long) ** 2 + (across / short) ** 2 <= 1] = number
    return out


# ---- the group ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetry", EVERY)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numpy_agrees(symmetry: int, dtype: torch.dtype) -> None:
    values = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(dtype)
    got = transform(values, symmetry)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.numpy(), numpy_transform(values.numpy(), symmetry))


def test_eight_different_ones_and_the_identity_is_free() -> None:
    square = torch.arange(9).reshape(3, 3)
    assert len({tuple(transform(square, symmetry).reshape(-1).tolist()) for symmetry in EVERY}) == 8
    assert transform(square, 0) is square


@pytest.mark.parametrize("symmetry", [-1, 8])
def test_there_is_no_ninth(symmetry: int) -> None:
    for use in (inverse, lambda s: compose(s, 0), lambda s: transform(torch.zeros(2, 2), s)):
        with pytest.raises(ValueError, match="expected 0 to 7"):
            use(symmetry)


@pytest.mark.parametrize(("first", "second"), list(product(EVERY, EVERY)))
def test_two_after_each_other_are_one(first: int, second: int) -> None:
    values = torch.arange(20).reshape(4, 5)
    assert torch.equal(transform(transform(values, first), second), transform(values, compose(first, second)))


def test_laws_of_a_group() -> None:
    for a in EVERY:
        assert compose(a, 0) == compose(0, a) == a
        assert compose(a, inverse(a)) == compose(inverse(a), a) == 0
        assert sorted(compose(a, b) for b in EVERY) == list(EVERY)
    assert all(compose(compose(a, b), c) == compose(a, compose(b, c)) for a, b, c in product(EVERY, EVERY, EVERY))


# ---- batches ------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 7), min_size=0, max_size=9), st.sampled_from(DTYPES), st.booleans())
@settings(max_examples=40, deadline=None)
def test_each_patch_has_its_own(symmetries: list[int], dtype: torch.dtype, channels_last: bool) -> None:
    n = len(symmetries)
    values = torch.from_numpy(np.random.default_rng(n).integers(0, 2 if dtype == torch.bool else 99, (n, 3, 4, 4)))
    values = values.to(dtype)
    if channels_last:
        values = values.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for numbers in (np.array(symmetries, np.uint8), torch.tensor(symmetries, dtype=torch.int64)):
        got = transform_batch(values, numbers)
        assert (got.dtype, got.shape) == (values.dtype, values.shape)
        assert got.stride() == values.stride()
        for before, after, symmetry in zip(values, got, symmetries, strict=True):
            np.testing.assert_array_equal(after.numpy(), numpy_transform(before.numpy(), symmetry))


def test_nothing_to_do_is_nothing_done() -> None:
    targets = {"hv": torch.zeros(2, 2, 3, 5), "valid": torch.zeros(2, 3, 5)}
    none = np.zeros(2, np.uint8)
    assert transform_batch(targets["valid"], none) is targets["valid"]
    assert all(values is targets[name] for name, values in transform_targets(targets, none).items())
    assert transform_hv(targets["hv"], 0) is targets["hv"]


def test_batches_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="2 symmetries for 3 patches"):
        transform_batch(torch.zeros(3, 1, 4, 4), np.array([1, 2]))
    with pytest.raises(ValueError, match="not square"):
        transform_batch(torch.zeros(1, 1, 4, 6), np.array([4]))


@pytest.mark.parametrize("symmetry", EVERY)
def test_image_tokens_and_targets_go_together(symmetry: int) -> None:
    """Mean colours of squares are tokens that know no direction: theirs move as the pixels do."""
    rng = np.random.default_rng(symmetry)
    ids = rng.integers(0, 4, (2, 16, 16)).astype(np.int32)
    image = torch.from_numpy(np.stack([ids == 1, ids == 2, ids == 3], 1).astype(np.float32))
    targets = {
        "nucleus": torch.from_numpy((ids > 0).astype(np.uint8)),
        "classes": torch.from_numpy(ids.astype(np.uint8)),
        "boundary": torch.from_numpy(np.stack([boundary_map(one) for one in ids])),
        "hv": torch.from_numpy(np.stack([hv_map_int8(one) for one in ids])),
        "valid": torch.from_numpy(rng.random((2, 16, 16)) < 0.9),
    }
    both = np.full(2, symmetry)
    turned, moved = transform_batch(image, both), transform_targets(targets, both)
    classes = moved["classes"].long()
    assert torch.equal(torch.nn.functional.one_hot(classes, 4)[..., 1:].permute(0, 3, 1, 2).float(), turned)
    assert torch.equal(moved["nucleus"] > 0, classes > 0)
    assert torch.equal(moved["boundary"], torch.from_numpy(np.stack([boundary_map(one.numpy()) for one in classes])))
    assert torch.equal(moved["hv"], transform_hv(targets["hv"], symmetry))
    assert torch.equal(moved["valid"], transform(targets["valid"], symmetry))

    def tokens(pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(pixels, 4).permute(0, 2, 3, 1)

    torch.testing.assert_close(
        tokens(turned), transform(tokens(image).movedim(-1, 1), symmetry).movedim(1, -1), rtol=0, atol=1e-6
    )


# ---- HV maps ------------------------------------------------------------------------------------------------------


@given(masks(), st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_hv_maps_keep_their_meaning(mask: Instances, symmetry: int) -> None:
    """Moving the map is making it of the moved nuclei, where its definition has no direction of its own."""
    got = transform_hv(torch.from_numpy(unbiased_hv(mask)), symmetry).numpy()
    np.testing.assert_allclose(got, unbiased_hv(numpy_transform(mask, symmetry)), rtol=0, atol=1e-6)


@given(masks(), st.integers(0, 7), st.integers(0, 7))
@settings(max_examples=40, deadline=None)
def test_hv_maps_follow_the_group(mask: Instances, first: int, second: int) -> None:
    hv = torch.from_numpy(np.stack([hv_map_int8(mask), hv_map_int8(mask.T.copy())]))
    assert torch.equal(transform_hv(transform_hv(hv, first), second), transform_hv(hv, compose(first, second)))
    assert torch.equal(transform_hv(transform_hv(hv, first), inverse(first)), hv)
    one_by_one = transform_targets({"hv": hv}, np.array([first, second]))["hv"]
    assert torch.equal(one_by_one[0], transform_hv(hv[0], first))
    assert torch.equal(one_by_one[1], transform_hv(hv[1], second))
    assert one_by_one.dtype == torch.int8
    assert int(one_by_one.min()) >= -HV_SCALE


def reach(zero: int, low: int, high: int) -> tuple[int, int]:
    """How far a map's zero is from the ends."""
    return max(zero - low, 1), max(high - zero, 1)


@given(masks(), st.integers(1, 7))
@settings(max_examples=150, deadline=None)
def test_stored_maps_differ_by_their_bias_alone(mask: Instances, symmetry: int) -> None:
    """The module's docstring, pixel by pixel: equal along kept axes, bounded and of the right sign along others."""
    moved = numpy_transform(mask, symmetry)
    got, made = transform_hv(torch.from_numpy(hv_map(mask)), symmetry).numpy(), hv_map(moved)
    codes = transform_hv(torch.from_numpy(hv_map_int8(mask)), symmetry).numpy()
    np.testing.assert_allclose(codes / HV_SCALE, got, rtol=0, atol=0.5 / HV_SCALE + 1e-6)
    # An axis is reversed if a ramp along it falls afterwards.
    ramps = transform_hv(torch.ones(2, 1, 1), symmetry)[:, 0, 0]
    for number in np.unique(mask[mask > 0]):
        inside = moved == number
        for channel, position in enumerate(np.nonzero(inside)[::-1]):
            ours, theirs = got[channel][inside], made[channel][inside]
            if ramps[channel] > 0:
                np.testing.assert_array_equal(ours, theirs)
                continue
            low, high, mean = position.min(), position.max(), position.mean()
            zero = int(np.floor(mean + 0.5)) - 1
            mirrored = int(np.floor(high + low - mean + 0.5)) - 1
            bound = 2 / min(reach(zero, low, high)[1], reach(mirrored, low, high)[1])
            assert np.abs(ours - theirs).max() <= bound + 1e-6
            far = np.abs(position - mean) > 1.5
            np.testing.assert_array_equal(np.sign(ours[far]), np.sign(position[far] - mean))
    assert not got[:, moved == 0].any()


@pytest.mark.parametrize("radius", [6, 12])
def test_the_bias_of_a_disc(radius: int) -> None:
    y, x = np.mgrid[:41, :41]
    disc = ((y - 20) ** 2 + (x - 20) ** 2 <= radius**2).astype(np.int32)
    got = transform_hv(torch.from_numpy(hv_map(disc)), 4).numpy()
    assert np.abs(got - hv_map(np.fliplr(disc))).max() == pytest.approx(2 / (radius + 1))
    assert got[0, 20, 21] == 0, "the zero lies a pixel right of the centre now"


# ---- drawing ------------------------------------------------------------------------------------------------------


def frequencies(flips: float, turns: float, n: int = 40_000) -> NDArray[np.float64]:
    config = AugmentationConfig(flips=flips, turns=turns)
    drawn = draw_symmetries(config, n, np.random.default_rng(1))
    assert drawn.dtype == np.uint8
    return np.bincount(drawn, minlength=8) / n


def test_off_draws_nothing() -> None:
    rng = np.random.default_rng(0)
    assert not draw_symmetries(AugmentationConfig(), 9, rng).any()
    assert rng.random() == np.random.default_rng(0).random()


def test_frequencies_are_those_asked_for() -> None:
    np.testing.assert_allclose(frequencies(0.5, 0.75), 1 / 8, atol=0.01)
    # Two mirrors make a half turn: 4 is left to right, 6 top to bottom, 2 both.
    np.testing.assert_allclose(frequencies(0.2, 0), [0.64, 0, 0.04, 0, 0.16, 0, 0.16, 0], atol=0.01)
    np.testing.assert_allclose(frequencies(0, 0.6), [0.4, 0.2, 0.2, 0.2, 0, 0, 0, 0], atol=0.01)
    np.testing.assert_array_equal(frequencies(1, 0), np.eye(8)[2])


def test_the_same_generator_draws_the_same() -> None:
    config = AugmentationConfig(flips=0.5, turns=0.5)
    one, two = (draw_symmetries(config, 50, np.random.default_rng([3, 1])) for _ in range(2))
    assert np.array_equal(one, two)
    assert np.unique(one).size > 1
