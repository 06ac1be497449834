from __future__ import annotations

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from slideloom.errors import SlideError
from slideloom.slides.labels import label_shape, open_label_image, read_instances
from slideloom.slides.source import Source

LABELS = np.array([[0, 1, 70000, 3], [2, 2, 0, 70000], [5, 0, 0, 9]])


def _write(path, values):
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, labels=np.stack([values * 0, values]))
    elif path.suffix == ".zarr":
        zarr.create_group(path).create_array("labels/0", data=values)
    elif path.suffix == ".png":
        Image.fromarray(values).save(path)
    else:
        tifffile.imwrite(path, values, compression="zlib")


@pytest.mark.parametrize(
    ("name", "member", "dtype"),
    [
        ("a.tif", "", np.uint32),
        ("a.tif", "", np.int32),
        ("a.png", "", np.uint16),
        ("a.npy", "", np.int64),
        ("a.npz", "labels[1]", np.int32),
        ("a.zarr", "labels/0", np.uint32),
    ],
)
def test_label_images_of_every_format(tmp_path, name, member, dtype):
    values = LABELS if np.iinfo(dtype).max > 70000 else np.where(LABELS > 65535, 65535, LABELS)
    _write(tmp_path / name, values.astype(dtype))
    source = Source(tmp_path / name, member)
    read = read_instances(source)
    assert read.dtype == np.int32
    assert np.array_equal(read, values)
    assert label_shape(source) == (3, 4)
    with open_label_image(source) as image:
        assert image.shape == (3, 4)
        assert np.array_equal(image.read(slice(1, 3), slice(0, 2)), values[1:3, 0:2])
        assert image.read(slice(2, 2), slice(0, 4)).shape == (0, 4)


def test_a_window_decodes_what_it_touches(tmp_path):
    labels = np.arange(512 * 512, dtype=np.uint32).reshape(512, 512) // 7
    tifffile.imwrite(tmp_path / "a.tif", labels, tile=(128, 128), compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        damaged, count = file.pages[0].dataoffsets[-1], file.pages[0].databytecounts[-1]
    with (tmp_path / "a.tif").open("r+b") as file:
        file.seek(damaged)
        file.write(bytes(count))
    with open_label_image(Source(tmp_path / "a.tif")) as image:
        assert np.array_equal(image.read(slice(100, 300), slice(50, 384)), labels[100:300, 50:384])
        with pytest.raises(SlideError) as caught:
            image.read(slice(400, 512), slice(400, 512))
    assert caught.value.code == "annotation_unreadable"


def test_a_picture_is_not_changed_by_those_who_read_it(tmp_path):
    Image.fromarray(LABELS.astype(np.uint8)).save(tmp_path / "a.png")
    with open_label_image(Source(tmp_path / "a.png")) as image:
        image.whole()[:] = 99
        assert np.array_equal(image.whole(), LABELS.astype(np.uint8))


def test_indices_of_a_palette_picture_are_labels(tmp_path):
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.save(tmp_path / "a.png")
    assert read_instances(Source(tmp_path / "a.png")).tolist() == [[0, 1], [2, 1]]


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (np.array([[-1, 2]], np.int32), "annotation_negative"),
        (np.array([[1.0, 2.0]], np.float32), "annotation_float"),
        (np.array([[True, False]]), "annotation_boolean"),
        (np.array([[2**31, 0]], np.uint32), "annotation_range"),
        (np.zeros((5, 6, 3), np.uint8), "annotation_rgb"),
        (np.zeros((2, 50, 60), np.uint8), "annotation_rgb"),
    ],
)
def test_what_is_no_label_image_is_refused(tmp_path, values, code):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(SlideError) as caught:
        read_instances(Source(tmp_path / "a.npy"))
    assert caught.value.code == code
    assert "a.npy" in caught.value.message
    assert caught.value.hint


def test_the_largest_id_is_kept(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[2**31 - 1, 0]], np.uint32))
    assert read_instances(Source(tmp_path / "a.npy")).tolist() == [[2**31 - 1, 0]]


def test_colour_pictures_are_refused_from_the_header(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(SlideError) as caught:
        label_shape(Source(tmp_path / "a.png"))
    assert caught.value.code == "annotation_rgb"


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(SlideError) as caught:
        read_instances(Source(tmp_path / "none.tif"))
    assert caught.value.code == "annotation_missing"
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(SlideError) as caught:
        read_instances(Source(tmp_path / "bad.png"))
    assert caught.value.code == "annotation_unreadable"
