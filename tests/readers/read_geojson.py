"""Open a zip of GeoJSON with geopandas, as QuPath would with its own reader; print what was seen as JSON."""

from __future__ import annotations

import json
import sys
import zipfile
from typing import Any

import geopandas


def see(path: str) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        (name,) = archive.namelist()
        with archive.open(name) as file:
            frame = geopandas.read_file(file)
    seen = {
        "name": name,
        "n": len(frame),
        "columns": sorted(frame.columns),
        "area": [] if frame.empty else frame.geometry.area.tolist(),
        "valid": bool(frame.empty or frame.geometry.is_valid.all()),
    }
    return seen


print(json.dumps([see(path) for path in sys.argv[1:]]))
