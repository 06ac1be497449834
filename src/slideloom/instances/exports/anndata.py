"""AnnData of cells × markers, written by its published format, without the package.

The package holds pandas below 3 on Python 3.11, and all that is needed of it is a handful of groups with two attributes
each: ``encoding-type`` and ``encoding-version``. The same tree serves as ``.h5ad`` (HDF5) and as the table of a
SpatialData store (Zarr).

Source: the on-disk format of AnnData 0.8 and newer, https://anndata.readthedocs.io/en/stable/fileformat-prose.html.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from slideloom._version import __version__
from slideloom.artefacts.files import publish
from slideloom.instances.exports.cell_file import CellFile, safe_names
from slideloom.instances.exports.hierarchy import ROWS, HDF5Hierarchy, Hierarchy
from slideloom.slides.tables import ClassTable

__all__ = ["CLASS", "export_anndata", "write_anndata"]

#: Column of obs with the class names, and start of the name of their colours, as scanpy looks for them.
CLASS = "class"
_NO_COLOUR = "#808080"
_UNITS = {
    "X": "mean raw intensity; NaN where no tile covers the nucleus",
    "area_px": "pixels of the label image",
    "area_um2": "µm²",
    "cell_id": "value in the label image",
    "spatial": "µm from the image's upper left corner, (x, y)",
    "spatial_px": "level-0 pixels of the image, (x, y)",
}


def export_anndata(cells: Path, classes: ClassTable | None, place: Path) -> None:
    """Write a slide's nuclei as an ``.h5ad`` file.

    Parameters
    ----------
    cells : Path
        Cell table.
    classes : ClassTable or None
        Colours of the classes; a class that it does not name is grey.
    place : Path
        HDF5 file to write; :func:`write_anndata` says what it holds.

    Raises
    ------
    SlideloomError
        ``table_schema``: not a cell table.
    """
    source = CellFile.open(cells)
    with publish(place) as draft, h5py.File(draft, "w") as file:
        write_anndata(HDF5Hierarchy(file), "", source, classes)


def write_anndata(
    store: Hierarchy,
    root: str,
    cells: CellFile,
    classes: ClassTable | None,
    *,
    attributes: Mapping[str, Any] | None = None,
    region: str | None = None,
    uns: Mapping[str, Any] | None = None,
) -> None:
    """Write nuclei as an AnnData tree.

    Parameters
    ----------
    store : Hierarchy
        Where to.
    root : str
        Group of the tree, to be made; empty for the store's own root.
    cells : CellFile
        The nuclei.
    classes : ClassTable or None
        Colours of the classes.
    attributes : mapping, optional
        Further attributes of the root group.
    region : str, optional
        Value of a further column ``region`` in every row.
    uns : mapping, optional
        Further members of ``uns``: texts, lists of texts, mappings of those.

    Notes
    -----
    ``X`` (n, markers) float32, mean raw intensities, without a column for H&E. ``obs``, named
    ``<slide>-<cell_id>``: ``slide_id``, ``cell_id``, ``class`` (categorical, background first), ``class_id``,
    ``class_probability``, ``probability_<class>``, ``nucleus_probability``, ``area_px``, ``area_um2``; those of classes
    only where the decoder has that head. ``var``, named by marker: the cell table's ``column``. ``obsm``: centroids,
    ``spatial`` in µm and ``spatial_px``. ``uns``: ``slideloom`` (slide, version, units, what it was made from as JSON)
    and ``class_colors``.

    Memory: a column, and 65 536 rows of ``X``.
    """
    store.group(root, _kind("anndata", "0.1.0") | dict(attributes or {}))
    at = f"{root}/" if root else ""
    means = store.array(f"{at}X", (cells.n, len(cells.markers)), np.float32, _ARRAY)
    if cells.markers:
        start = 0
        for batch in cells.batches(cells.mean_columns, ROWS):
            rows = [column.to_numpy(zero_copy_only=False) for column in batch.columns]
            means[start : start + batch.num_rows] = np.stack(rows, axis=1)
            start += batch.num_rows
    _write_obs(store, f"{at}obs", cells, region)
    _frame(store, f"{at}var", cells.markers, ["column"])
    store.texts(f"{at}var/column", cells.mean_columns, _TEXTS)
    store.group(f"{at}obsm", _DICT)
    for name, columns in (("spatial", ("x_um", "y_um")), ("spatial_px", ("x_px", "y_px"))):
        _values(store, f"{at}obsm/{name}", np.stack([cells.column(column) for column in columns], axis=1))
    for name in ("layers", "obsp", "varm", "varp"):
        store.group(at + name, _DICT)
    about = {
        "slide_id": cells.slide_id,
        "slideloom_version": __version__,
        "units": _UNITS,
        "made_from": json.dumps(cells.about["made_from"], sort_keys=True, ensure_ascii=False),
    }
    members: dict[str, Any] = {"slideloom": about, **dict(uns or {})}
    if cells.class_names:
        members[f"{CLASS}_colors"] = _colours(cells.class_names, classes)
    _mapping(store, f"{at}uns", members)


def _kind(name: str, version: str) -> dict[str, Any]:
    return {"encoding-type": name, "encoding-version": version}


_ARRAY = _kind("array", "0.2.0")
_TEXTS = _kind("string-array", "0.2.0")
_TEXT = _kind("string", "0.2.0")
_DICT = _kind("dict", "0.1.0")


def _write_obs(store: Hierarchy, path: str, cells: CellFile, region: str | None) -> None:
    columns = ["cell_id", "area_px", "area_um2", "nucleus_probability"]
    if cells.class_names:
        columns += ["class_id", "class_probability", *cells.probability_columns]
    kinds = {"slide_id": cells.slide_id} | ({"region": region} if region else {})
    order = [*kinds, *([CLASS] if cells.class_names else []), *columns]
    safe = dict(zip(order, safe_names(order), strict=True))
    cell_id = cells.column("cell_id")
    _frame(store, path, [f"{cells.slide_id}-{number}" for number in cell_id.tolist()], list(safe.values()))
    for name, value in kinds.items():
        _categories(store, f"{path}/{name}", np.zeros(cells.n, np.int8), [value])
    if cells.class_names:
        _categories(store, f"{path}/{CLASS}", cells.column("class_id").astype(np.int16), cells.class_names)
    for name in columns:
        _values(store, f"{path}/{safe[name]}", cell_id if name == "cell_id" else cells.column(name))


def _frame(store: Hierarchy, path: str, index: Sequence[str], columns: list[str]) -> None:
    store.group(path, _kind("dataframe", "0.2.0") | {"_index": "_index", "column-order": columns})
    store.texts(f"{path}/_index", index, _TEXTS)


def _values(store: Hierarchy, path: str, values: NDArray[Any]) -> None:
    made = store.array(path, values.shape, values.dtype, _ARRAY)
    if values.size:
        made[...] = values


def _categories(store: Hierarchy, path: str, codes: NDArray[Any], names: Sequence[str]) -> None:
    store.group(path, _kind("categorical", "0.2.0") | {"ordered": False})
    _values(store, f"{path}/codes", codes)
    store.texts(f"{path}/categories", names, _TEXTS)


def _mapping(store: Hierarchy, path: str, members: Mapping[str, Any]) -> None:
    store.group(path, _DICT)
    for name, value in sorted(members.items()):
        if isinstance(value, Mapping):
            _mapping(store, f"{path}/{name}", value)
        else:
            store.texts(f"{path}/{name}", value, _TEXT if isinstance(value, str) else _TEXTS)


def _colours(names: Sequence[str], classes: ClassTable | None) -> list[str]:
    known = dict(zip(classes.names, classes.colours, strict=True)) if classes is not None else {}
    return ["#{:02x}{:02x}{:02x}".format(*known[name]) if name in known else _NO_COLOUR for name in names]
