"""Writing token maps: whole shards in the background, arrays of an older store taken over instead of computed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.artefacts.files import publish
from slideloom.artefacts.zarrio import create_array, create_group, read_attributes
from slideloom.encoders.base import EncoderSpec

__all__ = ["OlderStore", "SlideWriter", "find_older"]


@dataclass(frozen=True)
class OlderStore:
    """Embeddings that lie where new ones are to be written.

    Attributes
    ----------
    path : Path
        The store.
    attributes : dict
        What it records.
    blocks : tuple of int
        Blocks whose arrays are as good as new ones.
    dropped : tuple of int
        Its other blocks.
    """

    path: Path
    attributes: dict[str, Any]
    blocks: tuple[int, ...]
    dropped: tuple[int, ...]


def find_older(
    place: Path, wanted: Sequence[int], spec: EncoderSpec, base_key: Mapping[str, str], precision: str
) -> OlderStore | str:
    """Look for arrays that need not be computed.

    Parameters
    ----------
    place : Path
        Where the new store is to lie.
    wanted : sequence of int
        Its blocks.
    spec : EncoderSpec
        Of the encoder; the last block's tokens are others when they are given after the final normalisation.
    base_key : mapping of str to str
        Digest of everything but the blocks that the tokens depend on, by what it is; empty: nothing is taken over.
    precision : str
        Arithmetic of the encoder.

    Returns
    -------
    OlderStore or str
        A store with at least one of the blocks; or why there is none, empty when nothing lies there.
    """
    try:
        return _compare(place, read_attributes(place), tuple(wanted), spec, base_key, precision)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        return "the older store cannot be read"


def _compare(
    place: Path,
    about: dict[str, Any],
    wanted: tuple[int, ...],
    spec: EncoderSpec,
    base_key: Mapping[str, str],
    precision: str,
) -> OlderStore | str:
    key = about["base_key"]
    if not base_key or not key:
        return "the older store does not say what it was made from"
    if key != dict(base_key):
        changed = sorted(name for name in key.keys() | base_key.keys() if key.get(name) != base_key.get(name))
        return f"other {', '.join(changed)} than when the older store was made"
    if about["precision"] != precision:
        return f"the older store was made in {about['precision']}"
    held = tuple(about["blocks"])
    same = [
        block for block in held if block in wanted and (block != spec.depth or about["final_norm"] == spec.final_norm)
    ]
    kept = tuple(block for block in same if about["files"][str(block)] == _files(_folder(place, block)))
    if not kept:
        told = ", ".join(map(str, same or held))
        return f"blocks {told} of the older store are not whole" if same else f"the older store has blocks {told} only"
    return OlderStore(place, about, kept, tuple(block for block in held if block not in kept))


def _folder(store: Path, block: int) -> Path:
    return store / f"block_{block}"


def _files(folder: Path) -> list[int]:
    """Number of files below a folder, and their bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return [len(sizes), sum(sizes)]


def _link_tree(source: Path, target: Path) -> None:
    """The same files at another place: hard links, copies where the file system has none. Shards never change."""
    for path in sorted(source.rglob("*")):
        there = target / path.relative_to(source)
        if not path.is_file():
            continue
        there.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, there)
        except OSError:
            shutil.copy2(path, there)


class _Abandoned(Exception):
    """Tells :func:`publish` that nothing came of it."""


class SlideWriter:
    """The store of one slide, while it is written.

    Parameters
    ----------
    place : Path
        The store; an older one is replaced when the new one is whole.
    shape : (int, int, int, int)
        Of every array: tiles, rows and columns of tokens, width.
    blocks : sequence of int
        Blocks that :meth:`add` is given.
    older : OlderStore, optional
        Its blocks are taken over.
    """

    def __init__(
        self, place: Path, shape: tuple[int, int, int, int], blocks: Sequence[int], older: OlderStore | None = None
    ) -> None:
        self._publishing = publish(place)
        self._draft = self._publishing.__enter__()
        self._arrays: dict[int, _ShardWriter] = {}
        try:
            if older is not None:
                for block in older.blocks:
                    _link_tree(_folder(older.path, block), _folder(self._draft, block))
            for block in blocks:
                self._arrays[block] = _ShardWriter(_folder(self._draft, block), shape)
        except BaseException:
            self.abandon()
            raise

    def add(self, rows: Mapping[int, NDArray[np.float16]]) -> None:
        """The next tiles' tokens by block, (k, h, w, width) each; copied."""
        for block, values in rows.items():
            self._arrays[block].add(values)

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Write what is left and the attributes, and put the store in its place."""
        for array in self._arrays.values():
            array.close()
        files = {str(block): _files(_folder(self._draft, block)) for block in attributes["blocks"]}
        create_group(self._draft, {**attributes, "files": files})
        self._publishing.__exit__(None, None, None)

    def abandon(self) -> None:
        """Leave nothing behind."""
        for array in self._arrays.values():
            with suppress(Exception):  # what is being written would come to lie in a folder that is gone
                array.wait()
        self._publishing.__exit__(_Abandoned, _Abandoned(), None)


class _ShardWriter:
    """Gathers rows and writes whole shards, one in the background while the next one fills."""

    def __init__(self, path: Path, shape: tuple[int, int, int, int]) -> None:
        self._array = create_array(path, shape, np.float16, dimension_names=("tile", "y", "x", "feature"))
        shard = self._array.chunk_layout.write_chunk.shape
        self._rows = min(shape[0], int(shard[0] or 1)) if shard else shape[0]
        self._shape = shape[1:]
        self._buffer: NDArray[np.float16] | None = None
        self._filled = 0
        self._start = 0
        self._pending: Any = None

    def add(self, rows: NDArray[np.float16]) -> None:
        done = 0
        while done < len(rows):
            if self._buffer is None:
                self._buffer = np.empty((self._rows, *self._shape), np.float16)
            part = rows[done : done + self._rows - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            done += len(part)
            if self._filled == self._rows:
                self._flush()

    def _flush(self) -> None:
        if self._buffer is None:
            return
        self.wait()
        stop = self._start + self._filled
        self._pending = self._array[self._start : stop].write(self._buffer[: self._filled])
        self._start, self._filled, self._buffer = stop, 0, None

    def wait(self) -> None:
        """Until the shard that is being written lies on the disk."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def close(self) -> None:
        self._flush()
        self.wait()
