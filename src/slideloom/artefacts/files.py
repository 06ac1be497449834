"""Write beside the place, rename when complete: what exists is whole."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["publish", "read_json", "write_json", "write_text"]


@contextmanager
def publish(place: Path) -> Iterator[Path]:
    """Give a temporary path beside ``place``; rename it there when the block ends well, remove it when not.

    Parameters
    ----------
    place : Path
        Where the finished file or folder belongs; an older one is replaced.

    Yields
    ------
    Path
        A path in the same folder that does not exist yet, with the same suffixes, so that the rename is atomic.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_name(f".{uuid.uuid4().hex[:12]}-{place.name}")
    try:
        yield draft
        if place.is_dir() and not place.is_symlink():
            old = place.with_name(f".{uuid.uuid4().hex[:12]}-old-{place.name}")
            place.rename(old)
            draft.rename(place)
            shutil.rmtree(old)
        else:
            os.replace(draft, place)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        elif draft.exists():
            draft.unlink()


def write_text(place: Path, text: str) -> None:
    """Write a small UTF-8 file, whole or not at all."""
    with publish(place) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(place: Path, value: Mapping[str, Any]) -> None:
    """Write a small JSON file with sorted keys, whole or not at all."""
    write_text(place, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(place: Path) -> dict[str, Any]:
    """Read a JSON object."""
    value = json.loads(place.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{place} holds a JSON {type(value).__name__}, not an object")
    return value
