"""Our OME-Zarr label image as ome-zarr-py, napari's reader and the schema of OME-Zarr 0.5 see it."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def test_readers_agree(made_in: Callable[..., Any], tmp_path: Path, seen_by: Callable[..., Any]) -> None:
    slides = []
    for n, shape in enumerate([(100, 90), (700, 1300), (511, 512), (4200, 600)]):
        (tmp_path / str(n)).mkdir()
        slides.append(made_in(tmp_path / str(n), n, shape=shape))
    for slide, seen in zip(slides, seen_by("ome_zarr", *(slide.labels_path for slide in slides)), strict=True):
        _check(slide.labels, seen)


def _check(labels: NDArray[np.uint32], seen: dict[str, Any]) -> None:
    pyramid = [labels]
    while max(pyramid[-1].shape) >= 512:
        pyramid.append(pyramid[-1][::2, ::2])
    wanted = [
        {"shape": list(level.shape), "dtype": "uint32", "sha256": sha256(np.ascontiguousarray(level)).hexdigest()}
        for level in pyramid
    ]
    assert seen["models"] == {"image": "0.5", "label": "0.5"}, "valid by the schema"
    assert seen["ome_zarr"]["levels"] == wanted
    assert seen["ome_zarr"]["version"] == "0.5"
    assert seen["ome_zarr"]["axes"] == ["y", "x"]
    for level, (scale, shift) in enumerate(seen["ome_zarr"]["transforms"]):
        assert scale["scale"] == [0.5 * 2**level] * 2
        assert shift["translation"] == [0.5 * (2**level - 1) / 2] * 2
    assert seen["napari"]["levels"] == wanted
    assert seen["napari"]["kind"] == "labels"
    assert seen["napari"]["scale"] == [0.5, 0.5]
    assert seen["napari"]["translate"] == [0.0, 0.0]
