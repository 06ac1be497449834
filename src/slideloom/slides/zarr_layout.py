"""What lies in a Zarr folder: OME-Zarr 0.4 (Zarr v2) and 0.5 (Zarr v3) images and labels, or a bare array.

Read from the JSON files alone. Metadata: https://ngff.openmicroscopy.org/0.4/ and /0.5/. A ``bioformats2raw`` folder of
several images gives its first, ``0``.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideloom.errors import SlideError
from slideloom.slides.image import plausible_mpp
from slideloom.slides.ome_xml import length_um
from slideloom.slides.source import Source

__all__ = ["ZarrLayout", "declared_bytes", "is_zarr", "read_layout"]

_FILES = ("zarr.json", ".zarray", ".zgroup")
#: Bits or bytes of a sample, at the end of its type's name in Zarr v3 (``uint16``) and v2 (``<u2``).
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
        that cannot be parsed; ``metadata_mismatch``: levels or axes that are not there.
    """
    where = str(source)
    place = (source.path / source.member).resolve()
    if not place.is_relative_to(source.path.resolve()) or not is_zarr(place):
        raise SlideError(
            f"there is no Zarr group or array at {source.member!r} inside it",
            where=str(source.path),
            hint="a member is a path inside the store, such as labels/0",
            code="bad_member",
        )
    attributes, is_array, names = _metadata(place, where)
    if is_array:
        return ZarrLayout((place,), names, None, None, "array", ())
    body = attributes.get("ome", attributes)
    warnings: list[str] = []
    if "multiscales" not in body and body.get("bioformats2raw.layout") == 3 and is_zarr(place / "0"):
        if is_zarr(place / "1"):
            warnings.append("it holds several images; the first, '0', is read")
        place = place / "0"
        attributes, _, _ = _metadata(place, where)
        body = attributes.get("ome", attributes)
    scales = body.get("multiscales")
    if not scales:
        raise SlideError(
            "this Zarr group is no image: it has no multiscales",
            where=where,
            expected="an OME-Zarr image, or an array",
            hint=f"name an image inside it, as in {source.path.name}::<path>",
            code="unsupported_layout",
        )
    if len(scales) > 1:
        warnings.append(f"it holds {len(scales)} multiscales; the first is read")
    version = str(body.get("version") or scales[0].get("version") or "unknown")
    return _multiscale(place, scales[0], body.get("omero") or {}, version, warnings, where)


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
        body = json.loads((place / name).read_text())
        kind = str(body.get("data_type") or body.get("dtype"))
        bits, whole = _BITS.search(kind), _BYTES.search(kind)
        sample = int(bits[1]) // 8 if bits else int(whole[1]) if whole else 1
        return sample * math.prod(max(0, int(size)) for size in body["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def _multiscale(
    place: Path, scale: dict[str, Any], omero: dict[str, Any], version: str, warnings: list[str], where: str
) -> ZarrLayout:
    try:
        described = scale.get("axes") or ["t", "c", "z", "y", "x"]  # before 0.3 the five axes were implied
        axes = tuple(str(axis["name"] if isinstance(axis, dict) else axis).lower() for axis in described)
        units = [axis.get("unit") if isinstance(axis, dict) else None for axis in described]
        arrays = tuple(place / str(dataset["path"]) for dataset in scale["datasets"])
        factors = [1.0] * len(axes)
        for holder in (scale["datasets"][0], scale):
            for step in holder.get("coordinateTransformations") or ():
                if step.get("type") == "scale":
                    factors = [a * float(b) for a, b in zip(factors, step["scale"], strict=True)]
        labels = [str(channel.get("label") or "").strip() for channel in omero.get("channels") or ()]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise SlideError(
            f"its multiscales metadata cannot be read: {type(error).__name__}: {error}",
            where=where,
            expected="OME-Zarr 0.4 or 0.5",
            code="metadata_mismatch",
        ) from error
    missing = [path.name for path in arrays if not is_zarr(path)]
    if missing or not arrays or not {"y", "x"} <= set(axes):
        what = f"its levels {', '.join(missing)} are not there" if missing else f"its axes {axes} have no y and x"
        raise SlideError(what, where=where, hint="copy the whole folder again", code="metadata_mismatch")
    return ZarrLayout(
        arrays=arrays,
        axes=axes,
        mpp_um=_pixel_size(axes, units, factors, warnings),
        channel_names=tuple(labels) if labels and all(labels) else None,
        kind=f"ome-{version}",
        warnings=tuple(warnings),
    )


def _pixel_size(
    axes: tuple[str, ...], units: list[str | None], factors: list[float], warnings: list[str]
) -> tuple[float, float] | None:
    sizes = []
    for axis in "yx":
        at = axes.index(axis)
        size = length_um(factors[at], units[at] or "")
        if size is None:
            if not math.isclose(factors[at], 1.0):
                warnings.append(f"its scale {factors[at]:g} along {axis} has no known unit ({units[at]}): left aside")
            return None
        sizes.append(size)
    mpp_um, why = plausible_mpp(sizes[0], sizes[1], "the OME-Zarr metadata")
    warnings.extend(why)
    return mpp_um


def _metadata(place: Path, where: str) -> tuple[dict[str, Any], bool, tuple[str, ...] | None]:
    """Attributes of a node, whether it is an array, and its dimension names."""
    try:
        if (place / "zarr.json").is_file():
            body = json.loads((place / "zarr.json").read_text())
            names = body.get("dimension_names")
            named = tuple(str(name).lower() for name in names) if names and all(names) else None
            return body.get("attributes") or {}, body.get("node_type") == "array", named
        attributes = place / ".zattrs"
        body = json.loads(attributes.read_text()) if attributes.is_file() else {}
        return body, (place / ".zarray").is_file(), None
    except (ValueError, AttributeError) as error:
        raise SlideError(f"its metadata cannot be parsed: {error}", where=where, code="unreadable") from error
