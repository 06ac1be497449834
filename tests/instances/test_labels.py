"""The label image: metadata of OME-Zarr 0.5, and a pyramid that holds ids only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from slideloom.artefacts.keys import digest_tree
from slideloom.artefacts.zarrio import read_array
from slideloom.instances.labels import open_labels, write_labels
from slideloom.instances.windows import Box


def _write(place: Path, labels: np.ndarray, mpp_um: float = 0.5, workers: int = 1) -> None:
    attributes = {"made_from": {"slide_id": "s"}}
    write_labels(place, labels.shape, lambda box: labels[box.slices], mpp_um, attributes=attributes, workers=workers)


@pytest.mark.parametrize(
    ("shape", "levels"), [((1, 1), 1), ((300, 511), 1), ((512, 100), 2), ((1300, 2001), 3), ((4200, 600), 5)]
)
def test_pyramid_takes_every_second_pixel(tmp_path: Path, shape: tuple[int, int], levels: int) -> None:
    labels = np.random.default_rng(0).integers(0, 2**32, shape, dtype=np.uint32)
    _write(tmp_path / "x.ome.zarr", labels)
    ome = json.loads((tmp_path / "x.ome.zarr" / "zarr.json").read_text())["attributes"]["ome"]
    datasets = ome["multiscales"][0]["datasets"]
    assert len(datasets) == levels
    for level, dataset in enumerate(datasets):
        found = read_array(tmp_path / "x.ome.zarr" / dataset["path"])
        assert found.dtype == np.uint32
        np.testing.assert_array_equal(found, labels[:: 2**level, :: 2**level])
    assert max(read_array(tmp_path / "x.ome.zarr" / datasets[-1]["path"]).shape) < 512
    np.testing.assert_array_equal(np.asarray(open_labels(tmp_path / "x.ome.zarr")), labels)


def test_metadata_is_ome_zarr(tmp_path: Path) -> None:
    _write(tmp_path / "x.ome.zarr", np.zeros((600, 700), np.uint32), mpp_um=0.25)
    group = zarr.open_group(tmp_path / "x.ome.zarr", mode="r")
    ome = group.attrs["ome"]
    assert ome["version"] == "0.5"
    assert "image-label" in ome
    multiscale = ome["multiscales"][0]
    assert [axis["name"] for axis in multiscale["axes"]] == ["y", "x"]
    assert {(axis["type"], axis["unit"]) for axis in multiscale["axes"]} == {("space", "micrometer")}
    first, second = (dataset["coordinateTransformations"] for dataset in multiscale["datasets"])
    assert first[0] == {"type": "scale", "scale": [0.25, 0.25]}
    assert second == [
        {"type": "scale", "scale": [0.5, 0.5]},
        {"type": "translation", "translation": [0.125, 0.125]},
    ]
    for dataset in multiscale["datasets"]:
        array = group[dataset["path"]]
        assert array.metadata.dimension_names == ("y", "x")
        assert not np.asarray(array).any()
    about = group.attrs["slideloom"]
    assert about["made_from"] == {"slide_id": "s"}
    assert about["schema"] == 1


def test_empty_shards_are_not_stored(tmp_path: Path) -> None:
    _write(tmp_path / "x.ome.zarr", np.zeros((600, 700), np.uint32))
    assert not any(path.name != "zarr.json" for path in (tmp_path / "x.ome.zarr").rglob("*") if path.is_file())


def test_workers_change_no_byte(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (900, 8300), dtype=np.uint32).cumsum(axis=1, dtype=np.uint32)
    for workers in (1, 3):
        _write(tmp_path / str(workers), labels, workers=workers)
    assert digest_tree(tmp_path / "1") == digest_tree(tmp_path / "3")


@pytest.mark.parametrize("workers", [1, 2])
def test_each_shard_is_asked_for_once(tmp_path: Path, workers: int) -> None:
    asked: list[Box] = []

    def read(box: Box) -> np.ndarray:
        asked.append(box)
        return np.ones((box.height, box.width), np.uint32)

    write_labels(tmp_path / "x.ome.zarr", (100, 5000), read, 0.5, workers=workers)
    assert sorted(asked, key=lambda box: box.left) == [Box(0, 0, 100, 4096), Box(0, 4096, 100, 5000)]
