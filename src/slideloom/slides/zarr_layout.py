"""What lies in a Zarr folder: OME-Zarr 0.4 (Zarr v2) and 0.5 (Zarr v3) images and labels, or a bare array.

Read from the JSON files alone. Metadata: https://ngff.openmicroscopy.org/0.4/ and /0.5/. A ``bioformats2raw`` folder of
several images gives its first, ``0``.

A store from elsewhere is not believed: its levels must lie inside it, links followed, and its JSON must have the size
of metadata.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideloom.config.texts import quoted, shortened
from slideloom.errors import SlideError
from slideloom.slides.ome_xml import believed_name, length_um
from slideloom.slides.pixel_size import plausible_mpp
from slideloom.slides.source import Source

__all__ = ["ZarrLayout", "declared_bytes", "is_zarr", "read_layout"]

_FILES = ("zarr.json", ".zarray", ".zgroup")
#: Bits or bytes of a sample, at the end of its type's name in Zarr v3 (``uint16``) and v2 (``<u2``).
_MOST_JSON_BYTES = 8 << 20
_MOST_LEVELS = 64
_BITS, _BYTES = re.compile(r"[a-z](8|16|32|64)$"), re.compile(r"[<>|][a-z](1|2|4|8)$")


@dataclass(frozen=True)
class ZarrLayout:
    """Where the arrays of an image lie, and what is said of them.

    Attributes
    ----------
    arrays : tuple of Path
        One a level, largest first.
    axes : tuple of str or None
        Lower-case axis names; None for a bare array that names none.
    mpp_um : tuple of float or None
        (y, x) of level 0.
    channel_names : tuple of str or None
        From the ``omero`` block.
    kind : str
        ``ome-0.4``, ``ome-0.5`` …, or ``array``.
    warnings : tuple of str
        What a person should know.
    """

    arrays: tuple[Path, ...]
    axes: tuple[str, ...] | None
    mpp_um: tuple[float, float] | None
    channel_names: tuple[str, ...] | None
    kind: str
    warnings: tuple[str, ...]


def is_zarr(path: Path) -> bool:
    """Whether a folder holds Zarr metadata."""
    return path.is_dir() and any((path / name).is_file() for name in _FILES)


def read_layout(source: Source) -> ZarrLayout:
    """Find the image that a source names.

    Parameters
    ----------
    source : Source
        A Zarr folder; the member is a path inside it, such as ``labels/0``.

    Returns
    -------
    ZarrLayout
        Level 0 first.

    Raises
    ------
    SlideError
        ``bad_member``: nothing lies there; ``unsupported_layout``: a group that is no image; ``unreadable``: JSON
        that cannot be parsed, or is larger than 8 MiB; ``metadata_mismatch``: levels or axes that are not there, or lie
        outside the store.
    """
    where = str(source)
    place = (source.path / source.member).resolve()
    if not place.is_relative_to(source.path.resolve()) or not is_zarr(place):
        raise SlideError(
            f"there is no Zarr group or array at {source.member!r} inside it",
            where=str(source.path),
            hint="A member is a path inside the store, such as labels/0",
            code="bad_member",
        )
    attributes, is_array, names = _metadata(place, where)
    if is_array:
        return ZarrLayout((place,), names, None, None, "array", ())
    body = _object(attributes.get("ome", attributes), "ome", where)
    warnings: list[str] = []
    if "multiscales" not in body and body.get("bioformats2raw.layout") == 3 and is_zarr(place / "0"):
        if is_zarr(place / "1"):
            warnings.append("it holds several images; the first, '0', is read")
        place = _inside(place / "0", source)
        attributes, _, _ = _metadata(place, where)
        body = _object(attributes.get("ome", attributes), "ome", where)
    scales = body.get("multiscales")
    if not scales:
        raise SlideError(
            "this Zarr group is no image: it has no multiscales",
            where=where,
            expected="an OME-Zarr image, or an array",
            hint=f"Name an image inside it, as in {source.path.name}::<path>",
            code="unsupported_layout",
        )
    if not isinstance(scales, list):
        raise _bad_metadata(f"multiscales is {quoted(str(scales))}, no list", where)
    if len(scales) > 1:
        warnings.append(f"it holds {len(scales)} multiscales; the first is read")
    scale = _object(scales[0], "multiscales", where)
    version = shortened(str(body.get("version") or scale.get("version") or "unknown"))
    return _multiscale(source, place, scale, _object(body.get("omero") or {}, "omero", where), version, warnings)


def declared_bytes(layout: ZarrLayout) -> int:
    """Bytes of level 0 as its metadata declares it, not compressed.

    Parameters
    ----------
    layout : ZarrLayout
        Where the image lies.

    Returns
    -------
    int
        0 where the metadata cannot be read: who opens the image will say why.
    """
    place = layout.arrays[0]
    try:
        name = "zarr.json" if (place / "zarr.json").is_file() else ".zarray"
        body = _read_json(place / name)
        kind = str(body.get("data_type") or body.get("dtype"))
        bits, whole = _BITS.search(kind), _BYTES.search(kind)
        sample = int(bits[1]) // 8 if bits else int(whole[1]) if whole else 1
        return sample * math.prod(max(0, int(size)) for size in body["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 0


def _multiscale(
    source: Source, place: Path, scale: dict[str, Any], omero: dict[str, Any], version: str, warnings: list[str]
) -> ZarrLayout:
    where = str(source)
    try:
        described = scale.get("axes") or ["t", "c", "z", "y", "x"]  # before 0.3 the five axes were implied
        axes = tuple(str(axis["name"] if isinstance(axis, dict) else axis).lower() for axis in described)
        units = [str(axis.get("unit") or "") if isinstance(axis, dict) else "" for axis in described]
        if len(scale["datasets"]) > _MOST_LEVELS:
            raise ValueError(f"{len(scale['datasets'])} levels")
        arrays = tuple(_inside(place / str(dataset["path"]), source) for dataset in scale["datasets"])
        factors = [1.0] * len(axes)
        for holder in (scale["datasets"][0], scale):
            for step in holder.get("coordinateTransformations") or ():
                if step.get("type") == "scale":
                    factors = [a * float(b) for a, b in zip(factors, step["scale"], strict=True)]
        labels = [believed_name(str(channel.get("label") or "")) for channel in omero.get("channels") or ()]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise _bad_metadata(f"{type(error).__name__}: {error}", where) from error
    missing = [shortened(path.name) for path in arrays if not is_zarr(path)]
    if missing or not arrays or not {"y", "x"} <= set(axes) or len(set(axes)) < len(axes):
        what = f"its axes are {quoted(', '.join(axes))}, which are not y, x and others, each once"
        if missing or not arrays:
            what = f"its levels {', '.join(missing)} are not there" if missing else "it names no level"
        raise SlideError(what, where=where, hint="Copy the whole folder again", code="metadata_mismatch")
    for path in arrays:
        _metadata(path, where)  # before another program reads it, without a limit
    return ZarrLayout(
        arrays=arrays,
        axes=axes,
        mpp_um=_pixel_size(axes, units, factors, warnings),
        channel_names=tuple(labels) if labels and all(labels) else None,
        kind=f"ome-{version}",
        warnings=tuple(warnings),
    )


def _inside(place: Path, source: Source) -> Path:
    """A folder of the store, after links are followed."""
    found = place.resolve()
    if not found.is_relative_to(source.path.resolve()):
        raise SlideError(
            f"its metadata lead out of the store, to {quoted(str(found))}",
            where=str(source),
            expected="levels that lie inside it",
            hint="Copy them into the store, as folders of their own",
            code="metadata_mismatch",
        )
    return found


def _object(value: Any, name: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad_metadata(f"{name} holds {quoted(str(value))}, no object", where)
    return value


def _bad_metadata(why: str, where: str) -> SlideError:
    return SlideError(
        f"its metadata cannot be read: {shortened(why, 300)}",
        where=where,
        expected="OME-Zarr 0.4 or 0.5",
        hint="Write the store again with a sound program",
        code="metadata_mismatch",
    )


def _pixel_size(
    axes: tuple[str, ...], units: list[str], factors: list[float], warnings: list[str]
) -> tuple[float, float] | None:
    sizes = []
    for axis in "yx":
        at = axes.index(axis)
        size = length_um(factors[at], units[at])
        if size is None:
            if not math.isclose(factors[at], 1.0):
                unit = quoted(units[at]) if units[at] else "none"
                warnings.append(f"its scale {factors[at]:g} along {axis} has no known unit ({unit}): left aside")
            return None
        sizes.append(size)
    mpp_um, why = plausible_mpp(sizes[0], sizes[1], "the OME-Zarr metadata")
    warnings.extend(why)
    return mpp_um


def _metadata(place: Path, where: str) -> tuple[dict[str, Any], bool, tuple[str, ...] | None]:
    """Attributes of a node, whether it is an array, and its dimension names."""
    try:
        if (place / "zarr.json").is_file():
            body = _object(_read_json(place / "zarr.json"), "zarr.json", where)
            names = body.get("dimension_names")
            named = tuple(str(name).lower() for name in names) if isinstance(names, list) and all(names) else None
            return _object(body.get("attributes") or {}, "attributes", where), body.get("node_type") == "array", named
        attributes = place / ".zattrs"
        body = _object(_read_json(attributes) if attributes.is_file() else {}, ".zattrs", where)
        is_array = (place / ".zarray").is_file()
        if is_array:
            _object(_read_json(place / ".zarray"), ".zarray", where)
        return body, is_array, None
    except (ValueError, RecursionError) as error:
        raise SlideError(
            f"its metadata cannot be parsed: {shortened(str(error), 300)}",
            where=where,
            expected="JSON, as Zarr v2 or v3 has it",
            hint="Copy the whole folder again",
            code="unreadable",
        ) from error


def _read_json(path: Path) -> Any:
    """Whatever a JSON file holds; ValueError when it is none, or far too long for one."""
    with path.open("rb") as file:
        text = file.read(_MOST_JSON_BYTES + 1)
    if len(text) > _MOST_JSON_BYTES:
        raise ValueError(f"{path.name} is longer than {_MOST_JSON_BYTES} bytes")
    return json.loads(text)
