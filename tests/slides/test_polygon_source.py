from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.instances.exports.conftest import CLASSES as EXPORTED
from tests.instances.exports.conftest import SCALE, make

from slideloom.errors import SlideError
from slideloom.instances.exports.qupath import export_geojson
from slideloom.slides.annotations import open_annotations, read_annotations, slide_annotations
from slideloom.slides.facts import ImageFacts, SlideFacts
from slideloom.slides.polygon_source import check_polygons, polygon_image
from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import Source
from slideloom.slides.tables import ClassTable

CLASSES = ClassTable((1, 2), ("a", "b"), ((0, 0, 0),) * 2)


def _image(height, width, mpp_um=0.5):
    return ImageFacts("x", "r", height, width, 1, "uint8", mpp_um, "sheet", (), (), False)


def _facts(**images):
    return SlideFacts("s", images)


def _feature(rings, name=None):
    properties = {"objectType": "detection"} | ({"classification": {"name": name}} if name else {})
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings}, "properties": properties}


def _box(x, y, width, height):
    return [[[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]]


def _write(folder, features):
    (folder / "n.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return SlideRow("s", instances="n.geojson")


def _along_pixels(labels):
    """Features along the edges of each instance's pixels, drawn by another library."""
    features = []
    for number in range(1, labels.max() + 1):
        pixels = [shapely.box(x, y, x + 1, y + 1) for y, x in np.argwhere(labels == number).tolist()]
        outline = json.loads(shapely.to_geojson(shapely.union_all(pixels)))
        properties = {"objectType": "detection", "classification": {"name": "ab"[number % 2]}}
        features.append({"type": "Feature", "geometry": outline, "properties": properties})
    return features


@pytest.fixture(scope="module")
def labels():
    """Blobs that touch, with holes and in several parts."""
    rng = np.random.default_rng(3)
    smooth = cv2.GaussianBlur(rng.normal(size=(31, 43)), (0, 0), 1.6)
    found = cv2.connectedComponents((smooth > 0).astype(np.uint8))[1]
    found[:, 20:] += (found[:, 20:] > 0) * found.max()  # cut in two that touch
    numbers = np.unique(found, return_inverse=True)[1].reshape(found.shape)
    assert numbers.max() > 8
    return numbers.astype(np.int32)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.7, 1.3, 2.0, 3.0, 5.9])
def test_outlines_along_pixels_are_the_label_image_on_every_grid(tmp_path, labels, scale):
    np.save(tmp_path / "l.npy", labels)
    drawn = np.where(labels > 0, np.where(labels % 2, 2, 1), 0).astype(np.uint8)
    np.save(tmp_path / "c.npy", drawn)
    row = _write(tmp_path, _along_pixels(labels))
    for facts, modality in (
        (_facts(sp=_image(31, 43)), "sp"),
        (_facts(he=_image(33, 40, 0.6), sp=_image(31, 43)), "he"),
    ):
        as_image = SlideRow("s", instances="l.npy", classes="c.npy")
        expected = slide_annotations(as_image, tmp_path, facts, modality, scale, CLASSES)
        named = SlideRow("s", instances=f"{row.instances}::sp")
        found = slide_annotations(named, tmp_path, facts, modality, scale, CLASSES)
        for name in ("instances", "class_map"):
            assert np.array_equal(getattr(found, name), getattr(expected, name))
            assert getattr(found, name).dtype == getattr(expected, name).dtype
    assert np.array_equal(slide_annotations(row, tmp_path, _facts(sp=_image(31, 43)), "sp", 1.0, CLASSES)[0], labels)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_windows_hold_what_the_whole_annotation_holds(tmp_path, data):
    seed = data.draw(st.integers(0, 5))
    rng = np.random.default_rng(seed)
    at = rng.uniform(-30, [2100, 1400], (60, 2))
    size = rng.uniform(5, 400, (60, 2))
    features = [
        _feature(_box(*a, *b), "ab"[n % 2]) for n, (a, b) in enumerate(zip(at.tolist(), size.tolist(), strict=True))
    ]
    row, facts = _write(tmp_path, features), _facts(sp=_image(1400, 2100))
    scale = data.draw(st.sampled_from([4.0, 7.3]))
    whole = slide_annotations(row, tmp_path, facts, "sp", scale, CLASSES)
    assert len(np.unique(whole.instances)) > 20
    with open_annotations(row, tmp_path, facts, "sp", scale, CLASSES) as opened:
        for _ in range(4):
            window = tuple(
                slice(*sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))) for n in opened.shape
            )
            part = opened.read(window)
            assert part.instances.tobytes() == whole.instances[window].tobytes()
            assert part.class_map.tobytes() == whole.class_map[window].tobytes()
            assert part.instances.shape == whole.instances[window].shape


def test_our_own_export_comes_back_pixel_by_pixel(tmp_path):
    exported = make(tmp_path, 40, shape=(120, 160))
    export_geojson(exported.cells_path, EXPORTED, tmp_path / "s-1.geojson.zip")
    row = SlideRow("s-1", instances="s-1.geojson.zip")
    maps, warnings = read_annotations(row, tmp_path, exported.facts, "sp", SCALE, EXPORTED)
    assert np.array_equal(maps.instances, exported.labels)
    assert warnings == ()
    assert set(np.unique(maps.class_map[exported.labels == 2])) == {255}, "a nucleus without a class"
    assert {1, 2} <= set(np.unique(maps.class_map))


def test_order_and_classes(tmp_path):
    features = [_feature(_box(0, 0, 4, 4), "a"), _feature(_box(2, 0, 4, 4)), _feature(_box(9, 9, 0.1, 0.1), "b")]
    row, facts = _write(tmp_path, features), _facts(sp=_image(12, 12))
    with open_annotations(row, tmp_path, facts, "sp", 1.0, CLASSES) as opened:
        assert opened.has_classes
        maps = opened.read((slice(0, 4), slice(0, 8)))
    assert maps.instances[0].tolist() == [1, 1, 2, 2, 2, 2, 0, 0]
    assert maps.class_map[0].tolist() == [1, 1, 255, 255, 255, 255, 0, 0]
    row = _write(tmp_path, features[1:2])
    with open_annotations(row, tmp_path, facts, "sp", 1.0, CLASSES) as opened:
        assert not opened.has_classes


def test_an_empty_file_is_a_slide_without_nuclei(tmp_path):
    maps = slide_annotations(_write(tmp_path, []), tmp_path, _facts(sp=_image(5, 6)), "sp", 1.0, CLASSES)
    assert maps.instances.shape == (5, 6)
    assert not maps.instances.any()
    assert not maps.class_map.any()


def test_nuclei_outside_of_the_image(tmp_path):
    inside, outside = _feature(_box(0, 0, 4, 4)), _feature(_box(50, 50, 4, 4))
    facts = _facts(sp=_image(12, 12))
    maps, warnings = read_annotations(_write(tmp_path, [inside, outside]), tmp_path, facts, "sp", 1.0, CLASSES)
    assert np.unique(maps.instances).tolist() == [0, 1]
    assert "1 of 2 nuclei lie outside" in warnings[0]
    with pytest.raises(SlideError) as caught:
        read_annotations(_write(tmp_path, [inside, outside, outside]), tmp_path, facts, "sp", 1.0, CLASSES)
    assert caught.value.code == "annotation_outside"
    assert "x reaches 54" in caught.value.message
    assert caught.value.where.startswith("s, n.geojson")


def test_classes_beside_geojson_are_refused(tmp_path):
    row = SlideRow("s", instances=_write(tmp_path, []).instances, classes="c.csv")
    with pytest.raises(SlideError) as caught:
        open_annotations(row, tmp_path, _facts(sp=_image(5, 6)), "sp", 1.0, CLASSES)
    assert caught.value.code == "annotation_classes"


def test_whose_pixels_are_counted(tmp_path):
    one, same = {"sp": _image(5, 6)}, {"he": _image(5, 6), "sp": _image(5, 6)}
    two = {"he": _image(10, 12, 0.25), "sp": _image(5, 6)}
    plain = Source(tmp_path / "n.geojson")
    assert polygon_image(plain, one) == "sp"
    assert polygon_image(plain, same) == "he"
    assert polygon_image(plain, two, "sp") == "sp"
    assert polygon_image(Source(plain.path, "he"), two, "sp") == "he"
    for source, images in ((plain, two), (Source(plain.path, "he"), one), (Source(plain.path, "x"), two)):
        with pytest.raises(SlideError) as caught:
            polygon_image(source, images)
        assert caught.value.code == "annotation_frame"
        assert "n.geojson::sp" in caught.value.expected
    row = SlideRow("s", instances=_write(tmp_path, [_feature(_box(4, 4, 4, 4))]).instances + "::he")
    maps = slide_annotations(row, tmp_path, _facts(**two), "sp", 1.0, CLASSES)
    assert maps.instances[2:4, 2:4].all()
    assert np.count_nonzero(maps.instances) == 4


def test_the_beginning_of_a_file_is_checked(tmp_path):
    _write(tmp_path, [])
    images, source = {"sp": _image(5, 6)}, Source(tmp_path / "n.geojson")
    check_polygons(source, images)
    for content, code in (
        ("{", "annotation_unreadable"),
        ("[5]", "annotation_unreadable"),
        (None, "annotation_missing"),
    ):
        source.path.write_text(content) if content else source.path.unlink()
        with pytest.raises(SlideError) as caught:
            check_polygons(source, images)
        assert caught.value.code == code
