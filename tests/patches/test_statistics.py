from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slideloom.config.model import NormalisationConfig
from slideloom.errors import SlideError
from slideloom.patches import statistics
from slideloom.patches.statistics import ChannelStatistics, channel_statistics, marker_indices
from slideloom.slides.tables import Channel


def _values(dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.gamma(1.5, 20, shape) - (5 if np.dtype(dtype).kind == "f" else 0)
    return np.minimum(values, 250 if dtype is np.uint8 else 1e9).astype(dtype)


def _expected(pixels, config):
    """Straight from the definition, over (c, n) pixels."""
    pixels = pixels.astype(np.float64)
    clip = np.array([np.quantile(row, config.clip_quantile, method="inverted_cdf") for row in pixels])
    value = np.minimum(pixels, clip[:, None])
    value = np.log1p(np.maximum(value, 0)) if config.log1p else value
    return clip, value.mean(axis=1), value.std(axis=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("log1p", [True, False])
@pytest.mark.parametrize("quantile", [0.5, 0.99, 0.999, 1.0])
def test_equal_to_numpy_over_all_pixels(make_slide, dtype, log1p, quantile):
    sp = _values(dtype, (3, 45, 61))
    store = make_slide(sp=sp).cut(image="sp", tile_px=16)
    config = NormalisationConfig(clip_quantile=quantile, log1p=log1p)
    made = channel_statistics([store], [], config)
    clip, mean, std = _expected(sp.reshape(3, -1), config)
    assert np.array_equal(made.clip, clip), "an exact order statistic"
    assert np.allclose(made.mean, mean, rtol=1e-9, atol=1e-9)
    assert np.allclose(made.std, std, rtol=1e-7, atol=1e-9)
    assert made.markers == ("m_DAPI", "m_CD3", "m_CD8")


@given(data=st.data(), kind=st.sampled_from([np.uint16, np.float32]))
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equal_to_the_last_bit_for_any_order_and_batch(make_slide, monkeypatch, data, kind):
    stores = [make_slide(sp=_values(kind, (2, 40, 30 + 7 * k), seed=k)).cut(image="sp", tile_px=16) for k in range(3)]
    first = channel_statistics(stores, [], NormalisationConfig())
    monkeypatch.setattr(statistics, "_BATCH_BYTES", data.draw(st.sampled_from([1, 9000, 30000])))
    assert channel_statistics(data.draw(st.permutations(stores)), [], NormalisationConfig()) == first


def test_padding_and_glass_do_not_count(make_slide):
    sp = np.full((1, 20, 40), 7, np.uint16)
    sp[:, :, 16:32] = 90
    slide = make_slide(sp=sp)
    ring = [[0, 0], [12, 0], [12, 20], [0, 20], [0, 0]]
    slide.tissue.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    made = channel_statistics([slide.cut(image="sp", tile_px=16)], [], NormalisationConfig(log1p=False))
    assert (made.clip, made.mean, made.std) == ((7.0,), (7.0,), (1.0,)), "only the first column of tiles, unpadded"


def test_a_slide_with_little_tissue_counts_what_it_has(make_slide):
    sp = np.full((1, 16, 32), 3, np.uint8)
    sp[:, :, 16:] = 9
    slide = make_slide(sp=sp)
    ring = [[0, 0], [2, 0], [2, 16], [0, 16], [0, 0]]
    slide.tissue.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    assert channel_statistics([slide.cut(image="sp", tile_px=16)], [], NormalisationConfig()).clip == (3.0,)


def test_a_rare_signal_is_not_wiped_out(make_slide):
    for kind in (np.uint16, np.float32):
        sp = np.zeros((1, 64, 64), kind)
        sp[0, 5, 5] = 40
        made = channel_statistics([make_slide(sp=sp).cut(image="sp", tile_px=64)], [], NormalisationConfig())
        assert made.clip == (40.0,)
        assert made.apply(sp)[0, 5, 5] > 10


def test_markers_are_picked_in_the_order_asked_for(make_slide):
    sp = _values(np.uint16, (4, 32, 32))
    store = make_slide(sp=sp).cut(image="sp", tile_px=16)
    every = channel_statistics([store], [], NormalisationConfig())
    some = channel_statistics([store], ["m_CK", "m_DAPI"], NormalisationConfig())
    assert some.markers == ("m_CK", "m_DAPI")
    assert some.mean == (every.mean[3], every.mean[0])


def test_panels_in_another_order(make_slide):
    sp = _values(np.uint16, (2, 32, 32))
    one = make_slide(sp=sp, names=("DAPI", "CD3")).cut(image="sp", tile_px=16)
    other = make_slide(sp=sp[::-1], names=("CD3", "DAPI")).cut(image="sp", tile_px=16)
    both = channel_statistics([one, other], [], NormalisationConfig())
    alone = channel_statistics([one], [], NormalisationConfig())
    assert (both.markers, both.clip, both.mean) == (alone.markers, alone.clip, alone.mean)


def test_a_missing_marker_names_itself_the_slide_and_what_there_is(make_slide):
    store = make_slide(sp=_values(np.uint16, (2, 20, 20))).cut(image="sp", tile_px=16)
    with pytest.raises(SlideError) as caught:
        channel_statistics([store], ["m_DAPI", "FOXP3"], NormalisationConfig())
    assert caught.value.code == "missing_marker"
    for word in ("FOXP3", "m_CD3", store.slide_id):
        assert word in caught.value.message


def test_what_cannot_be_pooled(make_slide):
    small = make_slide(sp=_values(np.uint8, (1, 20, 20))).cut(image="sp", tile_px=16)
    large = make_slide(sp=_values(np.uint16, (1, 20, 20))).cut(image="sp", tile_px=16)
    with pytest.raises(SlideError) as caught:
        channel_statistics([small, large], [], NormalisationConfig())
    assert caught.value.code == "mixed_dtypes"
    with pytest.raises(SlideError) as caught:
        channel_statistics([], [], NormalisationConfig())
    assert caught.value.code == "no_patches"
    holed = _values(np.float32, (1, 20, 20))
    holed[0, 3, 3] = np.nan
    with pytest.raises(SlideError) as caught:
        channel_statistics([make_slide(sp=holed).cut(image="sp", tile_px=16)], [], NormalisationConfig())
    assert caught.value.code == "non_finite_pixels"


@given(
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=2, max_size=60),
    integers=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=60),
)
def test_rank_keys_keep_the_order(values, integers):
    for array in (np.array(values, np.float32), np.array(integers, np.int32)):
        keys = statistics._rankable(array)
        order = np.argsort(keys, kind="stable")
        assert (np.diff(array[order].astype(np.float64)) >= 0).all()
        for key, value in zip(keys.tolist(), array.tolist(), strict=True):
            assert statistics._unrank(key >> 16, key & 0xFFFF, array.dtype) == value


def test_apply():
    made = ChannelStatistics(("a", "b"), (10.0, 100.0), (1.0, 2.0), (0.5, 4.0), True)
    pixels = np.array([[[3, 50]], [[100, 7]]], np.uint16)
    expected = (np.log1p(np.minimum(pixels, [[[10]], [[100]]])) - [[[1]], [[2]]]) / [[[0.5]], [[4]]]
    assert made.apply(pixels).dtype == np.float32
    assert np.allclose(made.apply(pixels), expected, atol=1e-6)
    assert np.allclose(made.apply(pixels[None]), expected[None], atol=1e-6)
    assert np.array_equal(pixels, [[[3, 50]], [[100, 7]]]), "the input is left as it is"
    plain = replace(made, log1p=False)
    assert np.allclose(plain.apply(pixels)[0, 0, 1], (10 - 1) / 0.5)
    assert np.isfinite(made.apply(np.full((2, 1, 1), -5.0))).all()
    with pytest.raises(ValueError, match="2 channels"):
        made.apply(pixels[:1])


def test_normalised_tissue_has_mean_0_and_spread_1(make_slide):
    sp = _values(np.uint16, (2, 48, 48))
    store = make_slide(sp=sp).cut(image="sp", tile_px=48)
    value = channel_statistics([store], [], NormalisationConfig()).apply(sp)
    assert np.allclose(value.mean(axis=(1, 2)), 0, atol=1e-4)
    assert np.allclose(value.std(axis=(1, 2)), 1, atol=1e-4)


def test_json_round_trip():
    made = ChannelStatistics(("a",), (0.1 + 0.2,), (1 / 3,), (2 / 3,), False)
    assert ChannelStatistics.from_dict(json.loads(json.dumps(made.as_dict()))) == made


def test_marker_indices():
    channels = [Channel("DAPI", "DNA"), Channel("DAPI2", "DNA"), Channel("CD3", "CD3"), Channel("red", "")]
    assert marker_indices(channels, []) == [0, 1, 2, 3]
    assert marker_indices(channels, ["CD3", "DNA", "red"]) == [2, 0, 3]
