from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from shapely import box, union_all
from shapely.geometry import mapping

from slideloom.config.model import NormalisationConfig
from slideloom.errors import SlideError, SlideloomError
from slideloom.patches import statistics
from slideloom.patches.panels import marker_indices
from slideloom.patches.statistics import ChannelStatistics, channel_statistics, for_slide, tissue_pixels
from slideloom.slides.tables import Channel

#: As the baseline's weights (none) and VirTues' have it.
POOLED = NormalisationConfig(scope="training", clip="training", clip_quantile=0.999, log1p=True)
OWN_CLIP = NormalisationConfig(scope="training", clip="slide", clip_quantile=0.99, log1p=True)


def _values(dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.gamma(1.5, 20, shape) - (5 if np.dtype(dtype).kind == "f" else 0)
    return np.minimum(values, 250 if dtype is np.uint8 else 1e9).astype(dtype)


def _expected(pixels, config):
    """Straight from the definition, over (c, n) pixels."""
    pixels = pixels.astype(np.float64)
    clip = np.array([np.quantile(row, config.clip_quantile) for row in pixels])
    value = np.minimum(pixels, clip[:, None])
    value = np.log1p(np.maximum(value, 0)) if config.log1p else value
    return clip, value.mean(axis=1), value.std(axis=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("log1p", [True, False])
@pytest.mark.parametrize("quantile", [0.5, 0.99, 0.999, 1.0])
def test_equal_to_numpy_over_all_pixels(make_slide, dtype, log1p, quantile):
    sp = _values(dtype, (3, 45, 61))
    store = make_slide(sp=sp).cut(image="sp", tile_px=16)
    config = POOLED.model_copy(update={"clip_quantile": quantile, "log1p": log1p})
    made = channel_statistics([store], [], config)
    clip, mean, std = _expected(sp.reshape(3, -1), config)
    np.testing.assert_allclose(made.clip, clip, rtol=1e-12, err_msg="between exact order statistics")
    assert np.allclose(made.mean, mean, rtol=1e-9, atol=1e-9)
    assert np.allclose(made.std, std, rtol=1e-7, atol=1e-9)
    assert made.markers == ("m_DAPI", "m_CD3", "m_CD8")


@given(data=st.data(), kind=st.sampled_from([np.uint16, np.float32]), normalisation=st.sampled_from([POOLED, OWN_CLIP]))
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equal_to_the_last_bit_for_any_order_and_batch(make_slide, monkeypatch, data, kind, normalisation):
    stores = [make_slide(sp=_values(kind, (2, 40, 30 + 7 * k), seed=k)).cut(image="sp", tile_px=16) for k in range(3)]
    first = channel_statistics(stores, [], normalisation)
    monkeypatch.setattr(statistics, "_BATCH_BYTES", data.draw(st.sampled_from([1, 9000, 30000])))
    assert channel_statistics(data.draw(st.permutations(stores)), [], normalisation) == first


def test_padding_and_glass_do_not_count(make_slide):
    sp = np.full((1, 20, 40), 7, np.uint16)
    sp[:, :, 16:32] = 90
    slide = make_slide(sp=sp)
    ring = [[0, 0], [12, 0], [12, 20], [0, 20], [0, 0]]
    slide.tissue.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    made = channel_statistics([slide.cut(image="sp", tile_px=16)], [], POOLED.model_copy(update={"log1p": False}))
    assert (made.clip, made.mean, made.std) == ((7.0,), (7.0,), (1.0,)), "only what the outline holds, unpadded"


def test_a_slide_with_little_tissue_counts_what_it_has(make_slide):
    sp = np.full((1, 16, 32), 3, np.uint8)
    sp[:, :, 16:] = 9
    slide = make_slide(sp=sp)
    ring = [[0, 0], [2, 0], [2, 16], [0, 16], [0, 0]]
    slide.tissue.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    assert channel_statistics([slide.cut(image="sp", tile_px=16)], [], POOLED).clip == (3.0,)


def test_pixels_outside_the_outline_do_not_count_even_where_they_are_no_numbers(make_slide):
    sp = np.arange(20 * 40, dtype=np.float32).reshape(1, 20, 40)
    inside = np.zeros((20, 40), bool)
    inside[2:9, 3:21] = True
    slide = make_slide(sp=np.where(inside, sp, np.nan))
    ring = [[3, 2], [21, 2], [21, 9], [3, 9], [3, 2]]
    slide.tissue.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    made = channel_statistics([slide.cut(image="sp", tile_px=16)], [], POOLED)
    clip, mean, std = _expected(sp[:, inside], POOLED)
    np.testing.assert_allclose([made.clip, made.mean, made.std], [clip, mean, std], rtol=1e-7)


def test_tissue_pixels_are_those_inside_the_outline(make_slide):
    slide = make_slide(sp=_values(np.uint16, (1, 40, 50)))
    ring = [[3, 0], [33, 0], [33, 40], [3, 40], [3, 0]]
    hole = [[10, 10], [10, 20], [20, 20], [20, 10], [10, 10]]
    slide.tissue.write_text(json.dumps({"type": "Polygon", "coordinates": [ring, hole]}))
    inside = np.zeros((40, 50), bool)
    inside[:, 3:33] = True
    inside[10:20, 10:20] = False
    store = slide.cut(image="sp", tile_px=16, stride_px=9)
    for tiles in (np.arange(store.n), np.array([4, 0, 4]), np.array([], int)):
        mask = tissue_pixels(store, tiles)
        assert mask.shape == (len(tiles), 16, 16)
        for tile, part in zip(tiles, mask, strict=True):
            y, x = int(store.y_px[tile]), int(store.x_px[tile])
            expected = np.zeros((16, 16), bool)
            expected[: max(0, 40 - y), : max(0, 50 - x)] = inside[y : y + 16, x : x + 16]
            assert np.array_equal(part, expected)
    # At half the resolution pixels are twice as large: those at x = 1 and 16 are half covered.
    coarse = slide.cut(image="sp", tile_px=25, mpp_um=1.0)
    assert np.flatnonzero(tissue_pixels(coarse, np.array([0]))[0, 0]).tolist() == list(range(1, 17))


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_each_slide_clipped_at_its_own_quantile(make_slide, kind):
    images = [(_values(kind, (2, 30, 30 + 5 * k), seed=k) * (k + 1)).astype(kind) for k in range(3)]
    stores = [make_slide(sp=image).cut(image="sp", tile_px=16) for image in images]
    made = channel_statistics(stores, [], OWN_CLIP)
    assert made.clip == ()
    flat = [image.reshape(2, -1).astype(np.float64) for image in images]
    clips = [np.quantile(one, 0.99, axis=1) for one in flat]
    value = [np.log1p(np.clip(one, 0, clip[:, None])) for one, clip in zip(flat, clips, strict=True)]
    pooled = np.concatenate(value, axis=1)
    np.testing.assert_allclose(made.mean, pooled.mean(axis=1), rtol=1e-8)
    np.testing.assert_allclose(made.std, pooled.std(axis=1), rtol=1e-7)
    for store, clip, image in zip(stores, clips, images, strict=True):
        filled = for_slide(made, store, OWN_CLIP)
        np.testing.assert_allclose(filled.clip, clip, rtol=1e-12)
        assert replace(filled, clip=()) == made
        some = for_slide(made.select(["m_CD3"]), store, OWN_CLIP)
        assert some == filled.select(["m_CD3"])
        np.testing.assert_allclose(some.apply(image[1:]), filled.apply(image)[1:])
    assert for_slide(filled, stores[0], OWN_CLIP) is filled, "clipping points that are there stay"
    with pytest.raises(ValueError, match="own"):
        made.apply(images[0])
    alone = channel_statistics(stores[:1], [], OWN_CLIP.model_copy(update={"scope": "slide"}))
    np.testing.assert_allclose(alone.clip, clips[0], rtol=1e-12, err_msg="of one slide by itself nothing is left open")


def test_channels_of_another_slide_are_found_by_marker(make_slide):
    sp = _values(np.uint16, (3, 32, 32))
    one = make_slide(sp=sp, names=("DAPI", "CD3", "CD8")).cut(image="sp", tile_px=16)
    other = make_slide(sp=sp[::-1], names=("CD8", "CD3", "DAPI")).cut(image="sp", tile_px=16)
    pooled = channel_statistics([one], ["m_CD8", "m_DAPI"], OWN_CLIP)
    assert for_slide(pooled, other, OWN_CLIP) == for_slide(pooled, one, OWN_CLIP)
    lacking = make_slide(sp=sp[:2], names=("DAPI", "CD3")).cut(image="sp", tile_px=16)
    with pytest.raises(SlideError, match="m_CD8") as caught:
        for_slide(pooled, lacking, OWN_CLIP)
    assert (caught.value.code, caught.value.where) == ("missing_marker", lacking.slide_id)


def test_two_channels_of_one_marker(make_slide):
    sp = _values(np.uint16, (2, 32, 32))
    twice = [make_slide(sp=sp * k, names=("DAPI", "DAPI")).cut(image="sp", tile_px=16) for k in (1, 2)]
    pooled = channel_statistics(twice, [], OWN_CLIP)
    clip = for_slide(pooled, twice[1], OWN_CLIP).clip
    np.testing.assert_allclose(clip, np.quantile(sp.reshape(2, -1) * 2, 0.99, axis=1))
    other = make_slide(sp=sp, names=("DAPI", "CD3")).cut(image="sp", tile_px=16)
    for act in (lambda: channel_statistics([*twice, other], [], OWN_CLIP), lambda: for_slide(pooled, other, OWN_CLIP)):
        with pytest.raises(SlideError, match="several channels"):
            act()


def test_what_callers_must_settle(make_slide):
    store = make_slide(sp=_values(np.uint16, (1, 20, 20))).cut(image="sp", tile_px=16)
    pooled = channel_statistics([store], [], OWN_CLIP)
    for act in (
        lambda: channel_statistics([store], [], NormalisationConfig()),
        lambda: for_slide(pooled, store, NormalisationConfig()),
        lambda: channel_statistics([store, store], [], OWN_CLIP.model_copy(update={"scope": "slide"})),
    ):
        with pytest.raises(SlideloomError) as caught:
            act()
        assert caught.value.code == "internal"


def test_figures_of_the_original_virtues(make_slide, shared):
    """0.99 quantile, mean and deviation inside an arbitrary mask, as the original computed them."""
    golden = load_file(shared / "fixtures" / "virtues" / "preprocess_5ch_40x48.safetensors")
    raw, mask = golden["raw"], golden["tissue_mask"].astype(bool)
    slide = make_slide(sp=raw, names=("DAPI", "CD3", "CD8", "CK", "CD20"))
    squares = [box(x, y, x + 1, y + 1) for y, x in np.argwhere(mask)]
    slide.tissue.write_text(json.dumps(mapping(union_all(squares))))
    for tile_px in (16, 48):
        store = slide.cut(image="sp", tile_px=tile_px)
        assert tissue_pixels(store, np.arange(store.n)).sum() == mask.sum()
        pooled = channel_statistics([store], [], OWN_CLIP)
        own = for_slide(pooled, store, OWN_CLIP)
        for got, name in ((own.clip, "upper_quantile_q99"), (pooled.mean, "mean_log1p"), (pooled.std, "std_log1p")):
            np.testing.assert_allclose(got, golden[name].ravel(), atol=1e-5, rtol=1e-6, err_msg=name)


def test_a_rare_signal_is_not_wiped_out(make_slide):
    for kind in (np.uint16, np.float32):
        sp = np.zeros((1, 64, 64), kind)
        sp[0, 5, 5] = 40
        made = channel_statistics([make_slide(sp=sp).cut(image="sp", tile_px=64)], [], POOLED)
        assert made.clip == (40.0,)
        assert made.apply(sp)[0, 5, 5] > 10


def test_markers_are_picked_in_the_order_asked_for(make_slide):
    sp = _values(np.uint16, (4, 32, 32))
    store = make_slide(sp=sp).cut(image="sp", tile_px=16)
    every = channel_statistics([store], [], POOLED)
    some = channel_statistics([store], ["m_CK", "m_DAPI"], POOLED)
    assert some.markers == ("m_CK", "m_DAPI")
    assert some.mean == (every.mean[3], every.mean[0])


def test_panels_in_another_order(make_slide):
    sp = _values(np.uint16, (2, 32, 32))
    one = make_slide(sp=sp, names=("DAPI", "CD3")).cut(image="sp", tile_px=16)
    other = make_slide(sp=sp[::-1], names=("CD3", "DAPI")).cut(image="sp", tile_px=16)
    both = channel_statistics([one, other], [], POOLED)
    assert both == channel_statistics([one, one], [], POOLED)


def test_a_missing_marker_names_itself_the_slide_and_what_there_is(make_slide):
    store = make_slide(sp=_values(np.uint16, (2, 20, 20))).cut(image="sp", tile_px=16)
    with pytest.raises(SlideError) as caught:
        channel_statistics([store], ["m_DAPI", "FOXP3"], POOLED)
    assert caught.value.code == "missing_marker"
    for word in ("FOXP3", "m_CD3", store.slide_id):
        assert word in caught.value.message


def test_what_cannot_be_pooled(make_slide):
    small = make_slide(sp=_values(np.uint8, (1, 20, 20))).cut(image="sp", tile_px=16)
    large = make_slide(sp=_values(np.uint16, (1, 20, 20))).cut(image="sp", tile_px=16)
    with pytest.raises(SlideError) as caught:
        channel_statistics([small, large], [], POOLED)
    assert caught.value.code == "mixed_dtypes"
    with pytest.raises(SlideError) as caught:
        channel_statistics([], [], POOLED)
    assert caught.value.code == "no_patches"
    holed = _values(np.float32, (1, 20, 20))
    holed[0, 3, 3] = np.nan
    with pytest.raises(SlideError) as caught:
        channel_statistics([make_slide(sp=holed).cut(image="sp", tile_px=16)], [], POOLED)
    assert caught.value.code == "non_finite_pixels"


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
    value = channel_statistics([store], [], POOLED).apply(sp)
    assert np.allclose(value.mean(axis=(1, 2)), 0, atol=1e-4)
    assert np.allclose(value.std(axis=(1, 2)), 1, atol=1e-4)


def test_json_round_trip():
    made = ChannelStatistics(("a",), (0.1 + 0.2,), (1 / 3,), (2 / 3,), False)
    for one in (made, replace(made, clip=())):
        assert ChannelStatistics.from_dict(json.loads(json.dumps(one.as_dict()))) == one


def test_select():
    made = ChannelStatistics(("a", "b", "c"), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), (7.0, 8.0, 9.0), True)
    some = ChannelStatistics(("c", "a"), (3.0, 1.0), (6.0, 4.0), (9.0, 7.0), True)
    assert made.select(["c", "a"]) == some
    assert replace(made, clip=()).select(["c", "a"]) == replace(some, clip=())
    with pytest.raises(SlideError, match=r"FOXP3.*a, b, c") as caught:
        made.select(["a", "FOXP3"])
    assert caught.value.code == "missing_marker"


def test_marker_indices():
    channels = [Channel("DAPI", "DNA"), Channel("DAPI2", "DNA"), Channel("CD3", "CD3"), Channel("red", "")]
    assert marker_indices(channels, []) == [0, 1, 2, 3]
    assert marker_indices(channels, ["CD3", "DNA", "red"]) == [2, 0, 3]


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
@pytest.mark.parametrize("log1p", [True, False])
@pytest.mark.parametrize("whose", ["training", "slide"])
def test_scope_clip_brings_the_quantile_to_one_and_takes_no_mean_off(make_slide, kind, log1p, whose):
    images = [np.abs(_values(kind, (2, 30, 30 + 5 * k), seed=k) * (k + 1)).astype(kind) for k in range(2)]
    slides = [make_slide(sp=image) for image in images]
    stores = [slide.cut(image="sp", tile_px=16) for slide in slides]
    config = NormalisationConfig(scope="clip", clip=whose, clip_quantile=0.99, log1p=log1p)
    groups = [stores] if whose == "training" else [[store] for store in stores]
    pixels = [image.reshape(2, -1).astype(np.float64) for image in images]
    pixels = [np.concatenate(pixels, axis=1)] if whose == "training" else pixels
    for group, values in zip(groups, pixels, strict=True):
        made = channel_statistics(group, [], config)
        top = np.quantile(values, 0.99, axis=1, keepdims=True)
        expected = np.minimum(values, top)
        expected = np.log1p(expected) / np.log1p(top) if log1p else expected / top
        np.testing.assert_allclose(made.apply(values[:, None])[:, 0], expected, rtol=1e-5, atol=1e-6)
        assert made.apply(values[:, None]).max() == pytest.approx(1)
        assert ChannelStatistics.from_dict(json.loads(json.dumps(made.as_dict()))) == made
        if whose == "training":
            assert for_slide(made, stores[0], config) is made
        else:
            left_open = replace(made, clip=())
            assert for_slide(left_open, group[0], config) == made, "what is each slide's own is filled in"
    if whose == "slide":
        with pytest.raises(SlideloomError, match="scope: clip"):
            channel_statistics(stores, [], config)


def test_scope_clip_leaves_a_channel_without_signal_at_zero(make_slide):
    sp = np.stack([np.zeros((20, 20), np.uint16), np.full((20, 20), 7, np.uint16)])
    config = NormalisationConfig(scope="clip", clip="slide", clip_quantile=0.99, log1p=False)
    made = channel_statistics([make_slide(sp=sp).cut(image="sp", tile_px=16)], [], config)
    assert np.array_equal(made.apply(sp), np.minimum(sp, 1).astype(np.float32))
