"""Open an OME-Zarr label image with ome-zarr-py and napari's reader, validate it; print what was seen as JSON."""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from typing import Any

import numpy as np
import zarr


def about(values: Any) -> dict[str, Any]:
    pixels = np.ascontiguousarray(np.asarray(values))
    return {"shape": list(pixels.shape), "dtype": str(pixels.dtype), "sha256": sha256(pixels.tobytes()).hexdigest()}


def with_ome_zarr(path: str) -> dict[str, Any]:
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    location = parse_url(path)
    (node,) = Reader(location)()
    return {
        "version": location.fmt.version,
        "axes": [axis["name"] for axis in node.metadata["axes"]],
        "transforms": node.metadata["coordinateTransformations"],
        "levels": [about(level) for level in node.data],
        "specs": [type(spec).__name__ for spec in node.specs],
    }


def with_napari(path: str) -> dict[str, Any]:
    from napari_ome_zarr import napari_get_reader

    (layer,) = napari_get_reader(path)(path)
    data, options, kind = layer
    levels = data if isinstance(data, (list, tuple)) else [data]
    return {
        "kind": kind,
        "levels": [about(level) for level in levels],
        "scale": np.asarray(options["scale"]).tolist(),
        "translate": np.asarray(options.get("translate", [0, 0])).tolist(),
    }


def with_models(path: str) -> dict[str, Any]:
    from ome_zarr_models.v05 import Image, ImageLabel

    group = zarr.open_group(path, mode="r")
    image, label = Image.from_zarr(group), ImageLabel.from_zarr(group)
    return {"image": image.ome_attributes.version, "label": label.ome_attributes.version}


def see(path: str) -> dict[str, Any]:
    return {"ome_zarr": with_ome_zarr(path), "napari": with_napari(path), "models": with_models(path)}


print(json.dumps([see(path) for path in sys.argv[1:]]))
