"""Open a SpatialData store with spatialdata; print what was seen as JSON."""

from __future__ import annotations

import json
import sys
import warnings
from hashlib import sha256
from typing import Any

import numpy as np
import spatialdata
import xarray
from spatialdata.transformations import get_transformation


def matrix(element: Any, system: str) -> list[list[float]]:
    return get_transformation(element, system).to_affine_matrix(("x", "y"), ("x", "y")).tolist()


def see(path: str) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = spatialdata.read_zarr(path)
    ours = [str(one.message) for one in caught if "slideloom" in str(one.message) or "nuclei" in str(one.message)]
    table = data.tables["table"]
    labels = data.labels["nuclei_labels"]
    if isinstance(labels, xarray.DataTree):
        levels = [labels[f"scale{level}/image"].data for level in range(len(labels.children))]
    else:
        levels = [labels.data]
    seen: dict[str, Any] = {
        "warnings": ours,
        "elements": sorted(f"{kind}/{name}" for kind, name, _ in data.gen_elements()),
        "systems": sorted(data.coordinate_systems),
        "levels": [sha256(np.ascontiguousarray(level.compute()).tobytes()).hexdigest() for level in levels],
        "dtype": str(levels[0].dtype),
        "labels": {system: matrix(labels, system) for system in data.coordinate_systems},
        "table": list(table.shape),
        "annotates": table.uns.get("spatialdata_attrs"),
        "attrs": sorted(data.attrs),
    }
    if "nuclei" in data.shapes:
        shapes = data.shapes["nuclei"]
        seen["shapes"] = {system: matrix(shapes, system) for system in data.coordinate_systems}
        seen["ids"] = shapes.index.tolist()
        seen["areas"] = shapes.geometry.area.tolist()
        # The package's own join: nuclei of the shapes with their rows of the table, each found by its id.
        elements, joined = spatialdata.join_spatialelement_table(
            sdata=data, spatial_element_names="nuclei", table_name="table", how="inner"
        )
        seen["joined"] = [joined.obs["cell_id"].tolist(), elements["nuclei"].index.tolist()]
    return seen


print(json.dumps([see(path) for path in sys.argv[1:]]))
