"""OME-Zarr 0.4 and 0.5, written by zarr-python, and bare arrays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from slideloom.artefacts.zarrio import write_array
from slideloom.errors import SlideError
from slideloom.slides.image import Level
from slideloom.slides.open import open_image, open_raw
from slideloom.slides.source import Source

RNG = np.random.default_rng(9)
AXES = {"t": ("time", None), "c": ("channel", None), "z": ("space", "micrometer")}


def write_ome(
    path: Path, data: NDArray[Any], axes: str, version: str, *, unit: str | None = "micrometer", **extra: Any
) -> Path:
    """Write levels 0 and 1 (every second pixel), level-0 pixels of 0.5 x 0.25 (y, x)."""
    v3 = version == "0.5"
    group = zarr.open_group(str(path), mode="w", zarr_format=3 if v3 else 2)
    described, scales = [], []
    for axis in axes:
        kind, axis_unit = AXES.get(axis, ("space", unit))
        described.append({"name": axis, "type": kind} | ({"unit": axis_unit} if axis_unit else {}))
    datasets = []
    for level, factor in enumerate((1, 2)):
        chunks = tuple(16 if axis in "yx" else 1 for axis in axes)
        more: dict[str, Any] = (
            {"shards": tuple(4 * c for c in chunks)} if v3 else {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
        )
        part = data[..., ::factor, ::factor]
        array = group.create_array(str(level), shape=part.shape, dtype=part.dtype, chunks=chunks, **more)
        array[...] = part
        scales = [{"y": 0.5, "x": 0.25}.get(axis, 1.0) * (factor if axis in "yx" else 1) for axis in axes]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scales}]})
    body: dict[str, Any] = {"multiscales": [{"axes": described, "datasets": datasets}], **extra}
    if v3:
        group.attrs["ome"] = {"version": version, **body}
    else:
        body["multiscales"][0]["version"] = version
        group.attrs.update(body)
    return path


def code(path: Path, member: str = "", modality: Any = "sp") -> str:
    with pytest.raises(SlideError) as caught, open_image(Source(path, member), modality) as image:
        image.read(0, 0, 0, image.height_px, image.width_px)
    return caught.value.code


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("axes", ["yx", "cyx", "tczyx"])
def test_ome_zarr(tmp_path: Path, version: str, dtype: Any, axes: str) -> None:
    shape = {"yx": (70, 90), "cyx": (3, 70, 90), "tczyx": (1, 3, 1, 70, 90)}[axes]
    data = RNG.integers(0, 200, shape).astype(dtype)
    names = ["DAPI", "CD3", "CD8"][: 1 if axes == "yx" else 3]
    path = write_ome(tmp_path / "a.zarr", data, axes, version, omero={"channels": [{"label": name} for name in names]})
    expected = data.reshape(-1, 70, 90)
    with open_image(Source(path), "sp") as image:
        assert image.reader == f"tensorstore/ome-{version}"
        assert image.mpp_um == pytest.approx((0.5, 0.25))
        assert image.channel_names == tuple(names)
        assert image.levels == (Level(70, 90, 1.0), Level(35, 45, 2.0))
        assert image.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(image.read(0, 0, 0, 70, 90), expected)
        read = image.read(0, 13, 30, 40, 33)
        np.testing.assert_array_equal(read, expected[:, 13:53, 30:63])
        assert read.flags.c_contiguous
        assert read.flags.writeable
        np.testing.assert_array_equal(image.read(1, 1, 2, 30, 40), expected[:, ::2, ::2][:, 1:31, 2:42])


def test_he_in_ome_zarr(tmp_path: Path) -> None:
    data = RNG.integers(0, 256, (3, 40, 50), dtype=np.uint8)
    path = write_ome(tmp_path / "a.zarr", data, "cyx", "0.5")
    with open_image(Source(path), "he") as image:
        assert image.is_rgb
        np.testing.assert_array_equal(image.read(0, 0, 0, 40, 50), data)


def test_units(tmp_path: Path) -> None:
    data = np.zeros((40, 50), np.uint8)
    for unit, mpp, warned in [("nanometer", None, True), ("millimeter", None, True), (None, None, True)]:
        path = write_ome(tmp_path / f"{unit}.zarr", data, "yx", "0.5", unit=unit)
        with open_image(Source(path), "sp") as image:
            assert image.mpp_um == mpp
            assert bool(image.warnings) is warned
    path = write_ome(tmp_path / "b.zarr", data, "yx", "0.5")
    meta = json.loads((path / "zarr.json").read_text())
    meta["attributes"]["ome"]["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [2, 2]}]
    (path / "zarr.json").write_text(json.dumps(meta))
    with open_image(Source(path), "sp") as image:
        assert image.mpp_um == pytest.approx((1.0, 0.5))


def test_labels_inside(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a.zarr", np.zeros((3, 40, 50), np.uint8), "cyx", "0.5")
    labels = RNG.integers(0, 2**31, (40, 50)).astype(np.uint32)
    write_ome(path / "labels" / "nuclei", labels, "yx", "0.5")
    raw = open_raw(Source(path, "labels/nuclei"))
    np.testing.assert_array_equal(raw.read(0, 0, 0, 40, 50)[0], labels)
    assert raw.header.dtype == np.uint32
    assert code(path, "labels/absent") == "bad_member"
    assert code(path, "../elsewhere") == "bad_member"
    np.testing.assert_array_equal(open_raw(Source(path, "labels/nuclei/0")).read(0, 0, 0, 40, 50)[0], labels)


def test_bare_arrays(tmp_path: Path) -> None:
    data = RNG.integers(0, 256, (5, 40, 50), dtype=np.uint16)
    write_array(tmp_path / "a.zarr", data, codec="counts")
    zarr.save_array(str(tmp_path / "b.zarr"), data.transpose(1, 2, 0).copy(), zarr_format=2)
    for name in "ab":
        with open_image(Source(tmp_path / f"{name}.zarr"), "sp") as image:
            assert image.mpp_um is None
            np.testing.assert_array_equal(image.read(0, 3, 4, 30, 40), data[:, 3:33, 4:44])


def test_a_folder_of_several_images_gives_the_first(tmp_path: Path) -> None:
    data = RNG.integers(0, 256, (40, 50), dtype=np.uint8)
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    group.attrs["bioformats2raw.layout"] = 3
    write_ome(tmp_path / "a.zarr" / "0", data, "yx", "0.4")
    write_ome(tmp_path / "a.zarr" / "1", data[::-1].copy(), "yx", "0.4")
    with open_image(Source(tmp_path / "a.zarr"), "sp") as image:
        np.testing.assert_array_equal(image.read(0, 0, 0, 40, 50)[0], data)
        assert "several images" in " ".join(image.warnings)
    with open_image(Source(tmp_path / "a.zarr", "1"), "sp") as image:
        np.testing.assert_array_equal(image.read(0, 0, 0, 40, 50)[0], data[::-1])


def test_stacks_and_groups_are_refused(tmp_path: Path) -> None:
    assert (
        code(write_ome(tmp_path / "a.zarr", np.zeros((2, 3, 40, 50), np.uint8), "tcyx", "0.5")) == "unsupported_layout"
    )
    zarr.open_group(str(tmp_path / "b.zarr"), mode="w")
    assert code(tmp_path / "b.zarr") == "unsupported_layout"


def test_broken_folders(tmp_path: Path) -> None:
    data = RNG.integers(0, 256, (3, 70, 90), dtype=np.uint8)
    path = write_ome(tmp_path / "a.zarr", data, "cyx", "0.5")
    chunk = path / "0" / "c" / "0" / "0" / "0"
    assert chunk.is_file()
    chunk.write_bytes(chunk.read_bytes()[:-3])
    with open_image(Source(path), "sp") as image:
        with pytest.raises(SlideError) as caught:
            image.read(0, 0, 0, 70, 90)
        assert caught.value.code == "corrupt_data"
        np.testing.assert_array_equal(image.read(0, 64, 0, 6, 90), data[:, 64:])
    shutil.rmtree(path / "1")
    assert code(path) == "metadata_mismatch"
    (path / "zarr.json").write_text("{")
    assert code(path) == "unreadable"
