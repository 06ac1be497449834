"""Digests of a slide's files: what they hold, not when they were written."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from slideloom.artefacts.keys import digest_file, digest_text, digest_tree
from slideloom.errors import SlideError
from slideloom.slides.source import Source

__all__ = ["source_digest"]


def source_digest(source: Source) -> str:
    """Digest of a source: the content of its file or folder, the files that go with it, and the member.

    Raises
    ------
    SlideError
        ``unreadable``: the file cannot be read to its end.
    """
    paths = [source.path]
    if source.path.suffix.lower() == ".mrxs":  # the pixels lie in a folder of the same name
        paths.append(source.path.with_suffix(""))
    try:
        return digest_text(source.member, *(_digest(path) for path in paths if path.exists()))
    except OSError as error:
        what = f"the file cannot be read to its end ({error.strerror})"
        raise SlideError(what, where=source.path.name, code="unreadable") from error


def _digest(path: Path) -> str:
    if path.is_dir():
        return digest_tree(path)
    status = path.stat()
    return _digest_once(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _digest_once(path: Path, mtime_ns: int, size: int) -> str:
    """Many slides may lie in one file; it is read once."""
    return digest_file(path)
