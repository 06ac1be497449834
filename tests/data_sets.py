"""Small data sets in the layouts of others, written from the layouts' published facts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray
from PIL import Image

#: 1 and 2 are two classes side by side; the second piece of 1 touches the first by a corner only.
CORNER = ((4, 4, 1), (8, 8, 1), (4, 8, 2))


def class_map(size: int, seed: int) -> NDArray[np.uint8]:
    """All nine classes in squares of 4 px, and in the upper left corner three that touch."""
    rng = np.random.default_rng(seed)
    drawn = np.zeros((size, size), np.uint8)
    for y in range(20, size - 4, 8):
        for x in range(4, size - 4, 8):
            drawn[y : y + 4, x : x + 4] = rng.integers(1, 10)
    for y, x, number in CORNER:
        drawn[y : y + 4, x : x + 4] = number
    return drawn


def write_orion_subset(folder: Path, ids: tuple[str, ...], size: int = 64, n_channels: int = 16) -> None:
    """One folder a kind: ``sp/<id>.npy`` uint16, ``he/<id>.png``, ``masks/<id>.npy``."""
    for name in ("sp", "he", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(ids):
        rng = np.random.default_rng(seed)
        np.save(folder / "sp" / f"{name}.npy", rng.integers(0, 3000, (n_channels, size, size), dtype=np.uint16))
        Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(folder / "he" / f"{name}.png")
        np.save(folder / "masks" / f"{name}.npy", class_map(size, seed).astype(np.int64))


def write_ome_zarr(
    place: Path, values: NDArray[np.generic], mpp_um: float | None = None, names: tuple[str, ...] | None = None
) -> None:
    """An OME-Zarr 0.5 image of one level, axes c, y, x (or y, x)."""
    axes = ("c", "y", "x")[-values.ndim :]
    group = zarr.open_group(place, mode="w", zarr_format=3)
    group.create_array("0", data=values, chunks=values.shape, dimension_names=axes)
    scale = [1.0 if axis == "c" or mpp_um is None else mpp_um for axis in axes]
    unit = {"unit": "micrometer"} if mpp_um else {}
    described = [{"name": axis, **({"type": "channel"} if axis == "c" else {"type": "space", **unit})} for axis in axes]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
    ome: dict[str, Any] = {"version": "0.5", "multiscales": [{"axes": described, "datasets": [level]}]}
    if names:
        window = {"min": 0, "max": 1, "start": 0, "end": 1}
        ome["omero"] = {"channels": [{"label": name, "color": "FFFFFF", "window": window} for name in names]}
    group.attrs["ome"] = ome


def write_table(place: Path, columns: Mapping[str, object]) -> None:
    """A Parquet file."""
    place.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), place)


def write_spora(folder: Path, tissues: tuple[str, ...], size: int = 64, names: bool = True) -> None:
    """Four channels of ``codex``, the third without an accession, the fourth of bad quality."""
    channels = ("DNA", "CD3", "blank", "CD4")
    write_table(folder / "metadata" / "tissues.parquet", {"tissue_id": list(tissues)})
    write_table(
        folder / "codex" / "channels.parquet",
        {
            "channel_name": channels,
            "uniprot": [None, "P07766", "", "P01730"],
            "qc_pass": [True, True, True, False],
            "is_nuclear_marker": [True, False, False, False],
        },
    )
    cells: dict[str, list[object]] = {"tissue_id": [], "cell_id": [], "cell_type": []}
    for seed, tissue in enumerate(tissues):
        values = np.random.default_rng(seed).random((4, size, size), np.float32)
        place = folder / "codex" / "1_0mpp" / "images" / f"{tissue}.zarr"
        write_ome_zarr(place, values, None, channels if names else None)
        labels = np.zeros((size, size), np.uint32)
        labels[4:8, 4:8], labels[20:24, 8:16] = 3, 7
        write_ome_zarr(folder / "segmentations" / "1_0mpp" / f"{tissue}.zarr", labels)
        for number, kind in ((3, "T cell"), (7, "B cell")):
            for column, value in zip(cells, (tissue, number, kind), strict=True):
                cells[column].append(value)
    write_table(folder / "metadata" / "cells.parquet", cells)
