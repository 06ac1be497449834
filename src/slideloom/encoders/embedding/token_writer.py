"""Writing token maps: whole shards in the background, arrays of an older store taken over instead of computed."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideloom.artefacts.broken import BrokenArtefactError
from slideloom.artefacts.files import publish
from slideloom.artefacts.zarrio import create_array, create_group, read_attributes
from slideloom.encoders.base import EncoderSpec
from slideloom.encoders.embedding.store import TokenArray, token_arrays

__all__ = ["OlderStore", "SlideWriter", "find_older"]

#: Shards of flipped and turned tiles, about. Every array that is written holds up to two shards in memory, and there
#: are seven of these for each of the others.
_TURNED_SHARD_BYTES = 16 << 20


@dataclass(frozen=True)
class OlderStore:
    """Embeddings that lie where new ones are to be written.

    Attributes
    ----------
    path : Path
        The store.
    attributes : dict
        What it records.
    arrays : tuple of TokenArray
        Arrays that are as good as new ones.
    dropped : tuple of TokenArray
        Its others.
    """

    path: Path
    attributes: dict[str, Any]
    arrays: tuple[TokenArray, ...]
    dropped: tuple[TokenArray, ...]


def find_older(
    place: Path, wanted: Sequence[TokenArray], spec: EncoderSpec, base_key: Mapping[str, str], precision: str
) -> OlderStore | str:
    """Look for arrays that need not be computed.

    Parameters
    ----------
    place : Path
        Where the new store is to lie.
    wanted : sequence of TokenArray
        Its arrays.
    spec : EncoderSpec
        Of the encoder; the last block's tokens are others when they are given after the final normalisation.
    base_key : mapping of str to str
        Digest of everything but the choice of arrays that the tokens depend on, by what it is; empty: nothing is taken
        over.
    precision : str
        Arithmetic of the encoder.

    Returns
    -------
    OlderStore or str
        A store with at least one of the arrays; or why there is none, empty when nothing lies there.
    """
    try:
        return _compare(place, read_attributes(place), tuple(wanted), spec, base_key, precision)
    except FileNotFoundError:
        return ""
    except (BrokenArtefactError, OSError, ValueError, KeyError, TypeError):
        return "the older store cannot be read"


def _compare(
    place: Path,
    about: dict[str, Any],
    wanted: tuple[TokenArray, ...],
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
    held = token_arrays(about["blocks"], about.get("symmetries", False))
    normed = about["final_norm"] == spec.final_norm
    same = [one for one in held if one in wanted and (one.block != spec.depth or normed)]
    kept = tuple(one for one in same if about["files"][one.label] == _files(place / one.folder))
    if not kept:
        told = ", ".join(dict.fromkeys(str(one.block) for one in same or held))
        return f"blocks {told} of the older store are not whole" if same else f"the older store has blocks {told} only"
    return OlderStore(place, about, kept, tuple(one for one in held if one not in kept))


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
    arrays : sequence of TokenArray
        Arrays that :meth:`add` is given.
    older : OlderStore, optional
        Its arrays are taken over.
    """

    def __init__(
        self,
        place: Path,
        shape: tuple[int, int, int, int],
        arrays: Sequence[TokenArray],
        older: OlderStore | None = None,
    ) -> None:
        self._publishing = publish(place)
        self._draft = self._publishing.__enter__()
        self._arrays: dict[TokenArray, _ShardWriter] = {}
        try:
            if older is not None:
                for one in older.arrays:
                    _link_tree(older.path / one.folder, self._draft / one.folder)
            for one in arrays:
                self._arrays[one] = _ShardWriter(self._draft / one.folder, shape, one.symmetry != 0)
        except BaseException:
            self.abandon()
            raise

    def add(self, rows: Mapping[TokenArray, NDArray[np.float16]]) -> None:
        """The next tiles' tokens by array, (k, h, w, width) each; copied."""
        for one, values in rows.items():
            self._arrays[one].add(values)

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Write what is left and the attributes, and put the store in its place."""
        for array in self._arrays.values():
            array.close()
        held = token_arrays(attributes["blocks"], attributes["symmetries"])
        files = {one.label: _files(self._draft / one.folder) for one in held}
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

    def __init__(self, path: Path, shape: tuple[int, int, int, int], turned: bool) -> None:
        rows = max(1, _TURNED_SHARD_BYTES // max(1, 2 * math.prod(shape[1:])))
        shard = (min(max(1, shape[0]), rows), *shape[1:]) if turned else None
        names = ("tile", "y", "x", "feature")
        self._array = create_array(path, shape, np.float16, shard=shard, dimension_names=names)
        written = self._array.chunk_layout.write_chunk.shape
        self._rows = min(shape[0], int(written[0] or 1)) if written else shape[0]
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
