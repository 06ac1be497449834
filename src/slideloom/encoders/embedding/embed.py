"""The embedding store: every tile of a slide through a frozen encoder, once, as float16 token maps.

A Zarr group per slide, one array ``block_<k>`` (n, h, w, d) per block, in the order of the patch store's tiles; with
the config's ``symmetries``, also ``block_<k>_s1`` to ``block_<k>_s7``: tokens of the tiles after each flip and turn of
:mod:`slideloom.encoders.dihedral`, where they then lie. Many slides share full batches
(:mod:`~slideloom.encoders.embedding.batches`); reading, computing and writing overlap
(:mod:`~slideloom.encoders.embedding.lane`). Arrays that an older store holds are taken over when nothing but the choice
of arrays has changed (:mod:`~slideloom.encoders.embedding.token_writer`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from slideloom._version import __version__
from slideloom.artefacts.stage import SCHEMA_VERSION
from slideloom.config.model import EncoderConfig
from slideloom.encoders.base import Encoder, encoder_record
from slideloom.encoders.embedding.account import Account
from slideloom.encoders.embedding.batches import SlideWork, tiles_per_batch
from slideloom.encoders.embedding.forward import Forward
from slideloom.encoders.embedding.lane import Lane
from slideloom.encoders.embedding.store import TokenArray, token_arrays
from slideloom.encoders.embedding.token_writer import OlderStore, SlideWriter, find_older
from slideloom.encoders.fit import check_fit, choose_channels, slide_panel, used_statistics
from slideloom.patches.statistics import ChannelStatistics
from slideloom.patches.store import PatchStore
from slideloom.slides.tables import Channel

__all__ = ["Embedder", "Request", "embed_slide"]

_LOG = logging.getLogger(__name__)
Panel = tuple[Channel, ...]


@dataclass(frozen=True)
class Request:
    """A slide to embed.

    Attributes
    ----------
    slide_id : str
        As the caller names it.
    open_patches : callable
        Opens its patch store.
    place : Path
        The embedding store; an older one is replaced when the new one is whole.
    base_key : mapping of str to str
        Digest of everything that the tokens depend on apart from the choice of blocks and symmetries, by what it is.
        Empty: nothing is taken over from an older store.
    """

    slide_id: str
    open_patches: Callable[[], PatchStore]
    place: Path
    base_key: Mapping[str, str] = field(default_factory=dict)


class Embedder:
    """Embeds slides with one entry of the config.

    Parameters
    ----------
    config : EncoderConfig
        The entry.
    build : callable
        Makes the encoder for a panel; called once for each panel that differs, so several slides share it.
    statistics : ChannelStatistics, optional
        Of the training slides, for marker encoders with ``scope: training``; their markers are then everyone's panel.
    uniprot : mapping of str to str
        Accessions by marker.
    device : str
        Such as ``cpu`` or ``cuda``.
    precision : {"fp32", "bf16"}
        Arithmetic of the encoder.
    threads : int, optional
        Cores to compute on, on CPU; torch's own number when left out. Changes no bit of the result.
    batch_size : int, optional
        Tiles of every pass; by the tiles' size and the device when left out. Another number may change last bits.

    Attributes
    ----------
    account : Account
        Of everything so far.
    """

    def __init__(
        self,
        config: EncoderConfig,
        build: Callable[[Panel], Encoder],
        *,
        statistics: ChannelStatistics | None = None,
        uniprot: Mapping[str, str] | None = None,
        device: str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
        threads: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.account = Account()
        self._config, self._build = config, build
        self._statistics, self._uniprot = statistics, dict(uniprot or {})
        self._device, self._precision = device, precision
        self._threads = threads or torch.get_num_threads()
        self._batch_size = batch_size

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[str, Account | Exception]]:
        """Embed slides, in an order of its own.

        Parameters
        ----------
        requests : iterable of Request
            The slides.

        Yields
        ------
        (str, Account or Exception)
            Each slide once, when its store is in its place, with its share of the time; or why it failed:
            :class:`~slideloom.errors.SlideError` with ``non_finite_embedding`` (NaN, infinite, or too large for
            float16), ``missing_marker``, ``panel_mismatch``, ``encoder_resolution``, ``encoder_tile_px``,
            ``encoder_statistics``, what the encoder's builder says; other exceptions as they came.

        Raises
        ------
        MemoryError
            A batch does not fit.
        """
        panels: dict[Panel, list[SlideWork]] = {}
        for request in requests:
            try:
                patches = request.open_patches()
                work = SlideWork(request.slide_id, patches, request.place, request.base_key)
                panels.setdefault(slide_panel(patches, self._statistics, self._uniprot), []).append(work)
            except Exception as error:
                yield request.slide_id, error
        with _one_core_each(self._device):
            for panel, slides in panels.items():
                for slide in self._run_panel(panel, slides):
                    if slide.error is None:
                        _LOG.info("%s: %s", slide.slide_id, slide.account)
                    yield slide.slide_id, slide.error or slide.account
        if panels:
            _LOG.info("all slides: %s", self.account)

    def _run_panel(self, panel: Panel, slides: Sequence[SlideWork]) -> Iterator[SlideWork]:
        start = time.perf_counter()
        try:
            encoder = self._build(panel).to(self._device)
        except Exception as error:
            for slide in slides:
                slide.fail(error)
            yield from slides
            return
        seconds = time.perf_counter() - start
        self.account.add({"build_s": seconds})
        self.account.seconds += seconds
        lanes: dict[tuple[tuple[TokenArray, ...], int], list[SlideWork]] = {}
        wanted = token_arrays(encoder.blocks, self._config.symmetries)
        for slide in slides:
            slide.older = self._find_older(encoder, wanted, slide)
            held = slide.older.arrays if slide.older else ()
            missing = tuple(one for one in wanted if one not in held)
            lanes.setdefault((missing, slide.patches.tile_px), []).append(slide)
        for (missing, tile_px), group in lanes.items():
            if missing:
                yield from self._run_lane(encoder, missing, tile_px, group)
            else:
                yield from self._take_over(encoder, group)

    def _find_older(self, encoder: Encoder, wanted: Sequence[TokenArray], slide: SlideWork) -> OlderStore | None:
        found = find_older(slide.place, wanted, encoder.spec, slide.base_key, self._precision)
        if isinstance(found, str):
            if found:
                _LOG.info("%s: every block is computed: %s", slide.slide_id, found)
            return None
        missing = [one for one in wanted if one not in found.arrays]
        told = [f"{_listed(missing)} computed"] if missing else []
        told += [f"{_listed(found.arrays)} taken over"]
        told += [f"{_listed(found.dropped)} dropped"] if found.dropped else []
        _LOG.info("%s: blocks %s", slide.slide_id, ", ".join(told))
        return found

    def _run_lane(
        self, encoder: Encoder, missing: tuple[TokenArray, ...], tile_px: int, slides: Sequence[SlideWork]
    ) -> Iterator[SlideWork]:
        size = self._batch_size or tiles_per_batch(tile_px, len(encoder.markers), self._device)
        side = tile_px // encoder.patch_px

        def open_writer(slide: SlideWork) -> SlideWriter:
            shape = (slide.patches.n, side, side, encoder.width)
            return SlideWriter(slide.place, shape, missing, slide.older)

        lane = Lane(
            Forward(encoder, missing, size, self._device, self._precision),
            self._threads if self._device == "cpu" else 1,
            pin=self._device != "cpu",
            prepare=lambda slide: self._prepare(encoder, slide),
            open_writer=open_writer,
            finish=lambda slide, writer: writer.finish(self._attributes(encoder, slide)),
        )
        yield from lane.run(slides)
        self.account.n_tiles += lane.account.n_tiles
        self.account.n_padding += lane.account.n_padding
        self.account.seconds += lane.account.seconds
        self.account.add(lane.account.parts)

    def _take_over(self, encoder: Encoder, slides: Sequence[SlideWork]) -> Iterator[SlideWork]:
        """Stores whose every array lies there already: nothing is computed."""
        for slide in slides:
            start = time.perf_counter()
            try:
                self._prepare(encoder, slide)
                SlideWriter(slide.place, (0, 0, 0, 0), (), slide.older).finish(self._attributes(encoder, slide))
            except Exception as error:
                slide.fail(error)
            spent = time.perf_counter() - start
            for account in (slide.account, self.account):
                account.add({"write_s": spent})
                account.seconds += spent
            yield slide

    def _prepare(self, encoder: Encoder, slide: SlideWork) -> None:
        slide.notes = check_fit(encoder, self._config, slide.patches)
        slide.chosen = choose_channels(encoder, self._config, slide.patches)
        if slide.older is None:
            slide.statistics = used_statistics(encoder, self._config, slide.patches, self._statistics)
        elif slide.older.attributes["statistics"] is not None:
            slide.statistics = ChannelStatistics.from_dict(slide.older.attributes["statistics"])
        for note in slide.notes:
            _LOG.warning("%s: %s", slide.slide_id, note)

    def _attributes(self, encoder: Encoder, slide: SlideWork) -> dict[str, Any]:
        patches = slide.patches
        held = slide.older.attributes["max_abs"] if slide.older else {}
        arrays = token_arrays(encoder.blocks, self._config.symmetries)
        largest = {one.label: slide.largest.get(one, held.get(one.label, 0.0)) for one in arrays}
        record = encoder_record(encoder, self._config, self._precision)
        record["notes"] += slide.notes
        return record | {
            "schema": SCHEMA_VERSION,
            "slideloom": __version__,
            "kind": "embeddings",
            "slide_id": patches.slide_id,
            "image": patches.image,
            "base_key": dict(slide.base_key),
            "statistics": None if slide.statistics is None else slide.statistics.as_dict(),
            "channel_indices": slide.chosen,
            "channel_names": [patches.channels[index].name for index in slide.chosen],
            "blocks": list(encoder.blocks),
            "symmetries": self._config.symmetries,
            "final_norm": encoder.spec.final_norm,
            "width": encoder.width,
            "patch_px": encoder.patch_px,
            "tile_px": patches.tile_px,
            "n_tiles": patches.n,
            "max_abs": largest,
        }


def embed_slide(
    encoder: Encoder,
    config: EncoderConfig,
    patches: PatchStore,
    statistics: ChannelStatistics | None,
    place: Path,
    *,
    batch_size: int | None = None,
    device: str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> dict[str, float]:
    """Encode every tile of one slide and store the tokens.

    Parameters
    ----------
    encoder : Encoder
        Built from ``config``.
    config, statistics, device, precision, batch_size
        As :class:`Embedder` has them.
    patches : PatchStore
        The slide's tiles.
    place : Path
        The store; an older one is replaced when the new one is whole.

    Returns
    -------
    dict of str to float
        See :meth:`~slideloom.encoders.embedding.account.Account.as_dict`.

    Raises
    ------
    SlideError
        See :meth:`Embedder.run`.
    """
    embedder = Embedder(
        config,
        lambda panel: encoder,
        statistics=statistics,
        device=device,
        precision=precision,
        batch_size=batch_size,
    )
    for _, outcome in embedder.run([Request(patches.slide_id, lambda: patches, place)]):
        if isinstance(outcome, Exception):
            raise outcome
    return embedder.account.as_dict()


def _listed(arrays: Sequence[TokenArray]) -> str:
    """Blocks, with a word on those of which not the tiles as they are, or not these alone, are meant."""
    told = []
    for block in dict.fromkeys(one.block for one in arrays):
        turned = [one.symmetry for one in arrays if one.block == block and one.symmetry]
        plain = TokenArray(block) in arrays
        told.append(f"{block}{'' if not turned else ' with symmetries' if plain else ' (symmetries)'}")
    return ", ".join(told)


@contextmanager
def _one_core_each(device: str) -> Iterator[None]:
    """On CPU, every thread of the block computes on one core."""
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
