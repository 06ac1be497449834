"""Order statistics and sums against plain NumPy and Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slideloom.errors import SlideError
from slideloom.patches import moments
from slideloom.patches.moments import merge, tally

KINDS = [np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.float32]


def _once(values, size=7):
    """One channel of 1 x 1 px tiles, in batches."""

    def batches():
        for start in range(0, len(values), size):
            part = values[start : start + size, None, None, None]
            yield part, np.ones((len(part), 1, 1), bool)

    return batches


@given(
    kind=st.sampled_from(KINDS),
    values=st.lists(st.integers(0, 200), min_size=1, max_size=40),
    quantile=st.sampled_from([0.01, 0.25, 0.5, 0.9, 0.99, 1.0]),
)
def test_quantile_is_numpys(kind, values, quantile):
    array = np.array(values, kind)
    expected = np.quantile(array.astype(np.float64), quantile)
    clip = tally(_once(array), 1, array.dtype, quantile).clip[0]
    np.testing.assert_allclose(clip, array.max() if expected == array.min() else expected, rtol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_values_across_digits(kind):
    """The two order statistics may differ in their upper 16 bits."""
    top = 250 if kind == np.uint8 else 30000 if np.dtype(kind).itemsize == 2 else 2**24
    array = np.array([1, 2, top - 3, top], kind)
    clip = tally(_once(array), 1, array.dtype, 0.5).clip[0]
    assert clip == 2 + (top - 5) / 2


@given(
    groups=st.lists(st.lists(st.integers(0, 250), min_size=1, max_size=20), min_size=1, max_size=5),
    log1p=st.booleans(),
    kind=st.sampled_from([np.uint16, np.float32]),
)
def test_groups_clipped_each_by_itself_then_pooled(groups, log1p, kind):
    tallies = [tally(_once(np.array(group, kind)), 1, np.dtype(kind), 0.8) for group in groups]
    clipped = [np.minimum(group, one.clip[0]) for group, one in zip(groups, tallies, strict=True)]
    pooled = np.concatenate(clipped).astype(np.float64)
    pooled = np.log1p(pooled) if log1p else pooled
    (mean,), (std,) = merge([one.moments(log1p) for one in tallies])
    np.testing.assert_allclose(mean, pooled.mean(), rtol=1e-8, atol=1e-9)
    assert (std == 1) if np.ptp(pooled) == 0 else np.isclose(std, pooled.std(), rtol=1e-6)
    assert merge([one.moments(log1p) for one in reversed(tallies)]) == ((mean,), (std,))


def test_only_what_the_mask_shows_counts():
    pixels = np.array([[[[3.0, np.nan], [5.0, np.inf]]]], np.float32)
    mask = np.array([[[True, False], [True, False]]])
    for kind in (np.float32, np.uint8):
        values = np.nan_to_num(pixels, posinf=9).astype(kind) if kind == np.uint8 else pixels
        counted = tally(lambda values=values: iter([(values, mask)]), 1, np.dtype(kind), 1.0)
        assert counted.clip == (5.0,)
        assert merge([counted.moments(False)]) == ((4.0,), (1.0,))
        with pytest.raises(SlideError) as caught:
            tally(lambda values=values: iter([(values, mask & False)]), 1, np.dtype(kind), 1.0)
        assert caught.value.code == "no_patches"


@given(
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=2, max_size=60),
    integers=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=60),
)
def test_rank_keys_keep_the_order(values, integers):
    for array in (np.array(values, np.float32), np.array(integers, np.int32)):
        keys = moments._rankable(array)
        order = np.argsort(keys, kind="stable")
        assert (np.diff(array[order].astype(np.float64)) >= 0).all()
        for key, value in zip(keys.tolist(), array.tolist(), strict=True):
            assert moments._unrank(key >> 16, key & 0xFFFF, array.dtype) == value
