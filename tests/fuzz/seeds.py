"""Small sound files of every format that Slideloom reads, as bytes: what the fuzzers damage."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

__all__ = ["CONFIG", "FOLDERS", "MARKERS", "OME_XML", "SEEDS", "SHEET", "ome_tiff_of"]

_RNG = np.random.default_rng(8)
_SIZE = (24, 32)
_GREY = _RNG.integers(0, 4096, _SIZE, np.uint16)
_RGB: NDArray[np.uint8] = np.kron(_RNG.integers(0, 256, (3, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
_STACK = _RNG.integers(0, 900, (3, *_SIZE), np.uint16)
_LABELS = np.kron(np.arange(12, dtype=np.int32).reshape(3, 4), np.ones((8, 8), np.int32))

MARKERS = "channel\tmarker\tuniprot\tnuclear\n" + "".join(
    f"{name}\t{name}\t{accession}\t{nuclear}\n"
    for name, accession, nuclear in (
        ("DAPI", "", "yes"), ("CD3", "P07766", "no"), ("CD8", "P01732", ""), ("channel_0", "", "yes"),
        *((name, "", "") for name in ("channel_1", "channel_2", "channel_3", "red", "green", "blue", "alpha", "grey")),
    )
)  # fmt: skip
_CLASSES = "id\tname\tcolour\taliases\n1\ttumour\t#ff0000\tneoplastic;cancer\n2\timmune\t#00ff00\n3\tother\t#0000ff\t\n"
SHEET = (
    "slide_id\tpatient_id\tplatform\the\tsp\tinstances\tclasses\tmpp_um\tsp_channels\tsplit\n"
    "a\tp1\tcodex\ta.png\ta.tif\ta.npy\ta.csv\t0.5\tDAPI;CD3;CD8\ttrain\n"
    "b-2.x\tp2\t\tb.png\t\tb.geojson\t\t0.25\t\ttest\n"
    "# a remark\n\n"
    'c_3\tp3\tvectra\t\t"c.tif"\t\t\t1\t\tval\n'
)
CONFIG = """study: fuzz
slides: slides.tsv
markers: markers.tsv
classes: classes.tsv
results: results
grids:
  sp64: {image: sp, tile_px: 64, stride_px: 32}
  he64: {image: he, tile_px: 64, mpp_um: 0.5}
encoders:
  mean: {model: mean_marker, grid: sp64, statistics: holdout}
  vit: {model: timm/vit_tiny_patch16_224, grid: he64, random: 0, blocks: [3, 6, 9, 12]}
splits:
  holdout: {scheme: column}
  folds: {scheme: kfold, k: 3, group: patient_id}
experiments:
  sp: &base
    encoder: mean
    split: holdout
    decoder: {width: 0.0625, branches: shared}
    loss: {cross_entropy: 1.5, dice: 1.5}
    training: {epochs: 3, batch_size: 4, lr: 3e-3, t_0: 3, patience: null}
  other:
    <<: *base
    split: folds
instances: {method: hv_watershed}
jobs: {slides_per_job: 3}
"""
OME_XML = (
    '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
    'UUID="urn:uuid:1"><Image ID="Image:0" Name="a"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" '
    'SizeX="32" SizeY="24" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeXUnit="µm" '
    'PhysicalSizeY="0.5" PhysicalSizeYUnit="µm">'
    '<Channel ID="Channel:0:0" Name="DAPI" SamplesPerPixel="1"/><Channel ID="Channel:0:1" Name="CD3" '
    'SamplesPerPixel="1"/><Channel ID="Channel:0:2" Name="CD8" SamplesPerPixel="1"/>'
    '<TiffData FirstC="0" FirstZ="0" FirstT="0" IFD="0" PlaneCount="3"><UUID FileName="a.ome.tif">urn:uuid:1</UUID>'
    "</TiffData></Pixels></Image></OME>"
)
_APERIO = "Aperio Image Library v11\r\n32x24 (32x24) JPEG/RGB Q=70|AppMag = 20|MPP = 0.5000"


def _tiff(*pages: NDArray[Any], head: dict[str, Any] | None = None, **options: Any) -> bytes:
    place = io.BytesIO()
    with tifffile.TiffWriter(place, **(head or {})) as writer:
        for page in pages:
            writer.write(page, resolution=(20000, 20000), resolutionunit="CENTIMETER", software="", **options)
    return place.getvalue()


def ome_tiff_of(xml: bytes) -> bytes:
    """An OME-TIFF of three planes with a description of one's own."""
    return _tiff(_STACK, photometric="minisblack", description=xml, metadata=None)


def _svs(compression: str) -> bytes:
    place = io.BytesIO()
    with tifffile.TiffWriter(place) as writer:
        for step in (1, 2):
            options = {"tile": (16, 16), "photometric": "rgb", "compression": compression, "metadata": None}
            writer.write(_RGB[::step, ::step], description=_APERIO, subfiletype=0, **options)
    return place.getvalue()


def _plain_tiffs() -> Iterable[bytes]:
    grey = {"photometric": "minisblack", "metadata": None}
    yield _tiff(_RGB, photometric="rgb", metadata=None)
    yield _tiff(_RGB, photometric="rgb", metadata=None, tile=(16, 16), compression="deflate", predictor=True)
    yield _tiff(_RGB, photometric="rgb", metadata=None, rowsperstrip=16, compression="lzw")
    yield _tiff(_RGB, photometric="rgb", metadata=None, tile=(32, 32), compression="jpeg", head={"bigtiff": True})
    yield _tiff(_STACK, **grey, head={"byteorder": ">"}, rowsperstrip=7)
    yield _tiff(_STACK, **grey, planarconfig="separate", tile=(16, 32), compression="zstd")
    yield _tiff(_GREY.astype(np.float32), **grey, compression="packbits")
    yield _tiff(_RGB[..., 0], photometric="palette", colormap=np.zeros((3, 256), np.uint16), metadata=None)
    yield _tiff(np.dstack([_RGB, _RGB[..., :1]]), photometric="separated", metadata=None)
    yield _tiff(np.dstack([_RGB, _RGB[..., :1]]), photometric="rgb", extrasamples=["unassalpha"], metadata=None)
    yield _tiff(_STACK, head={"imagej": True}, metadata={"axes": "CYX", "unit": "um", "Labels": ["DAPI", "CD3", "CD8"]})


def _picture(kind: str, mode: str, **options: Any) -> bytes:
    place = io.BytesIO()
    Image.fromarray(_RGB).convert(mode).save(place, kind, dpi=(50_800, 50_800), **options)
    return place.getvalue()


def _npy(array: NDArray[Any]) -> bytes:
    place = io.BytesIO()
    np.save(place, array)
    return place.getvalue()


def _npz(compress: int, **arrays: NDArray[Any]) -> bytes:
    place = io.BytesIO()
    with zipfile.ZipFile(place, "w", compress) as archive:
        for name, array in arrays.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), _npy(array), compress)
    return place.getvalue()


def _zarr3_array(shape: list[int], kind: str = "uint16") -> dict[str, Any]:
    return {
        "zarr_format": 3, "node_type": "array", "shape": shape, "data_type": kind, "fill_value": 0, "attributes": {},
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *shape[1:]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd", "configuration":
                    {"level": 1, "checksum": False}}],
    }  # fmt: skip


def _scales(paths: list[str]) -> dict[str, Any]:
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space", "unit": "micrometer"} for a in "yx")]
    steps = [{"path": path, "coordinateTransformations": [{"type": "scale", "scale": [1, 0.5, 0.5]}]} for path in paths]
    return {"axes": axes, "datasets": steps, "version": "0.4", "name": "a"}


_OMERO = {"channels": [{"label": name, "color": "FFFFFF"} for name in ("DAPI", "CD3", "CD8")]}
_GROUP3 = {
    "zarr_format": 3,
    "node_type": "group",
    "attributes": {"ome": {"version": "0.5", "multiscales": [_scales(["0", "1"])], "omero": _OMERO}},
}
_ARRAY2 = {
    "zarr_format": 2, "shape": [3, *_SIZE], "chunks": [1, *_SIZE], "dtype": "<u2", "compressor": None, "fill_value": 0,
    "order": "C", "filters": None, "dimension_separator": "/",
}  # fmt: skip


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


#: Files of a Zarr folder by name; the fuzzed one is laid over them.
FOLDERS: dict[str, dict[str, bytes]] = {
    "v3": {
        "zarr.json": _json(_GROUP3),
        "0/zarr.json": _json(_zarr3_array([3, *_SIZE])),
        "1/zarr.json": _json(_zarr3_array([3, 12, 16])),
    },
    "v2": {
        ".zgroup": b'{"zarr_format": 2}',
        ".zattrs": _json({"multiscales": [_scales(["0"])], "omero": _OMERO}),
        "0/.zarray": _json(_ARRAY2),
        "0/0/0/0": _STACK[0].tobytes(),
    },
}


def _features() -> list[dict[str, Any]]:
    ring = [[2, 2], [12, 2], [12, 10], [2, 10], [2, 2]]
    hole = [[4, 4], [6, 4], [6, 6], [4, 6], [4, 4]]
    moved = [[x + 14, y + 10] for x, y in ring]
    return [
        {"type": "Feature", "id": "1", "geometry": {"type": "Polygon", "coordinates": [ring, hole]},
         "properties": {"objectType": "detection", "classification": {"name": "tumour", "color": [1, 2, 3]}}},
        {"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": [[moved], [ring]]},
         "properties": {"objectType": "cell", "classification": {"names": ["immune"]}}},
    ]  # fmt: skip


def _zipped(name: str, data: bytes) -> bytes:
    place = io.BytesIO()
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name), data)
    return place.getvalue()


_GEOJSON = _json({"type": "FeatureCollection", "features": _features()})
_PYRAMID = ome_tiff_of(OME_XML.encode())
_LABEL_TIFF = {"photometric": "minisblack", "metadata": None}
#: Sound files by target.
SEEDS: dict[str, tuple[bytes, ...]] = {
    "tiff": tuple(_plain_tiffs()),
    "ome_tiff": (_PYRAMID, _tiff(_STACK, photometric="minisblack", head={"ome": True, "bigtiff": True}, tile=(16, 16))),
    "ome_xml": (OME_XML.encode(),),
    "svs": (_svs("jpeg"), _svs("deflate")),
    "png": (*(_picture("PNG", mode) for mode in ("RGB", "RGBA", "L", "P", "1", "LA", "I;16")),),
    "jpeg": (_picture("JPEG", "RGB"), _picture("JPEG", "L"), _picture("JPEG", "CMYK"),
             _picture("JPEG", "RGB", progressive=True)),
    "npy": (_npy(_STACK), _npy(_RGB), _npy(_GREY.astype(np.float32)), _npy(_GREY.astype(">u2"))),
    "npz": (_npz(0, a=_STACK), _npz(8, a=_RGB)),
    "zarr_group": (FOLDERS["v3"]["zarr.json"],),
    "zarr_array": (FOLDERS["v3"]["0/zarr.json"],),
    "zarr2_group": (FOLDERS["v2"][".zattrs"],),
    "zarr2_array": (FOLDERS["v2"]["0/.zarray"],),
    "zarr2_chunk": (FOLDERS["v2"]["0/0/0/0"],),
    "sheet": (SHEET.encode(), SHEET.replace("\t", ",").encode("utf-8-sig"), SHEET.replace("\n", "\r\n").encode()),
    "markers": (MARKERS.encode(),),
    "classes": (_CLASSES.encode(),),
    "config": (CONFIG.encode(),),
    "labels_npy": (_npy(_LABELS), _npy(_LABELS.astype(np.uint16))),
    "labels_tiff": (_tiff(_LABELS, **_LABEL_TIFF), _tiff(_LABELS.astype(np.uint16), **_LABEL_TIFF, compression="lzw")),
    "labels_png": (_picture("PNG", "L"), _picture("PNG", "I;16")),
    "class_table": (b"instance_id,class\n1,tumour\n2,immune\n3,3\n", b"image,id,type\na,1,tumour\na,2,2\n"),
    "geojson": (_GEOJSON, _json(_features()), _json(_features()[0]["geometry"])),
    "geojson_packed": (gzip.compress(_GEOJSON, mtime=0), _zipped("a.geojson", _GEOJSON)),
}  # fmt: skip
