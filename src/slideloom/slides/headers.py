"""What the headers of a slide's files say: read once, written as the slide's facts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from slideloom.artefacts.files import write_json
from slideloom.config.model import GridConfig, Modality
from slideloom.config.texts import quoted
from slideloom.errors import SlideError
from slideloom.slides.classlist import is_class_table, read_class_rows
from slideloom.slides.digests import source_digest
from slideloom.slides.facts import ImageFacts, SlideFacts, image_source
from slideloom.slides.geojson_text import is_geojson
from slideloom.slides.grid import grid_scale, grid_size
from slideloom.slides.image import SlideImage
from slideloom.slides.labels import check_shape, label_shape
from slideloom.slides.open import open_image
from slideloom.slides.pixel_size import COARSEST_UM
from slideloom.slides.polygon_source import check_polygons
from slideloom.slides.sheet import SlideRow
from slideloom.slides.source import Source, parse_source
from slideloom.slides.tables import Channel, MarkerTable

__all__ = ["look_at_external", "read_facts", "write_facts"]

_SCHEMA = 1
_RGB = tuple(Channel(name, "") for name in ("red", "green", "blue"))
#: Relative differences at which pixel sizes are remarked on, and refused.
_UNEVEN_WARNS, _UNEVEN_REFUSED, _SHEET_WARNS, _EXTENT_WARNS = 0.01, 0.10, 0.05, 0.02
#: The largest slides, of whole organs, are 200 mm long.
_LONGEST_MM = 300
#: Channels that a message names before it counts the rest.
_NAMED = 8


def write_facts(row: SlideRow, root: Path, markers: MarkerTable, place: Path) -> SlideFacts:
    """Work out a slide's facts and write them as JSON.

    Parameters
    ----------
    row : SlideRow
        The slide's row of the sheet.
    root : Path
        Folder that the sheet's paths start from.
    markers : MarkerTable
        Channel names to markers.
    place : Path
        Where ``slide.json`` belongs.

    Returns
    -------
    SlideFacts
        As written.

    Raises
    ------
    SlideError
        As :func:`read_facts`.
    """
    facts = read_facts(row, root, markers)
    write_json(place, facts.as_dict())
    return facts


def read_facts(row: SlideRow, root: Path, markers: MarkerTable, *, digests: bool = True) -> SlideFacts:
    """Work out a slide's facts from the headers of its files.

    Parameters
    ----------
    row : SlideRow
        The slide's row of the sheet.
    root : Path
        Folder that the sheet's paths start from.
    markers : MarkerTable
        Channel names to markers.
    digests : bool
        Whether to digest the files' content, which reads them whole.

    Returns
    -------
    SlideFacts
        Holds no absolute path.

    Raises
    ------
    SlideError
        Whatever keeps an image from being opened (see :func:`slideloom.slides.open.open_image`), and ``not_rgb``,
        ``no_pixel_size``, ``implausible_pixel_size``, ``anisotropic_pixels``, ``channel_count``, ``unknown_channel``,
        ``annotation_*``.
    """
    images: dict[str, ImageFacts] = {}
    warnings: list[str] = []
    sources: list[tuple[Modality, str | None]] = [("he", row.he), ("sp", row.sp)]
    for modality, text in sources:
        if text:
            images[modality] = _image_facts(row, modality, text, root, markers, warnings, digests)
    if not images:
        hint = "Fill in the sheet's column 'he' or 'sp'"
        raise SlideError("the slide has no image", where=row.slide_id, hint=hint, code="no_image")
    if len(images) == 2:
        warnings += _compare_extents(images["he"], images["sp"])
    shapes = {facts.shape for facts in images.values()}
    annotations = _annotations(row, root, images, shapes, warnings, digests=digests)
    return SlideFacts(row.slide_id, images, annotations, tuple(dict.fromkeys(warnings)))


def _image_facts(
    row: SlideRow,
    modality: Modality,
    text: str,
    root: Path,
    markers: MarkerTable,
    warnings: list[str],
    digests: bool,
) -> ImageFacts:
    source = image_source(row, modality, root)
    where = f"{row.slide_id}, {modality} image {text}"
    with _opened(source, modality, where) as image:
        if modality == "he" and not (image.is_rgb and image.n_channels == 3):
            hint = "Name a multiplexed image in the sheet's column 'sp'"
            what = f"the image has {image.n_channels} channels of {np.dtype(image.dtype).name}"
            raise SlideError(what, where=where, expected="an RGB image", hint=hint, code="not_rgb")
        warnings += [f"{modality}: {_bare(warning, source)}" for warning in image.warnings]
        mpp_um, mpp_source = _pixel_size(row, modality, image, where, warnings)
        channels = _RGB if modality == "he" else _channels(row, image, markers, where, warnings)
        return ImageFacts(
            source=_bare(text, source),
            reader=image.reader,
            height_px=image.height_px,
            width_px=image.width_px,
            n_channels=image.n_channels,
            dtype=np.dtype(image.dtype).name,
            mpp_um=mpp_um,
            mpp_source=mpp_source,
            levels=tuple(image.levels),
            channels=channels,
            is_rgb=modality == "he",
            digest=source_digest(source) if digests else "",
        )


def _opened(source: Source, modality: Modality, where: str) -> SlideImage:
    """Open an image; errors name the slide, and the file as the sheet does."""
    try:
        return open_image(source, modality)
    except SlideError as error:
        hint = error.hint or "Save the image anew, or name another in the sheet"
        what = _bare(error.what, source)
        raise SlideError(what, where=where, expected=error.expected, hint=hint, code=error.code) from error


def _bare(text: str, source: Source) -> str:
    """Text without the folder of a source that the sheet names by an absolute path."""
    return text.replace(f"{source.path.parent.as_posix().rstrip('/')}/", "") if source.path.is_absolute() else text


def _pixel_size(
    row: SlideRow, modality: Modality, image: SlideImage, where: str, warnings: list[str]
) -> tuple[float, str]:
    sheet_um = row.he_mpp_um if modality == "he" else row.sp_mpp_um
    file_um = math.sqrt(image.mpp_um[0] * image.mpp_um[1]) if image.mpp_um else None
    columns = f"column mpp_um or {modality}_mpp_um"
    if file_um is None and sheet_um is None:
        why = [warning for warning in image.warnings if "pixel size" in warning]
        raise SlideError(
            f"no pixel size is known: {why[0]}" if why else "the file does not record its pixel size",
            where=where,
            expected="µm per pixel, in the file or in the sheet",
            hint=f"Give it in the sheet, {columns}; a 40x scan has about 0.25 µm",
            code="no_pixel_size",
        )
    if image.mpp_um and file_um is not None:
        y_um, x_um = image.mpp_um
        uneven = abs(y_um - x_um) / file_um
        if uneven > _UNEVEN_REFUSED and sheet_um is None:
            raise SlideError(
                f"pixels are {y_um:.4g} µm high and {x_um:.4g} µm wide",
                where=where,
                expected="square pixels",
                hint=f"If the header is wrong, give the true size in the sheet's {modality}_mpp_um; else resample it",
                code="anisotropic_pixels",
            )
        if uneven > _UNEVEN_WARNS:
            warnings.append(f"{modality}: the file's pixels are {y_um:.4g} µm high and {x_um:.4g} µm wide")
    taken_um = float(sheet_um or file_um or 0.0)
    if taken_um > COARSEST_UM:
        raise SlideError(
            f"pixels of {taken_um:.4g} µm, by the {'file' if sheet_um is None else 'sheet'}, are larger than a nucleus",
            where=where,
            expected=f"at most {COARSEST_UM:g} µm; a 40x scan has about 0.25 µm, a 20x scan 0.5 µm",
            hint=f"Give the true size in the sheet, {columns}",
            code="implausible_pixel_size",
        )
    longest_px = max(image.height_px, image.width_px)
    if longest_px * taken_um > _LONGEST_MM * 1000:
        raise SlideError(
            f"{longest_px} pixels of {taken_um:.4g} µm would be {longest_px * taken_um / 1000:.4g} mm",
            where=where,
            expected=f"at most {_LONGEST_MM} mm, as no slide is longer",
            hint=f"If the pixel size is wrong, give the true one in the sheet, {columns}; else the file is damaged",
            code="implausible_pixel_size",
        )
    if sheet_um is None:
        return taken_um, "file"
    if file_um is not None and abs(sheet_um - file_um) / file_um > _SHEET_WARNS:
        warnings.append(
            f"{modality}: the sheet's pixel size, {sheet_um:.4g} µm, is used; the file says {file_um:.4g} µm"
        )
    return taken_um, "sheet"


def _channels(
    row: SlideRow, image: SlideImage, markers: MarkerTable, where: str, warnings: list[str]
) -> tuple[Channel, ...]:
    names = row.sp_channels or image.channel_names
    if names is not None and len(names) != image.n_channels:
        origin = "the sheet's sp_channels" if row.sp_channels else "the file"
        raise SlideError(
            f"{origin} names {len(names)} channels",
            where=where,
            expected=f"{image.n_channels}, as many as the image has",
            hint="Give sp_channels in the sheet: one name a channel, in the order of the file, separated by ';'",
            code="channel_count",
        )
    if names is None:
        names = tuple(f"channel_{index}" for index in range(image.n_channels))
        if any(markers.lookup(name) is None for name in names):
            raise SlideError(
                f"neither the file nor the sheet names the {image.n_channels} channels",
                where=where,
                hint="Give sp_channels in the sheet, or rows channel_0, channel_1, … in the markers table",
                code="unknown_channel",
            )
    found = [markers.lookup(name) for name in names]
    unknown = [name for name, channel in zip(names, found, strict=True) if channel is None]
    if unknown:
        raise SlideError(
            f"the markers table does not know {len(unknown)} of {len(names)} channels: {_some(unknown)}",
            where=where,
            hint="Add a row for each to the markers table, or give the right names in the sheet's sp_channels",
            code="unknown_channel",
        )
    channels = tuple(channel for channel in found if channel is not None)
    many = [marker for marker, count in Counter(channel.marker for channel in channels).items() if count > 1]
    if many:
        warnings.append(f"sp: more than one channel shows {', '.join(many)}; by its marker, the first is taken")
    return channels


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(map(quoted, names[:_NAMED])) + (f" and {more} more" if more > 0 else "")


def _compare_extents(he: ImageFacts, sp: ImageFacts) -> Iterable[str]:
    pairs = [(size_he * he.mpp_um, size_sp * sp.mpp_um) for size_he, size_sp in zip(he.shape, sp.shape, strict=True)]
    if any(abs(a - b) > _EXTENT_WARNS * max(a, b) for a, b in pairs):
        (y_he, y_sp), (x_he, x_sp) = pairs
        yield (
            f"he covers {y_he:.0f} x {x_he:.0f} µm, sp {y_sp:.0f} x {x_sp:.0f} µm; "
            "they are taken to share the upper left corner"
        )


def look_at_external(row: SlideRow, root: Path, facts: SlideFacts, grid: GridConfig) -> None:
    """Look at the headers of nuclei that another program found.

    Parameters
    ----------
    row : SlideRow
        The slide, with their files in place of its annotation.
    root : Path
        Folder that the sheet's paths start from.
    facts : SlideFacts
        The slide.
    grid : GridConfig
        The grid that they are scored on; label images may have its size, or that of one of the slide's images.

    Raises
    ------
    SlideError
        As of :func:`~slideloom.slides.labels.label_shape`, of GeoJSON whose first feature cannot be read, and
        ``annotation_shape``.
    """
    image = facts.image(grid.image)
    frame = grid_size(*image.shape, grid_scale(image.mpp_um, grid.mpp_um))
    shapes = {frame, *(one.shape for one in facts.images.values())}
    _annotations(row, root, facts.images, shapes, [], default=grid.image)


def _annotations(
    row: SlideRow,
    root: Path,
    images: Mapping[str, ImageFacts],
    shapes: set[tuple[int, int]],
    warnings: list[str],
    *,
    default: Modality | None = None,
    digests: bool = False,
) -> dict[str, str]:
    """Digests of a slide's annotation, where they are wanted; ``default`` is the image that polygons lie on."""
    found: dict[str, str] = {}
    for name, text in (("instances", row.instances), ("classes", row.classes)):
        if not text:
            continue
        source = parse_source(text, root)
        try:
            if name == "classes" and is_class_table(source):
                if not read_class_rows(source).ids:
                    warnings.append(f"classes: no row of {text} names an instance")
            elif name == "instances" and is_geojson(source):
                check_polygons(source, images, default)
            else:
                check_shape(label_shape(source), shapes)
        except SlideError as error:
            where = f"{row.slide_id}, {name} {text}"
            raise SlideError(
                error.what, where=where, expected=error.expected, hint=error.hint, code=error.code
            ) from error
        found[name] = source_digest(source) if digests else ""
    if "classes" in found and "instances" not in found:
        warnings.append("classes are given without instances, and are left aside")
    return found
