"""GeoJSON nuclei as a source of annotations: rasterised window by window at the centres of grid pixels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from slideloom.config.model import Modality
from slideloom.errors import SlideError
from slideloom.slides.annotation_frame import Taps
from slideloom.slides.annotation_sources import UNKNOWN_CLASS, Seen
from slideloom.slides.facts import ImageFacts
from slideloom.slides.geojson import PolygonNuclei, class_ids, read_nuclei
from slideloom.slides.geojson_text import read_features
from slideloom.slides.source import Source
from slideloom.slides.tables import ClassTable

__all__ = ["PolygonSource", "check_polygons", "open_polygons", "polygon_image"]

_MODALITIES: tuple[Modality, ...] = ("he", "sp")
#: Side of the squares by which the nuclei of a window are found, level-0 px.
_SQUARE_PX = 1024
#: Share of nuclei outside of the image from which on the coordinates cannot be its pixels.
_MOST_OUTSIDE = 0.5
#: How often the boxes of nuclei may cover the image, beyond some pixels for images that are tiny; touching nuclei cover
#: it once or twice.
_MOST_LAYERS, _FREE_PX = 64, 1e8
#: Squares that a nucleus may reach into on average, beyond some for the few that are huge.
_MOST_SQUARES, _FREE_SQUARES = 16, 1e6


def polygon_image(source: Source, images: Mapping[str, ImageFacts], default: Modality | None = None) -> Modality:
    """The image whose level-0 pixels a GeoJSON file counts.

    Parameters
    ----------
    source : Source
        The file; its member may name the image, as in ``nuclei.geojson::he``.
    images : mapping of str to ImageFacts
        The slide's images.
    default : {"he", "sp"}, optional
        The image that is meant where the file's member names none. Without it, all images must have the same pixels.

    Returns
    -------
    {"he", "sp"}
        One of the slide's images.

    Raises
    ------
    SlideError
        ``annotation_frame``: the member names no image of the slide, or nothing says which of two is meant.
    """
    there = [name for name in _MODALITIES if name in images]
    expected = " or ".join(f"{source.path.name}::{name}" for name in there)
    if source.member:
        named = [name for name in there if name == source.member]
        if not named:
            what = f"the slide has no image {source.member!r}"
            hint = "Mend what stands behind '::' in the sheet's column instances"
            raise SlideError(what, where=source.path.name, expected=expected, hint=hint, code="annotation_frame")
        return named[0]
    if default is not None:
        return default
    if len({(images[name].shape, round(images[name].mpp_um, 4)) for name in there}) > 1:
        raise SlideError(
            "nothing says which of the slide's images its coordinates are pixels of",
            where=source.path.name,
            expected=expected,
            hint="Name the image behind '::' in the sheet's column instances",
            code="annotation_frame",
        )
    return there[0]


def check_polygons(source: Source, images: Mapping[str, ImageFacts], default: Modality | None = None) -> None:
    """Refuse what the beginning of a GeoJSON file already shows to be none, or to be unclear.

    Parameters
    ----------
    source : Source
        The file, as the sheet names it.
    images, default
        As for :func:`polygon_image`.

    Raises
    ------
    SlideError
        As :func:`polygon_image`, and ``annotation_missing``, ``annotation_unreadable``: the first feature cannot be
        read.
    """
    polygon_image(source, images, default)
    next(read_features(source), None)


def open_polygons(source: Source, shape: tuple[int, int], classes: ClassTable, *, whole: bool = False) -> PolygonSource:
    """Read the nuclei of a GeoJSON file, ready to be rasterised.

    Parameters
    ----------
    source : Source
        The file.
    shape : (int, int)
        Level-0 height and width of the image that it counts the pixels of.
    classes : ClassTable
        The study's classes.
    whole : bool
        Read whole cells in the place of nuclei.

    Returns
    -------
    PolygonSource
        Nuclei 1 to n, in the order of the file.

    Raises
    ------
    SlideError
        As :func:`~slideloom.slides.geojson.read_nuclei` and :func:`~slideloom.slides.geojson.class_ids`;
        ``annotation_outside``: most nuclei lie outside of the image; ``annotation_overlap``: they lie over one another
        as nuclei cannot.
    """
    nuclei = read_nuclei(source, whole=whole)
    of_nucleus = class_ids(nuclei, classes, source.path.name, UNKNOWN_CLASS)
    boxes = nuclei.boxes()
    outside = int(((boxes[:, :2] >= shape[::-1]) | (boxes[:, 2:] <= 0)).any(axis=1).sum())
    what = f"{outside} of {len(nuclei)} nuclei lie outside of the image"
    if outside > _MOST_OUTSIDE * len(nuclei):
        raise SlideError(
            f"{what}: x reaches {boxes[:, 2].max():.0f}, y {boxes[:, 3].max():.0f}",
            where=source.path.name,
            expected=f"(x, y) in pixels of an image of {shape[0]} x {shape[1]} px (height x width)",
            hint="Coordinates count pixels of the full resolution, from the upper left corner",
            code="annotation_outside",
        )
    _check_layers(boxes, shape, source.path.name)
    warnings = list(nuclei.warnings)
    if outside:
        warnings.append(f"{source.path.name}: {what}")
    repeated = _repeated(nuclei, boxes)
    if repeated:
        warnings.append(f"{source.path.name}: {repeated} of {len(nuclei)} outlines stand there twice; the later counts")
    return PolygonSource(nuclei, of_nucleus, boxes, shape, tuple(warnings), len(nuclei) - outside - repeated)


def _check_layers(boxes: NDArray[np.float64], shape: tuple[int, int], where: str) -> None:
    """Refuse what would take time and memory far beyond those of any nuclei."""
    sides = np.clip(boxes[:, 2:], 0, shape[::-1]) - np.clip(boxes[:, :2], 0, shape[::-1])
    covered_px = float(sides.prod(axis=1).sum())
    squares = float((sides // _SQUARE_PX + 2).prod(axis=1).sum())
    image_px = float(shape[0]) * shape[1]
    if covered_px > _MOST_LAYERS * image_px + _FREE_PX or squares > _MOST_SQUARES * len(boxes) + _FREE_SQUARES:
        raise SlideError(
            f"{len(boxes)} outlines cover the image {covered_px / image_px:.0f} times over",
            where=where,
            expected="an outline around each nucleus",
            hint="Export nuclei alone, without regions and cells around them",
            code="annotation_overlap",
        )


def _repeated(nuclei: PolygonNuclei, boxes: NDArray[np.float64]) -> int:
    """Nuclei whose outline an earlier one has, corner by corner."""
    _, group, count = np.unique(boxes.view("V32").reshape(-1), return_inverse=True, return_counts=True)
    outlines = [_outline(nuclei, place) for place in np.flatnonzero(count[group] > 1).tolist()]
    return len(outlines) - len(set(outlines))


def _outline(nuclei: PolygonNuclei, place: int) -> bytes:
    rings = nuclei.rings[nuclei.nuclei[place] : nuclei.nuclei[place + 1] + 1]
    told: bytes = (rings - rings[0]).tobytes() + nuclei.corners[rings[0] : rings[-1]].tobytes()
    return told


class PolygonSource:
    """Nuclei as polygons; a :class:`~slideloom.slides.annotation_sources.NucleusSource`.

    Parameters
    ----------
    nuclei : PolygonNuclei
        In pixels of the frame that the taps count.
    of_nucleus : (n,) uint8 array
        Class of each.
    boxes : (n, 4) float64 array
        Smallest x and y, largest x and y of each.
    shape : (int, int)
        Height and width of the image.
    warnings : tuple of str
        What a person should know.
    shown : int
        How many nuclei are to be seen where every pixel is looked at.

    Attributes
    ----------
    warnings : tuple of str
        What a person should know.
    has_classes : bool
        Whether the class of any nucleus is known.
    """

    def __init__(
        self,
        nuclei: PolygonNuclei,
        of_nucleus: NDArray[np.uint8],
        boxes: NDArray[np.float64],
        shape: tuple[int, int],
        warnings: tuple[str, ...],
        shown: int,
    ) -> None:
        self._shown = shown
        self.warnings = warnings
        self.has_classes = bool((of_nucleus != UNKNOWN_CLASS).any())
        self._nuclei = nuclei
        self._class_of = np.concatenate([np.zeros(1, np.uint8), of_nucleus])
        self._boxes = boxes
        self._squares = _Squares(boxes, shape)

    def sample(
        self, down: Taps, across: Taps, *, with_classes: bool = True, seen: Seen | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8] | None]:
        """Nuclei and their classes at the pixel centres of a window; later nuclei lie over earlier ones."""
        from slideloom.slides.rasterise import paint_polygons  # compiles: only those who rasterise wait for it

        instances = np.zeros((down.count, across.count), np.int32)
        at_y, at_x = down.points, across.points
        if seen is not None:
            seen.outlines = self._shown
        if at_y.size and at_x.size:
            near = self._squares.touching(at_x[0], at_y[0], at_x[-1], at_y[-1])
            box = self._boxes[near]
            near = near[
                (box[:, 0] <= at_x[-1]) & (box[:, 2] > at_x[0]) & (box[:, 1] <= at_y[-1]) & (box[:, 3] > at_y[0])
            ]
            one = self._nuclei
            paint_polygons(one.corners, one.rings, one.nuclei, near, at_y, at_x, instances[: at_y.size, : at_x.size])
        if seen is not None:
            seen.ids.update(np.unique(instances[instances > 0]).tolist())
        return instances, self._class_of[instances] if with_classes else None

    def close(self) -> None:
        """Nothing is open."""


class _Squares:
    """Which nuclei reach into which squares of a lattice over the image; a few bytes a nucleus."""

    def __init__(self, boxes: NDArray[np.float64], shape: tuple[int, int]) -> None:
        self._size = -(-np.array(shape[::-1]) // _SQUARE_PX)
        inside = np.flatnonzero(((boxes[:, :2] < shape[::-1]) & (boxes[:, 2:] > 0)).all(axis=1))
        # Clipped before they become whole numbers: a nucleus may reach far out of the image.
        low = np.maximum(boxes[inside, :2] // _SQUARE_PX, 0).astype(np.int64)
        high = np.minimum(boxes[inside, 2:] // _SQUARE_PX, self._size - 1).astype(np.int64)
        wide, tall = (high - low + 1).T
        count = wide * tall
        which = np.repeat(np.arange(inside.size), count)
        number = np.arange(which.size) - np.repeat(np.cumsum(count) - count, count)
        rows, columns = low[which, 1] + number // wide[which], low[which, 0] + number % wide[which]
        square = rows * self._size[0] + columns
        order = np.argsort(square, kind="stable")
        self._nucleus = inside[which[order]]
        self._start = np.searchsorted(square[order], np.arange(int(self._size.prod()) + 1))

    def touching(self, x0: float, y0: float, x1: float, y1: float) -> NDArray[np.int64]:
        """Nuclei of the squares that a window inside the image reaches into, rising."""
        (left, top), (right, bottom) = (np.array([[x0, y0], [x1, y1]]) // _SQUARE_PX).astype(np.int64)
        rows = np.arange(top, bottom + 1) * self._size[0]
        spans = itertools.starmap(slice, zip(self._start[rows + left], self._start[rows + right + 1], strict=True))
        return np.unique(np.concatenate([self._nucleus[span] for span in spans]))
