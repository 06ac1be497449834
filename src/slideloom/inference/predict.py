"""A decoder over a slide: tiles to blended maps, quantised, in sharded Zarr."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideloom._version import __version__
from slideloom.artefacts.files import publish
from slideloom.artefacts.zarrio import create_array, create_group
from slideloom.config.model import Head
from slideloom.decoders.base import Decoder
from slideloom.inference.blend import FinishedRows, RowBlender
from slideloom.inference.tiles import TileBatch, TileSource

__all__ = ["HV_SCALE", "PROBABILITY_SCALE", "predict_slide"]

_LOG = logging.getLogger(__name__)
_SCHEMA = 1
#: Stored value of probability 1, and of HV distance 1.
PROBABILITY_SCALE = 255
HV_SCALE = 127
_CHUNK_PX = 256
_SHARD_ROWS_PX = 1024
_SHARD_COLS_PX = 8192
_BATCHES_AHEAD = 2


def predict_slide(
    decoder: Decoder,
    tiles: TileSource,
    place: Path,
    attributes: Mapping[str, Any],
    *,
    batch_size: int = 16,
    precision: Literal["fp32", "bf16"] = "fp32",
    device: str = "cpu",
) -> dict[str, float]:
    """Predict every tile of a slide and blend the tiles into slide-wide maps.

    Parameters
    ----------
    decoder : Decoder
        In evaluation mode; moved to ``device`` and to channels-last here.
    tiles : TileSource
        The slide's tiles.
    place : Path
        Zarr group to write, in the grid frame: ``nucleus`` (H, W) uint8, 255 · probability (without a nucleus head,
        that of not being background); ``hv`` (2, H, W) int8,
        127 · distance, x then y; ``class_id`` (H, W) uint8, the likeliest class, background included, and
        ``class_probability`` (H, W) uint8; ``boundary`` (H, W) uint8; of these what the decoder's heads give; and
        ``covered`` (H, W) uint8, 1 where a tile looked.
    attributes : mapping
        Recorded with the maps: slide, image, pixel size and what they were made from.
    batch_size : int
        Tiles a pass.
    precision : {"fp32", "bf16"}
        Arithmetic of the decoder.
    device : str
        Such as ``cpu`` or ``cuda``.

    Returns
    -------
    dict of str to float
        ``n_tiles``, ``seconds``; of these ``read_s`` waiting for tiles, ``forward_s`` computing, ``blend_s`` blending,
        ``write_s`` quantising and handing rows to the disk.

    Notes
    -----
    Probabilities, not logits, are blended. A reader thread stays two batches ahead; writing goes on while the next
    tiles are computed. Memory is bounded by one row of tiles and one row of shards.
    """
    start = time.perf_counter()
    account = dict.fromkeys(("n_tiles", "seconds", "read_s", "forward_s", "blend_s", "write_s"), 0.0)
    account["n_tiles"] = float(tiles.n)
    decoder = decoder.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    heads = decoder.heads
    layout = _Layout(heads, decoder.n_classes)
    shape = (tiles.height_px, tiles.width_px)
    with publish(place) as draft:
        about = dict(attributes)
        about |= {"schema": _SCHEMA, "slideloom_version": __version__, "heads": list(heads), "scale": tiles.scale}
        about |= {"height_px": shape[0], "width_px": shape[1], "tile_px": tiles.tile_px, "stride_px": tiles.stride_px}
        about["units"] = {
            "nucleus": "probability · 255",
            "hv": "distance · 127",
            "class_probability": "p · 255",
        }
        create_group(draft, about)
        writer = _MapWriter(draft, layout, shape)
        blender = RowBlender(*shape, layout.channels, tiles.tile_px, tiles.stride_px)
        for batch in _ahead(tiles.batches(batch_size), account):
            mark = time.perf_counter()
            values = _forward(decoder, batch, tiles.tile_px, layout, precision, device)
            account["forward_s"] += time.perf_counter() - mark
            for y_px, x_px, tile in zip(batch.y_px.tolist(), batch.x_px.tolist(), values, strict=True):
                _spend(account, blender.add(y_px, x_px, tile), writer.add)
        _spend(account, blender.finish(), writer.add)
        mark = time.perf_counter()
        writer.close()
        account["write_s"] += time.perf_counter() - mark
    account["seconds"] = time.perf_counter() - start
    _LOG.info(
        "%s: %d tiles in %.1f s (%.1f tiles/s; reading %.1f s, computing %.1f s, blending %.1f s, writing %.1f s)",
        attributes.get("slide_id", "slide"),
        tiles.n,
        account["seconds"],
        tiles.n / account["seconds"],
        *(account[name] for name in ("read_s", "forward_s", "blend_s", "write_s")),
    )
    return account


class _Layout:
    """Which channel of the blended values means what."""

    def __init__(self, heads: Sequence[Head], n_classes: int) -> None:
        self._from_classes = "nucleus" not in heads
        sizes: dict[Head, int] = {"nucleus": 1, "hv": 2, "classes": n_classes, "boundary": 1}
        self.slices: dict[Head, slice] = {}
        self.channels = 0
        for head in heads:
            self.slices[head] = slice(self.channels, self.channels + sizes[head])
            self.channels += sizes[head]

    def join(self, outputs: Mapping[Head, Tensor]) -> Tensor:
        """Heads' outputs as what is blended: probabilities and distances, (n, channels, h, w) float32."""
        parts = []
        for head in self.slices:
            logits = outputs[head].float()
            if head == "nucleus":
                parts.append(logits.softmax(1)[:, 1:])
            elif head == "classes":
                parts.append(logits.softmax(1))
            elif head == "boundary":
                parts.append(logits.sigmoid())
            else:
                parts.append(logits.clamp(-1, 1))
        return torch.cat(parts, 1)

    def quantise(self, values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Blended values as they are stored."""
        maps: dict[str, NDArray[Any]] = {}
        for head, channels in self.slices.items():
            part = values[channels]
            if head == "hv":
                maps["hv"] = np.clip(np.rint(part * HV_SCALE), -HV_SCALE, HV_SCALE).astype(np.int8)
            elif head == "classes":
                if self._from_classes:
                    # Nuclei are what is not background: no head says more.
                    maps["nucleus"] = _as_byte(part[1:].sum(0))
                maps["class_id"] = part.argmax(0).astype(np.uint8)
                maps["class_probability"] = _as_byte(part.max(0))
            else:
                maps[head] = _as_byte(part[0])
        return maps


def _as_byte(probability: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(np.rint(probability * PROBABILITY_SCALE), 0, PROBABILITY_SCALE).astype(np.uint8)


class _MapWriter:
    """Gathers finished rows into whole shards and writes each while later rows are being made."""

    def __init__(self, place: Path, layout: _Layout, shape: tuple[int, int]) -> None:
        self._layout = layout
        self._shape = shape
        self._names: dict[str, tuple[Any, tuple[int, ...]]] = {}
        sample = layout.quantise(np.zeros((layout.channels, 1, 1), np.float32)) | {
            "covered": np.zeros((1, 1), np.uint8)
        }
        cols = -(-min(shape[1], _SHARD_COLS_PX) // _CHUNK_PX) * _CHUNK_PX
        for name, values in sample.items():
            lead = values.shape[:-2]
            array = create_array(
                place / name,
                (*lead, *shape),
                values.dtype,
                chunk=(*(1 for _ in lead), _CHUNK_PX, _CHUNK_PX),
                shard=(*lead, _SHARD_ROWS_PX, cols),
                codec="labels",
                dimension_names=("axis", "y", "x")[-values.ndim :],
            )
            self._names[name] = (array, lead)
        self._buffer = {
            name: np.zeros((*lead, _SHARD_ROWS_PX, shape[1]), array.dtype.numpy_dtype)
            for name, (array, lead) in self._names.items()
        }
        self._top = self._filled = 0
        self._writing: list[Any] = []

    def add(self, rows: FinishedRows) -> None:
        """Take the next finished rows."""
        values, covered = rows
        maps = self._layout.quantise(values) | {"covered": covered.astype(np.uint8)}
        count = covered.shape[0]
        taken = 0
        while taken < count:
            step = min(_SHARD_ROWS_PX - self._filled, count - taken)
            for name, part in maps.items():
                self._buffer[name][..., self._filled : self._filled + step, :] = part[..., taken : taken + step, :]
            self._filled += step
            taken += step
            if self._filled == _SHARD_ROWS_PX:
                self._flush()

    def close(self) -> None:
        """Write what is left and wait for the disk."""
        self._flush()
        self._wait()

    def _flush(self) -> None:
        if self._filled == 0:
            return
        self._wait()
        for name, (array, _) in self._names.items():
            rows = self._buffer[name][..., : self._filled, :].copy()
            self._writing.append(array[..., self._top : self._top + self._filled, :].write(rows))
        self._top += self._filled
        self._filled = 0

    def _wait(self) -> None:
        for writing in self._writing:
            writing.result()
        self._writing = []


def _forward(
    decoder: Decoder, batch: TileBatch, tile_px: int, layout: _Layout, precision: str, device: str
) -> NDArray[np.float32]:
    with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16, precision == "bf16"):
        tokens = [token.to(device, non_blocking=True).float() for token in batch.tokens]
        image = batch.image
        if image is not None:
            image = image.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        values: NDArray[np.float32] = layout.join(decoder(tokens, image, (tile_px, tile_px))).cpu().numpy()
    return values


def _spend(
    account: dict[str, float],
    rows: Iterator[FinishedRows],
    write: Callable[[FinishedRows], None],
) -> None:
    """Drain the blender into the writer, and tell the time of one from that of the other."""
    while True:
        mark = time.perf_counter()
        finished = next(rows, None)
        account["blend_s"] += time.perf_counter() - mark
        if finished is None:
            return
        mark = time.perf_counter()
        write(finished)
        account["write_s"] += time.perf_counter() - mark


def _ahead(batches: Iterator[TileBatch], account: dict[str, float]) -> Iterator[TileBatch]:
    """Read in a thread, a bounded number of batches ahead; errors are raised here."""
    waiting: queue.Queue[TileBatch | BaseException | None] = queue.Queue(_BATCHES_AHEAD)
    stop = threading.Event()

    def put(item: TileBatch | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        try:
            with torch.inference_mode():
                for batch in batches:
                    if not put(batch):
                        return
            put(None)
        except BaseException as error:
            put(error)

    reader = threading.Thread(target=read, name="tiles", daemon=True)
    reader.start()
    try:
        while True:
            mark = time.perf_counter()
            item = waiting.get()
            account["read_s"] += time.perf_counter() - mark
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        reader.join()
