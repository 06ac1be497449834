"""A decoder over slides: tiles to blended maps, quantised, in sharded Zarr."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from slideloom._version import __version__
from slideloom.decoders.base import Decoder
from slideloom.inference.account import new_account
from slideloom.inference.engine import Engine
from slideloom.inference.forward import BatchSize, Networks, Symmetries
from slideloom.inference.layout import UNITS
from slideloom.inference.tiles import TileSource
from slideloom.inference.work import SlideWork

__all__ = ["SHIFTED", "Predictor", "SlideTask", "predict_slide"]

_LOG = logging.getLogger(__name__)
_SCHEMA = 1
#: Group, in the store of a slide's maps, of those that were predicted with shifted tiles.
SHIFTED = "shifted"


@dataclass(frozen=True)
class SlideTask:
    """A slide to predict.

    Attributes
    ----------
    slide_id : str
        As the caller names it.
    place : Path
        Zarr group to write; an older one is replaced when the new one is whole.
    attributes : mapping
        Recorded with the maps: slide, image, pixel size and what they were made from.
    open_tiles : callable
        Opens its tiles, in a thread of its own, while the slide before is still read. Tiles with ``rows`` give the
        maps of that band alone.
    open_shifted : callable, optional
        Opens tiles that lie elsewhere; their maps go to the subgroup ``shifted``.
    """

    slide_id: str
    place: Path
    attributes: Mapping[str, Any]
    open_tiles: Callable[[], TileSource]
    open_shifted: Callable[[], TileSource] | None = None


class Predictor:
    """Predicts slides with one decoder.

    Parameters
    ----------
    decoder : Decoder
        In evaluation mode; moved to ``device`` and to channels-last here.
    batch_size : int or "auto"
        Tiles a pass; see :class:`~slideloom.inference.forward.BatchSize`. Halved where memory runs out. Another number
        may change last bits.
    precision : {"fp32", "bf16"}
        Arithmetic of decoder and encoder.
    device : str
        Such as ``cpu`` or ``cuda``; encoders of live tiles are there already.
    compile : bool
        Compile the decoder.
    symmetries : {"none", "flips", "turns", "all"}
        Predict every tile in these poses and average.

    Attributes
    ----------
    account : MapsAccount
        Of everything so far.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        batch_size: int | Literal["auto"] = "auto",
        precision: Literal["fp32", "bf16"] = "fp32",
        device: str = "cpu",
        compile: bool = False,
        symmetries: Symmetries = "none",
    ) -> None:
        self._device = torch.device(device)
        self.account = new_account(self._device)
        self._networks = Networks(decoder, self._device, precision, compile, symmetries)
        self._size = BatchSize(batch_size, self._device)
        classifier = getattr(decoder, "pixel_classifier", None)
        # What makes nuclei of InstanSeg's maps: some sixty numbers.
        self._classifier = classifier and {name: value.tolist() for name, value in classifier.state_dict().items()}
        #: Thresholds that a program was published with, for those who find its nuclei.
        self._published = getattr(decoder, "defaults", None)
        self._symmetries = symmetries

    @property
    def batch_size(self) -> int:
        """Tiles of a pass, as things stand."""
        return self._size.now

    def run(self, tasks: Iterable[SlideTask]) -> Iterator[tuple[str, Path | Exception]]:
        """Predict slides and blend their tiles into slide-wide maps.

        Parameters
        ----------
        tasks : iterable of SlideTask
            The slides; taken in a thread, a few ahead.

        Yields
        ------
        (str, Path or Exception)
            Each slide once, when its store is in its place; or why it failed: whatever its tiles raise;
            :class:`~slideloom.errors.SlideError` ``out_of_memory`` where not even one tile fits. Others go on.

        Raises
        ------
        Exception
            Whatever is no single slide's fault, such as a broken device.

        Notes
        -----
        A store holds, in the grid frame: ``nucleus`` (H, W) uint8, 255 · probability (without a nucleus head, that of
        not being background); ``hv`` (2, H, W) int8, 127 · distance, x then y; ``class_id`` (H, W) uint8, the likeliest
        class, background included, and ``class_probability`` (H, W) uint8; ``boundary`` and ``distance`` (H, W) uint8;
        ``instanseg`` (5, H, W) int16; of these what the decoder's heads give; and ``covered`` (H, W) uint8, 1 where a
        tile looked. Of a band of rows, arrays have the whole slide's shape and hold those rows alone, which the
        attribute ``rows`` names.

        Probabilities, not logits, are averaged and blended. Memory is bounded by one row of tiles and two of shards.
        """
        engine = Engine(self._networks, self._size, self._device)
        try:
            for work in engine.run(self._work(task) for task in tasks):
                if work.error is None:
                    _LOG.info("%s: %s", work.slide_id, work.account)
                yield work.slide_id, work.error or work.place
        finally:
            self.account.add(engine.account.parts)
            self.account.n_tiles += engine.account.n_tiles
            self.account.seconds += engine.account.seconds
        _LOG.info("all slides: %s", engine.account)

    def _work(self, task: SlideTask) -> SlideWork:
        sources = {"": task.open_tiles} | ({SHIFTED: task.open_shifted} if task.open_shifted else {})

        def describe(tiles: TileSource) -> dict[str, Any]:
            about = dict(task.attributes) | {"schema": _SCHEMA, "slideloom_version": __version__, "units": UNITS}
            about |= {"heads": list(self._networks.decoder.heads), "symmetries": self._symmetries}
            if self._classifier:
                about |= {"pixel_classifier": self._classifier}
            if self._published:
                about |= {"instanseg_published": self._published}
            about |= {"scale": tiles.scale, "tile_px": tiles.tile_px, "stride_px": tiles.stride_px}
            about |= {"height_px": tiles.height_px, "width_px": tiles.width_px}
            return about | ({"rows": list(tiles.rows)} if tiles.rows else {})

        return SlideWork(task.slide_id, task.place, sources, describe, new_account(self._device))


def predict_slide(
    decoder: Decoder,
    tiles: TileSource,
    place: Path,
    attributes: Mapping[str, Any],
    *,
    shifted: TileSource | None = None,
    batch_size: int | Literal["auto"] = 16,
    precision: Literal["fp32", "bf16"] = "fp32",
    device: str = "cpu",
    compile: bool = False,
    symmetries: Symmetries = "none",
) -> dict[str, float]:
    """Predict one slide; see :meth:`Predictor.run`.

    Parameters
    ----------
    decoder, batch_size, precision, device, compile, symmetries
        As :class:`Predictor` has them.
    tiles : TileSource
        The slide's tiles.
    place : Path
        Zarr group to write.
    attributes : mapping
        Recorded with the maps.
    shifted : TileSource, optional
        Tiles that lie elsewhere; their maps go to the subgroup ``shifted``.

    Returns
    -------
    dict of str to float
        ``n_tiles``, ``seconds``; of these ``read_s`` waiting for tiles, ``copy_s`` copying and normalising them,
        ``forward_s`` in the networks, ``write_s`` waiting for the disk, ``idle_s`` the rest; and ``blend_s`` blending
        and quantising, on a CPU meanwhile.
    """
    predictor = Predictor(
        decoder, batch_size=batch_size, precision=precision, device=device, compile=compile, symmetries=symmetries
    )
    task = SlideTask(
        str(attributes.get("slide_id", "slide")),
        place,
        attributes,
        lambda: tiles,
        None if shifted is None else lambda: shifted,
    )
    for _, outcome in predictor.run([task]):
        if isinstance(outcome, Exception):
            raise outcome
    return predictor.account.as_dict()
