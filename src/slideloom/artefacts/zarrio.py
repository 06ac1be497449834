"""Zarr v3 arrays, sharded, written and read through tensorstore; groups and attributes through zarr-python.

Both libraries read and write the same bytes; tensorstore is 4 to 50 times faster on shards. A shard is the unit of
ownership: exactly one process writes it, whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorstore as ts
from numpy.typing import DTypeLike, NDArray

from slideloom.artefacts.broken import BrokenArtefactError, MissingArtefactError, told_broken

__all__ = [
    "check_array",
    "check_attributes",
    "create_array",
    "create_group",
    "open_array",
    "read_array",
    "read_attributes",
    "write_array",
]

Codec = Literal["none", "labels", "counts"]
_INNER_BYTES = 512 * 1024
_SHARD_BYTES = 64 * 1024 * 1024
_CONTEXT = ts.Context({"cache_pool": {"total_bytes_limit": 0}})


def create_group(path: Path, attributes: Mapping[str, Any]) -> None:
    """Write a Zarr v3 group's metadata.

    Parameters
    ----------
    path : Path
        Folder of the group.
    attributes : mapping
        JSON values.
    """
    path.mkdir(parents=True, exist_ok=True)
    body = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    (path / "zarr.json").write_text(json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False))


def read_attributes(path: Path) -> dict[str, Any]:
    """Attributes of a Zarr v3 group or array.

    Raises
    ------
    MissingArtefactError
        ``missing_artefact``: nothing lies there; a :class:`FileNotFoundError`, too.
    BrokenArtefactError
        ``store_damaged``: a file lies there, or the attributes cannot be read; ``artefact_schema``: a Zarr v2 store.
    """
    try:
        attributes = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    except FileNotFoundError as error:
        if (path / ".zgroup").is_file() or (path / ".zarray").is_file():
            what, expected = "a Zarr v2 store", "Zarr v3, as Slideloom writes it"
            raise BrokenArtefactError(what, place=path, expected=expected, code="artefact_schema") from error
        raise MissingArtefactError(f"no Zarr store at {path}", place=path) from error
    except NotADirectoryError as error:
        raise BrokenArtefactError("a file lies there", place=path, expected="the folder of a Zarr store") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"its attributes cannot be read ({type(error).__name__}: {error})"
        raise BrokenArtefactError(what, place=path, expected="zarr.json of a Zarr v3 store") from error
    if not isinstance(attributes, dict):
        what = f"its attributes are a {type(attributes).__name__}"
        raise BrokenArtefactError(what, place=path, expected="a JSON object")
    return attributes


def check_attributes(path: Path, attributes: Mapping[str, Any], kind: str, schema: int, keys: Sequence[str]) -> None:
    """Refuse a store of another kind or version than is to be read.

    Parameters
    ----------
    path : Path
        The store.
    attributes : mapping
        Its attributes.
    kind : str
        What it should be, for the message, such as ``patches``.
    schema : int
        Version that is read; attributes that name none pass.
    keys : sequence of str
        What must be recorded.

    Raises
    ------
    BrokenArtefactError
        ``artefact_schema``.
    """
    version, lacking = attributes.get("schema", schema), [key for key in keys if key not in attributes]
    if version != schema or lacking:
        what = f"its schema is {version!r}" if version != schema else f"it does not record {', '.join(lacking)}"
        expected = f"a store of {kind}, schema {schema}"
        raise BrokenArtefactError(what, place=path, expected=expected, code="artefact_schema")


def _codecs(codec: Codec, dtype: np.dtype[Any]) -> list[dict[str, Any]]:
    chain: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if dtype.itemsize == 1:
        chain = [{"name": "bytes"}]
    if codec == "labels":
        chain.append({"name": "zstd", "configuration": {"level": 3, "checksum": False}})
    elif codec == "counts":
        shuffle = {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle", "typesize": dtype.itemsize, "blocksize": 0}
        chain.append({"name": "blosc", "configuration": shuffle})
    return chain


def create_array(
    path: Path,
    shape: Sequence[int],
    dtype: DTypeLike,
    *,
    chunk: Sequence[int] | None = None,
    shard: Sequence[int] | None = None,
    codec: Codec = "none",
    fill: float = 0,
    dimension_names: Sequence[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> ts.TensorStore:
    """Create a sharded Zarr v3 array.

    Parameters
    ----------
    path : Path
        Folder of the array; must not exist.
    shape : sequence of int
        Its shape.
    dtype : dtype
        Its type.
    chunk, shard : sequence of int, optional
        Inner chunk and shard shapes. Left out: rows along the first axis are gathered into chunks of about 512 KB and
        shards of about 64 MB. Shards are rounded up to whole chunks.
    codec : {"none", "labels", "counts"}
        No compression, zstd without shuffle for label images, zstd with bitshuffle for multiplexed counts.
    fill : float
        Fill value; chunks that hold nothing else are not stored.
    dimension_names : sequence of str, optional
        Names of the axes.
    attributes : mapping, optional
        JSON values.

    Returns
    -------
    tensorstore.TensorStore
        Open for reading and writing.
    """
    kind = np.dtype(dtype)
    sizes = [max(1, int(size)) for size in shape]
    row = max(1, math.prod(sizes[1:]) * kind.itemsize)
    if chunk is None:
        chunk = [min(sizes[0], max(1, _INNER_BYTES // row)), *sizes[1:]]
    if shard is None:
        shard = [min(sizes[0], max(1, _SHARD_BYTES // row)), *sizes[1:]]
    outer = [math.ceil(max(s, c) / c) * c for s, c in zip(shard, chunk, strict=True)]
    metadata: dict[str, Any] = {
        "shape": [int(size) for size in shape],
        "data_type": kind.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": outer}},
        "fill_value": fill,
        "attributes": dict(attributes or {}),
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": list(chunk),
                    "codecs": _codecs(codec, kind),
                    "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
                },
            }
        ],
    }
    if dimension_names is not None:
        metadata["dimension_names"] = list(dimension_names)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}, "metadata": metadata}
    return ts.open(spec, create=True, open=False, context=_CONTEXT).result()


def open_array(path: Path) -> ts.TensorStore:
    """Open an array for reading; indexing is lazy, ``.read().result()`` gives NumPy.

    Raises
    ------
    MissingArtefactError
        ``missing_artefact``: no array lies there; a :class:`FileNotFoundError`, too.
    BrokenArtefactError
        ``store_damaged``: its metadata cannot be read.
    """
    if not (path / "zarr.json").is_file():
        raise MissingArtefactError(f"no Zarr array at {path}", place=path)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    try:
        return ts.open(spec, open=True, read=True, write=False, context=_CONTEXT).result()
    except ValueError as error:
        broken = told_broken(error, path)
        raise BrokenArtefactError(broken.what, place=path) if broken else error from error


def check_array(
    array: ts.TensorStore, place: Path, shape: Sequence[int | None], dtype: DTypeLike | None = None
) -> ts.TensorStore:
    """Refuse an array that is not what its store says it holds.

    Parameters
    ----------
    array : tensorstore.TensorStore
        As it was opened.
    place : Path
        Its folder.
    shape : sequence of int or None
        What it must have; None: any length.
    dtype : dtype, optional
        What it must be of; any when left out.

    Returns
    -------
    tensorstore.TensorStore
        The array.

    Raises
    ------
    BrokenArtefactError
        ``store_mismatch``.
    """
    found = tuple(int(size) for size in array.shape)
    kind = np.dtype(array.dtype.numpy_dtype)
    fits = len(found) == len(shape) and all(want in (None, have) for want, have in zip(shape, found, strict=True))
    if not fits or (dtype is not None and kind != np.dtype(dtype)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        expected = f"({wanted})" + (f" of {np.dtype(dtype)}" if dtype is not None else "")
        what = f"an array of {found} of {kind}"
        raise BrokenArtefactError(what, place=place, expected=expected, code="store_mismatch")
    return array


def read_array(path: Path) -> NDArray[Any]:
    """Read a whole array."""
    data: NDArray[Any] = open_array(path).read().result()
    return data


def write_array(path: Path, data: NDArray[Any], *, codec: Codec = "none", fill: float = 0) -> None:
    """Create an array and write it whole."""
    create_array(path, data.shape, data.dtype, codec=codec, fill=fill).write(data).result()
