"""Outlines of regions: masks to polygons on exact pixel edges, and GeoJSON as QuPath reads and writes it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slideloom.errors import SlideError

if TYPE_CHECKING:
    import shapely

__all__ = ["TISSUE", "area_in_cells", "feature_collection", "mask_to_polygons", "pixels_inside", "read_tissue"]

#: QuPath classification of tissue annotations.
TISSUE = "Tissue"
_COLOUR = (0, 140, 40)
#: Corners closer to the outline than this many mask pixels are left out.
_TOLERANCE_PX = 0.75


def mask_to_polygons(mask: NDArray[np.bool_], scale: float, shape: tuple[int, int]) -> list[shapely.Polygon]:
    """Outline a mask along the edges of its pixels.

    Parameters
    ----------
    mask : (h, w) bool array
        The region at low resolution.
    scale : float
        Level-0 pixels per mask pixel.
    shape : (int, int)
        Level-0 height and width; what touches the mask's lower or right edge reaches exactly so far.

    Returns
    -------
    list of shapely.Polygon
        Valid, (x, y) in level-0 pixels, with holes, larger ones first; staircases are smoothed by less than a mask
        pixel.
    """
    import cv2
    import shapely

    # Three pixels for one: the traced pixel centres then round to the corners of the mask's own pixels.
    enlarged = np.pad(np.repeat(np.repeat(mask.astype(np.uint8), 3, axis=0), 3, axis=1), 1)
    contours, hierarchy = cv2.findContours(enlarged, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return []
    rings = [_corners(np.asarray(contour, np.int32)[:, 0, :]) for contour in contours]
    parents = np.asarray(hierarchy).reshape(-1, 4)[:, 3]
    holes_of: dict[int, list[NDArray[np.float64]]] = {}
    for child, parent in enumerate(parents.tolist()):
        if parent >= 0 and len(rings[child]) > 2:
            holes_of.setdefault(parent, []).append(rings[child])
    found: list[shapely.Polygon] = []
    for index in np.flatnonzero(parents < 0).tolist():
        if len(rings[index]) > 2:
            exact = shapely.make_valid(shapely.Polygon(rings[index], holes_of.get(index)))
            found += _polygons(shapely.make_valid(shapely.simplify(exact, _TOLERANCE_PX)))
    height, width = mask.shape
    limit = np.array([shape[1], shape[0]], np.float64)
    edge = np.array([width, height], np.float64)

    def to_lv0(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(xy >= edge, limit, np.minimum(xy * scale, limit))

    scaled = [piece for polygon in found for piece in _polygons(shapely.make_valid(shapely.transform(polygon, to_lv0)))]
    return sorted(scaled, key=lambda polygon: (-polygon.area, polygon.bounds))


def _corners(traced: NDArray[np.int32]) -> NDArray[np.float64]:
    """Pixel centres traced on the enlarged mask, to the corners of the mask's own pixels."""
    within = (traced - 1) % 3
    points = ((traced - 1) // 3 + (within == 2)).astype(np.float64)
    # The middle pixel of an edge says nothing about the corner: keep the traced pixels that lie at corners.
    corners: NDArray[np.float64] = points[(within != 1).all(axis=1)]
    if len(corners):
        corners = corners[np.any(corners != np.roll(corners, 1, axis=0), axis=1)]
    return corners


def _polygons(geometry: Any) -> Iterator[shapely.Polygon]:
    import shapely

    for part in shapely.get_parts(geometry, return_index=False):
        if part.geom_type == "Polygon":
            if part.area > 0:
                yield part
        elif hasattr(part, "geoms"):
            yield from _polygons(part)


def area_in_cells(
    region: shapely.Geometry, y_lines: NDArray[np.number[Any]], x_lines: NDArray[np.number[Any]]
) -> NDArray[np.float64]:
    """Area of a region in every cell of a lattice, exactly and in time linear in corners and cells.

    Parameters
    ----------
    region : shapely.Geometry
        Polygons that do not overlap, (x, y).
    y_lines, x_lines : (r,), (c,) arrays
        Rising places of the lattice's lines.

    Returns
    -------
    (r - 1, c - 1) float64 array
        Area within each cell.
    """
    import shapely

    rows, columns = len(y_lines) - 1, len(x_lines) - 1
    turned = (shapely.geometry.polygon.orient(polygon) for polygon in _polygons(region))
    outlines = [ring for polygon in turned for ring in (polygon.exterior, *polygon.interiors)]
    if not outlines:
        return np.zeros((rows, columns))
    corners = [np.asarray(ring.coords, np.float64)[:, :2] for ring in outlines]
    edges = np.concatenate([np.concatenate([ring[:-1], ring[1:]], axis=1) for ring in corners])
    edges = _split(_split(edges, 1, np.asarray(y_lines, float)), 0, np.asarray(x_lines, float))
    x_middle, y_middle = (edges[:, 0] + edges[:, 2]) / 2, (edges[:, 1] + edges[:, 3]) / 2
    rise = edges[:, 3] - edges[:, 1]
    # Column 0 holds what lies left of the lattice, the last one what lies right of it.
    row = np.searchsorted(y_lines, y_middle, "right") - 1
    seen = (row >= 0) & (row < rows) & (rise != 0)
    row, rise, x_middle = row[seen], rise[seen], x_middle[seen]
    column = np.searchsorted(x_lines, x_middle, "right")
    shape = (rows, columns + 2)
    flat = row * shape[1] + column
    # Each piece of outline covers (or, going the other way, uncovers) what lies left of it, as high as it rises.
    begin = np.concatenate([[0.0], np.asarray(x_lines, float)])
    partly = np.bincount(flat, rise * (x_middle - begin[column]), rows * shape[1]).reshape(shape)
    rises = np.bincount(flat, rise, rows * shape[1]).reshape(shape)
    right_of = rises[:, ::-1].cumsum(axis=1)[:, ::-1] - rises
    widths = np.diff(np.asarray(x_lines, float))
    return np.asarray(partly[:, 1:-1] + right_of[:, 1:-1] * widths, np.float64)


def pixels_inside(region: shapely.Geometry, y_px: int, x_px: int, side_px: int) -> NDArray[np.bool_]:
    """Which pixels of a square lie in a region: those that it covers at least half.

    Parameters
    ----------
    region : shapely.Geometry
        Valid polygons, (x, y) in pixels.
    y_px, x_px : int
        Upper left corner of the square.
    side_px : int
        Its side.

    Returns
    -------
    (side_px, side_px) bool array
        Rows first.
    """
    import shapely

    # Of an outline with many corners, only those near the square are looked at.
    near = shapely.clip_by_rect(region, x_px, y_px, x_px + side_px, y_px + side_px)
    lines = np.arange(side_px + 1)
    # Half a pixel's area may come out a rounding short of it.
    inside: NDArray[np.bool_] = area_in_cells(near, y_px + lines, x_px + lines) >= 0.5 - 1e-9
    return inside


def _split(edges: NDArray[np.float64], axis: int, lines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cut edges (x0, y0, x1, y1) where they cross lines of constant x (axis 0) or y (axis 1)."""
    start, end = edges[:, axis], edges[:, 2 + axis]
    low, high = np.minimum(start, end), np.maximum(start, end)
    first, last = np.searchsorted(lines, low, "right"), np.searchsorted(lines, high, "left")
    pieces = np.maximum(last - first, 0) + 1
    edge = np.repeat(np.arange(len(edges)), pieces)
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    # Piece k of a rising edge runs from crossing k - 1 to crossing k; a falling edge is cut from its upper end.
    rising = (end >= start)[edge]
    crossing = np.where(rising, first[edge] + number, last[edge] - 1 - number)
    padded = np.concatenate([lines, [0.0]])
    length = np.where(end == start, 1.0, end - start)[edge]
    one, other = edges[edge], 1 - axis
    cut = np.empty((len(edge), 4))
    at_start, at_end = number == 0, number == pieces[edge] - 1
    for column, whole, place, far in (
        (0, at_start, padded[crossing - np.where(rising, 1, -1)], 0.0),
        (2, at_end, padded[crossing], 1.0),
    ):
        share = np.where(whole, far, (place - start[edge]) / length)
        cut[:, column + axis] = np.where(whole, one[:, column + axis], place)
        between = one[:, other] + share * (one[:, 2 + other] - one[:, other])
        cut[:, column + other] = np.where(whole, one[:, column + other], between)
    return cut


def feature_collection(
    polygons: Sequence[shapely.Polygon], note: Mapping[str, str], namespace: uuid.UUID
) -> dict[str, Any]:
    """GeoJSON of tissue polygons as QuPath opens it: annotations of the class Tissue.

    Parameters
    ----------
    polygons : sequence of shapely.Polygon
        (x, y) in level-0 pixels.
    note : mapping of str to str
        Stands in the metadata of each annotation and of the collection.
    namespace : uuid.UUID
        Ids of the annotations derive from it, so that equal outlines make equal files.

    Returns
    -------
    dict
        A FeatureCollection.
    """
    features = [
        {
            "type": "Feature",
            "id": str(uuid.uuid5(namespace, f"tissue {number}")),
            "geometry": {
                "type": "Polygon",
                "coordinates": [
                    [[round(float(x), 2), round(float(y), 2)] for x, y in ring.coords]
                    for ring in (polygon.exterior, *polygon.interiors)
                ],
            },
            "properties": {
                "objectType": "annotation",
                "classification": {"name": TISSUE, "color": list(_COLOUR)},
                "metadata": dict(note),
            },
        }
        for number, polygon in enumerate(polygons)
    ]
    return {"type": "FeatureCollection", "features": features, "metadata": dict(note)}


def read_tissue(path: Path) -> list[shapely.Polygon]:
    """Read tissue polygons.

    Parameters
    ----------
    path : Path
        GeoJSON: a FeatureCollection, a list of Features, a Feature or a bare geometry. Where any Feature is of the
        class Tissue, only those count.

    Returns
    -------
    list of shapely.Polygon
        Valid, (x, y) in level-0 pixels of the slide's reference image; empty when nothing with an area is drawn.

    Raises
    ------
    SlideError
        ``bad_tissue``: no such file, or no GeoJSON.
    """
    import shapely
    from shapely.geometry import shape

    try:
        features = list(_features(json.loads(path.read_text(encoding="utf-8"))))
        named = [feature for feature in features if _class_name(feature) == TISSUE]
        geometries = [shape(feature["geometry"]) for feature in named or features if feature.get("geometry")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, shapely.errors.ShapelyError) as error:
        raise SlideError(
            f"the tissue outline cannot be read ({type(error).__name__}: {error})",
            where=path.name,
            expected="GeoJSON as QuPath exports it",
            hint="Export it again, or delete it so that it is made anew",
            code="bad_tissue",
        ) from error
    return [polygon for geometry in geometries for polygon in _polygons(shapely.make_valid(geometry))]


def _features(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        for part in value:
            yield from _features(part)
    elif not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__} where an object was expected")
    elif value.get("type") == "FeatureCollection":
        yield from _features(value["features"])
    elif value.get("type") == "Feature":
        yield value
    else:
        yield {"geometry": value}


def _class_name(feature: dict[str, Any]) -> str:
    properties = feature.get("properties") or {}
    classification = properties.get("classification") or {}
    return str(classification.get("name", "")) if isinstance(classification, dict) else str(classification)
