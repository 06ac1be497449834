"""A SpatialData store of a slide's nuclei: label image, outlines and table, linked by the cell id.

Written by the layout that SpatialData 0.7 itself writes (container 0.2, Zarr v3), without the package: the shards of
the label image are copied as they are, outlines and table go from the cell table in pieces.

Source: https://spatialdata.scverse.org/en/stable/design_doc.html, and stores that the package wrote.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slideloom._version import __version__
from slideloom.artefacts.files import publish
from slideloom.artefacts.zarrio import create_group, read_attributes
from slideloom.instances.exports.anndata import write_anndata
from slideloom.instances.exports.cell_file import CellFile
from slideloom.instances.exports.hierarchy import ROWS, ZarrHierarchy
from slideloom.slides.tables import ClassTable

__all__ = ["LABELS", "MICROMETERS", "PIXELS", "SHAPES", "TABLE", "export_spatialdata"]

#: Names of the elements. SpatialData takes no name twice, not even for two kinds of element.
LABELS, SHAPES, TABLE = "nuclei_labels", "nuclei", "table"
#: Coordinate systems: level-0 pixels of the image, and µm from its upper left corner.
PIXELS, MICROMETERS = "global", "micrometers"
_CONTAINER_VERSION, _LABELS_VERSION, _SHAPES_VERSION, _TABLE_VERSION = "0.2", "0.3", "0.3", "0.2"
_OME_VERSION = "0.5-dev-spatialdata"


def export_spatialdata(labels: Path, cells: Path, image_mpp_um: float, classes: ClassTable | None, place: Path) -> None:
    """Write a slide's nuclei as a SpatialData store.

    Parameters
    ----------
    labels : Path
        OME-Zarr label image that :func:`slideloom.instances.segment.segment_slide` wrote.
    cells : Path
        Cell table of the same run.
    image_mpp_um : float
        Level-0 pixel size of the image, µm.
    classes : ClassTable or None
        Colours of the classes.
    place : Path
        Zarr v3 group to write.

    Notes
    -----
    ``labels/nuclei_labels`` (uint32, the same pyramid), ``shapes/nuclei`` (outlines, their index is the cell id) and
    ``tables/table`` (AnnData of cells × markers, as :func:`slideloom.instances.exports.anndata.write_anndata` says),
    whose column ``cell_id`` names a row's outline; the same number is its value in the labels. A slide without nuclei
    has no outlines, which SpatialData knows no empty form of, and its table annotates nothing. The coordinate system
    ``global`` is level-0 pixels of the image, ``micrometers`` is µm.

    The shards are copied, not linked: a program that edits the store must not edit the label image it was made from.

    Raises
    ------
    SlideloomError
        ``table_schema``: not a cell table.
    """
    source = CellFile.open(cells)
    about = read_attributes(labels)
    with publish(place) as draft:
        made_from = about["slideloom"].get("made_from", {})
        root = {
            "spatialdata_attrs": {"version": _CONTAINER_VERSION},
            "slideloom": {"slide_id": source.slide_id, "slideloom_version": __version__, "made_from": made_from},
        }
        create_group(draft, root)
        _write_labels(labels, about, draft / "labels", image_mpp_um)
        if source.n:
            _write_shapes(source, draft / "shapes", image_mpp_um)
        _write_table(source, classes, draft / "tables")


def _write_labels(labels: Path, about: Mapping[str, Any], place: Path, image_mpp_um: float) -> None:
    paths = [dataset["path"] for dataset in about["ome"]["multiscales"][0]["datasets"]]
    scale = float(about["slideloom"]["made_from"]["maps"]["scale"])
    multiscale = {
        "name": LABELS,
        "axes": [{"name": axis, "type": "space"} for axis in "yx"],
        "datasets": [
            {"path": path, "coordinateTransformations": [{"type": "scale", "scale": [2.0**level] * 2}]}
            for level, path in enumerate(paths)
        ],
        "coordinateTransformations": _systems("yx", scale, image_mpp_um),
    }
    create_group(place, {"ome": {"labels": [LABELS]}})
    create_group(
        place / LABELS,
        {
            "ome": {"version": _OME_VERSION, "multiscales": [multiscale]},
            "spatialdata_attrs": {"version": _LABELS_VERSION},
        },
    )
    for path in paths:
        shutil.copytree(labels / path, place / LABELS / path)


def _write_shapes(source: CellFile, place: Path, image_mpp_um: float) -> None:
    create_group(place, {})
    create_group(
        place / SHAPES,
        {
            "encoding-type": "ngff:shapes",
            "axes": ["x", "y"],
            "coordinateTransformations": _systems("xy", 1.0, image_mpp_um),
            "spatialdata_attrs": {"version": _SHAPES_VERSION},
        },
    )
    with pq.ParquetFile(source.place) as file:
        geo = file.schema_arrow.metadata[b"geo"]
    schema = pa.schema([("geometry", pa.binary()), ("cell_id", pa.int64())], {b"geo": geo, b"pandas": _PANDAS})
    with pq.ParquetWriter(place / SHAPES / "shapes.parquet", schema, compression="zstd") as writer:
        for batch in source.batches(["geometry", "cell_id"], ROWS):
            arrays = [batch.column(name) for name in schema.names]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def _write_table(source: CellFile, classes: ClassTable | None, place: Path) -> None:
    link = {"region": SHAPES, "region_key": "region", "instance_key": "cell_id"} if source.n else None
    create_group(place, {})
    write_anndata(
        ZarrHierarchy(place),
        TABLE,
        source,
        classes,
        attributes={
            "spatialdata-encoding-type": "ngff:regions_table",
            "version": _TABLE_VERSION,
            **(link or {"region": None, "region_key": None, "instance_key": None}),
        },
        region=SHAPES if link else None,
        uns={"spatialdata_attrs": link} if link else None,
    )


#: What makes geopandas take ``cell_id`` for the index.
_PANDAS = json.dumps(
    {
        "index_columns": ["cell_id"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
            for name, kind, numpy in (("geometry", "bytes", "object"), ("cell_id", "int64", "int64"))
        ],
        "pandas_version": "2.0.0",
    }
).encode()


def _systems(axes: str, scale: float, image_mpp_um: float) -> list[dict[str, Any]]:
    """Transformations from an element's own pixels, ``scale`` level-0 pixels wide, to both coordinate systems."""
    space = [{"name": axis, "type": "space", "unit": "unit"} for axis in axes]
    return [
        {
            "type": "scale",
            "scale": [factor, factor],
            "input": {"name": axes, "axes": space},
            "output": {"name": name, "axes": space},
        }
        for name, factor in ((PIXELS, scale), (MICROMETERS, scale * image_mpp_um))
    ]
