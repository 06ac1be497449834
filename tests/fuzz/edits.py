"""Small damages to files: bytes changed, cut, moved, and fields of known formats set to awkward values.

An edit is plain data, so that hypothesis can shrink it and a seeded generator can draw it.
"""

from __future__ import annotations

import copy
import json
import math
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

__all__ = ["DAMAGES", "FORMS", "LARGEST", "Edit", "Form", "apply", "random_edits"]

LARGEST = 2**16 - 1
_MOST_TREE_BYTES = 50_000
DAMAGES = ("field", "field", "set", "flip", "cut", "end", "again", "insert", "zero")
_NUMBERS = (0, 1, 2, 3, 7, 8, 16, 32, 127, 128, 255, 256, 4096, 32767, 32768, 65535, 65536, 10**6, 2**31 - 1, 2**31)
_AWKWARD = (*_NUMBERS, 2**32 - 1, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
_WORDS = (
    *map(str, _AWKWARD), "-1", "-0", "1e999", "-1e999", "nan", "NaN", "inf", "Infinity", "0.5", "1e-30", "true", "null",
    "None", "~", "[]", "{}", "''", '""', '"', "'", "[[", "[" * 3000, '{"a":' * 3000, "{" * 500, "(" * 500, "a" * 5000,
    "../..", "/etc/passwd", "..", "/", "\\", "\0", "\n", "\r", "\t", "\x1b[31m", "\u202e", "e\u0301", "\ufeff", "😀",
    "<script>", "]]>", "&a;", "<!DOCTYPE a [<!ENTITY a 'b'>]>", "&#0;", "%s%n", "{0}", "*a", "&a", "<<: *a",
    "!!python/name:os", "!!binary x", "? a", "- -", ": ", "#", "|", ">", "%YAML 9", "---", ",", ";", "::", "::x[99]",
    "=1+1", "\ud7ff",
)  # fmt: skip

#: Values of JSON, for the places of others.
_VALUES: tuple[Any, ...] = (
    *_AWKWARD, *(-one for one in _AWKWARD), 0.5, 1e308, -1e-300, math.nan, math.inf, True, False, None, "", "0", "..",
    "/", "../../x", "a" * 3000, "\x1b[31m", "\ud800", "zstd", "gzip", "blosc", "float64", "<f8", "|O", "|V4", "<U4",
    "<M8[s]", "bool", [], {}, [[]], [1], [0, 0], {"id": "zlib", "level": 99}, {"type": "Polygon", "coordinates": []},
    {"name": "sharding_indexed", "configuration": {"chunk_shape": [1], "codecs": []}},
    [[[0, 0], [1, 1]]], [[1e300, 0], [0, -1e300]],
)  # fmt: skip


class Edit(NamedTuple):
    """One damage.

    Attributes
    ----------
    damage : str
        One of :data:`DAMAGES`.
    at : int
        Where, of 0 to :data:`LARGEST`: a share of the file, or the number of a field.
    value : int
        What is put there, or how much is taken away.
    """

    damage: str
    at: int
    value: int


class Form(NamedTuple):
    """What is known of a format.

    Attributes
    ----------
    fields : callable
        Bytes to (offset, width in bytes, byte order) of the numbers that lay the file out.
    text : bool
        Whether it is text: words, not bytes, are changed.
    tree : bool
        Whether it is JSON: seven edits of eight leave it so, and change its values.
    mend : callable
        What a file must hold to get past its checksums.
    """

    fields: Callable[[bytes], Sequence[tuple[int, int, str]]]
    text: bool = False
    tree: bool = False
    mend: Callable[[bytes], bytes] = bytes


def random_edits(rng: random.Random, most: int = 4) -> list[Edit]:
    """Draw one to ``most`` edits."""
    return [
        Edit(rng.choice(DAMAGES), rng.randrange(LARGEST + 1), rng.randrange(LARGEST + 1))
        for _ in range(rng.randint(1, most))
    ]


def apply(edits: Sequence[Edit], data: bytes, form: Form) -> bytes:
    """Damage a file."""
    for edit in edits:
        if form.tree and edit.value % 8:
            data = _branch(edit, data)
        elif form.text and edit.damage in ("field", "set"):
            data = _word(edit, data)
        else:
            data = _one(edit, data, form)
    return form.mend(data)


def _one(edit: Edit, data: bytes, form: Form) -> bytes:
    size = len(data)
    at = edit.at * size // (LARGEST + 1)
    length = 1 + edit.value % max(1, min(size, 1 << (edit.value % 11)))
    match edit.damage:
        case "field":
            fields = form.fields(data)
            if not fields:
                return data
            offset, width, order = fields[edit.at % len(fields)]
            return _put(data, offset, width, order, edit.value)
        case "set":
            return _put(data, at, 1 << edit.value % 4, "<" if edit.value & 256 else ">", edit.value >> 2)
        case "flip":
            return data[:at] + bytes(one ^ 1 << edit.value % 8 for one in data[at : at + 1]) + data[at + 1 :]
        case "cut":
            return data[:at] + data[at + length :]
        case "end":
            return data[:at]
        case "again":
            return data[: at + length] + data[at:]
        case "zero":
            return data[:at] + bytes(len(data[at : at + length])) + data[at + length :]
        case _:
            return data[:at] + random.Random(edit.value).randbytes(length % 64) + data[at:]


def _put(data: bytes, offset: int, width: int, order: str, value: int) -> bytes:
    number = _AWKWARD[value % len(_AWKWARD)] % 2 ** (8 * width)
    return data[:offset] + number.to_bytes(width, "little" if order == "<" else "big") + data[offset + width :]


_TOKEN = re.compile(rb"[\w.+-]+|[^\w\s]|\s+")


def _word(edit: Edit, data: bytes) -> bytes:
    """Put an awkward word in the place of another, or beside it, or another word of the file there."""
    tokens = list(_TOKEN.finditer(data))
    if not tokens:
        return _WORDS[edit.value % len(_WORDS)].encode()
    one = tokens[edit.at % len(tokens)]
    words = [word.encode() for word in _WORDS]
    choice = edit.value % (len(words) + len(tokens))
    new = words[choice] if choice < len(words) else tokens[choice - len(words)][0]
    end = one.end() if edit.damage == "field" else one.start()
    return data[: one.start()] + new + data[end:]


def _branch(edit: Edit, data: bytes) -> bytes:
    """Change, remove, repeat or rename a value of a JSON document."""
    if len(data) > _MOST_TREE_BYTES:  # repeated lists of repeated lists
        return data
    try:
        whole = {"": json.loads(data)}
    except (ValueError, RecursionError):
        return _word(edit, data)
    places: list[tuple[Any, Any]] = []
    waiting: list[Any] = [whole]
    for holder in waiting:
        if isinstance(holder, dict | list):
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            places += [(holder, key) for key in keys]
            waiting += [holder[key] for key in keys]
    holder, key = places[edit.at % len(places)]
    other, there = places[edit.value % len(places)]
    match edit.damage:
        case "cut" | "end":
            del holder[key]
        case "again" if isinstance(holder, list):
            holder *= 1 + edit.value % 300
        case "again" | "insert":
            holder[key] = [holder[key]]
        case "flip" if isinstance(holder, dict):
            holder[str(_VALUES[edit.value % len(_VALUES)])[:20]] = holder.pop(key)
        case "zero":
            holder[key] = copy.deepcopy(other[there])
        case _:
            holder[key] = _VALUES[edit.value % len(_VALUES)]
    return json.dumps(whole.get("")).encode()


def _no_fields(data: bytes) -> list[tuple[int, int, str]]:
    return []


def _tiff_fields(data: bytes) -> list[tuple[int, int, str]]:
    """Tag, type, count and value of every entry of every directory, and the links between directories."""
    if len(data) < 16:
        return []
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    wide, entry_bytes, links = (8, 20, 8) if big else (4, 12, 4)
    found = [(links, wide, order)]
    waiting, seen = [int.from_bytes(data[links : links + wide], "little" if order == "<" else "big")], set()
    while waiting:
        start = waiting.pop()
        counted = 8 if big else 2
        if start in seen or not 0 < start < len(data) - counted or len(seen) > 20:
            continue
        seen.add(start)
        number = min(int.from_bytes(data[start : start + counted], "little" if order == "<" else "big"), 64)
        found.append((start, counted, order))
        for entry in range(number):
            at = start + counted + entry * entry_bytes
            if at + entry_bytes > len(data):
                return found
            tag, kind = struct.unpack_from(f"{order}HH", data, at)
            width = {3: 2, 1: 1, 2: 1}.get(kind, wide)
            found += [(at, 2, order), (at + 2, 2, order), (at + 4, wide, order), (at + 4 + wide, width, order)]
            count = int.from_bytes(data[at + 4 : at + 4 + wide], "little" if order == "<" else "big")
            value = int.from_bytes(data[at + 4 + wide : at + 4 + 2 * wide], "little" if order == "<" else "big")
            if count > 1 and value < len(data):  # values that lie elsewhere: offsets and counts of tiles
                found += [(value + wide * one, wide, order) for one in range(min(count, 3))]
            if tag == 330:  # SubIFDs
                waiting += [value]
        link = start + counted + number * entry_bytes
        found.append((link, wide, order))
        waiting.append(int.from_bytes(data[link : link + wide], "little" if order == "<" else "big"))
    return found


def _png_chunks(data: bytes) -> Iterator[tuple[int, int]]:
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield at, length
        at += 12 + length


def _png_fields(data: bytes) -> list[tuple[int, int, str]]:
    found = []
    for at, length in _png_chunks(data):
        found.append((at, 4, ">"))
        if data[at + 4 : at + 8] == b"IHDR":
            found += [(at + 8, 4, ">"), (at + 12, 4, ">"), *((at + 16 + one, 1, ">") for one in range(5))]
        elif length >= 4:
            found += [(at + 8, 4, ">"), (at + 12, 1, ">")]
    return found


def _png_mend(data: bytes) -> bytes:
    """Right checksums, in all but every fourth file."""
    if zlib.crc32(data) % 4 == 0:
        return data
    out = bytearray(data)
    for at, length in _png_chunks(data):
        if at + 12 + length <= len(data):
            out[at + 8 + length : at + 12 + length] = zlib.crc32(data[at + 4 : at + 8 + length]).to_bytes(4, "big")
    return bytes(out)


def _jpeg_fields(data: bytes) -> list[tuple[int, int, str]]:
    """Lengths of the segments, and sizes and samplings of the frame."""
    found, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        found += [(at + 1, 1, ">"), (at + 2, 2, ">")]
        if 0xC0 <= marker <= 0xC2:
            found += [(at + 4, 1, ">"), (at + 5, 2, ">"), (at + 7, 2, ">"), (at + 9, 1, ">"), (at + 11, 1, ">")]
        if marker == 0xDA:
            break
        at += 2 + length
    return found


def _npy_mend(data: bytes) -> bytes:
    """The true length of the header, in all but every fourth file."""
    end = data.find(b"\n")
    if end < 10 or zlib.crc32(data) % 4 == 0:
        return data
    return data[:8] + min(end - 9, 65535).to_bytes(2, "little") + data[10:]


FORMS = {
    "bytes": Form(_no_fields),
    "tiff": Form(_tiff_fields),
    "png": Form(_png_fields, mend=_png_mend),
    "jpeg": Form(_jpeg_fields),
    "npy": Form(_no_fields, text=True, mend=_npy_mend),
    "text": Form(_no_fields, text=True),
    "json": Form(_no_fields, text=True, tree=True),
}
