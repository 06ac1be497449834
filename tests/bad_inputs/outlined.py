"""GeoJSON annotations that are wrong, damaged, hostile, or merely unusual."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.bad_inputs.kinds import Answer, Cells, Kind
from tests.bad_inputs.scene import SHAPE, collection, outlines, square, tell

__all__ = ["OUTLINED"]

Ring = list[tuple[float, float]]
_MB = 1 << 20


def _rings() -> list[list[Ring]]:
    """Coordinates of the field's nuclei, to be changed."""
    return [[list(ring)] for ring in outlines()]


def _kind(
    name: str,
    what: str,
    make: Callable[[], str | bytes],
    answer: Answer = "failed",
    code: str = "annotation_unreadable",
    *,
    stage: str = "facts",
    says: str = "",
    file: str = "nuclei.geojson",
    member: str = "",
    classes: str | None = None,
) -> Kind:
    def write(folder: Path) -> Cells:
        found = make()
        (folder / file).write_bytes(found if isinstance(found, bytes) else found.encode())
        if classes:
            (folder / classes).write_text("id,class\n1,tumour\n")
        return tell(folder, f"{file}::{member}" if member else file, classes)

    code = code if answer in ("failed", "refused") else ""
    return Kind(name, "annotation", what, write, answer, code, stage, says)


def _sound(**options: str | None) -> str:
    return collection(_rings(), **options)


def _first(change: Callable[[Ring], object]) -> Callable[[], str]:
    """A change to the outline of the ninth nucleus."""

    def make() -> str:
        rings = _rings()
        change(rings[8][0])
        return collection(rings)

    return make


def _moved(dx: float, some: int | None = None) -> Callable[[], str]:
    def make() -> str:
        rings = [[[(x + dx, y) for x, y in ring] for ring in polygon] for polygon in _rings()[:some]]
        return collection([*rings, *(_rings()[some:] if some else [])])

    return make


def _cross(ring: Ring) -> None:
    ring[1], ring[2] = ring[2], ring[1]


def _holes() -> str:
    rings = _rings()
    for polygon in rings:
        (left, top), _, (right, bottom) = polygon[0][:3]
        middle_x, middle_y = (left + right) // 2, (top + bottom) // 2
        polygon.append(list(square(middle_x, middle_y, middle_x + 1, middle_y + 1)))
    return collection(rings)


def _nested_collections() -> str:
    geometry: dict[str, object] = {"type": "Polygon", "coordinates": _rings()[0]}
    for _ in range(100):
        geometry = {"type": "GeometryCollection", "geometries": [geometry]}
    return json.dumps({"type": "Feature", "properties": {}, "geometry": geometry})


def _layers() -> str:
    whole = [list(square(0, 0, SHAPE[1], SHAPE[0]))]
    return collection([whole] * 4000, word=None)


def _zip(**members: bytes) -> bytes:
    place = io.BytesIO()
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in members.items():
            archive.writestr(zipfile.ZipInfo(name), raw, zipfile.ZIP_DEFLATED)
    return place.getvalue()


def _bomb() -> bytes:
    """200 million characters of one feature in 200 kB."""
    once = gzip.compress(b'{"type": "FeatureCollection", "features": [{"geometry": {"coordinates": [', mtime=0)
    return once + gzip.compress(b"[0,0]," * (_MB // 6), mtime=0) * 200


def _spoilt_zip() -> bytes:
    raw = bytearray(_zip(**{"nuclei.geojson": _sound().encode()}))
    raw[60:90] = b"\xff" * 30
    return bytes(raw)


OUTLINED: tuple[Kind, ...] = (
    _kind("cut_geojson", "GeoJSON cut in the middle", lambda: _sound()[:-700], stage="targets", says="ends too early"),
    _kind("cut_first_feature", "GeoJSON cut in its first feature", lambda: _sound()[:120], says="ends too early"),
    _kind("not_json", "text called .geojson", lambda: "see the other folder\n"),
    _kind("web_page", "web page called .geojson", lambda: "<!doctype html><script>alert(1)</script>"),
    _kind("empty_geojson", "GeoJSON of 0 bytes", lambda: "", says="empty"),
    _kind("other_json", "JSON that is no GeoJSON", lambda: '{"nuclei": 3}', says="'nuclei'"),
    _kind("utf16_geojson", "GeoJSON in UTF-16", lambda: _sound().encode("utf-16"), says="UTF-8"),
    _kind("deep_lists", "a million nested lists", lambda: '{"type": "FeatureCollection", "nuclei": ' + "[" * 1_000_000,
          says="nested too deep"),
    _kind("deep_collections", "collections in collections in collections", _nested_collections, stage="targets",
          says="nested too deep"),
    _kind("endless_number", "a number of thousands of digits", lambda: collection([]).replace("[]", f"[{'1' * 9000}]"),
          says="digits"),
    _kind("no_number_corner", "corner at NaN", _first(lambda ring: ring.insert(1, (float("nan"), 3.0))),
          stage="targets", says="nan"),
    _kind("endless_corner", "corner at infinity", _first(lambda ring: ring.insert(1, (float("inf"), 3.0))),
          stage="targets", says="inf"),
    _kind("huge_corner", "corner at 1e300", _first(lambda ring: ring.insert(1, (1e300, 3.0))), stage="targets",
          says="1e\\+300"),
    _kind("text_corner", "corner that is a text", _first(lambda ring: ring.insert(1, ("3", "4"))),  # type: ignore[arg-type]
          stage="targets"),
    _kind("object_corner", "corner that is an object", _first(lambda ring: ring.insert(1, {})),  # type: ignore[arg-type]
          stage="targets", says="list of places"),
    _kind("number_ring", "ring of numbers without places", lambda: collection([[[1.0, 2.0, 3.0, 4.0]]]),
          stage="targets"),
    _kind("outside", "nuclei far outside of the image", _moved(5000), code="annotation_outside", stage="targets"),
    _kind("partly_outside", "some nuclei outside of the image", _moved(5000, 7), "warned", stage="targets",
          says="7 of .* nuclei lie outside"),
    _kind("crossing", "outline that crosses itself", _first(_cross), "warned", stage="targets",
          says="several pieces"),
    _kind("open_ring", "outline that is not closed", _first(lambda ring: ring.pop()), "accepted", stage="targets"),
    _kind("holes", "nuclei with holes", _holes, "accepted", stage="targets"),
    _kind("two_corners", "outline of two corners", _first(lambda ring: ring.__delitem__(slice(2, None))), "warned",
          stage="targets", says="fewer than three corners"),
    _kind("duplicates", "every outline twice", lambda: collection(_rings() * 2), "warned", stage="targets",
          says="stand there twice"),
    _kind("points", "centres without outlines",
          lambda: collection([list(ring[0]) for ring in outlines()], kind="Point"), code="annotation_no_polygons",
          stage="targets", says="outlines instead of centres"),
    _kind("no_features", "GeoJSON without a nucleus", lambda: collection([]), "warned", stage="targets",
          says="no nucleus"),
    _kind("unknown_geojson_class", "class that the study does not have", lambda: _sound(word="<b>Tumor</b>\n"),
          code="unknown_class", stage="targets", says="<b>Tumor</b>"),
    _kind("number_class", "class that is a number",
          lambda: _sound().replace('{"name": "tumour"}', "3"), stage="targets", says="int"),
    _kind("beside_table", "class table beside GeoJSON", _sound, code="annotation_classes", stage="targets",
          classes="classes.csv"),
    _kind("of_no_image", "GeoJSON drawn on an image that the slide lacks", _sound, code="annotation_frame",
          member="sp"),
    _kind("one_tissue", "outline of the tissue as a nucleus",
          lambda: collection([[list(square(2, 2, SHAPE[1] - 2, SHAPE[0] - 2))]]), code="binary_labels",
          stage="targets"),
    _kind("layers", "thousands of outlines, each of the whole image", _layers, code="annotation_overlap",
          stage="targets", says="times over"),
    _kind("gzip_bomb", "packed file that unpacks to gigabytes", _bomb, file="nuclei.geojson.gz",
          says="unpacks to far more"),
    _kind("cut_gzip", "packed file cut in the middle", lambda: gzip.compress(_sound().encode(), mtime=0)[:300],
          file="nuclei.geojson.gz"),
    _kind("empty_zip", "zip without GeoJSON", lambda: _zip(**{"notes.txt": b"x"}), file="nuclei.zip",
          says="no .geojson"),
    _kind("spoilt_zip", "zip with damaged data", _spoilt_zip, file="nuclei.zip"),
    _kind("climbing_zip", "zip whose member climbs out of its folder",
          lambda: _zip(**{"../../nuclei.geojson": _sound().encode()}), "accepted", stage="targets", file="nuclei.zip"),
)  # fmt: skip
