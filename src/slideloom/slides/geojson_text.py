"""Features of GeoJSON files one after the other, so that a file with a million nuclei is never in memory as objects."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, cast

from slideloom.errors import SlideError
from slideloom.slides.source import Source

__all__ = ["Feature", "is_geojson", "read_features", "refuse_feature"]

_PLAIN = (".geojson", ".json")
_PACKED = (".geojson.gz", ".json.gz", ".zip")
_CHUNK = 1 << 20
_SPACE = " \t\n\r"
_MARKS = {",", ":", "]", "}", *_SPACE}
_DECODER = json.JSONDecoder()
_HINT = "Export it again, or copy it again from where it was made"


class Feature(NamedTuple):
    """A feature, and where it stands.

    Attributes
    ----------
    where : str
        File, and the number of the feature in it, from 1.
    value : dict
        As the file has it; a bare geometry stands under ``geometry``.
    """

    where: str
    value: dict[str, Any]


def is_geojson(source: Source) -> bool:
    """Whether a source is GeoJSON by its name: ``.geojson`` or ``.json``, either with ``.gz``, or ``.zip`` of them."""
    return source.path.name.lower().endswith((*_PLAIN, *_PACKED))


def read_features(source: Source) -> Iterator[Feature]:
    """Read GeoJSON feature by feature.

    Parameters
    ----------
    source : Source
        A FeatureCollection, a list of Features, one Feature or a bare geometry; packed with gzip, or one or more such
        files in a zip, taken in the order of their names. The source's member plays no part.

    Yields
    ------
    Feature
        In the order of the file. Memory is that of the largest feature's text.

    Raises
    ------
    SlideError
        ``annotation_missing``; ``annotation_unreadable``: the file is damaged, or is no GeoJSON.
    """
    path = source.path
    if not path.is_file():
        hint = "Mend the path in the sheet, or leave the cell empty"
        raise SlideError("the annotation is not there", where=path.name, hint=hint, code="annotation_missing")
    with _whole_file(path.name), path.open("rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                names = sorted(name for name in archive.namelist() if name.lower().endswith(_PLAIN))
                if not names:
                    raise _damaged(path.name, "the zip holds no .geojson")
                for name in names:
                    with archive.open(name) as member:
                        yield from _Text(cast(BinaryIO, member), f"{path.name}/{name}").features()
            return
        file.seek(0)
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if packed:
            with gzip.open(file) as unpacked:
                yield from _Text(cast(BinaryIO, unpacked), path.name).features()
        else:
            yield from _Text(file, path.name).features()


@contextmanager
def _whole_file(where: str) -> Iterator[None]:
    """Tell of a file that cannot be read to its end."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise _damaged(where, f"it is no UTF-8 text ({error.reason})") from error
    except (EOFError, zlib.error, zipfile.BadZipFile, gzip.BadGzipFile, NotImplementedError, RuntimeError) as error:
        if isinstance(error, RecursionError):
            raise _damaged(where, "its lists are nested too deep") from error
        raise _damaged(where, f"it cannot be unpacked ({error})") from error


class _Text:
    """Text of a JSON document, of which only what is needed next is held."""

    def __init__(self, stream: BinaryIO, where: str) -> None:
        self._stream = io.TextIOWrapper(stream, encoding="utf-8-sig")
        self._where = where
        self._held = ""
        self._at = 0
        self._before = 0
        self._ended = False
        self._count = 0

    def features(self) -> Iterator[Feature]:
        """Every feature of the document."""
        opening = self._next()
        if opening == "[":
            yield from self._list()
        elif opening == "{":
            yield from self._object()
        else:
            raise self._refuse("it is no JSON object or list" if opening else "it is empty")
        if self._next():
            raise self._refuse("there is more text behind its end")

    def _object(self) -> Iterator[Feature]:
        """A FeatureCollection, whose features are read one by one; or one Feature or geometry."""
        rest: dict[str, Any] = {}
        self._at += 1
        while self._next() != "}":
            if rest or self._count:
                self._expect(",")
                self._next()
            name = self._value()
            if not isinstance(name, str):
                raise self._refuse(f"{name!r} where a name was expected")
            self._expect(":")
            if name == "features" and self._next() == "[":
                yield from self._list()
                rest.setdefault("type", "FeatureCollection")
            else:
                rest[name] = self._value()
        self._at += 1
        if rest.get("type") == "FeatureCollection":
            return
        self._count += 1
        if "geometry" in rest:
            yield self._feature(rest)
        elif "coordinates" in rest or "geometries" in rest:
            yield self._feature({"geometry": rest})
        else:
            raise self._refuse(f"it is no GeoJSON: an object with {', '.join(map(repr, rest)) or 'nothing'}")

    def _list(self) -> Iterator[Feature]:
        self._at += 1
        first = True
        while self._next() != "]":
            if not first:
                self._expect(",")
                # A comma behind the last feature is no JSON, but some programs that stream features write it.
                if self._next() == "]":
                    break
            first = False
            self._count += 1
            value = self._value()
            if not isinstance(value, dict):
                raise refuse_feature(self._place(), f"a JSON {type(value).__name__}", "an object")
            yield self._feature(value if "geometry" in value else {"geometry": value})
        self._at += 1

    def _feature(self, value: dict[str, Any]) -> Feature:
        return Feature(self._place(), value)

    def _place(self) -> str:
        return f"{self._where}, feature {self._count}"

    def _next(self) -> str:
        """The next character that is no space, not taken; empty at the end."""
        while True:
            while self._at < len(self._held) and self._held[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._held):
                return self._held[self._at]
            if not self._more():
                return ""

    def _expect(self, mark: str) -> None:
        found = self._next()
        if found != mark:
            raise self._refuse(f"{found!r} where {mark!r} was expected" if found else "it ends too early")
        self._at += 1

    def _value(self) -> Any:
        """The next JSON value, whole."""
        if not self._next():
            raise self._refuse("it ends too early")
        while True:
            try:
                value, end = _DECODER.raw_decode(self._held, self._at)
            except json.JSONDecodeError as error:
                if self._more():
                    continue
                self._at = error.pos
                what = "it ends too early" if error.pos >= len(self._held.rstrip()) else error.msg
                raise self._refuse(what) from error
            # A number may go on behind what is held: "1" and then ".5", or "1." and then "5".
            ends = isinstance(value, dict | list | str) or self._held[end : end + 1] in _MARKS
            if ends or not self._more():
                self._at = end
                return value

    def _more(self) -> bool:
        """Read on, as much as is held, so that a long value costs a constant number of attempts a character."""
        if self._ended:
            return False
        left = self._held[self._at :]
        chunk = self._stream.read(max(_CHUNK, len(left)))
        self._before += self._at
        self._held, self._at = left + chunk, 0
        self._ended = not chunk
        return not self._ended

    def _refuse(self, what: str) -> SlideError:
        place = f"{self._place()}, character {self._before + self._at}" if self._count else self._where
        return _damaged(place, what)


def _damaged(where: str, what: str) -> SlideError:
    what = f"the GeoJSON cannot be read: {what}"
    return SlideError(
        what, where=where, expected="GeoJSON as QuPath reads it", hint=_HINT, code="annotation_unreadable"
    )


def refuse_feature(where: str, what: str, expected: str) -> SlideError:
    """Error of a feature that is no GeoJSON.

    Parameters
    ----------
    where : str
        The feature.
    what, expected : str
        What it holds, and what it should.

    Returns
    -------
    SlideError
        ``annotation_unreadable``; to be raised.
    """
    return SlideError(what, where=where, expected=expected, hint=_HINT, code="annotation_unreadable")
