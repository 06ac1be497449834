"""The embedding store: every tile of a slide through a frozen encoder, once, as float16 token maps.

A Zarr group per slide, one array ``block_<k>`` (n, h, w, d) per block, in the order of the patch store's tiles.
Reading, computing and writing overlap: a thread reads the next batch while the encoder works, shards are written in the
background. At most two batches of pixels and two shards of every block are in memory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideloom._version import __version__
from slideloom.artefacts.files import publish
from slideloom.artefacts.stage import SCHEMA_VERSION
from slideloom.artefacts.zarrio import create_array, create_group
from slideloom.config.model import EncoderConfig
from slideloom.encoders.base import Encoder, channel_label, check_tile
from slideloom.errors import SlideError, SlideloomError
from slideloom.patches.statistics import ChannelStatistics, channel_statistics, marker_indices
from slideloom.patches.store import PatchStore

__all__ = ["choose_channels", "embed_slide", "used_statistics"]

_LOG = logging.getLogger(__name__)
_HALF_MAX = float(np.finfo(np.float16).max)


def choose_channels(encoder: Encoder, config: EncoderConfig, patches: PatchStore) -> list[int]:
    """Which channels of a slide the encoder is given, in its own order.

    Parameters
    ----------
    encoder : Encoder
        Its ``markers`` are wanted.
    config : EncoderConfig
        With ``markers`` empty, the slide's panel must be exactly the encoder's: no channel is dropped in silence.
    patches : PatchStore
        Of the slide.

    Raises
    ------
    SlideError
        ``missing_marker``, or ``panel_mismatch``: the slide has channels that the encoder does not read and that the
        config does not leave out by naming markers.
    """
    names = tuple(channel_label(channel) for channel in patches.channels)
    if not config.markers and names == encoder.markers:
        return list(range(len(names)))
    try:
        chosen = marker_indices(patches.channels, encoder.markers)
    except SlideError as error:
        raise SlideError(
            error.what, where=patches.slide_id, expected=error.expected, hint=error.hint, code=error.code
        ) from error
    if not config.markers and sorted(names) != sorted(encoder.markers):
        extra = [name for index, name in enumerate(names) if index not in chosen]
        raise SlideError(
            f"{encoder.spec.name} does not read {', '.join(extra)}",
            where=patches.slide_id,
            expected=f"the panel {', '.join(encoder.markers)}",
            hint="Name the markers that all slides share under the encoder's key markers",
            code="panel_mismatch",
        )
    return chosen


def used_statistics(
    encoder: Encoder, config: EncoderConfig, patches: PatchStore, given: ChannelStatistics | None
) -> ChannelStatistics | None:
    """Statistics that a slide's channels are normalised with: the given ones, its own, or none for RGB."""
    if encoder.spec.kind == "rgb":
        return None
    if config.normalisation.scope == "training":
        if given is None:
            raise SlideloomError(
                "no channel statistics given",
                where=encoder.spec.name,
                expected="those of the training slides (scope: training)",
                code="encoder_statistics",
            )
        return given
    names = tuple(channel_label(channel) for channel in patches.channels)
    return channel_statistics([patches], () if names == encoder.markers else encoder.markers, config.normalisation)


def _check_fit(encoder: Encoder, patches: PatchStore) -> None:
    check_tile(patches.tile_px, encoder.spec)
    span = encoder.spec.mpp_um
    # A hundredth of leeway: pixel sizes in file headers are rounded.
    if span and patches.mpp_um is not None and not span[0] * 0.99 <= patches.mpp_um <= span[1] * 1.01:
        raise SlideError(
            f"patches of {patches.mpp_um:g} um/px",
            where=patches.slide_id,
            expected=f"{span[0]:g} to {span[1]:g} um/px, what {encoder.spec.name} was made for",
            hint="Set the grid's mpp_um",
            code="encoder_resolution",
        )


def embed_slide(
    encoder: Encoder,
    config: EncoderConfig,
    patches: PatchStore,
    statistics: ChannelStatistics | None,
    place: Path,
    *,
    batch_size: int = 16,
    device: str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> dict[str, float]:
    """Encode every tile of a slide and store the tokens.

    Parameters
    ----------
    encoder : Encoder
        Built once by the caller, whatever the number of slides; moved to ``device`` here.
    config : EncoderConfig
        The entry that it was built from.
    patches : PatchStore
        The slide's tiles.
    statistics : ChannelStatistics or None
        For marker encoders with ``scope: training``. With ``scope: slide`` they are measured here; RGB encoders need
        none.
    place : Path
        The store; an older one is replaced when the new one is whole.
    batch_size : int
        Tiles a pass; only the slide's last batch is smaller.
    device : str
        Such as ``cpu`` or ``cuda``.
    precision : {"fp32", "bf16"}
        Arithmetic of the encoder.

    Returns
    -------
    dict of str to float
        ``n_tiles``; ``seconds`` in all; of these ``read_s`` waiting for pixels, ``forward_s`` computing (transfers
        included) and ``write_s`` waiting for the disk.

    Raises
    ------
    SlideError
        ``non_finite_embedding``: NaN, infinite, or too large for float16. ``missing_marker``, ``panel_mismatch``,
        ``encoder_resolution``.
    SlideloomError
        ``encoder_tile_px``, ``encoder_statistics``.
    """
    start = time.perf_counter()
    _check_fit(encoder, patches)
    chosen = choose_channels(encoder, config, patches)
    used = used_statistics(encoder, config, patches, statistics)
    encoder.to(device)
    side = patches.tile_px // encoder.patch_px
    account = {"n_tiles": float(patches.n), "seconds": 0.0, "read_s": 0.0, "forward_s": 0.0, "write_s": 0.0}
    largest = dict.fromkeys(encoder.blocks, 0.0)
    with publish(place) as draft:
        shape = (patches.n, side, side, encoder.width)
        arrays = {block: _ShardWriter(draft / f"block_{block}", shape) for block in encoder.blocks}
        for first, pixels in _read_ahead(patches, chosen, batch_size, account):
            mark = time.perf_counter()
            with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16, precision == "bf16"):
                tokens = encoder.encode(encoder.preprocess(pixels.to(device), used))
                for block, value in tokens.items():
                    largest[block] = max(largest[block], _largest(value, block, patches, first))
                host = {block: value.to(torch.float16).cpu().numpy() for block, value in tokens.items()}
            account["forward_s"] += time.perf_counter() - mark
            mark = time.perf_counter()
            for block, rows in host.items():
                arrays[block].add(rows)
            account["write_s"] += time.perf_counter() - mark
        mark = time.perf_counter()
        for array in arrays.values():
            array.close()
        create_group(draft, _attributes(encoder, config, patches, chosen, used, largest, precision))
        account["write_s"] += time.perf_counter() - mark
    account["seconds"] = time.perf_counter() - start
    _LOG.info(
        "%s: %d tiles in %.1f s (%.1f tiles/s; reading %.1f s, computing %.1f s, writing %.1f s)",
        patches.slide_id,
        patches.n,
        account["seconds"],
        patches.n / max(account["seconds"], 1e-9),
        account["read_s"],
        account["forward_s"],
        account["write_s"],
    )
    return account


def _attributes(
    encoder: Encoder,
    config: EncoderConfig,
    patches: PatchStore,
    chosen: Sequence[int],
    statistics: ChannelStatistics | None,
    largest: Mapping[int, float],
    precision: str,
) -> dict[str, Any]:
    entry = config.model_dump(mode="json")
    if config.checkpoint is not None:
        # Where a file lay on one machine says nothing on another; its digest stands under "weights".
        entry["checkpoint"] = config.checkpoint.name
    return {
        "schema": SCHEMA_VERSION,
        "slideloom": __version__,
        "kind": "embeddings",
        "slide_id": patches.slide_id,
        "image": patches.image,
        "encoder": entry,
        "spec": encoder.spec.as_dict(),
        "weights": encoder.weights,
        "notes": list(encoder.notes),
        "statistics": None if statistics is None else statistics.as_dict(),
        "channel_indices": list(chosen),
        "channel_names": [patches.channels[index].name for index in chosen],
        "markers": list(encoder.markers),
        "blocks": list(encoder.blocks),
        "width": encoder.width,
        "patch_px": encoder.patch_px,
        "tile_px": patches.tile_px,
        "n_tiles": patches.n,
        "max_abs": {str(block): value for block, value in largest.items()},
        "precision": precision,
    }


def _largest(tokens: Tensor, block: int, patches: PatchStore, first: int) -> float:
    """Largest magnitude of a batch; refuses what float16 cannot hold."""
    if not tokens.numel():
        return 0.0
    largest = float(tokens.abs().amax())
    # NaN compares false.
    if largest <= _HALF_MAX:
        return largest
    fits = (tokens.abs() <= _HALF_MAX).flatten(1).all(1)
    tile = first + int(torch.nonzero(~fits)[0])
    raise SlideError(
        f"block {block} gives {largest:g} in tile {tile} (row {patches.row[tile]}, column {patches.col[tile]})",
        where=patches.slide_id,
        expected=f"finite numbers up to {_HALF_MAX:g}",
        hint="Look at the tile's pixels, and at the checkpoint",
        code="non_finite_embedding",
    )


def _read_ahead(
    patches: PatchStore, chosen: Sequence[int], size: int, account: dict[str, float]
) -> Iterator[tuple[int, Tensor]]:
    """Index of the first tile and pixels of each batch, the next one being read meanwhile."""
    every = list(chosen) == list(range(len(patches.channels)))

    def read(first: int) -> Tensor:
        pixels = patches.pixels(slice(first, min(first + size, patches.n)))
        return torch.from_numpy(np.ascontiguousarray(pixels if every else pixels[:, list(chosen)]))

    starts = range(0, patches.n, size)
    with ThreadPoolExecutor(1, thread_name_prefix="patches") as reader:
        ahead = reader.submit(read, 0) if patches.n else None
        for first in starts:
            mark = time.perf_counter()
            pixels = ahead.result() if ahead is not None else read(first)
            account["read_s"] += time.perf_counter() - mark
            following = first + size
            ahead = reader.submit(read, following) if following < patches.n else None
            yield first, pixels


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
        self._wait()
        stop = self._start + self._filled
        self._pending = self._array[self._start : stop].write(self._buffer[: self._filled])
        self._start, self._filled, self._buffer = stop, 0, None

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def close(self) -> None:
        self._flush()
        self._wait()
