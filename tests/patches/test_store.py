from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slideloom.artefacts.zarrio import open_array
from slideloom.errors import SlideError
from slideloom.patches import bands
from slideloom.slides.open import open_image
from slideloom.slides.region import read_region
from slideloom.slides.source import parse_source


def _sp(height, width, channels=2, dtype=np.uint16, seed=0):
    return np.random.default_rng(seed).integers(1, 200, (channels, height, width)).astype(dtype)


def _reassemble(store):
    whole = np.zeros((len(store.channels), store.height_px, store.width_px), store.dtype)
    for index, patch in enumerate(store.pixels(slice(None))):
        y, x, height, width = (
            int(column[index]) for column in (store.y_px, store.x_px, store.height_valid, store.width_valid)
        )
        whole[:, y : y + height, x : x + width] = patch[:, :height, :width]
    return whole


@given(
    size=st.tuples(st.integers(3, 70), st.integers(3, 70)),
    tile=st.integers(8, 24),
    budget=st.sampled_from([1, 3000, 20000, 1 << 27]),
    data=st.data(),
)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_patches_put_back_together_are_the_slide(make_slide, monkeypatch, size, tile, budget, data):
    stride = data.draw(st.integers(5, tile))
    sp = _sp(*size)
    slide = make_slide(sp=sp)
    monkeypatch.setattr(bands, "_READ_BYTES", budget)
    store = slide.cut(image="sp", tile_px=tile, stride_px=stride)
    assert np.array_equal(_reassemble(store), sp)
    valid = store.valid(slice(None))
    pixels = store.pixels(slice(None)).transpose(0, 2, 3, 1)
    assert not pixels[~valid].any(), "padding is 0"
    assert (pixels[valid] > 0).all()
    if stride == tile:
        assert valid.sum() == size[0] * size[1], "each pixel of the slide is in one patch"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_the_source_dtype_is_kept(make_slide, dtype):
    sp = _sp(50, 40, dtype=dtype)
    store = make_slide(sp=sp).cut(image="sp", tile_px=32)
    assert store.dtype == dtype
    assert np.array_equal(_reassemble(store), sp)


def test_he_is_padded_with_white(make_slide):
    he = np.random.default_rng(0).integers(0, 200, (50, 40, 3)).astype(np.uint8)
    store = make_slide(he=he).cut(image="he", tile_px=32)
    assert np.array_equal(_reassemble(store), he.transpose(2, 0, 1))
    assert store.is_rgb
    assert [channel.name for channel in store.channels] == ["red", "green", "blue"]
    outside = store.pixels(slice(None)).transpose(0, 2, 3, 1)[~store.valid(slice(None))]
    assert outside.size
    assert (outside == 255).all()


def test_places_and_attributes(make_slide):
    slide = make_slide(sp=_sp(100, 90), mpp_um=0.25)
    store = slide.cut(image="sp", tile_px=16, mpp_um=0.5)
    assert (store.height_px, store.width_px, store.scale, store.mpp_um) == (50, 45, 2.0, 0.5)
    assert store.n == 4 * 3
    assert store.row.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert store.col.tolist() == [0, 1, 2] * 4
    assert np.array_equal(store.y_px, store.row * 16)
    assert np.array_equal(store.x_lv0_px, store.x_px * 2.0)
    assert store.y_lv0_px.dtype == np.float64
    assert store.width_valid.tolist() == [16, 16, 13] * 4
    assert (store.tissue == 1).all()
    assert store.tissue.dtype == np.float32
    assert store.attributes["n_dropped"] == 0
    assert [channel.marker for channel in store.channels] == ["m_DAPI", "m_CD3"]
    with open_image(parse_source("sp.npy", slide.root), "sp") as image:
        assert np.array_equal(_reassemble(store), read_region(image, 0, 0, 50, 45, 2.0))


def test_the_slides_of_the_report(make_slide):
    sp = np.zeros((1, 3000, 3000), np.uint8)
    store = make_slide(sp=sp).cut(image="sp", tile_px=120)
    assert store.n == 625
    assert store.valid(slice(None)).all()


def test_tiles_without_tissue_are_left_out_and_counted(make_slide):
    sp = _sp(64, 64)
    slide = make_slide(sp=sp)
    ring = [[0, 0], [64, 0], [64, 20], [0, 20], [0, 0]]
    slide.tissue.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    store = slide.cut(image="sp", tile_px=16, min_tissue=0.5)
    assert store.row.tolist() == [0, 0, 0, 0]
    assert store.attributes["n_dropped"] == 12
    assert np.array_equal(store.pixels([2])[0], sp[:, :16, 32:48])
    everything = slide.cut(image="sp", tile_px=16)
    assert everything.n == 16
    assert np.allclose(everything.tissue.reshape(4, 4)[:, 0], [1, 0.25, 0, 0])
    slide.tissue.write_text(json.dumps({"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}))
    with pytest.raises(SlideError) as caught:
        slide.cut(image="sp", tile_px=16, min_tissue=0.5)
    assert caught.value.code == "no_tissue"


@pytest.mark.parametrize("budget", [1, 5000, 1 << 27])
def test_scattered_tissue(make_slide, monkeypatch, budget):
    sp = _sp(160, 200)
    slide = make_slide(sp=sp)
    boxes = [(0, 0), (100, 0), (40, 60), (180, 140), (60, 140)]
    rings = [[[[x, y], [x + 20, y], [x + 20, y + 20], [x, y + 20], [x, y]]] for x, y in boxes]
    slide.tissue.write_text(json.dumps({"type": "MultiPolygon", "coordinates": rings}))
    monkeypatch.setattr(bands, "_READ_BYTES", budget)
    store = slide.cut(image="sp", tile_px=20, min_tissue=0.9)
    assert store.n == len(boxes)
    for index, patch in enumerate(store.pixels(slice(None))):
        y, x = int(store.y_px[index]), int(store.x_px[index])
        assert (x, y) in boxes
        assert np.array_equal(patch, sp[:, y : y + 20, x : x + 20])


def test_each_pixel_is_read_once_where_memory_allows(make_slide, monkeypatch):
    slide = make_slide(sp=_sp(90, 100))
    windows = []

    def spy(image, y, x, height, width, *rest):
        windows.append((y, x, height, width))
        return read_region(image, y, x, height, width, *rest)

    monkeypatch.setattr(bands, "read_region", spy)
    slide.cut(image="sp", tile_px=32)
    assert windows == [(0, 0, 90, 100)]
    windows.clear()
    monkeypatch.setattr(bands, "_READ_BYTES", 100 * 40 * 4)
    slide.cut(image="sp", tile_px=32)
    assert sum(height * width for _, _, height, width in windows) == 90 * 100


def test_pixels_of_any_indices(make_slide):
    store = make_slide(sp=_sp(64, 64)).cut(image="sp", tile_px=16)
    every = store.pixels(slice(None))
    for indices in ([3], [3, 4, 5], [9, 2, 2, 15], np.array([0, 15]), slice(2, 9, 3), [-1], [], slice(5, 5)):
        picked = store.pixels(indices)
        assert np.array_equal(picked, every[indices if isinstance(indices, slice) else np.asarray(indices, int)])
        assert picked.flags.c_contiguous
    with pytest.raises(IndexError):
        store.pixels([16])
    assert store.valid([0, 3]).shape == (2, 16, 16)


def test_codecs_follow_the_kind_of_pixel(make_slide):
    codecs = {}
    for name, sp, he in (
        ("counts", _sp(40, 40), None),
        ("float", _sp(40, 40, dtype=np.float32), None),
        ("rgb", None, np.zeros((40, 40, 3), np.uint8)),
    ):
        store = make_slide(sp=sp, he=he).cut(image="sp" if he is None else "he", tile_px=16)
        inner = json.loads((store.path / "pixels" / "zarr.json").read_text())["codecs"][0]["configuration"]["codecs"]
        codecs[name] = [codec["name"] for codec in inner]
    assert codecs == {"counts": ["bytes", "blosc"], "float": ["bytes"], "rgb": ["bytes"]}


def test_shards_are_written_whole(make_slide, monkeypatch):
    monkeypatch.setattr("slideloom.artefacts.zarrio._SHARD_BYTES", 16 * 16 * 2 * 2 * 5)
    monkeypatch.setattr("slideloom.artefacts.zarrio._INNER_BYTES", 16 * 16 * 2 * 2)
    sp = _sp(64, 70)
    store = make_slide(sp=sp).cut(image="sp", tile_px=16)
    assert open_array(store.path / "pixels").chunk_layout.write_chunk.shape[0] == 5
    assert np.array_equal(_reassemble(store), sp)


def test_the_missing_image_is_named(make_slide):
    with pytest.raises(SlideError) as caught:
        make_slide(sp=_sp(20, 20)).cut(image="he", tile_px=16)
    assert caught.value.code == "no_image"


def test_a_failure_leaves_nothing(make_slide, monkeypatch):
    slide = make_slide(sp=_sp(64, 64))

    def broken(*_):
        raise SlideError("a tile cannot be decoded", code="corrupt_data")

    monkeypatch.setattr(bands, "read_region", broken)
    with pytest.raises(SlideError):
        slide.cut(image="sp", tile_px=16)
    assert [path.name for path in slide.root.iterdir() if "zarr" in path.name] == []


def test_a_corrupt_slide_fails_with_its_reason(shared, tmp_path):
    from slideloom.config.model import GridConfig, TissueConfig
    from slideloom.patches.cut import cut_patches
    from slideloom.slides.headers import read_facts
    from slideloom.slides.sheet import SlideRow
    from slideloom.slides.tables import MarkerTable
    from slideloom.slides.tissue import write_tissue

    root, row = shared / "data", SlideRow("corrupt", he="wsi_broken/corrupt_tile.svs")
    facts = read_facts(row, root, MarkerTable())
    with pytest.raises(SlideError) as caught:
        write_tissue(facts, row, root, TissueConfig(), tmp_path / "t.geojson", tmp_path / "t.png")
    assert caught.value.code == "corrupt_data"
    ring = [[0, 0], [2220, 0], [2220, 2967], [0, 2967], [0, 0]]
    (tmp_path / "t.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    with pytest.raises(SlideError) as caught:
        cut_patches(row, root, facts, tmp_path / "t.geojson", GridConfig(image="he", tile_px=256), tmp_path / "p.zarr")
    assert caught.value.code == "corrupt_data"
    assert not (tmp_path / "p.zarr").exists()
