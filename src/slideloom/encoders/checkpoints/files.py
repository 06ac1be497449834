"""Files of weights as files: what they are, whether they are whole, their digest. Nothing here loads torch or tensors.

A download that went wrong leaves something under the right name: a web page, a pointer of git-lfs, half of the file.
Each is told for what it is, before any library stumbles over it.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from slideloom.errors import SlideloomError

__all__ = [
    "SAFETENSORS",
    "TORCH",
    "Archive",
    "Entry",
    "Header",
    "check_checksums",
    "check_file",
    "file_sha256",
    "read_archive",
    "read_header",
    "unreadable",
    "vector_names",
]

SAFETENSORS = ".safetensors"
#: Suffixes under which PyTorch files are published; HoVer-Net's are called ``.tar`` and are none.
TORCH = (".pth", ".pt", ".bin", ".ckpt", ".tar")
_HEAD_BYTES = 512
#: Longest header that the safetensors format allows.
_MOST_HEADER_BYTES = 100_000_000
#: PyTorch does not pack what it saves, and weights hardly pack. An archive that unpacks to more than so many times its
#: own size, beyond the first bytes, is made to fill the memory.
_FREE_BYTES, _MOST_TIMES = 64 << 20, 32
_LFS = b"version https://git-lfs.github.com/spec/"
_ELEMENT_BITS = {"BOOL": 8, "I8": 8, "U8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32}
_ELEMENT_BITS |= {"F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file: its type there (such as ``F16``) and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself.

    Attributes
    ----------
    entries : dict of str to Entry
        By name, in the order of the header.
    metadata : dict of str to str
        Free text of whoever wrote it.
    """

    entries: dict[str, Entry]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Archive:
    """What the directory of a PyTorch zip file says.

    Attributes
    ----------
    stored : bool
        Nothing is compressed, so that tensors can be mapped from the file.
    script : bool
        It holds a TorchScript program, not values alone.
    """

    stored: bool
    script: bool


def unreadable(path: Path, what: str, hint: str = "") -> SlideloomError:
    """The error ``unreadable_checkpoint`` for a file that is not what it should be."""
    hint = hint or "Copy it again and compare its sha256 with the publisher's"
    return SlideloomError(f"{path} {what}", hint=hint, code="unreadable_checkpoint")


def check_file(path: Path) -> str:
    """Look at a checkpoint's name and first bytes.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    {"safetensors", "zip", "pickle"}
        How it is written: safetensors, PyTorch since 1.6, PyTorch before.

    Raises
    ------
    SlideloomError
        ``missing_checkpoint``: nothing there. ``unreadable_checkpoint``: a folder, an empty file, a web page, a pointer
        of git-lfs, a suffix that is none of a checkpoint's, or contents of another kind than the suffix says.
    """
    if path.is_dir():
        raise unreadable(path, "is a folder, not a checkpoint", "Name the file in it")
    if not path.is_file():
        raise SlideloomError(
            f"no checkpoint at {path}",
            hint="Put the file there, or set random: <seed> to run without weights; nothing is ever downloaded",
            code="missing_checkpoint",
        )
    suffix = path.suffix.lower()
    if suffix != SAFETENSORS and suffix not in TORCH:
        known = ", ".join((SAFETENSORS, *TORCH))
        raise unreadable(path, f"has the suffix {path.suffix!r}, which no checkpoint has", f"Known are {known}")
    with path.open("rb") as handle:
        head = handle.read(_HEAD_BYTES)
    kind = _kind(path, head)
    if (kind == "safetensors") != (suffix == SAFETENSORS):
        right = SAFETENSORS if kind == "safetensors" else TORCH[0]
        written = "a safetensors file" if kind == "safetensors" else "a PyTorch file"
        raise unreadable(path, f"is {written}, which its suffix does not say", f"Give it the suffix {right}")
    return kind


def _kind(path: Path, head: bytes) -> str:
    if not head:
        raise unreadable(path, "is empty")
    if head.startswith(_LFS):
        hint = "Fetch the file itself: git lfs pull, in the folder that was cloned"
        raise unreadable(path, "is a pointer of git-lfs, not the file that it stands for", hint)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        hint = "Its download was answered by a web page, often one that asks to sign in: fetch it again"
        raise unreadable(path, "is a web page, not a checkpoint", hint)
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MOST_HEADER_BYTES:
        return "safetensors"
    if head.startswith(b"\x80"):
        return "pickle"
    if head[257:262] == b"ustar":
        raise unreadable(path, "is an archive of files, not a checkpoint", "Unpack it, and name the checkpoint in it")
    raise unreadable(path, "is neither a safetensors nor a PyTorch file, or its beginning is lost")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, read in blocks; once a process, as long as the file stays the same.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    now = path.stat()
    return _sha256(path.resolve(), now.st_size, now.st_mtime_ns, now.st_ino)


@lru_cache(maxsize=256)
def _sha256(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file and check that the tensors it lists fill the file, byte for byte.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    Header
        Names, types, shapes; no values.

    Raises
    ------
    SlideloomError
        ``unreadable_checkpoint``: cut short, too long, a name that stands twice, or a header that contradicts itself.
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        text = handle.read(min(length, _MOST_HEADER_BYTES))
    if len(text) < length:
        raise unreadable(path, f"is cut short: {size} bytes, and its header alone has {length}")
    try:
        body = json.loads(text, object_pairs_hook=_once)
        metadata = {str(key): str(value) for key, value in body.pop("__metadata__", {}).items()}
        spans = {name: (about["dtype"], tuple(about["shape"]), *about["data_offsets"]) for name, about in body.items()}
        at = 0
        for name, (dtype, shape, start, stop) in sorted(spans.items(), key=lambda item: item[1][2:]):
            if start != at or stop - start != _bytes(dtype, shape, stop - start):
                raise ValueError(f"{name} does not lie where its shape says")
            at = stop
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(path, f"has a damaged header: {error}") from error
    if 8 + length + at != size:
        state = "cut short" if 8 + length + at > size else "too long"
        raise unreadable(path, f"is {state}: {size} bytes of {8 + length + at}")
    return Header({name: Entry(span[0], span[1]) for name, span in spans.items()}, metadata)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _bytes(dtype: str, shape: tuple[int, ...], otherwise: int) -> int:
    """Size of a tensor; types that are younger than this text are taken at their word."""
    count = 1
    for side in shape:
        count *= side
    return count * _ELEMENT_BITS[dtype] // 8 if dtype in _ELEMENT_BITS else otherwise


def read_archive(path: Path) -> Archive:
    """Read the directory of a PyTorch zip file, which stands at its end.

    Raises
    ------
    SlideloomError
        ``unreadable_checkpoint``: the end is lost, no weights are in it, or it unpacks to far more than it is.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise unreadable(path, f"is cut short or damaged: {error}") from error
    names = [info.filename.rpartition("/")[2] for info in infos]
    if "data.pkl" not in names:
        raise unreadable(path, "is a zip file without weights of PyTorch", "Name the checkpoint itself")
    size, unpacked = path.stat().st_size, sum(info.file_size for info in infos)
    if unpacked > _FREE_BYTES + _MOST_TIMES * size:
        what = f"is packed: its {size} bytes would unpack to {unpacked}, which no weights do"
        raise unreadable(path, what, "Fetch it from its publisher, as it was saved")
    return Archive(all(info.compress_type == zipfile.ZIP_STORED for info in infos), "constants.pkl" in names)


def check_checksums(path: Path) -> None:
    """Read every entry of a PyTorch zip file, in blocks, and compare its checksum.

    Raises
    ------
    SlideloomError
        ``unreadable_checkpoint``.
    """
    read_archive(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise unreadable(path, f"is damaged: {error}") from error
    if damaged is not None:
        raise unreadable(path, f"is damaged: {damaged} does not have its checksum")


def vector_names(path: Path) -> frozenset[str]:
    """Accessions for which a place of protein embeddings has a vector.

    Parameters
    ----------
    path : Path
        Folder of ``<accession>.pt``, or one safetensors file with a tensor for each accession.

    Raises
    ------
    SlideloomError
        ``missing_checkpoint``, ``unreadable_checkpoint``: nothing there, not whole, or without a single vector.
    """
    if path.is_dir():
        names = frozenset(child.stem for child in path.glob("*.pt"))
    else:
        if check_file(path) != "safetensors":
            raise unreadable(path, "is one PyTorch file", "Give a folder of <accession>.pt, or one safetensors file")
        names = frozenset(read_header(path).entries)
    if not names:
        raise unreadable(path, "holds no vector", "Give a folder of <accession>.pt, or one safetensors file")
    return names
