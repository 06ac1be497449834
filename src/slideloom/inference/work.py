"""A slide on its way through the engine, what is handed on of it, and how it comes to the disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slideloom.errors import SlideError, SlideloomError
from slideloom.inference.account import MapsAccount, Timing
from slideloom.inference.blend import RowBlender
from slideloom.inference.layout import MapLayout
from slideloom.inference.tiles import RawTiles, TileSource
from slideloom.inference.writer import MapStore, MapWriter

__all__ = ["End", "Layer", "Part", "Rows", "SlideWork", "Spent", "Writing", "in_chunks", "split"]


@dataclass(eq=False)
class Layer:
    """One grid of tiles over a slide, and the maps that come of it.

    Attributes
    ----------
    work : SlideWork
        The slide.
    name : str
        Of the group in its store; empty for the store itself.
    tiles : TileSource
        The tiles.
    blender : RowBlender, optional
        From the first tile to the last.
    """

    work: SlideWork
    name: str
    tiles: TileSource
    blender: RowBlender | None = None


@dataclass(eq=False)
class SlideWork:
    """One slide on its way through the engine.

    Attributes
    ----------
    slide_id : str
        As the caller names it.
    place : Path
        Where its maps go.
    sources : mapping of str to callable
        Open its grids of tiles, by the name of the group that their maps go to.
    describe : callable
        Attributes of a group of maps.
    account : MapsAccount
        Its share of the time.
    error : Exception, optional
        Why it fails; set by the first thread that finds out, and nothing more is done for it.
    """

    slide_id: str
    place: Path
    sources: Mapping[str, Callable[[], TileSource]]
    describe: Callable[[TileSource], dict[str, Any]]
    account: MapsAccount
    error: Exception | None = None

    def open(self) -> list[Layer]:
        """Open all of its grids."""
        return [Layer(self, name, make()) for name, make in self.sources.items()]

    def fail(self, error: Exception) -> None:
        """Give the slide up; the first reason stands."""
        if self.error is None:
            self.error = SlideError.of(error) if isinstance(error, SlideloomError) else error


@dataclass(frozen=True)
class Part:
    """Neighbouring tiles of one grid; on the device, once it has them."""

    layer: Layer
    raw: RawTiles

    @property
    def work(self) -> SlideWork:
        """Whose."""
        return self.layer.work


@dataclass(frozen=True)
class End:
    """There are no more tiles: of a grid (``layer``), or of the whole slide."""

    work: SlideWork
    layer: Layer | None = None


@dataclass(frozen=True)
class Rows:
    """Finished rows of a grid's maps.

    Attributes
    ----------
    layer : Layer
        Whose.
    count : int
        Rows.
    maps : dict of str to Tensor, or None
        Bytes on the CPU; None where all are 0.
    done : Event, optional
        On a GPU: they have arrived.
    """

    layer: Layer
    count: int
    maps: Mapping[str, Tensor] | None
    done: torch.cuda.Event | None = None


@dataclass(frozen=True)
class Spent:
    """The time of a batch, and how many of its tiles were whose."""

    timing: Timing
    shares: Sequence[tuple[SlideWork, int]]


def split(items: list[Part | End], count: int) -> tuple[list[Part | End], list[Part | End]]:
    """The first ``count`` tiles with what follows them directly, and the rest."""
    head: list[Part | End] = []
    for place, item in enumerate(items):
        if isinstance(item, Part):
            if not count:
                return head, items[place:]
            taken = min(count, len(item.raw))
            count -= taken
            head.append(Part(item.layer, item.raw.part(0, taken)))
            if taken < len(item.raw):
                return head, [Part(item.layer, item.raw.part(taken, len(item.raw))), *items[place + 1 :]]
        else:
            head.append(item)
    return head, []


def in_chunks(items: list[Part | End], count: int) -> list[list[Part | End]]:
    """All tiles, ``count`` at a time, each time with what follows them directly."""
    chunks = []
    while items:
        head, items = split(items, count)
        chunks.append(head)
    return chunks


class Writing:
    """Takes what is finished to the disk, slide by slide, and keeps the accounts.

    Parameters
    ----------
    layout : MapLayout
        Which maps there are.
    account : MapsAccount
        Of all slides together.
    """

    def __init__(self, layout: MapLayout, account: MapsAccount) -> None:
        self._layout, self._account = layout, account
        self._stores: dict[SlideWork, MapStore] = {}
        self._writers: dict[Layer, MapWriter] = {}

    def take(self, message: Rows | Spent | End) -> SlideWork | None:
        """Take the next message; returns the slide that it ends."""
        if isinstance(message, Spent):
            self._spend(message)
            return None
        work = message.layer.work if isinstance(message, Rows) else message.work
        try:
            if work.error is None:
                self._go_on(work, message)
        except Exception as error:
            work.fail(error)
        if work.error is not None:
            self._drop(work)
        return work if isinstance(message, End) else None

    def abandon(self) -> None:
        """Leave nothing behind of the slides that are not finished."""
        for work in list(self._stores):
            self._drop(work)

    def _go_on(self, work: SlideWork, message: Rows | End) -> None:
        if isinstance(message, End):
            self._stores[work].finish()
            self._forget(work)
            return
        layer = message.layer
        if layer not in self._writers:
            if work not in self._stores:
                self._stores[work] = MapStore(work.place)
            tiles = layer.tiles
            shape = (tiles.height_px, tiles.width_px)
            self._writers[layer] = self._stores[work].open(
                layer.name, work.describe(tiles), self._layout, shape, tiles.rows
            )
        if message.done is not None:
            message.done.synchronize()
        maps = None if message.maps is None else {name: part.numpy() for name, part in message.maps.items()}
        self._writers[layer].add(message.count, maps)

    def _drop(self, work: SlideWork) -> None:
        store = self._stores.get(work)
        self._forget(work)
        if store is not None:
            store.abandon()

    def _forget(self, work: SlideWork) -> None:
        self._stores.pop(work, None)
        self._writers = {layer: writer for layer, writer in self._writers.items() if layer.work is not work}

    def _spend(self, spent: Spent) -> None:
        seconds = spent.timing.seconds()
        n_tiles = sum(count for _, count in spent.shares)
        self._account.add(seconds)
        self._account.n_tiles += n_tiles
        for work, count in spent.shares:
            work.account.n_tiles += count
            work.account.add(seconds, count / n_tiles)
            work.account.seconds = work.account.total()
