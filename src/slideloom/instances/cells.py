"""The cell table: GeoParquet, one row a nucleus, written as the figures come, a row group a part of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from slideloom._version import __version__
from slideloom.artefacts.files import publish
from slideloom.artefacts.tables import METADATA_KEY, Column, OpenColumns, TableSchema, check_table
from slideloom.instances.measure import Figures
from slideloom.instances.outlines import Outlines
from slideloom.instances.windows import LabelTable
from slideloom.slides.tables import Channel, ClassTable

__all__ = ["CELLS", "MarkerMeans", "cell_classes", "write_cells"]

_TEXT = pa.dictionary(pa.int32(), pa.string())
_FOREIGN = "another program found the nuclei"
_NO_CLASSES = f"the decoder has no classes head; {_FOREIGN} and gave none of them a class"
_NO_SHARES = f"the decoder has no classes head, or {_FOREIGN}"
_NO_CELLS = f"the decoder has no head instanseg_cells, or {_FOREIGN}"
BACKGROUND = "background"
#: Types of geometry by their WKB numbers.
_POLYGON, _MULTIPOLYGON = 3, 6
_KINDS = {_POLYGON: "Polygon", _MULTIPOLYGON: "MultiPolygon"}

CELLS = TableSchema(
    name="cells",
    version=1,
    row="nucleus",
    key=("cell_id",),
    columns=(
        Column("slide_id", _TEXT, "The slide, as in the sheet."),
        Column("cell_id", pa.int64(), "Value of the nucleus in the label image; raster order of first pixels."),
        Column("x_px", pa.float64(), "Centroid: mean of the pixel centres, level-0 pixels of the image.", unit="px"),
        Column("y_px", pa.float64(), "Likewise.", unit="px"),
        Column("x_um", pa.float64(), "Centroid from the image's left edge.", unit="µm"),
        Column("y_um", pa.float64(), "Centroid from the image's upper edge.", unit="µm"),
        Column("bbox_xmin_px", pa.float64(), "Left edge, level-0 pixels.", unit="px"),
        Column("bbox_ymin_px", pa.float64(), "Upper edge, level-0 pixels.", unit="px"),
        Column("bbox_xmax_px", pa.float64(), "Right edge, level-0 pixels.", unit="px"),
        Column("bbox_ymax_px", pa.float64(), "Lower edge, level-0 pixels.", unit="px"),
        Column("area_px", pa.int64(), "Pixels in the label image.", unit="px"),
        Column("area_um2", pa.float64(), "Area of those pixels.", unit="µm²"),
        Column(
            "class_id",
            pa.uint8(),
            "Class of most of its pixels; background (0) only where no pixel has another.",
            null=_NO_CLASSES,
        ),
        Column("class_name", _TEXT, "Name of that class.", null=_NO_CLASSES),
        Column(
            "class_probability",
            pa.float32(),
            "Share of that class in the summed probability of its pixels' classes.",
            null=_NO_SHARES,
        ),
        Column("nucleus_probability", pa.float32(), "Mean of the nucleus probability over its pixels.", null=_FOREIGN),
        Column(
            "has_cell",
            pa.bool_(),
            "Whether a whole cell was found round it: the pixels of its `cell_id` in the label image `labels/cells`. "
            "Otherwise these are the nucleus itself.",
            null=_NO_CELLS,
        ),
        Column(
            "cell_area_um2",
            pa.float64(),
            "Area of that cell, its nucleus included.",
            null=f"no cell was found round it; {_NO_CELLS}",
            unit="µm²",
        ),
        Column(
            "geometry",
            pa.binary(),
            "Outline as WKB, (x, y) in level-0 pixels; holes are kept. A multipolygon where a nucleus lies in several "
            "pieces: of another program, or found by instanseg, where one seed's pixels part another's.",
            unit="px",
        ),
    ),
    open_columns=(
        OpenColumns(
            "probability_",
            pa.float32(),
            "Share of the class in the summed probability of its pixels' classes; background has what is missing to 1.",
            _NO_SHARES,
        ),
        OpenColumns(
            "mean_",
            pa.float32(),
            "Mean raw intensity of the marker under the nucleus.",
            "no tile covers any of its pixels",
        ),
    ),
)


@dataclass(frozen=True)
class MarkerMeans:
    """Mean intensities of nuclei.

    Attributes
    ----------
    names : tuple of str
        Column of each channel: ``mean_<marker>``.
    values : (n + 1, c) float64 array
        NaN where no tile covers a nucleus.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, channels: Sequence[Channel], sums: NDArray[np.float64], pixels: NDArray[np.int64]) -> MarkerMeans:
        """From sums and pixel counts; a marker that several channels show is told apart by their names."""
        markers = [channel.marker or channel.name for channel in channels]
        names = [
            f"mean_{marker}" if markers.count(marker) == 1 else f"mean_{marker}_{channel.name}"
            for marker, channel in zip(markers, channels, strict=True)
        ]
        with np.errstate(invalid="ignore", divide="ignore"):
            return cls(tuple(names), sums / pixels[:, None])


def cell_classes(figures: Figures) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Class and class shares of nuclei.

    Parameters
    ----------
    figures : Figures
        Of a slide with a class map.

    Returns
    -------
    class_id : (n,) uint8 array
        Class of most pixels, ties to the smaller id; background only where there is no other (HoVer-Net's rule).
    share : (n, k) float64 array
        Share of each class, background first, in the summed probability of the pixels' classes. The maps hold the
        winning class's probability alone, so this weighs each pixel's vote by how sure it is.
    """
    votes = figures.class_pixels[:, 1:]
    winner = np.where(votes.any(axis=1), votes.argmax(axis=1) + 1, 0) if votes.shape[1] else votes.sum(axis=1)
    total = figures.class_weight.sum(axis=1, keepdims=True)
    share = np.where(
        total > 0,
        figures.class_weight / np.maximum(total, 1),
        figures.class_pixels / np.maximum(figures.area, 1)[:, None],
    )
    return winner.astype(np.uint8), share


def write_cells(
    place: Path,
    slide_id: str,
    table: LabelTable,
    parts: Iterable[Figures],
    classes: ClassTable | None,
    markers: MarkerMeans | None,
    *,
    scale: float,
    image_mpp_um: float,
    made_from: Mapping[str, Any],
    foreign: bool = False,
    cell_area_px: NDArray[np.float64] | None = None,
) -> None:
    """Write the cell table of a slide: rows by rising ``cell_id``, all columns also without a single row.

    No more than a part of the rows is in memory.

    Parameters
    ----------
    place : Path
        Parquet file.
    slide_id : str
        The slide.
    table : LabelTable
        Where its instances lie.
    parts : iterable of Figures
        Of them all, by rising id; a row group each. One part without an instance where there is none.
    classes : ClassTable, optional
        Names of the classes; None without a class map.
    markers : MarkerMeans, optional
        For marker images.
    scale : float
        Level-0 pixels per grid pixel.
    image_mpp_um : float
        Level-0 pixel size, µm.
    made_from : mapping
        JSON values for the file's metadata.
    foreign : bool
        Whether another program found the nuclei: they have no probabilities.
    cell_area_px : (n + 1,) float64 array, optional
        Pixels of each nucleus' whole cell, NaN where none was found; None where cells were not sought.

    Raises
    ------
    SlideloomError
        ``table_schema``.
    ValueError
        ``parts`` are not those of ``table``.
    """
    about = {
        "schema": CELLS.name,
        "schema_version": CELLS.version,
        "slideloom_version": __version__,
        "units": {column.name: column.unit for column in CELLS.columns if column.unit},
        "made_from": dict(made_from),
    }
    metadata: dict[bytes | str, str] = {METADATA_KEY: json.dumps(about, sort_keys=True, ensure_ascii=False)}
    expected, kinds = {_POLYGON}, set[int]()
    with publish(place) as draft:
        with ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            count = 0
            for figures in parts:
                kinds |= figures.outlines.kinds()
                rows = _rows(slide_id, figures, classes, markers, scale, image_mpp_um, foreign, cell_area_px)
                rows = rows.replace_schema_metadata(metadata | {"geo": json.dumps(_geo(table, scale, expected))})
                if writer is None:
                    writer = stack.enter_context(pq.ParquetWriter(draft, rows.schema, compression="zstd"))
                writer.write_table(rows, row_group_size=max(len(figures), 1))
                count += len(figures)
        if writer is None or count != len(table) - 1:
            raise ValueError(f"figures of {count} instances, not of {len(table) - 1}")
        if kinds != expected:
            _rewrite(draft, metadata | {"geo": json.dumps(_geo(table, scale, kinds))})


def _rewrite(place: Path, metadata: dict[bytes | str, str]) -> None:
    """The same rows with other metadata, which Parquet wants before the first row."""
    with pq.ParquetFile(place) as written, publish(place) as draft:
        schema = written.schema_arrow.with_metadata(metadata)
        with pq.ParquetWriter(draft, schema, compression="zstd") as writer:
            for index in range(written.num_row_groups):
                rows = written.read_row_group(index).replace_schema_metadata(metadata)
                writer.write_table(rows, row_group_size=max(rows.num_rows, 1))


def _rows(
    slide_id: str,
    figures: Figures,
    classes: ClassTable | None,
    markers: MarkerMeans | None,
    scale: float,
    image_mpp_um: float,
    foreign: bool,
    cell_area_px: NDArray[np.float64] | None,
) -> pa.Table:
    """Rows of some nuclei, checked."""
    count = len(figures)
    columns = _places(figures, scale, image_mpp_um)
    columns |= {
        "slide_id": pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([slide_id])),
        "cell_id": np.arange(figures.first, figures.first + count, dtype=np.int64),
        "nucleus_probability": None if foreign else figures.nucleus / (255 * np.maximum(figures.area, 1)),
        "geometry": _wkb(figures.outlines),
    }
    if classes is not None:
        columns |= _classes(figures, classes, foreign)
    rows = slice(figures.first, figures.first + count)
    if cell_area_px is not None:
        own = cell_area_px[rows] * (scale * image_mpp_um) ** 2
        columns |= {"has_cell": ~np.isnan(own), "cell_area_um2": own}
    if markers is not None:
        columns |= {name: markers.values[rows, index] for index, name in enumerate(markers.names)}
    extra = [name for name in columns if name not in CELLS.names]
    schema = CELLS.arrow(extra)
    arrays = []
    for about in schema:
        values = columns.get(about.name)
        if values is None:
            arrays.append(pa.nulls(count, about.type))
        elif isinstance(values, np.ndarray):
            arrays.append(
                pa.array(values.astype(about.type.to_pandas_dtype(), copy=False), about.type, from_pandas=True)
            )
        else:
            arrays.append(values)
    table = pa.Table.from_arrays(arrays, schema=schema)
    check_table(CELLS, table)
    return table


def _places(figures: Figures, scale: float, image_mpp_um: float) -> dict[str, Any]:
    x_px, y_px = (figures.centroid * scale).T
    top, left, bottom, right = (figures.box * scale).T
    return {
        "x_px": x_px,
        "y_px": y_px,
        "x_um": x_px * image_mpp_um,
        "y_um": y_px * image_mpp_um,
        "bbox_xmin_px": left,
        "bbox_ymin_px": top,
        "bbox_xmax_px": right,
        "bbox_ymax_px": bottom,
        "area_px": figures.area,
        "area_um2": figures.area * (scale * image_mpp_um) ** 2,
    }


def _classes(figures: Figures, classes: ClassTable, foreign: bool) -> dict[str, Any]:
    names = [BACKGROUND, *classes.names]
    class_id, share = cell_classes(figures)
    indices = pa.array(class_id.astype(np.int32))
    return {
        "class_id": class_id,
        "class_name": pa.DictionaryArray.from_arrays(indices, pa.array(names)),
        "class_probability": None if foreign else share[np.arange(len(class_id)), class_id],
        # Their names tell readers which classes there are, so the columns stand also where they are null.
        **{f"probability_{name}": None if foreign else share[:, number] for number, name in enumerate(names) if number},
    }


def _wkb(outlines: Outlines) -> pa.Array:
    """The bytes as they lie; the cast refuses what 32-bit offsets cannot hold."""
    buffers = [None, pa.py_buffer(outlines.start), pa.py_buffer(outlines.wkb)]
    return pa.Array.from_buffers(pa.large_binary(), len(outlines), buffers).cast(pa.binary())


def _geo(table: LabelTable, scale: float, kinds: set[int]) -> dict[str, Any]:
    """The file's ``geo`` metadata. Polygons reach as far as their boxes."""
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": [name for kind, name in _KINDS.items() if kind in kinds],
        "crs": None,
        "edges": "planar",
        "orientation": "counterclockwise",
    }
    if len(table) > 1:
        boxes = table.box[1:] * scale
        top, left = boxes[:, :2].min(axis=0).tolist()
        bottom, right = boxes[:, 2:].max(axis=0).tolist()
        column["bbox"] = [left, top, right, bottom]
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
