"""Features of GeoJSON files one after the other, so that a file with a million nuclei is never in memory as objects."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, cast

from slideloom.config.texts import shortened
from slideloom.errors import SlideError
from slideloom.slides.annotation_file import annotation_file, listed
from slideloom.slides.source import Source

__all__ = ["Feature", "is_geojson", "read_features", "refuse_feature"]

_PLAIN = (".geojson", ".json")
_PACKED = (".geojson.gz", ".json.gz", ".zip")
_CHUNK = 1 << 20
_SPACE = " \t\n\r"
_MARKS = {",", ":", "]", "}", *_SPACE}
_SPACES = re.compile(f"[{_SPACE}]*")
_DECODER = json.JSONDecoder()
_HINT = "Export it again, or copy it again from where it was made"
#: Outlines pack to a fifth, laid out with much space to a fiftieth, with about a comma or bracket for each byte. What
#: unpacks to more than this, beyond the first megabytes, is made to fill the memory.
_FREE_CHARACTERS, _CHARACTERS_PER_BYTE = 1 << 23, 100
_FREE_MARKS, _MARKS_PER_BYTE = 1 << 20, 8
#: A value that goes wrong with more than this behind the place is wrong, whatever follows; else it may be cut off.
_TOKEN_CHARACTERS = 64
_MOST_WORDS = 300


_TROUBLE = (
    *(EOFError, ValueError, ArithmeticError, LookupError, NotImplementedError, RuntimeError),
    *(struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile),
)


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
        In the order of the file. Memory is that of the largest feature. A packed file is refused where it unpacks to
        far more than outlines do.

    Raises
    ------
    SlideError
        ``annotation_missing``; ``annotation_unreadable``: the file is damaged, or is no GeoJSON.
    """
    path = source.path
    with annotation_file(path, "the annotation"), _whole_file(path.name), path.open("rb") as file:
        room = _Room(path.stat().st_size)
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                names = sorted(name for name in archive.namelist() if name.lower().endswith(_PLAIN))
                if not names:
                    raise _damaged(path.name, "the zip holds no .geojson")
                for name in names:
                    with archive.open(name) as member:
                        yield from _Text(cast(BinaryIO, member), f"{path.name}/{shortened(name)}", room).features()
            return
        file.seek(0)
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if packed:
            with gzip.open(file) as unpacked:
                yield from _Text(cast(BinaryIO, unpacked), path.name, room).features()
        else:
            yield from _Text(file, path.name).features()


@contextmanager
def _whole_file(where: str) -> Iterator[None]:
    """Tell of a file that cannot be read to its end."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise _damaged(where, f"it is no UTF-8 text ({error.reason})") from error
    except RecursionError as error:
        raise _damaged(where, "its lists are nested too deep") from error
    except OSError as error:
        # Of what unpacks, only bzip2 and gzip tell by an error of this kind that has no number.
        if error.errno is not None:
            raise
        raise _damaged(where, f"it cannot be unpacked ({error})") from error
    except _TROUBLE as error:
        raise _damaged(where, f"it cannot be unpacked ({error})") from error


class _Room:
    """How much a packed file of some bytes may unpack to."""

    def __init__(self, size: int) -> None:
        self._characters = _FREE_CHARACTERS + _CHARACTERS_PER_BYTE * size
        self._marks = _FREE_MARKS + _MARKS_PER_BYTE * size

    def holds(self, chunk: str) -> bool:
        """Whether a further chunk has room; it has it from then on."""
        self._characters -= len(chunk)
        self._marks -= chunk.count(",") + chunk.count("[") + chunk.count("{")
        return self._characters >= 0 and self._marks >= 0


class _Text:
    """Text of a JSON document, of which only what is needed next is held."""

    def __init__(self, stream: BinaryIO, where: str, room: _Room | None = None) -> None:
        self._room = room
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
                raise self._refuse(f"a JSON {type(name).__name__} where a name was expected")
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
            raise self._refuse(f"it is no GeoJSON: an object with {listed(rest) or 'nothing'}")

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
            spaces = _SPACES.match(self._held, self._at)
            self._at = spaces.end() if spaces else self._at
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
                may_go_on = error.msg.startswith("Unterminated string") or self._nearly_all_before(error.pos)
                if may_go_on and self._more():
                    continue
                self._at = error.pos
                what = "it ends too early" if error.pos >= len(self._held.rstrip()) else error.msg
                raise self._refuse(what) from error
            except ValueError as error:  # a number of thousands of digits
                raise self._refuse("a number has thousands of digits") from error
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
        if self._room is not None and not self._room.holds(chunk):
            raise self._refuse("it unpacks to far more than outlines do; if it is sound, give it unpacked")
        self._before += self._at
        self._held, self._at = left + chunk, 0
        self._ended = not chunk
        return not self._ended

    def _nearly_all_before(self, at: int) -> bool:
        """Whether hardly more than spaces are held from a place on."""
        return not self._held[at:].strip(_SPACE)[_TOKEN_CHARACTERS:]

    def _refuse(self, what: str) -> SlideError:
        place = f"{self._place()}, character {self._before + self._at}" if self._count else self._where
        return _damaged(place, what)


def _damaged(where: str, what: str) -> SlideError:
    what = f"the GeoJSON cannot be read: {shortened(what, _MOST_WORDS)}"
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
    what = shortened(what, _MOST_WORDS)
    return SlideError(what, where=where, expected=expected, hint=_HINT, code="annotation_unreadable")
