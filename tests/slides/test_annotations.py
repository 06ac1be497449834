from __future__ import annotations

import csv

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from slideloom.errors import SlideError
from slideloom.slides.annotations import open_annotations, read_annotations, slide_annotations
from slideloom.slides.facts import ImageFacts, SlideFacts
from slideloom.slides.grid import grid_size
from slideloom.slides.sheet import SlideRow
from slideloom.slides.tables import ClassTable

CLASSES = ClassTable((1, 2, 3, 4), ("a", "b", "c", "d"), ((0, 0, 0),) * 4, (("0",), ("1",), ("2",), ("3",)))
PLAIN = ClassTable((1, 2), ("a", "b"), ((0, 0, 0),) * 2)


def _image(height, width, mpp_um=0.5):
    return ImageFacts("x", "r", height, width, 1, "uint8", mpp_um, "sheet", (), (), False)


def _facts(**images):
    return SlideFacts("s", images)


@pytest.fixture
def instances(tmp_path):
    labels = np.zeros((20, 30), np.int64)
    labels[2:6, 3:9] = 2_000_000_000
    labels[6:9, 3:9] = 5
    labels[12:19, 20:30] = 7
    np.save(tmp_path / "i.npy", labels)
    return labels


def test_without_classes_every_nucleus_is_of_unknown_class(tmp_path, instances):
    row = SlideRow("s", instances="i.npy")
    maps = slide_annotations(row, tmp_path, _facts(sp=_image(20, 30)), "sp", 1.0, CLASSES)
    assert np.array_equal(maps.instances, instances)
    assert maps.instances.dtype == np.int32
    assert np.array_equal(maps.class_map, np.where(instances > 0, 255, 0))
    assert maps.class_map.dtype == np.uint8


def test_no_annotation(tmp_path):
    assert slide_annotations(SlideRow("s"), tmp_path, _facts(sp=_image(20, 30)), "sp", 1.0, CLASSES) is None


def test_class_table(tmp_path, instances):
    (tmp_path / "c.csv").write_text("label_id,class_id\n5,0\n5,1\n5,1\n7,3\n99,3\n0,2\n")
    row = SlideRow("s", instances="i.npy", classes="c.csv")
    maps, warnings = read_annotations(row, tmp_path, _facts(sp=_image(20, 30)), "sp", 1.0, CLASSES)
    expected = np.select([instances == 5, instances == 7, instances > 0], [2, 4, 255], 0)
    assert np.array_equal(maps.class_map, expected)
    text = " | ".join(warnings)
    assert "disagree" in text
    assert "1 of 3 instance ids are not in" in text
    assert "1 of 3 instances have no class" in text


def test_class_table_without_a_row_for_the_field(tmp_path, instances):
    (tmp_path / "c.csv").write_text("image,label_id,class_id\nother,5,0\n")
    row = SlideRow("s", instances="i.npy", classes="c.csv::field")
    with pytest.raises(SlideError) as caught:
        slide_annotations(row, tmp_path, _facts(sp=_image(20, 30)), "sp", 1.0, CLASSES)
    assert caught.value.code == "annotation_no_rows"
    assert "c.csv::field" in caught.value.message


def test_class_image(tmp_path, instances):
    drawn = np.where(instances == 5, 1, np.where(instances == 7, 2, 0)).astype(np.uint8)
    drawn[0, 0] = 1
    Image.fromarray(drawn).save(tmp_path / "c.png")
    row = SlideRow("s", instances="i.npy", classes="c.png")
    maps, warnings = read_annotations(row, tmp_path, _facts(sp=_image(20, 30)), "sp", 1.0, PLAIN)
    assert np.array_equal(maps.class_map, np.select([instances == 5, instances == 7, instances > 0], [1, 2, 255], 0))
    assert len(warnings) == 1
    assert "1 px" in warnings[0]
    drawn[0, 0] = 3
    Image.fromarray(drawn).save(tmp_path / "c.png")
    with pytest.raises(SlideError) as caught:
        read_annotations(row, tmp_path, _facts(sp=_image(20, 30)), "sp", 1.0, PLAIN)
    assert caught.value.code == "unknown_class"


def test_sizes_must_fit(tmp_path, instances):
    row = SlideRow("s", instances="i.npy")
    with pytest.raises(SlideError) as caught:
        slide_annotations(row, tmp_path, _facts(sp=_image(21, 30)), "sp", 1.0, CLASSES)
    assert caught.value.code == "annotation_shape"
    assert "21 x 30" in caught.value.message
    np.save(tmp_path / "c.npy", np.zeros((3, 3), np.uint8))
    row = SlideRow("s", instances="i.npy", classes="c.npy")
    with pytest.raises(SlideError) as caught:
        slide_annotations(row, tmp_path, _facts(sp=_image(20, 30)), "sp", 1.0, CLASSES)
    assert caught.value.code == "annotation_shape"


@pytest.mark.parametrize("scale", [0.5, 0.7, 1.3, 2.0, 3.0, 7.9])
def test_grid_pixels_take_the_value_at_their_centre(tmp_path, instances, scale):
    row = SlideRow("s", instances="i.npy")
    maps = slide_annotations(row, tmp_path, _facts(sp=_image(20, 30)), "sp", scale, CLASSES)
    height, width = grid_size(20, 30, scale)
    assert maps.instances.shape == (height, width)
    for y in range(height):
        for x in range(width):
            at = min(19, int((y + 0.5) * scale)), min(29, int((x + 0.5) * scale))
            assert maps.instances[y, x] == instances[at]


def test_an_annotation_of_the_other_image_is_placed_by_physical_size(tmp_path, instances):
    facts = _facts(he=_image(20, 30, 0.5), sp=_image(10, 15, 1.0))
    row = SlideRow("s", instances="i.npy")
    maps = slide_annotations(row, tmp_path, facts, "sp", 1.0, CLASSES)
    assert np.array_equal(maps.instances, instances[1::2, 1::2])
    larger = _facts(he=_image(20, 30, 0.5), sp=_image(14, 15, 1.0))
    maps = slide_annotations(row, tmp_path, larger, "sp", 1.0, CLASSES)
    assert np.array_equal(maps.instances[:10], instances[1::2, 1::2])
    assert not maps.instances[10:].any(), "where the annotation has ended, there is none"


def test_nucls(shared):
    root = shared / "data" / "nucls_he_15"
    with (root / "nuclei_classes.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    for name in ("train_01", "test_05"):
        row = SlideRow(name, instances=f"{name}_labels.png", classes=f"nuclei_classes.csv::{name}")
        maps = slide_annotations(row, root, _facts(he=_image(260, 288, 0.2)), "he", 1.0, CLASSES)
        labels = np.asarray(Image.open(root / f"{name}_labels.png"))
        assert np.array_equal(maps.instances, labels)
        votes: dict[int, list[int]] = {}
        for one in rows:
            if one["image"] == name and int(one["label_id"]):
                votes.setdefault(int(one["label_id"]), []).append(int(one["class_id"]) + 1)
        for number in np.unique(labels[labels > 0]):
            group = votes.get(int(number))
            expected = min(set(group), key=lambda one: (-group.count(one), one)) if group else 255
            assert set(maps.class_map[labels == number].tolist()) == {expected}


def _any_window(draw, shape):
    return tuple(slice(*sorted((draw(st.integers(0, size)), draw(st.integers(0, size))))) for size in shape)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_windows_hold_what_the_whole_annotation_holds(tmp_path, instances, data):
    scale = data.draw(st.sampled_from([0.5, 0.7, 1.0, 1.3, 2.0, 7.9]))
    kind = data.draw(st.sampled_from(["", "c.csv", "c.png"]))
    (tmp_path / "c.csv").write_text("label_id,class_id\n5,1\n7,3\n")
    Image.fromarray(np.where(instances == 5, 1, np.where(instances == 7, 2, 0)).astype(np.uint8)).save(
        tmp_path / "c.png"
    )
    facts = data.draw(
        st.sampled_from(
            [
                _facts(sp=_image(20, 30)),
                _facts(he=_image(20, 30, 0.5), sp=_image(14, 15, 1.0)),
                _facts(sp=_image(20, 30)),
            ]
        )
    )
    row = SlideRow("s", instances="i.npy", classes=kind or None)
    whole = slide_annotations(row, tmp_path, facts, "sp", scale, CLASSES)
    with open_annotations(row, tmp_path, facts, "sp", scale, CLASSES) as opened:
        assert opened.shape == whole.instances.shape == grid_size(*facts.images["sp"].shape, scale)
        assert opened.has_classes == bool(kind)
        window = _any_window(data.draw, opened.shape)
        part = opened.read(window)
        for name in ("instances", "class_map"):
            expected, view = getattr(whole, name), getattr(opened, name)
            for found in (getattr(part, name), view[window]):
                assert found.dtype == expected.dtype
                assert found.tobytes() == expected[window].tobytes()
                assert found.shape == expected[window].shape
            assert np.array_equal(np.asarray(view), expected)
            assert (view.shape, view.dtype, view.ndim) == (expected.shape, expected.dtype, 2)


def test_a_label_image_of_the_size_of_the_grid_has_its_pixels(tmp_path, instances):
    row = SlideRow("s", instances="i.npy")
    maps = slide_annotations(row, tmp_path, _facts(sp=_image(47, 70)), "sp", 2.333, CLASSES)
    assert grid_size(47, 70, 2.333) == (20, 30)
    assert np.array_equal(maps.instances, instances)
    with pytest.raises(SlideError, match="20 x 30 or 47 x 70"):
        np.save(tmp_path / "i.npy", instances[1:])
        slide_annotations(row, tmp_path, _facts(sp=_image(47, 70)), "sp", 2.333, CLASSES)


@pytest.mark.parametrize(("value", "code"), [(-1, "annotation_negative"), (2**31, "annotation_range")])
def test_what_a_window_holds_is_refused_when_it_is_read(tmp_path, instances, value, code):
    instances[15, 25] = value
    np.save(tmp_path / "i.npy", instances)
    row = SlideRow("s", instances="i.npy")
    with open_annotations(row, tmp_path, _facts(sp=_image(20, 30)), "sp", 1.0, CLASSES) as opened:
        assert np.array_equal(opened.instances[0:15, 0:30], instances[:15])
        for read in (opened.read, opened.instances.__getitem__, opened.class_map.__getitem__):
            with pytest.raises(SlideError) as caught:
                read((slice(15, 16), slice(0, 30)))
            assert caught.value.code == code
            assert caught.value.where == "s, i.npy"


def test_classes_that_a_window_holds_are_checked_when_it_is_read(tmp_path, instances):
    drawn = np.where(instances == 5, 1, 0).astype(np.uint8)
    drawn[12, 20] = 9
    np.save(tmp_path / "c.npy", drawn)
    row = SlideRow("s", instances="i.npy", classes="c.npy")
    with open_annotations(row, tmp_path, _facts(sp=_image(20, 30)), "sp", 1.0, PLAIN) as opened:
        assert opened.class_map[0:12, 0:30].max() == 255
        assert np.array_equal(opened.instances[0:20, 0:30], instances), "instances alone say nothing of classes"
        with pytest.raises(SlideError) as caught:
            opened.read((slice(0, 20), slice(0, 30)))
    assert caught.value.code == "unknown_class"


def test_a_class_table_without_rows_is_refused_where_nuclei_are(tmp_path, instances):
    (tmp_path / "c.csv").write_text("image,label_id,class_id\nother,5,0\n")
    row = SlideRow("s", instances="i.npy", classes="c.csv::field")
    with open_annotations(row, tmp_path, _facts(sp=_image(20, 30)), "sp", 1.0, CLASSES) as opened:
        assert not opened.read((slice(0, 2), slice(0, 30))).class_map.any()
        with pytest.raises(SlideError) as caught:
            opened.read((slice(0, 4), slice(0, 30)))
    assert caught.value.code == "annotation_no_rows"


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.3, 2.0, 7.9])
def test_windows_side_by_side_look_at_every_pixel(tmp_path, scale):
    """So a wrong value is found wherever it lies, also where no centre of a grid pixel falls."""
    row = SlideRow("s", instances="i.npy")
    for y, x in [(0, 0), (19, 29), (10, 7), (9, 22)]:
        labels = np.zeros((20, 30), np.int32)
        labels[y, x] = -1
        np.save(tmp_path / "i.npy", labels)
        with open_annotations(row, tmp_path, _facts(sp=_image(20, 30)), "sp", scale, CLASSES) as opened:
            caught = 0
            for top in range(0, opened.shape[0], 3):
                try:
                    opened.read((slice(top, top + 3), slice(0, opened.shape[1])))
                except SlideError:
                    caught += 1
        assert caught >= 1


def test_a_window_has_no_step(tmp_path, instances):
    row = SlideRow("s", instances="i.npy")
    with open_annotations(row, tmp_path, _facts(sp=_image(20, 30)), "sp", 1.0, CLASSES) as opened:
        with pytest.raises(ValueError, match="step"):
            opened.read((slice(0, 8, 2), slice(0, 8)))
        with pytest.raises(ValueError, match="copy"):
            np.asarray(opened.instances, copy=False)
        assert np.array_equal(opened.instances[-3:, :4], instances[-3:, :4])
        assert opened.read((slice(30, 40), slice(0, 5))).instances.shape == (0, 5)
