"""Nuclei as GeoJSON polygons: QuPath's detections and cells, CellViT's polygons a class, our own exports.

Coordinates are (x, y) in level-0 pixels of an image, pixel i covering [i, i + 1). What is a nucleus:

* a detection or a cell (``objectType``), in one part or several; of a cell with ``nucleusGeometry``, that outline;
* where a file holds neither, every feature; a MultiPolygon that is marked as an annotation gives a nucleus a polygon,
  because so CellViT writes all nuclei of a class.

Tiles, TMA cores, points and lines are no nuclei. Classes are the names under ``classification``. A name that says only
that a nucleus is one (``Nuclei``) says nothing of its class; where nuclei and whole cells stand in one file under such
names, the cells are left aside. Where whole cells are asked for it is the other way round: of a cell its own outline,
and nuclei beside cells are left aside.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.config.texts import shortened
from slideloom.errors import SlideError
from slideloom.slides.classlist import refuse_words
from slideloom.slides.geojson_text import Feature, read_features, refuse_feature
from slideloom.slides.source import Source
from slideloom.slides.tables import ClassTable

__all__ = ["PolygonNuclei", "class_ids", "read_nuclei"]

_LARGEST = 1e9
_NUCLEUS, _CELL = {"nucleus", "nuclei"}, {"cell", "cells"}
_NO_CLASS = {*_NUCLEUS, *_CELL, "unclassified"}
_MOST_NESTED = 16
_OBJECTS, _NO_NUCLEI = {"detection", "cell"}, {"tile", "tma_core", "tmacore", "root"}
_Ring = Sequence[Sequence[float]]


@dataclass(frozen=True)
class PolygonNuclei:
    """Nuclei as rings of corners, in the order of their file.

    Attributes
    ----------
    corners : (v, 2) float64 array
        (x, y), level-0 pixels.
    rings : (r + 1,) int64 array
        Where each ring's corners begin, and where the last one's end.
    nuclei : (n + 1,) int64 array
        Where each nucleus' rings begin, and where the last one's end; shells and holes alike.
    word : (n,) int32 array
        Place of each nucleus' class in ``words``; -1 where the file names none.
    words : tuple of str
        The names that the file has for classes.
    warnings : tuple of str
        What was left aside.
    """

    corners: NDArray[np.float64]
    rings: NDArray[np.int64]
    nuclei: NDArray[np.int64]
    word: NDArray[np.int32]
    words: tuple[str, ...]
    warnings: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.word)

    def boxes(self) -> NDArray[np.float64]:
        """Smallest x and y, largest x and y of each nucleus, (n, 4)."""
        if not len(self):
            return np.zeros((0, 4))
        first = self.rings[self.nuclei[:-1]]
        low, high = np.minimum.reduceat(self.corners, first), np.maximum.reduceat(self.corners, first)
        return np.concatenate([low, high], axis=1)


def read_nuclei(source: Source, *, whole: bool = False) -> PolygonNuclei:
    """Read the nuclei of a GeoJSON file.

    Parameters
    ----------
    source : Source
        See :func:`~slideloom.slides.geojson_text.read_features`.
    whole : bool
        Read whole cells in the place of nuclei.

    Returns
    -------
    PolygonNuclei
        Nucleus i is the instance i + 1.

    Raises
    ------
    SlideError
        ``annotation_missing``; ``annotation_unreadable``: the file is damaged, or is no GeoJSON;
        ``annotation_no_polygons``: it has features, and none is a polygon.
    """
    gathered = _Gathered(whole)
    for feature in read_features(source):
        gathered.add(feature)
    return gathered.nuclei(source.path.name)


def class_ids(nuclei: PolygonNuclei, classes: ClassTable, where: str, unknown: int) -> NDArray[np.uint8]:
    """Class of each nucleus by the study's names.

    Parameters
    ----------
    nuclei : PolygonNuclei
        Of a file.
    classes : ClassTable
        The study's classes; without any, the file's names play no part.
    where : str
        The file, for messages.
    unknown : int
        Of nuclei whose class the file does not name.

    Returns
    -------
    (n,) uint8 array
        Class ids.

    Raises
    ------
    SlideError
        ``unknown_class``: a name that no class has.
    """
    found = [classes.id_of(word) for word in nuclei.words] if len(classes) else [unknown] * len(nuclei.words)
    strange = [
        word
        for word, number in zip(nuclei.words, found, strict=True)
        if number is None and word.casefold() not in _NO_CLASS
    ]
    if strange:
        raise refuse_words(strange, classes, where)
    # The last place serves the word -1.
    numbers = np.array([*(unknown if number is None else number for number in found), unknown], np.uint8)
    return numbers[nuclei.word]


class _Gathered:
    """Nuclei of a file as far as it is read, in flat arrays: some hundred bytes a nucleus."""

    def __init__(self, whole: bool) -> None:
        self._whole = whole
        self._corners = array("d")
        self._ring_ends = array("q", [0])
        self._nucleus_ends = array("q", [0])
        self._word = array("i")
        self._is_object = array("b")
        self._feature = array("q")
        self._words: dict[str, int] = {}
        self._left: Counter[str] = Counter()
        self._features = 0
        self._split = 0

    def add(self, feature: Feature) -> None:
        """Take the nuclei of one feature."""
        self._features += 1
        properties = feature.value.get("properties") or {}
        if not isinstance(properties, dict):
            raise refuse_feature(feature.where, f"properties that are a JSON {type(properties).__name__}", "an object")
        kind = _kind(properties)
        nucleus = feature.value.get("nucleusGeometry") or properties.get("nucleusGeometry")
        if kind in _NO_NUCLEI:
            self._left[f"of type {kind}"] += 1
            return
        own = feature.value.get("geometry")
        geometry = own if self._whole else nucleus or own
        if geometry is None:
            self._left["without a geometry"] += 1
            return
        polygons = list(_polygons(geometry, feature.where, self._left))
        is_object = kind in _OBJECTS or nucleus is not None
        word = self._word_of(properties, feature.where)
        if kind == "annotation" and not is_object and len(polygons) > 1:
            self._split += 1
            for polygon in polygons:
                self._add(polygon, word, is_object, feature.where)
        elif polygons:
            self._add(list(chain.from_iterable(polygons)), word, is_object, feature.where)

    def _add(self, rings: Sequence[_Ring], word: int, is_object: bool, where: str) -> None:
        ends = len(self._ring_ends)
        for ring in rings:
            try:
                if len(ring) < 3:
                    continue
                plain = set(map(len, ring)) == {2}  # else there is a height behind the place
                self._corners.extend(chain.from_iterable(ring if plain else [(place[0], place[1]) for place in ring]))
            except (TypeError, KeyError, IndexError, OverflowError) as error:
                raise refuse_feature(where, "a ring that is no list of places", "[[x, y], …]") from error
            self._ring_ends.append(len(self._corners) // 2)
        if len(self._ring_ends) == ends:
            self._left["with fewer than three corners"] += 1
            return
        self._nucleus_ends.append(len(self._ring_ends) - 1)
        self._word.append(word)
        self._is_object.append(is_object)
        self._feature.append(self._features)

    def _word_of(self, properties: dict[str, Any], where: str) -> int:
        word = _class_word(properties.get("classification"), where)
        return self._words.setdefault(word, len(self._words)) if word else -1

    def nuclei(self, where: str) -> PolygonNuclei:
        """Everything that was taken, once it is clear what of it are nuclei."""
        if self._features and not len(self._word):
            what = f"none of its {self._features} features is a polygon"
            raise SlideError(
                what,
                where=where,
                expected="a Polygon a nucleus",
                hint="Export outlines instead of centres",
                code="annotation_no_polygons",
            )
        nuclei = PolygonNuclei(
            np.array(self._corners, np.float64).reshape(-1, 2),
            np.array(self._ring_ends, np.int64),
            np.array(self._nucleus_ends, np.int64),
            np.array(self._word, np.int32),
            tuple(self._words),
            (),
        )
        self._check(nuclei, where)
        kept = np.ones(len(nuclei), np.bool_)
        is_object = np.array(self._is_object, np.bool_)
        if is_object.any():
            kept &= is_object
            if others := len(set(np.array(self._feature)[~is_object].tolist())):
                self._left["that are annotations beside detections"] += others
        generic = np.array([_generic(word) for word in (*self._words, "")], np.int8)[nuclei.word]
        cells, own = kept & (generic == 2), kept & (generic == 1)
        if cells.any() and own.any():
            aside, what = (own, "nuclei beside whole cells") if self._whole else (cells, "whole cells beside nuclei")
            kept &= ~aside
            self._left[f"that are {what}"] += int(aside.sum())
        warnings = [f"{where}: {count} features {what} are left aside" for what, count in self._left.items() if count]
        if self._split and not is_object.any():
            warnings.append(f"{where}: {self._split} annotations of several polygons are taken for a nucleus a polygon")
        return _only(nuclei, kept, tuple(warnings))

    def _check(self, nuclei: PolygonNuclei, where: str) -> None:
        wrong = np.flatnonzero(~(np.abs(nuclei.corners) <= _LARGEST).all(axis=1))
        if wrong.size:
            nucleus = int(np.searchsorted(nuclei.rings[nuclei.nuclei], wrong[0], "right")) - 1
            x, y = nuclei.corners[wrong[0]]
            place = f"{where}, feature {self._feature[nucleus]}"
            raise refuse_feature(place, f"a corner at ({x:g}, {y:g})", f"pixels, up to {_LARGEST:g}")


def _kind(properties: dict[str, Any]) -> str:
    """Kind of object, of QuPath's present and former names: ``detection``, ``PathDetectionObject`` …"""
    kind = str(properties.get("objectType") or properties.get("object_type") or "").lower()
    return kind.removeprefix("path").removesuffix("object")


def _class_word(value: Any, where: str) -> str:
    """Name of a class as QuPath writes it: an object with a name or the names of a derived class, or the name alone."""
    if isinstance(value, dict):
        value = value.get("name") or value.get("names")
    if isinstance(value, list):
        value = ": ".join(map(str, value))
    if value is None:
        return ""
    if not isinstance(value, str):
        raise refuse_feature(where, f"a classification that is a JSON {type(value).__name__}", "an object with a name")
    return value.strip()


def _generic(word: str) -> int:
    folded = word.casefold()
    return 1 if folded in _NUCLEUS else 2 if folded in _CELL else 0


def _polygons(geometry: Any, where: str, left: Counter[str], depth: int = 0) -> Iterator[list[_Ring]]:
    """Polygons of a geometry, each a list of rings."""
    if depth > _MOST_NESTED:
        raise refuse_feature(where, "collections that are nested too deep", f"{_MOST_NESTED} levels at most")
    if not isinstance(geometry, dict):
        raise refuse_feature(where, f"a geometry that is a JSON {type(geometry).__name__}", "an object")
    kind = geometry.get("type")
    if kind == "GeometryCollection" and isinstance(geometry.get("geometries"), list):
        for part in geometry["geometries"]:
            yield from _polygons(part, where, left, depth + 1)
        return
    if kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        left[f"of type {kind}"] += 1
        return
    value = geometry.get("coordinates")
    parts = [value] if kind == "Polygon" else value if kind == "MultiPolygon" else None
    if parts is None:
        raise refuse_feature(where, f"a geometry of type {shortened(repr(kind))}", "Polygon or MultiPolygon")
    if not isinstance(parts, list) or not all(
        isinstance(rings, list)
        and all(isinstance(ring, list) and (not ring or isinstance(ring[0], list)) for ring in rings)
        for rings in parts
    ):
        raise refuse_feature(where, f"coordinates that are not those of a {kind}", "lists of rings of places")
    yield from parts


def _only(nuclei: PolygonNuclei, kept: NDArray[np.bool_], warnings: tuple[str, ...]) -> PolygonNuclei:
    """Some of the nuclei, in their order."""
    ring_kept = np.repeat(kept, np.diff(nuclei.nuclei))
    corners_of, rings_of = np.diff(nuclei.rings)[ring_kept], np.diff(nuclei.nuclei)[kept]
    corners = nuclei.corners
    used, word = np.unique(nuclei.word[kept], return_inverse=True)
    none = int(used.size > 0 and used[0] < 0)
    if not kept.all():
        corners = corners[np.repeat(ring_kept, np.diff(nuclei.rings))]
    return PolygonNuclei(
        corners,
        np.concatenate([[0], np.cumsum(corners_of)]).astype(np.int64),
        np.concatenate([[0], np.cumsum(rings_of)]).astype(np.int64),
        (word - none).astype(np.int32),
        tuple(nuclei.words[place] for place in used[none:].tolist()),
        warnings,
    )
